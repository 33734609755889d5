"""The lock beside a profile, as a file."""

from __future__ import annotations

from pathlib import Path

from builder import lock as locks
from builder.errors import BuilderError
from builder.lock import Lock, LockedStart
from builder.oci import files


class LockFile:
    """The lock at `path`. It is read whenever it is asked for, and parsed again only where it says something else by then."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._parsed: tuple[bytes, Lock] | None = None

    def read(self) -> Lock | None:
        """The lock, whatever profile it belongs to; None if there is none. Raises `LockError`."""
        try:
            data = self.path.read_bytes()
            if self._parsed is None or self._parsed[0] != data:
                self._parsed = data, locks.parse(data.decode("utf-8"), str(self.path))
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise locks.LockError(f"{self.path}: cannot be read: {error}") from error
        return self._parsed[1]

    def start(self) -> LockedStart | None:
        """What it says of the start; whoever needs the lock is told what is wrong with one that cannot be read."""
        try:
            found = self.read()
        except BuilderError:
            return None
        return found.start if found else None

    def write(self, lock: Lock) -> None:
        """Writes a lock in its place. Raises `BuilderError`."""
        try:
            files.write(self.path, locks.encode(lock).encode())
        except OSError as error:
            raise BuilderError(
                f"{self.path}: cannot be written: {error.strerror or error}",
                hint="free disk space, or have the lock's folder made writable: it lies beside the profile",
            ) from error
