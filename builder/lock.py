"""The lock: every input of every platform by digest, and everything else that decides the image's bytes.

Canonical JSON beside the profile, `NAME.lock.json`, made to be read in a diff. It names no host: an
input is an origin and a path, and the user's configuration says where an origin is found.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field

from builder import baseimage, documents
from builder.baseimage import LockedImage
from builder.errors import BuilderError
from builder.gpu.values import GpuContract
from builder.oci.config import Execution
from builder.oci.digest import Digest
from builder.oci.spec import Platform

_SHA256 = re.compile(r"[0-9a-f]{64}")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ")
_MODE = re.compile(r"0[0-7]{3,4}")
_RELEASE = re.compile(r"[1-9]\d{0,3}\.\d{1,4}\.\d{1,4}(\.\d{1,4})?")
_PYTHON = re.compile(r"3\.\d{1,2}")
_WHEEL = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+!-]*\.whl")

_ARCHITECTURE = re.compile(r"(?:sm|compute)_\d{2,4}[af]?")
_NUMBERS = re.compile(r"\d{1,4}(?:\.\d{1,4}){0,3}")
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]*")

FORMAT = 1
"""The number of the rules that turn a lock into bytes. A change of any output byte raises it."""


@dataclass(frozen=True, order=True)
class LockedFile:
    """Bytes that an origin serves: `origin` is a configured name (`debian`, `debian-security`, `pypi`), `path` is
    the file's path below it (Debian: as in Packages' Filename; wheels: the file name)."""

    origin: str
    path: str
    sha256: str
    size: int

    @property
    def digest(self) -> Digest:
        return Digest(self.sha256)


@dataclass(frozen=True, order=True)
class LockedDeb:
    """One Debian binary package."""

    name: str
    version: str
    architecture: str
    file: LockedFile


@dataclass(frozen=True, order=True)
class LockedRelease:
    """One InRelease that was verified: which suite of which origin, and the digest of the signed file."""

    origin: str
    suite: str
    sha256: str


@dataclass(frozen=True)
class LockedDebian:
    """The Debian part of one platform; `request` is the digest of what was asked for."""

    suite: str
    request: str
    releases: tuple[LockedRelease, ...]
    packages: tuple[LockedDeb, ...]


@dataclass(frozen=True, order=True)
class LockedWheel:
    """One wheel; `name` is normalised (PEP 503), the file name is in `file.path`. `drop` are patterns of what is left out
    of it, sorted."""

    name: str
    version: str
    file: LockedFile
    drop: tuple[str, ...] = ()


@dataclass(frozen=True)
class LockedPython:
    """The Python part of one platform.

    `version` is `3.11`; `executable` is the interpreter's absolute path in the image; `bytecode` says whether
    `.pyc` files are compiled, by that very interpreter, whose packages are `interpreter` (names in
    `LockedDebian.packages`: what has to be unpacked to run it, nothing else).
    """

    version: str
    executable: str
    bytecode: bool
    interpreter: tuple[str, ...]
    request: str
    wheels: tuple[LockedWheel, ...]


@dataclass(frozen=True)
class LockedCuda:
    """The CUDA part of one platform.

    `version` is the release of the table (`13.2.2`), `flavour` what it is composed of, never `auto`, and `reasons` why where
    the profile left it open; `request` is the digest of what was asked for. Where there is no Python, `wheels` are what
    CUDA is made of and `python` is the version `3.N` in the name of the folder that they are in; else both are empty.
    """

    version: str
    flavour: str
    request: str
    python: str = ""
    wheels: tuple[LockedWheel, ...] = ()
    reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class LockedPlatform:
    """All inputs of one platform; it stands on Debian packages or on an image."""

    platform: Platform
    debian: LockedDebian | None = None
    python: LockedPython | None = None
    cuda: LockedCuda | None = None
    gpu: GpuContract | None = None
    image: LockedImage | None = None

    @property
    def wheels(self) -> tuple[LockedWheel, ...]:
        """All wheels, of Python or of CUDA alone."""
        return self.python.wheels if self.python else self.cuda.wheels if self.cuda else ()


@dataclass(frozen=True, order=True)
class LockedLocal:
    """A file or symlink of the profile's folder: `source` relative to the folder of the profile that names it, `to`
    absolute in the image. A symlink has `target` and neither digest nor size."""

    to: str
    source: str
    mode: str
    sha256: str | None = None
    size: int | None = None
    target: str | None = None


@dataclass(frozen=True, order=True)
class LockedTemplate:
    """A rendered template: `sha256` and `size` are of the rendered text, `template` is the digest of its source."""

    to: str
    source: str
    mode: str
    template: str
    sha256: str
    size: int


@dataclass(frozen=True, order=True)
class LockedInclude:
    """A profile that this one extends, by the digest of its file's bytes."""

    source: str
    sha256: str


@dataclass(frozen=True, order=True)
class LockedModelFile:
    """One file of a model: `path` as `models.values.check_path` allows it, `size` in bytes."""

    path: str
    sha256: str
    size: int


