"""The digest of a file that is written in parts, made while it is."""

from __future__ import annotations

import hashlib
import os
import queue
import threading
from collections.abc import Sequence

from builder.models.convert.memory import pages

_READ = 256 << 10


class Hashing:
    """The sha256 of the file open as `descriptor`: a thread hashes it to the end of the last part before which all are written.

    `ends` are the bytes at which the parts end, in their order.
    """

    def __init__(self, descriptor: int, ends: Sequence[int]) -> None:
        self._descriptor = descriptor
        self._ends = ends
        self._there: set[int] = set()
        self._next = 0
        self._digest = hashlib.sha256()
        self._error: Exception | None = None
        self._orders: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begins; only when all processes are made."""
        self._thread.start()

    def there(self, number: int) -> None:
        """What the end with this number ends is written."""
        self._there.add(number)
        while self._next in self._there:
            self._orders.put(self._ends[self._next])
            self._next += 1

    def digest(self) -> str:
        """The sha256 of the file, when all is written."""
        self.stop()
        if self._error:
            raise self._error
        return self._digest.hexdigest()

    def stop(self) -> None:
        """Ends, when what was written is hashed."""
        self._orders.put(None)
        if self._thread.ident is not None:
            self._thread.join()

    def _run(self) -> None:
        at, memory = 0, pages(_READ)
        try:
            while (end := self._orders.get()) is not None:
                while at < end:
                    count = os.preadv(self._descriptor, [memory[: end - at]], at)
                    if not count:
                        raise EOFError("what was written is gone")
                    self._digest.update(memory[:count])
                    at += count
        except Exception as error:
            self._error = error
