"""The models that an image names: every file is what its digest says, and the index of each is true."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import BinaryIO

from builder.client import NotFoundError
from builder.errors import BuilderError
from builder.models.artifact import read_artifact, read_index
from builder.models.cuts import cuts
from builder.models.formats import HeaderError, safetensors
from builder.models.values import FileIndex, Header
from builder.oci.companions import models
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.listing import LayoutError
from builder.oci.spec import Descriptor
from builder.progress import Progress
from builder.verify.findings import Finding, Kind, says_no
from builder.verify.quick import Structure

_PIECE = 1 << 20
_MAX_HEADER = 32 << 20


@dataclass(frozen=True)
class VerifiedModel:
    """A model that an image names; `files` and `size` in bytes are those that were read, None where it is in another place."""

    name: str
    digest: Digest
    files: int | None = None
    size: int = 0


def check(
    source: Source, found: Structure, progress: Progress
) -> tuple[tuple[VerifiedModel, ...], tuple[Finding, ...]]:
    """Reads the models that the images name, whole, from where the images are.

    Raises where the source cannot be asked; what it says wrongly is a finding.
    """
    named = {item for image in found.images for item in models(_annotations(image.document.get("annotations")))}
    verified: list[VerifiedModel] = []
    findings: list[Finding] = []
    for name, digest in sorted(named):
        try:
            manifest = source.resolve(str(digest))
        except (NotFoundError, LayoutError):
            verified.append(VerifiedModel(name, digest))
            continue
        model, wrong = _model(source, name, manifest, progress)
        findings += (Finding(Kind.MODEL, f"{name}: {message}") for message in wrong)
        verified += [model] if model else []
    return tuple(verified), tuple(findings)


def _model(
    source: Source, name: str, manifest: Descriptor, progress: Progress
) -> tuple[VerifiedModel | None, list[str]]:
    wrong: list[str] = []
    try:
        artifact = read_artifact(source, manifest)
        index = read_index(source, artifact)
    except BuilderError as error:
        if not says_no(error):
            raise
        return None, [str(error)]
    indexed = {item.file.path: item for item in index.files} if index else {}
    with progress.task(f"verifying model {name}", sum(file.size for _, file in artifact.layers)) as task:
        for layer, file in artifact.layers:
            try:
                with source.blob(layer) as stream:
                    message = _file(stream, indexed.get(file.path), task.advance)
            except BuilderError as error:
                if not says_no(error):
                    raise
                message = str(error)
            wrong += [f"{file.path}: {message}"] if message else []
    size = sum(file.size for _, file in artifact.layers)
    return VerifiedModel(name, manifest.digest, len(artifact.layers), size), wrong


def _file(stream: BinaryIO, indexed: FileIndex | None, advance: Callable[[int], None]) -> str | None:
    """What is wrong with the index of a file whose bytes the stream gives, and checks."""
    if indexed is None:
        while piece := stream.read(_PIECE):
            advance(len(piece))
        return None
    wrong = None
    head = _Head(indexed.header)
    offsets = cuts(indexed.file.size, indexed.chunk_size, indexed.header)
    for number, (begin, end) in enumerate(pairwise(offsets)):
        sha256 = hashlib.sha256()
        for piece in _pieces(stream, end - begin):
            sha256.update(piece)
            head.add(piece)
            advance(len(piece))
        if sha256.hexdigest() != indexed.chunks[number] and wrong is None:
            wrong = f"the index has another digest of the bytes from {begin} to {end}"
    while stream.read(_PIECE):  # its end is where the stream checks
        pass
    return wrong or head.wrong(indexed)


def _pieces(stream: BinaryIO, count: int) -> Iterator[bytes]:
    while count and (piece := stream.read(min(count, _PIECE))):
        count -= len(piece)
        yield piece


class _Head:
    """Keeps the head of a file, to compare it with what the index says of it."""

    def __init__(self, header: Header | None) -> None:
        kept = header is not None and header.format == "safetensors" and header.length <= _MAX_HEADER
        self._left = header.length if header and kept else 0
        self._data = bytearray()

    def add(self, piece: bytes) -> None:
        if self._left:
            self._data += piece[: self._left]
            self._left -= min(self._left, len(piece))

    def wrong(self, indexed: FileIndex) -> str | None:
        if not self._data:
            return None
        try:
            length = safetensors.header_length(bytes(self._data[:8]), indexed.file.size, "its header")
            header = safetensors.parse(bytes(self._data[8:length]), indexed.file.size, "its header")
        except HeaderError as error:
            return str(error)
        return None if header == indexed.header else "the index has another table of its tensors than its header"


def _annotations(found: object) -> dict[str, str]:
    items = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in items if isinstance(key, str) and isinstance(value, str)}
