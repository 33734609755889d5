"""Files of published models in pieces: how they are cut, what the pieces hash to, and the file on this disk that they go to."""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import pairwise

from builder.errors import BuilderError
from builder.models.cuts import cuts
from builder.models.filling import Filling
from builder.models.values import CHUNK_SIZE, FileIndex, ModelFile
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor


class WrongModelError(BuilderError):
    """The bytes that a place gives are not those of the model: asking again does not help."""

    exit_code = 3
    hint = "the registry, or what stands before it, is damaged, or the model was published wrongly: publish it again"


@dataclass(frozen=True)
class Chunked:
    """A file of a published model, its blob, and how it is cut; `hashes` (64 digits) are known where the model has an index."""

    file: ModelFile
    blob: Descriptor
    cuts: tuple[int, ...]
    hashes: tuple[str, ...] | None

    @classmethod
    def of(cls, file: ModelFile, blob: Descriptor, index: FileIndex | None) -> Chunked:
        if index is None:
            return cls(file, blob, cuts(file.size, CHUNK_SIZE, None), None)
        return cls(file, blob, cuts(file.size, index.chunk_size, index.header), index.chunks)

    @property
    def parts_key(self) -> Digest:
        """What chunks that were checked are kept under: they are as good as the hashes that they were checked against."""
        return Digest.of("\n".join(("parts", self.file.sha256, *map(str, self.cuts), *(self.hashes or ()))).encode())

    @property
    def whole_key(self) -> Digest:
        """What the file is kept under while all of it comes; it is checked at its end."""
        return Digest.of("\n".join(("whole", self.file.sha256, *map(str, self.cuts))).encode())

    @property
    def largest(self) -> int:
        """The bytes of the largest chunk."""
        return max((end - start for start, end in pairwise(self.cuts)), default=0)

    def length(self, chunk: int) -> int:
        """The bytes of a chunk."""
        return self.cuts[chunk + 1] - self.cuts[chunk]


@dataclass
class Open:
    """A file that is being filled; `landed` is told of each chunk that is there, `finished` is called after one that made the file
    complete, perhaps more than once. Chunks are checked before they are written, unless `check` says otherwise."""

    chunked: Chunked
    filling: Filling
    check: bool = True
    landed: Callable[[int, int], None] = lambda start, end: None
    finished: Callable[[], None] = lambda: None
    whole: threading.Lock = field(default_factory=threading.Lock)
