"""Entries become a layer: one pass that gives the blob, its digests, and what lazy starting needs."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from builder.errors import HostileInputError
from builder.layers import tar
from builder.layers.member import ContentHash, GzipMember
from builder.layers.spans import LayerSpans, TocEntry
from builder.layers.tar import Entry, Inline, Kind, Member, Region
from builder.oci.digest import Digest

_READ = 1 << 20


@dataclass(frozen=True)
class PackedLayer:
    """A finished layer: (digest, size) of its blob, diff_id of its tar, and its spans."""

    digest: Digest
    size: int
    diff_id: Digest
    spans: LayerSpans


def pack(
    entries: Iterable[Entry],
    blob: Path,
    windows: Path,
    span_size: int,
    advance: Callable[[int], None] = lambda count: None,
) -> PackedLayer:
    """Writes the layer of `entries`, in their order, to the file `blob` and its checkpoints' windows to `windows`.

    The bytes depend on the entries alone. `advance` is told bytes of tar as they are packed. Memory does not grow with content.
    Raises `HostileInputError` where content is not what its entry says.
    """
    with blob.open("wb") as out, windows.open("wb") as windows_out, _Sources() as sources:
        member = GzipMember(out, windows_out, span_size)
        try:
            toc = tuple(_entry(member, entry, sources, advance) for entry in entries)
            member.plain(tar.END)
            digest, size, diff_id, tar_size = member.finish()
        finally:
            member.close()
    spans = LayerSpans(span_size, size, tar_size, member.checkpoints, member.span_digests, windows, toc)
    return PackedLayer(digest, size, diff_id, spans)


def _entry(member: GzipMember, entry: Entry, sources: _Sources, advance: Callable[[int], None]) -> TocEntry:
    member.plain(tar.header(entry))
    offset = member.position
    if entry.kind is Kind.FILE:
        _content(member, entry, sources)
        member.plain(tar.padding(entry.size))
    advance(member.position - offset + tar.BLOCK)
    return tar.toc_entry(entry, offset)


def _content(member: GzipMember, entry: Entry, sources: _Sources) -> None:
    content = entry.content
    if isinstance(content, Inline):
        member.plain(content.data)
    elif isinstance(content, Region):
        _region(member, content, sources)
    else:
        _member(member, content, sources)


def _region(member: GzipMember, region: Region, sources: _Sources) -> None:
    descriptor, done = sources.open(region.path), 0
    content = ContentHash(region.recorded[0] if region.recorded else None)
    while done < region.size:
        data = os.pread(descriptor, min(_READ, region.size - done), region.offset + done)
        if not data:
            raise HostileInputError(f"{region.label or region.path}: the file ends inside of its data")
        content.update(data)
        member.plain(data)
        done += len(data)
    _check(region, *content.result())


def _member(member: GzipMember, content: Member, sources: _Sources) -> None:
    algorithm = content.recorded[0] if content.recorded else None
    crc32, found = member.stream(
        sources.open(content.path), content.offset, content.compressed_size, content.size, content.label, algorithm
    )
    _check(content, crc32, found)


def _check(content: Member | Region, crc32: int, found: str) -> None:
    label = content.label or content.path
    if content.crc32 not in (None, crc32):
        raise HostileInputError(f"{label}: its CRC-32 is {crc32:08x}, not {content.crc32:08x} as the archive says")
    if content.recorded and content.recorded[1] != found:
        algorithm, expected = content.recorded
        raise HostileInputError(f"{label}: its {algorithm} is {found}, not {expected} as was recorded")


class _Sources:
    """Open files of one pass: inputs come in runs, so a handful stays open."""

    _LIMIT = 16

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def __enter__(self) -> _Sources:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._open.values():
            os.close(descriptor)

    def open(self, path: Path) -> int:
        if path not in self._open:
            if len(self._open) >= self._LIMIT:
                os.close(self._open.pop(next(iter(self._open))))
            self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        return self._open[path]
