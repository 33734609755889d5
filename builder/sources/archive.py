"""A strict reader of the zip archives that wheels are (PKWARE APPNOTE 6.3.10).

An archive can say one thing in its central directory and another beside the data, and readers then disagree about what is
in it. Here both have to agree, members may not overlap, and what Layerwright could not copy is refused by name.
"""

from __future__ import annotations

import os
import stat
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from builder.errors import HostileInputError
from builder.layers.tar import Content, Member, Region

STORED, DEFLATED = 0, 8
_EOCD = struct.Struct("<4s4H2LH")
_EOCD_MAGIC = b"PK\x05\x06"
_SENTINELS = 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFF, 0xFFFFFFFF, 0xFFFFFFFF
_EOCD64_LOCATOR = struct.Struct("<4sLQL")
_EOCD64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _DESCRIPTOR, _UTF8, _PATCHED, _STRONG, _MASKED = 1 << 0, 1 << 3, 1 << 11, 1 << 5, 1 << 6, 1 << 13
_FULL = 0xFFFFFFFF
_ZIP64, _UNICODE_NAME = 1, 0x7075
_MAX_DIRECTORY = 64 << 20
_MAX_MEMBERS = 1 << 18
_MAX_NAME = 4096
_MAX_DEPTH = 100
_MAX_EMPTY = 64
_MAX_DESCRIPTOR = 24
_MAX_RATIO = 1040  # deflate cannot do more than 1,032 : 1
_MAX_TOTAL = 64 << 30
_BOMB_RATIO = 200
_BOMB_SIZE = 4 << 30


@dataclass(frozen=True, slots=True)
class ZipMember:
    """A file of the archive. `offset` is where its data starts; `executable` is the owner's exec bit."""

    name: str
    method: int
    offset: int
    compressed_size: int
    size: int
    crc32: int
    executable: bool

    def content(self, path: Path, archive: str, recorded: tuple[str, str] | None = None) -> Content:
        """Its content as layers take it: spliced if deflated, as a plain range if stored."""
        label = f"{archive}: {self.name}"
        if self.method == DEFLATED and self.size:
            return Member(path, self.offset, self.compressed_size, self.size, self.crc32, label, recorded)
        return Region(path, self.offset, self.size, label, self.crc32, recorded)


@dataclass(frozen=True, slots=True)
class _Record:
    """One record of the central directory, as it stands there."""

    name: bytes
    flags: int
    method: int
    crc32: int
    compressed_size: int
    size: int
    header_offset: int
    attributes: int
    extra: bytes


def read_members(file: BinaryIO, archive: str) -> tuple[ZipMember, ...]:
    """The files of a zip archive in the order of its central directory; directories are left out.

    `archive` names it in errors. Raises `HostileInputError` for anything that two readers could read in two ways.
    """
    try:
        start, records = _directory(file, archive)
        members = [_member(record, archive) for record in records]
        _check_names([name for name, _ in members], archive)
        _check_sizes(records, archive)
        offsets = _data_offsets(file, records, [name for name, _ in members], start, archive)
    except struct.error as error:
        raise HostileInputError(f"{archive}: its zip directory is cut off ({error})") from error
    return tuple(
        ZipMember(name, record.method, offsets[index], record.compressed_size, record.size, record.crc32, executable)
        for index, ((name, executable), record) in enumerate(zip(members, records, strict=True))
        if not name.endswith("/")
    )


