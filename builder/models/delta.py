"""Chunks of models that the cache has already: what a new version shares with an older one is not fetched again."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from builder.models.cuts import cuts
from builder.models.values import ModelIndex
from builder.oci.digest import Digest
from builder.store import Store


@dataclass(frozen=True)
class Place:
    """Bytes of a file on this disk that may be those of a chunk; whoever reads them checks them."""

    path: Path
    start: int

    def read(self, buffer: memoryview) -> bool:
        """Fills the buffer; false if the file is gone, or shorter."""
        try:
            with self.path.open("rb", buffering=0) as file:
                reached = 0
                while reached < len(buffer) and (
                    count := os.preadv(file.fileno(), [buffer[reached:]], self.start + reached)
                ):
                    reached += count
        except OSError:
            return False
        return reached == len(buffer)


@dataclass(frozen=True)
class Older:
    """Models whose files the store may have, the likeliest first."""

    store: Store
    indexes: Iterable[ModelIndex]

    def places(self, wanted: Collection[tuple[str, int]]) -> Mapping[tuple[str, int], Place]:
        """Where chunks, each by its digest (64 digits) and length, probably are; those that are nowhere are left out."""
        found: dict[tuple[str, int], Place] = {}
        if not wanted:
            return found
        for path, start, chunk in self._chunks():
            if chunk in wanted and chunk not in found:
                found[chunk] = Place(path, start)
                if len(found) == len(wanted):
                    break
        return found

    def _chunks(self) -> Iterator[tuple[Path, int, tuple[str, int]]]:
        for index in self.indexes:
            for each in index.files:
                digest = Digest(each.file.sha256)
                if self.store.has(digest, each.file.size):
                    offsets = pairwise(cuts(each.file.size, each.chunk_size, each.header))
                    for (start, end), chunk in zip(offsets, each.chunks, strict=True):
                        yield self.store.path(digest), start, (chunk, end - start)
