"""A model a second time, as an image of `/models`: for volumes that containerd and KServe mount, which know no artifacts.

Layers are plain tar, so that a node unpacks without inflating: a large file is one of its own, small ones share one. The
image is an index of one manifest for each architecture with the same layers, because containerd mounts what is for its own.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from builder.errors import BuilderError, StoreError
from builder.layers.tar import BLOCK, END, Entry, Kind, Region, header, padding
from builder.models.artifact import EncodedModel
from builder.models.publish import changed
from builder.models.values import LocalModelFile
from builder.oci import spec
from builder.oci.checking import Checked
from builder.oci.companions import OF_MODEL
from builder.oci.config import Execution, image_config
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor, Platform
from builder.parallel import Stop, for_each
from builder.places.delivery import Blob, Delivered, Delivery, Document, Sink
from builder.progress import Progress
from builder.store import Store

MODEL_DIGEST = OF_MODEL
FOLDER = "models"
"""Where the files are in the image: KServe looks there."""
LAYER = "application/vnd.oci.image.layer.v1.tar"
PLATFORMS = (Platform("linux", "amd64"), Platform("linux", "arm64"))
MAX_LAYERS = 100
"""Snapshotters stack about 120 layers."""
_OWN_LAYER = 16 << 20
_PIECE = 1 << 20
_CREATED = "1980-01-01T00:00:00Z"
_KIND = "model-layer"


@dataclass(frozen=True)
class ModelImage:
    """The image of a model: its index, the documents below that with their bytes, and the files of each layer."""

    index: Document
    documents: tuple[Document, ...]
    configs: tuple[tuple[Descriptor, bytes], ...]
    layers: tuple[tuple[Descriptor, tuple[LocalModelFile, ...]], ...]


def image_of(model: EncodedModel, store: Store | None, progress: Progress, jobs: int = 4) -> ModelImage:
    """The image of a model's files: the same model has the same image, whenever and wherever it is made.

    The tars are hashed, not kept; the store remembers their digests. Raises `ChangedFileError`.
    """
    groups = _groups([local for _, local in model.layers])
    found = {group: _remembered(store, group) for group in groups}
    missing = [group for group in groups if found[group] is None]

    def hashed(group: tuple[LocalModelFile, ...]) -> None:
        sha256, size = hashlib.sha256(), 0
        with _Tar(group) as stream:
            while piece := stream.read(_PIECE):
                sha256.update(piece)
                size += len(piece)
                task.advance(len(piece))
        found[group] = descriptor = Descriptor(LAYER, Digest(sha256.hexdigest()), size)
        _remember(store, group, descriptor)

    with progress.task("hash image", sum(local.file.size for group in missing for local in group)) as task:
        for error in for_each(hashed, missing, jobs, Stop()):
            raise error
    layers = tuple((descriptor, group) for group in groups if (descriptor := found[group]) is not None)
    return _image(model, layers)


def publish_image(
    image: ModelImage, sinks: Sequence[Sink], progress: Progress, connections: int = 4
) -> tuple[Delivered, ...]:
    """The image is in every place afterwards, and its tags point at it. What is there already is not sent again."""
    with Delivery(sinks, progress, connections, "publish image of model") as delivery:
        for blob in blobs(image):
            delivery.offer(blob)
        return delivery.complete([*image.documents, image.index], image.index)


def blobs(image: ModelImage) -> Iterator[Blob]:
    """What the image is made of, the largest first, so that the last to arrive is not the longest."""
    for descriptor, group in sorted(image.layers, key=lambda item: -item[0].size):
        yield Blob(descriptor, _opener(descriptor, group))
    for descriptor, data in image.configs:
        yield Blob(descriptor, _in_memory(data))


def _groups(files: Sequence[LocalModelFile]) -> list[tuple[LocalModelFile, ...]]:
    """The files of each layer, by path: small ones first, together, then the others, of which some share one if they are many."""
    small = tuple(local for local in files if local.file.size < _OWN_LAYER)
    large = [local for local in files if local.file.size >= _OWN_LAYER]
    each = -(-len(large) // (MAX_LAYERS - 1))
    groups = [tuple(large[start : start + each]) for start in range(0, len(large), max(each, 1))]
    return [small, *groups] if small else groups


def _image(model: EncodedModel, layers: tuple[tuple[Descriptor, tuple[LocalModelFile, ...]], ...]) -> ModelImage:
    said = {**model.manifest.annotations, MODEL_DIGEST: str(model.manifest.digest)}
    created = said.get("org.opencontainers.image.created", _CREATED)
    execution = Execution(labels=tuple(sorted(said.items())))
    history = [f"layerwright: {_name(group)}" for _, group in layers]
    configs, manifests = [], []
    for platform in PLATFORMS:
        data = image_config(platform, created, execution, [layer.digest for layer, _ in layers], history)
        config = Descriptor(spec.CONFIG, Digest.of(data), len(data))
        configs.append((config, data))
        manifest = {
            "schemaVersion": 2,
            "mediaType": spec.MANIFEST,
            "config": config.document(),
            "layers": [layer.document() for layer, _ in layers],
            "annotations": said,
        }
        manifests.append((platform, _document(spec.MANIFEST, manifest)))
    entries = [
        Descriptor(found.descriptor.media_type, found.descriptor.digest, found.descriptor.size, platform=platform)
        for platform, found in manifests
    ]
    index = {
        "schemaVersion": 2,
        "mediaType": spec.INDEX,
        "manifests": [entry.document() for entry in entries],
        "annotations": said,
    }
    top = _document(spec.INDEX, index)
    marked = replace(top.descriptor, annotations={MODEL_DIGEST: str(model.manifest.digest)})  # for the lists of layouts
    return ModelImage(Document(marked, top.data), tuple(found for _, found in manifests), tuple(configs), layers)


def _document(media_type: str, document: Mapping[str, object]) -> Document:
    data = spec.encode(document)
    return Document(Descriptor(media_type, Digest.of(data), len(data)), data)


def _name(group: Sequence[LocalModelFile]) -> str:
    return group[0].file.path if len(group) == 1 else f"{len(group)} files"


class _Tar(io.RawIOBase):
    """The tar of some files as a stream, made while it is read; a file that ends early raises `ChangedFileError`."""

    def __init__(self, group: Sequence[LocalModelFile]) -> None:
        self._pieces = _pieces(group)
        self._file: BinaryIO | None = None
        self._left = 0
        self._ready = memoryview(b"")
        self._open = ExitStack()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        while not self._ready and not self._left:
            piece = next(self._pieces, None)
            if piece is None:
                return 0
            if isinstance(piece, bytes):
                self._ready = memoryview(piece)
            else:
                self._begin(piece)
        if self._ready:
            count = min(len(view), len(self._ready))
            view[:count], self._ready = self._ready[:count], self._ready[count:]
            return count
        assert self._file is not None
        count = self._file.readinto(view[: min(len(view), self._left)])  # type: ignore[attr-defined]
        if not count:
            raise changed(Path(self._file.name), f"it ends {self._left} bytes early")
        self._left -= count
        return int(count)

    def close(self) -> None:
        self._open.close()
        super().close()

    def _begin(self, local: LocalModelFile) -> None:
        self._open.close()
        try:
            self._file = self._open.enter_context(local.location.open("rb", buffering=0))
        except OSError as error:
            raise changed(local.location, error.strerror or str(error)) from error
        self._left = local.file.size


def _pieces(group: Sequence[LocalModelFile]) -> Iterator[bytes | LocalModelFile]:
    """The blocks of a tar, and files for their content: folders stand before what is in them."""
    folders: set[str] = set()
    for local in group:
        parts = f"{FOLDER}/{local.file.path}".split("/")
        for depth in range(1, len(parts)):
            folder = "/".join(parts[:depth])
            if folder not in folders:
                folders.add(folder)
                yield header(Entry(folder, Kind.DIR, 0o755))
        yield header(Entry("/".join(parts), content=Region(local.location, 0, local.file.size)))
        yield local
        yield padding(local.file.size)
    yield END


def _opener(
    descriptor: Descriptor, group: tuple[LocalModelFile, ...]
) -> Callable[[], AbstractContextManager[BinaryIO]]:
    def wrong(why: str) -> BuilderError:
        return changed(group[0].location, why)

    return lambda: Checked(_Tar(group), descriptor, wrong)  # type: ignore[arg-type,return-value]


def _in_memory(data: bytes) -> Callable[[], AbstractContextManager[BinaryIO]]:
    return lambda: io.BytesIO(data)


def _key(group: Sequence[LocalModelFile]) -> str:
    return Digest.of(spec.encode({"files": [[local.file.path, local.file.sha256] for local in group]})).hex


def _remembered(store: Store | None, group: tuple[LocalModelFile, ...]) -> Descriptor | None:
    if store is None:
        return None
    try:
        found = Descriptor.parse((store.record(_KIND, _key(group)) or {}).get("layer"))
    except (StoreError, ValueError):
        return None
    return found if found.media_type == LAYER and found.size % BLOCK == 0 else None


def _remember(store: Store | None, group: tuple[LocalModelFile, ...], descriptor: Descriptor) -> None:
    if store is not None:
        try:
            store.put_record(_KIND, _key(group), {"layer": descriptor.document()})
        except StoreError:
            return
