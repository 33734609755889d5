"""Zip archives and wheels made byte by byte, so that they can lie where no zip library would."""

from __future__ import annotations

import base64
import hashlib
import struct
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

UTF8, DESCRIPTOR, ENCRYPTED = 1 << 11, 1 << 3, 1
UNIX = 3
FULL = 0xFFFFFFFF


@dataclass(frozen=True)
class Member:
    """One member. What `central` and `local` hold replaces what is true in the directory's record and in the local header:
    any of name, flags, method, crc, compressed, size, extra, offset, attributes, system, magic.

    `raw` is its data as it stands in the archive; `descriptor` the form of its data descriptor, or the bytes of one.
    """

    name: str | bytes
    data: bytes = b""
    method: int = 8
    level: int = 6
    flags: int = 0
    mode: int = 0o100644
    raw: bytes | None = None
    descriptor: str | bytes = ""
    central: Mapping[str, int | bytes] = field(default_factory=dict)
    local: Mapping[str, int | bytes] = field(default_factory=dict)

    def stored_name(self) -> bytes:
        return self.name if isinstance(self.name, bytes) else self.name.encode()

    def packed(self) -> bytes:
        if self.raw is not None:
            return self.raw
        return deflate(self.data, self.level) if self.method == 8 else self.data

    def truth(self) -> dict[str, int | bytes]:
        """The fields of an honest record."""
        name = self.stored_name()
        return {
            "name": name,
            "flags": self.flags | (DESCRIPTOR if self.descriptor else 0) | (0 if name.isascii() else UTF8),
            "method": self.method,
            "crc": zlib.crc32(self.data),
            "compressed": len(self.packed()),
            "size": len(self.data),
            "extra": b"",
            "attributes": self.mode << 16,
            "system": UNIX,
        }


