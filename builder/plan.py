"""The plan: which layers an image has, from the lock alone, without I/O.

Layers come bottom first, by how often they change: the operating system, the large wheels (each a layer of its own, the
same blob in every image that uses it), the other wheels, the profile's files. A layer's key is the digest of all that
decides its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from builder.gpu import labels as gpu_labels
from builder.lock import (
    Lock,
    LockedCuda,
    LockedDeb,
    LockedFile,
    LockedLocal,
    LockedPlatform,
    LockedPython,
    LockedTemplate,
    LockedWheel,
    SociSettings,
)
from builder.oci import spec
from builder.oci.config import Execution
from builder.oci.digest import Digest
from builder.oci.spec import Platform

LARGE_WHEEL = 64 << 20
"""Wheels of at least this many bytes are layers of their own: a rule of the format."""
MODEL = "vnd.layerwright.model."
"""How the annotation of an image's manifest begins that names one of its models; its value is the artifact's digest."""
_MAX_LARGE = 96
_BASE_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


@dataclass(frozen=True)
class Bytecode:
    """The interpreter that compiles bytecode: its executable in the image and its packages."""

    executable: str
    packages: tuple[LockedDeb, ...]


@dataclass(frozen=True)
class SystemLayer:
    """The Debian packages, and the environment's skeleton where there is a Python (`executable`, `python` as `3.N`)."""

    name: str
    key: Digest
    packages: tuple[LockedDeb, ...]
    executable: str | None
    python: str | None


@dataclass(frozen=True)
class WheelLayer:
    """One or more wheels in the one environment of the image, with their bytecode if there is an interpreter for it."""

    name: str
    key: Digest
    wheels: tuple[LockedWheel, ...]
    python: str
    bytecode: Bytecode | None


@dataclass(frozen=True)
class FilesLayer:
    """The profile's own files and rendered templates."""

    name: str
    key: Digest
    files: tuple[LockedLocal, ...]
    templates: tuple[LockedTemplate, ...]


@dataclass(frozen=True)
class LinksLayer:
    """`/usr/local/cuda` of a CUDA release, `minor` as `13.2`: links into what the wheels bring."""

    name: str
    key: Digest
    wheels: tuple[LockedWheel, ...]
    minor: str
    python: str


Layer = SystemLayer | WheelLayer | LinksLayer | FilesLayer


@dataclass(frozen=True)
class PlatformPlan:
    """The image of one platform: its layers, bottom first, and its configuration."""

    platform: Platform
    layers: tuple[Layer, ...]
    config: Execution
    annotations: tuple[tuple[str, str], ...] = ()
    """Those of its manifest, beside the plan's: what it asks of GPUs."""


@dataclass(frozen=True)
class Plan:
    """What will be built; `created` is an RFC 3339 time."""

    name: str
    created: str
    platforms: tuple[PlatformPlan, ...]
    soci: SociSettings
    annotations: tuple[tuple[str, str], ...] = ()
    """Those of every manifest: the image's models, by the digests of their artifacts."""


def plan(lock: Lock) -> Plan:
    """The plan of a lock."""
    platforms = tuple(_platform(lock, platform) for platform in lock.platforms)
    annotations = tuple(sorted((f"{MODEL}{model.name}", model.manifest) for model in lock.models))
    return Plan(lock.name, lock.created, platforms, lock.soci, annotations)


def inputs(layer: Layer) -> tuple[tuple[str, int], ...]:
    """What goes into a layer: (name and version, bytes of the input)."""
    if isinstance(layer, SystemLayer):
        return tuple((f"{deb.name} {deb.version}", deb.file.size) for deb in layer.packages)
    if isinstance(layer, WheelLayer):
        return tuple((f"{wheel.name} {wheel.version}", wheel.file.size) for wheel in layer.wheels)
    if isinstance(layer, LinksLayer):
        return ()
    files = tuple((file.to, file.size or 0) for file in layer.files)
    return files + tuple((template.to, template.size) for template in layer.templates)


def files(layer: Layer) -> tuple[LockedFile, ...]:
    """The files of origins that packing a layer reads, each once."""
    if isinstance(layer, SystemLayer):
        return tuple(deb.file for deb in layer.packages)
    if isinstance(layer, WheelLayer):
        debs = layer.bytecode.packages if layer.bytecode else ()
        return (*(wheel.file for wheel in layer.wheels), *(deb.file for deb in debs))
    if isinstance(layer, LinksLayer):
        return tuple(wheel.file for wheel in layer.wheels)
    return ()


