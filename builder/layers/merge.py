"""Entries of several inputs become those of one layer: sorted, with their parent directories, each path once."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from builder.errors import BuilderError
from builder.layers.tar import Content, Entry, Inline, Kind


class CollisionError(BuilderError):
    """Two inputs bring different files of one name."""

    hint = "drop one of the two from the profile, or choose a version of one that does not bring the file"


@dataclass(frozen=True)
class Origin:
    """The entries of one input, and its name for errors."""

    name: str
    entries: Sequence[Entry]


def merge(origins: Iterable[Origin]) -> tuple[Entry, ...]:
    """One layer's entries, in the order of the format: by path, as UTF-8 bytes, so that directories come before what is
    in them. Missing parent directories are added with mode 0755.

    The same file from two origins is one file; different files of one path are a `CollisionError`.
    """
    found: dict[str, tuple[Entry, str]] = {}
    for origin in origins:
        for entry in origin.entries:
            other = found.setdefault(entry.path, (entry, origin.name))
            if other[0] is not entry and not same(other[0], entry):
                raise CollisionError(f"{other[1]} and {origin.name} both bring /{entry.path}, with different content")
    for path in list(found):
        _add_parents(path, found)
    return tuple(found[path][0] for path in sorted(found, key=str.encode))


def _add_parents(path: str, found: dict[str, tuple[Entry, str]]) -> None:
    parent = path.rpartition("/")[0]
    while parent:
        above = found.setdefault(parent, (Entry(parent, Kind.DIR, 0o755), found[path][1]))
        if above[0].kind is not Kind.DIR:
            raise CollisionError(
                f"/{parent} is a {above[0].kind} of {above[1]}, but {found[path][1]} has files below it (/{path})"
            )
        parent = parent.rpartition("/")[0]


def same(one: Entry, other: Entry) -> bool:
    """Whether two entries of one path are one; of folders, the mode does not count."""
    if (one.kind, one.size, one.linkname) != (other.kind, other.size, other.linkname):
        return False
    return one.kind is not Kind.FILE or (one.mode == other.mode and _equal(one.content, other.content))


def _equal(one: Content, other: Content) -> bool:
    if isinstance(one, Inline) and isinstance(other, Inline):
        return one.data == other.data
    if not isinstance(one, Inline) and not isinstance(other, Inline) and one.recorded and other.recorded:
        return one.recorded == other.recorded
    return _crc32(one) == _crc32(other) is not None


def _crc32(content: Content) -> int | None:
    return zlib.crc32(content.data) if isinstance(content, Inline) else content.crc32
