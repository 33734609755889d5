"""Every ELF file of a root is opened as its users would, in the model of the loader: what it gets, and what it does not. Pure."""

from __future__ import annotations

import fnmatch
import posixpath
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from builder.findings import known
from builder.findings.loader import Loaded, Loader, Process, Search, closure
from builder.findings.root import File, Root

_TAGGED = re.compile(r".+\.(?:cpython-(\d)(\d+)[^.]*|abi3)\.so")
_PLAIN = re.compile(r"(?!lib)[A-Za-z_]\w*\.so")
_PROGRAMS = ("/bin/", "/sbin/")
_VERSIONED = re.compile(r"lib[^/]+\.so\.\d[\d.]*")
_ROUNDS = 4
_Names = tuple[tuple[File, str], ...]


@dataclass(frozen=True)
class Edge:
    """A library that a file needs, and where it is found: at `path`, `how`, which is the file `target`."""

    file: File
    name: str
    path: str
    how: str
    target: File


@dataclass(frozen=True)
class Unmet:
    """A library that a file needs and does not get. `is_module` says that the file is a Python module, or a library that one
    needs; else it is opened later, or never. `there` are files of the root that would be it; `after` is the input whose
    import loads it first."""

    file: File
    name: str
    reason: str
    is_module: bool
    there: tuple[File, ...] = ()
    after: str = ""


@dataclass(frozen=True)
class TooOld:
    """A library that does not have the versions of symbols that a file asks for."""

    file: File
    library: File
    versions: tuple[str, ...]
    is_module: bool


@dataclass(frozen=True)
class Scan:
    """What was found out of a root. `opens` are libraries that files name without needing them, and that are there;
    `lost` those that are not there; `guessed` beginnings of such names, from what is known of a package, for which nothing is
    there."""

    root: Root
    search: Search
    edges: tuple[Edge, ...]
    unmet: tuple[Unmet, ...]
    too_old: tuple[TooOld, ...]
    opens: tuple[tuple[File, str], ...]
    lost: tuple[tuple[File, str], ...]
    guessed: tuple[tuple[File, str], ...]
    by_soname: Mapping[str, tuple[File, ...]]


def variants(scan: Scan) -> frozenset[tuple[str, str]]:
    """Owners and libraries (`libcublas`) of which a file gets some version, or would: what another of its files lacks in
    another version is for whoever has that one."""
    met = {(edge.file.owner, stem(edge.name)) for edge in scan.edges}
    return frozenset(met | {(item.file.owner, stem(item.name)) for item in scan.unmet if item.there})


def stem(name: str) -> str:
    """The name of a library without its version."""
    return name.partition(".so")[0]


def scan(root: Root, search: Search, python: str | None, executable: str = "") -> Scan:
    """Opens everything in a process of the interpreter, whose version is `3.N`, and which is `executable` or where Debian has
    it; without one, in a process of its own."""
    return _Scanner(root, search, python, executable or f"/usr/bin/python{python}").scan()


@dataclass
class _Opened:
    """How opening one file went: what has been loaded for it, and what is missing."""

    first: Loaded
    closure: list[Loaded]
    missing: list[tuple[Loaded, str, str]]
    process: Process
    after: list[str] = field(default_factory=list)


