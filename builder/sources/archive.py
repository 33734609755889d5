"""A strict reader of the zip archives that wheels are (PKWARE APPNOTE 6.3.10).

An archive can say one thing in its central directory and another beside the data, and readers then disagree about what is
in it. Here both have to agree, members may not overlap, and what Layerwright could not copy is refused by name.
"""

from __future__ import annotations

import os
import stat
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from builder.errors import HostileInputError
from builder.layers.tar import Content, Member, Region

STORED, DEFLATED = 0, 8
_EOCD = struct.Struct("<4s4H2LH")
_EOCD64_LOCATOR = struct.Struct("<4sLQL")
_EOCD64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_LOCAL = struct.Struct("<4s5H3L2H")
_ENCRYPTED, _DESCRIPTOR, _UTF8, _PATCHED, _STRONG, _MASKED = 1 << 0, 1 << 3, 1 << 11, 1 << 5, 1 << 6, 1 << 13
_UNIX = 3
_MAX_DIRECTORY = 256 << 20
_MAX_NAME = 4096
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
    system: int


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
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _EOCD.size:
        raise HostileInputError(f"{archive}: not a zip archive, or cut off: it has no end-of-directory record")
    _, disk, first_disk, here, count, size, offset, comment = _EOCD.unpack_from(tail, at)
    position = end - tail_size + at
    if position + _EOCD.size + comment != end:
        raise HostileInputError(f"{archive}: bytes follow its end-of-directory record")
    limit = position
    if 0xFFFF in (here, count) or 0xFFFFFFFF in (size, offset):
        limit, disk, first_disk, here, count, size, offset = _directory64(file, position, archive)
    if disk or first_disk or here != count:
        raise HostileInputError(f"{archive}: it is one part of an archive of several files")
    if offset + size != limit or size > _MAX_DIRECTORY:
        raise HostileInputError(f"{archive}: its directory is not where its end-of-directory record says")
    file.seek(offset)
    return offset, tuple(_records(file.read(size), count, archive))


def _directory64(file: BinaryIO, position: int, archive: str) -> tuple[int, int, int, int, int, int, int]:
    """The zip64 end-of-directory record: (its position, disk, first disk, records here, records, size, offset)."""
    if position < _EOCD64_LOCATOR.size:
        raise HostileInputError(f"{archive}: it needs a zip64 record and has none")
    file.seek(position - _EOCD64_LOCATOR.size)
    magic, _, start, _ = _EOCD64_LOCATOR.unpack(file.read(_EOCD64_LOCATOR.size))
    if magic != b"PK\x06\x07" or start > position:
        raise HostileInputError(f"{archive}: it needs a zip64 record and has none")
    file.seek(start)
    magic, _, _, _, disk, first, here, count, size, offset = _EOCD64.unpack(file.read(_EOCD64.size))
    if magic != b"PK\x06\x06":
        raise HostileInputError(f"{archive}: its zip64 end-of-directory record is not where its locator says")
    return start, disk, first, here, count, size, offset


def _records(data: bytes, count: int, archive: str) -> Iterator[_Record]:
    at = 0
    for _ in range(count):
        fields = _CENTRAL.unpack_from(data, at)
        if fields[0] != b"PK\x01\x02":
            raise HostileInputError(f"{archive}: its directory holds fewer records than it says")
        made_by, flags, method, crc, compressed, size = fields[1], *fields[3:5], *fields[7:10]
        name_size, extra_size, comment_size = fields[10:13]
        name_at = at + _CENTRAL.size
        name = data[name_at : name_at + name_size]
        extra = data[name_at + name_size : name_at + name_size + extra_size]
        offset = fields[16]
        if 0xFFFFFFFF in (compressed, size, offset):
            size, compressed, offset = _zip64_values(extra, size, compressed, offset, archive)
        yield _Record(name, flags, method, crc, compressed, size, offset, fields[15], made_by >> 8)
        at = name_at + name_size + extra_size + comment_size
        if at > len(data):
            raise HostileInputError(f"{archive}: its zip directory is cut off")
    if at != len(data):
        raise HostileInputError(f"{archive}: its directory holds more records than it says")


