"""A CUDA flavour becomes wheels, together with the Python packages: one resolution, held to one release of NVIDIA's table.

The release is the newest that goes with the Python packages. What they bring of CUDA by themselves is of the same release,
because all its components are constraints.
"""

from __future__ import annotations

import io
import zipfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from packaging.version import Version

from builder import process
from builder.cuda import flavours, table
from builder.cuda.flavours import Asked
from builder.cuda.table import PROJECT, Release, TableError
from builder.errors import BuilderError, FetchError, HostileInputError
from builder.lock import LockedWheel
from builder.sources import pypi, uvtool
from builder.sources import requirements as asked_for
from builder.sources.requirements import Kind, Requirements
from builder.sources.simple import Catalogue
from builder.sources.target import Target

_MAX_WHEEL = 1 << 20
_RUNTIME = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu12")


@dataclass(frozen=True)
class Resolution:
    """The release that was taken (`13.2.2`), and all wheels, sorted by name."""

    version: str
    wheels: tuple[LockedWheel, ...]


def resolve(
    requirements: Requirements,
    asked: Asked,
    target: Target,
    *,
    catalogue: Catalogue,
    previous: Sequence[LockedWheel] = (),
    release: str | None = None,
    upgrade: bool | frozenset[str] = False,
    run: uvtool.Run = process.run,
) -> Resolution:
    """The wheels of Python requirements and of a CUDA flavour, which is not `auto`.

    `release` is that of the previous lock: it is kept where that goes, as `previous` is, unless `upgrade` moves it. Raises
    `BuilderError` for a release that is not in the table, for a platform that it has no wheels for, and for
    requirements that do not go with it: with the release that they would go with, if there is one.
    """
    known = _releases(catalogue)
    matching = table.matching(asked.version, known)
    if not matching:
        raise _unknown(asked, list(known))
    if release and upgrade is not True and not (upgrade and PROJECT in upgrade):
        matching.sort(key=lambda version: version != Version(release))
    resolver = _Resolver(requirements, target, catalogue, tuple(previous), upgrade, run)
    failed: list[BuilderError] = []
    for version in matching:
        found = _read(known[version], version, target, catalogue)
        try:
            wheels = resolver.together(_composed(asked, found, target), found.constraints())
            _check_one(wheels, found)
            return Resolution(str(version), wheels)
        except FetchError:
            raise
        except BuilderError as error:
            failed.append(error)
    raise _explained(asked, matching, failed, resolver, list(known))


@dataclass(frozen=True)
class _Resolver:
    """Resolves the Python requirements, alone or with more."""

    requirements: Requirements
    target: Target
    catalogue: Catalogue
    previous: tuple[LockedWheel, ...]
    upgrade: bool | frozenset[str]
    run: uvtool.Run

    def alone(self) -> tuple[LockedWheel, ...]:
        return self._resolve(self.requirements)

    def together(self, lines: tuple[str, ...], constraints: tuple[str, ...]) -> tuple[LockedWheel, ...]:
        """The requirements with further lines. What a lock file, or a list with hashes, says is not resolved again: the
        rest is found to it."""
        if self._is_open():
            more = replace(
                self.requirements,
                lines=(*self.requirements.lines, *lines),
                constraints=(*self.requirements.constraints, *constraints),
            )
            return self._resolve(more)
        fixed = {wheel.name: wheel for wheel in self.alone()}
        pins = tuple(f"{wheel.name}=={wheel.version}" for wheel in fixed.values())
        # what is fixed is asked for too, so that a constraint of CUDA upon it is seen
        asked = Requirements(
            lines=(*lines, *(pin for pin in pins if _is_nvidia(pin))), constraints=(*constraints, *pins)
        )
        added = self._resolve(asked) if lines or asked.lines else ()
        return tuple(sorted({**{wheel.name: wheel for wheel in added}, **fixed}.values()))

    def _is_open(self) -> bool:
        if self.requirements.kind is not Kind.LIST:
            return False
        return asked_for.read_list(self.requirements).hashes is None

    def _resolve(self, requirements: Requirements) -> tuple[LockedWheel, ...]:
        return pypi.resolve(
            requirements,
            self.target,
            catalogue=self.catalogue,
            previous=self.previous,
            upgrade=self.upgrade,
            run=self.run,
        )


