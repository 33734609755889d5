"""Which GPUs a file has code for: the entries of its fatbins, compressed ones too, for their headers say it.

NVIDIA does not describe the container; what is read here was measured on what nvcc 12.1 to 13.5 writes, and is judged by
`cuobjdump` in the tests. A section is a row of containers, on borders of eight bytes:

    container  magic, version (1), bytes of this header, bytes of all that follows
    entry      kind (1 PTX, 2 SASS, others: not for running), header's bytes, payload's bytes, …, version of the PTX
               language or of the cubin (major, minor), architecture, …, flags (a: bit 20, f: bit 21)
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from builder.binaries.window import BinaryError, Window

MAGIC = b"\x50\xed\x55\xba"
_CONTAINER = struct.Struct("<4s2HQ")
_ENTRY = struct.Struct("<2HIQ2I2HI2IQ")
_PTX, _SASS = 1, 2
_ARCHITECTURE_ONLY, _FAMILY_ONLY = 1 << 20, 1 << 21
_ALIGNMENT = 8
_MAX_ENTRIES = 1 << 20
_MAX_ARCHITECTURE = 9999
_RELOCATABLE = "__nv_relfatbin"


@dataclass(frozen=True)
class GpuCode:
    """What GPUs a file has code for: `sass` (`sm_80`, `sm_90a`, `sm_100f`) and `ptx` (`compute_90`), each sorted by number;
    `isa` is the highest version of the PTX language in it, such as (9, 2), which a driver has to know to compile it."""

    sass: tuple[str, ...] = ()
    ptx: tuple[str, ...] = ()
    isa: tuple[int, int] | None = None


def read(file: Window, sections: Sequence[tuple[str, int, int]]) -> GpuCode:
    """The GPU code in the sections (name, offset, size) of a file.

    Relocatable code, `__nv_relfatbin`, is what remains after linking and runs nowhere; it counts only where there is no
    other, as for `cuobjdump`. Raises `BinaryError` for what is not in the form above.
    """
    linked = [section for section in sections if section[0] != _RELOCATABLE]
    found = {entry for _, offset, size in linked or sections for entry in _entries(file, offset, size)}
    ptx = [(number, suffix, isa) for kind, number, suffix, isa in found if kind == _PTX]
    sass = {(number, suffix) for kind, number, suffix, _ in found if kind == _SASS}
    return GpuCode(
        tuple(f"sm_{number}{suffix}" for number, suffix in sorted(sass)),
        tuple(f"compute_{number}{suffix}" for number, suffix in sorted({entry[:2] for entry in ptx})),
        max((isa for _, _, isa in ptx), default=None),
    )


def of_cubin(flags: int, abi: tuple[int, int]) -> GpuCode:
    """The architecture of a cubin, an ELF file of its own, by its `e_flags` and (OSABI, ABI version)."""
    if abi[0] == 0x41:  # since CUDA 13; whether it is for one architecture only is not among its flags
        return GpuCode(sass=(f"sm_{flags >> 8 & 0xFFFF}",))
    return GpuCode(sass=(f"sm_{flags & 0xFF}{'a' if flags & 0x800 else ''}",))


def _entries(file: Window, begin: int, size: int) -> Iterator[tuple[int, int, str, tuple[int, int]]]:
    """Each entry: kind, architecture, its suffix, version."""
    at, end, left = begin, begin + size, _MAX_ENTRIES
    while (at := _container(file, at, end)) < end:
        magic, version, header, length = _CONTAINER.unpack(file.read(at, _CONTAINER.size, "GPU code"))
        if magic != MAGIC or version != 1 or header < _CONTAINER.size:
            raise BinaryError(f"{file.label}: its GPU code at byte {at} is in no known form")
        at += header
        limit = at + length
        if limit > end:
            raise BinaryError(f"{file.label}: its GPU code at byte {at} reaches beyond its section: it is cut off")
        while at < limit:
            if not left or limit - at < _ENTRY.size:
                raise BinaryError(f"{file.label}: its GPU code at byte {at} is damaged, or more than can be")
            left -= 1
            fields = _ENTRY.unpack(file.read(at, _ENTRY.size, "GPU code"))
            kind, _, header, payload, _, _, minor, major, architecture, _, _, flags = fields
            if header < _ENTRY.size or header + payload > limit - at or architecture > _MAX_ARCHITECTURE:
                raise BinaryError(f"{file.label}: the header of its GPU code at byte {at} is damaged")
            suffix = "a" if flags & _ARCHITECTURE_ONLY else "f" if flags & _FAMILY_ONLY else ""
            yield kind, architecture, suffix, (major, minor)
            at += header + payload


def _container(file: Window, at: int, end: int) -> int:
    """Where the next container begins: what lies between two is zero."""
    while at < end:
        data = file.read(at, min(4096, end - at), "GPU code")
        rest = data.lstrip(b"\0")
        if rest:
            return at + (len(data) - len(rest)) // _ALIGNMENT * _ALIGNMENT
        at += len(data)
    return end