def deflate(data: bytes, level: int = 6, strategy: int = zlib.Z_DEFAULT_STRATEGY, mem_level: int = 8) -> bytes:
    """One raw deflate stream."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15, mem_level, strategy)
    return compressor.compress(data) + compressor.flush()


def zip64_extra(*values: int) -> bytes:
    """The extended-information extra field."""
    return struct.pack(f"<2H{len(values)}Q", 1, 8 * len(values), *values)


def archive(
    members: Sequence[Member],
    *,
    prefix: bytes = b"",
    between: bytes = b"",
    before_directory: bytes = b"",
    comment: bytes = b"",
    last_comment: bytes = b"",
    end: Mapping[str, int] | None = None,
    zip64: Mapping[str, int] | None = None,
    needs_zip64: bool = False,
) -> bytes:
    """A zip archive with the offsets of its members true, wherever they come to lie.

    `prefix`, `between` and `before_directory` are bytes that belong to no member; `last_comment` is the comment of the last
    record. `end` replaces fields of the end-of-directory record, `zip64` (also if empty) adds the zip64 records and
    replaces their fields; `needs_zip64` writes all ones into the small record.
    """
    out, records = bytearray(prefix), bytearray()
    for index, member in enumerate(members):
        if index:
            out += between
        fields = {"offset": len(out), **member.truth(), **member.central}
        out += _local(member) + member.packed() + _descriptor(member)
        records += _central(fields, last_comment if index == len(members) - 1 else b"")
    out += before_directory
    offset = len(out)
    true = {"disk": 0, "first_disk": 0, "here": len(members), "count": len(members)}
    true |= {"size": len(records), "offset": offset}
    out += records
    if zip64 is not None:
        out += _end64({**true, "at": len(out), **zip64})
    ones = {"here": 0xFFFF, "count": 0xFFFF, "size": FULL, "offset": FULL} if needs_zip64 else {}
    return bytes(out) + end_record({**true, **ones, **(end or {})}, comment)


def end_record(fields: Mapping[str, int], comment: bytes = b"") -> bytes:
    """An end-of-directory record."""
    names = ("disk", "first_disk", "here", "count", "size", "offset")
    return struct.pack("<4s4H2LH", b"PK\5\6", *(fields[name] for name in names), len(comment)) + comment


def _end64(fields: Mapping[str, int]) -> bytes:
    names = ("disk", "first_disk", "here", "count", "size", "offset")
    values = [fields[name] for name in names]
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", fields.get("record_size", 44), 45, 45, *values)
    return record + struct.pack("<4sLQL", b"PK\6\7", 0, fields["at"], fields.get("disks", 1))


def _local(member: Member) -> bytes:
    fields = member.truth()
    if member.descriptor:
        fields |= {"crc": 0, "compressed": 0, "size": 0}
    fields |= {"magic": b"PK\3\4", **member.local}
    name, extra = fields["name"], fields["extra"]
    assert isinstance(name, bytes)
    assert isinstance(extra, bytes)
    values = [fields[key] for key in ("crc", "compressed", "size")]
    return (
        struct.pack("<4s5H", fields["magic"], 20, fields["flags"], fields["method"], 0, 0x21)
        + struct.pack("<3L2H", *values, len(name), len(extra))
        + name
        + extra
    )


def _central(fields: Mapping[str, int | bytes], comment: bytes) -> bytes:
    name, extra = fields["name"], fields["extra"]
    assert isinstance(name, bytes)
    assert isinstance(extra, bytes)
    system = fields["system"]
    assert isinstance(system, int)
    return (
        struct.pack("<4s6H", b"PK\1\2", system << 8 | 20, 20, fields["flags"], fields["method"], 0, 0x21)
        + struct.pack("<3L", *(fields[key] for key in ("crc", "compressed", "size")))
        + struct.pack("<5H2L", len(name), len(extra), len(comment), 0, 0, fields["attributes"], fields["offset"])
        + name
        + extra
        + comment
    )


def _descriptor(member: Member) -> bytes:
    """`32` and `64` with their signature, `32 bare` and `64 bare` without."""
    if isinstance(member.descriptor, bytes):
        return member.descriptor
    if not member.descriptor:
        return b""
    form = "<3L" if member.descriptor.startswith("32") else "<L2Q"
    signature = b"" if member.descriptor.endswith("bare") else b"PK\7\x08"
    return signature + struct.pack(form, zlib.crc32(member.data), len(member.packed()), len(member.data))


# Wheels.

WHEEL = b"Wheel-Version: 1.0\nGenerator: wheelmaker\nRoot-Is-Purelib: true\nTag: py3-none-any\n"


def hashed(data: bytes, algorithm: str = "sha256") -> str:
    """A hash as RECORD writes it."""
    value = base64.urlsafe_b64encode(hashlib.new(algorithm, data).digest()).rstrip(b"=").decode()
    return f"{algorithm}={value}"


@dataclass(frozen=True)
class Wheel:
    """A wheel in the making: `stem` is the `name-version` of its metadata, `files` its members by name.

    `rows` replaces (or with None drops) rows of RECORD by path and adds to them; `extra_rows` is appended as it stands.
    """

    stem: str = "demo-1.0"
    files: Mapping[str, bytes | Member] = field(default_factory=lambda: {"demo/__init__.py": b"version = '1.0'\n"})
    rows: Mapping[str, str | None] = field(default_factory=dict)
    extra_rows: str = ""
    wheel: bytes | None = WHEEL
    record: bytes | None = None
    has_record: bool = True

    @property
    def dist_info(self) -> str:
        return f"{self.stem}.dist-info"

    def members(self) -> list[Member]:
        files = {name: file if isinstance(file, Member) else Member(name, file) for name, file in self.files.items()}
        project, _, version = self.stem.rpartition("-")
        metadata = f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\n".encode()
        files.setdefault(f"{self.dist_info}/METADATA", Member(f"{self.dist_info}/METADATA", metadata))
        if self.wheel is not None:
            files[f"{self.dist_info}/WHEEL"] = Member(f"{self.dist_info}/WHEEL", self.wheel)
        if self.has_record:
            text = self.record if self.record is not None else self._record(files).encode()
            files[f"{self.dist_info}/RECORD"] = Member(f"{self.dist_info}/RECORD", text)
        return list(files.values())

    def bytes(self) -> bytes:
        return archive(self.members())

    def _record(self, files: Mapping[str, Member]) -> str:
        rows: dict[str, str | None] = {
            name: f"{_quoted(name)},{hashed(member.data)},{len(member.data)}"
            for name, member in files.items()
            if not name.endswith("/")
        }
        rows[f"{self.dist_info}/RECORD"] = f"{self.dist_info}/RECORD,,"
        rows |= self.rows
        return "".join(f"{row}\n" for row in rows.values() if row is not None) + self.extra_rows


def _quoted(name: str) -> str:
    return '"' + name.replace('"', '""') + '"' if any(character in name for character in ',"') else name
