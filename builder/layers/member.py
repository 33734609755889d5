"""One gzip member made of stored blocks and of foreign deflate streams, joined without inflating them for good.

Rules of the format (RFC 1951, RFC 1952): the header is ten fixed bytes; a stream is copied verbatim but for the BFINAL bit of
its last block, which is cleared, and is followed by an empty stored block that ends on a byte boundary; bytes that come
without a stream are compressed by libdeflate level 1 in pieces of at most 1 MiB, or stored where that is not smaller.
Each stream is inflated once while it is copied: for the CRC-32 and the digest of the whole, for the checks of the
stream itself, and for checkpoints at exactly the places where zran, and so `soci`, puts them.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
from collections.abc import Callable
from typing import BinaryIO

from builder.errors import HostileInputError
from builder.layers.blob import BlobWriter
from builder.layers.deflate import BLOCK_END, LAST_BLOCK, Z_BUF_ERROR, Z_OK, Compressor, Inflate, engine
from builder.layers.spans import WINDOW, Checkpoint
from builder.oci.digest import Digest

HEADER = bytes.fromhex("1f8b08000000000000ff")
JOIN = b"\x00\x00\xff\xff"
FINAL = b"\x01\x00\x00\xff\xff"
PIECE = 1 << 20
_STORED = 65535
_INPUT = 256 << 10
_OUTPUT = 512 << 10


class GzipMember:
    """Takes the bytes of a tar in order, plain (`plain`) or as a deflate stream (`stream`), and writes a gzip blob.

    `file` receives the blob and `windows` 32 KiB for each checkpoint; `advance` is told bytes of tar as they pass. After
    `finish`, `digest` and `size` are the blob's, `diff_id` and `tar_size` those of the tar.
    """

    plain_spans = False

    def __init__(
        self, file: BinaryIO, windows: BinaryIO, span_size: int, advance: Callable[[int], None] = lambda count: None
    ) -> None:
        self._out = BlobWriter(file)
        self._windows = windows
        self._advance = advance
        self._span_size = span_size
        self._last_checkpoint = 0
        self._inflate = Inflate(engine())
        self._compressor = Compressor()
        self._crc32 = engine().crc32
        self._crc = 0
        self._tar = hashlib.sha256()
        self._flushed = 0
        self._plain = bytearray()
        self._input = bytearray(_INPUT)
        self._input_address = _address(self._input)
        self._window = bytearray(WINDOW + _OUTPUT)
        self._window_address = _address(self._window)
        self._window_view = memoryview(self._window)
        self._at = WINDOW
        self._out.append(HEADER)
        self._out.checkpoint(Checkpoint(len(HEADER), 0, 0))
        windows.write(bytes(WINDOW))

    @property
    def position(self) -> int:
        """Bytes of the tar so far."""
        return self._tar_position() + len(self._plain)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return tuple(self._out.checkpoints)

    @property
    def span_digests(self) -> tuple[Digest, ...]:
        return tuple(self._out.span_digests)

    def plain(self, data: bytes | memoryview) -> None:
        """Adds bytes that no stream delivers."""
        taken = 0
        while len(self._plain) + len(data) - taken >= PIECE:
            end = taken + PIECE - len(self._plain)
            self._plain += data[taken:end]
            self._flush_plain()
            taken = end
        self._plain += data[taken:] if taken else data

    def stream(
        self, source: int, offset: int, compressed_size: int, size: int, label: str, algorithm: str | None = None
    ) -> tuple[int, str]:
        """Adds what the raw deflate stream at `offset` of the open file `source` inflates to.

        Returns the CRC-32 and, with an `algorithm`, the hexadecimal digest of the inflated bytes. Raises
        `HostileInputError`, naming `label`, when the stream is not one stream of exactly the two sizes.
        """
        if self._plain:
            self._flush_plain()

        def read(at: int, count: int) -> int:
            with memoryview(self._input) as view:
                return os.preadv(source, [view[:count]], offset + at)

        return self._splice(read, compressed_size, size, label, algorithm)

    def finish(self) -> tuple[Digest, int, Digest, int]:
        """Ends the member: (digest, size) of the blob, (diff_id, size) of the tar."""
        if self._plain:
            self._flush_plain()
        self._flush_window()
        self._out.append(FINAL)
        self._out.append(self._crc.to_bytes(4, "little") + (self._flushed & 0xFFFFFFFF).to_bytes(4, "little"))
        digest = self._out.finish()
        return digest, self._out.size, Digest(self._tar.hexdigest()), self._flushed

    def close(self) -> None:
        """Frees the native memory; the member cannot be used any more."""
        self._inflate.close()
        self._compressor.close()

    def _flush_plain(self) -> None:
        data, self._plain = self._plain, bytearray()
        packed = self._compressor.compress(data)
        stored = len(data) + 5 * -(-len(data) // _STORED)
        if len(packed) + len(JOIN) < stored:
            self._splice(_reader(packed, self._input), len(packed), len(data), "compressed piece", None)
            return
        for start in range(0, len(data), _STORED):
            block = bytes(data[start : start + _STORED])
            length = len(block).to_bytes(2, "little")
            self._out.append(b"\x00" + length + bytes(255 - byte for byte in length) + block)
            self._put(block)
            self._block_end(self._out.size, 0)

    def _put(self, data: bytes) -> None:
        """Tar bytes that were not inflated into the window: at most 65,535."""
        if self._at + len(data) > len(self._window):
            self._flush_window()
        self._window[self._at : self._at + len(data)] = data
        self._at += len(data)

    def _splice(
        self, read: Callable[[int, int], int], compressed_size: int, size: int, label: str, algorithm: str | None
    ) -> tuple[int, str]:
        """Copies one stream to the blob and inflates it into the window, a chunk of input at a time."""
        out, inflate, start = self._out, self._inflate, self._out.size
        inflate.reset()
        content = ContentHash(algorithm)
        first, consumed, produced = self._at, 0, 0
        header_bit: int | None = 0  # bit position, in the stream, of a block header whose BFINAL was not read yet
        unused = -1
        while consumed < compressed_size:
            count = read(consumed, min(_INPUT, compressed_size - consumed))
            if count <= 0:
                raise HostileInputError(f"{label}: the file ends inside of its data")
            with memoryview(self._input) as view:
                out.append(view[:count])
            inflate.feed(self._input_address, count)
            end = consumed + count
            while True:
                if header_bit is not None and header_bit >> 3 < end and unused < 0:
                    if out.byte(start + (header_bit >> 3)) >> (header_bit & 7) & 1:
                        out.patch(start + (header_bit >> 3), ~(1 << (header_bit & 7)) & 0xFF)
                    header_bit = None
                room = len(self._window) - self._at
                status, wrote, left, kind = inflate.step(self._window_address + self._at, room)
                self._at += wrote
                produced += wrote
                if produced > size:
                    raise HostileInputError(f"{label}: inflates to more than the {size} bytes it is said to have")
                if status != Z_OK and (status != Z_BUF_ERROR or (left and room)):
                    raise HostileInputError(f"{label}: its compressed data is damaged (zlib error {status})")
                if kind & BLOCK_END:
                    at = end - left
                    if kind & LAST_BLOCK:
                        unused = kind & 7
                        self._block_end(start + at, unused)
                        if at != compressed_size:
                            raise HostileInputError(f"{label}: {compressed_size - at} bytes follow its compressed data")
                        break
                    self._block_end(start + at, kind & 7)
                    header_bit = 8 * at - (kind & 7)
                    continue
                if self._at == len(self._window):
                    content.update(self._window_view[first : self._at])
                    self._flush_window()
                    first = WINDOW
                elif not left:
                    break
            consumed = end
        if unused < 0 or produced != size:
            raise HostileInputError(f"{label}: inflates to {produced} bytes, not to the {size} it is said to have")
        content.update(self._window_view[first : self._at])
        out.patch(start + compressed_size - 1, (1 << (8 - unused)) - 1)
        out.append(JOIN if unused >= 3 else b"\x00" + JOIN)
        self._block_end(out.size, 0)
        if self._at > len(self._window) - WINDOW:
            self._flush_window()
        return content.result()

    def _tar_position(self) -> int:
        return self._flushed + self._at - WINDOW

    def _block_end(self, in_offset: int, bits: int) -> None:
        """A deflate block ended: a checkpoint if the span is full (zran's rule, as in soci's gzip_zinfo.c)."""
        position = self._tar_position()
        if position - self._last_checkpoint > self._span_size:
            self._out.checkpoint(Checkpoint(in_offset, position, bits))
            self._windows.write(self._window_view[self._at - WINDOW : self._at])
            self._last_checkpoint = position

    def _flush_window(self) -> None:
        """Hashes the tar bytes in the window and keeps the last 32 KiB of them."""
        new = self._window_view[WINDOW : self._at]
        self._tar.update(new)
        self._crc = self._crc32(new, self._crc)
        self._flushed += len(new)
        self._advance(len(new))
        self._window[:WINDOW] = self._window[self._at - WINDOW : self._at]
        self._at = WINDOW


class ContentHash:
    """CRC-32 and, if asked for, a digest of one file's bytes."""

    def __init__(self, algorithm: str | None = None) -> None:
        self._crc32 = engine().crc32
        self._crc = 0
        self._hash = hashlib.new(algorithm) if algorithm else None

    def update(self, data: bytes | memoryview) -> None:
        self._crc = self._crc32(data, self._crc)
        if self._hash:
            self._hash.update(data)

    def result(self) -> tuple[int, str]:
        """The CRC-32 and the hexadecimal digest, which is empty when none was asked for."""
        return self._crc, self._hash.hexdigest() if self._hash else ""


def _address(buffer: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))


def _reader(data: bytes, target: bytearray) -> Callable[[int, int], int]:
    def read(at: int, count: int) -> int:
        target[:count] = data[at : at + count]
        return count

    return read
