"""Where inputs come from, one kind a file: Debian packages, wheels, local files."""
