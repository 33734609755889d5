"""One file of a model, on this disk as far as it was used."""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

from builder.models.chunked import Chunked, Open
from builder.models.fetching import Fetcher
from builder.models.filling import Filling
from builder.oci.digest import Digest
from builder.parallel import Stop
from builder.store import Store

_PATIENCE = 20.0
"""Seconds after which a chunk is fetched although another process says that it does so."""

_ENDING = 5.0
"""Seconds that `close` waits for what is on its way."""

_POLL = 0.02


class LazyFile:
    """A file whose chunks are fetched when they are needed; shared by threads.

    `fetcher` makes what asks the place; `whole` brings the whole file into the store, for files whose chunks nothing vouches for.
    """

    def __init__(
        self, store: Store, chunked: Chunked, fetcher: Callable[[Stop | None], Fetcher], whole: Callable[[], Path]
    ) -> None:
        self._store = store
        self._chunked = chunked
        self._new_fetcher = fetcher
        self._whole = whole
        self._news = threading.Condition()
        self._coming: set[int] = set()
        self._open: Open | None = None
        self._map: mmap.mmap | None = None

    def close(self) -> None:
        """Lets go of the file when nothing is on its way to it any more; views of it stay good."""
        with self._news:
            ended = self._news.wait_for(lambda: not self._coming, _ENDING)
            if self._open is not None and ended:
                self._open.filling.close()
            self._open = self._map = None

    def renew(self) -> None:
        """Lets go of the file in a forked process; views of it stay good."""
        if self._open is not None:
            self._open.filling.renew()

    def view(self, start: int, end: int, spans: Sequence[tuple[int, int]]) -> memoryview:
        """Bytes `start` to `end`, of which those in `spans`, counted from `start`, are there."""
        map = self.ensure([(start + begin, start + until) for begin, until in spans])
        return memoryview(map if map is not None else b"")[start:end]

    def ensure(self, spans: Sequence[tuple[int, int]], stop: Stop | None = None) -> mmap.mmap | None:
        """These bytes are there afterwards; the file in memory, None if it is empty.

        Raises `WrongModelError` if the place gives other bytes, and what the source raises.
        """
        opened, map = self._opened()
        if opened is not None and self._fetch(opened, self._chunks(spans), stop):
            return self._opened()[1]
        return map

    def _opened(self) -> tuple[Open | None, mmap.mmap | None]:
        with self._news:
            if self._map is None and self._chunked.file.size:
                if self._is_whole():
                    self._map = _mapped(self._store.path(Digest(self._chunked.file.sha256)))
                elif self._chunked.hashes is None:
                    self._map = _mapped(self._whole())
                else:
                    with self._store.explained():
                        filling = Filling(self._store.partial(self._chunked.parts_key), self._chunked.cuts)
                    self._open = Open(self._chunked, filling, landed=self._landed)
                    self._map = filling.map()
            return self._open, self._map

    def _chunks(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        cuts = self._chunked.cuts
        found: set[int] = set()
        for start, end in spans:
            if start < end:
                found.update(range(bisect_right(cuts, start) - 1, bisect_right(cuts, end - 1)))
        return sorted(found)

    def _fetch(self, opened: Open, chunks: Sequence[int], stop: Stop | None) -> bool:
        """Each chunk is fetched by the thread that needs it first, of whichever process; others wait for it, and try it
        themselves if that failed.

        Returns whether the whole file is in the store meanwhile, and this one of no use any more.
        """
        filling = opened.filling
        patience = _PATIENCE
        while True:
            with self._news:
                if filling.missing(chunks):
                    filling.refresh()
                missing = filling.missing(chunks)
                if not missing:
                    return False
                if self._is_whole():
                    self._open = self._map = None
                    if not self._coming:
                        filling.close()
                    return True
                mine = [chunk for chunk in missing if chunk not in self._coming]
                self._coming.update(mine)
            if mine:
                try:
                    elsewhere = self._fetch_unclaimed(opened, mine, stop, patience <= 0)
                finally:
                    with self._news:
                        self._coming.difference_update(mine)
                        self._news.notify_all()
                if elsewhere:
                    (stop or Stop()).sleep(_POLL)
                    patience -= _POLL
                else:
                    patience = _PATIENCE
            with self._news:
                self._news.wait_for(lambda left=missing: self._coming.isdisjoint(filling.missing(left)))  # type: ignore[misc]

    def _fetch_unclaimed(self, opened: Open, chunks: Sequence[int], stop: Stop | None, impatient: bool) -> bool:
        """Fetches what no other process is fetching, or all; whether none could be had because others are at it."""
        filling = opened.filling
        claimed = filling.claim(chunks)
        try:
            filling.refresh()
            wanted = filling.missing(chunks if impatient else claimed)
            if wanted:
                with self._store.explained():
                    self._new_fetcher(stop).fetch([(opened, wanted)])
            return not wanted and bool(filling.missing(chunks))
        finally:
            filling.release(claimed)

    def _landed(self, start: int, end: int) -> None:
        with self._news:
            self._news.notify_all()

    def _is_whole(self) -> bool:
        return self._store.has(Digest(self._chunked.file.sha256), self._chunked.file.size)


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