def _zip64_values(extra: bytes, size: int, compressed: int, offset: int, archive: str) -> tuple[int, int, int]:
    """The extended-information extra field (APPNOTE 4.5.3): 8 bytes for each field that is all ones, in this order."""
    at = 0
    while at + 4 <= len(extra):
        tag, length = struct.unpack_from("<2H", extra, at)
        if tag == 1:
            values: Iterable[int] = struct.unpack_from(f"<{length // 8}Q", extra, at + 4)
            source = iter(values)
            try:
                full = [next(source) if value == 0xFFFFFFFF else value for value in (size, compressed, offset)]
            except StopIteration:
                break
            return full[0], full[1], full[2]
        at += 4 + length
    raise HostileInputError(f"{archive}: a member needs zip64 sizes and has none")


def _member(record: _Record, archive: str) -> tuple[str, bool]:
    """The checked name of a record and whether it is executable."""
    name = _name(record, archive)
    if record.flags & (_ENCRYPTED | _STRONG | _MASKED):
        raise HostileInputError(f"{archive}: {name} is encrypted")
    if record.flags & _PATCHED or record.method not in (STORED, DEFLATED):
        raise HostileInputError(
            f"{archive}: {name} is compressed by method {record.method}; wheels use stored (0) or deflate (8)"
        )
    mode = record.attributes >> 16 if record.system == _UNIX else 0
    kind = stat.S_IFMT(mode)
    if kind == stat.S_IFLNK:
        raise HostileInputError(f"{archive}: {name} is a symlink; wheels hold plain files")
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise HostileInputError(f"{archive}: {name} is a special file (mode {mode:o})")
    if (kind == stat.S_IFDIR) != name.endswith("/") and kind:
        raise HostileInputError(f"{archive}: {name} is a directory by its mode and a file by its name, or the reverse")
    return name, bool(mode & 0o100)


def _name(record: _Record, archive: str) -> str:
    try:
        name = record.name.decode("utf-8" if record.flags & _UTF8 else "ascii")
    except UnicodeDecodeError as error:
        raise HostileInputError(f"{archive}: the name {record.name!r} is not UTF-8, or not marked as UTF-8") from error
    parts = name.removesuffix("/").split("/")
    if (
        not name
        or any(part in ("", ".", "..") for part in parts)
        or any(character < " " or character in "\\\x7f" for character in name)
        or len(record.name) > _MAX_NAME
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
    """Where the data of each record starts, by its index; local headers must agree and members may not overlap."""
    offsets: dict[int, int] = {}
    previous, previous_end = "", 0
    for index in sorted(range(len(records)), key=lambda index: records[index].header_offset):
        record, name = records[index], names[index]
        if record.header_offset < previous_end:
            raise HostileInputError(f"{archive}: {previous} and {name} overlap")
        header = os.pread(file.fileno(), _LOCAL.size + len(record.name), record.header_offset)
        offsets[index] = start = record.header_offset + _local_size(header, record, name, archive)
        previous, previous_end = name, start + record.compressed_size
        if previous_end > limit:
            raise HostileInputError(f"{archive}: {name} reaches into the directory of the archive")
    return offsets


def _local_size(header: bytes, record: _Record, name: str, archive: str) -> int:
    """The size of the local header, once it agrees with the central directory."""
    magic, _, flags, method, _, _, crc, compressed, size, name_size, extra_size = _LOCAL.unpack_from(header)
    lies = (
        magic != b"PK\x03\x04"
        or header[_LOCAL.size :] != record.name
        or name_size != len(record.name)
        or method != record.method
        or (flags ^ record.flags) & (_ENCRYPTED | _DESCRIPTOR | _STRONG | _MASKED)
    )
    if not lies and not flags & _DESCRIPTOR:
        full = 0xFFFFFFFF
        lies = (
            crc != record.crc32 or size not in (record.size, full) or compressed not in (record.compressed_size, full)
        )
    if lies:
        raise HostileInputError(f"{archive}: {name} is described in two ways, in the directory and beside its data")
    return _LOCAL.size + int(name_size) + int(extra_size)
