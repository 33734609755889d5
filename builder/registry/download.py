"""A blob of a registry as a file: in parallel ranges, resumed from a journal, hashed in order while it comes in."""

from __future__ import annotations

import hashlib
import os
import threading
from collections.abc import Callable
from pathlib import Path

from builder.client import redact
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.parallel import Stop
from builder.registry.session import Session
from builder.registry.stream import WrongBytesError
from builder.transfer import Lane, forget, settle
from builder.transfer import download as transfer

_BLOCK = 1 << 20


def download(
    session: Session,
    descriptor: Descriptor,
    path: Path,
    *,
    connections: threading.Semaphore,
    threads: int,
    advance: Callable[[int], None],
    stop: Stop,
) -> None:
    """Brings a blob to `path`, going on with what an interrupted call left there; it is whole and checked afterwards.

    Raises `FetchError`; `WrongBytesError` if the registry gives other bytes, and then `path` is gone.
    """
    lane = Lane(session, connections, threads, advance, stop, "its descriptor")
    url = session.url(f"blobs/{descriptor.digest}")
    for last in (False, True):
        with Follower(path, stop) as follower:
            transfer(lane, url, path, descriptor.size, follower)
            found = follower.digest(descriptor.size)
        if found == descriptor.digest:
            settle(path)
            return
        # what an earlier call left, or one bad connection brought, may be the reason: once more, from nothing
        forget(path)
        advance(-descriptor.size)
        if last:
            raise WrongBytesError(
                f"{redact(url)}: the bytes are not those of the digest: expected {descriptor.digest}, got {found}"
            )


class Follower:
    """Hashes a file in order while it is filled in any order: a `Watcher`."""

    def __init__(self, path: Path, stop: Stop) -> None:
        self._path = path
        self._stop = Stop(stop)
        self._news = threading.Condition()
        self._landed: dict[int, int] = {}
        self._reached = 0
        self._round = 0
        self._state = hashlib.sha256()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._follow, daemon=True)

    def __enter__(self) -> Follower:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        with self._news:
            self._news.notify_all()
        self._thread.join()

    def landed(self, start: int, end: int) -> None:
        """Those bytes are there."""
        with self._news:
            if end > start:
                self._landed[start] = end
            self._news.notify_all()

    def cleared(self) -> None:
        """Nothing of the file is right any longer."""
        with self._news:
            self._landed.clear()
            self._reached = 0
            self._round += 1
            self._state = hashlib.sha256()

    def digest(self, size: int) -> Digest:
        """The digest of all `size` bytes, which have landed."""
        with self._news:
            self._news.wait_for(lambda: self._reached >= size or self._failure is not None)
            if self._failure is not None:
                raise self._failure
            return Digest(self._state.hexdigest())

    def _follow(self) -> None:
        block = memoryview(bytearray(_BLOCK))
        try:
            with self._path.open("rb", buffering=0) if self._wait_for_first() else open(os.devnull, "rb") as file:
                while (stretch := self._next()) is not None:
                    start, end, turn, state = stretch
                    file.seek(start)
                    while start < end and not self._stop.is_set():
                        count = file.readinto(block[: min(len(block), end - start)])
                        if not count or turn != self._round:
                            break
                        state.update(block[:count])
                        start += count
                    with self._news:
                        if turn == self._round and start < end and not self._stop.is_set():
                            raise OSError(f"{self._path}: it became shorter")
                        if turn == self._round:
                            self._reached = start
                            self._news.notify_all()
        except OSError as error:
            with self._news:
                self._failure = error
                self._news.notify_all()

    def _wait_for_first(self) -> bool:
        with self._news:
            self._news.wait_for(lambda: bool(self._landed) or self._stop.is_set())
            return not self._stop.is_set()

    def _next(self) -> tuple[int, int, int, hashlib._Hash] | None:
        """The next stretch that can be hashed, when there is one."""
        with self._news:
            self._news.wait_for(lambda: self._reached in self._landed or self._stop.is_set())
            if self._stop.is_set():
                return None
            return self._reached, self._landed.pop(self._reached), self._round, self._state
