"""Reading ztocs (ztoc.fbs of soci-snapshotter), which may come from anybody: every offset is checked before it is followed."""

from __future__ import annotations

import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from mmap import mmap

from builder.layers.spans import WINDOW, Checkpoint, TocEntry
from builder.oci.digest import Digest

_CHECKPOINT = struct.Struct("<qqB")
_BLOB_HEAD = struct.Struct("<iq")
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MAX_TEXT = 1 << 20
_FRACTION = re.compile(r"\.([0-9]{1,9})(?=[Z+-])")
_GZIP, _PLAIN = 1, 2
_MAX_PLAIN = 256
_MAX_SPANS = 1 << 22


@dataclass(frozen=True)
class ZtocFigures:
    """How many spans a ztoc has, and how large the tar is that it describes, in bytes."""

    spans: int
    tar_size: int


@dataclass(frozen=True)
class Ztoc:
    """A ztoc: what it says of the layer, its checkpoints in the order of the blob, the digest of each span.

    Windows and the table of contents stay in the bytes until they are asked for. Of a layer that is not compressed (`plain`)
    there are no windows, and its checkpoints follow from its size.
    """

    version: str
    build_tool: str
    blob_size: int
    tar_size: int
    span_size: int
    checkpoints: tuple[Checkpoint, ...]
    digests: tuple[Digest, ...]
    entries: int
    _data: bytes | mmap
    _windows: int
    _toc: int
    plain: bool = False

    def window(self, number: int) -> bytes:
        """The window of a checkpoint."""
        at = self._windows + number * (_CHECKPOINT.size + WINDOW) + _CHECKPOINT.size
        return bytes(self._data[at : at + WINDOW])

    def toc(self) -> Iterator[TocEntry]:
        """The table of contents, an entry at a time; raises ValueError where one cannot be read."""
        buffer = _Buffer(self._data)
        for number in range(self.entries):
            with _explained():
                entry = _entry(buffer, buffer.follow(self._toc + 4 * number))
            yield entry


@contextmanager
def _explained() -> Iterator[None]:
    """Turns what a wrong offset causes into ValueError."""
    try:
        yield
    except (struct.error, IndexError, OverflowError) as error:
        raise ValueError(f"not a ztoc: {error}") from error


def figures(data: bytes) -> ZtocFigures:
    """The figures of a serialised ztoc; raises ValueError where the bytes are none."""
    found = decode(data)
    return ZtocFigures(len(found.checkpoints), found.tar_size)


def decode(data: bytes | mmap) -> Ztoc:
    """A serialised ztoc; raises ValueError where the bytes are none, or contradict themselves."""
    buffer = _Buffer(data)
    with _explained():
        root = buffer.follow(0)
        compression = buffer.table(root, 5)
        algorithm = buffer.number(compression, 0, "b")
        if algorithm not in (0, _GZIP, _PLAIN):
            raise ValueError("a ztoc of a layer that is neither gzip nor uncompressed")
        blob_size, tar_size = buffer.number(root, 2, "q"), buffer.number(root, 3, "q")
        at, length = buffer.vector(compression, 3, 1)
        if algorithm == _PLAIN:
            span_size = _plain_span_size(bytes(data[at : at + min(length, _MAX_PLAIN)]), blob_size)
            checkpoints = tuple(Checkpoint(place, place, 0) for place in range(0, blob_size, span_size))
            windows = 0
        else:
            span_size, windows, checkpoints = _checkpoints(data, at, length)
            _check_order(checkpoints, blob_size, tar_size, span_size)
        count = len(checkpoints)
        if buffer.number(compression, 1, "i") != count - 1:
            raise ValueError("the ztoc counts its spans in two ways")
        digests = _digests(buffer, compression)
        if len(digests) != count:
            raise ValueError(f"the ztoc has {count} checkpoints and {len(digests)} digests of spans")
        toc = buffer.table(root, 4)
        place, entries = buffer.vector(toc, 0, 4)
        return Ztoc(
            buffer.string(root, 0),
            buffer.string(root, 1),
            blob_size,
            tar_size,
            span_size,
            checkpoints,
            digests,
            entries,
            data,
            windows,
            place,
            algorithm == _PLAIN,
        )


def _checkpoints(data: bytes | mmap, at: int, length: int) -> tuple[int, int, tuple[Checkpoint, ...]]:
    """The size of spans, where the windows are, and the checkpoints of a gzip layer."""
    count, span_size = _BLOB_HEAD.unpack_from(data, at)
    windows = at + _BLOB_HEAD.size
    if count < 1 or length != _BLOB_HEAD.size + count * (_CHECKPOINT.size + WINDOW):
        raise ValueError("not a ztoc: its checkpoints do not have the length that their number asks for")
    checkpoints = tuple(
        Checkpoint(*_CHECKPOINT.unpack_from(data, windows + number * (_CHECKPOINT.size + WINDOW)))
        for number in range(count)
    )
    return span_size, windows, checkpoints


def _plain_span_size(data: bytes, blob_size: int) -> int:
    """The size of spans of a layer that is not compressed (zinfo.fbs)."""
    buffer = _Buffer(data)
    root = buffer.follow(0)
    span_size, size = buffer.number(root, 1, "q"), buffer.number(root, 2, "q")
    if size != blob_size or size < 1 or span_size < 1 or size // span_size > _MAX_SPANS:
        raise ValueError(f"the ztoc says that the layer of {blob_size} bytes has {size}, in spans of {span_size}")
    return span_size


