"""What no lock of ours ever says. Pure."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator

from builder import baseimage
from builder.gpu.values import GpuContract
from builder.lock.closure import CircleError, ordered
from builder.lock.values import (
    ADAPTIVE,
    Lock,
    LockedCompression,
    LockedCuda,
    LockedFile,
    LockedLocal,
    LockedModel,
    LockedModelFile,
    LockedNix,
    LockedPlatform,
    LockedTemplate,
)

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MODE = re.compile(r"0[0-7]{3,4}")
_RELEASE = re.compile(r"[1-9]\d{0,3}\.\d{1,4}\.\d{1,4}(\.\d{1,4})?")
_PYTHON = re.compile(r"3\.\d{1,2}")
_WHEEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+!-]*\.whl")
_ARCHITECTURE = re.compile(r"(?:sm|compute)_\d{2,4}[af]?")
_NUMBERS = re.compile(r"\d{1,4}(?:\.\d{1,4}){0,3}")
_NIX_NAME = re.compile(r"[0-9a-df-np-sv-z]{32}-[0-9A-Za-z+_?=.-]{1,211}")
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")


def problems(lock: Lock) -> Iterator[str]:
    """What no lock of ours ever says."""
    if lock.format < 1:
        yield f"$.format: {lock.format} is no format"
    if not _TIME.fullmatch(lock.created):
        yield f"$.created: {lock.created!r} is no time like 2026-01-31T12:00:00Z"
    if not _DIGEST.fullmatch(lock.profile):
        yield f"$.profile: {lock.profile!r} is no sha256 digest"
    if lock.soci.spans not in ("", *ADAPTIVE):
        yield f"$.soci.spans: {lock.soci.spans!r} is no rule that this version knows"
    if lock.soci.prefetch not in ("", "traced"):
        yield f"$.soci.prefetch: {lock.soci.prefetch!r} is no rule that this version knows"
    if lock.soci.mount not in ("", "parallel"):
        yield f"$.soci.mount: {lock.soci.mount!r} is no way that this version knows"
    for number, platform in enumerate(lock.platforms):
        yield from _platform_problems(platform, f"$.platforms[{number}]")
    local: list[LockedLocal | LockedTemplate] = [
        *lock.files,
        *lock.templates,
        *(lock.start.files if lock.start else ()),
    ]
    for place in _twice(item.to for item in local):
        yield f"{place} is locked twice"
    for item in local:
        yield from _place_problems(item)
    if lock.compression and lock.compression.kind == "estargz" and lock.soci.enabled:
        yield "$.soci: eStargz layers have no SOCI index"
    if lock.compression:
        yield from _compression_problems(lock.compression)
    for order in lock.start.order if lock.start else ():
        if not _SHA256.fullmatch(order.files) or order.count < 1:
            yield f"$.start.order: {order.layer}: no sha256, or no number of files"
    for name in _twice(order.layer for order in (lock.start.order if lock.start else ())):
        yield f"$.start.order: {name} is there twice"
    for name in _twice(model.name for model in lock.models):
        yield f"the model {name} is locked twice"
    for model in lock.models:
        yield from _model_problems(model)


def _platform_problems(platform: LockedPlatform, path: str) -> Iterator[str]:
    debs = platform.debian.packages if platform.debian else ()
    wheels = platform.wheels
    for name in (*_twice(deb.name for deb in debs), *_twice(wheel.name for wheel in wheels)):
        yield f"{path}: {name} is there twice"
    compiler = platform.python.compiler if platform.python else ()
    for name, file in [(deb.name, deb.file) for deb in (*debs, *compiler)] + [
        (wheel.name, wheel.file) for wheel in wheels
    ]:
        if not _SHA256.fullmatch(file.sha256) or file.size < 0:
            yield f"{path}: {name}: no sha256, or no size"
        if any(part in ("", ".", "..") for part in file.path.split("/")):
            yield f"{path}: {name}: {file.path!r} is no path of an origin"
    for wheel in wheels:
        if not _WHEEL.fullmatch(wheel.file.path):
            yield f"{path}: {wheel.name}: {wheel.file.path!r} is no name of a wheel"
        if list(wheel.drop) != sorted(set(wheel.drop)) or "" in wheel.drop:
            yield f"{path}: {wheel.name}: its patterns are not sorted, each there once"
    if platform.gpu:
        yield from _gpu_problems(platform.gpu, f"{path}.gpu")
    if platform.cuda:
        yield from _cuda_problems(platform, platform.cuda, f"{path}.cuda")
    if platform.nix:
        yield from _nix_problems(platform.nix, f"{path}.nix")
    if platform.image and platform.debian:
        yield f"{path}: a Debian and an image to stand on"
    if platform.image:
        yield from (f"{path}.image: {problem}" for problem in baseimage.problems(platform.image))
    if platform.python and not (platform.debian or platform.image):
        yield f"{path}: a Python without anything to stand on"
    if compiler and (platform.debian or not (platform.python and platform.python.bytecode)):
        yield f"{path}.python.compiler: there is nothing that it would compile"
    if platform.python and not set(platform.python.interpreter) <= {deb.name for deb in debs}:
        yield f"{path}.python.interpreter: it names packages that are not locked"


def _compression_problems(compression: LockedCompression) -> Iterator[str]:
    kind, version, level = compression.kind, compression.version, compression.level
    if kind == "estargz":
        if not _NUMBERS.fullmatch(version) or level is not None:
            yield f"$.compression: {version!r} is no number of rules of eStargz layers"
    elif kind not in ("zstd", "none"):
        yield f"$.compression.kind: {kind!r} is no compression"
    elif kind == "none" and (version or level is not None):
        yield "$.compression: there is no version or level of none"
    elif kind == "zstd" and not (_NUMBERS.fullmatch(version) and level is not None and 1 <= level <= 22):
        yield f"$.compression: {version!r} at level {level} is no zstd"


def _model_problems(model: LockedModel) -> Iterator[str]:
    if not _DIGEST.fullmatch(model.manifest) or not _DIGEST.fullmatch(model.request):
        yield f"model {model.name}: no digest of its manifest, or of its request"
    for listed in (model.files, model.converted):
        for path in _twice(file.path for file in listed):
            yield f"model {model.name}: {path!r} is locked twice"
    files: list[LockedModelFile | LockedFile] = [*model.files, *model.converted]
    for file in [*files, model.wheel] if model.wheel else files:
        if not _SHA256.fullmatch(file.sha256) or file.size < 0:
            yield f"model {model.name}: {file.path!r}: no sha256, or no size"
        if any(part in ("", ".", "..") for part in file.path.split("/")):
            yield f"model {model.name}: {file.path!r} is no path of a file"


def _gpu_problems(gpu: GpuContract, path: str) -> Iterator[str]:
    """What is in it goes into labels and variables as it stands."""
    names = [*gpu.native, *gpu.ptx, *gpu.partly, *(name for item in gpu.code for name in item.sass + item.ptx)]
    for name in names:
        if not _ARCHITECTURE.fullmatch(name):
            yield f"{path}: {name!r} is no architecture of a GPU"
    for version in filter(None, (gpu.cuda, gpu.driver, (gpu.require or "").removeprefix("cuda>="))):
        if not _NUMBERS.fullmatch(version):
            yield f"{path}: {version!r} is no version"
    for item in gpu.code:
        if not _PROJECT.fullmatch(item.project) or not _NUMBERS.fullmatch(item.isa or "1"):
            yield f"{path}.code: {item.project!r} is no name of a package, or {item.isa!r} no version"


def _nix_problems(nix: LockedNix, path: str) -> Iterator[str]:
    """Names become folders of the image, and what a path needs decides its layer."""
    names = {item.name for item in nix.paths}
    if [item.name for item in nix.paths] != sorted(names):
        yield f"{path}: its paths are not sorted, each there once"
    for item in nix.paths:
        if not _NIX_NAME.fullmatch(item.name):
            yield f"{path}: {item.name!r} is no name of a path of a Nix store"
        if not _SHA256.fullmatch(item.sha256) or item.size < 0:
            yield f"{path}: {item.name}: no narHash, or no size"
        if list(item.references) != sorted(set(item.references)) or item.name in item.references:
            yield f"{path}: {item.name}: its references are not sorted, each there once, without itself"
    needed = {name for item in nix.paths for name in item.references} | {
        name for root in nix.roots for name in root.outputs
    }
    if missing := sorted(needed - names):
        yield f"{path}: {missing[0]} is needed and not locked"
    else:
        try:
            list(ordered(nix.paths))
        except CircleError as error:
            yield f"{path}: {error}"
    links = [link for root in nix.roots for link in root.links]
    for to in _twice(link.to for link in links):
        yield f"{path}: {to} is locked twice"
    for link in links:
        parts, target = link.to.split("/"), link.target.split("/")
        if parts[0] or len(parts) < 2 or any(part in ("", ".", "..") for part in parts[1:]):
            yield f"{path}: {link.to!r} is no absolute path in an image"
        if target[:3] != ["", "nix", "store"] or target[3:4] == [] or target[3] not in names or ".." in target:
            yield f"{path}: {link.to}: {link.target!r} is in no path that is locked"


def _cuda_problems(platform: LockedPlatform, cuda: LockedCuda, path: str) -> Iterator[str]:
    if not _RELEASE.fullmatch(cuda.version):
        yield f"{path}.version: {cuda.version!r} is no release of CUDA"
    if cuda.flavour not in ("none", "base", "runtime", "devel"):
        yield f"{path}.flavour: {cuda.flavour!r} is no flavour"
    if platform.python and (cuda.python or cuda.wheels):
        yield f"{path}: wheels that are not those of Python"
    if not platform.python and not _PYTHON.fullmatch(cuda.python):
        yield f"{path}.python: {cuda.python!r} is no version like 3.11"


def _twice(names: Iterable[str]) -> list[str]:
    return sorted(name for name, count in Counter(names).items() if count > 1)


def _place_problems(item: LockedLocal | LockedTemplate) -> Iterator[str]:
    parts = item.to.split("/")
    if parts[0] or len(parts) < 2 or any(part in ("", ".", "..") for part in parts[1:]):
        yield f"{item.to!r} is no absolute path in an image"
    if not _MODE.fullmatch(item.mode):
        yield f"{item.to}: {item.mode!r} is no mode"
    is_link = isinstance(item, LockedLocal) and item.target is not None
    if is_link == (item.sha256 is not None) or is_link == (item.size is not None):
        yield f"{item.to}: it is neither a file nor a symlink"
    if item.sha256 is not None and not _SHA256.fullmatch(item.sha256):
        yield f"{item.to}: no sha256"
