"""Measures builds against what this machine can do at best: `python -m bench PROFILE`, or `make bench`."""
