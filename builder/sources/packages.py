"""The binary packages of a Debian suite for one architecture: found in Packages files, parsed when asked for."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from builder.lock import LockedDeb, LockedFile, LockedRelease
from builder.sources.control import Group, Relation, fields, relations, version
from builder.sources.release import ArchiveError

_PACKAGE = re.compile(rb"\nPackage: (.+)")
_PROVIDES = re.compile(rb"\nProvides: (.+)")
_PROVIDED = re.compile(rb"(?:^|,)\s*([a-z0-9][a-z0-9+.-]*)")
_FILENAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.+~:%=@-]*(?:/[A-Za-z0-9_][A-Za-z0-9_.+~:%=@-]*)*\.deb")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_PRIORITIES = ("required", "important", "standard", "optional")


@dataclass(frozen=True)
class Package:
    """One stanza: what is needed to choose, to lock and to fetch a package. `conflicts` holds Conflicts and Breaks."""

    name: str
    version: str
    architecture: str
    file: LockedFile
    depends: tuple[Group, ...] = ()
    provides: tuple[Relation, ...] = ()
    conflicts: tuple[Relation, ...] = ()
    priority: int = len(_PRIORITIES)

    def satisfies(self, relation: Relation) -> bool:
        """Whether this package, or something that it provides, is what the relation asks for."""
        if relation.name == self.name and relation.allows(self.version):
            return True
        return any(
            provided.name == relation.name
            and (not relation.operator or (bool(provided.version) and relation.allows(provided.version)))
            for provided in self.provides
        )

    def locked(self) -> LockedDeb:
        return LockedDeb(self.name, self.version, self.architecture, self.file)


@dataclass(frozen=True)
class PackagesFile:
    """The bytes of one Packages file, with an empty line before them, and the origin whose files it names."""

    origin: str
    data: bytes = field(repr=False)


class Index:
    """All packages of some Packages files for one architecture."""

    def __init__(
        self, files: Sequence[PackagesFile], architecture: str, releases: Sequence[LockedRelease] = ()
    ) -> None:
        self.architecture = architecture
        self.releases = tuple(releases)
        self._files = tuple(files)
        self._parsed: dict[tuple[int, int], Package | None] = {}
        self._names: dict[bytes, list[tuple[int, int]]] = {}
        for number, file in enumerate(self._files):
            for match in _PACKAGE.finditer(file.data):
                self._names.setdefault(match[1], []).append((number, match.start()))

    def candidates(self, name: str) -> tuple[Package, ...]:
        """The versions of a package, the highest first; of equal ones, that of the earlier file."""
        found = [self._package(*place) for place in self._names.get(name.encode(), ())]
        packages: dict[str, Package] = {}
        for package in found:
            if package is not None:
                packages.setdefault(package.version, package)
        return tuple(sorted(packages.values(), key=lambda package: version(package.version), reverse=True))

    def providers(self, name: str) -> tuple[Package, ...]:
        """The packages that provide a name, the most important first, then by name; the highest version of each."""
        places = self._provided.get(name.encode(), ())
        names = {package.name for place in places if (package := self._package(*place)) is not None}
        packages = [
            next((package for package in self.candidates(each) if any(p.name == name for p in package.provides)), None)
            for each in sorted(names)
        ]
        return tuple(sorted(filter(None, packages), key=lambda package: (package.priority, package.name)))

    def __contains__(self, name: str) -> bool:
        return name.encode() in self._names

    def similar(self, name: str) -> tuple[str, ...]:
        """Names that somebody may have meant."""
        names = sorted({key.decode(errors="replace") for key in self._names} | self._virtual())
        near = [other for other in names if other[:1] == name[:1] and abs(len(other) - len(name)) < 4]
        return tuple(difflib.get_close_matches(name, near, n=3, cutoff=0.75))

    def _virtual(self) -> set[str]:
        return {key.decode(errors="replace") for key in self._provided}

    @cached_property
    def _provided(self) -> Mapping[bytes, Sequence[tuple[int, int]]]:
        """The stanzas that provide a name: `Provides` is rare, so that it is read only when a name is no package."""
        found: dict[bytes, list[tuple[int, int]]] = {}
        for number, file in enumerate(self._files):
            for match in _PROVIDES.finditer(file.data):
                start = file.data.rfind(b"\n\n", 0, match.start()) + 1
                for name in _PROVIDED.findall(match[1]):
                    found.setdefault(name, []).append((number, start))
        return found

    def _package(self, number: int, start: int) -> Package | None:
        """The stanza at a place, or None if it is for another architecture."""
        if (number, start) not in self._parsed:
            file = self._files[number]
            end = file.data.find(b"\n\n", start + 1)
            stanza = file.data[start + 1 : end if end >= 0 else len(file.data)]
            self._parsed[number, start] = _parse(stanza, file.origin, self.architecture)
        return self._parsed[number, start]


def _parse(stanza: bytes, origin: str, architecture: str) -> Package | None:
    label = stanza.split(b"\n", 1)[0].decode(errors="replace")
    try:
        found = fields(stanza.decode())
        if found["architecture"] not in (architecture, "all"):
            return None
        version(found["version"])
        if not _FILENAME.fullmatch(found["filename"]) or not _SHA256.fullmatch(found["sha256"]):
            raise ValueError("Filename or SHA256 is not one")
        return Package(
            name=found["package"],
            version=found["version"],
            architecture=found["architecture"],
            file=LockedFile(origin, found["filename"], found["sha256"], int(found["size"])),
            depends=relations(found.get("pre-depends", "")) + relations(found.get("depends", "")),
            provides=_flat(found.get("provides", "")),
            conflicts=_flat(found.get("conflicts", "")) + _flat(found.get("breaks", "")),
            priority=_priority(found.get("priority", "")),
        )
    except KeyError as error:
        raise ArchiveError(f"{origin}: stanza {label!r} has no field {error.args[0].title()}") from error
    except ValueError as error:
        raise ArchiveError(f"{origin}: stanza {label!r}: {error}") from error


def _flat(text: str) -> tuple[Relation, ...]:
    return tuple(relation for group in relations(text) for relation in group)


def _priority(text: str) -> int:
    return _PRIORITIES.index(text) if text in _PRIORITIES else len(_PRIORITIES)
