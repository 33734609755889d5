"""A base image as a lock holds it, and what an image on top of it inherits, as one that a Dockerfile builds does. Pure."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from builder.oci import spec
from builder.oci.config import Execution
from builder.oci.digest import Digest

ORIGIN = "image"
"""The origin of a base image's layers: the place that the profile names, or any other that has the same blobs."""

COMPRESSIONS: Mapping[str, str] = {spec.LAYER_GZIP: "gzip", spec.LAYER_ZSTD: "zstd", spec.LAYER: ""}
"""What layers may be, by media type, and how each is compressed."""

SCHEMES = ("oci:", "oci-archive:", "docker-archive:")
"""What names of images in files and folders begin with."""

_FLAVOURS: Mapping[str, frozenset[str]] = {
    "devel": frozenset({"NV_CUDA_CUDART_DEV_VERSION", "NV_NVML_DEV_VERSION"}),
    "runtime": frozenset({"NV_CUDA_LIB_VERSION", "NV_LIBCUBLAS_VERSION", "NV_LIBNPP_VERSION", "NVIDIA_PRODUCT_NAME"}),
}
"""The variables that a flavour of nvidia/cuda adds to those of the one below it."""

_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_MODE = re.compile(r"[0-7]{4}")


@dataclass(frozen=True, order=True)
class LockedBaseLayer:
    """A layer of a base image, taken as it is; `size` is its blob's in bytes, `diff_id` the digest of its tar, `table` that of an
    eStargz layer's table."""

    media_type: str
    sha256: str
    size: int
    diff_id: str
    table: str = ""


@dataclass(frozen=True, order=True)
class LockedFolder:
    """A folder of the base image that files of the profile go into: where it really is, if `path` leads over symlinks, its mode
    and its owner. Those that are where they are called and belong to root with mode 0755 are not listed."""

    path: str
    real: str
    mode: str
    uid: int = 0
    gid: int = 0


