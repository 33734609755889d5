"""Entries become an eStargz layer: a tar.gz whose files are gzip members of their own, with a table of them at its end.

The format is `docs/estargz.md` of stargz-snapshotter, read by its version 0.18: the last file of the tar is the table (TOC), a
JSON document that tells where each file, and each chunk of a large one, starts in the blob, and its SHA-256; 51 bytes at the
end of the blob tell where the table starts. The manifest names the digest of the table, so that what is read lazily is verified.
Clients that know nothing of it unpack the layer as any other, and find two more files in the root.
"""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from builder.errors import HostileInputError, ToolError
from builder.layers import tar
from builder.layers.chunked import CHUNK, Chunk, ChunkedGzip
from builder.layers.member import ContentHash
from builder.layers.pack import PackedLayer, Sources, check
from builder.layers.spans import LayerSpans
from builder.layers.tar import Entry, Inline, Kind, Region
from builder.oci.digest import Digest
from builder.oci.lazy import TOC_DIGEST

RULES = "1"
"""The number of the rules that turn entries into an eStargz layer; locks have it as text."""

TOC = "stargz.index.json"
PREFETCH, NO_PREFETCH = ".prefetch.landmark", ".no.prefetch.landmark"
RESERVED = frozenset({TOC, PREFETCH, NO_PREFETCH})
"""Files in the root of a layer that the format has for itself."""

UNCOMPRESSED_SIZE = "io.containers.estargz.uncompressed-size"
"""The annotation of a layer's descriptor that tells the size of its tar, for containers/storage."""

_LANDMARK = b"\x0f"
_TYPES = {Kind.FILE: "reg", Kind.DIR: "dir", Kind.SYMLINK: "symlink"}


def check_rules(version: str) -> None:
    """Raises `ToolError` where a lock asks for layers by other rules than those that are here."""
    if version != RULES:
        raise ToolError(
            f"the lock asks for eStargz layers by rules {version}, this version has rules {RULES}",
            hint="install the version of Layerwright that made the lock, or run `build lock`, which has other digests then",
        )


def prefetching(entries: Iterable[Entry], first: Collection[str]) -> tuple[tuple[Entry, ...], int]:
    """The entries with those first that are worth fetching when a layer is mounted, and their number: of the paths `first`, all but
    files of several chunks, of which a start reads parts; none, if no file is left."""

    def is_worth(entry: Entry) -> bool:
        return entry.path in first and entry.size <= CHUNK

    ordered = sorted(entries, key=lambda entry: (not is_worth(entry), entry.path not in first))
    count = sum(map(is_worth, ordered))
    return tuple(ordered), count if any(entry.kind is Kind.FILE for entry in ordered[:count]) else 0


def labels(toc: Digest, tar_size: int) -> dict[str, str]:
    """What the descriptor of an eStargz layer says, without which no snapshotter takes it for one."""
    return {TOC_DIGEST: str(toc), UNCOMPRESSED_SIZE: str(tar_size)}


def pack(
    entries: Sequence[Entry],
    blob: Path,
    advance: Callable[[int], None] = lambda count: None,
    chunk_size: int = CHUNK,
    prefetched: int = 0,
) -> PackedLayer:
    """Writes the layer of `entries`, in their order, to the file `blob`. A snapshotter fetches the first `prefetched` of them in
    one go when it mounts the layer.

    The bytes depend on the entries alone; `chunk_size` is `CHUNK` in all layers of images. `advance` is told bytes of tar as
    they pass. Memory does not grow with content.
    Raises `HostileInputError` where content is not what its entry says, or an entry has a name that is `RESERVED`.
    """
    for entry in entries:
        if entry.path in RESERVED:
            raise HostileInputError(
                f"/{entry.path}: the eStargz format has a file of this name for itself",
                hint="leave the file out, or remove `publish.lazy`",
            )
    rows = _Rows()
    with blob.open("wb") as out, Sources() as sources:
        writer = ChunkedGzip(out, advance, chunk_size)
        try:
            crc32s: list[int] = []
            for entry in entries[:prefetched]:
                crc32s.append(_entry(writer, entry, sources, rows))
            landmark = PREFETCH if prefetched else NO_PREFETCH
            _entry(writer, Entry(landmark, content=Inline(_LANDMARK)), sources, rows)
            for entry in entries[prefetched:]:
                crc32s.append(_entry(writer, entry, sources, rows))
            toc = rows.table()
            start = writer.flush()
            head = tar.header(Entry(TOC, content=Inline(toc)))
            writer.plain(head + toc + tar.padding(len(toc)) + tar.END)  # at once: readers look at one member only
            digest, diff_id = writer.finish(_footer(start))
        finally:
            writer.close()
    no_spans = LayerSpans(0, writer.size, writer.tar_size, (), (), blob, ())
    return PackedLayer(digest, writer.size, diff_id, no_spans, tuple(crc32s), Digest.of(toc))


