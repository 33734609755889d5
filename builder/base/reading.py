"""A base image as its place has it, for one platform: documents, strictly. No layer is read."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import suppress
from typing import Any

from builder.base.facts import BaseError
from builder.baseimage import COMPRESSIONS, LockedBaseLayer
from builder.errors import HostileInputError
from builder.oci import spec
from builder.oci.config import Execution
from builder.oci.content import MAX_MANIFEST, Source
from builder.oci.digest import Digest
from builder.oci.lazy import TOC_DIGEST
from builder.oci.published import INDEXES, MANIFESTS, PublishedImage, is_artifact, read_image
from builder.oci.spec import Descriptor, Platform

_DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
_TYPES = {media_type: media_type for media_type in COMPRESSIONS} | {
    f"{_DOCKER}.gzip": spec.LAYER_GZIP,
    f"{_DOCKER}.zstd": spec.LAYER_ZSTD,
    _DOCKER: spec.LAYER,
}
"""The media types of layers that are taken, and what the OCI calls the same bytes."""

_FOREIGN = ("foreign", "nondistributable")
_SCHEMA_1 = "application/vnd.docker.distribution.manifest.v1"
_MAX_DEPTH = 3
_MAX_LAYERS = 110
"""What runtimes can lay over one another is 127; ours come on top."""
_VARIANTS = {"arm64": (None, "v8"), "amd64": (None, "v1")}
_KEPT = ("Healthcheck", "Shell", "StopTimeout", "Volumes")
_STEP = {"created": str, "created_by": str, "author": str, "comment": str, "empty_layer": bool}
_MAX_TEXT = 64 << 10


def read(source: Source, descriptor: Descriptor, platform: Platform) -> PublishedImage:
    """The image of `platform` that `descriptor`, an index or a manifest, leads to.

    Raises `BaseError` where there is none or it cannot be a base, and what reading raises.
    """
    listed: list[Platform] = []
    for manifest in _manifests(source, descriptor, listed, _MAX_DEPTH):
        if manifest.platform is None or _fits(manifest.platform, platform):
            image = read_image(source, manifest)
            if _fits(image.platform, platform):
                _check(image)
                return image
            listed.append(image.platform)
    there = ", ".join(sorted({str(item) for item in listed})) or "none"
    raise BaseError(
        f"it is not made for {platform}, only for: {there}", hint="choose another base image, or other platforms"
    )


def layers(image: PublishedImage) -> tuple[LockedBaseLayer, ...]:
    """The layers, bottom first, with the OCI's media types: the same bytes, whoever calls them what."""
    return tuple(
        LockedBaseLayer(_TYPES[layer.media_type], layer.digest.hex, layer.size, str(diff_id), _table(layer))
        for layer, diff_id in zip(image.layers, image.diff_ids, strict=True)
    )


def _table(layer: Descriptor) -> str:
    """The digest of the table of an eStargz layer; nothing for any other layer, and where it is no digest."""
    with suppress(LookupError, ValueError):
        if _TYPES[layer.media_type] == spec.LAYER_GZIP:
            return str(Digest.parse(layer.annotations[TOC_DIGEST]))
    return ""


def execution(image: PublishedImage) -> Execution:
    """How a container of the image starts. Raises `HostileInputError` where its configuration says so in no way known."""
    config = _config(image)
    env = [line.partition("=")[::2] for line in _texts(config, "Env")]
    return Execution(
        entrypoint=_texts(config, "Entrypoint"),
        cmd=_texts(config, "Cmd"),
        env=tuple(sorted(dict(env).items())),
        user=_text(config, "User"),
        workdir=_text(config, "WorkingDir"),
        ports=tuple(_mapping(config, "ExposedPorts")),
        labels=tuple(sorted((key, _text({key: value}, key)) for key, value in _mapping(config, "Labels").items())),
        stop_signal=_text(config, "StopSignal"),
    )


def more(image: PublishedImage) -> dict[str, Any]:
    """What else its configuration says of containers: volumes, a health check, a shell. What docker noted about the
    container that the image was made in is left out."""
    config = _config(image)
    found = {key: config[key] for key in _KEPT if config.get(key)}
    try:
        if len(json.dumps(found, ensure_ascii=False).encode()) <= _MAX_TEXT:
            return found
    except (ValueError, RecursionError):
        pass
    raise _wrong(image, "/".join(found))


def history(image: PublishedImage) -> tuple[Mapping[str, Any], ...]:
    """Its history, one entry that is not empty for each layer; made up where its own does not fit its layers."""
    listed = image.settings.get("history")
    steps = [_step(item) for item in listed] if isinstance(listed, list) else []
    if sum(not step.get("empty_layer") for step in steps) != len(image.layers):
        return ({"comment": "a layer of the base image"},) * len(image.layers)
    return tuple(steps)


