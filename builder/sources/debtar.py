"""The tar inside a .deb: v7, ustar or GNU with long names, and nothing else (deb(5)); hostile until read.

Owners and times are not kept (a layer has one of each), and modes become few: files 0755 or 0644 by the owner's exec
bit, directories 0755. Setuid and setgid stay where the owner, or the group, is root: for anybody else the bit would
turn into one for root. A directory that is sticky and open to all stays 1777.

A layer has no hard links. One to a file of up to 64 KiB becomes a copy, one to a larger file a symlink to it: twenty names
of one graphics driver would be a gigabyte.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NoReturn

from builder.errors import HostileInputError
from builder.layers.tar import BLOCK, Entry, Inline, Kind, Region
from builder.layers.unpack import same_content

MAX_ENTRIES = 1_000_000
_INLINE = 4096 - BLOCK
_MAX_COPY = 64 << 10
_MAX_PATH = 4095
_MAX_PART = 255
_OCTAL = re.compile(rb" *([0-7]*)[ \0]*")
_REFUSED = {
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a fifo",
    b"7": "a contiguous file",
    b"S": "a sparse file",
    b"x": "a pax header",
    b"g": "a global pax header",
}


@dataclass(frozen=True, slots=True)
class _Where:
    """The member that is being read, for messages."""

    label: str
    member: str

    def refuse(self, why: str) -> NoReturn:
        raise HostileInputError(f"{self.label}: {self.member}: {why}")


@dataclass(frozen=True, slots=True)
class _Header:
    """One header block, its long names already put in."""

    path: str
    type: bytes
    mode: int
    uid: int
    gid: int
    size: int
    linkname: str


def read(spool: Path, label: str, limit: int) -> dict[str, Entry]:
    """The entries of a tar file by path, in its order; contents of more than a few kilobytes stay regions of the file.

    What copies of hard links add counts towards `limit`, in bytes. Raises `HostileInputError`, which names the member,
    for anything that is not as it should be.
    """
    entries: dict[str, Entry] = {}
    files: dict[str, Entry] = {}
    with spool.open("rb", buffering=0) as file:
        end = os.fstat(file.fileno()).st_size
        total = end
        for header, offset, inline in _headers(file.fileno(), end, label):
            where = _Where(label, header.path or ".")
            if not header.path:
                if header.type != b"5":
                    where.refuse("it has no name")
                continue
            if header.type == b"1":
                file_entry = files.get(header.linkname)
                if file_entry is None:
                    where.refuse(f"it is a hard link to {header.linkname!r}, which is no file before it")
                entry = _linked(header.path, file_entry)
                total += entry.size
                if total > limit:
                    where.refuse(f"its hard links make the package larger than {limit} bytes")
            else:
                region = Region(spool, offset, header.size, f"{label}: {header.path}")
                entry = file_entry = _entry(header, Inline(inline) if header.size <= _INLINE else region)
            if file_entry.kind is Kind.FILE:
                files[header.path] = file_entry
            known = entries.setdefault(entry.path, entry)
            if not _same(known, entry):
                where.refuse("it comes twice, and differs")
            if len(entries) > MAX_ENTRIES:
                where.refuse(f"the package has more than {MAX_ENTRIES} members")
    _check_parents(entries, label)
    return entries


def _headers(fd: int, end: int, label: str) -> Iterator[tuple[_Header, int, bytes]]:
    """Each header, where its content starts, and that content if it is small."""
    offset = 0
    long: dict[bytes, bytes] = {}
    while True:
        where = _Where(label, f"header at {offset}")
        block = os.pread(fd, BLOCK + _INLINE, offset)
        if len(block) < BLOCK:
            where.refuse("the tar ends without its end marker")
        if not any(block[:BLOCK]):
            break
        _check_sum(block[:BLOCK], where)
        size = _number(block[124:136], where)
        start = offset + BLOCK
        offset = start + size + -size % BLOCK
        if offset > end:
            where.refuse("the tar ends within its content")
        kind = block[156:157]
        inline = block[BLOCK : BLOCK + size] if size <= _INLINE else b""
        if kind in (b"L", b"K"):
            if size > _INLINE or kind in long:
                where.refuse("its long name is not one")
            long[kind] = inline[:-1] if inline[-1:] == b"\0" else inline
            continue
        header = _header(block, kind, size, long, where)
        long = {}
        yield header, start, inline
    if long:
        where.refuse("a long name without a member")
    while piece := os.pread(fd, 1 << 20, offset):
        if any(piece):
            where.refuse("there is data after the end marker")
        offset += len(piece)


def _header(block: bytes, kind: bytes, size: int, long: dict[bytes, bytes], where: _Where) -> _Header:
    if block[257:263] not in (b"ustar\0", b"ustar ", bytes(6)):
        where.refuse("not a tar header that a .deb may have")
    name = long[b"L"] if b"L" in long else _text(block[:100], where)
    if b"L" not in long and block[257:265] == b"ustar\x0000" and block[345:346] != b"\0":
        name = _text(block[345:500], where) + b"/" + name
    if kind == b"\0":
        kind = b"5" if name.endswith(b"/") else b"0"
    where = _Where(where.label, name.decode(errors="backslashreplace"))
    if kind in _REFUSED or kind not in (b"0", b"1", b"2", b"5"):
        where.refuse(f"it is {_REFUSED.get(kind, f'of the unknown type {kind!r}')}")
    if kind != b"0" and size:
        where.refuse("it has content, which only a file may have")
    link = long[b"K"] if b"K" in long else _text(block[157:257], where)
    return _Header(
        path=_path(name, kind == b"5", where),
        type=kind,
        mode=_number(block[100:108], where),
        uid=_number(block[108:116], where),
        gid=_number(block[116:124], where),
        size=size,
        linkname=_target(link, kind, where),
    )


def _entry(header: _Header, content: Inline | Region) -> Entry:
    if header.type == b"5":
        mode = 0o755 | header.mode & 0o1000
        return Entry(header.path, Kind.DIR, 0o1777 if header.mode & 0o1002 == 0o1002 else mode)
    if header.type == b"2":
        return Entry(header.path, Kind.SYMLINK, 0o777, linkname=header.linkname)
    mode = 0o755 if header.mode & 0o100 else 0o644
    mode |= header.mode & 0o1000 | (header.mode & 0o4000 if not header.uid else 0)
    return Entry(header.path, Kind.FILE, mode | (header.mode & 0o2000 if not header.gid else 0), content)


def _linked(path: str, target: Entry) -> Entry:
    """What stands for a hard link; an absolute target, unless it is a neighbour, because /lib and its like move."""
    if target.size <= _MAX_COPY:
        return replace(target, path=path)
    folder, _, name = target.path.rpartition("/")
    near = folder == path.rpartition("/")[0]
    return Entry(path, Kind.SYMLINK, 0o777, linkname=name if near else f"/{target.path}")


def _same(one: Entry, other: Entry) -> bool:
    if (one.kind, one.mode, one.linkname) != (other.kind, other.mode, other.linkname):
        return False
    return one is other or same_content(one.content, other.content)


def _check_parents(entries: dict[str, Entry], label: str) -> None:
    """No member lies below a member that is no directory."""
    for path in entries:
        parent = path.rpartition("/")[0]
        while parent:
            if parent in entries:
                if entries[parent].kind is not Kind.DIR:
                    _Where(label, path).refuse(f"it lies below {parent}, which is no directory")
                break
            parent = parent.rpartition("/")[0]


def _check_sum(block: bytes, where: _Where) -> None:
    if _number(block[148:156], where) != sum(block) - sum(block[148:156]) + 8 * 0x20:
        where.refuse("its checksum is wrong")


def _number(field: bytes, where: _Where) -> int:
    """Octal digits, or GNU's base 256 for what does not fit."""
    if field[0] == 0x80:
        return int.from_bytes(field[1:])
    match = _OCTAL.fullmatch(field)
    if not match:
        where.refuse(f"not a number: {field!r}")
    return int(match[1] or b"0", 8)


