"""The digest of a file that fills up in any order, made while it does so."""

from __future__ import annotations

import hashlib
import threading

from builder.models.filling import Filling
from builder.oci.digest import Digest

_READ = 256 << 10


class Hasher:
    """Hashes a file from its beginning as far as it is there, in a thread of its own, for the length of a `with` block.

    It reads the file and does not map it: to touch a page in a mapping first costs more than to copy it.
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
            self._hash(memoryview(bytearray(_READ)))
        except (OSError, ValueError):  # the file is read at its end, and what is wrong with it shows there
            with self._news:
                self._failed = True
                self._news.notify_all()

    def _hash(self, memory: memoryview) -> None:
        while (end := self._next()) is not None:
            for piece in self._filling.pieces(self._reached, end, memory):
                self._state.update(piece)
            with self._news:
                self._reached = end
                self._news.notify_all()

    def _next(self) -> int | None:
        """How far it can go on; None if it is to stop."""
        with self._news:
            self._news.wait_for(lambda: self._stopped or self._reached in self._landed)
            return None if self._stopped else self._landed.pop(self._reached)