def _manifests(source: Source, descriptor: Descriptor, listed: list[Platform], depth: int) -> Iterator[Descriptor]:
    """The manifests of images that a document leads to; `listed` gets the platforms that an index names."""
    if descriptor.size > MAX_MANIFEST:
        raise HostileInputError(
            f"the manifest {descriptor.digest} has {descriptor.size} bytes, more than {MAX_MANIFEST}",
            hint=BaseError.hint,
        )
    if descriptor.media_type.startswith(_SCHEMA_1):
        raise BaseError(
            "its manifest is of docker's schema 1, which says too little", hint="push it again with a newer tool"
        )
    if descriptor.media_type not in INDEXES:
        yield descriptor
        return
    if not depth:
        raise HostileInputError(f"the index {descriptor.digest} lies too deep in others", hint=BaseError.hint)
    for entry in _entries(source, descriptor):
        if entry.media_type in INDEXES:
            yield from _manifests(source, entry, listed, depth - 1)
        elif entry.media_type in MANIFESTS and not is_artifact(entry):
            if entry.platform and entry.platform.os != "unknown":
                listed.append(entry.platform)
            yield from _manifests(source, entry, listed, depth)


def _entries(source: Source, descriptor: Descriptor) -> list[Descriptor]:
    try:
        document = json.loads(source.manifest(descriptor))
        return [Descriptor.parse(entry) for entry in document["manifests"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise HostileInputError(f"{descriptor.digest} is no index of images: {error}", hint=BaseError.hint) from error


def _fits(found: Platform, wanted: Platform) -> bool:
    if (found.os, found.architecture) != (wanted.os, wanted.architecture):
        return False
    usual = _VARIANTS.get(wanted.architecture, (None,))
    return found.variant == wanted.variant or (found.variant in usual and wanted.variant in usual)


def _check(image: PublishedImage) -> None:
    """Refuses what cannot be taken as it is."""
    if not image.layers:
        raise BaseError("it has no layers")
    if len(image.layers) > _MAX_LAYERS:
        raise BaseError(f"it has {len(image.layers)} layers; on top of more than {_MAX_LAYERS} nothing can be put")
    documents = image.document["layers"]
    for number, (layer, document) in enumerate(zip(image.layers, documents, strict=True), 1):
        if document.get("urls") or any(word in layer.media_type for word in _FOREIGN):
            raise BaseError(
                f"layer {number} ({layer.digest.short}) is not in the image: it has to be fetched from elsewhere, and may "
                "not be passed on",
                hint="choose a base image that has all of its layers",
            )
        if layer.media_type not in _TYPES:
            raise BaseError(f"layer {number} ({layer.digest.short}) is of the type {layer.media_type!r}, no layer's")
    if triggers := _texts(_config(image), "OnBuild"):
        raise BaseError(
            f"it has ONBUILD instructions, and nothing can run them here: {triggers[0][:80]!r}",
            hint="choose a base image without them",
        )


def _config(image: PublishedImage) -> Mapping[str, Any]:
    found = image.settings.get("config")
    if found is None:
        return {}
    if not isinstance(found, dict):
        raise _wrong(image, "config")
    return found


def _texts(config: Mapping[str, Any], key: str) -> tuple[str, ...]:
    value = config.get(key) or []
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, list) or not all(isinstance(item, str) and _clean(item) for item in value):
        raise HostileInputError(f"its configuration says {key} in no way known", hint=BaseError.hint)
    return tuple(value)


def _text(config: Mapping[str, Any], key: str) -> str:
    value = config.get(key) or ""
    if not isinstance(value, str) or not _clean(value):
        raise HostileInputError(f"its configuration says {key[:80]!r} in no way known", hint=BaseError.hint)
    return value


def _mapping(config: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = config.get(key) or {}
    if not isinstance(value, dict):
        raise HostileInputError(f"its configuration says {key} in no way known", hint=BaseError.hint)
    return value


def _clean(text: str) -> bool:
    """Whether a text can be in a configuration: no NUL, no half of a character, no novel."""
    return "\0" not in text and len(text) <= _MAX_TEXT and not any("\ud800" <= letter <= "\udfff" for letter in text)


def _step(item: object) -> dict[str, Any]:
    if not isinstance(item, dict):
        raise HostileInputError("its history is no list of steps", hint=BaseError.hint)
    found = {key: item[key] for key, kind in _STEP.items() if isinstance(item.get(key), kind) and item[key]}
    return {key: value for key, value in found.items() if not isinstance(value, str) or _clean(value)}


def _wrong(image: PublishedImage, key: str) -> HostileInputError:
    return HostileInputError(f"the configuration {image.config.digest} has a {key!r} that is none", hint=BaseError.hint)
