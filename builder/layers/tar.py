"""Tar headers: one way to write an entry (POSIX.1-2017 ustar, with pax records where ustar is too small)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from builder.layers.spans import TocEntry

BLOCK = 512
MTIME = 315532800
"""1980-01-01T00:00:00Z: one constant for all, because 0 breaks software and any other choice splits layers."""
END = bytes(2 * BLOCK)


class Kind(StrEnum):
    """What an entry is."""

    FILE = "file"
    DIR = "dir"
    SYMLINK = "symlink"


@dataclass(frozen=True, slots=True)
class Inline:
    """Content in memory."""

    data: bytes

    @property
    def size(self) -> int:
        return len(self.data)


@dataclass(frozen=True, slots=True)
class Region:
    """Content that is a range of a plain file, checked against `crc32` and `recorded` where they are given.

    `recorded` is (hashlib's name of the algorithm, hexadecimal digest); `label` names the content in errors.
    """

    path: Path
    offset: int
    size: int
    label: str = ""
    crc32: int | None = None
    recorded: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Member:
    """Content that lies in a file as one raw deflate stream (RFC 1951), as a wheel's members do.

    `size` and `crc32` are what the archive says of the inflated bytes, and `recorded` (hashlib's name of the
    algorithm, hexadecimal digest) what the wheel's RECORD says of them; all are checked while the stream is copied.
    `label` names it in errors.
    """

    path: Path
    offset: int
    compressed_size: int
    size: int
    crc32: int
    label: str
    recorded: tuple[str, str] | None = None


Content = Inline | Region | Member


@dataclass(frozen=True, slots=True)
class Entry:
    """One member of a layer. `path` is relative and normal: `/` between parts, none at the ends, no `.` and no `..`.

    `mode` holds permission bits, setuid, setgid and sticky; the time (seconds since 1970) is the same for all entries but those
    that Nix made. The owner is root but for folders of an image that this one stands on.
    """

    path: str
    kind: Kind = Kind.FILE
    mode: int = 0o644
    content: Content = field(default=Inline(b""))
    linkname: str = ""
    uid: int = 0
    gid: int = 0
    mtime: int = MTIME

    @property
    def size(self) -> int:
        return self.content.size if self.kind is Kind.FILE else 0


_TYPEFLAG = {Kind.FILE: b"0", Kind.DIR: b"5", Kind.SYMLINK: b"2"}
_TOC_TYPE = {Kind.FILE: "reg", Kind.DIR: "dir", Kind.SYMLINK: "symlink"}
_MAX_OCTAL_SIZE = 0o77777777777
_MAX_OCTAL_ID = 0o7777777


def header(entry: Entry) -> bytes:
    """The header blocks of an entry: one ustar block, preceded by a pax header if a field does not fit."""
    name = _name(entry)
    records = _pax_records(entry, name)
    block = _block(
        name.encode()[:100] if records else name.encode(),
        entry.mode,
        entry.size if entry.size <= _MAX_OCTAL_SIZE else 0,
        _TYPEFLAG[entry.kind],
        entry.linkname.encode()[:100],
        entry.uid if entry.uid <= _MAX_OCTAL_ID else 0,
        entry.gid if entry.gid <= _MAX_OCTAL_ID else 0,
        entry.mtime,
    )
    if not records:
        return block
    body = b"".join(_pax_record(key, value) for key, value in records)
    pax = _block(b"PaxHeaders.0/" + name.encode()[:87], 0o644, len(body), b"x", b"")
    return pax + body + bytes(-len(body) % BLOCK) + block


def padding(size: int) -> bytes:
    """The zeros that fill the last block of `size` bytes of content."""
    return bytes(-size % BLOCK)


def toc_entry(entry: Entry, offset: int) -> TocEntry:
    """What a table of contents says of an entry whose content starts at `offset` of the tar."""
    name = _name(entry)
    return TocEntry(
        name=name,
        type=_TOC_TYPE[entry.kind],
        offset=offset,
        size=entry.size,
        linkname=entry.linkname,
        mode=entry.mode,
        uid=entry.uid,
        gid=entry.gid,
        uname="",
        gname="",
        mtime=entry.mtime,
        pax=tuple(sorted(_pax_records(entry, name))),
    )


def _name(entry: Entry) -> str:
    return entry.path + "/" if entry.kind is Kind.DIR else entry.path


def _pax_records(entry: Entry, name: str) -> list[tuple[str, str]]:
    """Records for what ustar cannot say. The prefix field is not used: a long or non-ASCII name always takes a record,
    so that every reader agrees about it."""
    records = []
    if len(name.encode()) > 100 or not name.isascii():
        records.append(("path", name))
    if len(entry.linkname.encode()) > 100 or not entry.linkname.isascii():
        records.append(("linkpath", entry.linkname))
    if entry.size > _MAX_OCTAL_SIZE:
        records.append(("size", str(entry.size)))
    records += [(key, str(value)) for key, value in (("uid", entry.uid), ("gid", entry.gid)) if value > _MAX_OCTAL_ID]
    return records


def _pax_record(key: str, value: str) -> bytes:
    """`LENGTH key=value\\n`, where LENGTH counts itself."""
    rest = b" %s=%s\n" % (key.encode(), value.encode())
    length = len(rest)
    while length != len(rest) + len(str(length)):
        length = len(rest) + len(str(length))
    return str(length).encode() + rest


def _block(
    name: bytes,
    mode: int,
    size: int,
    typeflag: bytes,
    linkname: bytes,
    uid: int = 0,
    gid: int = 0,
    mtime: int = MTIME,
) -> bytes:
    block = b"".join(
        (
            name.ljust(100, b"\0"),
            b"%07o\0" % mode,
            b"%07o\0" % uid,
            b"%07o\0" % gid,
            b"%011o\0" % size,
            b"%011o\0" % mtime,
            b"        ",
            typeflag,
            linkname.ljust(100, b"\0"),
            b"ustar\x0000",
            bytes(64),
            b"0000000\0",
            b"0000000\0",
            bytes(167),
        )
    )
    return block[:148] + b"%06o\0 " % sum(block) + block[156:]
