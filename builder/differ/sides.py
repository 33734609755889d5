"""What can be compared: an image as it is published, a lock, a profile; each as values, without reading a layer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from builder import documents
from builder import plan as plans
from builder.lock import Lock, LockedNix
from builder.oci import config
from builder.oci.companions import models
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.published import PublishedImage, read_image, read_top
from builder.oci.spec import Descriptor
from builder.profile import Profile

_OF_PLATFORMS = ("files", "image", "platforms", "templates")


@dataclass(frozen=True)
class LayerSide:
    """One layer. Two with the same blob are the same; what a configuration says of their content is not believed."""

    name: str
    blob: Descriptor


@dataclass(frozen=True)
class ImageSide:
    """A published image: per platform its layers, bottom first, and its configuration without what follows from layers."""

    digest: Digest
    source: Source
    layers: Mapping[str, tuple[LayerSide, ...]]
    settings: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class OwnFile:
    """A file or template of a profile, in the image at the path that it is found by."""

    type: str
    mode: int
    size: int
    content: str


@dataclass(frozen=True)
class LockSide:
    """A lock, or a profile with its lock if it has one: versions per platform, settings of images as `ImageSide` has them, the
    profile's files, how many layers are those of a base image; `values` are everything else that it says."""

    packages: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    wheels: Mapping[str, Mapping[str, str]] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    files: Mapping[str, OwnFile] = field(default_factory=dict)
    bases: Mapping[str, int] = field(default_factory=dict)
    values: Mapping[str, Any] = field(default_factory=dict)


Side = ImageSide | LockSide


def image_side(source: Source, descriptor: Descriptor) -> ImageSide:
    """An image of a source; raises `ImageError` where it is none, and what the source raises."""
    top = read_top(source, descriptor)
    images = [read_image(source, entry) for entry in top.images]
    return ImageSide(
        descriptor.digest,
        source,
        {str(image.platform): _layers(image) for image in images},
        {str(image.platform): _settings(image.settings) | _models(image.document) for image in images},
    )


def lock_side(lock: Lock) -> LockSide:
    """A lock."""
    platforms = {str(locked.platform): locked for locked in lock.platforms}
    planned = plans.plan(lock)
    settings = {
        str(item.platform): _settings(json.loads(config.image_config(item.platform, lock.created, item.config, (), ())))
        for item in planned.platforms
    }
    files = {
        local.to: OwnFile("symlink", 0o777, 0, local.target)
        if local.target is not None
        else OwnFile("reg", int(local.mode, 8), local.size or 0, local.sha256 or "")
        for local in lock.files
    }
    files |= {item.to: OwnFile("reg", int(item.mode, 8), item.size, item.sha256) for item in lock.templates}
    for each in settings.values() if lock.models else ():
        each["models"] = {model.name: model.manifest for model in lock.models}
    values = {key: value for key, value in _dumped(lock).items() if key not in _OF_PLATFORMS}
    values["python"] = {name: locked.python.version for name, locked in platforms.items() if locked.python}
    values["cuda"] = {
        name: {"version": locked.cuda.version, "flavour": locked.cuda.flavour}
        for name, locked in platforms.items()
        if locked.cuda
    }
    values["base"] = {name: locked.image.manifest for name, locked in platforms.items() if locked.image}
    values["debian"] = {name: locked.debian.suite for name, locked in platforms.items() if locked.debian}
    dropped = {
        name: {wheel.name: list(wheel.drop) for wheel in item.wheels if wheel.drop} for name, item in platforms.items()
    }
    if any(locked.nix for locked in platforms.values()):
        values["nix"] = {
            name: {
                "references": {root.source: list(root.outputs) for root in locked.nix.roots},
                "paths": _paths(locked.nix),
            }
            for name, locked in platforms.items()
            if locked.nix
        }
    if any(dropped.values()):
        values["left out of wheels"] = dropped
    return LockSide(
        {
            name: {deb.name: deb.version for deb in locked.debian.packages}
            if locked.debian
            else dict(locked.image.packages if locked.image else ())
            for name, locked in platforms.items()
        },
        {name: {wheel.name: wheel.version for wheel in locked.wheels} for name, locked in platforms.items()},
        settings,
        files,
        {name: len(locked.image.layers) for name, locked in platforms.items() if locked.image},
        {"lock": values},
    )


def _paths(nix: LockedNix) -> Mapping[str, str]:
    """The paths of a closure by their names without hashes."""
    found: dict[str, list[str]] = {}
    for path in nix.paths:
        found.setdefault(path.name[33:], []).append(path.name[:32])
    return {name: " ".join(hashes) for name, hashes in found.items()}


def profile_side(profile: Profile, lock: Lock | None) -> LockSide:
    """A profile; what its lock says is compared, too."""
    side = lock_side(lock) if lock else LockSide()
    return replace(side, values={**side.values, "profile": _dumped(profile)})


def _dumped(value: object) -> Mapping[str, Any]:
    dumped = documents.dump(value)
    assert isinstance(dumped, dict)
    return dumped


def _layers(image: PublishedImage) -> tuple[LayerSide, ...]:
    return tuple(LayerSide(name, blob) for name, blob in zip(image.names, image.layers, strict=True))


def _models(document: Mapping[str, Any]) -> dict[str, Any]:
    """The models that a manifest names, if it does."""
    annotations = document.get("annotations")
    texts = annotations.items() if isinstance(annotations, dict) else ()
    named = models({key: value for key, value in texts if isinstance(value, str)})
    return {"models": {name: str(digest) for name, digest in named}} if named else {}


def _settings(settings: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration with its environment by name, as order has no meaning there."""
    plain = {key: value for key, value in settings.items() if key not in ("rootfs", "history")}
    inner = plain.get("config")
    if isinstance(inner, dict) and isinstance(inner.get("Env"), list):
        env = dict(str(line).partition("=")[::2] for line in inner["Env"])
        plain["config"] = {**inner, "Env": env}
    return plain
