"""The plan: which layers an image has, from the lock alone, without I/O.

Layers come bottom first, by how often they change: the operating system, the large wheels (each a layer of its own, the
same blob in every image that uses it), the other wheels, the profile's files. A layer's key is the digest of all that
decides its bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from builder import baseimage
from builder.baseimage import LockedFolder, LockedImage
from builder.lock import (
    Lock,
    LockedCompression,
    LockedCuda,
    LockedFile,
    LockedLocal,
    LockedNix,
    LockedPlatform,
    LockedPython,
    LockedStart,
    LockedTemplate,
    LockedWheel,
    closure,
)
from builder.oci import spec
from builder.oci.companions import MODEL
from builder.oci.config import Execution
from builder.oci.digest import Digest
from builder.plan.values import (
    NIX_ORIGIN,
    BaseLayer,
    Bytecode,
    EnvironmentLayer,
    FilesLayer,
    Layer,
    LinksLayer,
    NixLayer,
    Plan,
    PlatformPlan,
    StartOrder,
    SystemLayer,
    WheelLayer,
    files,
    has_table,
    inputs,
    media_type,
    nix_file,
    weight,
)

__all__ = [
    "LARGE_WHEEL",
    "NIX_ORIGIN",
    "BaseLayer",
    "Bytecode",
    "EnvironmentLayer",
    "FilesLayer",
    "Layer",
    "LinksLayer",
    "NixLayer",
    "Plan",
    "PlatformPlan",
    "SystemLayer",
    "WheelLayer",
    "base_layers",
    "files",
    "has_table",
    "inputs",
    "is_large",
    "media_type",
    "nix_file",
    "plan",
    "weight",
]

LARGE_WHEEL = 64 << 20
"""Wheels of at least this many bytes are layers of their own: a rule of the format."""
_MAX_LARGE = 96
_GPU = "vnd.layerwright.gpu."
_MAX_LAYERS = 118
"""Layers of a base image and large wheels together: runtimes lay 127 over one another, and some more come on top."""
_VENV_PATH = "/opt/venv/bin"


def plan(lock: Lock) -> Plan:
    """The plan of a lock."""
    platforms = tuple(_platform(lock, platform) for platform in lock.platforms)
    annotations = tuple(sorted((f"{MODEL}{model.name}", model.manifest) for model in lock.models))
    return Plan(lock.name, lock.created, platforms, lock.soci, annotations)


def _platform(lock: Lock, locked: LockedPlatform) -> PlatformPlan:
    layers: list[Layer] = []
    annotations: dict[str, str] = {}
    if locked.image:
        with_tables = lock.compression is not None and lock.compression.kind == "estargz"
        layers += base_layers(locked.image, with_tables=with_tables)
        annotations[spec.BASE_DIGEST] = locked.image.manifest
    if locked.debian:
        layers.append(_system(lock.format, locked))
    if locked.nix:
        layers += _nix(lock.format, locked.nix, locked.image)
    if python := locked.python.version if locked.python else locked.cuda.python if locked.cuda else None:
        layers += _wheels(lock.format, locked, python)
        # What has no spans comes above what has: some runtimes pull all above it whole.
        if locked.image and locked.python:
            layers.append(_environment(lock.format, locked.python))
    if locked.cuda and locked.cuda.flavour != "none":
        layers.append(_links(lock.format, locked, locked.cuda))
    if lock.files or lock.templates:
        layers.append(_files("files", lock.format, lock.files, lock.templates, locked.image))
    config = _config(lock.image, locked)
    reads = None
    if lock.start and lock.start.platform == locked.platform:
        reads = lock.start.files[-1]
        layers.append(_files("start", lock.format, (), lock.start.files, locked.image))
        layers = [_ordered(layer, lock.start, reads) for layer in layers]
        if lock.start.launcher:
            config = replace(config, entrypoint=(lock.start.files[0].to, *config.entrypoint))
    if locked.gpu:
        from builder.gpu.labels import labels  # few images have GPUs

        annotations |= labels(locked.gpu)
    told = tuple(sorted(annotations.items()))
    if lock.compression:
        layers = [_compressed(layer, lock.compression) for layer in layers]
    return PlatformPlan(locked.platform, tuple(layers), config, locked.image, told, reads)


def _ordered(layer: Layer, start: LockedStart, reads: LockedTemplate) -> Layer:
    """A layer with what a start reads first, where the lock says so: another one than that of all who have the same inputs."""
    if not isinstance(layer, SystemLayer | WheelLayer):
        return layer
    name = "debian"
    if isinstance(layer, WheelLayer):
        name = layer.wheels[0].file.sha256 if is_large(layer) else "wheels"
    found = next((order for order in start.order if order.layer == name), None)
    if found is None:
        return layer
    key = Digest.of(spec.encode({"layer": str(layer.key), "first": found.files}))
    return replace(layer, key=key, order=StartOrder(found, reads))


def is_large(layer: WheelLayer) -> bool:
    """Whether a layer is of one large wheel, and so the same in every image."""
    return len(layer.wheels) == 1 and layer.wheels[0].file.size >= LARGE_WHEEL


def _compressed(layer: Layer, compression: LockedCompression) -> Layer:
    """A layer of ours as another blob; those of a base image stay what they are."""
    if isinstance(layer, BaseLayer):
        return layer
    how = {"kind": compression.kind, "version": compression.version, "level": compression.level}
    return replace(layer, key=Digest.of(spec.encode({"layer": str(layer.key), **how})), compression=compression)


def base_layers(image: LockedImage, *, with_tables: bool = False) -> list[BaseLayer]:
    """The layers of a base image, bottom first, with the digests of tables if they are to be told. Their keys are of their bytes
    and what is said of them alone."""
    return [
        BaseLayer(
            f"base {number} of {len(image.layers)}",
            Digest.of(
                spec.encode({"kind": "base", "layer": layer.sha256, "type": layer.media_type, "tar": layer.diff_id})
            ),
            LockedFile(baseimage.ORIGIN, image.source, layer.sha256, layer.size),
            layer.media_type,
            Digest.parse(layer.diff_id),
            Digest.parse(layer.table) if layer.table and with_tables else None,
        )
        for number, layer in enumerate(image.layers, 1)
    ]


def _nix(format_: int, nix: LockedNix, image: LockedImage | None) -> list[NixLayer]:
    """The closure, what many need first, and the links last: paths that images have in common stay layers in common."""
    below, folders = (len(image.layers), image.folders) if image else (0, ())
    store = tuple(folder for folder in folders if folder.real in ("/nix", "/nix/store"))
    groups = closure.layers(nix.paths, max(1, min(closure.MOST_LAYERS, _MAX_LAYERS - below)))
    layers = [
        NixLayer(
            f"nix {group[0].name[33:]}" if len(group) == 1 else f"{len(group)} nix paths",
            _key(format_, "nix", {"paths": [[path.name, path.sha256] for path in sorted(group)]} | _owners(store)),
            tuple(sorted(group)),
            folders=store,
        )
        for group in groups
    ]
    links = [link for root in nix.roots for link in root.links]
    if image:
        links = [replace(link, to=image.place(link.to)) for link in links]
    if links:
        parts = {"links": [[link.to, link.target] for link in sorted(links)]} | _owners(folders)
        layers.append(NixLayer("nix links", _key(format_, "nix", parts), (), tuple(sorted(links)), folders))
    return layers


def _environment(format_: int, python: LockedPython) -> EnvironmentLayer:
    key = _key(format_, "environment", {"executable": python.executable, "python": python.version})
    return EnvironmentLayer("environment", key, python.executable, python.version)


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
    below = len(locked.image.layers) if locked.image else 0
    most = min(_MAX_LARGE, _MAX_LAYERS - below) if locked.image else _MAX_LARGE
    most = max(0, min(most, _MAX_LAYERS - closure.MOST_LAYERS - below)) if locked.nix else most
    large = sorted(by_size[:most], key=lambda wheel: (not wheel.name.startswith("nvidia-"), wheel.name))
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
    if python.bytecode and python.compiler:
        return Bytecode(f"/usr/bin/python{python.version}", tuple(sorted(python.compiler)))
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


def _files(
    name: str,
    format_: int,
    files: tuple[LockedLocal, ...],
    templates: tuple[LockedTemplate, ...],
    image: LockedImage | None,
) -> FilesLayer:
    folders = image.folders if image else ()
    if image:
        files = tuple(replace(file, to=image.place(file.to)) for file in files)
        templates = tuple(replace(template, to=image.place(template.to)) for template in templates)
    files, templates = tuple(sorted(files)), tuple(sorted(templates))
    parts: dict[str, object] = {
        "files": [[file.to, file.mode, file.sha256, file.size, file.target] for file in files],
        "templates": [[template.to, template.mode, template.sha256, template.size] for template in templates],
    }
    return FilesLayer(name, _key(format_, "files", parts | _owners(folders)), files, templates, folders)


def _owners(folders: Sequence[LockedFolder]) -> dict[str, object]:
    rows = [[folder.real, folder.mode, folder.uid, folder.gid] for folder in folders]
    return {"folders": rows} if rows else {}


def _key(format_: int, kind: str, parts: Mapping[str, object]) -> Digest:
    return Digest.of(spec.encode({"format": format_, "kind": kind, **parts}))


def _config(image: Execution, locked: LockedPlatform) -> Execution:
    """The image's own settings over what every image of ours has, or over those of the image that it stands on."""
    path = [_VENV_PATH] if locked.python else []
    env: dict[str, str] = {}
    labels = dict(image.labels)
    if locked.cuda:
        from builder.cuda import environment  # few images have CUDA

        below = dict(locked.image.execution.env) if locked.image else {}
        path.append(environment.path(locked.cuda.flavour))
        env = environment.variables(locked.cuda.version, locked.cuda.flavour, below)
        labels = environment.labels({wheel.name: wheel.version for wheel in locked.wheels}) | labels
    if locked.gpu:
        from builder.gpu import labels as gpu

        env |= gpu.environment(locked.gpu, dict(locked.image.execution.env) if locked.image else {})
        labels = gpu.labels(locked.gpu) | labels
    if locked.image:
        own = replace(image, env=tuple((env | dict(image.env)).items()), labels=tuple(labels.items()))
        base = locked.image.execution
        kept = tuple(label for label in base.labels if not label[0].startswith(_GPU))  # they are of that image alone
        return baseimage.inherited(replace(base, labels=kept), own, path)
    env = {"PATH": ":".join([*path, spec.PATH]), **env, **dict(image.env)}
    return replace(image, env=tuple(sorted(env.items())), labels=tuple(sorted(labels.items())))
