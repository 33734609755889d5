"""The lock: every input of every platform by digest, and everything else that decides the image's bytes.

Canonical JSON beside the profile, `NAME.lock.json`, made to be read in a diff. It names no host: an
input is an origin and a path, and the user's configuration says where an origin is found.
"""

from __future__ import annotations

from dataclasses import dataclass, field

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
    """One wheel; `name` is normalised (PEP 503), the file name is in `file.path`."""

    name: str
    version: str
    file: LockedFile


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
class LockedPlatform:
    """All inputs of one platform."""

    platform: Platform
    debian: LockedDebian | None = None
    python: LockedPython | None = None


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


@dataclass(frozen=True)
class SociSettings:
    """Which layers get a ztoc and how far apart its checkpoints are; both in bytes."""

    enabled: bool = True
    span_size: int = 4 << 20
    min_layer_size: int = 10 << 20


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
    image: Execution = field(default_factory=Execution)
    soci: SociSettings = field(default_factory=SociSettings)
    format: int = FORMAT
