"""The dynamic loader's own rules (ld.so(8), glibc), on a root of names: which file each needed library is. Pure.

What is loaded already is taken, by the same name or by SONAME, whatever a search would find; a `Process` is what is
loaded. Else, a name without a slash is looked for in this order:

1. RPATH of the file that asks, of the file that loaded that one, and so on, and of the program: not of files that have
   RUNPATH, and not at all where the file that asks has it
2. `LD_LIBRARY_PATH`
3. RUNPATH of the file that asks
4. the cache of ldconfig: the folders of `/etc/ld.so.conf` and the system's own, by SONAME
5. the system's own folders

Files for other machines are passed over; a file that is no library ends the search. Left out: subfolders for more capable
processors (`glibc-hwcaps`), paths relative to a working directory, LD_PRELOAD, audit libraries, `DF_1_NODEFLIB`, and the
secure mode of setuid programs.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from builder.binaries.facts import BinaryFacts
from builder.errors import HostileInputError
from builder.findings.root import File, Root

_TRIPLETS = {"x86_64": "x86_64-linux-gnu", "aarch64": "aarch64-linux-gnu"}
_INTERPRETERS = {"x86_64": "/lib64/ld-linux-x86-64.so.2", "aarch64": "/lib/ld-linux-aarch64.so.1"}
_IN_CACHE = re.compile(r"(?:lib|ld-)[^/]*\.so[^/]*", re.DOTALL)
_TOKEN = re.compile(r"\$(?:\{(ORIGIN|LIB|PLATFORM)\}|(ORIGIN|LIB|PLATFORM)(?![A-Za-z0-9_]))")

MOST_STEPS = 2_000_000
"""How many needs of files are followed in one root; the closure of vLLM takes 14,000."""
Found = tuple[str, File, str]
"""The path at which a file is found, the file, and how."""


@dataclass(frozen=True)
class Search:
    """Where a process looks beside what its files say.

    `library_path` is LD_LIBRARY_PATH's, split. `conf` are the folders of `/etc/ld.so.conf` in its order, if there is a cache
    (the NVIDIA container toolkit makes it when a container starts); None without one.
    """

    machine: str = "x86_64"
    library_path: tuple[str, ...] = ()
    conf: tuple[str, ...] | None = None


@dataclass(eq=False)
class Loaded:
    """A file in a process: asked for by `name`, found at `path` for the file `loader`, and `how`.

    `found` are the libraries that it needs, by name; `missing` those that it does not get, and why.
    """

    name: str
    path: str
    file: File
    binary: BinaryFacts
    loader: Loaded | None
    how: str
    found: dict[str, Loaded] = field(default_factory=dict)
    missing: dict[str, str] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<{self.path}>"


@dataclass(frozen=True)
class Lack:
    """Versions of symbols that a file asks of a library and that this one does not define."""

    file: Loaded
    library: Loaded
    versions: tuple[str, ...]


class Loader:
    """Searches a root; what it has found out of folders is kept."""

    def __init__(self, root: Root, search: Search) -> None:
        self.root = root
        self.search = search
        self._folders: dict[str, str] = {}
        self._steps = 0

    def step(self, asking: Loaded | None) -> None:
        """Counts one search; raises `HostileInputError` where there are more than any image needs."""
        self._steps += 1
        if self._steps > MOST_STEPS:
            who = asking.file.owner if asking else "the image"
            raise HostileInputError(f"{who}: its libraries need one another in more ways than can be followed")

    def find(self, name: str, asking: Loaded | None, program: Loaded | None) -> Found | None:
        """Where a name without a slash is found, and how; the file there may be no library."""
        for folder, how in self._above(asking, program):
            if file := self.usable(path := f"{folder}/{name}"):
                return path, file, how
        if cached := self._cache.get(name):
            return *cached, "ld.so.cache"
        for folder in self.system:
            if file := self.usable(path := f"{folder}/{name}"):
                return path, file, "the system's folders"
        return None

    def usable(self, path: str) -> File | None:
        """The file that opening a path gives, unless it is for another machine."""
        file = self.at(path)
        if file is None or (file.binary and file.binary.machine != self.search.machine):
            return None
        return file

    def at(self, path: str) -> File | None:
        """The file that a path leads to; ldconfig makes links, too, in the folders of its cache."""
        folder, name = posixpath.split(path)
        real = self._folders.get(folder)
        if real is None:
            real = self._folders[folder] = self.root.real(folder)
        return self.root.file(f"{real.rstrip('/')}/{name}") or self._made.get(real, {}).get(name)

    def expanded(self, path: str, asking: Loaded | None) -> str | None:
        """A path with its tokens replaced, as the file that has it means it; None where it is relative."""
        values = {
            "ORIGIN": posixpath.dirname(asking.path) if asking else "",
            "LIB": self.system[0].lstrip("/"),
            "PLATFORM": self.search.machine,
        }
        plain = _TOKEN.sub(lambda match: values[match[1] or match[2]], path)
        return plain if plain.startswith("/") else None

    @cached_property
    def system(self) -> tuple[str, ...]:
        """The folders that the C library looks in by itself: Debian's, or those of `/lib64`."""
        triplet = _TRIPLETS.get(self.search.machine, "")
        if self.root.file(f"/lib/{triplet}/libc.so.6"):
            return f"/lib/{triplet}", f"/usr/lib/{triplet}", "/lib", "/usr/lib"
        return "/lib64", "/usr/lib64"

    @cached_property
    def interpreter(self) -> str:
        """Where programs expect the loader itself."""
        return _INTERPRETERS.get(self.search.machine, "")

    def _above(self, asking: Loaded | None, program: Loaded | None) -> Iterator[tuple[str, str]]:
        """The folders before the cache, in order."""
        if asking is None or not asking.binary.runpath:
            chain: list[Loaded] = []
            each = asking
            while each:
                chain.append(each)
                each = each.loader
            for item in chain:
                if not item.binary.runpath:
                    yield from self._split(item.binary.rpath, item, f"RPATH of {posixpath.basename(item.path)}")
        yield from self._split(self.search.library_path, program, "LD_LIBRARY_PATH")
        if asking:
            yield from self._split(asking.binary.runpath, asking, f"RUNPATH of {posixpath.basename(asking.path)}")

    def _split(self, paths: Sequence[str], asking: Loaded | None, how: str) -> Iterator[tuple[str, str]]:
        for path in paths:
            if folder := self.expanded(path, asking):
                yield folder.rstrip("/"), how

    @cached_property
    def _cache(self) -> Mapping[str, tuple[str, File]]:
        """What ldconfig would write: each name, and the path and file that it stands for."""
        if self.search.conf is None:
            return {}
        cache: dict[str, tuple[str, File]] = {}
        for folder in (*self.search.conf, *self.system):
            for name, file in self._made[self.root.real(folder)].items():
                cache.setdefault(name, (f"{folder.rstrip('/')}/{name}", file))
        return cache

    @cached_property
    def _made(self) -> Mapping[str, Mapping[str, File]]:
        """For the real folders of the cache, their names in it."""
        if self.search.conf is None:
            return {}
        return {real: self._cached(real) for real in map(self.root.real, (*self.search.conf, *self.system))}

    def _cached(self, folder: str) -> Mapping[str, File]:
        """The names of one folder; ldconfig makes links of the SONAMEs that are no names there."""
        links = self.root.links_in(folder)
        found: dict[str, tuple[bool, str, File]] = {}
        for name in self.root.names(folder):
            file = self.root.file(f"{folder.rstrip('/')}/{name}") if _IN_CACHE.fullmatch(name) else None
            if file is None or file.binary is None or file.binary.machine != self.search.machine:
                continue
            soname = file.binary.soname or posixpath.basename(file.path)
            is_link = name in links and _stays_a_link(name, soname)
            key = name if is_link else soname
            other = found.get(key)
            if other is None or (other[0], not is_link and _newer(name, other[1])) != (False, False):
                found[key] = is_link, name, file
        prefix = folder.rstrip("/")  # a file that has the name already is no link, and stays
        return {key: self.root.files.get(f"{prefix}/{key}", file) for key, (_, _, file) in found.items()}


