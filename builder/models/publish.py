"""A model into registries, layouts and archives: files first, several at once, the manifest after them, tags last."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import BinaryIO

from builder.errors import BuilderError
from builder.models.artifact import EncodedModel
from builder.models.scanning import ChangedFileError
from builder.models.values import LocalModelFile
from builder.oci import spec
from builder.oci.checking import Checked
from builder.oci.spec import Descriptor
from builder.places.delivery import Blob, Delivered, Delivery, Document, Sink
from builder.places.remote import Remote
from builder.progress import Progress
from builder.store import Store

_DOCUMENTS = frozenset({spec.INDEX, spec.MANIFEST})
_PIECE = 1 << 20


def publish(
    model: EncodedModel,
    sinks: Sequence[Sink],
    progress: Progress,
    connections: int = 4,
    *,
    store: Store | None = None,
    attached: Sequence[tuple[Descriptor, bytes]] = (),
) -> tuple[Delivered, ...]:
    """The model is in every place afterwards, its tags point at it, and what is `attached` refers to it.

    What a place has already is not sent again: a model that is there moves no byte. Raises `ChangedFileError` for a file whose
    bytes are not those of its digest any more; no tag is moved then. Files of the `store` may become links in layouts.
    """
    linkable = all(isinstance(sink.target, Remote) for sink in sinks)
    with Delivery(sinks, progress, connections, "publish model") as delivery:
        for blob in blobs(model, store, as_files=linkable):
            delivery.offer(blob)
        documents = []
        for descriptor, data in attached:
            item = part(descriptor, data)
            if isinstance(item, Document):
                documents.append(item)
            else:
                delivery.offer(item)
        try:
            return delivery.complete([document(model), *documents], document(model))
        except BuilderError:
            _check(delivery.failed)
            raise


def document(model: EncodedModel) -> Document:
    """The manifest of a model, to be delivered after its blobs."""
    return Document(model.manifest, model.data)


def part(descriptor: Descriptor, data: bytes) -> Blob | Document:
    """What lies in memory, as a delivery takes it."""
    if descriptor.media_type in _DOCUMENTS:
        return Document(descriptor, data)
    return Blob(descriptor, _in_memory(data))


def blobs(model: EncodedModel, store: Store | None = None, *, as_files: bool = False) -> Iterator[Blob]:
    """What a model is made of, the largest first, so that the last to arrive is not the longest.

    Only objects of the `store` never change, so that a layout may link to them: other files are given as files only with
    `as_files`, which is right where all that will be written to are registries.
    """
    for descriptor, local in sorted(model.layers, key=lambda item: -item[0].size):
        kept = as_files or (store is not None and local.location == store.path(descriptor.digest))
        yield Blob(descriptor, _opener(descriptor, local), local.location if kept else None)
    for descriptor, data in (model.index, model.config):
        yield Blob(descriptor, _in_memory(data))


def _opener(descriptor: Descriptor, local: LocalModelFile) -> Callable[[], AbstractContextManager[BinaryIO]]:
    @contextmanager
    def opened() -> Iterator[BinaryIO]:
        try:
            file = local.location.open("rb", buffering=0)
        except OSError as error:
            raise changed(local.location, error.strerror or str(error)) from error
        with Checked(file, descriptor, lambda why: changed(local.location, why)) as stream:
            yield stream  # type: ignore[misc]

    return opened


def changed(location: Path, why: str) -> ChangedFileError:
    """What is raised for a file whose bytes are not those of its digest any more."""
    return ChangedFileError(f"{location}: it is not what it was when it was locked: {why}")


def _check(failed: Blob | None) -> None:
    """A registry that refuses the bytes of a file may be right: the file is looked at, and blamed if so."""
    if failed is None or failed.path is None:
        return
    with failed.open() as stream:
        while stream.read(_PIECE):
            pass


def _in_memory(data: bytes) -> Callable[[], AbstractContextManager[BinaryIO]]:
    return lambda: io.BytesIO(data)
