"""What a published image holds, read back from its layout: layers, sizes, spans, how it starts, labels."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.layout import Layout, LayoutError
from builder.soci import read
from builder.soci.index import ARTIFACT_TYPE, INDEX_DIGEST, LAYER_DIGEST

_MAX_ZTOC = 1 << 30
_PREFIX = "layerwright: "


@dataclass(frozen=True)
class ExaminedLayer:
    """One layer: its name from the image's history, its blob, and its ztoc's size, spans and size of tar (0: none)."""

    name: str
    digest: Digest
    size: int
    ztoc_size: int
    spans: int
    tar_size: int


@dataclass(frozen=True)
class ExaminedImage:
    """The image of one platform; `soci` is the digest of its SOCI index, `config` its configuration as a document."""

    platform: str
    digest: Digest
    soci: Digest | None
    layers: tuple[ExaminedLayer, ...]
    config: Mapping[str, Any]


@dataclass(frozen=True)
class Examined:
    """What a tag of a layout points at."""

    digest: Digest
    images: tuple[ExaminedImage, ...]


def examine(layout: Layout, tag: str | None) -> Examined:
    """Reads what `tag` (or the only image) of a layout is; raises `LayoutError` where it is not an image, or damaged."""
    try:
        top = layout.resolve(tag)
        digest = Digest.parse(top["digest"])
        document = _read(layout, digest)
        if "manifests" not in document:
            return Examined(digest, (_image(layout, digest, document, {}),))
        entries = document["manifests"]
        indexes = {entry["digest"]: entry for entry in entries if entry.get("artifactType") == ARTIFACT_TYPE}
        images = [Digest.parse(entry["digest"]) for entry in entries if entry["digest"] not in indexes]
        return Examined(digest, tuple(_image(layout, image, _read(layout, image), indexes) for image in images))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise LayoutError(
            f"{layout.root}: a document in it is not what the image specification says ({error!r})",
            hint="publish to it again",
        ) from error


def _read(layout: Layout, digest: Digest) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(layout.read(digest))
    if not isinstance(document, dict):
        raise ValueError(f"{digest} is no document")
    return document


def _image(layout: Layout, digest: Digest, manifest: Mapping[str, Any], indexes: Mapping[str, Any]) -> ExaminedImage:
    config = _read(layout, Digest.parse(manifest["config"]["digest"]))
    bound = manifest.get("annotations", {}).get(INDEX_DIGEST)
    soci = Digest.parse(bound) if bound in indexes else None
    ztocs = dict(_ztocs(_read(layout, soci))) if soci else {}
    names = [str(item.get("created_by", "")).removeprefix(_PREFIX) for item in config.get("history", ())]
    names += [""] * len(manifest["layers"])
    layers = [
        _layer(layout, name, entry, ztocs.get(entry["digest"]))
        for name, entry in zip(names, manifest["layers"], strict=False)
    ]
    platform = spec.Platform(config["os"], config["architecture"], config.get("variant"))
    return ExaminedImage(str(platform), digest, soci, tuple(layers), config)


def _ztocs(index: Mapping[str, Any]) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The descriptors of ztocs by the digest of their layer."""
    for entry in index["layers"]:
        yield entry["annotations"][LAYER_DIGEST], entry


def _layer(layout: Layout, name: str, entry: Mapping[str, Any], ztoc: Mapping[str, Any] | None) -> ExaminedLayer:
    digest = Digest.parse(entry["digest"])
    if ztoc is None:
        return ExaminedLayer(name, digest, int(entry["size"]), 0, 0, 0)
    found = read.figures(layout.read(Digest.parse(ztoc["digest"]), _MAX_ZTOC))
    return ExaminedLayer(name, digest, int(entry["size"]), int(ztoc["size"]), found.spans, found.tar_size)
