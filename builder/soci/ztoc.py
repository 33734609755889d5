"""The ztoc of a layer: its table of contents and its checkpoints, the bytes that soci-snapshotter's own tool writes."""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import BinaryIO

from builder.errors import BuilderError, StoreError
from builder.layers.spans import WINDOW, LayerSpans, TocEntry
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.soci.flatbuffer import Builder, Hole, Part, Schema

MEDIA_TYPE = "application/octet-stream"
"""What a SOCI index calls a ztoc."""

BUILD_TOOL = "AWS SOCI CLI v0.2"
"""The name that the real tool gives itself; another one would be another digest."""

_VERSION = b"0.9"
_LIMIT = 1 << 30  # the real tool's builder cannot write more, and its readers use 32-bit offsets
_CHUNK = 1 << 20
_EPOCH = datetime(1970, 1, 1)

# The fields of ztoc.fbs, in the order in which the real tool adds them.
_XATTR = Schema((0, "O"), (1, "O"))
_FILE = Schema(*enumerate("OOqqOqIIOOOqqO"))
_TOC = Schema((0, "O"))
_COMPRESSION = Schema((1, "i"), (2, "O"), (3, "O"), (0, "b"))  # slot 0 is the algorithm, gzip by default
_ZTOC = Schema((0, "O"), (1, "O"), (4, "O"), (2, "q"), (3, "q"), (5, "O"))

_PLAIN_SPANS = Schema((0, "i"), (1, "q"), (2, "q"))
_PLAIN, _PLAIN_VERSION = 2, 2

_BLOB_HEAD = struct.Struct("<iq")
_CHECKPOINT = struct.Struct("<qqB")


def write(spans: LayerSpans, out: BinaryIO) -> Descriptor:
    """Write the ztoc of a layer to `out` and describe it; the windows pass through, they are never all in memory.

    Identical to `ztoc.Marshal` (soci-snapshotter v0.14.1) of what that tool builds from the same layer with
    the same span size in the time zone UTC.
    """
    hashed = hashlib.sha256()
    size = 0
    for chunk in _chunks(_parts(spans), spans):
        hashed.update(chunk)
        out.write(chunk)
        size += len(chunk)
    return Descriptor(MEDIA_TYPE, Digest(hashed.hexdigest()), size)


def _parts(spans: LayerSpans) -> list[Part]:
    """The whole file, with a hole for the checkpoints."""
    builder = Builder()
    version = builder.string(_VERSION)
    tool = builder.string(BUILD_TOOL.encode())
    toc = builder.table(_TOC, (builder.vector(_files(builder, spans.toc)),))
    compression = _compression(builder, spans)
    root = builder.table(_ZTOC, (version, tool, toc, spans.blob_size, spans.tar_size, compression))
    parts = builder.finish(root)
    if builder.offset > _LIMIT:
        raise BuilderError(
            f"a layer of {spans.blob_size} bytes with a span size of {spans.span_size} has {len(spans.checkpoints)} "
            f"checkpoints: its ztoc would be {builder.offset} bytes, and soci-snapshotter reads no more than {_LIMIT}",
            hint="raise `publish.soci.span-size` in the profile",
        )
    return parts


@dataclass(frozen=True, slots=True)
class _Strings:
    """What follows the name of an entry: type, link, user, group, time and an empty list of records.

    Few entries differ in them. Each of the six starts on a multiple of four, counted from the end as everywhere.
    """

    data: bytes
    places: tuple[int, ...]


_EMPTY = 4  # bytes of an empty vector