def _platform(lock: Lock, locked: LockedPlatform) -> PlatformPlan:
    layers: list[Layer] = []
    if locked.debian:
        layers.append(_system(lock.format, locked))
    if python := locked.python.version if locked.python else locked.cuda.python if locked.cuda else None:
        layers += _wheels(lock.format, locked, python)
    if locked.cuda and locked.cuda.flavour != "none":
        layers.append(_links(lock.format, locked, locked.cuda))
    if lock.files or lock.templates:
        layers.append(_files(lock))
    told = tuple(sorted(gpu_labels.labels(locked.gpu).items())) if locked.gpu else ()
    return PlatformPlan(locked.platform, tuple(layers), _config(lock.image, locked), told)


def _system(format_: int, locked: LockedPlatform) -> SystemLayer:
    assert locked.debian
    packages = tuple(sorted(locked.debian.packages))
    executable = locked.python.executable if locked.python else None
    python = locked.python.version if locked.python else None
    key = _key(
        format_,
        "system",
        {"packages": [deb.file.sha256 for deb in packages], "executable": executable, "python": python},
    )
    return SystemLayer(f"debian {locked.debian.suite}", key, packages, executable, python)


def _wheels(format_: int, locked: LockedPlatform, python: str) -> list[WheelLayer]:
    """Large wheels: what CUDA brings first, then by name; the rest in one layer."""
    bytecode = _bytecode(locked, locked.python) if locked.python else None
    by_size = sorted((wheel for wheel in locked.wheels if wheel.file.size >= LARGE_WHEEL), key=lambda w: -w.file.size)
    large = sorted(by_size[:_MAX_LARGE], key=lambda wheel: (not wheel.name.startswith("nvidia-"), wheel.name))
    small = tuple(sorted(set(locked.wheels) - set(large)))

    def layer(name: str, wheels: Sequence[LockedWheel]) -> WheelLayer:
        parts: dict[str, object] = {
            "wheels": [wheel.file.sha256 for wheel in wheels],
            "python": python,
            "bytecode": [deb.file.sha256 for deb in bytecode.packages] if bytecode else None,
        }
        if drops := {wheel.file.sha256: list(wheel.drop) for wheel in wheels if wheel.drop}:
            parts["drop"] = drops
        return WheelLayer(name, _key(format_, "wheels", parts), tuple(wheels), python, bytecode)

    layers = [layer(f"{wheel.name} {wheel.version}", (wheel,)) for wheel in large]
    if small:
        name = f"{len(small)} wheels" if len(small) > 1 else f"{small[0].name} {small[0].version}"
        layers.append(layer(name, small))
    return layers


def _bytecode(locked: LockedPlatform, python: LockedPython) -> Bytecode | None:
    if not python.bytecode or not locked.debian:
        return None
    wanted = set(python.interpreter)
    packages = tuple(sorted(deb for deb in locked.debian.packages if deb.name in wanted))
    return Bytecode(python.executable, packages)


def _links(format_: int, locked: LockedPlatform, cuda: LockedCuda) -> LinksLayer:
    wheels = tuple(sorted(wheel for wheel in locked.wheels if wheel.name.startswith("nvidia-")))
    minor = ".".join(cuda.version.split(".")[:2])
    python = locked.python.version if locked.python else cuda.python
    parts = {
        "wheels": [[wheel.name, wheel.file.sha256, *wheel.drop] for wheel in wheels],
        "cuda": minor,
        "python": python,
    }
    return LinksLayer(f"cuda {minor}", _key(format_, "cuda", parts), wheels, minor, python)


def _files(lock: Lock) -> FilesLayer:
    files, templates = tuple(sorted(lock.files)), tuple(sorted(lock.templates))
    parts = {
        "files": [[file.to, file.mode, file.sha256, file.size, file.target] for file in files],
        "templates": [[template.to, template.mode, template.sha256, template.size] for template in templates],
    }
    return FilesLayer("files", _key(lock.format, "files", parts), files, templates)


def _key(format_: int, kind: str, parts: Mapping[str, object]) -> Digest:
    return Digest.of(spec.encode({"format": format_, "kind": kind, **parts}))


def _config(image: Execution, locked: LockedPlatform) -> Execution:
    """The image's own settings over what every image of ours has."""
    path = ["/opt/venv/bin"] if locked.python else []
    env: dict[str, str] = {}
    labels = dict(image.labels)
    if locked.cuda:
        from builder.cuda import environment  # few images have CUDA

        path.append(environment.path(locked.cuda.flavour))
        env = environment.variables(locked.cuda.version, locked.cuda.flavour)
        labels = environment.labels({wheel.name: wheel.version for wheel in locked.wheels}) | labels
    if locked.gpu:
        env |= gpu_labels.environment(locked.gpu)
        labels = gpu_labels.labels(locked.gpu) | labels
    env = {"PATH": ":".join([*path, _BASE_PATH]), **env, **dict(image.env)}
    return Execution(
        image.entrypoint,
        image.cmd,
        tuple(sorted(env.items())),
        image.user,
        image.workdir,
        image.ports,
        tuple(sorted(labels.items())),
        image.stop_signal,
    )
