"""Models, by themselves or as an image names them: every file is what its digest says, and the index of each is true."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, BinaryIO

from builder.client import NotFoundError
from builder.errors import BuilderError
from builder.models import formats
from builder.models.artifact import NotAModelError, read_artifact, read_config, read_index
from builder.models.cuts import cuts
from builder.models.formats import HeaderError, safetensors
from builder.models.values import FileIndex, ModelArtifact
from builder.oci.companions import models
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.listing import LayoutError
from builder.oci.spec import Descriptor
from builder.progress import Progress
from builder.verify.findings import Finding, Kind, says_no
from builder.verify.quick import Structure

_PIECE = 1 << 20
_BLOCK = 64 << 10
_MAX_HEADER = 32 << 20


@dataclass(frozen=True)
class VerifiedModel:
    """A model; `files` and `size` in bytes are those that were read, None where it is in another place. `indexed` is whether it
    has an index."""

    name: str
    digest: Digest
    files: int | None = None
    size: int = 0
    indexed: bool = False


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


def check_one(
    source: Source, manifest: Descriptor, progress: Progress
) -> tuple[VerifiedModel | None, tuple[Finding, ...]]:
    """Reads one model whole; None where its documents cannot be read. Raises `NotAModelError`, and what the source raises."""
    try:
        read_artifact(source, manifest)
    except NotAModelError:
        raise
    except BuilderError as error:
        if not says_no(error):
            raise
    model, wrong = _model(source, "", manifest, progress)
    return model, tuple(Finding(Kind.MODEL, message) for message in wrong)


def _model(
    source: Source, name: str, manifest: Descriptor, progress: Progress
) -> tuple[VerifiedModel | None, list[str]]:
    wrong: list[str] = []
    try:
        artifact = read_artifact(source, manifest)
        index = read_index(source, artifact)
        if index and not _is_true(read_config(source, artifact), artifact):
            wrong.append("its configuration has other digests of its files than its manifest")
    except BuilderError as error:
        if not says_no(error):
            raise
        return None, [str(error)]
    indexed = {item.file.path: item for item in index.files} if index else {}
    with progress.task(f"verifying model {name}".strip(), sum(file.size for _, file in artifact.layers)) as task:
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
    return VerifiedModel(name, manifest.digest, len(artifact.layers), size, index is not None), wrong


def _is_true(config: Mapping[str, Any], artifact: ModelArtifact) -> bool:
    """Whether a configuration names the files that are there; one that is not a ModelPack's names none."""
    files = config.get("modelfs")
    named = files.get("diffIds") if isinstance(files, dict) else None
    digests = [str(layer.digest) for layer, _ in artifact.layers] + [
        str(artifact.index.digest) if artifact.index else ""
    ]
    return not config or (isinstance(named, list) and sorted(map(str, named)) == sorted(digests))


def _file(stream: BinaryIO, indexed: FileIndex | None, advance: Callable[[int], None]) -> str | None:
    """What is wrong with the index of a file whose bytes the stream gives, and checks."""
    if indexed is None:
        while piece := stream.read(_PIECE):
            advance(len(piece))
        return None
    passing = _Passing(stream, indexed, advance)
    wrong = _header(passing, indexed)
    while passing.read(_PIECE):  # its end is where the stream checks
        pass
    return passing.wrong or wrong


def _header(passing: _Passing, indexed: FileIndex) -> str | None:
    """What is wrong with what the index says of a file's header; it is read again, while the file passes."""
    told, size = indexed.header, indexed.file.size
    if told is None or told.length > _MAX_HEADER:
        return None
    file = io.BufferedReader(passing, _BLOCK)
    try:
        if told.format == "safetensors":
            header = safetensors.read(file, size, "its header", told.length)
        else:
            header = formats.read(file, size, "its header", told.format)
    except HeaderError as error:
        return str(error)
    finally:
        file.detach()  # and not closed with it: the rest is still to pass
    return None if header == told else "the index has another table of its tensors than its header"


class _Passing(io.RawIOBase):
    """A file that is read once, from its beginning to its end: what passes is held against the chunks of its index."""

    def __init__(self, stream: BinaryIO, indexed: FileIndex, advance: Callable[[int], None]) -> None:
        self._stream = stream
        self._chunks = indexed.chunks
        self._offsets = cuts(indexed.file.size, indexed.chunk_size, indexed.header)
        self._advance = advance
        self._at = 0
        self._chunk = 0
        self._sha256 = hashlib.sha256()
        self.wrong: str | None = None

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = 0) -> int:
        """Forward only: what lies between passes, too."""
        if whence or offset < self._at:
            raise io.UnsupportedOperation("it passes once")
        while self._at < offset and self.read(min(offset - self._at, _PIECE)):
            pass
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        data = self._stream.read(min(len(buffer), _PIECE))
        buffer[: len(data)] = data
        self._at += len(data)
        self._advance(len(data))
        left = memoryview(data)
        while left and self._chunk < len(self._chunks):
            end = self._offsets[self._chunk + 1]
            piece = left[: max(end - (self._at - len(left)), 0)]
            self._sha256.update(piece)
            left = left[len(piece) :]
            if self._at - len(left) == end:
                self._ended(end)
        return len(data)

    def _ended(self, end: int) -> None:
        if self._sha256.hexdigest() != self._chunks[self._chunk] and self.wrong is None:
            self.wrong = f"the index has another digest of the bytes from {self._offsets[self._chunk]} to {end}"
        self._sha256 = hashlib.sha256()
        self._chunk += 1


def _annotations(found: object) -> dict[str, str]:
    items = found.items() if isinstance(found, dict) else ()
    return {key: value for key, value in items if isinstance(key, str) and isinstance(value, str)}
