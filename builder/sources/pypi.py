"""Requirements -> the wheels of one target, by name, version, sha256 and size. uv resolves; what it says is checked."""

from __future__ import annotations

import json
import re
import tempfile
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.pylock import (
    Package,
    PackageSdist,
    PackageWheel,
    Pylock,
    PylockSelectError,
    PylockUnsupportedVersionError,
    PylockValidationError,
)
from packaging.tags import Tag
from packaging.utils import BuildTag, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from builder import process
from builder.errors import BuilderError, ToolError
from builder.lock import LockedFile, LockedWheel
from builder.sources import requirements as asked_for
from builder.sources import uvtool
from builder.sources.requirements import Kind, RequirementList, Requirements
from builder.sources.simple import ORIGIN, Catalogue
from builder.sources.target import Target

_FILE_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._+!-]*\.whl")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_SHOWN = 8


def resolve(
    requirements: Requirements,
    target: Target,
    *,
    catalogue: Catalogue,
    previous: Sequence[LockedWheel] = (),
    upgrade: bool | frozenset[str] = False,
    run: uvtool.Run = process.run,
) -> tuple[LockedWheel, ...]:
    """The wheels that satisfy the requirements on the target, sorted by name.

    A version, and file, of `previous` is kept where the requirements still allow it and `upgrade` (all, or these names)
    does not say otherwise; a pylock.toml or uv.lock decides by itself. Only wheels of the configured indexes are taken.
    Raises `BuilderError` that names every project for which there is none, and why.
    """
    kept = _kept(previous, upgrade)
    hashes: Mapping[str, frozenset[str]] | None = None
    match requirements.kind:
        case Kind.LIST:
            asked = asked_for.read_list(requirements)
            if not asked.requirements:
                return ()
            hashes = asked.hashes
            text = _compile(asked, target, catalogue, kept, upgrade, run)
            where = "uv's answer"
        case Kind.PYLOCK:
            text = asked_for.read_file(requirements)
            where = str(requirements.file)
        case Kind.UV_LOCK:
            text = _export(requirements, catalogue, run)
            where = str(requirements.file)
    selected = _select(_parse(text, where), target, where)
    return _locked(selected, _Choice(target, hashes, kept, catalogue))


def _kept(previous: Sequence[LockedWheel], upgrade: bool | frozenset[str]) -> dict[str, LockedWheel]:
    """What is to stay as it is if it can."""
    if upgrade is True:
        return {}
    moving = {canonicalize_name(name) for name in upgrade or ()}
    return {wheel.name: wheel for wheel in previous if wheel.name not in moving}


def _compile(
    asked: RequirementList,
    target: Target,
    catalogue: Catalogue,
    kept: Mapping[str, LockedWheel],
    upgrade: bool | frozenset[str],
    run: uvtool.Run,
) -> bytes:
    with tempfile.TemporaryDirectory(prefix="layerwright-") as name:
        folder = Path(name)
        (folder / "requirements.in").write_text("\n".join(asked.requirements) + "\n", encoding="utf-8")
        (folder / "constraints.txt").write_text("\n".join(asked.constraints) + "\n", encoding="utf-8")
        output = folder / "pylock.toml"
        if kept:
            output.write_text(_preferences(kept.values()), encoding="utf-8")
        arguments = ["pip", "compile", str(folder / "requirements.in")]
        arguments += ["--constraints", str(folder / "constraints.txt")]
        arguments += ["--output-file", str(output), "--format", "pylock.toml", "--no-header", "--quiet"]
        arguments += ["--only-binary", ":all:", "--python-platform", target.uv_platform]
        arguments += ["--python-version", target.full_version]
        if upgrade is True:
            arguments.append("--upgrade")
        elif upgrade:
            arguments += [f"--upgrade-package={canonicalize_name(name)}" for name in sorted(upgrade)]
        try:
            uvtool.call(run, catalogue.indexes.environment, arguments)
        except ToolError as error:
            raise _explained(error, target, catalogue) from None
        return output.read_bytes()


def _preferences(kept: Iterable[LockedWheel]) -> str:
    """A pylock.toml that says only versions: uv keeps to those of the output file that it finds."""
    lines = ['lock-version = "1.0"', 'created-by = "layerwright"']
    for wheel in kept:
        try:
            version = str(Version(wheel.version))
        except InvalidVersion as error:
            raise BuilderError(f"the lock says {wheel.name} {wheel.version!r}, which is no version") from error
        lines += ["[[packages]]", f"name = {json.dumps(wheel.name)}", f"version = {json.dumps(version)}"]
    return "\n".join(lines) + "\n"


def _export(requirements: Requirements, catalogue: Catalogue, run: uvtool.Run) -> bytes:
    asked_for.read_file(requirements)
    project = asked_for.project_file(requirements)
    if not project.is_file():
        raise BuilderError(f"{project}: missing; a uv.lock needs the pyproject.toml that it was made from beside it")
    arguments = ["export", "--project", str(project.parent.resolve()), "--format", "pylock.toml", "--frozen"]
    arguments += ["--no-emit-project", "--no-default-groups", "--no-header", "--quiet"]
    try:
        return uvtool.call(run, catalogue.indexes.environment, arguments)
    except ToolError as error:
        if not error.output:
            raise
        shown = catalogue.indexes.redact(error.output)
        raise BuilderError(f"{requirements.file}: uv cannot read it: {shown}", hint="run `uv lock` there") from None


def _explained(error: ToolError, target: Target, catalogue: Catalogue) -> BuilderError:
    """uv's own explanation, with what it does not say: the target, and the wheels that would do."""
    if not error.output:
        return error
    explanation = catalogue.indexes.redact(error.output).removeprefix("error: ")
    if "wheel" in explanation:
        explanation += "\n" + _would_match(target)
    return BuilderError(
        f"the Python requirements cannot be met for {target}:\n{explanation}",
        hint="relax the requirements that uv names, or add an index that has such wheels",
    )