@dataclass(frozen=True)
class LockedImage:
    """The base image of one platform: `manifest` and `config` are its digests, layers come bottom first.

    `source` is how the profile calls it, without a registry's host; `request` is the digest of what was asked for. The
    image on top inherits `execution`, what else its configuration says of containers (`more`), and its `history`, which has
    one entry that is not empty for each layer. The rest is what its files say, where they had to be looked at: the
    `system`'s name for people and its `distribution` (`debian-12`), its Debian `packages` by name, and the source package of
    those that are not called like theirs; the version of glibc, the folders that its loader's configuration names
    (`search`), and the full version of the interpreter that the profile's packages are for, with its path.
    """

    source: str
    request: str
    manifest: str
    config: str
    layers: tuple[LockedBaseLayer, ...]
    execution: Execution = field(default_factory=Execution)
    more: Mapping[str, Any] = field(default_factory=dict)
    history: tuple[Mapping[str, Any], ...] = ()
    system: str = ""
    distribution: str = ""
    packages: tuple[tuple[str, str], ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    libc: str = ""
    search: tuple[str, ...] = ()
    python: str = ""
    executable: str = ""
    folders: tuple[LockedFolder, ...] = ()

    @property
    def name(self) -> str:
        """What `--upgrade` calls it: the last part of the repository, without a tag."""
        return self.source.partition("@")[0].partition(":")[0].rpartition("/")[2]

    def place(self, path: str) -> str:
        """Where a file of the profile really goes: symlinks of the base image are followed, but for the last name."""
        reals = {folder.path: folder.real for folder in self.folders}
        above, _, name = path.rpartition("/")
        below = f"/{name}"
        while above:
            if above in reals:
                return f"{reals[above].rstrip('/')}{below}"
            above, _, name = above.rpartition("/")
            below = f"/{name}{below}"
        return path


@dataclass(frozen=True)
class CudaImage:
    """What an image of nvidia/cuda says of itself: the release of CUDA, the flavour, and what comes with that."""

    version: str
    flavour: str
    cudnn: str = ""
    nccl: str = ""

    def __str__(self) -> str:
        more = [f"cuDNN {self.cudnn}" if self.cudnn else "", f"NCCL {self.nccl}" if self.nccl else ""]
        return ", ".join(filter(None, (f"nvidia/cuda {self.version} {self.flavour}", *more)))


def cuda(image: LockedImage) -> CudaImage | None:
    """The CUDA of a base image that is nvidia/cuda, or made from it: their variables say what they are made of."""
    env = dict(image.execution.env)
    if not env.get("CUDA_VERSION") or not any(name.startswith(("NV_CUDA_", "NVIDIA_REQUIRE_CUDA")) for name in env):
        return None
    flavour = next((name for name, signs in _FLAVOURS.items() if signs & env.keys()), "base")
    cudnn, nccl = env.get("NV_CUDNN_VERSION", ""), env.get("NCCL_VERSION", "")
    return CudaImage(env["CUDA_VERSION"], flavour, cudnn.partition("-")[0], nccl.partition("-")[0])


def words(image: LockedImage) -> str:
    """A base image for people, in one line."""
    known = [
        image.system,
        f"Python {image.python}" if image.python else "",
        f"glibc {image.libc}" if image.libc else "",
    ]
    said = ", ".join(filter(None, (*known, str(cuda(image) or ""))))
    return f"{image.source} ({image.manifest[7:19]})" + (f": {said}" if said else "")


def inherited(base: Execution, own: Execution, path: Sequence[str]) -> Execution:
    """How an image starts on top of another one: what it says itself, and else what the base says.

    An entrypoint of its own makes the base's arguments meaningless. The folders of `path` stand before the base's PATH.
    """
    env = dict(base.env)
    env["PATH"] = ":".join([*path, env.get("PATH") or spec.PATH])
    cmd = own.cmd if own.cmd or own.entrypoint else base.cmd
    return replace(
        own,
        entrypoint=own.entrypoint or base.entrypoint,
        cmd=cmd,
        env=tuple(sorted((env | dict(own.env)).items())),
        user=own.user or base.user,
        workdir=own.workdir or base.workdir,
        ports=tuple(dict.fromkeys((*base.ports, *own.ports))),
        labels=tuple(sorted((dict(base.labels) | dict(own.labels)).items())),
        stop_signal=own.stop_signal or base.stop_signal,
    )


def hostless(reference: str) -> str:
    """How a profile calls an image, without the host of its registry: what an image is does not depend on where it is."""
    if reference.startswith(SCHEMES):
        return reference
    return reference.partition("/")[2]


def problems(image: LockedImage) -> Iterator[str]:
    """What no lock of ours says of a base image."""
    for name, text in (("request", image.request), ("manifest", image.manifest), ("config", image.config)):
        if not _DIGEST.fullmatch(text):
            yield f"{name}: {text!r} is no sha256 digest"
    if any(part in ("", ".", "..") for part in image.source.split("/")):
        yield f"source: {image.source!r} is no name of an image"
    for number, layer in enumerate(image.layers):
        if not _SHA256.fullmatch(layer.sha256) or not _DIGEST.fullmatch(layer.diff_id) or layer.size < 0:
            yield f"layers[{number}]: no sha256, no diff_id, or no size"
        if layer.media_type not in COMPRESSIONS:
            yield f"layers[{number}]: {layer.media_type!r} is no media type of a layer"
        if layer.table and not _DIGEST.fullmatch(layer.table):
            yield f"layers[{number}]: {layer.table!r} is no digest of a table"
    if sum(not step.get("empty_layer") for step in image.history) != len(image.layers):
        yield "history: it does not have an entry for each layer"
    for folder in image.folders:
        if not _MODE.fullmatch(folder.mode) or min(folder.uid, folder.gid) < 0:
            yield f"{folder.path}: no mode, or no owner"
        for path in (folder.path, folder.real):
            if path and (path[0] != "/" or any(part in ("", ".", "..") for part in path.split("/")[1:])):
                yield f"{path!r} is no absolute path in an image"


def digest_of(layer: LockedBaseLayer) -> Digest:
    """The digest of a layer's blob."""
    return Digest(layer.sha256)
