"""Reading the content of one entry, checked: small files into memory, large ones piece by piece."""

from __future__ import annotations

import zlib
from collections.abc import Iterator

from builder.errors import HostileInputError
from builder.layers.tar import Content, Inline, Member, Region

_PIECE = 1 << 20


def read(content: Content, limit: int) -> bytes:
    """The bytes of a content of at most `limit` bytes; raises `HostileInputError` where they are not what it says."""
    if isinstance(content, Inline):
        return content.data
    label = content.label or str(content.path)
    if max(content.size, _packed_size(content)) > limit:
        raise HostileInputError(f"{label}: larger than any file of its kind ({content.size} bytes)")
    with content.path.open("rb") as file:
        file.seek(content.offset)
        if isinstance(content, Region):
            data = file.read(content.size)
        else:
            data = _inflate(file.read(content.compressed_size), content.size, label)
    if len(data) != content.size or content.crc32 not in (None, zlib.crc32(data)):
        raise HostileInputError(f"{label}: its data has another size or CRC-32 than the archive says")
    return data


def pieces(content: Content) -> Iterator[bytes]:
    """The bytes of a content, a piece at a time; raises `HostileInputError` where they are not what it says, at the end at the
    latest."""
    if isinstance(content, Inline):
        yield content.data
        return
    label = content.label or str(content.path)
    size = crc32 = 0
    for piece in _stored(content) if isinstance(content, Region) else _inflated(content, label):
        size += len(piece)
        if size > content.size:
            break
        crc32 = zlib.crc32(piece, crc32)
        yield piece
    if size != content.size or content.crc32 not in (None, crc32):
        raise HostileInputError(f"{label}: its data has another size or CRC-32 than the archive says")


def _stored(content: Region) -> Iterator[bytes]:
    left = content.size
    with content.path.open("rb") as file:
        file.seek(content.offset)
        while left and (piece := file.read(min(left, _PIECE))):
            left -= len(piece)
            yield piece


def _inflated(content: Member, label: str) -> Iterator[bytes]:
    inflate = zlib.decompressobj(-15)
    left = content.compressed_size
    try:
        with content.path.open("rb") as file:
            file.seek(content.offset)
            while left and (packed := file.read(min(left, _PIECE))):
                left -= len(packed)
                while packed and not inflate.eof:
                    yield inflate.decompress(packed, _PIECE)
                    packed = inflate.unconsumed_tail
    except zlib.error as error:
        raise HostileInputError(f"{label}: its compressed data is damaged ({error})") from error
    if not inflate.eof or inflate.unused_data or left:
        raise HostileInputError(f"{label}: its compressed data is cut off, or bytes follow it")


def _packed_size(content: Region | Member) -> int:
    return content.size if isinstance(content, Region) else content.compressed_size


def _inflate(data: bytes, size: int, label: str) -> bytes:
    inflate = zlib.decompressobj(-15)
    try:
        inflated = inflate.decompress(data, size + 1)
    except zlib.error as error:
        raise HostileInputError(f"{label}: its compressed data is damaged ({error})") from error
    if inflate.eof and inflate.unused_data:
        raise HostileInputError(f"{label}: {len(inflate.unused_data)} bytes follow its compressed data")
    if not inflate.eof and len(inflated) <= size:
        raise HostileInputError(f"{label}: its compressed data is cut off")
    return inflated
