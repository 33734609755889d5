"""What a published image holds, read back from where it is: layers, sizes, spans, how it starts, labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from builder.errors import HostileInputError
from builder.models import modelpack
from builder.oci import lazy, spec
from builder.oci.companions import models
from builder.oci.content import MAX_MANIFEST, Source
from builder.oci.digest import Digest
from builder.oci.lazy import LayerStart
from builder.oci.listing import LayoutError
from builder.oci.published import IMAGE_CONFIGS, NotAnImageError
from builder.oci.spec import Descriptor
from builder.soci import prefetch, read
from builder.soci.index import ARTIFACT_TYPE, INDEX_DIGEST, LAYER_DIGEST

_MAX_ZTOC = 1 << 30
_BLOCK = 1 << 20
_MAX_DEPTH = 4
_PREFIX = "layerwright: "
_ATTESTATION = "vnd.docker.reference.type"


@dataclass(frozen=True)
class ExaminedLayer:
    """One layer: its name from the image's history, its blob, and its ztoc's size, spans and size of tar (0: none); `start` says
    which clients mount it before they have it."""

    name: str
    digest: Digest
    size: int
    ztoc_size: int
    spans: int
    tar_size: int
    media_type: str
    start: LayerStart


@dataclass(frozen=True)
class ExaminedImage:
    """The image of one platform; `soci` is the digest of its SOCI index, `config` its configuration as a document."""

    platform: str
    digest: Digest
    soci: Digest | None
    layers: tuple[ExaminedLayer, ...]
    config: Mapping[str, Any]
    models: tuple[tuple[str, Digest], ...] = ()
    """The models that it names, and the digests of their artifacts."""
    missing: str = ""
    """The digest of the SOCI index that it names, where that is not there."""

    def lazily(self, client: str) -> tuple[ExaminedLayer, ...]:
        """The layers that one of `lazy.CLIENTS` mounts before it has them."""
        return tuple(layer for layer in self.layers if client in layer.start.clients)


@dataclass(frozen=True)
class Examined:
    """What a reference stands for; `top` is its descriptor."""

    digest: Digest
    images: tuple[ExaminedImage, ...]
    top: Descriptor


def examine(source: Source, reference: str | None) -> Examined:
    """Reads what `reference` (or the only image) of a source is. Of layers nothing is read, of ztocs everything.

    Raises `NotAnImageError` for a model or another artifact, `HostileInputError` where a document is not what the image
    specification says, and what reading raises.
    """
    top = source.resolve(reference)
    try:
        images = tuple(_images(source, top, {}, _MAX_DEPTH))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HostileInputError(
            f"{top.digest}: a document of it is not what the image specification says ({error!r})",
            hint="publish it again",
        ) from error
    if not images:
        raise NotAnImageError(f"{top.digest} is an index without an image", hint="name another tag or digest")
    return Examined(top.digest, images, top)


def _images(
    source: Source, descriptor: Descriptor, siblings: Mapping[str, Descriptor], depth: int
) -> Iterator[ExaminedImage]:
    """The images of a manifest or index; `siblings` are the SOCI indexes beside it."""
    document = _document(source.manifest(descriptor))
    if document.get("artifactType") == modelpack.ARTIFACT_TYPE:
        raise NotAnImageError(f"{descriptor.digest} is a model, and no image")
    if "manifests" not in document:
        kind = document["config"]["mediaType"]
        if kind in IMAGE_CONFIGS:
            yield _image(source, descriptor.digest, document, siblings)
        elif depth == _MAX_DEPTH:
            raise NotAnImageError(f"{descriptor.digest} is an artifact of the type {kind}, and no image")
        return
    if not depth:
        raise ValueError("indexes lie too deep in one another")
    entries = [Descriptor.parse(entry) for entry in document["manifests"]]
    indexes = {str(entry.digest): entry for entry in entries if entry.artifact_type == ARTIFACT_TYPE}
    for entry in entries:
        if not entry.artifact_type and _ATTESTATION not in entry.annotations:
            yield from _images(source, entry, indexes, depth - 1)


def _document(data: bytes) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(data)
    if not isinstance(document, dict):
        raise ValueError("it is no JSON object")
    return document


def _read(source: Source, descriptor: Descriptor, limit: int) -> bytes:
    if descriptor.size > limit:
        raise ValueError(f"{descriptor.digest} has {descriptor.size} bytes")
    data = bytearray()
    with source.blob(descriptor) as stream:
        while block := stream.read(_BLOCK):
            data += block
    return bytes(data)


def _image(
    source: Source, digest: Digest, manifest: Mapping[str, Any], indexes: Mapping[str, Descriptor]
) -> ExaminedImage:
    config = _document(_read(source, Descriptor.parse(manifest["config"]), MAX_MANIFEST))
    config["config"] = config.get("config") or {}
    if not isinstance(config["config"], dict):
        raise ValueError("what it says of containers is no object")
    bound = manifest.get("annotations", {}).get(INDEX_DIGEST)
    soci = indexes.get(bound) or (_named(source, bound) if bound else None)
    ztocs = dict(_ztocs(_document(source.manifest(soci)))) if soci else {}
    described = [Descriptor.parse(entry) for entry in manifest["layers"]]
    names = [
        str(item.get("created_by", "")).removeprefix(_PREFIX)
        for item in config.get("history", ())
        if not item.get("empty_layer")
    ]
    names += [""] * len(manifest["layers"])
    starts = lazy.starts(described, ztocs, soci is not None)
    layers = [
        _layer(source, name, entry, ztocs.get(entry.digest), start)
        for name, entry, start in zip(names, described, starts, strict=False)
    ]
    platform = spec.Platform(config.get("os", "unknown"), config.get("architecture", "unknown"), config.get("variant"))
    named = models({str(key): str(value) for key, value in manifest.get("annotations", {}).items()})
    missing = str(bound) if bound and not soci else ""
    return ExaminedImage(str(platform), digest, soci.digest if soci else None, tuple(layers), config, named, missing)


def _named(source: Source, digest: object) -> Descriptor | None:
    """The SOCI index that a manifest names by its digest, as snapshotters look for it; None where it is not there."""
    from builder.client import NotFoundError  # it takes long to import, and most indexes name what is beside the image

    try:
        return source.resolve(str(Digest.parse(str(digest))))
    except (LayoutError, NotFoundError):
        return None


def _ztocs(index: Mapping[str, Any]) -> Iterator[tuple[Digest, Descriptor]]:
    """The descriptors of ztocs by the digest of their layer."""
    for entry in map(Descriptor.parse, index["layers"]):
        if entry.media_type == prefetch.MEDIA_TYPE:
            continue
        yield Digest.parse(entry.annotations[LAYER_DIGEST]), entry


def _layer(source: Source, name: str, layer: Descriptor, ztoc: Descriptor | None, start: LayerStart) -> ExaminedLayer:
    kind = layer.media_type
    if ztoc is None:
        return ExaminedLayer(name, layer.digest, layer.size, 0, 0, 0, kind, start)
    found = read.figures(_read(source, ztoc, _MAX_ZTOC))
    return ExaminedLayer(name, layer.digest, layer.size, ztoc.size, found.spans, found.tar_size, kind, start)