@dataclass(frozen=True, order=True)
class LockedModel:
    """One model, and the artifact that it is published as.

    `source` is the profile's `from` without a host, and with the commit or digest that a name stood for; `request` is the digest
    of what was asked for. `files` are what the source gives, `wheel` is where they lie if they are in one. With a
    `precision`, `converted` is what is published in place of them, made by the rules of the number `converter`. `manifest` is the
    digest of the artifact's manifest, made by the rules of the number `format`.
    """

    name: str
    source: str
    request: str
    files: tuple[LockedModelFile, ...]
    manifest: str
    format: int
    wheel: LockedFile | None = None
    licenses: tuple[str, ...] = ()
    precision: str = ""
    converter: int | None = None
    converted: tuple[LockedModelFile, ...] = ()

    @property
    def published(self) -> tuple[LockedModelFile, ...]:
        """The files that the artifact holds."""
        return self.converted or self.files


@dataclass(frozen=True)
class SociSettings:
    """Which layers get a ztoc and how far apart its checkpoints are; both in bytes."""

    enabled: bool = True
    span_size: int = 4 << 20
    min_layer_size: int = 10 << 20


@dataclass(frozen=True)
class LockedStart:
    """What reads ahead when a container of `platform` starts: the launcher of the number `launcher`, and what it reads, as
    rendered files: the source of the latter is the trace, its `template` the digest of that."""

    platform: Platform
    launcher: int
    files: tuple[LockedTemplate, ...]


@dataclass(frozen=True)
class Lock:
    """Everything that decides the digests of an image. `profile` is the digest of the profile's value, `created` an
    RFC 3339 time in UTC decided when the lock is made, `values` are not kept: rendered templates are."""

    name: str
    profile: str
    created: str
    platforms: tuple[LockedPlatform, ...]
    includes: tuple[LockedInclude, ...] = ()
    files: tuple[LockedLocal, ...] = ()
    templates: tuple[LockedTemplate, ...] = ()
    models: tuple[LockedModel, ...] = ()
    start: LockedStart | None = None
    image: Execution = field(default_factory=Execution)
    soci: SociSettings = field(default_factory=SociSettings)
    format: int = FORMAT


class LockError(BuilderError):
    """A lock file is not one that Layerwright wrote."""

    hint = "take it from version control again, or delete it and run `build lock`"


def encode(lock: Lock) -> str:
    """The text of a lock file: equal locks have equal text."""
    return json.dumps(documents.dump(lock), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def parse(text: str, file: str) -> Lock:
    """The lock in the text of `file`.

    A lock of an older format is read, if its form is the same: it is stale, as `resolve.staleness` says. Raises
    `LockError` for a lock of a newer version, one that contradicts itself, and one that is not in the form that
    `encode` writes; `DocumentError` with every key and type that is wrong.
    """
    _check_format(text, file)
    lock = documents.load_json(Lock, text, file)
    problems = list(_problems(lock))
    if problems:
        lines = "".join(f"\n  {problem}" for problem in problems)
        raise LockError(f"{file}: these entries cannot be right:{lines}")
    if encode(lock) != text:
        raise LockError(f"{file}: it was edited by hand: it is not in the form that `build lock` writes")
    return lock


def _check_format(text: str, file: str) -> None:
    """A lock of a later format may have keys that this version does not know; that is not the user's mistake."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    found = document.get("format") if isinstance(document, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise LockError(
            f"{file}: it was made by a newer Layerwright, for format {found}; this one knows formats up to {FORMAT}",
            hint="upgrade Layerwright: pip install --upgrade layerwright",
        )


def _problems(lock: Lock) -> Iterator[str]:
    """What no lock of ours ever says."""
    if lock.format < 1:
        yield f"$.format: {lock.format} is no format"
    if not _TIME.fullmatch(lock.created):
        yield f"$.created: {lock.created!r} is no time like 2026-01-31T12:00:00Z"
    if not _DIGEST.fullmatch(lock.profile):
        yield f"$.profile: {lock.profile!r} is no sha256 digest"
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
    for name in _twice(model.name for model in lock.models):
        yield f"the model {name} is locked twice"
    for model in lock.models:
        yield from _model_problems(model)


def _platform_problems(platform: LockedPlatform, path: str) -> Iterator[str]:
    debs = platform.debian.packages if platform.debian else ()
    wheels = platform.wheels
    for name in (*_twice(deb.name for deb in debs), *_twice(wheel.name for wheel in wheels)):
        yield f"{path}: {name} is there twice"
    for name, file in [(deb.name, deb.file) for deb in debs] + [(wheel.name, wheel.file) for wheel in wheels]:
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
    if platform.image and platform.debian:
        yield f"{path}: a Debian and an image to stand on"
    if platform.image:
        yield from (f"{path}.image: {problem}" for problem in baseimage.problems(platform.image))
    if platform.python and not (platform.debian or platform.image):
        yield f"{path}: a Python without anything to stand on"
    if platform.python and not set(platform.python.interpreter) <= {deb.name for deb in debs}:
        yield f"{path}.python.interpreter: it names packages that are not locked"


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
