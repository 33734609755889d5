"""Reads and writes Nix archives: the one form of a store path's content, whose sha256 is its narHash. What is read is foreign.

The form (Nix manual, "Nix Archive Format"): text is a length of eight bytes, little-endian, the bytes, and zeros up to a
multiple of eight. A node is `( type regular [executable ""] contents BYTES )`, `( type symlink target TEXT )` or
`( type directory { entry ( name TEXT node NODE ) } )`, with names in strictly ascending order.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from builder.errors import HostileInputError
from builder.layers.tar import Kind

MAGIC = b"nix-archive-1"
_BLOCK = 1 << 20
_MAX_NAME = 255
_MAX_TARGET = 4095
_MAX_DEPTH = 256
_MAX_NODES = 4_000_000


@dataclass(frozen=True, slots=True)
class Node:
    """One file, folder or symlink: `path` below the store path, empty for itself; where the content of a file begins in the
    archive, and its `size`, both in bytes."""

    path: str
    kind: Kind
    offset: int = 0
    size: int = 0
    executable: bool = False
    target: str = ""


def read(path: Path, label: str) -> tuple[Node, ...]:
    """The nodes of the archive in a file, folders before what is in them. Contents are not read.

    Raises `HostileInputError`, with `label` as the archive's name, for all that is not in the form.
    """
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        reader = _Reader(file, size, label)
        reader.expect(MAGIC)
        nodes = tuple(reader.node("", 0))
        if file.tell() != size:
            raise reader.error("there are bytes after its end")
    return nodes


class _Reader:
    def __init__(self, file: BinaryIO, size: int, label: str) -> None:
        self._file, self._size, self._label = file, size, label
        self._count = 0

    def error(self, problem: str) -> HostileInputError:
        return HostileInputError(f"{self._label}: no archive of Nix: {problem}")

    def node(self, path: str, depth: int) -> Iterator[Node]:
        self._count += 1
        if depth > _MAX_DEPTH or self._count > _MAX_NODES:
            raise self.error(f"more than {_MAX_DEPTH} folders in one another, or {_MAX_NODES} files")
        self.expect(b"(")
        self.expect(b"type")
        match self.word():
            case b"regular":
                yield self._regular(path)
            case b"symlink":
                self.expect(b"target")
                target = self._text(_MAX_TARGET, path)
                if not target:
                    raise self.error(f"{path}: a symlink to nothing")
                yield Node(path, Kind.SYMLINK, target=target)
                self.expect(b")")
            case b"directory":
                yield Node(path, Kind.DIR)
                yield from self._entries(path, depth)
            case other:
                raise self.error(f"{path}: it is a {other!r}")

    def expect(self, word: bytes) -> None:
        found = self.word()
        if found != word:
            raise self.error(f"expected {word.decode()}, found {found!r} before byte {self._file.tell()}")

    def word(self) -> bytes:
        return self._bytes(len(MAGIC))

    def _regular(self, path: str) -> Node:
        word, executable = self.word(), False
        if word == b"executable":
            self.expect(b"")
            word, executable = self.word(), True
        if word == b")":
            return Node(path, Kind.FILE, self._file.tell(), 0, executable)
        if word != b"contents":
            raise self.error(f"{path}: expected contents, found {word!r}")
        length = self._length()
        offset = self._file.tell()
        if length > self._size - offset:
            raise self.error(f"{path}: the archive ends inside of its data")
        self._file.seek(length, 1)
        self._padding(length)
        self.expect(b")")
        return Node(path, Kind.FILE, offset, length, executable)

    def _entries(self, path: str, depth: int) -> Iterator[Node]:
        before = ""
        while (word := self.word()) == b"entry":
            self.expect(b"(")
            self.expect(b"name")
            name = self._text(_MAX_NAME, path)
            if name in ("", ".", "..") or "/" in name:
                raise self.error(f"{path}: {name!r} is no name of a file")
            if name.encode() <= before.encode():
                raise self.error(f"{path}: {name!r} stands after {before!r}")
            before = name
            self.expect(b"node")
            yield from self.node(f"{path}/{name}" if path else name, depth + 1)
            self.expect(b")")
        if word != b")":
            raise self.error(f"{path}: expected an entry, found {word!r}")

    def _text(self, most: int, path: str) -> str:
        data = self._bytes(most)
        if b"\0" in data:
            raise self.error(f"{path}: a zero byte in a name")
        try:
            return data.decode()
        except UnicodeDecodeError as error:
            raise self.error(f"{path}: {data!r} is not UTF-8") from error

    def _bytes(self, most: int) -> bytes:
        length = self._length()
        if length > most:
            raise self.error(
                f"a text of {length} bytes before byte {self._file.tell()}, where at most {most} are right"
            )
        data = self._file.read(length)
        if len(data) != length:
            raise self.error("it ends too early")
        self._padding(length)
        return data

    def _length(self) -> int:
        data = self._file.read(8)
        if len(data) != 8:
            raise self.error("it ends too early")
        return int.from_bytes(data, "little")

    def _padding(self, length: int) -> None:
        if self._file.read(-length % 8) != bytes(-length % 8):
            raise self.error(f"no zeros as padding before byte {self._file.tell()}")


def write(top: Path, out: BinaryIO) -> None:
    """Writes the archive of what is on the disk: symlinks as they are, times and owners left out."""
    out.write(_text(MAGIC))
    _write(os.fsencode(top), out)


def _write(path: bytes, out: BinaryIO) -> None:
    status = os.lstat(path)
    if stat.S_ISLNK(status.st_mode):
        out.write(_text(b"(", b"type", b"symlink", b"target", os.readlink(path), b")"))
    elif stat.S_ISDIR(status.st_mode):
        out.write(_text(b"(", b"type", b"directory"))
        for name in sorted(os.listdir(path)):
            out.write(_text(b"entry", b"(", b"name", name, b"node"))
            _write(path + b"/" + name, out)
            out.write(_text(b")"))
        out.write(_text(b")"))
    else:
        flags = (b"executable", b"") if status.st_mode & stat.S_IXUSR else ()
        out.write(_text(b"(", b"type", b"regular", *flags, b"contents"))
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            out.write(size.to_bytes(8, "little"))
            shutil.copyfileobj(file, out, _BLOCK)
        out.write(bytes(-size % 8))
        out.write(_text(b")"))


def _text(*words: bytes) -> bytes:
    return b"".join(len(word).to_bytes(8, "little") + word + bytes(-len(word) % 8) for word in words)
