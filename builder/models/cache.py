"""Models in the store: their documents, so that a digest that was pulled needs no network, and which versions are there.

Records of kind `model` hold, for each model that was pulled, the repository's name and the digest of its index; records of
kind `model-tag` what a tag stood for when it was last asked for.
"""

from __future__ import annotations

import io
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, closing, suppress
from typing import BinaryIO, Protocol, runtime_checkable

from builder.errors import OfflineError, StoreError
from builder.models.delta import Older
from builder.models.index import parse
from builder.models.values import BadModelError, ModelArtifact, ModelIndex
from builder.oci import spec
from builder.oci.content import MAX_MANIFEST, Source
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.store import Store

_MODEL = "model"
_TAG = "model-tag"
_SMALL = 64 << 20
_VERSIONS = 8


@runtime_checkable
class Prepared(Protocol):
    """A source to which connections can be opened before something is asked of it."""

    def prepare(self, count: int) -> None: ...


class Remembering:
    """A source whose manifests and small blobs are in the store once they were read; a `Source`.

    `open` gives the source itself and is called when it is needed; None stands for no network, and then what is not in
    the store raises `OfflineError`. `name` tells tags of different places apart. Where something new is read, so many
    connections as `ahead` says are opened in the background, for what will be read of it.
    """

    def __init__(self, store: Store, name: str, open: Callable[[], Source] | None, *, ahead: int = 0) -> None:
        self._store = store
        self._name = name
        self._open = open
        self._ahead = ahead
        self._opened: Source | None = None

    @property
    def source(self) -> Source:
        """The source itself."""
        if self._opened is None:
            if self._open is None:
                raise OfflineError(f"{self._name}: the model, or a part of it, is not in the cache")
            self._opened = self._open()
        return self._opened

    def renew(self) -> None:
        """Opens the source again when it is needed: this is another process."""
        self._opened = None

    def resolve(self, reference: str | None) -> Descriptor:
        """What a tag stands for now or, without a network, stood for when it was last asked for."""
        if reference and reference.startswith("sha256:"):
            known = self._known(reference)
            return known if known is not None else self._noted(self._new.resolve(reference))
        key = f"{self._name}:{reference or ''}"
        if self._open is None:
            record = self._store.record(_TAG, key)
            known = self._known(str(record["digest"])) if record else None
            if known is None:
                raise OfflineError(f"{key}: it is not known what the tag stands for")
            return known
        source = self.source if self._store.record(_TAG, key) else self._new
        found = self._noted(source.resolve(reference))
        with suppress(StoreError):  # a cache that may only be read is fine
            self._store.put_record(_TAG, key, {"digest": str(found.digest), "objects": [str(found.digest)]})
        return found

    def manifest(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest, checked."""
        known = self._read(descriptor)
        if known is None:
            known = self.source.manifest(descriptor)
            self._keep(known)
        return known

    def blob(self, descriptor: Descriptor) -> AbstractContextManager[BinaryIO]:
        """A small blob, from the store if it is there; all of it is read."""
        if descriptor.size > _SMALL:
            return self.source.blob(descriptor)
        known = self._read(descriptor)
        if known is None:
            with self.source.blob(descriptor) as stream:
                known = stream.read()
            self._prepare()  # now it is known where blobs come from
            self._keep(known)
        return closing(io.BytesIO(known))

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """The manifests whose subject is `digest`."""
        return self.source.referrers(digest)

    def find(self, tag: str) -> Descriptor | None:
        """What a tag stands for; None if there is none."""
        return self.source.find(tag)

    @property
    def _new(self) -> Source:
        """The source itself, of which something new is going to be read."""
        source = self.source
        self._prepare()
        return source

    def _prepare(self) -> None:
        if self._ahead and isinstance(self._opened, Prepared):
            threading.Thread(target=self._opened.prepare, args=(self._ahead,), daemon=True).start()

    def _noted(self, descriptor: Descriptor) -> Descriptor:
        self.manifest(descriptor)
        return descriptor

    def _known(self, text: str) -> Descriptor | None:
        """The descriptor of a manifest that the store has."""
        try:
            digest = Digest.parse(text)
            if not self._store.has(digest):
                return None
            data = self._store.read(digest)
            document = json.loads(data)
            media_type = document.get("mediaType") or spec.MANIFEST
        except (ValueError, AttributeError, StoreError):
            return None
        return Descriptor(str(media_type), digest, len(data)) if len(data) <= MAX_MANIFEST else None

    def _keep(self, data: bytes) -> None:
        with suppress(StoreError):
            self._store.put(data)

    def _read(self, descriptor: Descriptor) -> bytes | None:
        try:
            return self._store.read(descriptor.digest) if self._store.has(descriptor.digest, descriptor.size) else None
        except StoreError:  # damaged, and removed
            return None


def note(store: Store, name: str, artifact: ModelArtifact) -> None:
    """Remembers that a model was pulled from the repository `name`."""
    if artifact.index is not None and store.has(artifact.index.digest):
        objects = [str(artifact.index.digest), str(artifact.manifest.digest)]
        with suppress(StoreError):
            store.put_record(_MODEL, f"{name}@{artifact.manifest.digest}", {"name": name, "objects": objects})


def older(store: Store, name: str, artifact: ModelArtifact) -> Older:
    """What was pulled before: of the same repository first, the last ones first; the model itself is not among them."""
    found: list[tuple[bool, float, Digest]] = []
    for used, record in store.records(_MODEL):
        try:
            index, manifest = map(Digest.parse, record["objects"])
        except (ValueError, TypeError, KeyError):
            continue
        if manifest != artifact.manifest.digest and store.has(index):
            found.append((record.get("name") != name, -used, index))
    digests = list(dict.fromkeys(digest for _, _, digest in sorted(found)))
    return Older(store, _Indexes(store, digests[:_VERSIONS]))


class _Indexes:
    """Indexes that are read one after the other, when they are needed."""

    def __init__(self, store: Store, digests: list[Digest]) -> None:
        self._store = store
        self._digests = digests

    def __iter__(self) -> Iterator[ModelIndex]:
        for digest in self._digests:
            try:
                yield parse(self._store.read(digest), "an older version")
            except (BadModelError, StoreError):
                continue