def _files(builder: Builder, toc: Sequence[TocEntry]) -> list[int]:
    """The tables of the entries, the last one first as the real tool does; their offsets in the order of `toc`."""
    known: dict[tuple[str, str, str, str, int, int], _Strings] = {}
    offsets = []
    for entry in reversed(toc):
        name = builder.string(_bytes(entry.name))
        key = (entry.type, entry.linkname, entry.uname, entry.gname, entry.mtime, entry.nanoseconds)
        strings = known.get(key)
        if strings is None:
            strings = known[key] = _strings(*key)
        base = builder.offset
        kind, linkname, uname, gname, mtime, records = strings.places
        if entry.pax:
            builder.prepend(strings.data[_EMPTY:])
            records = _records(builder, entry.pax) - base
        else:
            builder.prepend(strings.data)
        fields = (
            name,
            base + kind,
            entry.offset,
            entry.size,
            base + linkname,
            entry.mode,
            entry.uid & 0xFFFFFFFF,
            entry.gid & 0xFFFFFFFF,
            base + uname,
            base + gname,
            base + mtime,
            entry.devmajor,
            entry.devminor,
            base + records,
        )
        offsets.append(builder.table(_FILE, fields))
    offsets.reverse()
    return offsets


def _strings(type_: str, linkname: str, uname: str, gname: str, mtime: int, nanoseconds: int) -> _Strings:
    builder = Builder()
    places = [builder.string(_bytes(text)) for text in (type_, linkname, uname, gname, _time(mtime, nanoseconds))]
    places.append(builder.vector(()))
    return _Strings(b"".join(part for part in builder.parts() if isinstance(part, bytes)), tuple(places))


def _records(builder: Builder, pax: Iterable[tuple[str, str]]) -> int:
    """The PAX records of an entry, sorted by key; a key that is given twice counts as it was given last."""
    tables = []
    for key, value in sorted((_bytes(key), _bytes(value)) for key, value in dict(pax).items()):
        place = builder.string(key)
        tables.append(builder.table(_XATTR, (place, builder.string(value))))
    return builder.vector(tables)


def _compression(builder: Builder, spans: LayerSpans) -> int:
    if spans.plain:
        checkpoints = _plain_spans(builder, spans)
    else:
        checkpoints = builder.hole(_BLOB_HEAD.size + len(spans.checkpoints) * (_CHECKPOINT.size + WINDOW))
    digests = builder.vector([builder.string(str(digest).encode()) for digest in spans.digests])
    algorithm = _PLAIN if spans.plain else 0
    return builder.table(_COMPRESSION, (len(spans.digests) - 1, digests, checkpoints, algorithm))


def _plain_spans(builder: Builder, spans: LayerSpans) -> int:
    """What stands for checkpoints where nothing is compressed: flatbuffers inside of flatbuffers (zinfo.fbs)."""
    inner = Builder()
    root = inner.table(_PLAIN_SPANS, (_PLAIN_VERSION, spans.span_size, spans.blob_size))
    return builder.blob(b"".join(part for part in inner.finish(root) if isinstance(part, bytes)))


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")


def _time(seconds: int, nanoseconds: int) -> str:
    """RFC 3339 in UTC, as Go's time.Time writes it; nothing where the year has not four digits, as there."""
    try:
        moment = _EPOCH + timedelta(seconds=seconds)
    except OverflowError:
        return ""
    fraction = f".{nanoseconds:09}".rstrip("0") if nanoseconds else ""
    return f"{moment.isoformat()}{fraction}Z"


def _chunks(parts: Iterable[Part], spans: LayerSpans) -> Iterator[bytes]:
    """The file in chunks that are worth a call of the hash and of the operating system."""
    chunk = bytearray()
    for part in parts:
        for data in _checkpoints(spans) if isinstance(part, Hole) else (part,):
            chunk += data
            if len(chunk) >= _CHUNK:
                yield bytes(chunk)
                chunk.clear()
    yield bytes(chunk)


def _checkpoints(spans: LayerSpans) -> Iterator[bytes]:
    """zran's index as gzip_zinfo.c packs it: count, span size, then place and window of each checkpoint."""
    yield _BLOB_HEAD.pack(len(spans.checkpoints), spans.span_size)
    for checkpoint, window in zip(spans.checkpoints, spans.iter_windows(), strict=True):
        if len(window) != WINDOW:
            raise StoreError(
                f"{spans.windows} is cut short: the window at byte {checkpoint.out_offset} of its layer is missing",
                hint="remove the file, the next run makes it again",
            )
        yield _CHECKPOINT.pack(checkpoint.in_offset, checkpoint.out_offset, checkpoint.bits)
        yield window
