"""Whether the table in an eStargz layer is right about it: told of the layer as it is read, it compares every file and chunk.

What is known of a file is kept as digests, 16 bytes for each row of the table, since the table comes last. Rows have to stand in
the order of the tar, as all who write the format have them.
"""

from __future__ import annotations

import hashlib
import json
import re
from base64 import b64encode
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, BinaryIO

from builder.layers.estargz import TOC
from builder.layers.spans import TocEntry
from builder.layers.stream import Witness
from builder.layers.untar import TarReader
from builder.oci.digest import Digest

MAX_TABLE = 32 << 20
"""The largest table, in bytes, that is read: about 130,000 files."""
_MOST_ROWS = 2_000_000
_FOOTER = 51
_HEAD = re.compile(rb"^\x1f\x8b\x08\x04.{6}\x1a\x00SG\x16\x00([0-9a-f]{16})STARGZ\x01\x00\x00\xff\xff\0{8}$", re.DOTALL)
_BEGIN = re.compile(r'\s*\{\s*"version"\s*:\s*1\s*,\s*"entries"\s*:\s*\[\s*')
_NEXT = re.compile(r"\s*,\s*")
_END = re.compile(r"\s*\]\s*\}\s*")
_FILES = ("reg", "chunk")
_HALF = 500_000_000
_XATTR = "SCHILY.xattr."
_KEYS = frozenset({
    "name", "type", "size", "modtime", "linkName", "mode", "uid", "gid", "userName", "groupName", "offset", "innerOffset",
    "devMajor", "devMinor", "xattrs", "digest", "chunkOffset", "chunkSize", "chunkDigest",
})  # fmt: skip
_CHUNK = 1


@dataclass(frozen=True)
class TableFault:
    """One thing that is wrong; `path` is the file of the layer."""

    message: str
    path: str | None = None


class TableCheck:
    """A witness (`layers.stream.MemberWitness`) of one layer whose manifest names the table `digest`; it is told of members by
    `member`, of their content by `content`, and of the end by `finish`. Another witness, `also`, is told what this one is.

    `faults` are what was found: one of the table as a whole, or its first row that is not right.
    """

    def __init__(self, digest: Digest, also: Witness | None = None) -> None:
        self.faults: list[TableFault] = []
        self._digest, self._also = digest, also
        self._tail = b""
        self._starts: deque[tuple[int, int]] = deque()  # of the blob and of the tar: members that are not passed yet
        self._start = (0, 0)
        self._known = bytearray()
        self._entry: TocEntry | None = None
        self._offset = self._at = 0
        self._file = self._chunk = hashlib.sha256()
        self._chunks = bytearray()
        self._begin = 0
        self._table: bytearray | None = None
        self._table_start = -1

    def blob(self, data: memoryview) -> None:
        """The next bytes of the blob."""
        self._tail = (self._tail + bytes(data[-_FOOTER:]))[-_FOOTER:]
        if self._also:
            self._also.blob(data)

    def boundary(self, in_offset: int, out_offset: int, bits: int, window: Callable[[], bytes]) -> None:
        """Only members matter here."""
        if self._also:
            self._also.boundary(in_offset, out_offset, bits, window)

    def begins(self, offset: int, out_offset: int) -> None:
        """A gzip member starts at `offset` of the blob; what it holds starts at `out_offset` of the tar."""
        if self._starts and self._starts[-1][1] == out_offset:
            self._starts.pop()  # it held nothing
        self._starts.append((offset, out_offset))

    def member(self, entry: TocEntry, header: int) -> None:
        """The next member of the tar; its header blocks have `header` bytes."""
        self._close()
        self._pass(entry.offset - header)
        if entry.name == TOC and entry.type == "reg":
            self._table = bytearray()
            self._table_start = self._start[0] if self._start[1] == entry.offset - header else -1
        self._pass(entry.offset)
        self._entry = entry
        self._offset = self._at = entry.offset
        self._file, self._chunk = hashlib.sha256(), hashlib.sha256()
        self._chunks, self._begin = bytearray(), 0

    def content(self, piece: memoryview) -> None:
        """The next bytes of that member's content."""
        if self._table is not None:
            if len(self._table) <= MAX_TABLE:
                self._table += piece
            return
        self._file.update(piece)
        while piece:
            if self._starts and self._starts[0][1] == self._at:
                if self._at > self._offset + self._begin:
                    self._cut()
                self._pass(self._at)
            until = self._starts[0][1] - self._at if self._starts else len(piece)
            part = piece[:until]
            self._chunk.update(part)
            self._at += len(part)
            piece = piece[len(part) :]

    def finish(self) -> None:
        """The layer was read to its end."""
        self._close()
        if self._table is None:
            self.faults.append(TableFault("there is no table, though the manifest names one"))
        elif len(self._table) > MAX_TABLE:
            self.faults.append(TableFault(f"the table has more than {MAX_TABLE} bytes"))
        elif (found := Digest(hashlib.sha256(self._table).hexdigest())) != self._digest:
            self.faults.append(TableFault(f"the table has the digest {found}, the manifest says {self._digest}"))
        else:
            footer = _HEAD.match(self._tail)
            if footer is None or int(footer[1], 16) != self._table_start:
                self.faults.append(TableFault("the last bytes of the layer do not tell where the table starts"))
            try:
                self._compare(self._table.decode())
            except (ValueError, TypeError, AttributeError, LookupError, ArithmeticError, RecursionError) as error:
                self.faults.append(TableFault(f"the table cannot be read: {error!s:.200}"))

    def _pass(self, at: int) -> None:
        while self._starts and self._starts[0][1] <= at:
            self._start = self._starts.popleft()

    def _cut(self) -> None:
        """A chunk may end here."""
        offset, out = self._start
        inner = self._offset + self._begin - out
        size = self._at - self._offset - self._begin
        if len(self._known) + len(self._chunks) < 16 * _MOST_ROWS:
            self._chunks += _short(offset, inner, self._begin, size, f"sha256:{self._chunk.hexdigest()}", chunk=True)
        self._chunk = hashlib.sha256()
        self._begin += size

    def _close(self) -> None:
        """The member that was told last is complete."""
        entry, self._entry = self._entry, None
        if entry is None or self._table is not None:
            return
        size = entry.size if entry.type == "reg" else 0
        if size:
            self._cut()
        digest, mtime = f"sha256:{self._file.hexdigest()}" if size else "", entry.mtime + (entry.nanoseconds >= _HALF)
        if len(self._known) + len(self._chunks) >= 16 * _MOST_ROWS:
            self.faults = self.faults or [TableFault(f"the layer has more than {_MOST_ROWS} files and chunks")]
            return
        pax = ((key.removeprefix(_XATTR), value) for key, value in entry.pax if key.startswith(_XATTR))
        self._known += _short(
            entry.name.strip("/"),
            entry.type,
            size,
            entry.linkname,
            entry.mode,
            entry.uid,
            entry.gid,
            mtime,
            digest,
            tuple(sorted((key, b64encode(value.encode("utf-8", "surrogateescape")).decode()) for key, value in pax)),
        )
        self._known += self._chunks

    def _compare(self, text: str) -> None:
        at = 0
        shared = '"innerOffset"' in text  # then several chunks share a member, and only whole files can be compared
        for row, told in _rows(text):
            while shared and self._known[at : at + 1] and self._known[at] & _CHUNK:
                at += 16
            if shared and told[0] & _CHUNK:
                continue
            if self._known[at : at + 16] != told:
                path = str(row.get("name", ""))
                there = "has no more files" if at >= len(self._known) else "says otherwise, or is in another order"
                self.faults.append(TableFault(f"row {at // 16 + 1} of the table does not fit: the layer {there}", path))
                return
            at += 16
        if not shared and at != len(self._known):
            self.faults.append(TableFault("the table ends before the layer does"))


