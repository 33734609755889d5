"""One file of a model, on this disk as far as it was used."""

from __future__ import annotations

import mmap
import threading
from bisect import bisect_right
from collections.abc import Callable, Sequence
from pathlib import Path

from builder.models.fetching import Chunked, Fetcher, Open
from builder.models.filling import Filling
from builder.oci.digest import Digest
from builder.store import Store


class LazyFile:
    """A file whose chunks are fetched when they are needed; shared by threads.

    `fetcher` makes what asks the place; `whole` brings the whole file into the store, for files whose chunks nothing vouches for.
    """

    def __init__(
        self, store: Store, chunked: Chunked, fetcher: Callable[[], Fetcher], whole: Callable[[], Path]
    ) -> None:
        self._store = store
        self._chunked = chunked
        self._new_fetcher = fetcher
        self._whole = whole
        self._guard = threading.Lock()
        self._coming: dict[int, threading.Event] = {}
        self._open: Open | None = None
        self._fetcher: Fetcher | None = None
        self._map: mmap.mmap | None = None

    def close(self) -> None:
        """Lets go of the file; views of it stay good."""
        with self._guard:
            if self._open is not None:
                self._open.filling.close()
            self._open = self._map = None

    def view(self, start: int, end: int, spans: Sequence[tuple[int, int]]) -> memoryview:
        """Bytes `start` to `end`, of which those in `spans`, counted from `start`, are there."""
        map = self.ensure([(start + begin, start + until) for begin, until in spans])
        return memoryview(map if map is not None else b"")[start:end]

    def ensure(self, spans: Sequence[tuple[int, int]]) -> mmap.mmap | None:
        """These bytes are there afterwards; the file in memory, None if it is empty.

        Raises `WrongModelError` if the place gives other bytes, and what the source raises.
        """
        opened, map = self._opened()
        if opened is not None:
            self._fetch(opened, self._chunks(spans))
        return map

    def _opened(self) -> tuple[Open | None, mmap.mmap | None]:
        with self._guard:
            if self._map is None and self._chunked.file.size:
                digest = Digest(self._chunked.file.sha256)
                if self._store.has(digest, self._chunked.file.size):
                    self._map = _mapped(self._store.path(digest))
                elif self._chunked.hashes is None:
                    self._map = _mapped(self._whole())
                else:
                    with self._store.explained():
                        filling = Filling(self._store.partial(self._chunked.key), self._chunked.cuts)
                    self._open = Open(self._chunked, filling)
                    self._map = filling.map()
            return self._open, self._map

    def _chunks(self, spans: Sequence[tuple[int, int]]) -> list[int]:
        cuts = self._chunked.cuts
        found: set[int] = set()
        for start, end in spans:
            if start < end:
                found.update(range(bisect_right(cuts, start) - 1, bisect_right(cuts, end - 1)))
        return sorted(found)

    def _fetch(self, opened: Open, chunks: Sequence[int]) -> None:
        """Each chunk is fetched by the thread that needs it first; others wait, and try it themselves if that failed."""
        filling = opened.filling
        while chunks:
            with self._guard:
                if filling.missing(chunks):
                    filling.refresh()
                missing = filling.missing(chunks)
                mine = [chunk for chunk in missing if chunk not in self._coming]
                theirs = {self._coming[chunk] for chunk in missing if chunk in self._coming}
                if not missing:
                    return
                done = threading.Event()
                self._coming.update(dict.fromkeys(mine, done))
                if self._fetcher is None:
                    self._fetcher = self._new_fetcher()
            try:
                with self._store.explained():
                    self._fetcher.fetch([(opened, mine)])
            finally:
                with self._guard:
                    for chunk in mine:
                        del self._coming[chunk]
                done.set()
            for event in theirs:
                event.wait()


def _mapped(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
