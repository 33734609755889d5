"""A second, plain way to a layer's spans: the system's zlib stops at every block, tarfile reads the entries."""

from __future__ import annotations

import ctypes
import tarfile
from pathlib import Path

from builder.layers.spans import WINDOW, Checkpoint, LayerSpans, TocEntry
from builder.oci.digest import Digest

_Z_BLOCK, _Z_OK, _Z_STREAM_END = 5, 0, 1
TYPES = {
    tarfile.REGTYPE: "reg",
    tarfile.DIRTYPE: "dir",
    tarfile.SYMTYPE: "symlink",
    tarfile.LNKTYPE: "hardlink",
    tarfile.CHRTYPE: "char",
    tarfile.BLKTYPE: "block",
    tarfile.FIFOTYPE: "fifo",
}
"""The types of members, in the words of a table of contents."""


def scan(layer: Path, span_size: int, windows: Path) -> LayerSpans:
    """The spans of a gzip layer of one member whose tar ends with exactly two zero blocks."""
    blob = layer.read_bytes()
    tar, checkpoints = _inflate(blob, span_size)
    with windows.open("wb") as file:
        for checkpoint in checkpoints:
            window = tar[max(0, checkpoint.out_offset - WINDOW) : checkpoint.out_offset]
            file.write(bytes(WINDOW - len(window)) + window)
    starts = [checkpoint.in_offset - (checkpoint.bits > 0) for checkpoint in checkpoints]
    ends = [*(checkpoint.in_offset for checkpoint in checkpoints[1:]), len(blob)]
    return LayerSpans(
        span_size=span_size,
        blob_size=len(blob),
        tar_size=len(tar),
        checkpoints=tuple(checkpoints),
        digests=tuple(Digest.of(blob[start:end]) for start, end in zip(starts, ends, strict=True)),
        windows=windows,
        toc=_toc(layer),
    )


class _Stream(ctypes.Structure):
    _fields_ = (
        ("next_in", ctypes.c_void_p),
        ("avail_in", ctypes.c_uint),
        ("total_in", ctypes.c_ulong),
        ("next_out", ctypes.c_void_p),
        ("avail_out", ctypes.c_uint),
        ("total_out", ctypes.c_ulong),
        ("msg", ctypes.c_char_p),
        ("state", ctypes.c_void_p),
        ("zalloc", ctypes.c_void_p),
        ("zfree", ctypes.c_void_p),
        ("opaque", ctypes.c_void_p),
        ("data_type", ctypes.c_int),
        ("adler", ctypes.c_ulong),
        ("reserved", ctypes.c_ulong),
    )


def _inflate(blob: bytes, span_size: int) -> tuple[bytes, list[Checkpoint]]:
    zlib = ctypes.CDLL("libz.so.1")
    zlib.zlibVersion.restype = ctypes.c_char_p
    stream = _Stream()
    assert zlib.inflateInit2_(ctypes.byref(stream), 47, zlib.zlibVersion(), ctypes.sizeof(stream)) == _Z_OK
    source = ctypes.create_string_buffer(blob, len(blob))
    target = ctypes.create_string_buffer(1 << 20)
    stream.next_in, stream.avail_in = ctypes.addressof(source), len(blob)
    tar = bytearray()
    checkpoints: list[Checkpoint] = []
    last = 0
    while True:
        stream.next_out, stream.avail_out = ctypes.addressof(target), len(target)
        status = zlib.inflate(ctypes.byref(stream), _Z_BLOCK)
        tar += target.raw[: len(target) - stream.avail_out]
        if status == _Z_STREAM_END:
            assert stream.avail_in == 0
            zlib.inflateEnd(ctypes.byref(stream))
            return bytes(tar), checkpoints
        assert status == _Z_OK, stream.msg
        ended, final = stream.data_type & 128, stream.data_type & 64
        if ended and not final and (not tar or len(tar) - last > span_size):
            last = len(tar)
            checkpoints.append(Checkpoint(len(blob) - stream.avail_in, last, stream.data_type & 7))


def _toc(layer: Path) -> tuple[TocEntry, ...]:
    with tarfile.open(layer) as archive:
        return tuple(
            TocEntry(
                name=member.name + ("/" if member.isdir() else ""),
                type=TYPES[member.type],
                offset=member.offset_data,
                size=member.size,
                linkname=member.linkname,
                mode=member.mode,
                uid=member.uid,
                gid=member.gid,
                uname=member.uname,
                gname=member.gname,
                mtime=int(member.mtime),
                devmajor=member.devmajor,
                devminor=member.devminor,
                pax=tuple(member.pax_headers.items()),
            )
            for member in archive
        )