class _Scanner:
    def __init__(self, root: Root, search: Search, python: str | None, executable: str) -> None:
        self._root, self._search, self._python = root, search, python
        self._loader = Loader(root, search)
        self._files = [file for file in root.binaries if file.binary and file.binary.machine == search.machine]
        by_soname: dict[str, dict[str, File]] = defaultdict(dict)
        for file in self._files:
            assert file.binary
            for name in {file.binary.soname or "", posixpath.basename(file.path)} - {""}:
                by_soname[name][file.path] = file
        for link in root.links:
            target = self._loader.usable(link)
            if target and target.binary:
                by_soname[posixpath.basename(link)].setdefault(target.path, target)
        self._by_soname = {name: tuple(files.values()) for name, files in by_soname.items()}
        self._firsts: dict[str, tuple[str, ...]] = {}
        self._base = Process(self._loader, executable if python else None)

    def scan(self) -> Scan:
        edges: dict[tuple[str, str], Edge] = {}
        unmet: dict[tuple[str, str], Unmet] = {}
        too_old: dict[tuple[str, str], TooOld] = {}
        files = [file for file in self._files if not self._is_for_another_python(file)]
        opened = [self._open(file, ()) for file in files]
        whole = [item for item in opened if not item.missing]
        loading = self._loading(whole)
        for file, first in sorted(zip(files, opened, strict=True), key=lambda pair: not self._is_module(pair[0])):
            result = first if not first.missing else self._again(file, first, loading)
            is_module = self._is_module(file)
            for item in result.closure:
                for name, target in item.found.items():
                    edges.setdefault(
                        (item.file.path, name), Edge(item.file, name, target.path, target.how, target.file)
                    )
            for item, name, reason in first.missing:
                still = any(each.file is item.file and lost == name for each, lost, _ in result.missing)
                there = self._by_soname.get(name, ())
                after = "" if still else ", ".join(result.after)
                if still or after:
                    found = Unmet(item.file, name, reason, is_module, there, after)
                    unmet[item.file.path, name] = _worse(unmet.get((item.file.path, name)), found)
            for lack in result.process.lacks(result.closure):
                key = lack.file.file.path, lack.library.file.path
                too_old.setdefault(key, TooOld(lack.file.file, lack.library.file, lack.versions, is_module))
        return Scan(
            self._root,
            self._search,
            tuple(edge for _, edge in sorted(edges.items())),
            # What a module gets for a library below it, that library does not lack because nobody else opens it.
            tuple(item for key, item in sorted(unmet.items()) if item.is_module or item.after or key not in edges),
            tuple(item for _, item in sorted(too_old.items())),
            *self._opens(files),  # there, lost, guessed
            self._by_soname,
        )

    def _open(self, file: File, before: Iterable[File]) -> _Opened:
        """Opens a file after others, in a process of the interpreter; a program in one of its own."""
        assert file.binary
        if any(part in file.path for part in _PROGRAMS) and not file.binary.soname:
            process = Process(self._loader, file.path)
            first: Loaded | str = process.program or "no program"
        else:
            process = self._base.copy()
            for each in before:
                process.load(each.path, _is_driver)
                for path in self._first(each.owner):
                    process.load(path, _is_driver)
            first = process.open(file.path)
        if isinstance(first, str):  # nothing of the image leads there
            first = Loaded(file.path, file.path, file, file.binary, None, first)
        loaded = closure(first)
        missing = [
            (item, name, reason) for item in loaded for name, reason in item.missing.items() if not _is_driver(name)
        ]
        return _Opened(first, loaded, missing, process)

    def _loading(self, whole: Iterable[_Opened]) -> Mapping[str, list[_Opened]]:
        """Which files, opened, bring which libraries; modules first."""
        loading: dict[str, list[_Opened]] = defaultdict(list)
        for item in sorted(whole, key=lambda item: not self._is_module(item.first.file)):
            for each in item.closure:
                for name in {each.binary.soname or "", each.name} - {""}:
                    loading[name].append(item)
            if self._is_module(item.first.file):
                for path in self._first(item.first.file.owner):
                    loading[posixpath.basename(path)].append(item)
        return loading

    def _first(self, owner: str) -> tuple[str, ...]:
        """The paths of NVIDIA's libraries that importing an input loads."""
        if owner not in self._firsts:
            self._firsts[owner] = tuple(
                file.path
                for pattern in known.first(owner)
                for name in fnmatch.filter(sorted(self._by_soname), pattern)
                for file in self._by_soname[name]
                if "/nvidia/" in file.path and posixpath.basename(file.path) == name
            )
        return self._firsts[owner]

    def _again(self, file: File, first: _Opened, loading: Mapping[str, list[_Opened]]) -> _Opened:
        """The same, after what people import first: modules of other packages that load what is missing, and libraries of
        its own package."""
        before: list[File] = []
        after: list[str] = []
        result = first
        for _ in range(_ROUNDS):
            missing = {name for _, name, _ in result.missing}
            candidates: dict[str, tuple[set[str], File]] = {}
            for name in missing:
                for item in loading.get(name, ()):
                    other = item.first.file
                    if other.owner == file.owner or self._is_module(other):
                        candidates.setdefault(other.path, (set(), other))[0].add(name)
            if not candidates:
                break
            _, best = max(
                candidates.values(), key=lambda pair: (len(pair[0]), pair[1].owner == file.owner, pair[1].path)
            )
            before.append(best)
            after += [best.owner] if best.owner != file.owner and best.owner not in after else []
            result = self._open(file, before)
            result.after = after
            if not result.missing:
                break
        return result

    def _is_module(self, file: File) -> bool:
        """Whether Python imports it: by its name, in a folder with modules."""
        folder, name = posixpath.split(file.path)
        if match := _TAGGED.fullmatch(name):
            return match[1] is None or f"{match[1]}.{match[2]}" == self._python
        return bool(_PLAIN.fullmatch(name)) and any(each.endswith(".py") for each in self._root.folders[folder])

    def _is_for_another_python(self, file: File) -> bool:
        match = _TAGGED.fullmatch(posixpath.basename(file.path))
        return match is not None and match[1] is not None and f"{match[1]}.{match[2]}" != self._python

    def _opens(self, files: Sequence[File]) -> tuple[_Names, _Names, _Names]:
        """What files name: what is there, what is not; and what is known to be opened and is not there."""
        there: list[tuple[File, str]] = []
        lost: list[tuple[File, str]] = []
        guessed: list[tuple[File, str]] = []
        for file in files:
            for name in file.binary.opens if file.binary else ():
                if not known.DRIVER.fullmatch(name) and _VERSIONED.fullmatch(name):
                    (there if name in self._by_soname else lost).append((file, name))
        owners: dict[str, File] = {}
        for file in sorted(files, key=lambda file: ("cuda" not in posixpath.basename(file.path), file.path)):
            owners.setdefault(file.owner, file)  # the library that is about CUDA by its name, or any
        for owner, file in sorted(owners.items()):
            for start in known.asked(owner):
                names = [name for name in self._by_soname if name.startswith(start)]
                there += [(file, name) for name in names]
                guessed += [] if names else [(file, start)]
        return tuple(there), tuple(lost), tuple(guessed)


def _is_driver(name: str) -> bool:
    return known.DRIVER.fullmatch(name) is not None


def _worse(one: Unmet | None, other: Unmet) -> Unmet:
    """What is known of one need from two openings: it is not met if one says so, and counts for a module's if one is."""
    if one is None:
        return other
    after = one.after if one.after and other.after else ""
    return Unmet(one.file, one.name, one.reason, one.is_module or other.is_module, one.there, after)
