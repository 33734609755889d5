"""The compressed side of a layer: bytes go out once and are written, hashed whole and hashed by span."""

from __future__ import annotations

import hashlib
from typing import BinaryIO

from builder.layers.spans import Checkpoint
from builder.oci.digest import Digest

_FLUSH = 1 << 20


class BlobWriter:
    """Appends to a blob; `size` counts all its bytes, flushed or not.

    The last byte stays patchable (`patch`) until the next append: a join of deflate streams has to change bits
    of the byte that both share.
    """

    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._pending = bytearray()
        self._base = 0
        self._blob = hashlib.sha256()
        self._span = hashlib.sha256()
        self._cuts: list[Checkpoint] = []
        self._begun = False
        self.checkpoints: list[Checkpoint] = []
        self.span_digests: list[Digest] = []

    @property
    def size(self) -> int:
        return self._base + len(self._pending)

    def append(self, data: bytes | memoryview) -> None:
        if len(self._pending) >= _FLUSH:
            self._flush(len(self._pending) - 1)
        self._pending += data

    def patch(self, offset: int, keep: int) -> None:
        """Keeps only the bits `keep` of the byte at `offset`, which must not have been flushed."""
        self._pending[offset - self._base] &= keep

    def byte(self, offset: int) -> int:
        """A byte that has not been flushed."""
        return self._pending[offset - self._base]

    def checkpoint(self, checkpoint: Checkpoint) -> None:
        """A new span starts at `checkpoint.in_offset`, which is not beyond `size`; what is before the first is in none."""
        self.checkpoints.append(checkpoint)
        self._cuts.append(checkpoint)

    def finish(self) -> Digest:
        """Writes what is left; the digest of the whole."""
        self._flush(len(self._pending))
        self.span_digests.append(Digest(self._span.hexdigest()))
        return Digest(self._blob.hexdigest())

    def _flush(self, count: int) -> None:
        """Hashes and writes the first `count` pending bytes; cuts beyond them wait for the next flush. A cut in the
        middle of a byte gives that byte to both spans."""
        with memoryview(self._pending) as view:
            self._blob.update(view[:count])
            self._file.write(view[:count])
            start = 0
            while self._cuts and self._cuts[0].in_offset - self._base <= count:
                cut = self._cuts.pop(0)
                end = cut.in_offset - self._base
                self._span.update(view[start:end])
                if self._begun:
                    self.span_digests.append(Digest(self._span.hexdigest()))
                self._begun = True
                start = end - 1 if cut.bits else end
                self._span = hashlib.sha256()
            self._span.update(view[start:count])
        del self._pending[:count]
        self._base += count
