"""Raw deflate streams (RFC 1951): inflating with a stop at every block, and the one compressor of the format.

Inflating uses zlib-ng where its wheel exports the native functions and zlib's own library otherwise: both stop at the
same places and give the same bytes, so the choice only decides the speed. Compressing is libdeflate level 1, whose bytes
are part of the format; `compress` refuses to run with a library that would write others.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import functools
import hashlib
import zlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import deflate

from builder.errors import ToolError

Z_OK, Z_STREAM_END, Z_BUF_ERROR, Z_BLOCK = 0, 1, -5, 5
_RAW = -15

BLOCK_END = 128
"""Bit of `Inflate.data_type`: the stop is at the end of a deflate block."""
LAST_BLOCK = 64
"""Bit of `Inflate.data_type`: that block was the last of the stream."""

_SAMPLE = "e7582d292f571b3eb497f416cdfca4611f8957f4d6770e209678275e6e010a1c"


def _stream(adler: Any) -> type[ctypes.Structure]:
    """z_stream of zlib.h, and zng_stream of zlib-ng.h, whose check value alone has another width."""
    fields = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_size_t),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_size_t),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", adler),
        ("reserved", ctypes.c_ulong),
    )
    return type("Stream", (ctypes.Structure,), {"_fields_": fields})


@dataclass(frozen=True)
class Engine:
    """A library that inflates: its name for people, its stream and its functions."""

    name: str
    stream: type[ctypes.Structure]
    init: Callable[[Any], int]
    reset: Any
    inflate: Any
    end: Any
    crc32: Callable[[Any, int], int]


def zlib_ng() -> Engine | None:
    """zlib-ng from the `zlib-ng` wheel, or None where the wheel does not export its native functions."""
    try:
        from zlib_ng import zlib_ng as module

        library = ctypes.CDLL(module.__file__)
        init, version = library.zng_inflateInit2, library.zlibng_version
        functions = library.zng_inflateReset, library.zng_inflate, library.zng_inflateEnd
        version.restype = ctypes.c_char_p
        if not version().startswith(b"2."):
            return None
    except (ImportError, OSError, AttributeError):
        return None
    for function in functions:
        function.argtypes = [ctypes.c_void_p, ctypes.c_int] if function is functions[1] else [ctypes.c_void_p]
    init.argtypes = [ctypes.c_void_p, ctypes.c_int]
    return Engine("zlib-ng", _stream(ctypes.c_uint32), lambda stream: int(init(stream, _RAW)), *functions, module.crc32)


def libz() -> Engine | None:
    """The system's zlib, or None where there is none."""
    try:
        library = ctypes.CDLL(ctypes.util.find_library("z") or "libz.so.1")
    except OSError:
        return None
    init = library.inflateInit2_
    init.argtypes = [ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_int]
    functions = library.inflateReset, library.inflate, library.inflateEnd
    for function in functions:
        function.argtypes = [ctypes.c_void_p, ctypes.c_int] if function is functions[1] else [ctypes.c_void_p]
    layout = _stream(ctypes.c_ulong)
    size = ctypes.sizeof(layout)
    return Engine("zlib", layout, lambda stream: int(init(stream, _RAW, b"1", size)), *functions, zlib.crc32)


@functools.cache
def engine() -> Engine:
    """The fastest engine of this machine."""
    found = zlib_ng() or libz()
    if not found:
        raise ToolError("no library to inflate with", hint="install the zlib-ng wheel or the system's zlib (zlib1g)")
    return found


def inflater() -> tuple[Any, type[Exception]]:
    """A decompressor of one raw stream, as `zlib.decompressobj` gives it, that need not stop at blocks; and what it raises."""
    module: Any = zlib
    with suppress(ImportError):
        from zlib_ng import zlib_ng as module
    return module.decompressobj(_RAW), module.error


