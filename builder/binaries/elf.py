"""What an ELF file asks of the loader, read as ld.so reads it: program headers and the dynamic section (gABI, LSB symbol
versioning). Section headers, which no loader looks at, only lead to the GPU code.

Foreign bytes are believed only within the file: tables have limits, chains have to go forward, and a text ends where
its limit does. Memory does not grow with the file.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from builder.binaries.window import BinaryError, Window

MAGIC = b"\x7fELF"
CUDA = 190
"""`e_machine` of GPU code."""
_MACHINES = {3: "i386", 8: "mips", 20: "ppc", 21: "ppc64", 22: "s390x", 40: "arm", 50: "ia64", 62: "x86_64"}
_MACHINES |= {183: "aarch64", CUDA: "cuda", 224: "amdgpu", 243: "riscv", 247: "bpf", 258: "loongarch"}
_LOAD, _DYNAMIC = 1, 2
_NOBITS = 8
_EXTENDED = 0xFFFF
_NULL, _NEEDED, _STRTAB, _STRSZ, _SONAME, _RPATH, _RUNPATH = 0, 1, 5, 10, 14, 15, 29
_VERDEF, _VERDEFNUM, _VERNEED, _VERNEEDNUM = 0x6FFFFFFC, 0x6FFFFFFD, 0x6FFFFFFE, 0x6FFFFFFF
_BASE = 1
_MAX_SECTIONS = 1 << 16
_MAX_DYNAMIC = 1 << 16
_MAX_NEEDED = 4096
_MAX_VERSIONS = 1 << 14
_MAX_NAME = 4096
_MAX_PATH = 64 << 10
_GPU_SECTIONS = (".nv_fatbin", "__nv_relfatbin")


@dataclass(frozen=True)
class Elf:
    """One ELF file, in the words of `BinaryFacts`. `flags` is `e_flags`, `abi` is (OSABI, ABI version); `gpu` are the
    places of the sections with GPU code: (name, offset, size in bytes); `mapped` is where else the loader maps the file
    from, without the dynamic strings: (begin, end)."""

    machine: str
    flags: int
    abi: tuple[int, int]
    soname: str | None = None
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    needs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    defines: tuple[str, ...] = ()
    gpu: tuple[tuple[str, int, int], ...] = ()
    mapped: tuple[tuple[int, int], ...] = ()


@dataclass(frozen=True)
class _Form:
    """The structures of one class (32 or 64 bits) and byte order."""

    wide: bool
    order: str
    header: struct.Struct = field(init=False)
    program: struct.Struct = field(init=False)
    section: struct.Struct = field(init=False)
    dynamic: struct.Struct = field(init=False)
    verneed: struct.Struct = field(init=False)
    vernaux: struct.Struct = field(init=False)
    verdef: struct.Struct = field(init=False)
    verdaux: struct.Struct = field(init=False)

    def __post_init__(self) -> None:
        forms = {
            "header": "2HI3QI6H" if self.wide else "2HI3II6H",
            "program": "2I6Q" if self.wide else "8I",
            "section": "2I4Q2I2Q" if self.wide else "10I",
            "dynamic": "qQ" if self.wide else "iI",
            "verneed": "2H3I",
            "vernaux": "I2H2I",
            "verdef": "4H3I",
            "verdaux": "2I",
        }
        for name, form in forms.items():
            object.__setattr__(self, name, struct.Struct(self.order + form))


_FORMS = {(bits, data): _Form(bits == 2, "<" if data == 1 else ">") for bits in (1, 2) for data in (1, 2)}


@dataclass(frozen=True, slots=True)
class _Segment:
    """A part of the file that is mapped to addresses."""

    kind: int
    offset: int
    address: int
    size: int


def read(file: Window) -> Elf:
    """What the ELF file says. Raises `BinaryError` where it is damaged, cut off or contradicts itself."""
    ident = file.read(0, 16, "the ELF header")
    form = _FORMS.get((ident[4], ident[5]))
    if ident[:4] != MAGIC or form is None or ident[6] != 1:
        raise BinaryError(f"{file.label}: its ELF header is none: {ident[:7].hex()}")
    header = file.unpack(form.header, 16, "the ELF header")
    machine, flags, section_size = header[1], header[6], header[10]
    segments = _segments(file, form, offset=header[4], size=header[8], count=header[9])
    sections = _sections(file, form, offset=header[5], size=section_size, count=header[11], names=header[12])
    gpu = tuple(section for section in sections if section[0] in _GPU_SECTIONS)
    name = _MACHINES.get(machine, f"machine-{machine}")
    abi = ident[7], ident[8]
    dynamic = next((segment for segment in segments if segment.kind == _DYNAMIC and segment.size), None)
    if dynamic is None or machine == CUDA:
        return Elf(name, flags, abi, gpu=gpu)
    loads = [segment for segment in segments if segment.kind == _LOAD]
    reader = _Dynamic(file, form, loads, dynamic)
    holes = sorted([(offset, offset + size) for _, offset, size in gpu] + [reader.strings])
    return Elf(
        machine=name,
        flags=flags,
        abi=abi,
        soname=reader.name(_SONAME),
        needed=reader.needed(),
        rpath=reader.path(_RPATH),
        runpath=reader.path(_RUNPATH),
        needs=reader.needs(),
        defines=reader.defines(),
        gpu=gpu,
        mapped=tuple(_without([(load.offset, load.offset + load.size) for load in loads], holes)),
    )


def _segments(file: Window, form: _Form, offset: int, size: int, count: int) -> list[_Segment]:
    if not count:
        return []
    if size != form.program.size or count == _EXTENDED:
        raise BinaryError(f"{file.label}: its program headers have the size {size} and the number {count}")
    table = file.read(offset, size * count, "the table of program headers")
    found = []
    for kind, *rest in form.program.iter_unpack(table):
        start, address, length = (rest[1], rest[2], rest[4]) if form.wide else (rest[0], rest[1], rest[3])
        if kind in (_LOAD, _DYNAMIC) and length and start + length > file.size:
            raise BinaryError(
                f"{file.label}: a segment reaches to byte {start + length} of {file.size}: it is damaged or cut off"
            )
        found.append(_Segment(kind, start, address, length))
    return found


def _sections(
    file: Window, form: _Form, offset: int, size: int, count: int, names: int
) -> Iterator[tuple[str, int, int]]:
    """The sections that have bytes in the file: name, offset, size."""
    if not offset:
        return
    if size != form.section.size:
        raise BinaryError(f"{file.label}: its section headers have the size {size}")
    first = file.unpack(form.section, offset, "the table of section headers")
    count, names = count or first[5], first[6] if names == _EXTENDED else names
    if not names:
        return
    if count > _MAX_SECTIONS or names >= count:
        raise BinaryError(f"{file.label}: it has {count} sections, and their names in number {names}")
    table = [*form.section.iter_unpack(file.read(offset, size * count, "the table of section headers"))]
    start, length = table[names][4:6]
    texts = Window(file.fd, file.start + start, length, file.label)
    if start + length > file.size:
        raise BinaryError(f"{file.label}: the names of its sections lie beyond its end")
    for row in table[1:]:
        if row[1] in (0, _NOBITS) or not row[5]:
            continue
        name = texts.text(row[0], _MAX_NAME, "the name of a section")
        if row[4] + row[5] > file.size:
            raise BinaryError(f"{file.label}: its section {name[:60]!r} reaches beyond its end")
        yield name, row[4], row[5]


class _Dynamic:
    """The dynamic section, and what it leads to."""

    def __init__(self, file: Window, form: _Form, loads: Sequence[_Segment], segment: _Segment) -> None:
        self._file, self._form, self._loads = file, form, loads
        step = form.dynamic.size
        if segment.size > _MAX_DYNAMIC * step:
            raise BinaryError(f"{file.label}: its dynamic section has {segment.size} bytes")
        data = file.read(segment.offset, segment.size // step * step, "the dynamic section")
        self._tags: dict[int, list[int]] = {}
        for tag, value in form.dynamic.iter_unpack(data):
            if tag == _NULL:
                break
            self._tags.setdefault(tag, []).append(value)
        start, size = self._one(_STRTAB), self._one(_STRSZ) or 0
        begin = self._offset(start, "the table of strings") if start is not None else 0
        if begin + size > file.size:
            raise BinaryError(f"{file.label}: its table of strings reaches beyond its end")
        self.strings = begin, begin + size
        self._texts = Window(file.fd, file.start + begin, size, file.label)

    def name(self, tag: int) -> str | None:
        """The text of a tag that comes once; None if it does not."""
        value = self._one(tag)
        return None if value is None else self._text(value)

    def needed(self) -> tuple[str, ...]:
        values = self._tags.get(_NEEDED, ())
        if len(values) > _MAX_NEEDED:
            raise BinaryError(f"{self._file.label}: it needs {len(values)} libraries")
        return tuple(map(self._text, values))

    def path(self, tag: int) -> tuple[str, ...]:
        value = self._one(tag)
        text = "" if value is None else self._texts.text(value, _MAX_PATH, "a search path")
        return tuple(text.split(":")) if text else ()

    def needs(self) -> tuple[tuple[str, tuple[str, ...]], ...]:
        """Each library with the versions that are needed of it."""
        found: dict[str, set[str]] = {}
        left = _MAX_VERSIONS
        form = self._form
        for at, (_, count, name, first, _) in self._chain(_VERNEED, _VERNEEDNUM, form.verneed):
            versions = found.setdefault(self._text(name), set())
            for _, (_, _, _, version, _) in self._links(at + first, count, form.vernaux):
                left = self._spent(left)
                versions.add(self._text(version))
        return tuple((library, tuple(sorted(versions))) for library, versions in sorted(found.items()))

    def defines(self) -> tuple[str, ...]:
        """The versions that are defined here, without the one that is the file's own name."""
        found = set()
        left = _MAX_VERSIONS
        form = self._form
        for at, (_, flags, _, count, _, first, _) in self._chain(_VERDEF, _VERDEFNUM, form.verdef):
            left = self._spent(left)
            if count and not flags & _BASE:
                name, _ = self._file.unpack(form.verdaux, at + first, "a version")
                found.add(self._text(name))
        return tuple(sorted(found))

    def _chain(self, tag: int, number: int, form: struct.Struct) -> Iterator[tuple[int, tuple[int, ...]]]:
        address, count = self._one(tag), self._one(number)
        if address is not None and count:
            yield from self._links(self._offset(address, "the table of versions"), count, form)

    def _links(self, at: int, count: int, form: struct.Struct) -> Iterator[tuple[int, tuple[int, ...]]]:
        """Structures that each say in their last field how far the next one is."""
        if count > _MAX_VERSIONS:
            raise BinaryError(f"{self._file.label}: it has a list of {count} versions")
        for number in range(count):
            fields = self._file.unpack(form, at, "a version")
            yield at, fields
            if not fields[-1]:
                if number + 1 < count:
                    raise BinaryError(f"{self._file.label}: a list of {count} versions ends after {number + 1}")
                break
            at += fields[-1]

    def _spent(self, left: int) -> int:
        if not left:
            raise BinaryError(f"{self._file.label}: it has more than {_MAX_VERSIONS} versions")
        return left - 1

    def _one(self, tag: int) -> int | None:
        """The value that counts, where a tag comes more than once: the last one, as ld.so takes it."""
        values = self._tags.get(tag)
        return values[-1] if values else None

    def _offset(self, address: int, what: str) -> int:
        """Where in the file an address is."""
        for load in self._loads:
            if load.address <= address < load.address + load.size:
                return load.offset + address - load.address
        raise BinaryError(f"{self._file.label}: {what} is at the address {address:#x}, which is in no segment")

    def _text(self, offset: int) -> str:
        return self._texts.text(offset, _MAX_NAME, "a name")


def _without(ranges: Sequence[tuple[int, int]], holes: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """The parts of ranges that lie in no hole; holes are sorted."""
    reached = 0
    for begin, end in sorted(ranges):
        begin = max(begin, reached)
        reached = max(reached, end)
        for first, last in holes:
            if first < end and last > begin:
                if begin < first:
                    yield begin, first
                begin = max(begin, last)
        if begin < end:
            yield begin, end
