"""The values of a plan: layers, images and what goes into them. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from builder.baseimage import LockedFolder, LockedImage
from builder.lock import (
    LockedCompression,
    LockedDeb,
    LockedFile,
    LockedLocal,
    LockedNixLink,
    LockedNixPath,
    LockedOrder,
    LockedTemplate,
    LockedWheel,
    SociSettings,
)
from builder.oci import spec
from builder.oci.config import Execution
from builder.oci.digest import Digest
from builder.oci.spec import Platform

NIX_ORIGIN = "nix"


@dataclass(frozen=True)
class StartOrder:
    """What comes first in a layer: of the files that `reads` says a start reads, those that `locked` has the digest of."""

    locked: LockedOrder
    reads: LockedTemplate


@dataclass(frozen=True)
class Bytecode:
    """The interpreter that compiles bytecode: its executable, in the image or in its packages alone, and these."""

    executable: str
    packages: tuple[LockedDeb, ...]


@dataclass(frozen=True)
class BaseLayer:
    """A layer of the base image, whose blob is taken as it is; of an eStargz layer in an image of such layers, `table` is the
    digest of its table."""

    name: str
    key: Digest
    file: LockedFile
    media_type: str
    diff_id: Digest
    table: Digest | None = None


@dataclass(frozen=True)
class EnvironmentLayer:
    """The environment's skeleton on top of a base image, for its interpreter (`executable`, `python` as `3.N`)."""

    name: str
    key: Digest
    executable: str
    python: str
    compression: LockedCompression | None = None


@dataclass(frozen=True)
class SystemLayer:
    """The Debian packages, and the environment's skeleton where there is a Python (`executable`, `python` as `3.N`)."""

    name: str
    key: Digest
    packages: tuple[LockedDeb, ...]
    executable: str | None
    python: str | None
    compression: LockedCompression | None = None
    order: StartOrder | None = None


@dataclass(frozen=True)
class WheelLayer:
    """One or more wheels in the one environment of the image, with their bytecode if there is an interpreter for it."""

    name: str
    key: Digest
    wheels: tuple[LockedWheel, ...]
    python: str
    bytecode: Bytecode | None
    compression: LockedCompression | None = None
    order: StartOrder | None = None


@dataclass(frozen=True)
class FilesLayer:
    """The profile's own files and rendered templates; `folders` are those of the base image that they go into."""

    name: str
    key: Digest
    files: tuple[LockedLocal, ...]
    templates: tuple[LockedTemplate, ...]
    folders: tuple[LockedFolder, ...] = ()
    compression: LockedCompression | None = None


@dataclass(frozen=True)
class LinksLayer:
    """`/usr/local/cuda` of a CUDA release, `minor` as `13.2`: links into what the wheels bring."""

    name: str
    key: Digest
    wheels: tuple[LockedWheel, ...]
    minor: str
    python: str
    compression: LockedCompression | None = None


@dataclass(frozen=True)
class NixLayer:
    """Paths of a Nix store, or links into some; `folders` are those of the base image that they go into."""

    name: str
    key: Digest
    paths: tuple[LockedNixPath, ...]
    links: tuple[LockedNixLink, ...] = ()
    folders: tuple[LockedFolder, ...] = ()
    compression: LockedCompression | None = None


Layer = NixLayer | BaseLayer | EnvironmentLayer | SystemLayer | WheelLayer | LinksLayer | FilesLayer


@dataclass(frozen=True)
class PlatformPlan:
    """The image of one platform: its layers, bottom first, and its configuration. On top of an image (`base`), what else that
    says of containers, and its history, are kept. `annotations` are of the manifest."""

    platform: Platform
    layers: tuple[Layer, ...]
    config: Execution
    base: LockedImage | None = None
    annotations: tuple[tuple[str, str], ...] = ()
    """Those of its manifest, beside the plan's: what it asks of GPUs, and what it stands on."""
    reads: LockedTemplate | None = None
    """What its start is known to read."""


@dataclass(frozen=True)
class Plan:
    """What will be built; `created` is an RFC 3339 time."""

    name: str
    created: str
    platforms: tuple[PlatformPlan, ...]
    soci: SociSettings
    annotations: tuple[tuple[str, str], ...] = ()
    """Those of every manifest: the image's models, by the digests of their artifacts."""


def media_type(layer: Layer) -> str:
    """What a manifest says that a layer is."""
    if isinstance(layer, BaseLayer):
        return layer.media_type
    return layer.compression.media_type if layer.compression else spec.LAYER_GZIP


def has_table(layer: Layer) -> bool:
    """Whether a layer is eStargz, whose table its descriptor names."""
    compression = None if isinstance(layer, BaseLayer) else layer.compression
    return compression is not None and compression.kind == "estargz"


def inputs(layer: Layer) -> tuple[tuple[str, int], ...]:
    """What goes into a layer: (name and version, bytes of the input)."""
    if isinstance(layer, BaseLayer):
        return ((f"{layer.file.path} {layer.file.digest.short}", layer.file.size),)
    if isinstance(layer, EnvironmentLayer):
        return ()
    if isinstance(layer, SystemLayer):
        return tuple((f"{deb.name} {deb.version}", deb.file.size) for deb in layer.packages)
    if isinstance(layer, WheelLayer):
        return tuple((f"{wheel.name} {wheel.version}", wheel.file.size) for wheel in layer.wheels)
    if isinstance(layer, LinksLayer):
        return ()
    if isinstance(layer, NixLayer):
        return tuple((path.name[33:], path.size) for path in layer.paths)
    files = tuple((file.to, file.size or 0) for file in layer.files)
    return files + tuple((template.to, template.size) for template in layer.templates)


def weight(layer: Layer) -> int:
    """About how long packing takes, as bytes of one large wheel: many small wheels hold many modules to compile."""
    size = sum(size for _, size in inputs(layer))
    return size * 5 if isinstance(layer, WheelLayer) and len(layer.wheels) > 1 else size


def files(layer: Layer) -> tuple[LockedFile, ...]:
    """The files of origins that packing a layer reads, each once."""
    if isinstance(layer, BaseLayer):
        return (layer.file,)
    if isinstance(layer, SystemLayer):
        return tuple(deb.file for deb in layer.packages)
    if isinstance(layer, WheelLayer):
        debs = layer.bytecode.packages if layer.bytecode else ()
        return (*(wheel.file for wheel in layer.wheels), *(deb.file for deb in debs))
    if isinstance(layer, LinksLayer):
        return tuple(wheel.file for wheel in layer.wheels)
    if isinstance(layer, NixLayer):
        return tuple(map(nix_file, layer.paths))
    return ()


def nix_file(path: LockedNixPath) -> LockedFile:
    """The archive of a path, whose digest Nix calls narHash, as a file of an origin without addresses."""
    return LockedFile(NIX_ORIGIN, path.name, path.sha256, path.size)
