"""ELF files and fatbins made byte by byte, so that they can lie where no linker would."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from builder.binaries.window import Window

BASE = 0x40_0000
"""Where a file is mapped to: no offset is an address."""
LOAD, DYNAMIC = 1, 2
NEEDED, STRTAB, STRSZ, SONAME, RPATH, RUNPATH = 1, 5, 10, 14, 15, 29
VERDEF, VERDEFNUM, VERNEED, VERNEEDNUM = 0x6FFFFFFC, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF


@dataclass(frozen=True)
class Made:
    """An ELF file; `at` says where its parts lie."""

    data: bytes
    at: Mapping[str, int]

    def patched(self, place: str, form: str, value: int, offset: int = 0) -> bytes:
        """The file with another number at a place."""
        at = self.at[place] + offset
        size = struct.calcsize(form)
        return self.data[:at] + struct.pack(form, value) + self.data[at + size :]


@dataclass(frozen=True)
class Library:
    """A shared library in the making. `needs` are (library, versions), `more` further tags of the dynamic section,
    `rodata` bytes that are mapped, `sections` further sections by name."""

    soname: str | None = "libmade.so.1"
    needed: Sequence[str] = ()
    rpath: str | None = None
    runpath: str | None = None
    needs: Sequence[tuple[str, Sequence[str]]] = ()
    defines: Sequence[str] = ()
    rodata: bytes = b""
    sections: Mapping[str, bytes] = field(default_factory=dict)
    more: Sequence[tuple[int, int]] = ()
    machine: int = 62
    wide: bool = True
    order: str = "<"

    def made(self) -> Made:
        """The file: headers, strings, versions, dynamic section, data, sections, section headers."""
        strings = Strings()
        tags = [(NEEDED, strings.add(name)) for name in self.needed]
        tags += [
            (tag, strings.add(text))
            for tag, text in ((SONAME, self.soname), (RPATH, self.rpath), (RUNPATH, self.runpath))
            if text is not None
        ]
        needs, defines = self._needs(strings), self._defines(strings)
        out, at = bytearray(), dict[str, int]()

        def put(name: str, data: bytes) -> None:
            out.extend(bytes(-len(out) % 16))
            at[name] = len(out)
            out.extend(data)

        put("header", bytes(64 if self.wide else 52))
        put("programs", bytes(2 * (56 if self.wide else 32)))
        put("strings", bytes(strings.data))
        put("needs", needs)
        put("defines", defines)
        tags += [(STRTAB, BASE + at["strings"]), (STRSZ, len(strings.data))]
        if needs:
            tags += [(VERNEED, BASE + at["needs"]), (VERNEEDNUM, len(self.needs))]
        if defines:
            tags += [(VERDEF, BASE + at["defines"]), (VERDEFNUM, len(self.defines) + 1)]
        form = self.order + ("qQ" if self.wide else "iI")
        dynamic = b"".join(struct.pack(form, *tag) for tag in (*tags, *self.more, (0, 0)))
        put("dynamic", dynamic)
        put("rodata", b"\0" + self.rodata)
        for name, data in self.sections.items():
            put(name, data)
        mapped = len(out)
        names = Strings()
        rows = [(names.add(name), at[name], len(data)) for name, data in self.sections.items()]
        number = names.add(".shstrtab")
        put("names", bytes(names.data))
        rows.append((number, at["names"], len(names.data)))
        put("sections", b"".join(self._section(*row) for row in [(0, 0, 0), *rows]))
        programs = self._program(LOAD, 0, mapped) + self._program(DYNAMIC, at["dynamic"], len(dynamic))
        out[at["programs"] : at["programs"] + len(programs)] = programs
        header = self._header(at, len(rows) + 1)
        out[: len(header)] = header
        return Made(bytes(out), at)

    def _header(self, at: Mapping[str, int], count: int) -> bytes:
        ident = b"\x7fELF" + bytes([2 if self.wide else 1, 1 if self.order == "<" else 2, 1]) + bytes(9)
        sizes = (64, 56, 2, 64) if self.wide else (52, 32, 2, 40)
        form = self.order + ("2HI3QI6H" if self.wide else "2HI3II6H")
        return ident + struct.pack(
            form, 3, self.machine, 1, 0, at["programs"], at["sections"], 0, *sizes, count, count - 1
        )

    def _program(self, kind: int, offset: int, size: int) -> bytes:
        if self.wide:
            return struct.pack(self.order + "2I6Q", kind, 4, offset, BASE + offset, BASE + offset, size, size, 16)
        return struct.pack(self.order + "8I", kind, offset, BASE + offset, BASE + offset, size, size, 4, 16)

    def _section(self, name: int, offset: int, size: int) -> bytes:
        kind = 1 if size else 0
        if self.wide:
            return struct.pack(self.order + "2I4Q2I2Q", name, kind, 2, BASE + offset, offset, size, 0, 0, 1, 0)
        return struct.pack(self.order + "10I", name, kind, 2, BASE + offset, offset, size, 0, 0, 1, 0)

    def _needs(self, strings: Strings) -> bytes:
        out = b""
        for number, (library, versions) in enumerate(self.needs):
            size = 16 * (1 + len(versions))
            following = size if number + 1 < len(self.needs) else 0
            out += struct.pack(self.order + "2H3I", 1, len(versions), strings.add(library), 16, following)
            for index, version in enumerate(versions):
                following = 16 if index + 1 < len(versions) else 0
                out += struct.pack(self.order + "I2H2I", 0, 0, 2, strings.add(version), following)
        return out

    def _defines(self, strings: Strings) -> bytes:
        out = b""
        names = [self.soname or "", *self.defines] if self.defines else []
        for number, name in enumerate(names):
            following = 28 if number + 1 < len(names) else 0
            out += struct.pack(self.order + "4H3I", 1, 0 if number else 1, number + 1, 1, 0, 20, following)
            out += struct.pack(self.order + "2I", strings.add(name), 0)
        return out


@contextmanager
def window(data: bytes, folder: Path) -> Iterator[Window]:
    """A file of these bytes, as it is read."""
    path = folder / "made.so"
    path.write_bytes(data)
    with path.open("rb") as file:
        yield Window(file.fileno(), 0, len(data), "made.so")


class Strings:
    """A table of strings, as it grows."""

    def __init__(self) -> None:
        self.data = bytearray(b"\0")

    def add(self, text: str) -> int:
        at = len(self.data)
        self.data += text.encode() + b"\0"
        return at


@dataclass(frozen=True)
class Module:
    """An entry of a fatbin: `name` as `sm_90a` or `compute_90`."""

    name: str
    payload: bytes = bytes(4096)
    isa: tuple[int, int] = (8, 0)
    kind: int | None = None
    header: int = 64
    flags: int = 0

    def bytes(self) -> bytes:
        kind, _, digits = self.name.partition("_")
        number = int(digits.rstrip("af"))
        flags = self.flags | {"a": 1 << 20, "f": 1 << 21}.get(digits[-1], 0) | 0x11
        return (
            struct.pack(
                "<2HIQ2I2HI2I3Q",
                self.kind or (2 if kind == "sm" else 1),
                0x101,
                self.header,
                len(self.payload),
                *(0, 0),
                *reversed(self.isa),
                number,
                *(0, 0),
                flags,
                *(0, 0),
            )
            + bytes(self.header - 64)
            + self.payload
        )


def fatbin(*modules: Module | str) -> bytes:
    """One container with these modules; a name stands for a module of that architecture."""
    body = b"".join((Module(module) if isinstance(module, str) else module).bytes() for module in modules)
    return struct.pack("<4s2HQ", b"\x50\xed\x55\xba", 1, 16, len(body)) + body
