"""What a profile's `slim` leaves out of wheels: whole files, by patterns, decided when a profile is locked.

A wheel's lock names the patterns that meet one of its files, so that only such wheels have other layers than everybody's.
What a licence asks for stays, whatever a pattern says: the metadata (`.dist-info`) and the texts of licences. No file is
changed: NVIDIA's terms allow to pass on parts of what a wheel holds, but no part of a file.
"""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches

from packaging.utils import canonicalize_name

from builder.errors import BuilderError
from builder.lock import LockedFile, LockedWheel
from builder.sources import wheel
from builder.sources.wheel import WheelFiles
from builder.store import Store

_LICENCE = re.compile(r"(licen[cs]es?|copying|copyright|notice|eula|third.?party)[^/]*", re.IGNORECASE)
_CACHED = re.compile(r"(.*/)__pycache__/([^/]+?)\.[^./]+(?:\.opt-[^./]+)?\.pyc")
_CODE = re.compile(r"\.(py[cdiwx]?|so[\d.]*|a|c|cc|cpp|cu|cuh|h|hpp|js|json|yaml|yml)$")


class SlimError(BuilderError):
    """A rule of `slim` cannot be followed."""

    hint = "correct `slim` in the profile; `build plan --minimal` shows what could be left out, and its size"


@dataclass(frozen=True)
class Rule:
    """What to leave out: `drop` are patterns, of the wheels of these names, or of all."""

    wheels: tuple[str, ...]
    drop: tuple[str, ...]


def decide(
    wheels: Sequence[LockedWheel],
    rules: Sequence[Rule],
    python: str,
    store: Store,
    ensure: Callable[[Iterable[LockedFile]], None],
) -> tuple[LockedWheel, ...]:
    """The wheels, each with those patterns that leave out a file of it; `ensure` brings wheels into the store.

    Raises `SlimError` for a rule that names no wheel of these, and for a pattern that leaves out nothing.
    """
    names = {locked.name for locked in wheels}
    for rule in rules:
        for name in rule.wheels:
            if canonicalize_name(name) not in names:
                near = get_close_matches(canonicalize_name(name), sorted(names), 1)
                raise SlimError(
                    f"slim: no wheel is named {name}" + (f"; did you mean {near[0]}?" if near else ""),
                    hint="`build plan` lists the wheels",
                )
    asked = {locked: _asked(locked, rules) for locked in wheels}
    ensure(dict.fromkeys(locked.file for locked in wheels if asked[locked]))
    decided: list[LockedWheel] = []
    met: set[str] = set()
    for locked in wheels:
        paths = _paths(locked, python, store) if asked[locked] else ()
        dropping = tuple(sorted(pattern for pattern in asked[locked] if any(drops(path, pattern) for path in paths)))
        met.update(dropping)
        decided.append(replace(locked, drop=dropping))
    for rule in rules:
        for pattern in rule.drop:
            if pattern not in met:
                where = ", ".join(rule.wheels) if rule.wheels else "any wheel"
                raise SlimError(f"slim: {pattern!r} leaves out no file of {where}")
    return tuple(decided)


def slimmed(files: WheelFiles, patterns: Sequence[str]) -> WheelFiles:
    """An installed wheel without what the patterns leave out, and without the bytecode of modules that go."""
    going = {path for path, relative in _relatives(files) if any(drops(relative, pattern) for pattern in patterns)}
    going |= {file.entry.path for file in files.files if bytecode_of(file.entry.path) in going}
    kept = tuple(file for file in files.files if file.entry.path not in going)
    return replace(files, files=kept, sources=tuple(path for path in files.sources if path not in going))


def bytecode_of(path: str) -> str | None:
    """The module that a path in `__pycache__` is the bytecode of (PEP 3147); None where it is none."""
    match = _CACHED.fullmatch(path)
    return f"{match[1]}{match[2]}.py" if match else None


def is_kept(path: str) -> bool:
    """Whether a file, by its path relative to site-packages, stays whatever a pattern says."""
    name = posixpath.basename(path)
    return ".dist-info/" in path or (_LICENCE.match(name) is not None and not _CODE.search(name))


def matches(path: str, pattern: str) -> bool:
    """Whether a pattern is the name or the path of a file, or of a folder that it is in."""
    plain = pattern.strip("/")
    parts = path.split("/")
    return any(
        fnmatch.fnmatchcase(parts[depth], plain) or fnmatch.fnmatchcase("/".join(parts[: depth + 1]), plain)
        for depth in range(len(parts))
    )


def drops(path: str, pattern: str) -> bool:
    """Whether a pattern leaves out a file, by its path relative to site-packages."""
    return not is_kept(path) and matches(path, pattern)


def _asked(locked: LockedWheel, rules: Sequence[Rule]) -> tuple[str, ...]:
    named = [
        rule for rule in rules if not rule.wheels or locked.name in {canonicalize_name(name) for name in rule.wheels}
    ]
    return tuple(dict.fromkeys(pattern for rule in named for pattern in rule.drop))


def _paths(locked: LockedWheel, python: str, store: Store) -> tuple[str, ...]:
    path = store.path(locked.file.digest)
    files = wheel.install(path, locked.file.path, locked.name, locked.version, python)
    return tuple(relative for _, relative in _relatives(files))


def _relatives(files: WheelFiles) -> Iterator[tuple[str, str]]:
    """Each file's path in the image, and as RECORD writes it."""
    site = posixpath.dirname(files.dist_info)
    return ((file.entry.path, wheel.relative(file.entry.path, site)) for file in files.files)
