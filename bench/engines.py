"""The libraries that can inflate a wheel, each behind one function, and how fast each is here."""

from __future__ import annotations

import ctypes
import mmap
import struct
import time
import zipfile
import zlib
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Protocol

from bench.watch import Cost
from builder.layers import deflate

_PIECE = 256 << 10
_RAW = -15


@dataclass(frozen=True)
class Member:
    """A deflated member of a wheel: where its stream lies and how large it is."""

    wheel: Path
    offset: int
    compressed_size: int
    size: int


@dataclass(frozen=True)
class Engine:
    """A way to inflate a member to nothing."""

    name: str
    inflate: Callable[[Member], None]


def members(wheel: Path) -> list[Member]:
    """The deflated members of a wheel."""
    with zipfile.ZipFile(wheel) as archive, wheel.open("rb") as file:
        found = []
        for info in archive.infolist():
            if info.compress_type == zipfile.ZIP_DEFLATED and info.compress_size:
                file.seek(info.header_offset + 26)
                name, extra = struct.unpack("<HH", file.read(4))
                offset = info.header_offset + 30 + name + extra
                found.append(Member(wheel, offset, info.compress_size, info.file_size))
        return found


def engines() -> list[Engine]:
    """What is installed here. "With stops" is how layers are made: native, halting at the end of every block."""
    found = [Engine("zlib (Python's)", partial(_inflate, zlib.decompressobj))]
    try:
        from zlib_ng import zlib_ng

        found.append(Engine("zlib-ng", partial(_inflate, zlib_ng.decompressobj)))
    except ImportError:
        pass
    try:
        from isal import isal_zlib

        found.append(Engine("ISA-L", partial(_inflate, isal_zlib.decompressobj)))
    except ImportError:
        pass
    for library in (deflate.libz(), deflate.zlib_ng()):
        if library:
            found.append(Engine(f"{library.name}, with stops", partial(_inflate_with_stops, library)))
    return found


@dataclass(frozen=True)
class Rate:
    """What an engine took on one core for `size` bytes of output."""

    engine: Engine
    cost: Cost
    size: int


def rates(wheel: Path) -> list[Rate]:
    """Every engine on one wheel, one after another."""
    streams = members(wheel)
    return [_rate(engine, streams) for engine in engines()]


def fastest(measured: list[Rate]) -> Engine:
    """The engine that took the least CPU time."""
    return min(measured, key=lambda rate: rate.cost.cpu).engine


def _rate(engine: Engine, streams: list[Member]) -> Rate:
    cpu, wall = time.process_time(), time.perf_counter()
    for stream in streams:
        engine.inflate(stream)
    cost = Cost(time.perf_counter() - wall, time.process_time() - cpu)
    return Rate(engine, cost, sum(stream.size for stream in streams))


class _Decompressor(Protocol):
    def decompress(self, data: bytes, /) -> bytes: ...


def _inflate(begin: Callable[[int], _Decompressor], member: Member) -> None:
    stream = begin(_RAW)
    size = 0
    with member.wheel.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        view = memoryview(data)
        try:
            for at in range(member.offset, member.offset + member.compressed_size, _PIECE):
                end = min(at + _PIECE, member.offset + member.compressed_size)
                with view[at:end] as piece:
                    size += len(stream.decompress(piece))  # type: ignore[arg-type]  # any buffer will do
        finally:
            view.release()
    _check(member, size)


def _inflate_with_stops(library: deflate.Engine, member: Member) -> None:
    stream = deflate.Inflate(library)
    out = ctypes.create_string_buffer(_PIECE)
    size = 0
    with member.wheel.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as data:
        begin = (ctypes.c_char * len(data)).from_buffer(data)
        try:
            stream.feed(ctypes.addressof(begin) + member.offset, member.compressed_size)
            status = deflate.Z_OK
            while status == deflate.Z_OK:
                status, written, _, _ = stream.step(ctypes.addressof(out), _PIECE)
                size += written
        finally:
            stream.close()
            del begin  # a map that is referred to cannot be closed
    _check(member, size)


def _check(member: Member, size: int) -> None:
    if size != member.size:
        raise AssertionError(f"{member.wheel.name}: {size} bytes came out instead of {member.size}")
