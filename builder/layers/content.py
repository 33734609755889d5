"""Reading the content of one entry into memory, checked: for metadata, sources and other small files."""

from __future__ import annotations

import zlib

from builder.errors import HostileInputError
from builder.layers.tar import Content, Inline, Member, Region


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
