"""What the files of a base image say of it: its system, its C library, and the Python that wheels can be installed for."""

from __future__ import annotations

import re
import shlex
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass

from builder.base.tree import Node, Tree
from builder.errors import BuilderError
from builder.oci import spec

Read = Callable[[Mapping[str, Node]], Mapping[str, bytes]]
"""Gives the contents of files of a tree by the keys they are asked with."""

_TRIPLES = {"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
_OS_RELEASE = ("/etc/os-release", "/usr/lib/os-release")
_LIBC = re.compile(rb"GNU C Library [^\n\0]{0,120}? version (2\.[0-9]{1,3})")
_CONF = "/etc/ld.so.conf"
_STATUS = "/var/lib/dpkg/status"
_FIELD = re.compile(r"^(Package|Version|Source|Status):([^\n]*)$", re.MULTILINE)
_PACKAGE = re.compile(r"[a-z0-9][a-z0-9+.-]{0,127}")
_VERSION = re.compile(r"[A-Za-z0-9.+:~-]{1,128}")
_PLAIN = re.compile(r"[a-z0-9][a-z0-9._-]*")
_MAX_FILES, _MAX_PACKAGES = 5000, 20_000
_PROGRAM = re.compile(r"python3\.([0-9]{1,2})")
_MUSL = re.compile(r"ld-musl-[a-z0-9_]+\.so\.1")
VENV = "/opt/venv"


class BaseError(BuilderError):
    """An image cannot be the base that the profile asks for."""

    hint = "choose another base image"


@dataclass(frozen=True)
class Interpreter:
    """A Python of the image: `version` as `3.N`, its absolute path, and its full version such as `3.11.2`."""

    version: str
    executable: str
    full_version: str


@dataclass(frozen=True)
class System:
    """What small files say: the system's name for people, its distribution such as `debian-12`, its Debian packages and
    their sources by name, the version of glibc, and the folders that the loader's configuration names."""

    name: str = ""
    distribution: str = ""
    packages: tuple[tuple[str, str], ...] = ()
    sources: tuple[tuple[str, str], ...] = ()
    libc: str = ""
    search: tuple[str, ...] = ()


def system(tree: Tree, read: Read, architecture: str) -> System:
    """All that is told by files which are read together."""
    wanted = {name: node for name, path in _named(tree, architecture) if (node := _file(tree, path))}
    found = read(wanted)
    fields = os_release(next((found[name] for name in _OS_RELEASE if name in found), b""))
    distribution = "-".join(filter(None, (fields.get("ID"), fields.get("VERSION_ID"))))
    name = fields.get("PRETTY_NAME") or distribution.replace("-", " ")
    status = [found[name] for name in sorted(found) if name.startswith(_STATUS)]
    packages, sources = dpkg(b"\n\n".join(status))
    match = next((match for name in found if name.startswith("libc") and (match := _LIBC.search(found[name]))), None)
    return System(
        name[:120],
        distribution[:40] if _PLAIN.fullmatch(distribution) else "",
        packages,
        sources,
        match[1].decode() if match else "",
        _search(found),
    )


def _named(tree: Tree, architecture: str) -> Iterator[tuple[str, str]]:
    """What is read, by names that say what it is."""
    yield from ((path, path) for path in (*_OS_RELEASE, _CONF))
    triple = _TRIPLES.get(architecture, "")
    folders = (f"/lib/{triple}", f"/usr/lib/{triple}", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
    libraries = [f"{folder}/libc.so.6" for folder in folders]
    yield from (("libc", path) for path in [path for path in libraries if _file(tree, path)][:1])
    yield _STATUS, _STATUS
    for folder, suffix in ((f"{_STATUS}.d", ""), (f"{_CONF}.d", ".conf")):
        found = tree.find(folder)
        for name in sorted(found[1].children)[:_MAX_FILES] if found else ():
            if name.endswith(suffix) and not name.endswith(".md5sums"):
                yield f"{folder}/{name}", f"{folder}/{name}"


def _file(tree: Tree, path: str) -> Node | None:
    found = tree.find(path)
    return found[1] if found and found[1].type == "reg" else None


def _search(found: Mapping[str, bytes]) -> tuple[str, ...]:
    """The folders of `/etc/ld.so.conf`, where what it includes stands in the place of that line."""
    folders: list[str] = []
    for line in found.get(_CONF, b"").decode("utf-8", "replace").splitlines():
        words = line.partition("#")[0].split()
        texts = [name for name in sorted(found) if name.startswith(f"{_CONF}.d/")] if words[:1] == ["include"] else []
        lines = [each for name in texts for each in found[name].decode("utf-8", "replace").splitlines()]
        folders += [each.partition("#")[0].strip() for each in (lines if texts else [line])]
    clean = (folder.rstrip("/") for folder in folders if folder.startswith("/") and folder.isprintable())
    return tuple(dict.fromkeys(folder for folder in clean if folder and ".." not in folder.split("/")))[:_MAX_FILES]


def dpkg(data: bytes) -> tuple[tuple[tuple[str, str], ...], tuple[tuple[str, str], ...]]:
    """The packages of a dpkg status file by name, as far as they are installed, and their source packages."""
    packages: dict[str, str] = {}
    sources: dict[str, str] = {}
    for stanza in data.decode("utf-8", "replace").split("\n\n"):
        fields = {match[1]: match[2].strip() for match in _FIELD.finditer(stanza)}
        name, version = fields.get("Package", ""), fields.get("Version", "")
        state = fields.get("Status", "install ok installed").split()
        if not _PACKAGE.fullmatch(name) or not _VERSION.fullmatch(version) or state[-1:] != ["installed"]:
            continue
        packages[name] = version
        source = fields.get("Source", name).partition(" ")[0]
        if source != name and _PACKAGE.fullmatch(source):
            sources[name] = source
        if len(packages) > _MAX_PACKAGES:
            return (), ()
    return tuple(sorted(packages.items())), tuple(sorted(sources.items()))


def os_release(data: bytes) -> dict[str, str]:
    """The assignments of an os-release file; lines that are none are passed over."""
    fields: dict[str, str] = {}
    for line in data[: 64 << 10].decode("utf-8", "replace").splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and name.isidentifier():
            with suppress(ValueError):
                text = " ".join(shlex.split(value))
                fields[name] = "".join(letter for letter in text if letter.isprintable())
    return fields


def has_musl(tree: Tree) -> bool:
    """Whether the C library is musl, for which there are other wheels."""
    folder = tree.find("/lib")
    return folder is not None and any(_MUSL.fullmatch(name) for name in folder[1].children)


def python(tree: Tree, read: Read, wanted: str, path: str) -> Interpreter:
    """The Python of the version `wanted` (`3.N`), else the next newer one; `path` is the image's PATH.

    Raises `BaseError` that tells what Pythons there are.
    """
    minor = int(wanted.partition(".")[2])
    found = dict(reversed([*_pythons(tree, path)]))
    fitting = sorted(number for number in found if number >= minor)
    if not fitting:
        had = ", ".join(f"3.{number} ({place})" for number, place in sorted(found.items()))
        raise BaseError(
            f"there is no Python {wanted} or newer in it: " + (f"it has {had}" if had else "it has none on its PATH"),
            hint="choose a base image with that Python, or write a version that it has under python.version",
        )
    version, executable = f"3.{fitting[0]}", found[fitting[0]]
    return Interpreter(version, executable, _full_version(tree, read, version, executable))


def _pythons(tree: Tree, path: str) -> Iterator[tuple[int, str]]:
    """The minor versions of the Pythons that have a standard library, and where they are, the first on the PATH first."""
    for folder in dict.fromkeys((*filter(None, path.split(":")), *spec.PATH.split(":"))):
        if not folder.startswith("/"):
            continue
        found = tree.find(folder)
        for name, node in sorted(found[1].children.items()) if found and found[1].type == "dir" else ():
            match = _PROGRAM.fullmatch(name)
            target = tree.find(f"{folder}/{name}") if match else None
            if not match or not target or target[1].type != "reg" or not target[1].mode & 0o111:
                continue
            library = tree.find(f"{folder.rstrip('/').rpartition('/')[0]}/lib/{name}/os.py")
            if library and library[1].type == "reg" and node is not None:
                yield int(match[1]), f"{folder.rstrip('/')}/{name}"


def _full_version(tree: Tree, read: Read, version: str, executable: str) -> str:
    """The version that the interpreter itself has among its texts, or its shared library."""
    prefix = executable.rpartition("/bin/")[0]
    libraries = [f"{prefix}/lib/libpython{version}.so.1.0", f"{prefix}/lib64/libpython{version}.so.1.0"]
    libraries += [f"{prefix}/lib/{triple}/libpython{version}.so.1.0" for triple in _TRIPLES.values()]
    pattern = re.compile(rb"\0(%b\.[0-9]{1,3}(?:(?:a|b|rc)[0-9]{1,2})?)\+?\0" % re.escape(version.encode()))
    for path in (executable, *libraries):
        found = tree.find(path)
        if found and found[1].type == "reg":
            match = pattern.search(read({path: found[1]}).get(path, b""))
            if match:
                return match[1].decode()
    raise BaseError(f"{executable} does not say which release of Python {version} it is")