def _directory(file: BinaryIO, archive: str) -> tuple[int, Sequence[_Record]]:
    """Where the central directory starts, and its records."""
    end = file.seek(0, os.SEEK_END)
    tail_size = min(end, _EOCD.size + 0xFFFF)
    file.seek(end - tail_size)
    tail = file.read(tail_size)
    at = _end_record(tail, archive)
    narrow = _EOCD.unpack_from(tail, at)[1:7]
    limit = end - tail_size + at
    disk, first_disk, here, count, size, offset = narrow
    if found := _directory64(file, limit, archive):
        limit, (disk, first_disk, here, count, size, offset) = found
        if any(small not in (large, full) for small, large, full in zip(narrow, found[1], _SENTINELS, strict=True)):
            raise HostileInputError(f"{archive}: its two end-of-directory records contradict one another")
    elif 0xFFFF in (here, count) or _FULL in (size, offset):
        raise HostileInputError(f"{archive}: it needs a zip64 record and has none")
    if disk or first_disk or here != count:
        raise HostileInputError(f"{archive}: it is one part of an archive of several files")
    if size > _MAX_DIRECTORY or count > _MAX_MEMBERS:
        raise HostileInputError(f"{archive}: no wheel has a directory of {size} bytes for {count} members")
    if offset + size != limit:
        raise HostileInputError(f"{archive}: its directory is not where its end-of-directory record says")
    file.seek(offset)
    return offset, tuple(_records(file.read(size), count, archive))


def _end_record(tail: bytes, archive: str) -> int:
    """Where in the last bytes of the file the one end-of-directory record is whose comment reaches to the end."""
    last, fitting = tail.rfind(_EOCD_MAGIC), []
    if last < 0:
        raise HostileInputError(f"{archive}: not a zip archive, or cut off: it has no end-of-directory record")
    at = last
    while at >= 0:
        if at + _EOCD.size <= len(tail) and at + _EOCD.size + _EOCD.unpack_from(tail, at)[7] == len(tail):
            fitting.append(at)
        at = tail.rfind(_EOCD_MAGIC, 0, at)
    if fitting != [last]:
        reason = "it has two end-of-directory records" if fitting else "bytes follow its end-of-directory record"
        raise HostileInputError(f"{archive}: {reason}")
    return last


def _directory64(file: BinaryIO, position: int, archive: str) -> tuple[int, tuple[int, ...]] | None:
    """The zip64 end-of-directory record: its position and its fields in the order of the small one's. Writers add it before
    it is needed, and readers take it wherever its locator stands."""
    start_of_locator = position - _EOCD64_LOCATOR.size
    if start_of_locator < 0:
        return None
    file.seek(start_of_locator)
    magic, disk, start, disks = _EOCD64_LOCATOR.unpack(file.read(_EOCD64_LOCATOR.size))
    if magic != b"PK\x06\x07":
        return None
    misplaced = f"{archive}: its zip64 end-of-directory record is not where its locator says"
    if start > start_of_locator - _EOCD64.size:
        raise HostileInputError(misplaced)
    file.seek(start)
    magic, size, _, _, *fields = _EOCD64.unpack(file.read(_EOCD64.size))
    if magic != b"PK\x06\x06" or start + 12 + size != start_of_locator or disk or disks > 1:
        raise HostileInputError(misplaced)
    return start, tuple(fields)


def _records(data: bytes, count: int, archive: str) -> Iterator[_Record]:
    at = 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(data, at)
        if fields[0] != b"PK\x01\x02":
            raise HostileInputError(f"{archive}: its directory holds fewer records than it says")
        flags, method, crc, compressed, size = *fields[3:5], *fields[7:10]
        name_size, extra_size, comment_size = fields[10:13]
        name_at = at + _CENTRAL.size
        name = data[name_at : name_at + name_size]
        extra = data[name_at + name_size : name_at + name_size + extra_size]
        offset = fields[16]
        if _FULL in (compressed, size, offset):
            size, compressed, offset = _zip64_values(extra, size, compressed, offset, archive)
        yield _Record(name, flags, method, crc, compressed, size, offset, fields[15], extra)
        at = name_at + name_size + extra_size + comment_size
        if at > len(data):
            raise HostileInputError(f"{archive}: its zip directory is cut off")
    if at != len(data):
        raise HostileInputError(f"{archive}: its directory holds more records than it says")