def faults(blob: BinaryIO, digest: Digest, check: Callable[[], None] = lambda: None) -> list[TableFault]:
    """Reads a whole layer: what of its table, of that digest, is wrong. `check` may stop it. Raises `LayerError`."""
    table = TableCheck(digest)
    with TarReader(blob, table) as reader:
        while member := reader.next():
            table.member(member.entry, len(member.header))
            for piece in reader.content():
                table.content(piece)
                check()
    table.finish()
    return table.faults


def _rows(text: str) -> Iterator[tuple[Mapping[str, Any], bytes]]:
    """The rows of a table, each as one of a file and as one of a chunk, or both. Raises `ValueError`."""
    begin = _BEGIN.match(text)
    if begin is None:
        raise ValueError("it does not begin as one of version 1")
    decoder, at, size, name = json.JSONDecoder(), begin.end(), 0, ""
    while not _END.fullmatch(text, at):
        row, at = decoder.raw_decode(text, at)
        if unknown := sorted(row.keys() - _KEYS):  # readers take keys for those that they look like
            raise ValueError(f"a row has the key {unknown[0]!r:.80}")
        more = _NEXT.match(text, at)
        at = more.end() if more else at
        if row["type"] != "chunk":
            name, size = row["name"].strip("/"), int(row.get("size", 0))
            yield row, _head(row, name, size)
        elif row["name"].strip("/") != name:
            raise ValueError("a chunk stands at another file")
        if row["type"] in _FILES and size:
            start = int(row.get("chunkOffset", 0))
            end = start + int(row["chunkSize"]) if row.get("chunkSize") else size
            yield (
                row,
                _short(
                    int(row["offset"]),
                    int(row.get("innerOffset", 0)),
                    start,
                    end - start,
                    row["chunkDigest"],
                    chunk=True,
                ),
            )
        if not more and not _END.fullmatch(text, at):
            raise ValueError("it does not end as one")


def _head(row: Mapping[str, Any], name: str, size: int) -> bytes:
    mtime = int(datetime.fromisoformat(row["modtime"]).astimezone(UTC).timestamp()) if row.get("modtime") else 0
    return _short(
        name,
        row["type"],
        size,
        row.get("linkName", ""),
        int(row.get("mode", 0)) & 0o7777,
        int(row.get("uid", 0)),
        int(row.get("gid", 0)),
        mtime,
        row["digest"] if size else "",
        tuple(sorted((row.get("xattrs") or {}).items())),
    )


def _short(*parts: object, chunk: bool = False) -> bytes:
    """A digest that tells what it is of by its first byte."""
    short = bytearray(hashlib.blake2b(repr(parts).encode("utf-8", "surrogateescape"), digest_size=16).digest())
    short[0] = short[0] | _CHUNK if chunk else short[0] & ~_CHUNK
    return bytes(short)
