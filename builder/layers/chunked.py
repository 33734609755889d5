"""A gzip blob of many members, in which each file starts a member, and large files several: what eStargz reads by itself.

Rules of the format (RFC 1951, RFC 1952): a member is ten fixed bytes, a deflate stream, CRC-32 and length. A stream that comes
compressed is copied verbatim. One that inflates to more than a chunk is cut behind the first deflate block that ends after
`CHUNK` bytes. What follows a cut refers back to bytes that its reader does not have, up to 32 KiB of them, so that the blocks
behind the cut are compressed anew, up to the first one that ends when the new member has as many bytes itself; all after
that is verbatim again. It may begin in the middle of a byte: blocks without content stand before it, as many bits as it takes.
No chunk has more than twice `CHUNK` bytes: where no block ends in time, `CHUNK` bytes are compressed anew.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import BinaryIO

from builder.errors import HostileInputError
from builder.layers.deflate import BLOCK_END, LAST_BLOCK, Z_BUF_ERROR, Z_OK, Compressor, Inflate, engine
from builder.layers.member import HEADER, JOIN, ContentHash
from builder.layers.spans import WINDOW
from builder.oci.digest import Digest

CHUNK = 4 << 20
"""Bytes of a file after which another chunk begins, at the next occasion."""
_INPUT = 256 << 10
_FLOOD = 4
"""Chunks of compressed bytes that are kept of one chunk at most; only a flood of blocks without content has more."""

_FIXED = (0b0000000010, 10)
"""A deflate block without content, its bits from the lowest on and their number: fixed codes, the end of the block."""
_FINAL = (0b0000000011, 10)
"""The same as the last block of its stream."""
_DYNAMIC = (
    0b10 << 1  # codes follow
    | 0b00001 << 8  # two codes for distances
    | 0b1111
    << 13  # the lengths of all nineteen codes for lengths follow, 3 bits each, in the order of RFC 1951, 3.2.7:
    | 1 << 17 + 3 * 2  # of 18,
    | 1 << 17 + 3 * 17  # of 1; so a 0 says "1", a 1 "11 zeros and as many as 7 bits say"
    | (1 << 1 | (138 - 11) << 2 | 1 << 9 | (117 - 11) << 10)
    << 74,  # 1, 138 zeros, 117 zeros, 1; and 1, 1 for distances
    95,
)
"""Another one, with codes of its own: it has an odd number of bits. The last of them is the end of the block, which is a 1."""


@dataclass(frozen=True, slots=True)
class Chunk:
    """A part of a file that is read by itself: its member starts at `offset` of the blob, its bytes at `start` of the file."""

    offset: int
    start: int
    size: int
    digest: Digest


@dataclass(frozen=True, slots=True)
class _Mark:
    """A place between deflate blocks: the bit of the stream where the next one begins, and bytes of the chunk before it."""

    bit: int
    at: int


class ChunkedGzip:
    """Takes the bytes of a tar in order, plain or as deflate streams, and writes a blob of many gzip members.

    `file` receives the blob; `advance` is told bytes of tar as they pass. `size` counts what was written of the blob, `tar_size`
    what was written of the tar. Memory does not grow with content. `chunk_size` is `CHUNK` in all layers of images.
    """

    def __init__(
        self, file: BinaryIO, advance: Callable[[int], None] = lambda count: None, chunk_size: int = CHUNK
    ) -> None:
        self.chunk_size = chunk_size
        self.size = self.tar_size = 0
        self._file = file
        self._advance = advance
        self._blob, self._tar = hashlib.sha256(), hashlib.sha256()
        self._crc32 = engine().crc32
        self._compressor = Compressor()
        self._inflate, self._head = Inflate(engine()), Inflate(engine())
        self._plain = bytearray()
        self._input = bytearray(_INPUT)

    def plain(self, data: bytes | memoryview) -> None:
        """Adds bytes that belong to no chunk."""
        self._plain += data
        if len(self._plain) >= self.chunk_size:
            self.flush()

    def flush(self) -> int:
        """Ends the member; the offset of the next one."""
        if self._plain:
            self._member([self._compressor.compress(self._plain)], self._plain)
            self._plain = bytearray()
        return self.size

    def chunk(self, data: bytes, start: int) -> Chunk:
        """Adds a chunk, at most `chunk_size` bytes, which begins at `start` of its file; what follows may share its member."""
        offset = self.flush()
        self.plain(data)
        return Chunk(offset, start, len(data), Digest.of(data))

    def stream(
        self, source: int, offset: int, compressed_size: int, size: int, label: str, algorithm: str | None = None
    ) -> tuple[int, str, list[Chunk], str]:
        """Adds the file that the raw deflate stream at `offset` of the open file `source` inflates to.

        Returns its CRC-32, with an `algorithm` its hexadecimal digest, its chunks, and its SHA-256. Raises `HostileInputError`,
        naming `label`, when the stream is not one stream of exactly the two sizes.
        """
        self.flush()

        def read(at: int, view: memoryview) -> int:
            return os.preadv(source, [view], offset + at)

        return _Cutter(self, read, compressed_size, size, label, algorithm).run()

    def finish(self, footer: bytes) -> tuple[Digest, Digest]:
        """Ends the blob with a member that holds nothing: the digests of the blob and of the tar."""
        self.flush()
        self._write(footer)
        return Digest(self._blob.hexdigest()), Digest(self._tar.hexdigest())

    def close(self) -> None:
        """Frees the native memory; the blob cannot be written any more."""
        for native in (self._inflate, self._head, self._compressor):
            native.close()

    def _member(self, packed: Iterable[bytes | memoryview], data: bytes | bytearray | memoryview) -> None:
        """Writes a member: a whole deflate stream in parts, and what it inflates to."""
        self._write(HEADER)
        for part in packed:
            self._write(part)
        self._write(self._crc32(data, 0).to_bytes(4, "little") + len(data).to_bytes(4, "little"))
        self._tar.update(data)
        self.tar_size += len(data)
        self._advance(len(data))

    def _write(self, data: bytes | memoryview) -> None:
        self._blob.update(data)
        self._file.write(data)
        self.size += len(data)

    def _opened(self, data: bytes) -> bytes:
        """`data` compressed, as blocks that end on a byte and of which none is the last of its stream."""
        packed = bytearray(self._compressor.compress(data))
        out = bytearray(len(data) + 1)
        inflate, header, at = self._head, 0, 0
        inflate.reset()
        inflate.feed(_address(packed), len(packed))
        while True:
            _, wrote, left, kind = inflate.step(_address(out) + at, len(out) - at)
            at += wrote
            if kind & BLOCK_END and kind & LAST_BLOCK:
                break
            header = 8 * (len(packed) - left) - (kind & 7)
        packed[header >> 3] &= ~(1 << (header & 7))
        return bytes(packed) + (JOIN if kind & 7 >= 3 else b"\x00" + JOIN)


class _Cutter:
    """Copies one stream, inflates it, and cuts it into chunks."""

    def __init__(
        self,
        out: ChunkedGzip,
        read: Callable[[int, memoryview], int],
        compressed_size: int,
        size: int,
        label: str,
        algorithm: str | None,
    ) -> None:
        self._out = out
        self._read = read
        self._compressed_size, self._size, self._label = compressed_size, size, label
        self._content = ContentHash(algorithm if algorithm != "sha256" else None)
        self._sha256 = hashlib.sha256() if size > out.chunk_size else None
        self._algorithm = algorithm
        self._limit = 2 * out.chunk_size
        self._text = bytearray(min(size, self._limit) + 1)
        self._view = memoryview(self._text)
        self._at = 0
        self._raw = bytearray()
        self._base = 0  # the byte of the stream that `_raw` begins with
        self._first: _Mark | None = _Mark(0, 0)  # all from here on can be taken as it is
        self._last = _Mark(0, 0)
        self._chunks: list[Chunk] = []

    def run(self) -> tuple[int, str, list[Chunk], str]:
        """Of the whole stream: CRC-32, digest, chunks, SHA-256."""
        inflate, out, text = self._out._inflate, self._out, _address(self._text)
        inflate.reset()
        buffer, consumed, produced, ended = out._input, 0, 0, False
        while consumed < self._compressed_size:
            if self._first is None:  # nothing before the next mark is needed, which may be in the last byte
                del self._raw[:-1]
                self._base = consumed - len(self._raw)
            with memoryview(buffer) as view:
                count = self._read(consumed, view[: min(_INPUT, self._compressed_size - consumed)])
                if count <= 0:
                    raise HostileInputError(f"{self._label}: the file ends inside of its data")
                self._raw += view[:count]
            inflate.feed(_address(buffer), count)
            consumed += count
            while not ended:
                room = len(self._text) - self._at
                status, wrote, left, kind = inflate.step(text + self._at, room)
                self._at += wrote
                produced += wrote
                if produced > self._size:
                    raise HostileInputError(
                        f"{self._label}: inflates to more than the {self._size} bytes it is said to have"
                    )
                if status != Z_OK and (status != Z_BUF_ERROR or (left and room)):
                    raise HostileInputError(f"{self._label}: its compressed data is damaged (zlib error {status})")
                if self._at > self._limit:
                    self._overflow()
                if not kind & BLOCK_END:
                    if not left:
                        break
                elif kind & LAST_BLOCK:
                    ended = True
                    if consumed - left != self._compressed_size:
                        rest = self._compressed_size - consumed + left
                        raise HostileInputError(f"{self._label}: {rest} bytes follow its compressed data")
                    if self._at:
                        self._cut(_Mark(8 * self._compressed_size, self._at), last=True)
                else:
                    self._mark(8 * (consumed - left) - (kind & 7))
        if not ended or produced != self._size:
            raise HostileInputError(
                f"{self._label}: inflates to {produced} bytes, not to the {self._size} it is said to have"
            )
        crc32, digest = self._content.result()
        whole = self._sha256.hexdigest() if self._sha256 else self._chunks[0].digest.hex if self._chunks else _EMPTY
        return crc32, whole if self._algorithm == "sha256" else digest, self._chunks, whole

    def _mark(self, bit: int) -> None:
        """A block ended, and it was not the last one."""
        self._last = mark = _Mark(bit, self._at)
        begins = not self._chunks and not mark.at
        flooded = len(self._raw) > _FLOOD * self._out.chunk_size
        if begins or ((self._first is None or flooded) and mark.at >= WINDOW):
            self._first = mark
        elif flooded:
            self._first = None
        if self._first is mark:
            del self._raw[: (bit >> 3) - self._base]
            self._base = bit >> 3
        if mark.at >= self._out.chunk_size:
            self._cut(mark)

    def _overflow(self) -> None:
        """No block ended in time."""
        if self._first and self._last.at:
            self._cut(self._last)
        else:
            self._first = None
            self._cut(_Mark(0, self._out.chunk_size))

    def _cut(self, end: _Mark, last: bool = False) -> None:
        """A chunk ends, and another one begins."""
        out, first, at = self._out, self._first, end.at
        data = self._view[:at]
        offset = out.size
        if first and first.at < at:
            head = [out._opened(bytes(data[: first.at]))] if first.at else []
            with memoryview(self._raw) as raw:
                out._member([*head, *self._verbatim(raw, first.bit, end.bit, whole=last)], data)
        else:
            out._member([out._compressor.compress(bytes(data))], data)
        self._content.update(data)
        digest = Digest(hashlib.sha256(data).hexdigest())
        if self._sha256:
            self._sha256.update(data)
        start = self._chunks[-1].start + self._chunks[-1].size if self._chunks else 0
        self._chunks.append(Chunk(offset, start, at, digest))
        rest = self._at - at
        if rest:
            self._text[:rest] = self._text[at : self._at]
        self._at = rest
        self._first = None
        self._last = _Mark(end.bit, 0)

    def _verbatim(self, raw: memoryview, begin: int, end: int, whole: bool) -> Iterator[bytes | memoryview]:
        """The blocks from one bit of the stream to another, as the end of a stream; `whole`, if the last one ends it already."""
        start, stop, used = (begin >> 3) - self._base, (end >> 3) - self._base, end & 7
        filler, cut = _FILLERS[begin & 7], begin & 7
        raw[start] = (raw[start] >> cut) << cut | filler[-1]
        yield filler[:-1]
        yield raw[start:stop]
        if not whole:
            final = _FINAL[0] << used | (raw[stop] & (1 << used) - 1 if used else 0)
            yield final.to_bytes(used + _FINAL[1] + 7 >> 3, "little")


def _filler(bits: int) -> bytes:
    """Blocks without content that leave `bits` bits of their last byte used, which is one more if there are none."""
    value, length = _DYNAMIC if bits % 2 else (0, 0)
    value |= (1 << length - 1) if bits % 2 else 0
    while length % 8 != bits:
        value |= _FIXED[0] << length
        length += _FIXED[1]
    return value.to_bytes((length >> 3) + 1, "little")


_FILLERS = tuple(_filler(bits) for bits in range(8))
_EMPTY = hashlib.sha256().hexdigest()


def _address(buffer: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