def _check_order(checkpoints: tuple[Checkpoint, ...], blob_size: int, tar_size: int, span_size: int) -> None:
    """soci-snapshotter mounts no layer whose spans do not follow one another."""
    if min(blob_size, tar_size) < 0 or span_size < 1:
        raise ValueError("the ztoc has a size that is none")
    previous = Checkpoint(0, -1, 0)
    for number, checkpoint in enumerate(checkpoints):
        if not (previous.in_offset < checkpoint.in_offset <= blob_size and checkpoint.bits < 8):
            raise ValueError(f"checkpoint {number} of the ztoc is at byte {checkpoint.in_offset} of the blob")
        if not previous.out_offset < checkpoint.out_offset <= tar_size:
            raise ValueError(f"checkpoint {number} of the ztoc is at byte {checkpoint.out_offset} of the tar")
        previous = checkpoint
    if checkpoints[0].out_offset:
        raise ValueError("the first checkpoint of the ztoc is not at the start of the tar")


def _digests(buffer: _Buffer, compression: int) -> tuple[Digest, ...]:
    at, count = buffer.vector(compression, 2, 4)
    return tuple(Digest.parse(buffer.text(buffer.follow(at + 4 * number))) for number in range(count))


def _entry(buffer: _Buffer, table: int) -> TocEntry:
    seconds, nanoseconds = _time(buffer.string(table, 10))
    return TocEntry(
        name=buffer.string(table, 0),
        type=buffer.string(table, 1),
        offset=buffer.number(table, 2, "q"),
        size=buffer.number(table, 3, "q"),
        linkname=buffer.string(table, 4),
        mode=buffer.number(table, 5, "q"),
        uid=buffer.number(table, 6, "I"),
        gid=buffer.number(table, 7, "I"),
        uname=buffer.string(table, 8),
        gname=buffer.string(table, 9),
        mtime=seconds,
        devmajor=buffer.number(table, 11, "q"),
        devminor=buffer.number(table, 12, "q"),
        pax=_pax(buffer, table),
        nanoseconds=nanoseconds,
    )


def _pax(buffer: _Buffer, table: int) -> tuple[tuple[str, str], ...]:
    if not buffer.field(table, 13):
        return ()
    at, count = buffer.vector(table, 13, 4)
    tables = (buffer.follow(at + 4 * number) for number in range(min(count, _MAX_TEXT)))
    return tuple((buffer.string(record, 0), buffer.string(record, 1)) for record in tables)


def _time(text: str) -> tuple[int, int]:
    """Seconds since 1970, and nanoseconds after them, of a time in RFC 3339."""
    match = _FRACTION.search(text)
    time = datetime.fromisoformat(text[: match.start()] + text[match.end() :] if match else text)
    if time.tzinfo is None:
        raise ValueError(f"not a time of RFC 3339: {text!r}")
    return (time - _EPOCH) // (datetime.resolution * 1_000_000), int(match[1].ljust(9, "0")) if match else 0


class _Buffer:
    """Flatbuffers in bytes; offsets are absolute. `struct.error` or ValueError where an offset leads out of them."""

    def __init__(self, data: bytes | mmap) -> None:
        self._data = data

    def follow(self, at: int) -> int:
        """Where the offset at `at` leads; offsets lead forward only."""
        target = at + int(struct.unpack_from("<I", self._data, at)[0])
        if not at < target < len(self._data):
            raise ValueError("not a ztoc: an offset leads out of it")
        return target

    def field(self, table: int, slot: int) -> int:
        """Where the field `slot` of a table lies; 0 where it is absent."""
        vtable = table - int(struct.unpack_from("<i", self._data, table)[0])
        if vtable < 0:
            raise ValueError("not a ztoc: an offset leads out of it")
        size = int(struct.unpack_from("<H", self._data, vtable)[0])
        place = 4 + 2 * slot
        relative = int(struct.unpack_from("<H", self._data, vtable + place)[0]) if place < size else 0
        return table + relative if relative else 0

    def number(self, table: int, slot: int, code: str) -> int:
        """A number, 0 by default."""
        at = self.field(table, slot)
        return int(struct.unpack_from(f"<{code}", self._data, at)[0]) if at else 0

    def table(self, table: int, slot: int) -> int:
        """A table that has to be there."""
        return self.follow(self._there(table, slot))

    def string(self, table: int, slot: int) -> str:
        """A string, empty by default."""
        at = self.field(table, slot)
        return self.text(self.follow(at)) if at else ""

    def text(self, at: int) -> str:
        """The string at `at`."""
        start, length = self._sized(at, 1)
        if length > _MAX_TEXT:
            raise ValueError("not a ztoc: a text is longer than any name")
        return bytes(self._data[start : start + length]).decode("utf-8", "surrogateescape")

    def vector(self, table: int, slot: int, width: int) -> tuple[int, int]:
        """Where the items of a vector that has to be there begin, and how many there are."""
        return self._sized(self.follow(self._there(table, slot)), width)

    def _there(self, table: int, slot: int) -> int:
        at = self.field(table, slot)
        if not at:
            raise ValueError("not a ztoc: a field is missing")
        return at

    def _sized(self, at: int, width: int) -> tuple[int, int]:
        count = int(struct.unpack_from("<I", self._data, at)[0])
        if at + 4 + count * width > len(self._data):
            raise ValueError("not a ztoc: it is cut off")
        return at + 4, count