def _composed(asked: Asked, release: Release, target: Target) -> tuple[str, ...]:
    return flavours.requirements(asked, release, target.platform.architecture)


def _is_nvidia(text: str) -> bool:
    return text.startswith(("nvidia-", PROJECT))


def _releases(catalogue: Catalogue) -> dict[Version, str]:
    try:
        found = table.releases(catalogue.names(PROJECT))
        why = "it has no release there"
    except FetchError as error:
        found, why = {}, str(error)
    if not found:
        raise FetchError(
            f"{PROJECT}, NVIDIA's table of CUDA releases, is not to be had from the configured package indexes: {why}",
            hint="add an index that has it (`build doctor` shows the settings), or mirror it",
        )
    return found


def _read(name: str, version: Version, target: Target, catalogue: Catalogue) -> Release:
    data = catalogue.read(name, _MAX_WHEEL)
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            (member,) = (item for item in archive.infolist() if item.filename.endswith(".dist-info/METADATA"))
            if member.file_size > _MAX_WHEEL:
                raise TableError(f"its METADATA has {member.file_size} bytes")
            with archive.open(member) as file:
                metadata = file.read(_MAX_WHEEL).decode("utf-8")
        return table.parse(metadata, version, target.environment())
    except TableError as error:
        raise HostileInputError(f"{name}: {error}") from error
    except (ValueError, zipfile.BadZipFile, NotImplementedError, EOFError, RuntimeError, OSError) as error:
        raise HostileInputError(f"{name}: it cannot be read as a wheel: {error}") from error


def _unknown(asked: Asked, known: Sequence[Version]) -> BuilderError:
    minors = list(dict.fromkeys(table.minor(version) for version in known))
    same = [table.short(version) for version in known if asked.version.startswith(table.minor(version) + ".")]
    near = ", ".join(same) if same else table.nearest(asked.version, known)
    return BuilderError(
        f"cuda.version: there is no CUDA {asked.version} on the package index; it has {', '.join(minors)}",
        hint=f'write cuda.version: "{near}"' if not same else f"of this release there are {near}",
    )


def _explained(
    asked: Asked,
    tried: Sequence[Version],
    failed: Sequence[BuilderError],
    resolver: _Resolver,
    known: Sequence[Version],
) -> BuilderError:
    """Whose fault it is that nothing goes with the release: the requirements' own, the platform's, or the release's."""
    try:
        wheels = resolver.alone()
    except BuilderError as error:
        return error
    shown = ", ".join(map(table.short, tried))
    bare = Requirements()
    others = _Resolver(bare, resolver.target, resolver.catalogue, (), False, resolver.run)
    release = _read(_releases(resolver.catalogue)[tried[0]], tried[0], resolver.target, resolver.catalogue)
    try:
        others.together(_composed(asked, release, resolver.target), release.constraints())
    except BuilderError as error:
        return BuilderError(
            f"CUDA {shown} has not all wheels of flavour {asked.flavour} for {resolver.target}:\n{error}",
            hint="choose a newer cuda.version, another flavour, or leave the platform out",
        )
    own = brought(wheels)
    better = own and table.nearest(own, known)
    return BuilderError(
        f"CUDA {shown} and the Python requirements do not go together on {resolver.target.platform}:\n{failed[0]}",
        hint=f'write cuda.version: "{better}", which the requirements are made for, or change them'
        if better and better != asked.version
        else "choose another cuda.version, or other versions of what is named",
    )


def _check_one(wheels: Sequence[LockedWheel], release: Release) -> None:
    """No wheel brings another CUDA by names that the release does not have: those of CUDA 12 and 13 differ."""
    other = [wheel for wheel in wheels if wheel.name in _RUNTIME and _minor(wheel) != release.minor]
    if other:
        names = ", ".join(f"{wheel.name} {wheel.version}" for wheel in other)
        raise BuilderError(f"they bring {names}, which is CUDA {_minor(other[0])}")


def _minor(wheel: LockedWheel) -> str:
    return table.minor(Version(wheel.version))


def brought(wheels: Iterable[LockedWheel]) -> str | None:
    """The CUDA release, as `13.2`, of what wheels bring; None if they bring none."""
    versions = {wheel.name: wheel.version for wheel in wheels}
    found = next((versions[name] for name in (PROJECT, *_RUNTIME) if name in versions), None)
    return table.minor(Version(found)) if found else None
