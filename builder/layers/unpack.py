"""Entries become files: content read in pieces, and a tree written to an empty directory for a program to run in."""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from builder.errors import HostileInputError
from builder.layers.tar import Content, Entry, Inline, Kind, Member, Region

_PIECE = 1 << 20


def chunks(content: Content) -> Iterator[bytes]:
    """The bytes of content, a piece at a time. Raises `HostileInputError` if they are not what the content says."""
    match content:
        case Inline(data):
            yield data
        case Region(path, offset, size):
            yield from _region(path, offset, size)
        case Member():
            yield from _member(content)


def same_content(one: Content, other: Content) -> bool:
    """Whether the bytes are equal."""
    if one.size != other.size:
        return False
    pieces = zip(_even(chunks(one)), _even(chunks(other)), strict=True)
    return one == other or all(left == right for left, right in pieces)


def unpack(entries: Iterable[Entry], directory: Path) -> None:
    """Writes entries below a directory, which is made and must be empty, as the current user.

    A parent that no entry names is made with mode 0755. Nothing is written through a symlink: an entry below one is
    refused, as is a path that comes twice. Symlinks that are absolute, or climb above the root, are made relative, so
    that they stay in the directory. Setuid and setgid are left out, times and owners are those of the moment.
    """
    directory.mkdir(parents=True, exist_ok=True)
    if any(directory.iterdir()):
        raise ValueError(f"not empty: {directory}")
    made: dict[str, Kind] = {"": Kind.DIR}
    modes: list[tuple[Path, int]] = []
    for entry in entries:
        _parents(entry.path, directory, made)
        path = directory / entry.path
        if entry.kind is Kind.DIR and made.get(entry.path) is Kind.DIR:
            modes.append((path, entry.mode))
            continue
        if entry.path in made:
            raise HostileInputError(f"{entry.path}: it comes twice")
        made[entry.path] = entry.kind
        match entry.kind:
            case Kind.DIR:
                path.mkdir(0o755)
                modes.append((path, entry.mode))
            case Kind.SYMLINK:
                path.symlink_to(_inside(entry.path, entry.linkname))
            case Kind.FILE:
                _write(path, entry)
    for path, mode in reversed(modes):
        path.chmod(mode & 0o1777)


def _parents(path: str, directory: Path, made: dict[str, Kind]) -> None:
    parent = path.rpartition("/")[0]
    if parent in made:
        if made[parent] is not Kind.DIR:
            raise HostileInputError(f"{path}: it lies below {parent}, which is no directory")
        return
    _parents(parent, directory, made)
    (directory / parent).mkdir(0o755)
    made[parent] = Kind.DIR


def _inside(path: str, target: str) -> str:
    """The target of a symlink as seen from the directory that stands for the root."""
    above = path.split("/")[:-1]
    parts = [] if target.startswith("/") else list(above)
    climbs = target.startswith("/")
    for part in target.split("/"):
        if part == "..":
            climbs = climbs or not parts
            parts = parts[:-1]
        elif part not in ("", "."):
            parts.append(part)
    return "/".join([".."] * len(above) + parts) or "." if climbs else target


def _write(path: Path, entry: Entry) -> None:
    flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
    with open(os.open(path, flags, 0o600), "wb") as file:
        for piece in chunks(entry.content):
            file.write(piece)
        os.fchmod(file.fileno(), entry.mode & 0o777)


def _region(path: Path, offset: int, size: int) -> Iterator[bytes]:
    with path.open("rb", buffering=0) as file:
        file.seek(offset)
        while size:
            piece = file.read(min(size, _PIECE))
            if not piece:
                raise HostileInputError(f"{path}: it ends {size} bytes too early")
            size -= len(piece)
            yield piece


def _member(member: Member) -> Iterator[bytes]:
    zlib = _zlib()
    inflate = zlib.decompressobj(-15)
    size, crc32 = 0, 0
    try:
        for data in _region(member.path, member.offset, member.compressed_size):
            while piece := inflate.decompress(data, _PIECE):
                size, crc32 = size + len(piece), zlib.crc32(piece, crc32)
                if size > member.size:
                    break
                yield piece
                data = inflate.unconsumed_tail
    except zlib.error as error:
        raise HostileInputError(f"{member.label}: {error}") from error
    if not inflate.eof or inflate.unused_data or (size, crc32) != (member.size, member.crc32):
        raise HostileInputError(f"{member.label}: its content is not what the archive says")


def _zlib() -> Any:
    """The fastest zlib there is; what it makes of a stream is the same."""
    try:
        from zlib_ng import zlib_ng
    except ImportError:
        return zlib
    return zlib_ng


def _even(pieces: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes in pieces of one size, so that two sequences can be compared."""
    pending = bytearray()
    for piece in pieces:
        pending += piece
        while len(pending) >= _PIECE:
            yield bytes(pending[:_PIECE])
            del pending[:_PIECE]
    yield bytes(pending)
