"""Reads one .deb (deb(5)): an ar archive of a version, a control tar and a data tar; hostile until read.

Nothing of a package is run. Its files are unpacked to a spool, so that memory does not grow with the package.
"""

from __future__ import annotations

import importlib
import lzma
import re
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import zip_longest
from pathlib import Path
from typing import BinaryIO, Protocol

from builder.errors import HostileInputError
from builder.layers.tar import Entry, Kind
from builder.layers.unpack import chunks
from builder.sources import debtar
from builder.sources.control import fields

LIMIT = 8 << 30
"""How many bytes one package may unpack to."""
RATIO = 1000
"""How many times its size a package may unpack to, beyond the first 64 MiB."""

_MAGIC = b"!<arch>\n"
_MEMBER = re.compile(rb"([^\0]{16})([0-9 ]{12})([0-9 ]{6})([0-9 ]{6})([0-7 ]{8})([0-9]{1,10}) *`\n")
_MEMBER_SIZE = 60
_VERSION = re.compile(rb"2\.[0-9]+\n.*", re.S)
_FREE = 64 << 20
_CONTROL_LIMIT = 16 << 20
_PIECE = 1 << 20
_ORDER = ("debian-binary", "control.tar", "data.tar")
_NAMED = ("package", "version", "architecture")


@dataclass(frozen=True)
class Deb:
    """What a .deb holds. `control` is its stanza, `md5sums` the text of the control member of that name, or empty;
    `entries` are in the order of the data tar, as the package has them: no path is rewritten, nothing is left out."""

    label: str
    control: str
    fields: Mapping[str, str]
    md5sums: str
    entries: tuple[Entry, ...]

    @property
    def name(self) -> str:
        return self.fields["package"]

    @property
    def version(self) -> str:
        return self.fields["version"]


def read(path: Path, spool: Path, label: str = "", *, limit: int = LIMIT, ratio: int = RATIO) -> Deb:
    """Reads a .deb; `spool` is a file that is made, and has to stay as long as the entries are used.

    Raises `HostileInputError`, which names the .deb (`label`, or the file's name) and the member, for what is damaged,
    is not a .deb, or unpacks to more than `limit` bytes or `ratio` times its size.
    """
    label = label or path.name
    with path.open("rb") as file:
        members = _members(file, label)
        control, data = members[1:]
        _unpack(file, control, spool, label, _CONTROL_LIMIT, ratio)
        found = debtar.read(spool, f"{label}: {control.name}", _CONTROL_LIMIT)
        stanza, md5sums = _control_file(found, "control", label), _control_file(found, "md5sums", label)
        _unpack(file, data, spool, label, limit, ratio)
    entries = debtar.read(spool, label, limit)
    return Deb(label, stanza, _fields(stanza, label), md5sums, tuple(entries.values()))


@dataclass(frozen=True, slots=True)
class _Member:
    """A member of the ar archive, by where its bytes are."""

    name: str
    offset: int
    size: int


def _members(file: BinaryIO, label: str) -> list[_Member]:
    """The members in their order: debian-binary, control.tar*, data.tar*; others start with `_` and are ignored."""
    end = file.seek(0, 2)
    file.seek(0)
    if file.read(len(_MAGIC)) != _MAGIC:
        raise HostileInputError(f"{label}: it is no ar archive, so no .deb")
    found: list[_Member] = []
    offset = len(_MAGIC)
    while offset < end:
        file.seek(offset)
        match = _MEMBER.fullmatch(file.read(_MEMBER_SIZE))
        if not match:
            raise HostileInputError(f"{label}: ar header at {offset}: it is damaged or truncated")
        name = match[1].decode(errors="backslashreplace").rstrip(" ").removesuffix("/")
        member = _Member(name, offset + _MEMBER_SIZE, int(match[6]))
        offset = member.offset + member.size
        if offset > end:
            raise HostileInputError(f"{label}: {name}: it is truncated")
        if offset % 2 and offset < end:
            file.seek(offset)
            if file.read(1) != b"\n":
                raise HostileInputError(f"{label}: {name}: its size is not that of its bytes")
            offset += 1
        if not (found and name.startswith("_")):
            found.append(member)
    _check_order([member.name for member in found], label)
    file.seek(found[0].offset)
    if found[0].size > 64 or not _VERSION.fullmatch(file.read(found[0].size)):
        raise HostileInputError(f"{label}: debian-binary: the format is not 2.x")
    return found


