"""The first difference of two layers: which member, which byte, and of what kind. Both are read once, side by side."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

from builder.layers.untar import Found, TarReader

Opener = Callable[[], AbstractContextManager[BinaryIO]]
"""Gives the bytes of a blob from the start, as often as it is called."""

_BLOCK = 1 << 20


class Difference(StrEnum):
    """What kind of difference it is."""

    MISSING = "missing"  # a member that is expected is not there
    EXTRA = "extra"  # a member is there that is not expected
    ORDER = "order"
    TYPE = "type"
    MODE = "mode"
    OWNER = "owner"
    MTIME = "mtime"
    LINK = "link"
    CONTENT = "content"
    HEADER = "header"  # the same said in other bytes
    END = "end"  # what stands behind the last member
    COMPRESSION = "compression only"
    NONE = "none"


@dataclass(frozen=True)
class Compared:
    """The first difference of two layers. `path` is of the member, `byte` the place of the first other byte: in the content
    of that member for CONTENT, in its header blocks for HEADER, in the blob for COMPRESSION. `expected` and `found` say it
    in words."""

    difference: Difference
    path: str | None = None
    byte: int | None = None
    expected: str = ""
    found: str = ""


def compare(expected: Opener, found: Opener) -> Compared:
    """Compares two blobs. Raises `LayerError` where one of them is no layer.

    When members are in other places, the rest of both is read: a member that is in only one of them is missing or extra, else
    the order differs.
    """
    with expected() as one, found() as other, TarReader(one) as left, TarReader(other) as right:
        compared = _members(left, right)
        if compared is None and left.figures().diff_id != right.figures().diff_id:
            sizes = [f"a tar of {reader.figures().tar_size} bytes" for reader in (left, right)]
            compared = Compared(Difference.END, expected=sizes[0], found=sizes[1])
    return compared or _blobs(expected, found)


def _members(left: TarReader, right: TarReader) -> Compared | None:
    while True:
        one, other = left.next(), right.next()
        if one is None and other is None:
            return None
        if one is None or other is None or one.entry.name != other.entry.name:
            return _elsewhere(one, other, left, right)
        if (attributes := _attributes(one, other)) or (attributes := _content(one.entry.name, left, right)):
            return attributes
        if one.header != other.header:
            at = _first(one.header, other.header)
            return Compared(Difference.HEADER, one.entry.name, at, *_bytes_at(one.header, other.header, at))


def _elsewhere(one: Found | None, other: Found | None, left: TarReader, right: TarReader) -> Compared:
    """Two members of different names stand in the same place."""
    if one is None and other is not None:
        return Compared(Difference.EXTRA, other.entry.name, None, "nothing", _described(other))
    assert one
    if other is None or not _comes(one.entry.name, right):
        found = "nothing" if other is None else f"{other.entry.name} in its place"
        return Compared(Difference.MISSING, one.entry.name, None, _described(one), found)
    if not _comes(other.entry.name, left):
        return Compared(Difference.EXTRA, other.entry.name, None, f"{one.entry.name} in its place", _described(other))
    return Compared(Difference.ORDER, one.entry.name, None, one.entry.name, other.entry.name)


def _comes(name: str, reader: TarReader) -> bool:
    while member := reader.next():
        if member.entry.name == name:
            return True
    return False


def _described(member: Found) -> str:
    return f"{member.entry.type}, {member.entry.size} bytes"


def _attributes(one: Found, other: Found) -> Compared | None:
    a, b = one.entry, other.entry
    pairs = (
        (Difference.TYPE, (a.type, a.devmajor, a.devminor), (b.type, b.devmajor, b.devminor)),
        (Difference.MODE, f"{a.mode:04o}", f"{b.mode:04o}"),
        (Difference.OWNER, _owner(one), _owner(other)),
        (Difference.MTIME, str(a.mtime), str(b.mtime)),
        (Difference.LINK, a.linkname, b.linkname),
    )
    for difference, expected, found in pairs:
        if expected != found:
            if isinstance(expected, tuple):
                expected, found = _device(expected), _device(found)
            return Compared(difference, a.name, None, str(expected), str(found))
    return None


def _owner(member: Found) -> str:
    entry = member.entry
    return f"{entry.uid}:{entry.gid}" + (f" ({entry.uname}:{entry.gname})" if entry.uname or entry.gname else "")


def _device(value: object) -> str:
    assert isinstance(value, tuple)
    return f"{value[0]} {value[1]}:{value[2]}" if value[0] in ("char", "block") else str(value[0])


def _content(name: str, left: TarReader, right: TarReader) -> Compared | None:
    at = 0
    for one, other in _pairs(left.content(), right.content()):
        if one != other:
            first = _first(one, other)
            return Compared(Difference.CONTENT, name, at + first, *_bytes_at(one, other, first))
        at += len(one)
    return None


def _pairs(left: Iterator[memoryview], right: Iterator[memoryview]) -> Iterator[tuple[bytes, bytes]]:
    """Two sequences of pieces in pieces of the same lengths; when one of them has ended, its side is empty."""
    one = other = b""
    while True:
        one = one or bytes(next(left, b""))
        other = other or bytes(next(right, b""))
        size = min(len(one), len(other)) or max(len(one), len(other))
        if not size:
            return
        yield one[:size], other[:size]
        one, other = one[size:], other[size:]


def _blobs(expected: Opener, found: Opener) -> Compared:
    """Two blobs with the same tar."""
    at = 0
    with expected() as one, found() as other:
        for a, b in _pairs(_pieces(one), _pieces(other)):
            if a != b:
                first = _first(a, b)
                return Compared(Difference.COMPRESSION, None, at + first, *_bytes_at(a, b, first))
            at += len(a)
    return Compared(Difference.NONE)


def _pieces(file: BinaryIO) -> Iterator[memoryview]:
    while data := file.read(_BLOCK):
        yield memoryview(data)


def _first(one: bytes, other: bytes) -> int:
    """The place of the first byte that is not the same; the shorter length where one begins like the other."""
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high) // 2
        if one[low : middle + 1] == other[low : middle + 1]:
            low = middle + 1
        else:
            high = middle
    return low


def _bytes_at(one: bytes, other: bytes, at: int) -> tuple[str, str]:
    expected, found = (f"0x{side[at]:02x}" if at < len(side) else "its end" for side in (one, other))
    return expected, found
