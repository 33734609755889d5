"""The digest of a file that fills up in any order, made while it does so."""

from __future__ import annotations

import hashlib
import mmap
import threading
from contextlib import suppress

from builder.models.filling import Filling
from builder.oci.digest import Digest

_STRETCH = 16 << 20


class Hasher:
    """Hashes a file from its beginning as far as it is there, in a thread of its own, for the length of a `with` block.

    It looks at the file in memory, a few megabytes at a time: large stretches let the other threads run, and nothing is copied.
    """

    def __init__(self, filling: Filling) -> None:
        self._filling = filling
        self._news = threading.Condition()
        self._landed: dict[int, int] = {}
        self._reached = 0
        self._stopped = False
        self._failed = False
        self._state = hashlib.sha256()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def __enter__(self) -> Hasher:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with self._news:
            self._stopped = True
            self._news.notify_all()
        self._thread.join()

    def landed(self, start: int, end: int) -> None:
        """These bytes are in the file; they are told once."""
        with self._news:
            self._landed[start] = end
            if start == self._reached:
                self._news.notify_all()

    def digest(self) -> Digest:
        """The digest of the whole file, all of whose bytes have landed."""
        with self._news:
            self._news.wait_for(lambda: self._reached == self._filling.size or self._failed)
            if not self._failed:
                return Digest(self._state.hexdigest())
        return self._filling.digest()

    def _run(self) -> None:
        try:
            if self._filling.size:
                self._hash()
        except (OSError, ValueError):  # this file system has no files in memory: the file is read at its end
            with self._news:
                self._failed = True
                self._news.notify_all()

    def _hash(self) -> None:
        with self._filling.map() as map:
            while (end := self._next()) > self._reached:
                with memoryview(map)[self._reached : end] as stretch:
                    self._state.update(stretch)
                first = self._reached // mmap.PAGESIZE * mmap.PAGESIZE
                with suppress(OSError, ValueError):  # what was looked at need not stay in this process
                    map.madvise(mmap.MADV_DONTNEED, first, end // mmap.PAGESIZE * mmap.PAGESIZE - first)
                with self._news:
                    self._reached = end
                    self._news.notify_all()

    def _next(self) -> int:
        """How far it can go on; no farther if it is to stop."""
        with self._news:
            self._news.wait_for(lambda: self._stopped or self._reached in self._landed)
            end = self._reached
            while not self._stopped and end in self._landed and end - self._reached < _STRETCH:
                end = self._landed.pop(end)
            return end
