"""The step from images to where nodes find them: blobs while they are made, then documents, the tags last."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import TracebackType
from typing import BinaryIO, Self

from builder.errors import BuilderError, StoreError
from builder.image import Assembled, BuiltLayer
from builder.oci import spec
from builder.oci.checking import Checked
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.places.delivery import Blob, Delivered, Delivery, Document, Sink
from builder.progress import Progress
from builder.store import Store

_PIECE = 1 << 20
_DOCUMENTS = frozenset({spec.INDEX, spec.MANIFEST})


class DamagedError(StoreError):
    """An object of the store had other bytes than its digest says. It was removed: assembling again makes it anew."""

    hint = "run the same command again: what is missing is made or fetched anew"


class Publishing:
    """One publication into all `sinks`, for the length of a `with` block.

    A layer that is `ready` is sent at once, on threads of its own, while others may still be made. The `finish` sends
    what is left, and moves the tags when everything is in all places.
    """

    def __init__(self, store: Store, sinks: Sequence[Sink], progress: Progress, connections: int) -> None:
        self._store = store
        self._delivery = Delivery(sinks, progress, connections)

    def __enter__(self) -> Self:
        self._delivery.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._delivery.__exit__(kind, error, trace)

    def ready(self, layer: BuiltLayer) -> None:
        """Begins to send a layer of the store, and its ztoc."""
        for descriptor in filter(None, (layer.blob, layer.ztoc)):
            self._delivery.offer(self._stored(descriptor, known=layer.packed))

    def offer(self, blob: Blob) -> None:
        """Begins to send something else that belongs there: a file of a model."""
        self._delivery.offer(blob)

    def finish(
        self,
        image: Assembled,
        attached: Sequence[tuple[Descriptor, bytes]] = (),
        beside: Sequence[Document] = (),
    ) -> tuple[Delivered, ...]:
        """Everything of the images is in every place afterwards, and the tags point at it.

        `attached` are blobs and manifests that refer to the images, what is referred to first; they are there before the
        tags. So are the documents `beside` the images, under tags of their own. Raises `DamagedError` where the store's bytes
        are at fault, and what the places raise.
        """
        for layer in (layer for item in image.images for layer in item.layers):
            self.ready(layer)
        for item in image.images:
            self._delivery.offer(self._stored(Descriptor(spec.CONFIG, Digest.of(item.config), len(item.config))))
        documents: list[Document] = []
        for descriptor, data in (*image.documents.blobs, *attached):
            if descriptor.media_type in _DOCUMENTS:
                documents.append(Document(descriptor, data))
            else:
                self._delivery.offer(Blob(descriptor, _in_memory(data)))
        try:
            return self._delivery.complete([*documents, *beside], Document(*image.documents.blobs[-1]))
        except BuilderError as error:
            self._check_store(error)
            raise

    def _check_store(self, error: BuilderError) -> None:
        """A place that refuses bytes may be right: the store's are looked at."""
        failed = self._delivery.failed
        if failed is None or failed.path is None or isinstance(error, DamagedError):
            return
        digest = failed.descriptor.digest
        if failed.path != self._store.path(digest):  # it is the user's own, and says itself whether it is at fault
            with failed.open() as stream:
                while stream.read(_PIECE):
                    pass
            return
        if not self._store.verify(digest):
            raise DamagedError(f"{self._store.path(digest)}: the bytes are damaged") from error

    def _stored(self, descriptor: Descriptor, *, known: bool = False) -> Blob:
        path = self._store.path(descriptor.digest)

        def wrong(why: str) -> BuilderError:
            self._store.discard(descriptor.digest)
            return DamagedError(f"{path}: the bytes are damaged: {why}")

        @contextmanager
        def opened() -> Iterator[BinaryIO]:
            try:
                file = path.open("rb", buffering=0)
            except OSError as error:
                raise wrong(error.strerror or str(error)) from error
            with Checked(file, descriptor, wrong) as stream:
                yield stream  # type: ignore[misc]

        return Blob(descriptor, opened, path, known=known)


def publish(
    image: Assembled,
    store: Store,
    sinks: Sequence[Sink],
    progress: Progress,
    connections: int = 4,
    attached: Sequence[tuple[Descriptor, bytes]] = (),
) -> tuple[Delivered, ...]:
    """Puts images that are in the store into all places at once (`Publishing`)."""
    with Publishing(store, sinks, progress, connections) as publishing:
        return publishing.finish(image, attached)


def _in_memory(data: bytes) -> Callable[[], AbstractContextManager[BinaryIO]]:
    return lambda: io.BytesIO(data)
