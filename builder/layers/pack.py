"""Entries become a layer: one pass that gives the blob, its digests, and what lazy starting needs."""

from __future__ import annotations

import os
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Protocol

from builder.errors import HostileInputError
from builder.layers import tar
from builder.layers.member import ContentHash, GzipMember
from builder.layers.spans import Checkpoint, LayerSpans, TocEntry
from builder.layers.tar import Entry, Inline, Kind, Member, Region
from builder.oci.digest import Digest

_READ = 1 << 20


@dataclass(frozen=True)
class PackedLayer:
    """A finished layer: (digest, size) of its blob, diff_id of its tar, its spans, and the CRC-32 of each entry's content; of an
    eStargz layer the digest of its table."""

    digest: Digest
    size: int
    diff_id: Digest
    spans: LayerSpans
    crc32s: tuple[int, ...]
    table: Digest | None = None


class Sink(Protocol):
    """What writes a blob; see `GzipMember`. `plain_spans` says that its spans have no windows."""

    plain_spans: bool

    @property
    def position(self) -> int: ...
    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]: ...
    @property
    def span_digests(self) -> tuple[Digest, ...]: ...
    def plain(self, data: bytes | memoryview) -> None: ...
    def stream(
        self, source: int, offset: int, compressed_size: int, size: int, label: str, algorithm: str | None = None
    ) -> tuple[int, str]: ...
    def finish(self) -> tuple[Digest, int, Digest, int]: ...
    def close(self) -> None: ...


Open = Callable[[BinaryIO, BinaryIO, int, Callable[[int], None]], Sink]
"""Makes a sink of the files for the blob and its windows, the size of spans, and what is told of bytes of tar."""


def pack(
    entries: Iterable[Entry],
    blob: Path,
    windows: Path,
    span_size: int,
    advance: Callable[[int], None] = lambda count: None,
    sink: Open = GzipMember,
) -> PackedLayer:
    """Writes the layer of `entries`, in their order, to the file `blob` and its checkpoints' windows to `windows`.

    The bytes depend on the entries and the kind of `sink` alone. `advance` is told bytes of tar as they pass. Memory does
    not grow with content.
    Raises `HostileInputError` where content is not what its entry says.
    """
    with blob.open("wb") as out, windows.open("wb") as windows_out, Sources() as sources:
        member = sink(out, windows_out, span_size, advance)
        try:
            packed = [_entry(member, entry, sources) for entry in entries]
            member.plain(tar.END)
            digest, size, diff_id, tar_size = member.finish()
        finally:
            member.close()
    toc = tuple(entry for entry, _ in packed)
    cuts, plain = member.checkpoints, member.plain_spans
    spans = LayerSpans(span_size, size, tar_size, cuts, member.span_digests, windows, toc, plain)
    return PackedLayer(digest, size, diff_id, spans, tuple(crc32 for _, crc32 in packed))


def _entry(member: Sink, entry: Entry, sources: Sources) -> tuple[TocEntry, int]:
    member.plain(tar.header(entry))
    offset, crc32 = member.position, 0
    if entry.kind is Kind.FILE:
        crc32 = _content(member, entry, sources)
        member.plain(tar.padding(entry.size))
    return tar.toc_entry(entry, offset), crc32


def _content(member: Sink, entry: Entry, sources: Sources) -> int:
    """Packs the content of a file, checked; its CRC-32."""
    content = entry.content
    if isinstance(content, Inline):
        member.plain(content.data)
        return zlib.crc32(content.data)
    if isinstance(content, Region):
        crc32, found = _region(member, content, sources)
    else:
        crc32, found = _stream(member, content, sources)
    check(content, crc32, found)
    return crc32


def check(content: Region | Member, crc32: int, found: str) -> None:
    """Raises `HostileInputError` where a content has another CRC-32, or another digest than was recorded, than it should."""
    label = content.label or content.path
    if content.crc32 not in (None, crc32):
        raise HostileInputError(f"{label}: its CRC-32 is {crc32:08x}, not {content.crc32:08x} as the archive says")
    if content.recorded and content.recorded[1] != found:
        algorithm, expected = content.recorded
        raise HostileInputError(f"{label}: its {algorithm} is {found}, not {expected} as was recorded")


def _region(member: Sink, region: Region, sources: Sources) -> tuple[int, str]:
    descriptor, done = sources.open(region.path), 0
    content = ContentHash(_algorithm(region))
    while done < region.size:
        data = os.pread(descriptor, min(_READ, region.size - done), region.offset + done)
        if not data:
            raise HostileInputError(f"{region.label or region.path}: the file ends inside of its data")
        content.update(data)
        member.plain(data)
        done += len(data)
    return content.result()


def _stream(member: Sink, content: Member, sources: Sources) -> tuple[int, str]:
    return member.stream(
        sources.open(content.path),
        content.offset,
        content.compressed_size,
        content.size,
        content.label,
        _algorithm(content),
    )


def _algorithm(content: Region | Member) -> str | None:
    return content.recorded[0] if content.recorded else None


class Sources:
    """Open files of one pass: inputs come in runs, so a handful stays open."""

    _LIMIT = 16

    def __init__(self) -> None:
        self._open: dict[Path, int] = {}

    def __enter__(self) -> Sources:
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
