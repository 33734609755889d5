"""Which GPUs a file has code for: the entries of its fatbins, compressed ones too, for their headers say it.

NVIDIA does not describe the container; what is read here was measured on what nvcc 12.1 to 13.5 writes, and is judged by
`cuobjdump` in the tests. A section is a row of containers, on borders of eight bytes:

    container  magic, version (1), bytes of this header, bytes of all that follows
    entry      kind (1 PTX, 2 SASS, others: not for running), header's bytes, payload's bytes, …, version of the PTX
               language or of the cubin (major, minor), architecture, …, flags (a: bit 20, f: bit 21)
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass

from builder.binaries.window import BinaryError, Window

MAGIC = b"\x50\xed\x55\xba"
_CONTAINER = struct.Struct("<4s2HQ")
_ENTRY = struct.Struct("<2HIQ2I2HI2I3Q")
_PTX, _SASS = 1, 2
_EMPTY = {_PTX: 64, _SASS: 2560}
"""Up to how many bytes a module unpacks to that has no kernel: 56 and 2,228 were measured, the smallest with one 90 and
2,856 (nvcc 13.5, sm_75 to sm_120)."""
_ARCHITECTURE_ONLY, _FAMILY_ONLY = 1 << 20, 1 << 21
_ALIGNMENT = 8
_MAX_ENTRIES = 1 << 20
_MAX_ARCHITECTURE = 9999
_RELOCATABLE = "__nv_relfatbin"


@dataclass(frozen=True)
class GpuCode:
    """What GPUs a file has code for: `sass` (`sm_80`, `sm_90a`, `sm_100f`) and `ptx` (`compute_90`), each sorted by number.

    `isa` is the highest version of the PTX language in it, such as (9, 2), which a driver has to know to compile it. `code`
    says how many bytes of the file are for each architecture; modules without a kernel, as nvcc makes of files without GPU
    code, do not count there.
    """

    sass: tuple[str, ...] = ()
    ptx: tuple[str, ...] = ()
    isa: tuple[int, int] | None = None
    code: tuple[tuple[str, int], ...] = ()


def read(file: Window, sections: Sequence[tuple[str, int, int]], embedded: Sequence[int] = ()) -> GpuCode:
    """The GPU code in the sections (name, offset, size) of a file, and in the containers that may begin at `embedded`: what
    turns out to be none there counts for nothing.

    Relocatable code, `__nv_relfatbin`, is what remains after linking and runs nowhere; it counts only where there is no
    other, as for `cuobjdump`. Raises `BinaryError` for what is not in the form above.
    """
    linked = [section for section in sections if section[0] != _RELOCATABLE]
    modules = [module for _, offset, size in linked or sections for module in _modules(file, offset, size)]
    for offset in embedded:
        with suppress(BinaryError):
            modules += tuple(_modules(file, offset, _length(file, offset)))
    return _summed(modules)


@dataclass(frozen=True, slots=True)
class _Module:
    """One entry of a fatbin; `stored` are its bytes in the file, `size` those that it unpacks to."""

    kind: int
    architecture: int
    suffix: str
    version: tuple[int, int]
    stored: int
    size: int

    @property
    def name(self) -> str:
        return f"{'sm' if self.kind == _SASS else 'compute'}_{self.architecture}{self.suffix}"


def _summed(modules: Iterable[_Module]) -> GpuCode:
    sizes: dict[tuple[int, int, str], tuple[str, int]] = {}
    isa = None
    for module in modules:
        if module.kind not in _EMPTY:
            continue
        key = -module.kind, module.architecture, module.suffix
        name, known = sizes.get(key, (module.name, 0))
        sizes[key] = name, known + (module.stored if module.size > _EMPTY[module.kind] else 0)
        if module.kind == _PTX:
            isa = max(module.version, isa or module.version)
    ordered = [(key[0], *sizes[key]) for key in sorted(sizes)]
    return GpuCode(
        tuple(name for kind, name, _ in ordered if kind == -_SASS),
        tuple(name for kind, name, _ in ordered if kind == -_PTX),
        isa,
        tuple((name, size) for _, name, size in ordered if size),
    )


def of_cubin(size: int, flags: int, abi: tuple[int, int]) -> GpuCode:
    """The architecture of a cubin, an ELF file of its own of `size` bytes, by its `e_flags` and (OSABI, ABI version)."""
    # Since CUDA 13 (ABI 0x41), whether a cubin is for one architecture only is not among its flags.
    name = f"sm_{flags >> 8 & 0xFFFF}" if abi[0] == 0x41 else f"sm_{flags & 0xFF}{'a' if flags & 0x800 else ''}"
    return GpuCode(sass=(name,), code=((name, size),))


def _length(file: Window, offset: int) -> int:
    _, _, header, length = _CONTAINER.unpack(file.read(offset, _CONTAINER.size, "GPU code"))
    return int(header + length)


def _modules(file: Window, begin: int, size: int) -> Iterator[_Module]:
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
            kind, _, header, payload, _, _, minor, major, architecture, _, _, flags, _, unpacked = fields
            if header < _ENTRY.size or header + payload > limit - at or architecture > _MAX_ARCHITECTURE:
                raise BinaryError(f"{file.label}: the header of its GPU code at byte {at} is damaged")
            suffix = "a" if flags & _ARCHITECTURE_ONLY else "f" if flags & _FAMILY_ONLY else ""
            yield _Module(kind, architecture, suffix, (major, minor), payload, unpacked or payload)
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
