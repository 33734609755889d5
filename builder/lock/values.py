"""The values of a lock: every input of every platform by digest, and everything else that decides the image's bytes."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

from builder.baseimage import LockedImage
from builder.gpu.values import GpuContract
from builder.lock.closure import LockedNixPath
from builder.oci import spec
from builder.oci.config import Execution
from builder.oci.digest import Digest
from builder.oci.spec import Platform

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
    `LockedDebian.packages`: what has to be unpacked to run it, nothing else). On top of an image, whose programs are not
    run, it is Debian's interpreter of the same version: its packages are `compiler`, and are not in the image.
    """

    version: str
    executable: str
    bytecode: bool
    interpreter: tuple[str, ...]
    request: str
    wheels: tuple[LockedWheel, ...]
    compiler: tuple[LockedDeb, ...] = ()


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


@dataclass(frozen=True, order=True)
class LockedNixLink:
    """A symlink in the image: `to` is its absolute path, `target` an absolute path below `/nix/store`."""

    to: str
    target: str


@dataclass(frozen=True, order=True)
class LockedNixRoot:
    """One reference of a profile, and what it stood for: `source` is the reference without a host, `request` the digest of what was
    asked for, `outputs` the names of paths.

    Where the reference is to the profile's own files, `expressions` is the digest of the Nix files there. Of a flake, `flake` is
    the narHash of its source as hex, `revision` what its version control calls it, if it has one, and `inputs` the digest of
    its own lock.
    """

    source: str
    request: str
    outputs: tuple[str, ...]
    links: tuple[LockedNixLink, ...] = ()
    expressions: str = ""
    flake: str = ""
    revision: str = ""
    inputs: str = ""


@dataclass(frozen=True)
class LockedNix:
    """What one platform has from Nix: what was asked for, in the profile's order, and the closure of all of it."""

    roots: tuple[LockedNixRoot, ...]
    paths: tuple[LockedNixPath, ...]


@dataclass(frozen=True)
class LockedPlatform:
    """All inputs of one platform; it stands on Debian packages, on an image or on nothing."""

    platform: Platform
    debian: LockedDebian | None = None
    python: LockedPython | None = None
    cuda: LockedCuda | None = None
    gpu: GpuContract | None = None
    image: LockedImage | None = None
    nix: LockedNix | None = None

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
    overflow: str = ""
    converter: int | None = None
    converted: tuple[LockedModelFile, ...] = ()

    @property
    def published(self) -> tuple[LockedModelFile, ...]:
        """The files that the artifact holds."""
        return self.converted or self.files


ADAPTIVE = ("adaptive", "adaptive-2")
"""The rules for spans that depend on what a start reads, the newest last; those that locks name stay as they are."""


@dataclass(frozen=True)
class SociSettings:
    """Which layers get a ztoc and how far apart its checkpoints are; both in bytes. `spans` is one of `ADAPTIVE` where they are
    small where a start reads, and large elsewhere; `platform` is `unknown` where the index's entry is of no platform; `prefetch`
    is `traced` where the index says what a start reads, too; `mount` is `parallel` where layers tell what nodes need to mount
    them at once; else nothing."""

    enabled: bool = True
    span_size: int = 4 << 20
    min_layer_size: int = 10 << 20
    spans: str = ""
    platform: str = ""
    prefetch: str = ""
    mount: str = ""


@dataclass(frozen=True)
class LockedCompression:
    """How the layers that are made are compressed, where that is not one gzip member: `kind` is `zstd`, `none` or `estargz`. Of
    zstd it says the `version` of the library and the `level`: other ones have other bytes; of eStargz the number of its rules."""

    kind: str
    version: str = ""
    level: int | None = None

    @property
    def media_type(self) -> str:
        """That of the layers."""
        return {"zstd": spec.LAYER_ZSTD, "none": spec.LAYER}.get(self.kind, spec.LAYER_GZIP)


@dataclass(frozen=True, order=True)
class LockedOrder:
    """What comes first in a layer: `layer` is the digest of the large wheel that it is made of, or `debian`, or `wheels` for the
    other wheels. `files` is the digest of the paths of `count` files, sorted, each with a newline at its end."""

    layer: str
    files: str
    count: int


@dataclass(frozen=True)
class LockedStart:
    """What the start of a container of `platform` reads, as rendered files: the ranges, whose source is the trace and whose
    `template` is the digest of that, and before them the launcher of the number `launcher` that reads ahead (0: none).
    `order` is of layers in which what is read comes first."""

    platform: Platform
    launcher: int
    files: tuple[LockedTemplate, ...]
    order: tuple[LockedOrder, ...] = ()

    @property
    def unordered(self) -> LockedStart:
        """The same without an order."""
        return replace(self, order=())


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
    compression: LockedCompression | None = None
    format: int = FORMAT
