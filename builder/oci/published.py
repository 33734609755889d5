"""A published image as it is read back: its index, manifests and configurations, strictly. No layer is read."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from builder.errors import BuilderError
from builder.oci import spec
from builder.oci.content import MAX_MANIFEST, Source
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor, Platform

INDEXES = frozenset({spec.INDEX, "application/vnd.docker.distribution.manifest.list.v2+json"})
MANIFESTS = frozenset({spec.MANIFEST, "application/vnd.docker.distribution.manifest.v2+json"})
T = TypeVar("T")
IMAGE_CONFIGS = frozenset({spec.CONFIG, "application/vnd.docker.container.image.v1+json"})
"""What the configuration of an image is; that of an artifact is something else."""
_MAX_LAYERS = 4096


class ImageError(BuilderError):
    """What is published is not what the image specification says."""

    hint = "publish it again"


class NotAnImageError(BuilderError):
    """What was named is published, but as something else."""

    hint = "look into it with `build model inspect`"


@dataclass(frozen=True)
class PublishedImage:
    """The image of one platform. `document` is its manifest, `settings` its configuration, layers are bottom first; `names` are
    what the history says of them, empty where it says nothing."""

    platform: Platform
    manifest: Descriptor
    document: Mapping[str, Any]
    config: Descriptor
    settings: Mapping[str, Any]
    layers: tuple[Descriptor, ...]
    diff_ids: tuple[Digest, ...]
    names: tuple[str, ...]


@dataclass(frozen=True)
class Top:
    """What a reference stands for: an index with its entries, or a manifest alone, which is its own only entry."""

    descriptor: Descriptor
    document: Mapping[str, Any]
    entries: tuple[Descriptor, ...]

    @property
    def images(self) -> tuple[Descriptor, ...]:
        """The entries that are images; artifacts, as a SOCI index and attestations are, are none."""
        return tuple(entry for entry in self.entries if not is_artifact(entry))


def by_platform(items: Iterable[tuple[str, Digest, T]]) -> dict[str, T]:
    """What is told of each image, given with its platform and digest, by platform; of a further image of the same platform the
    name has the digest, too."""
    found: dict[str, T] = {}
    for platform, digest, item in items:
        found[f"{platform} {digest}" if platform in found else platform] = item
    return found


def is_artifact(entry: Descriptor) -> bool:
    """Whether an entry of an index is something else than an image."""
    if entry.artifact_type or "vnd.docker.reference.type" in entry.annotations:
        return True
    return entry.media_type not in MANIFESTS


def read_top(source: Source, descriptor: Descriptor) -> Top:
    """The document that a reference stands for. Raises `NotAnImageError` for an artifact, `ImageError`, and what the source
    raises."""
    document = read_document(source, descriptor)
    match document:
        case {"artifactType": str(kind), "config": {"mediaType": str(config)}} if config != spec.CONFIG:
            raise NotAnImageError(f"{descriptor.digest} is an artifact of the type {kind}, and no image")
    if descriptor.media_type not in INDEXES and "manifests" not in document:
        return Top(descriptor, document, (descriptor,))
    entries = document.get("manifests")
    if not isinstance(entries, list) or not entries:
        raise ImageError(f"the index {descriptor.digest} lists no images")
    return Top(descriptor, document, tuple(parsed(entry, f"the index {descriptor.digest}") for entry in entries))


def read_document(source: Source, descriptor: Descriptor) -> Mapping[str, Any]:
    """A manifest or index as a JSON object."""
    return _object(source.manifest(descriptor), f"the manifest {descriptor.digest}")


def read_small(source: Source, descriptor: Descriptor, limit: int = MAX_MANIFEST) -> bytes:
    """A small blob, whole, checked by the source."""
    if descriptor.size > limit:
        raise ImageError(f"{descriptor.digest} is larger than {limit} bytes")
    with source.blob(descriptor) as stream:
        data = bytearray()
        while piece := stream.read(1 << 20):
            data += piece
            if len(data) > limit:
                raise ImageError(f"{descriptor.digest} is larger than {limit} bytes")
    return bytes(data)


def read_image(source: Source, descriptor: Descriptor) -> PublishedImage:
    """The image of a manifest. Raises `ImageError` where it contradicts the specification or itself."""
    where = f"the manifest {descriptor.digest}"
    document = read_document(source, descriptor)
    if document.get("schemaVersion") != 2:
        raise ImageError(f"{where} has no schemaVersion 2")
    if document.get("mediaType", descriptor.media_type) != descriptor.media_type:
        raise ImageError(f"{where} says that it is {document['mediaType']!r}, not {descriptor.media_type}")
    config = parsed(document.get("config"), where)
    listed = document.get("layers")
    if not isinstance(listed, list) or len(listed) > _MAX_LAYERS:
        raise ImageError(f"{where} has no list of layers")
    layers = tuple(parsed(layer, where) for layer in listed)
    settings = _object(read_small(source, config), f"the configuration {config.digest}")
    platform = _platform(settings, config)
    if descriptor.platform and descriptor.platform != platform:
        raise ImageError(f"{where} is listed for {descriptor.platform}, its configuration is for {platform}")
    diff_ids = _diff_ids(settings, config)
    if len(diff_ids) != len(layers):
        raise ImageError(f"{where} has {len(layers)} layers, its configuration {len(diff_ids)} diff_ids")
    names = _names(settings, len(layers))
    return PublishedImage(platform, descriptor, document, config, settings, layers, diff_ids, names)


def parsed(document: object, where: str) -> Descriptor:
    """A descriptor out of a document; raises `ImageError`."""
    try:
        return Descriptor.parse(document)
    except ValueError as error:
        raise ImageError(f"{where}: {error}") from error


def _object(data: bytes, where: str) -> Mapping[str, Any]:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise ImageError(f"{where} is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise ImageError(f"{where} is no JSON object")
    return document


def _platform(settings: Mapping[str, Any], config: Descriptor) -> Platform:
    match settings:
        case {"os": str(os), "architecture": str(architecture)}:
            variant = settings.get("variant")
            return Platform(os, architecture, variant if isinstance(variant, str) and variant else None)
    raise ImageError(f"the configuration {config.digest} names no platform")


def _diff_ids(settings: Mapping[str, Any], config: Descriptor) -> tuple[Digest, ...]:
    match settings.get("rootfs"):
        case {"diff_ids": list(texts)}:
            try:
                return tuple(Digest.parse(text) for text in texts)
            except (ValueError, TypeError) as error:
                raise ImageError(f"the configuration {config.digest}: {error}") from error
    raise ImageError(f"the configuration {config.digest} has no diff_ids")


def _names(settings: Mapping[str, Any], count: int) -> tuple[str, ...]:
    """A name for each layer: entries of the history that made one stand in the order of the layers."""
    history: object = settings.get("history")
    lines: Sequence[object] = history if isinstance(history, list) else ()
    made = [line for line in lines if isinstance(line, dict) and not line.get("empty_layer")]
    names = [str(line.get("created_by") or "").removeprefix("layerwright: ") for line in made]
    return tuple(names if len(names) == count else [""] * count)