def _stays_a_link(name: str, soname: str) -> bool:
    """Whether ldconfig keeps a link under its own name: it is the SONAME, or a linker's `.so` of it."""
    return name == soname or (name.endswith(".so") and soname.startswith(name))


def _newer(name: str, other: str) -> bool:
    """Whether ldconfig holds a file's name for that of a later version: numbers count as numbers."""
    return _order(name) > _order(other)


def _order(name: str) -> list[tuple[bool, int, str]]:
    return [(part.isdigit(), int(part) if part.isdigit() else 0, part) for part in re.findall(r"[0-9]+|[^0-9]", name)]


class Process:
    """What is loaded. `program` is its path, which is loaded with all that it needs; None for a process of which nothing is
    known but that it has the C library's loader."""

    def __init__(self, loader: Loader, program: str | None = None) -> None:
        self._loader = loader
        self.maps: list[Loaded] = []
        self._names: dict[str, Loaded] = {}
        self._sonames: dict[str, Loaded] = {}
        self._files: dict[str, Loaded] = {}
        self.program: Loaded | None = None
        if program and (file := loader.usable(program)) and file.binary:
            self.program = self._add(program, file.path, file, file.binary, None, "the program")
        if (file := loader.usable(loader.interpreter)) and file.binary:
            self._add(loader.interpreter, loader.interpreter, file, file.binary, None, "the loader")
        if self.program:
            self._load_needed(self.program)

    def copy(self) -> Process:
        """Another process with the same files in it."""
        other = Process.__new__(Process)
        other._loader, other.program = self._loader, self.program
        other.maps, other._names = list(self.maps), dict(self._names)
        other._sonames, other._files = dict(self._sonames), dict(self._files)
        return other

    def open(self, name: str) -> Loaded | str:
        """What the program's `dlopen` looks for: the library with all that it needs, or why it is not found.

        What it needs may be `missing`, and stays so; what was found of it is loaded, to tell who gets what.
        """
        before = len(self.maps)
        found = self._map(name, self.program)
        if isinstance(found, Loaded) and len(self.maps) > before:
            self._load_needed(found)
        return found

    def load(self, name: str, is_given: Callable[[str], bool] = lambda name: False) -> bool:
        """What `dlopen` does: the library and all that it needs are there afterwards, or nothing of it. `is_given` says of
        libraries that are not in the root that they are there when it runs."""
        state = list(self.maps), dict(self._names), dict(self._sonames), dict(self._files)
        found = self.open(name)
        if isinstance(found, Loaded):
            missing = {name for item in self.maps[len(state[0]) :] for name in item.missing}
            if all(map(is_given, missing)):
                return True
        self.maps, self._names, self._sonames, self._files = state
        return False

    def lacks(self, files: Sequence[Loaded]) -> list[Lack]:
        """The versions that libraries of this process do not have, of those that these files ask for."""
        found = []
        for file in files:
            for name, versions in file.binary.needs:
                library = file.found.get(name) or self._names.get(name) or self._sonames.get(name)
                if library and library.binary.defines:
                    absent = sorted(set(versions) - set(library.binary.defines))
                    if absent:
                        found.append(Lack(file, library, tuple(absent)))
        return found

    def _load_needed(self, first: Loaded) -> None:
        """Breadth first, as the loader does: who comes first decides which file a SONAME is."""
        queue = [first]
        for item in queue:
            for name in item.binary.needed:
                before = len(self.maps)
                found = self._map(name, item)
                if isinstance(found, str):
                    item.missing[name] = found
                else:
                    item.found[name] = found
                    if len(self.maps) > before:
                        queue.append(found)

    def _map(self, name: str, asking: Loaded | None) -> Loaded | str:
        self._loader.step(asking)
        if known := self._first(name):
            return known
        found = self._at(name, asking) if "/" in name else self._loader.find(name, asking, self.program)
        if found is None:
            return "not found"
        path, file, how = found
        if file.binary is None:
            return f"{path} is no library"
        if file.binary.machine != self._loader.search.machine:
            return f"{path} is for {file.binary.machine}"
        if same := self._files.get(file.path):
            self._names[name] = same
            return same
        return self._add(name, path, file, file.binary, asking, how)

    def _at(self, name: str, asking: Loaded | None) -> Found | None:
        path = self._loader.expanded(name, asking)
        file = self._loader.at(path) if path else None
        return (path, file, "its path") if path and file else None

    def _first(self, name: str) -> Loaded | None:
        """What is loaded by a name, or by a SONAME: the first of the two in the order of loading."""
        one, other = self._names.get(name), self._sonames.get(name)
        if one and other and one is not other:
            return next(item for item in self.maps if item is one or item is other)
        return one or other

    def _add(self, name: str, path: str, file: File, binary: BinaryFacts, loader: Loaded | None, how: str) -> Loaded:
        added = Loaded(name, path, file, binary, loader, how)
        self.maps.append(added)
        self._names[name] = added
        self._files[file.path] = added
        if binary.soname:
            self._sonames.setdefault(binary.soname, added)
        self._names.setdefault(path, added)
        return added


def closure(first: Loaded) -> list[Loaded]:
    """A file and all that it needs, each once, nearest first."""
    found = [first]
    seen = {id(first)}
    for item in found:
        for needed in item.found.values():
            if id(needed) not in seen:
                seen.add(id(needed))
                found.append(needed)
    return found