def _check_order(names: list[str], label: str) -> None:
    for name, wanted in zip_longest(names, _ORDER):
        if wanted is None:
            raise HostileInputError(f"{label}: member {name!r}: nothing more is expected after data.tar")
        if name is None:
            raise HostileInputError(f"{label}: it has no {wanted}")
        if name != wanted and not (wanted.endswith(".tar") and name.startswith(f"{wanted}.")):
            raise HostileInputError(f"{label}: member {name!r}: {wanted} is expected here")


def _control_file(entries: Mapping[str, Entry], name: str, label: str) -> str:
    entry = entries.get(name)
    if entry is None or entry.kind is not Kind.FILE:
        if name != "control":
            return ""
        raise HostileInputError(f"{label}: control.tar: it has no file {name}")
    try:
        return b"".join(chunks(entry.content)).decode()
    except UnicodeDecodeError as error:
        raise HostileInputError(f"{label}: {name}: it is not UTF-8") from error


def _fields(stanza: str, label: str) -> dict[str, str]:
    try:
        found = fields(stanza.strip("\n"))
    except ValueError as error:
        raise HostileInputError(f"{label}: control: {error}") from error
    for name in _NAMED:
        if not found.get(name):
            raise HostileInputError(f"{label}: control: it has no field {name.title()}")
    return found


def _unpack(file: BinaryIO, member: _Member, spool: Path, label: str, limit: int, ratio: int) -> None:
    """Unpacks a member of the ar archive to the spool, whose bytes are replaced."""
    where = f"{label}: {member.name}"
    allowed = min(limit, max(_FREE, member.size * ratio))
    total = 0
    with spool.open("wb") as out:  # an unbuffered file may write a part only, as where the disk is full
        try:
            for piece in _decompressed(file, member, where):
                total += len(piece)
                if total > allowed:
                    raise HostileInputError(f"{where}: it unpacks to more than {allowed} bytes")
                out.write(piece)
        except (lzma.LZMAError, zlib.error, EOFError) as error:
            raise HostileInputError(f"{where}: it is damaged: {error}") from error


class _Decompressor(Protocol):
    """What lzma's and zstd's decompressors have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes: ...


def _decompressed(file: BinaryIO, member: _Member, where: str) -> Iterator[bytes]:
    """The bytes of a member, in pieces of bounded size; one stream after the other, as the tools that wrote them do."""
    suffix = member.name.partition(".tar")[2]
    if suffix == "":
        yield from _raw(file, member)
        return
    if suffix not in _DECOMPRESSORS:
        raise HostileInputError(f"{where}: compression {suffix} is not one of {', '.join(_DECOMPRESSORS)}, or none")
    decompressor: _Decompressor | None = None
    for data in _raw(file, member):
        while data or (decompressor and not decompressor.needs_input and not decompressor.eof):
            decompressor = decompressor or _DECOMPRESSORS[suffix](where)
            piece = decompressor.decompress(data, _PIECE)
            data = b""
            if piece:
                yield piece
            if decompressor.eof:
                data, decompressor = decompressor.unused_data, None
    if decompressor:
        raise EOFError("it ends within its stream")


def _raw(file: BinaryIO, member: _Member) -> Iterator[bytes]:
    file.seek(member.offset)
    left = member.size
    while left:
        data = file.read(min(left, _PIECE))
        if not data:
            raise EOFError("the file ends within it")
        left -= len(data)
        yield data


class _Gunzip:
    """zlib's decompressor in the words of lzma's."""

    def __init__(self) -> None:
        self._inflate = zlib.decompressobj(31)
        self._pending = b""

    @property
    def eof(self) -> bool:
        return self._inflate.eof

    @property
    def needs_input(self) -> bool:
        return not self._pending

    @property
    def unused_data(self) -> bytes:
        return self._inflate.unused_data

    def decompress(self, data: bytes, max_length: int = -1, /) -> bytes:
        piece = self._inflate.decompress(self._pending + data, max_length)
        self._pending = self._inflate.unconsumed_tail
        return piece


def _gunzip(where: str) -> _Decompressor:
    return _Gunzip()


def _unxz(where: str) -> _Decompressor:
    return lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=128 << 20)


def _unzstd(where: str) -> _Decompressor:
    try:
        module = importlib.import_module("compression.zstd")
    except ImportError as error:
        raise HostileInputError(
            f"{where}: zstd is not supported by this Python",
            hint="run with Python 3.14 or later, or repack the .deb: `dpkg-deb -R`, then `dpkg-deb -b -Zxz`",
        ) from error
    decompressor: _Decompressor = module.ZstdDecompressor()
    return decompressor


_DECOMPRESSORS: Mapping[str, Callable[[str], _Decompressor]] = {".gz": _gunzip, ".xz": _unxz, ".zst": _unzstd}