def _text(field: bytes, where: _Where) -> bytes:
    text, _, rest = field.partition(b"\0")
    if any(rest):
        where.refuse("a name with a NUL")
    return text


def _path(name: bytes, directory: bool, where: _Where) -> str:
    """A path relative to the root, normal; empty for the root itself."""
    if b"\0" in name:
        where.refuse("a name with a NUL")
    try:
        text = name.decode()
    except UnicodeDecodeError:
        where.refuse("its name is not UTF-8")
    if text in (".", "./"):
        return ""
    text = text.removeprefix("./")
    if directory:
        text = text.removesuffix("/")
    if text.startswith("/"):
        where.refuse("its name is absolute")
    if not text or any(part in ("", ".", "..") for part in text.split("/")):
        where.refuse("its name leaves the package, or is not normal")
    if len(text.encode()) > _MAX_PATH or any(len(part.encode()) > _MAX_PART for part in text.split("/")):
        where.refuse("its name is too long")
    return text


def _target(link: bytes, kind: bytes, where: _Where) -> str:
    """A symlink's target is data, kept as it is; a hard link's is the path of a member."""
    if kind == b"1":
        return _path(link, False, where)
    if kind != b"2":
        return ""
    if not link or b"\0" in link or len(link) > _MAX_PATH:
        where.refuse("it is a symlink to no name")
    try:
        return link.decode()
    except UnicodeDecodeError:
        where.refuse("its target is not UTF-8")
