"""What could go from an image, with its size: nothing goes by itself, a profile's `slim` has to name it. Pure.

What is listed is what the binaries and names say; whether a program misses it is for whoever knows the program. Nothing is
found out by running it.
"""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from builder.findings.root import File
from builder.findings.scan import Scan
from builder.gpu import architectures
from builder.sources import slim

_SITE = re.compile(r"/opt/venv/lib/python[\d.]+/site-packages/(.+)")
_STATIC = re.compile(r".+\.(?:a|la|o)")
_HEADER = re.compile(r".+\.(?:h|hh|hpp|hxx|cuh|inl|inc|ipp|tcc)")
_TESTS = ("test", "tests")
_MODULE = re.compile(r".+\.cpython-(\d)(\d+)[^.]*\.so")
_LEAST = 100_000
_LEAST_COPY = 64 << 10
_MOST_RULES = 6


@dataclass(frozen=True)
class Saving:
    """What could go: `size` bytes in `files` files of an input. `rule` is what to write for it, empty
    for what cannot be left out."""

    kind: str
    owner: str
    what: str
    size: int
    files: int
    rule: str


def savings(
    scan: Scan, python: str | None, *, asked: Collection[str] = (), require: Collection[str] = (), devel: bool = False
) -> tuple[Saving, ...]:
    """What could go, the largest first. `python` is `3.N`; `asked` are the Debian packages that the profile names, `require`
    the GPU architectures that it requires; in a `devel` image headers and static libraries are there to be used."""
    gpus = tuple(architectures.number(name) for name in require)
    wheels: dict[str, list[tuple[str, File]]] = defaultdict(list)
    for file in scan.root.files.values():
        match = _SITE.fullmatch(file.path) if file.kind == "wheel" else None
        if match and not slim.is_kept(match[1]):
            wheels[file.owner].append((match[1], file))
    found: list[Saving] = [*_unused_wheels(scan, wheels), *_unused_debs(scan, asked), *_copies(wheels)]
    for owner, files in wheels.items():
        if not devel or not owner.startswith("nvidia-"):
            found += _matching(owner, files, "static libraries", lambda path, _: _STATIC.fullmatch(path) is not None)
            found += _matching(owner, files, "headers", lambda path, _: _is_header(path))
        found += _matching(owner, files, "tests", lambda path, _: _is_test(path))
        found += _matching(owner, files, "modules for another Python", lambda path, _: _is_for_another(path, python))
        if gpus:
            found += _matching(owner, files, "code for other GPUs", lambda _, file: _is_for_others(file, gpus))
            found += _inner_code(owner, files, gpus)
    return tuple(sorted((item for item in found if item.size >= _LEAST), key=lambda item: (-item.size, item.owner)))


def _matching(
    owner: str, files: Iterable[tuple[str, File]], kind: str, test: Callable[[str, File], bool]
) -> Iterator[Saving]:
    going = [(path, file) for path, file in files if test(path, file)]
    if going:
        project = owner.partition(" ")[0]
        rule = f"{{wheels: [{project}], drop: [{', '.join(_patterns(kind, [path for path, _ in going]))}]}}"
        yield Saving(kind, owner, kind, sum(file.size for _, file in going), len(going), rule)


def _patterns(kind: str, paths: Collection[str]) -> list[str]:
    """Patterns for all these paths: by their endings, or by the folders that they are in."""
    if kind == "static libraries":
        return sorted({f'"*{posixpath.splitext(path)[1]}"' for path in paths})
    if kind == "tests":
        return sorted({part for path in paths for part in path.split("/")[:-1] if part in _TESTS})
    folders: set[str] = set()
    for path in paths:
        parts = path.split("/")
        cut = next((depth for depth, part in enumerate(parts[:-1], 1) if part == "include"), len(parts))
        folders.add("/".join(parts[:cut]))
    shown = sorted(folders)
    return shown if len(shown) <= _MOST_RULES else [*shown[:_MOST_RULES], "..."]


def _is_header(path: str) -> bool:
    return "/include/" in f"/{path}" and _HEADER.fullmatch(path) is not None


def _is_test(path: str) -> bool:
    return any(part in _TESTS for part in path.split("/")[:-1])


def _is_for_another(path: str, python: str | None) -> bool:
    match = _MODULE.fullmatch(path)
    return match is not None and python is not None and f"{match[1]}.{match[2]}" != python


def _is_for_others(file: File, gpus: Collection[int]) -> bool:
    """Whether a file is GPU code and nothing else, for none of these GPUs."""
    if file.binary is None or file.binary.machine != "cuda":
        return False
    return not any(_serves(name, gpus) for name in (*file.binary.sass, *file.binary.ptx))


