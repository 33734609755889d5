"""Small ELF files written byte by byte: shared objects with nothing in them but what the dynamic loader reads."""

from __future__ import annotations

import struct
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from elfmaker import Strings

_PAGE = 0x1000
_NEEDED, _HASH, _STRTAB, _SYMTAB, _STRSZ, _SYMENT, _SONAME, _RPATH, _RUNPATH = 1, 4, 5, 6, 10, 11, 14, 15, 29
_VERDEF, _VERDEFNUM, _VERNEED, _VERNEEDNUM, _VERSYM = 0x6FFFFFFC, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF, 0x6FFFFFF0
MACHINES = {"x86_64": 62, "aarch64": 183}


@dataclass(frozen=True)
class Elf:
    """A shared object. `needs` are the versions that it asks of libraries, `defines` those it offers; `rpath` and `runpath`
    are written as they stand. `more` is what else it has to read."""

    soname: str | None = None
    needed: Sequence[str] = ()
    rpath: str | None = None
    runpath: str | None = None
    needs: Mapping[str, Sequence[str]] = field(default_factory=dict)
    defines: Sequence[str] = ()
    machine: str = "x86_64"
    more: bytes = b""

    def bytes(self) -> bytes:
        """The file."""
        return _file(self)


def _file(elf: Elf) -> bytes:
    """One segment from the start of the file, at address 0; the tables follow the headers."""
    strings = Strings()
    tags: list[tuple[int, int]] = [(_NEEDED, strings.add(name)) for name in elf.needed]
    for tag, text in ((_SONAME, elf.soname), (_RPATH, elf.rpath), (_RUNPATH, elf.runpath)):
        if text is not None:
            tags.append((tag, strings.add(text)))
    parts: dict[int, bytes] = {
        _SYMTAB: bytes(24),
        _HASH: struct.pack("<4I", 1, 1, 0, 0),
    }
    if elf.needs:
        parts[_VERNEED] = _verneed(elf.needs, strings)
        tags.append((_VERNEEDNUM, len(elf.needs)))
    if elf.defines:
        parts[_VERDEF] = _verdef(elf, strings)
        tags.append((_VERDEFNUM, len(elf.defines) + 1))
    if elf.needs or elf.defines:
        parts[_VERSYM] = struct.pack("<Hxxxxxx", 0)
    parts[_STRTAB] = bytes(strings.data)
    tags += [(_STRSZ, len(strings.data)), (_SYMENT, 24)]
    start = 64 + 3 * 56
    body = bytearray()
    for tag, data in parts.items():
        body += bytes(-len(body) % 8)
        tags.append((tag, start + len(body)))
        body += data
    body += elf.more
    body += bytes(-len(body) % 8)
    dynamic_at = start + len(body)
    dynamic = b"".join(struct.pack("<2Q", *tag) for tag in [*tags, (0, 0)])
    size = dynamic_at + len(dynamic)
    headers = struct.pack("<2I6Q", 1, 6, 0, 0, 0, size, size, _PAGE)  # PT_LOAD, read and write
    headers += struct.pack("<2I6Q", 2, 6, dynamic_at, dynamic_at, dynamic_at, len(dynamic), len(dynamic), 8)
    headers += struct.pack("<2I6Q", 0x6474E551, 6, 0, 0, 0, 0, 0, 16)  # no executable stack
    ident = b"\x7fELF\2\1\1" + bytes(9)
    head = ident + struct.pack("<2HI3QI6H", 3, MACHINES[elf.machine], 1, 0, 64, 0, 0, 64, 56, 3, 64, 0, 0)
    return head + headers + bytes(body) + dynamic


def _hash(name: str) -> int:
    value = 0
    for byte in name.encode():
        value = (value << 4) + byte
        value ^= (value & 0xF0000000) >> 24
        value &= 0x0FFFFFFF
    return value


def _verneed(needs: Mapping[str, Sequence[str]], strings: Strings) -> bytes:
    out = bytearray()
    index = 2
    items = list(needs.items())
    for number, (library, versions) in enumerate(items):
        size = 16 + 16 * len(versions)
        out += struct.pack("<2H3I", 1, len(versions), strings.add(library), 16, size if number < len(items) - 1 else 0)
        for place, version in enumerate(versions):
            following = 16 if place < len(versions) - 1 else 0
            out += struct.pack("<I2H2I", _hash(version), 0, index, strings.add(version), following)
            index += 1
    return bytes(out)


def _verdef(elf: Elf, strings: Strings) -> bytes:
    out = bytearray()
    names = [elf.soname or "base", *elf.defines]
    for number, name in enumerate(names):
        following = 28 if number < len(names) - 1 else 0
        out += struct.pack("<4H3I", 1, 1 if number == 0 else 0, number + 1, 1, _hash(name), 20, following)
        out += struct.pack("<2I", strings.add(name), 0)
    return bytes(out)
