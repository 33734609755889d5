"""NVIDIA's own table of what a CUDA release is made of: the project `cuda-toolkit` on the package index.

A release of it is a wheel without files. Its extras are the components of the toolkit, and its metadata pins each of them
(`nvidia-cublas==13.4.1.3.*; extra == "cublas"`). cuDNN and NCCL are not in it.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass

from packaging.markers import Environment
from packaging.requirements import InvalidRequirement, Requirement
from packaging.utils import InvalidWheelFilename, parse_wheel_filename
from packaging.version import Version

PROJECT = "cuda-toolkit"
OLDEST = Version("12.0")
"""Older releases are of other packages, most of them without files."""
_FIELD = re.compile(r"^(Name|Version|Requires-Dist|Provides-Extra): *(.*)$", re.MULTILINE)
_MAX_REQUIREMENTS = 4096
_MAX_LINE = 4096


class TableError(ValueError):
    """The metadata of a release is not what it should be; the message says what."""


@dataclass(frozen=True)
class Release:
    """One CUDA release: `components` are the requirements of each extra, without their markers, on one platform."""

    version: Version
    components: Mapping[str, tuple[str, ...]]

    @property
    def minor(self) -> str:
        """`13.2`: what drivers and folders are named by."""
        return minor(self.version)

    def constraints(self) -> tuple[str, ...]:
        """What the release says of itself and of all components, sorted."""
        pins = {line for name, lines in self.components.items() if name != "all" for line in lines}
        return tuple(sorted({f"{PROJECT}=={self.version}", *pins}))


def minor(version: Version) -> str:
    """The first two numbers of a version."""
    return f"{version.major}.{version.minor}"


def short(version: Version) -> str:
    """A version as NVIDIA writes it: the table's `12.8.2.0` is CUDA 12.8.2."""
    return ".".join(map(str, (*version.release, 0)[:3]))


def releases(files: Iterable[str]) -> dict[Version, str]:
    """The releases that an index offers, oldest first, each with the name of its wheel: no pre-releases, and none older
    than `OLDEST`."""
    found: dict[Version, str] = {}
    for name in sorted(files):
        if not name.endswith(".whl"):
            continue
        try:
            project, version, _, _ = parse_wheel_filename(name)
        except InvalidWheelFilename:
            continue
        if project == PROJECT and not version.is_prerelease and version >= OLDEST:
            found[version] = name
    return dict(sorted(found.items()))


def matching(asked: str, known: Iterable[Version]) -> list[Version]:
    """The releases that `13.2` or `13.2.1` names, newest first."""
    wanted = Version(asked).release
    return sorted((version for version in known if version.release[: len(wanted)] == wanted), reverse=True)


def nearest(asked: str, known: Collection[Version]) -> str | None:
    """The known minor release that is nearest to `asked`, of the same major if there is one."""
    major, number = (*Version(asked).release, 0)[:2]
    near = sorted(known, key=lambda v: (abs(v.major - major), abs(v.minor - number) if v.major == major else -v.minor))
    return minor(near[0]) if near else None


def parse(metadata: str, version: Version, environment: Environment) -> Release:
    """The release in the METADATA of its wheel, for the platform of `environment`. Raises `TableError`."""
    fields: dict[str, list[str]] = {}
    for name, value in _FIELD.findall(metadata.partition("\n\n")[0]):
        fields.setdefault(name, []).append(value.strip())
    if [Version(text) for text in fields.get("Version", ()) if _is_version(text)] != [version]:
        raise TableError(f"it says that it is version {', '.join(fields.get('Version', ())) or 'nothing'}")
    lines = fields.get("Requires-Dist", [])
    if len(lines) > _MAX_REQUIREMENTS or any(len(line) > _MAX_LINE for line in lines):
        raise TableError(f"it has {len(lines)} requirements, the longest of {max(map(len, lines))} characters")
    requirements = [_requirement(line) for line in lines]
    components = {}
    for extra in fields.get("Provides-Extra", ()):
        chosen = [each for each in requirements if each.marker and _applies(each, environment, extra)]
        components[extra] = tuple(sorted(f"{each.name}{each.specifier}" for each in chosen))
    if not components:
        raise TableError("it names no components")
    return Release(version, {extra: lines for extra, lines in components.items() if lines})


def _requirement(line: str) -> Requirement:
    try:
        requirement = Requirement(line)
    except (InvalidRequirement, RecursionError) as error:
        raise TableError(f"{line[:200]!r} is no requirement") from error
    if requirement.url is not None:
        raise TableError(f"{requirement.name} is at an address and not on the index")
    return requirement


def _applies(requirement: Requirement, environment: Environment, extra: str) -> bool:
    assert requirement.marker
    values: dict[str, str] = {**environment, "extra": extra}  # type: ignore[dict-item]
    return requirement.marker.evaluate(values)


def _is_version(text: str) -> bool:
    try:
        Version(text)
    except ValueError:
        return False
    return True
