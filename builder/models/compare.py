"""What differs between two published models: files, tensors, words, and how much of one is known to whoever has the other."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Any, Literal

from builder.documents.changes import Change, changes
from builder.models.cuts import cuts
from builder.models.values import FileIndex, ModelArtifact, ModelFile, ModelIndex, Tensor


@dataclass(frozen=True)
class ModelSide:
    """One of two models: `index` is None where the artifact has none."""

    artifact: ModelArtifact
    index: ModelIndex | None
    config: Mapping[str, Any]


@dataclass(frozen=True)
class TensorChange:
    """A tensor of one path that is there on one side only, or other on both.

    `what` says how: its `dtype`, its `shape`, its `bytes`, or `perhaps` where only a chunk is known to differ that it shares with
    neighbours.
    """

    name: str
    before: Tensor | None
    after: Tensor | None
    what: tuple[Literal["dtype", "shape", "bytes", "perhaps"], ...] = ()


@dataclass(frozen=True)
class ModelFileChange:
    """A file that is added, removed or other. `missing` are the bytes of it that whoever has all of the first model has not."""

    path: str
    before: ModelFile | None
    after: ModelFile | None
    missing: int = 0
    tensors: tuple[TensorChange, ...] = ()


@dataclass(frozen=True)
class ModelComparison:
    """All that differs. `missing` are the bytes of the second model that are not in the first."""

    files: tuple[ModelFileChange, ...]
    config: tuple[Change, ...]
    annotations: tuple[Change, ...]
    same: bool
    missing: int


def compare(before: ModelSide, after: ModelSide) -> ModelComparison:
    """What is different from one model to the other; nothing but the documents that are given is read."""
    left = {file.path: file for file in before.artifact.files}
    right = {file.path: file for file in after.artifact.files}
    left_index = {each.file.path: each for each in before.index.files} if before.index else {}
    right_index = {each.file.path: each for each in after.index.files} if after.index else {}
    known = {file.sha256 for file in left.values()}
    chunks = {chunk for each in left_index.values() for chunk in each.chunks}
    found = []
    for path in sorted(left.keys() | right.keys()):
        old, new = left.get(path), right.get(path)
        if old == new:
            continue
        indexes = left_index.get(path), right_index.get(path)
        missing = 0 if new is None or new.sha256 in known else _missing(new, indexes[1], chunks)
        found.append(ModelFileChange(path, old, new, missing, tuple(_tensors(*indexes))))
    return ModelComparison(
        tuple(found),
        tuple(changes(_words(before.config), _words(after.config))),
        tuple(changes(dict(before.artifact.annotations), dict(after.artifact.annotations))),
        before.artifact.manifest.digest == after.artifact.manifest.digest,
        sum(change.missing for change in found),
    )


def unsettled(found: ModelComparison) -> tuple[str, ...]:
    """The names of the tensors of which it is not known whether they differ."""
    return tuple(tensor.name for change in found.files for tensor in change.tensors if tensor.what == ("perhaps",))


def settled(found: ModelComparison, differs: Callable[[str], bool]) -> ModelComparison:
    """The comparison, with `differs` asked about each tensor that is `unsettled`."""
    files = []
    for change in found.files:
        tensors = []
        for tensor in change.tensors:
            if tensor.what != ("perhaps",):
                tensors.append(tensor)
            elif differs(tensor.name):
                tensors.append(replace(tensor, what=("bytes",)))
        files.append(replace(change, tensors=tuple(tensors)))
    return replace(found, files=tuple(files))


def _words(config: Mapping[str, Any]) -> Mapping[str, Any]:
    """What is said; the digests of the layers are those of the files."""
    return {key: value for key, value in config.items() if key != "modelfs"}


def _missing(file: ModelFile, index: FileIndex | None, known: set[str]) -> int:
    if index is None:
        return file.size
    offsets = cuts(file.size, index.chunk_size, index.header)
    spans = zip(pairwise(offsets), index.chunks, strict=True)
    return sum({chunk: end - begin for (begin, end), chunk in spans if chunk not in known}.values())


def _tensors(before: FileIndex | None, after: FileIndex | None) -> Iterator[TensorChange]:
    """The tensors that differ, sorted by name; none where a side's header is not known."""
    if not (before and before.header and after and after.header):
        return
    left = {tensor.name: tensor for tensor in before.header.tensors}
    right = {tensor.name: tensor for tensor in after.header.tensors}
    spans = _Spans(before), _Spans(after)
    for name in sorted(left.keys() | right.keys()):
        old, new = left.get(name), right.get(name)
        if old is None or new is None:
            yield TensorChange(name, old, new)
            continue
        what: list[Literal["dtype", "shape", "bytes", "perhaps"]] = []
        if old.dtype != new.dtype:
            what.append("dtype")
        if old.shape != new.shape:
            what.append("shape")
        content = () if what else spans[0].content(old), spans[1].content(new)
        if not what and content[0] != content[1]:
            alone = spans[0].alone(old) and spans[1].alone(new) and before.chunk_size == after.chunk_size
            what.append("bytes" if alone else "perhaps")
        if what:
            yield TensorChange(name, old, new, tuple(what))


class _Spans:
    """The chunks that a tensor lies in."""

    def __init__(self, index: FileIndex) -> None:
        self._offsets = cuts(index.file.size, index.chunk_size, index.header)
        self._index = index

    def _range(self, tensor: Tensor) -> tuple[int, int]:
        return bisect_right(self._offsets, tensor.start) - 1, bisect_left(self._offsets, tensor.end)

    def content(self, tensor: Tensor) -> tuple[object, ...]:
        """Equal for two tensors whose bytes are known to be equal: the same place in the same chunks."""
        if tensor.start == tensor.end:
            return ()
        first, last = self._range(tensor)
        return tensor.start - self._offsets[first], tensor.end - tensor.start, self._index.chunks[first:last]

    def alone(self, tensor: Tensor) -> bool:
        """Whether its chunks hold nothing else."""
        first, last = self._range(tensor)
        return self._offsets[first] == tensor.start and self._offsets[last] == tensor.end
