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


def system(tree: Tree, read: Read) -> str:
    """The name of the system for people, such as `Debian GNU/Linux 12 (bookworm)`; empty where it says none."""
    for path in _OS_RELEASE:
        found = tree.find(path)
        if found and found[1].type == "reg":
            fields = os_release(read({path: found[1]}).get(path, b""))
            return (fields.get("PRETTY_NAME") or " ".join(filter(None, (fields.get("ID"), fields.get("VERSION_ID")))))[
                :120
            ]
    return ""


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


def libc(tree: Tree, read: Read, architecture: str) -> str:
    """The version of glibc, such as `2.36`; empty where there is none."""
    triple = _TRIPLES.get(architecture, "")
    folders = (f"/lib/{triple}", f"/usr/lib/{triple}", "/lib64", "/usr/lib64", "/lib", "/usr/lib")
    for folder in folders:
        found = tree.find(f"{folder}/libc.so.6")
        if found and found[1].type == "reg":
            match = _LIBC.search(read({"libc": found[1]}).get("libc", b""))
            return match[1].decode() if match else ""
    return ""


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
