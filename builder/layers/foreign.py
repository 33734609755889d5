"""Layers that others made: one pass that checks a blob and gives its members and what lazy starting needs.

Checkpoints are where zran, and so `soci`, puts them (gzip_zinfo.c), whoever compressed the layer: an inflater that stops at
every deflate block sees the same places. A layer without compression has spans of equal lengths; one of zstd has none.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

from builder.layers.plain import PlainSpans
from builder.layers.spans import Checkpoint, LayerSpans, TocEntry
from builder.layers.stream import Figures, LayerError
from builder.layers.untar import TarReader
from builder.oci.digest import Digest

MAX_MEMBERS = 1_000_000
"""Members of one layer that somebody else made; all of them are in memory at once, as they are in its ztoc."""
_YEARS = range(-62_135_596_800, 253_402_300_800)
"""The times that RFC 3339 can say, in seconds since 1970."""


@dataclass(frozen=True)
class Scanned:
    """A layer that was read to its end. `spans` are None where there can be none; `why_whole` says why, for people."""

    figures: Figures
    entries: tuple[TocEntry, ...]
    spans: LayerSpans | None
    why_whole: str = ""


def scan(
    blob: BinaryIO,
    compression: str,
    windows: Path,
    span_size: int,
    advance: Callable[[int], None] = lambda count: None,
    full: Callable[[int, int], bool] | None = None,
) -> Scanned:
    """Reads a blob whose media type says that its compression is `gzip`, `zstd` or nothing.

    The windows of checkpoints are written to the file `windows`; `advance` is told bytes of the blob as they pass. `full`
    says of a span that began at one byte of the tar whether it ends at another one, in place of zran's rule. Raises
    `LayerError` where the blob is no such layer; what it says of its digest is for the caller to check.
    """
    with windows.open("wb") as out:
        spans: _GzipSpans | PlainSpans
        rule = full or (lambda last, end: end - last > span_size)
        spans = _GzipSpans(out, rule) if compression == "gzip" else PlainSpans(span_size)
        entries: list[TocEntry] = []
        told = 0
        with TarReader(blob, spans) as reader:
            while member := reader.next():
                if len(entries) == MAX_MEMBERS:
                    raise LayerError(f"the tar has more than {MAX_MEMBERS} members")
                entries.append(member.entry)
                for _ in reader.content():
                    told = _tell(advance, reader.blob_position, told)
                told = _tell(advance, reader.blob_position, told)
            figures = reader.figures()
            found, has_global_header = reader.compression, reader.has_global_header
        _tell(advance, figures.blob_size, told)
        spans.finish()
    if found != compression:
        says, is_ = (
            f"it is compressed with {name}" if name else "it is not compressed" for name in (compression, found)
        )
        raise LayerError(f"its media type says that {says}, but {is_}")
    toc = tuple(entries)
    if why := _why_whole(compression, toc, spans, has_global_header):
        return Scanned(figures, toc, None, why)
    plain = isinstance(spans, PlainSpans)
    checkpoints, digests = tuple(spans.checkpoints), tuple(spans.digests)
    size = figures.archive_size
    return Scanned(
        figures, toc, LayerSpans(span_size, figures.blob_size, size, checkpoints, digests, windows, toc, plain)
    )


def _tell(advance: Callable[[int], None], position: int, told: int) -> int:
    if position > told:
        advance(position - told)
    return max(position, told)


def _why_whole(
    compression: str, toc: tuple[TocEntry, ...], spans: _GzipSpans | PlainSpans, has_global_header: bool
) -> str:
    """Why no ztoc can describe a layer; the real tool refuses the same ones, or nobody could mount what it writes."""
    if compression == "zstd":
        return "it is compressed with zstd, for which there are no spans"
    if has_global_header:
        return "its tar has a global pax header"
    if any(entry.mtime not in _YEARS for entry in toc):
        return "the time of a file in it is beyond all calendars"
    places = [checkpoint.out_offset for checkpoint in spans.checkpoints]
    if any(one >= other for one, other in pairwise(places)):
        return "its gzip stream begins with empty blocks"
    return ""


class _GzipSpans:
    """A witness (`layers.stream.Witness`) that gathers checkpoints and the digests of the spans between them."""

    def __init__(self, windows: BinaryIO, full: Callable[[int, int], bool]) -> None:
        self.checkpoints: list[Checkpoint] = []
        self.digests: list[Digest] = []
        self._windows = windows
        self._full = full
        self._hash = hashlib.sha256()
        self._data = b""
        self._base = 0
        self._hashed = 0

    def blob(self, data: memoryview) -> None:
        """The next bytes of the blob: no span begins before them any more."""
        self._hash.update(memoryview(self._data)[self._hashed :])
        self._base += len(self._data)
        self._data, self._hashed = bytes(data), 0

    def boundary(self, in_offset: int, out_offset: int, bits: int, window: Callable[[], bytes]) -> None:
        """A new span if the last one is full; a byte in which two spans meet belongs to both."""
        if out_offset and not self._full(self.checkpoints[-1].out_offset, out_offset):
            return
        cut = in_offset - self._base
        self._hash.update(memoryview(self._data)[self._hashed : cut])
        if self.checkpoints:
            self.digests.append(Digest(self._hash.hexdigest()))
        self._hash = hashlib.sha256(self._data[cut - 1 : cut] if bits else b"")
        self._hashed = cut
        self.checkpoints.append(Checkpoint(in_offset, out_offset, bits))
        self._windows.write(window())

    def finish(self) -> None:
        """The blob was read to its end."""
        self.blob(memoryview(b""))
        self.digests.append(Digest(self._hash.hexdigest()))