class _Rows:
    """The rows of a table, kept as text."""

    def __init__(self) -> None:
        self._text = bytearray(b'{"version":1,"entries":')

    def add(self, row: Mapping[str, object]) -> None:
        self._text += b"," if self._text.endswith(b"}") else b"["
        self._text += json.dumps(row, separators=(",", ":"), ensure_ascii=False).encode()

    def table(self) -> bytes:
        """The whole document; there is at least one row."""
        return bytes(self._text + b"]}")


def _entry(writer: ChunkedGzip, entry: Entry, sources: Sources, rows: _Rows) -> int:
    """Packs an entry, and adds what the table says of it; the CRC-32 of its content."""
    writer.plain(tar.header(entry))
    row: dict[str, object] = {"name": entry.path, "type": _TYPES[entry.kind]}
    if entry.kind is Kind.DIR:
        row["name"] = entry.path + "/"
    row |= {"modtime": _time(entry.mtime), "mode": entry.mode}
    row |= {key: value for key, value in (("uid", entry.uid), ("gid", entry.gid)) if value}
    if entry.kind is Kind.SYMLINK:
        row["linkName"] = entry.linkname
    if entry.kind is not Kind.FILE:
        rows.add(row)
        return 0
    crc32, chunks, sha256 = _content(writer, entry, sources)
    writer.plain(tar.padding(entry.size))
    if entry.size:
        row |= {"size": entry.size, "digest": f"sha256:{sha256}"}
    for number, chunk in enumerate(chunks):
        if number:
            rows.add(row)
            row = {"name": entry.path, "type": "chunk", "chunkOffset": chunk.start}
        row |= {"offset": chunk.offset, "chunkDigest": str(chunk.digest)}
        if number < len(chunks) - 1:  # without it, a chunk reaches to the end of the file
            row["chunkSize"] = chunk.size
    rows.add(row)
    return crc32


def _content(writer: ChunkedGzip, entry: Entry, sources: Sources) -> tuple[int, Sequence[Chunk], str]:
    """Packs the content of a file, checked: its CRC-32, its chunks, its SHA-256."""
    content = entry.content
    if isinstance(content, Inline):
        data, step = content.data, writer.chunk_size
        chunks = [writer.chunk(data[start : start + step], start) for start in range(0, len(data), step)]
        return zlib.crc32(data), chunks, Digest.of(data).hex
    if isinstance(content, Region):
        return _region(writer, content, sources)
    algorithm = content.recorded[0] if content.recorded else None
    place = sources.open(content.path), content.offset
    crc32, found, chunks, sha256 = writer.stream(
        *place, content.compressed_size, content.size, content.label, algorithm
    )
    check(content, crc32, found)
    return crc32, chunks, sha256


def _region(writer: ChunkedGzip, region: Region, sources: Sources) -> tuple[int, Sequence[Chunk], str]:
    descriptor, chunks = sources.open(region.path), []
    told, whole = ContentHash(region.recorded[0] if region.recorded else None), ContentHash("sha256")
    for start in range(0, region.size, writer.chunk_size):
        size = min(writer.chunk_size, region.size - start)
        data = os.pread(descriptor, size, region.offset + start)
        if len(data) != size:
            raise HostileInputError(f"{region.label or region.path}: the file ends inside of its data")
        told.update(data)
        whole.update(data)
        chunks.append(writer.chunk(data, start))
    check(region, *told.result())
    return told.result()[0], chunks, whole.result()[1]


def _time(seconds: int) -> str:
    return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def _footer(toc: int) -> bytes:
    """An empty gzip member whose header tells where that of the table starts: 51 bytes."""
    extra = b"SG" + (22).to_bytes(2, "little") + b"%016xSTARGZ" % toc
    head = b"\x1f\x8b\x08\x04" + bytes(5) + b"\xff" + len(extra).to_bytes(2, "little")
    return head + extra + b"\x01\x00\x00\xff\xff" + bytes(8)