class Inflate:
    """One raw inflate stream over addresses in memory, stopping at the end of every block.

    After `feed(address, size)` call `step(address, size)` with room for output until `avail_in` is 0 or the stream ends.
    Not safe to share between threads; call `reset` between streams and `close` after the last.
    """

    def __init__(self, using: Engine | None = None) -> None:
        self._engine = using or engine()
        self._stream: Any = self._engine.stream()
        self._address = ctypes.addressof(self._stream)
        self._inflate = self._engine.inflate
        if self._engine.init(self._address) != Z_OK:
            raise MemoryError("inflateInit2")

    def reset(self) -> None:
        """Forget the stream: the next byte fed starts another."""
        self._engine.reset(self._address)

    def close(self) -> None:
        self._engine.end(self._address)

    def feed(self, address: int, size: int) -> None:
        """Sets the input: `size` bytes at `address`, which must stay there until `avail_in` is 0."""
        self._stream.next_in = address
        self._stream.avail_in = size

    def step(self, address: int, size: int) -> tuple[int, int, int, int]:
        """Inflates into `size` bytes at `address` until the end of a block, of the input or of the output.

        Returns (status, bytes written, input bytes left, data_type): zlib's return code, and data_type as zlib.h
        documents it for Z_BLOCK (`BLOCK_END`, `LAST_BLOCK`, and in the low 3 bits the unused bits of the last byte).
        """
        stream = self._stream
        stream.next_out = address
        stream.avail_out = size
        status = self._inflate(self._address, Z_BLOCK)
        return status, size - stream.avail_out, stream.avail_in, stream.data_type


class Compressor:
    """libdeflate level 1, raw deflate: the only compressor of the format. One per thread."""

    def __init__(self) -> None:
        _check_compressor()
        self._native = _native_libdeflate()
        self._handle = self._native.libdeflate_alloc_compressor(1) if self._native else None

    def compress(self, data: bytes | bytearray) -> bytes:
        """The complete raw deflate stream of `data`."""
        if not self._native or not self._handle:
            return bytes(deflate.deflate_compress(bytes(data), 1))
        room = self._native.libdeflate_deflate_compress_bound(self._handle, len(data))
        out = bytearray(room)
        source = (ctypes.c_char * len(data)).from_buffer(data) if isinstance(data, bytearray) else data
        target = (ctypes.c_char * room).from_buffer(out)
        size = self._native.libdeflate_deflate_compress(self._handle, source, len(data), target, room)
        del source, target
        return bytes(memoryview(out)[:size])

    def close(self) -> None:
        if self._native and self._handle:
            self._native.libdeflate_free_compressor(self._handle)
            self._handle = None


@functools.cache
def _native_libdeflate() -> Any:
    """libdeflate's own functions out of the `deflate` wheel: they let other threads run; None where not exported."""
    try:
        library = ctypes.CDLL(deflate._deflate.__file__)
        library.libdeflate_alloc_compressor.argtypes = [ctypes.c_int]
        library.libdeflate_alloc_compressor.restype = ctypes.c_void_p
        library.libdeflate_free_compressor.argtypes = [ctypes.c_void_p]
        library.libdeflate_free_compressor.restype = None
        library.libdeflate_deflate_compress_bound.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
        library.libdeflate_deflate_compress_bound.restype = ctypes.c_size_t
        library.libdeflate_deflate_compress.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_void_p, ctypes.c_size_t,
        ]  # fmt: skip
        library.libdeflate_deflate_compress.restype = ctypes.c_size_t
    except (OSError, AttributeError):
        return None
    return library


@functools.cache
def _check_compressor() -> None:
    """Another release of libdeflate may compress to other bytes: better no image than one with another digest."""
    found = hashlib.sha256(bytes(deflate.deflate_compress(sample(), 1))).hexdigest()
    if found != _SAMPLE:
        raise ToolError(
            f"the installed `deflate` package compresses to other bytes than the image format asks for ({found[:12]})",
            hint="install the release that Layerwright's metadata names: pip install --force-reinstall layerwright",
        )


def sample() -> bytes:
    """300 kB of text, noise and runs: enough to show a compressor's every decision."""
    text = b"".join(b"def f%d(x): return x * %d + %d\n" % (i, i * i, i % 7) for i in range(4000))
    noise = b"".join(hashlib.sha256(i.to_bytes(4, "big")).digest() for i in range(2000))
    return text + noise + bytes(50_000) + text[::-3] + noise[::2]