def _zip64_values(extra: bytes, size: int, compressed: int, offset: int, archive: str) -> tuple[int, int, int]:
    """The extended-information extra field (APPNOTE 4.5.3): 8 bytes for each field that is all ones, in this order."""
    body = _extra(extra, _ZIP64) or b""
    wide = iter(struct.unpack_from(f"<{len(body) // 8}Q", body))
    try:
        values = [next(wide) if value == _FULL else value for value in (size, compressed, offset)]
    except StopIteration:
        raise HostileInputError(f"{archive}: a member needs zip64 sizes and has none") from None
    return values[0], values[1], values[2]


def _extra(extra: bytes, wanted: int) -> bytes | None:
    """The body of the first extra field of one kind."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == wanted:
            return extra[at + 4 : at + 4 + length]
        at += 4 + length
    return None


def _member(record: _Record, archive: str) -> tuple[str, bool]:
    """The checked name of a record and whether it is executable."""
    name = _name(record, archive)
    if record.flags & (_ENCRYPTED | _STRONG | _MASKED):
        raise HostileInputError(f"{archive}: {name} is encrypted")
    if record.flags & _PATCHED or record.method not in (STORED, DEFLATED):
        raise HostileInputError(
            f"{archive}: {name} is compressed by method {record.method}; wheels use stored (0) or deflate (8)"
        )
    mode = record.attributes >> 16
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        raise HostileInputError(f"{archive}: {name} is a symlink; wheels hold plain files")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise HostileInputError(f"{archive}: {name} is a special file (mode {mode:o})")
    if (kind == stat.S_IFDIR) != name.endswith("/") and kind:
        raise HostileInputError(f"{archive}: {name} is a directory by its mode and a file by its name, or the reverse")
    return name, stat.S_ISREG(mode) and bool(mode & 0o111)


def _name(record: _Record, archive: str) -> str:
    try:
        name = record.name.decode("utf-8" if record.flags & _UTF8 else "ascii")
    except UnicodeDecodeError as error:
        raise HostileInputError(f"{archive}: the name {record.name!r} is not UTF-8, or not marked as UTF-8") from error
    second = _extra(record.extra, _UNICODE_NAME)
    if second is not None and second[5:] != record.name:
        raise HostileInputError(f"{archive}: {name[:200]!r} has a second name, {second[5:]!r}")
    parts = name.removesuffix("/").split("/")
    if (
        not name
        or any(part in ("", ".", "..") for part in parts)
        or any(character < " " or "\x7f" <= character <= "\x9f" or character == "\\" for character in name)
        or len(record.name) > _MAX_NAME
        or len(parts) > _MAX_DEPTH
        or any(len(part.encode()) > 255 for part in parts)
    ):
        raise HostileInputError(f"{archive}: the name {name[:200]!r} cannot be a file of a wheel")
    return name


def _check_names(names: Sequence[str], archive: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise HostileInputError(f"{archive}: {name} is in it twice")
        seen.add(name)
    for name in names:
        parent = name.removesuffix("/")
        while "/" in parent:
            parent = parent.rpartition("/")[0]
            if parent in seen:
                raise HostileInputError(f"{archive}: {parent} is a file, and the directory of {name}")
    for name in names:
        if name.endswith("/") and name[:-1] in seen:
            raise HostileInputError(f"{archive}: {name[:-1]} is a file and a directory")


def _check_sizes(records: Sequence[_Record], archive: str) -> None:
    total = packed = 0
    for record in records:
        total += record.size
        packed += record.compressed_size
        if record.size and record.name.endswith(b"/"):
            raise HostileInputError(f"{archive}: {record.name.decode()} is a directory with data")
        if record.method == STORED and record.size != record.compressed_size:
            raise HostileInputError(f"{archive}: {record.name.decode()} is stored, but its two sizes differ")
        if record.size > _MAX_RATIO * record.compressed_size + 64 or (record.size and not record.compressed_size):
            raise HostileInputError(
                f"{archive}: {record.name.decode()} cannot be as large as it says ({record.size} bytes)"
            )
    if total > _MAX_TOTAL or (total > _BOMB_SIZE and total > _BOMB_RATIO * packed):
        raise HostileInputError(f"{archive}: it is a zip bomb: {packed} bytes become {total}")


def _data_offsets(
    file: BinaryIO, records: Sequence[_Record], names: Sequence[str], limit: int, archive: str
) -> dict[int, int]:
    """Where the data of each record starts, by its index. The members fill the file up to the directory at `limit`, without
    overlap and without anything between them, so that a reader that starts at the front sees the same ones."""
    offsets: dict[int, int] = {}
    order = sorted(range(len(records)), key=lambda index: records[index].header_offset)
    previous, end = None, 0
    for index in order:
        record, name = records[index], names[index]
        if record.header_offset + _LOCAL.size > limit:
            raise HostileInputError(f"{archive}: {name} reaches into the directory of the archive")
        _check_between(file, previous, end, record.header_offset, name, archive)
        offsets[index] = start = _data_start(file, record, name, archive)
        previous, end = record, start + record.compressed_size
        if end > limit:
            raise HostileInputError(f"{archive}: {name} reaches into the directory of the archive")
        if record.method == DEFLATED and not record.size:
            _check_empty(os.pread(file.fileno(), min(record.compressed_size, _MAX_EMPTY + 1), start), name, archive)
    _check_between(file, previous, end, limit, "the directory", archive)
    return offsets


def _check_between(
    file: BinaryIO, previous: _Record | None, end: int, start: int, following: str, archive: str
) -> None:
    """Between the end of one member and the start of the next may only be the data descriptor of the first."""
    name = previous.name.decode() if previous else "the start"
    if start < end:
        raise HostileInputError(f"{archive}: {name} and {following} overlap")
    if previous and previous.flags & _DESCRIPTOR:
        found = os.pread(file.fileno(), min(start - end, _MAX_DESCRIPTOR + 1), end)
        values = previous.crc32, previous.compressed_size, previous.size
        forms = [struct.pack(form, *values) for form in ("<3L", "<L2Q") if form == "<L2Q" or max(values) <= _FULL]
        if found not in (*forms, *(b"PK\x07\x08" + form for form in forms)):
            raise HostileInputError(f"{archive}: the data descriptor of {name} is not what the directory says of it")
    elif start != end:
        raise HostileInputError(f"{archive}: between {name} and {following} are {start - end} bytes of no member")


def _data_start(file: BinaryIO, record: _Record, name: str, archive: str) -> int:
    """Where the data of a member starts, once its local header agrees with the central directory."""
    header = os.pread(file.fileno(), _LOCAL.size, record.header_offset)
    magic, _, flags, method, _, _, crc, compressed, size, name_size, extra_size = _LOCAL.unpack(header)
    start = int(record.header_offset + _LOCAL.size)
    found = os.pread(file.fileno(), name_size + extra_size, start)
    alike = _ENCRYPTED | _DESCRIPTOR | _PATCHED | _STRONG | _MASKED | (0 if record.name.isascii() else _UTF8)
    lies = (
        magic != b"PK\x03\x04"
        or found[:name_size] != record.name
        or method != record.method
        or (flags ^ record.flags) & alike
    )
    if not lies and _FULL in (size, compressed):
        size, compressed, _ = _zip64_values(found[name_size:], size, compressed, 0, archive)
    said = zip((crc, compressed, size), (record.crc32, record.compressed_size, record.size), strict=True)
    if lies or any(here != there and (here or not flags & _DESCRIPTOR) for here, there in said):
        raise HostileInputError(f"{archive}: {name} is described in two ways, in the directory and beside its data")
    return start + int(name_size) + int(extra_size)


def _check_empty(data: bytes, name: str, archive: str) -> None:
    """Nobody inflates what is said to be empty; so it is looked at here."""
    inflate = zlib.decompressobj(-15)
    try:
        empty = not inflate.decompress(data, 1) and inflate.eof and not inflate.unused_data
    except zlib.error:
        empty = False
    if not empty:
        raise HostileInputError(f"{archive}: {name} is said to be empty, but its compressed data is not")
