"""A copy of everything that belongs to an image: its index, all platforms, SOCI indexes, and whatever refers to them,
by its subject or by its tag."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, BinaryIO, TypeVar

from builder.client import NotFoundError
from builder.errors import BuilderError, HostileInputError
from builder.oci.companions import OF_MODEL, companions, model_image_tag, model_tags
from builder.oci.companions import models as companion_models
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.oci.listing import LayoutError, described
from builder.oci.spec import Descriptor
from builder.parallel import Stop, for_each
from builder.places.delivery import Blob, Delivered, Delivery, Document, Sink
from builder.places.remote import Remote
from builder.progress import Progress

T = TypeVar("T")

_MAX_DOCUMENTS = 10_000
_MAX_BYTES = 64 << 20
_PIECE = 1 << 20
_STREAMS = 2
"""So many blobs come from a registry at once as streams, each of which is fetched ahead in tens of MiB of memory."""


@dataclass(frozen=True)
class Closure:
    """What belongs to `top`: every document after those that it names or refers to, every blob once."""

    top: Document
    documents: tuple[Document, ...]
    blobs: tuple[Descriptor, ...]
    absent: tuple[tuple[str, Digest], ...] = ()
    """Models that the image names, and that are not where it is."""


def copy(
    source: Source,
    top: Descriptor,
    sink: Sink,
    progress: Progress,
    connections: int = 4,
    *,
    referrers: bool = True,
    models: bool = True,
) -> Delivered:
    """All of `closure` is in the sink afterwards, and its tags point at `top`; else an error is raised and no tag moved.

    The bytes are those of the source: digests stay as they are. Models that are elsewhere are told, and left there. Raises what
    source and target raise.
    """
    found = closure(source, top, connections, referrers=referrers, models=models)
    for name, digest in found.absent:
        progress.note(f"the model {name} ({digest}) is not where the image is: copy it from where it was published")
    remote = source if isinstance(source, Remote) else None
    if remote and not isinstance(sink.target, Layout):
        connections = min(connections, _STREAMS)
    # A registry refuses bytes that are not those of the digest: files go to it by the kernel, unread.
    files = source if isinstance(source, Layout) and isinstance(sink.target, Remote) else None
    with Delivery([sink], progress, connections, "copy") as delivery:
        for blob in found.blobs:
            path = files.path(blob.digest) if files else None
            delivery.offer(Blob(blob, _opener(source, blob), path, remote))
        try:
            (delivered,) = delivery.complete(found.documents, found.top)
        except BuilderError:
            if delivery.failed and delivery.failed.path:
                _check(delivery.failed)
            raise
    return delivered


def closure(
    source: Source, top: Descriptor, connections: int = 4, *, referrers: bool = True, models: bool = True
) -> Closure:
    """Everything that `top` names, down to the layers and, with `models`, to its models; everything that refers to any manifest
    of it, and so on; and what tags say that belongs to `top` and the manifests that it names.

    Only documents are read. Raises `HostileInputError` for one that is not what the specification says, or for too many.
    """
    return _Walk(source, connections, referrers, models).of(top)


@dataclass
class _Node:
    document: Document
    children: tuple[Descriptor, ...]
    blobs: tuple[Descriptor, ...]
    referrers: tuple[Descriptor, ...] = ()


@dataclass
class _Walk:
    """Reads documents a generation at a time, several at once."""

    source: Source
    connections: int
    with_referrers: bool
    with_models: bool
    nodes: dict[Digest, _Node] = field(default_factory=dict)
    tags: dict[Digest, list[str]] = field(default_factory=dict)
    absent: set[tuple[str, Digest]] = field(default_factory=set)
    size: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def of(self, top: Descriptor) -> Closure:
        self._read_all([top])
        images = list(_children_first(top.digest, self.nodes, set()))
        if self.with_models:
            named = {(digest, model) for digest in images for model in _models(self.nodes[digest].document.data)}
            self._for_each(self._find_model, sorted(named))
            self._read_all([item for digest in images for item in self.nodes[digest].referrers])
        if self.with_referrers:
            images = list(_children_first(top.digest, self.nodes, set()))
            self._for_each(self._find, [(digest, tag) for digest in images for tag in companions(digest)])
            self._read_all([item for digest in images for item in self.nodes[digest].referrers])
        ordered = [self.nodes[digest] for digest in _ordered(top.digest, self.nodes)]
        blobs = {blob.digest: blob for node in ordered for blob in node.blobs if blob.digest not in self.nodes}
        largest_first = sorted(blobs.values(), key=lambda blob: -blob.size)  # the last to end is not the longest
        documents = tuple(
            replace(node.document, tag=tag)
            for node in ordered
            for tag in (*sorted(self.tags.get(node.document.descriptor.digest, ())),) or (None,)
        )
        return Closure(self.nodes[top.digest].document, documents, tuple(largest_first), (*sorted(self.absent),))

    def _read_all(self, roots: Iterable[Descriptor]) -> None:
        """Reads these documents and all that they lead to, of those that were not read yet."""
        generation = {item.digest: item for item in roots if item.digest not in self.nodes}
        while generation:
            self._for_each(self._read, generation.values())
            named = (
                item for digest in generation for item in (*self.nodes[digest].children, *self.nodes[digest].referrers)
            )
            generation = {item.digest: item for item in named if item.digest not in self.nodes}

    def _for_each(self, do: Callable[[T], None], items: Iterable[T]) -> None:
        for error in for_each(do, items, self.connections, Stop()):
            raise error

    def _find(self, question: tuple[Digest, str]) -> None:
        """What lies under the tag counts as one more that refers to the manifest."""
        digest, tag = question
        found = self.source.find(tag)
        if found is not None:
            with self.guard:
                self.tags.setdefault(found.digest, []).append(tag)
                node = self.nodes[digest]
                node.referrers = (*node.referrers, replace(found, annotations={}))

    def _find_model(self, question: tuple[Digest, tuple[str, Digest]]) -> None:
        """A model that an image names counts as one that refers to it; so does the image of the model."""
        image, (name, digest) = question
        try:
            found = self.source.resolve(str(digest))
        except (NotFoundError, LayoutError):
            with self.guard:
                self.absent.add((name, digest))
            return
        tags = [
            tag for tag in model_tags(name, digest) if (tagged := self.source.find(tag)) and tagged.digest == digest
        ]
        with self.guard:
            node = self.nodes[image]
            node.referrers = (*node.referrers, described(replace(found, annotations={}), self.source.manifest(found)))
            self.tags[digest] = sorted({*self.tags.get(digest, ()), *tags})
        other = self.source.find(model_image_tag(name))
        if other and _annotations(self.source.manifest(other)).get(OF_MODEL) == str(digest):
            with self.guard:
                node.referrers = (*node.referrers, replace(other, annotations={OF_MODEL: str(digest)}))
                self.tags[other.digest] = [model_image_tag(name)]

    def _read(self, descriptor: Descriptor) -> None:
        data = self.source.manifest(descriptor)
        with self.guard:
            self.size += len(data)
            if self.size > _MAX_BYTES or len(self.nodes) >= _MAX_DOCUMENTS:
                raise HostileInputError(f"{descriptor.digest}: too many manifests belong to this image")
        children, blobs = _named(descriptor, data)
        referrers = self.source.referrers(descriptor.digest) if self.with_referrers else ()
        node = _Node(Document(descriptor, data), children, blobs, referrers)
        with self.guard:
            self.nodes[descriptor.digest] = node


def _models(data: bytes) -> tuple[tuple[str, Digest], ...]:
    return companion_models(_annotations(data))


def _annotations(data: bytes) -> dict[str, str]:
    """The annotations of a document; those that are no text are none."""
    try:
        found = json.loads(data).get("annotations")
    except (ValueError, AttributeError, RecursionError):
        return {}
    texts = found.items() if isinstance(found, dict) else ()
    return {str(key): value for key, value in texts if isinstance(value, str)}


def _named(descriptor: Descriptor, data: bytes) -> tuple[tuple[Descriptor, ...], tuple[Descriptor, ...]]:
    """The manifests and the blobs that a document names."""
    try:
        document = json.loads(data)
        children = tuple(map(Descriptor.parse, _listed(document, "manifests")))
        config = [document["config"]] if "config" in document else []
        blobs = [*config, *_listed(document, "layers"), *_listed(document, "blobs")]
        if not children and not blobs and "manifests" not in document:
            raise ValueError("it names nothing")
        return children, tuple(map(Descriptor.parse, blobs))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise HostileInputError(
            f"{descriptor.digest}: not a manifest that can be copied: {error}", hint="name another image"
        ) from error


def _listed(document: Mapping[str, Any], key: str) -> list[Any]:
    found = document.get(key) or []
    if not isinstance(found, list):
        raise TypeError(f"{key} is not a list")
    return found


def _ordered(top: Digest, nodes: Mapping[Digest, _Node]) -> Iterator[Digest]:
    """Every document after its children; those that refer to one after it. An index never names itself, by its digest."""
    given: set[Digest] = set()
    subjects = [top]
    while subjects:
        following: list[Digest] = []
        for root in subjects:
            for digest in _children_first(root, nodes, given):
                yield digest
                following += [item.digest for item in nodes[digest].referrers]
        subjects = following


def _children_first(root: Digest, nodes: Mapping[Digest, _Node], given: set[Digest]) -> Iterator[Digest]:
    stack: list[tuple[Digest, bool]] = [(root, False)]
    while stack:
        digest, opened = stack.pop()
        if opened:
            yield digest
        elif digest not in given:
            given.add(digest)
            stack.append((digest, True))
            stack += [(child.digest, False) for child in reversed(nodes[digest].children)]


def _check(blob: Blob) -> None:
    """Raises what the source says of a file that is missing or damaged."""
    with blob.open() as stream:
        while stream.read(_PIECE):
            pass


def _opener(source: Source, blob: Descriptor) -> Callable[[], AbstractContextManager[BinaryIO]]:
    return lambda: source.blob(blob)
