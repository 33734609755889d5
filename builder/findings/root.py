"""The files of the final root, from the facts of the inputs: paths, symlinks, and which input brings what. Pure."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field

from builder.binaries.facts import BinaryFacts, InputFacts

VENV = "/opt/venv"
_WHITEOUT = re.compile(r"/\.wh\.([^/]+)$")
_HEADER = re.compile(r"/site-packages/nvidia/(?:[^/]+/)+include/.+")
_OPAQUE = ".wh..opq"
_MAX_LINKS = 40
_MERGED = ("bin", "lib", "lib64", "sbin")
"""What a root of Debian packages has as links into /usr."""


@dataclass(frozen=True)
class Input:
    """One input of an image: `name` is what people call it (`torch 2.15.0`), `kind` is `wheel`, `deb`, `image`, `files`
    or `cuda`. `gone` says of a path, relative to site-packages, that it is left out."""

    name: str
    kind: str
    facts: InputFacts
    gone: Callable[[str], bool] | None = None


@dataclass(frozen=True, slots=True)
class File:
    """One file of the root: its absolute, real `path`; `checksum` as in `InputFacts`; `binary` where it is ELF."""

    path: str
    size: int
    checksum: str
    owner: str
    kind: str
    binary: BinaryFacts | None = None


@dataclass
class Root:
    """A file system of names: `files` by real path, `links` by path; `damaged` says why a file is no ELF file though it begins
    as one; `collisions` are (path, wheel, other wheel) where these bring different files."""

    files: dict[str, File] = field(default_factory=dict)
    links: dict[str, str] = field(default_factory=dict)
    folders: dict[str, set[str]] = field(default_factory=lambda: defaultdict(set))
    damaged: dict[str, str] = field(default_factory=dict)
    collisions: list[tuple[str, str, str]] = field(default_factory=list)

    def real(self, path: str) -> str:
        """The path that an absolute path leads to, existing or not; a chain of links without an end leads to itself,
        and so does a path by way of folders that are not there."""
        found: list[str] = []
        parts = [part for part in reversed(path.split("/")) if part not in ("", ".")]
        links = 0
        while parts:
            part = parts.pop()
            if part == "..":
                if "/" + "/".join(found) not in self.folders:
                    return path  # nothing leads there
                del found[-1:]
                continue
            here = "/" + "/".join((*found, part))
            target = self.links.get(here)
            if target is None:
                found.append(part)
                continue
            links += 1
            if links > _MAX_LINKS:
                return path
            if target.startswith("/"):
                found.clear()
            parts += [part for part in reversed(target.split("/")) if part not in ("", ".")]
        return "/" + "/".join(found)

    def file(self, path: str) -> File | None:
        """The file that an absolute path leads to."""
        return self.files.get(path) if path in self.files else self.files.get(self.real(path))

    def names(self, folder: str) -> Iterable[str]:
        """The names in a folder, sorted."""
        return sorted(self.folders.get(self.real(folder), ()))

    def links_in(self, folder: str) -> frozenset[str]:
        """The names of those that are symlinks in a real folder."""
        names = self.folders.get(folder, ())
        return frozenset(name for name in names if posixpath.join(folder, name) in self.links)

    @property
    def binaries(self) -> Iterator[File]:
        """The ELF files, by path."""
        return (file for _, file in sorted(self.files.items()) if file.binary)


def compose(inputs: Iterable[Input], python: str | None) -> Root:
    """The root of some inputs, bottom first: what comes later replaces what is there. `python` is `3.N`."""
    root = Root()
    site = f"{VENV}/lib/python{python}/site-packages"

    def place(path: str) -> str:
        if path.startswith("/"):
            return path
        kind, _, rest = path.partition("/")
        return f"{site}/{rest}" if kind == "site" else f"{VENV}/{rest}"

    inputs = tuple(inputs)
    if any(item.kind == "deb" for item in inputs):
        for name in _MERGED:
            _link(root, f"/{name}", f"usr/{name}")
    for item in inputs:
        root.damaged |= {f"{item.name}: {path.partition('/')[2]}": why for path, why in item.facts.damaged}
        if item.kind == "image":
            _hide(root, item.facts)
        binaries = {binary.path: binary for binary in item.facts.binaries}
        for path, target in item.facts.links:
            _link(root, place(path), target)
        for path, size, checksum in item.facts.files:
            if not _WHITEOUT.search(path) and not (item.gone and item.gone(_relative(path))):
                _put(root, place(path), File("", size, checksum, item.name, item.kind, binaries.get(path)))
    return root


def _hide(root: Root, facts: InputFacts) -> None:
    """What a layer of an image says is gone: a name, or all that is in a folder."""
    for path, _, _ in facts.files:
        if match := _WHITEOUT.search(path):
            folder = root.real(path[: match.start()] or "/")
            names = list(root.folders[folder]) if match[1] == _OPAQUE else [match[1]]
            for name in names:
                _remove(root, folder, name)


def _remove(root: Root, folder: str, name: str) -> None:
    root.folders[folder].discard(name)
    going = [posixpath.join(folder, name)]
    while going:
        path = going.pop()
        root.files.pop(path, None)
        root.links.pop(path, None)
        going += [posixpath.join(path, each) for each in root.folders.pop(path, ())]


def _relative(path: str) -> str:
    """A path of facts as RECORD writes it."""
    kind, _, rest = path.partition("/")
    return rest if kind == "site" else f"../../../{rest}"


def _put(root: Root, path: str, file: File) -> None:
    folder, name = posixpath.split(path)
    real = posixpath.join(root.real(folder), name)
    known = root.files.get(real)
    if known and _collides(known, file, real):
        root.collisions.append((real, known.owner, file.owner))
    _remove(root, *posixpath.split(real))
    root.files[real] = File(real, file.size, file.checksum, file.owner, file.kind, file.binary)
    _enter(root, real)


def _collides(one: File, other: File, path: str) -> bool:
    """Whether two wheels bring different files of one path, and packing has no rule for it, as for NVIDIA's headers."""
    if not one.kind == other.kind == "wheel" or (one.size, one.checksum) == (other.size, other.checksum):
        return False
    is_nvidias = one.owner.startswith("nvidia-") and other.owner.startswith("nvidia-")
    return not (is_nvidias and _HEADER.search(path))


def _link(root: Root, path: str, target: str) -> None:
    folder, name = posixpath.split(path)
    real = posixpath.join(root.real(folder), name)
    _remove(root, *posixpath.split(real))  # a link hides a folder
    root.links[real] = target
    _enter(root, real)


def _enter(root: Root, path: str) -> None:
    folder, name = posixpath.split(path)
    while name and name not in root.folders[folder]:
        root.folders[folder].add(name)
        folder, name = posixpath.split(folder)


def owners(root: Root) -> Mapping[str, int]:
    """Bytes of files by the input that brings them."""
    sizes: dict[str, int] = defaultdict(int)
    for file in root.files.values():
        sizes[file.owner] += file.size
    return sizes