def _would_match(target: Target) -> str:
    native, stable = (f"{abi}-manylinux_2_{target.glibc[1]}_{target.machine}" for abi in _abis(target))
    return f"wheels that would match: {native}, {stable} (and those for an older manylinux), py3-none-any"


def _abis(target: Target) -> tuple[str, str]:
    interpreter = "cp{}{}".format(*target.version)
    return f"{interpreter}-{interpreter}", f"{interpreter}-abi3"


def _parse(text: bytes, where: str) -> Pylock:
    try:
        return Pylock.from_dict(tomllib.loads(text.decode()))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, PylockValidationError, PylockUnsupportedVersionError) as error:
        raise BuilderError(f"{where}: not a usable pylock.toml: {error}") from error


def _select(pylock: Pylock, target: Target, where: str) -> list[tuple[Package, object]]:
    """The packages that the markers select for the target. Which wheel of each is not decided here, so that all
    that lack one can be named at once: every tag that any wheel has is let through."""
    tags: set[Tag] = set()
    for package in pylock.packages:
        for wheel in package.wheels or ():
            tags |= parse_wheel_filename(wheel.filename)[3]
    try:
        return list(pylock.select(environment=target.environment(), tags=sorted(tags, key=str)))
    except PylockSelectError as error:
        raise BuilderError(f"{where}: does not fit {target}: {error}") from error


def _locked(selected: Iterable[tuple[Package, object]], choice: _Choice) -> tuple[LockedWheel, ...]:
    wheels: list[LockedWheel] = []
    problems: list[str] = []
    for package, source in selected:
        try:
            wheels.append(choice.of(package, source))
        except _UnusableError as error:
            problems.append(str(error))
    if problems:
        what = "\n  ".join(problems)
        raise BuilderError(
            f"no usable wheel for {choice.target}:\n  {what}\n{_would_match(choice.target)}",
            hint="choose other versions of these, or an index that has such wheels",
        )
    return tuple(sorted(wheels))


class _UnusableError(Exception):
    """Why a project cannot be had as a wheel."""


@dataclass(frozen=True)
class _Candidate:
    rank: int
    build: BuildTag
    name: str
    wheel: PackageWheel


@dataclass(frozen=True)
class _Choice:
    """One wheel of a package: the kept one if it is there, else the best tag, else the highest build."""

    target: Target
    hashes: Mapping[str, frozenset[str]] | None
    kept: Mapping[str, LockedWheel]
    catalogue: Catalogue

    def of(self, package: Package, source: object) -> LockedWheel:
        title = f"{package.name} {package.version}" if package.version else package.name
        if isinstance(source, PackageSdist):
            raise _UnusableError(f"{title}: has only a source distribution")
        if not isinstance(source, PackageWheel):
            raise _UnusableError(f"{title}: is a URL, a repository or a folder, and no wheel of an index")
        candidates = self._matching(package, title)
        if self.hashes is not None:
            allowed = self.hashes.get(package.name, frozenset())
            candidates = [found for found in candidates if found.wheel.hashes.get("sha256") in allowed]
            if not candidates:
                why = "no wheel of it has a given hash" if allowed else "has no --hash, but others have"
                raise _UnusableError(f"{title}: {why}")
        return self._entry(package, self._best(package, candidates), title)

    def _matching(self, package: Package, title: str) -> list[_Candidate]:
        candidates: list[_Candidate] = []
        others: set[str] = set()
        for wheel in package.wheels or ():
            _, _, build, tags = parse_wheel_filename(wheel.filename)
            ranks = [self.target.ranks[tag] for tag in tags if tag in self.target.ranks]
            if ranks:
                candidates.append(_Candidate(min(ranks), build, wheel.filename, wheel))
            else:
                others.add("-".join(wheel.filename.removesuffix(".whl").split("-")[-3:]))
        if not candidates:
            raise _UnusableError(f"{title}: has only wheels for {_list(sorted(others))}")
        return candidates

    def _best(self, package: Package, candidates: Sequence[_Candidate]) -> PackageWheel:
        if kept := self.kept.get(package.name):
            for found in candidates:
                if (found.name, found.wheel.hashes.get("sha256")) == (kept.file.path, kept.file.sha256):
                    return found.wheel
        best = min(found.rank for found in candidates)
        equal = [found for found in candidates if found.rank == best]
        return max(equal, key=lambda found: (found.build, found.name)).wheel

    def _entry(self, package: Package, wheel: PackageWheel, title: str) -> LockedWheel:
        name = wheel.filename
        if not _FILE_NAME.fullmatch(name):
            raise _UnusableError(f"{title}: {name!r} is no file name for a wheel")
        if wheel.url is None:
            raise _UnusableError(f"{title}: {name} is a local file, and not on an index")
        sha256 = str(wheel.hashes.get("sha256", "")).lower()
        if not _SHA256.fullmatch(sha256):
            raise _UnusableError(f"{title}: the index gives no sha256 for {name}")
        size = wheel.size if wheel.size is not None else self.catalogue.size(name, sha256)
        if size is None:
            raise _UnusableError(f"{title}: no index tells the size of {name}")
        version = parse_wheel_filename(name)[1]
        return LockedWheel(package.name, str(version), LockedFile(ORIGIN, name, sha256, size))


def _list(tags: Sequence[str]) -> str:
    more = len(tags) - _SHOWN
    return ", ".join(tags[:_SHOWN]) + (f" and {more} more" if more > 0 else "")
