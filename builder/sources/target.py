"""The environment that wheels are chosen for: the image's interpreter and C library, never the building machine's."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

from packaging.markers import Environment
from packaging.tags import Tag, compatible_tags, cpython_tags
from packaging.version import Version

from builder.baseimage import LockedImage
from builder.errors import BuilderError
from builder.lock import LockedDebian
from builder.oci.spec import Platform

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}
_OLDEST_GLIBC = {"x86_64": 5, "aarch64": 17}
"""PEP 600: manylinux1 is glibc 2.5; there is no manylinux for aarch64 below 2.17."""
_LEGACY = {17: "manylinux2014", 12: "manylinux2010", 5: "manylinux1"}
_UV_GLIBC = (17, 28, *range(31, 41))
"""The `*-manylinux_2_N` names that `uv --python-platform` knows."""


@dataclass(frozen=True)
class Target:
    """CPython `full_version` (`python` is its first two numbers) on Linux `platform` with glibc `glibc`.

    Raises `BuilderError` for a platform that no wheels are made for.
    """

    python: str
    full_version: str
    platform: Platform
    glibc: tuple[int, int]

    def __post_init__(self) -> None:
        if self.platform.os != "linux" or self.platform.architecture not in _MACHINES:
            known = ", ".join(f"linux/{architecture}" for architecture in _MACHINES)
            raise BuilderError(
                f"{self.platform}: Python packages cannot be chosen for this platform", hint=f"choose from {known}"
            )
        if self.glibc[0] != 2 or self.glibc[1] < _UV_GLIBC[0]:
            raise BuilderError(f"glibc {self.glibc[0]}.{self.glibc[1]}: wheels need glibc 2.17 or newer")
        if Version(self.full_version).release[:2] != self.version:
            raise BuilderError(f"Python {self.full_version} is not a release of Python {self.python}")

    def __str__(self) -> str:
        return f"Python {self.python} on {self.platform} (glibc {self.glibc[0]}.{self.glibc[1]})"

    @property
    def version(self) -> tuple[int, int]:
        major, minor = self.python.split(".")
        return int(major), int(minor)

    @property
    def machine(self) -> str:
        """What `platform.machine()` says there."""
        return _MACHINES[self.platform.architecture]

    @property
    def uv_platform(self) -> str:
        """The newest name of `uv --python-platform` that this C library satisfies."""
        minor = max(known for known in _UV_GLIBC if known <= self.glibc[1])
        return f"{self.machine}-manylinux_2_{minor}"

    @cached_property
    def tags(self) -> tuple[Tag, ...]:
        """All wheel tags that install there, best first."""
        interpreter = "cp{}{}".format(*self.version)
        platforms = tuple(self._platforms())
        return (
            *cpython_tags(self.version, [interpreter], platforms),
            *compatible_tags(self.version, interpreter, platforms),
        )

    @cached_property
    def ranks(self) -> dict[Tag, int]:
        """The place of each tag in `tags`: lower is better."""
        return {tag: rank for rank, tag in reversed(list(enumerate(self.tags)))}

    def environment(self) -> Environment:
        """The values of environment markers (PEP 508) there; the kernel's are unknown, hence empty, as for uv."""
        return {
            "implementation_name": "cpython",
            "implementation_version": self.full_version,
            "os_name": "posix",
            "platform_machine": self.machine,
            "platform_python_implementation": "CPython",
            "platform_release": "",
            "platform_system": "Linux",
            "platform_version": "",
            "python_full_version": self.full_version,
            "python_version": self.python,
            "sys_platform": "linux",
        }

    def _platforms(self) -> Iterator[str]:
        for minor in range(self.glibc[1], _OLDEST_GLIBC[self.machine] - 1, -1):
            yield f"manylinux_2_{minor}_{self.machine}"
            if minor in _LEGACY:
                yield f"{_LEGACY[minor]}_{self.machine}"
        yield f"linux_{self.machine}"


def target_of(python: str, platform: Platform, base: LockedDebian | LockedImage) -> Target:
    """The target as the locked packages, or a base image, make it: the interpreter's own version, and its C library's."""
    if isinstance(base, LockedImage):
        libc_major, libc_minor = base.libc.split(".")
        return Target(python, base.python or f"{python}.0", platform, (int(libc_major), int(libc_minor)))
    versions = {deb.name: deb.version for deb in base.packages}
    full = _upstream(versions.get(f"python{python}", f"{python}.0"))
    libc = re.match(r"(\d+)\.(\d+)", _upstream(versions.get("libc6", "")))
    if not libc:
        raise BuilderError(f"Debian {base.suite}: what is locked of it has not the C library that wheels need (libc6)")
    return Target(python, full, platform, (int(libc[1]), int(libc[2])))


def _upstream(version: str) -> str:
    """The upstream part of a Debian version, as a release of Python: without epoch, revision and `~rc1` and the like."""
    return re.split(r"[-+~]", version.rpartition(":")[2])[0]