def _serves(code: str, gpus: Collection[int]) -> bool:
    return any(architectures.runs(code, gpu) or architectures.compiles(code, gpu) for gpu in gpus)


def _inner_code(owner: str, files: Iterable[tuple[str, File]], gpus: Collection[int]) -> Iterator[Saving]:
    """GPU code in libraries, for none of these GPUs: it cannot go, as files are left out whole or not at all."""
    size = count = 0
    for _, file in files:
        if file.binary and file.binary.machine != "cuda":
            others = sum(size for name, size in file.binary.code if not _serves(name, gpus))
            size += others
            count += others > 0
    if size:
        yield Saving("code for other GPUs", owner, "code for other GPUs inside libraries", size, count, "")


def _unused_wheels(scan: Scan, wheels: Mapping[str, list[tuple[str, File]]]) -> Iterator[Saving]:
    """NVIDIA's wheels that are libraries and nothing else, of which no file of another one needs or names one."""
    used = {edge.target.owner for edge in scan.edges if edge.file.owner != edge.target.owner}
    named: dict[str, set[str]] = defaultdict(set)
    for owner, name in _named(scan):
        named[name.partition(".so")[0]].add(owner)
    for owner, files in wheels.items():
        libraries = [(path, file) for path, file in files if file.binary]
        is_plain = all(path.startswith("nvidia/") for path, _ in files)
        if not owner.startswith("nvidia-") or not libraries or not is_plain or owner in used:
            continue
        if any(named[posixpath.basename(path).partition(".so")[0]] - {owner} for path, _ in libraries):
            continue
        project = owner.partition(" ")[0]
        size = sum(file.size for _, file in files)
        rule = f"{{wheels: [{project}], drop: [{', '.join(sorted(path for path, _ in libraries)[:_MOST_RULES])}]}}"
        yield Saving("packages", owner, "no binary needs or names a library of it", size, len(files), rule)


def _named(scan: Scan) -> Iterator[tuple[str, str]]:
    """Who names which libraries, in files or as it is known to do."""
    for file in scan.root.binaries:
        for name in file.binary.opens if file.binary else ():
            yield file.owner, name
    for file, name in scan.opens:
        yield file.owner, name


def _unused_debs(scan: Scan, asked: Collection[str]) -> Iterator[Saving]:
    """Debian packages that are libraries and nothing else, which nobody asked for and nothing needs."""
    used = {edge.target.owner for edge in scan.edges if edge.file.owner != edge.target.owner}
    opened = {name for file in scan.root.binaries if file.binary for name in file.binary.opens}
    debs: dict[str, list[File]] = defaultdict(list)
    for file in scan.root.files.values():
        if file.kind == "deb":
            debs[file.owner].append(file)
    for owner, files in debs.items():
        name = owner.partition(" ")[0]
        libraries = [file for file in files if file.binary]
        if name in asked or owner in used or not libraries or not name.startswith("lib"):
            continue
        sonames = {file.binary.soname for file in libraries if file.binary}
        if None in sonames or sonames & opened:
            continue
        size = sum(file.size for file in files)
        yield Saving(
            "packages", owner, "no binary needs a library of it", size, len(files), f"base: {{skip: [{name}]}}"
        )


def _copies(wheels: Mapping[str, list[tuple[str, File]]]) -> Iterator[Saving]:
    """Files of wheels that are there twice with the same bytes, by size and checksum."""
    groups: dict[tuple[int, str], list[tuple[str, File]]] = defaultdict(list)
    for files in wheels.values():
        for path, file in files:
            if file.size >= _LEAST_COPY and file.checksum:
                groups[file.size, file.checksum].append((path, file))
    for (size, _), files in groups.items():
        if len(files) > 1:
            (kept, _), *going = sorted(files, key=lambda pair: (not pair[0].startswith("nvidia/"), pair[0]))
            owners = sorted({file.owner for _, file in going})
            what = f"{', '.join(path for path, _ in going)}: the same as {kept}"
            projects = ", ".join(owner.partition(" ")[0] for owner in owners)
            rule = f"{{wheels: [{projects}], drop: [{', '.join(path for path, _ in going)}]}}"
            yield Saving("copies", ", ".join(owners), what, size * len(going), len(going), rule)


def as_documents(items: Iterable[Saving]) -> list[Mapping[str, object]]:
    """The savings for programs."""
    return [
        {
            "kind": item.kind,
            "of": item.owner,
            "what": item.what,
            "size": item.size,
            "files": item.files,
            "rule": item.rule,
        }
        for item in items
    ]
