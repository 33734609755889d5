"""The tar inside of a layer's blob, read once and a piece at a time: gzip with any number of members, zstd, or no compression.

The blob is foreign: whatever it says of itself is checked, and memory does not grow with it. Inflating stops at every deflate
block, so that a witness can compare the places where a ztoc says that inflating can begin.
"""

from __future__ import annotations

import ctypes
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from types import TracebackType
from typing import BinaryIO, Protocol

from builder.errors import BuilderError
from builder.layers.deflate import BLOCK_END, LAST_BLOCK, Z_BUF_ERROR, Z_OK, Z_STREAM_END, Inflate, engine
from builder.layers.spans import WINDOW
from builder.oci.digest import Digest

_INPUT = 256 << 10
_OUTPUT = 512 << 10
_MAX_FIELD = 64 << 10
_MAX_ZSTD_WINDOW = 27
"""128 MiB, as the logarithm: what zstd itself allows a decoder unless it is asked for more."""
_FHCRC, _FEXTRA, _FNAME, _FCOMMENT, _RESERVED = 2, 4, 8, 16, 0xE0


class LayerError(BuilderError):
    """A layer's blob is not a tar, or its compression is damaged."""

    hint = "the layer is damaged or hostile: publish the image again, or take it from another place"


class Witness(Protocol):
    """Is told what is read, in order."""

    def blob(self, data: memoryview) -> None:
        """The next bytes of the blob, compressed as they are."""

    def boundary(self, in_offset: int, out_offset: int, bits: int, window: Callable[[], bytes]) -> None:
        """Inflating can begin here: a member's header or one of its deflate blocks, not the last, ended.

        The numbers are those of a `Checkpoint`; `window` gives the 32 KiB of tar before it, zeros where there is no tar.
        """


class MemberWitness(Witness, Protocol):
    """A witness that is told of gzip members, too."""

    def begins(self, offset: int, out_offset: int) -> None:
        """A member begins at `offset` of the blob, and what it holds at `out_offset` of the tar."""


@dataclass(frozen=True)
class Figures:
    """What a whole layer was found to be: size of its blob, digest and size of its tar.

    `archive_size` reaches to the end of the two blocks of zeros that end the archive, where a reader of tars stops; zeros may
    follow. It is 0 where the tar was not read as one.
    """

    blob_size: int
    diff_id: Digest
    tar_size: int
    archive_size: int = 0


class LayerStream:
    """The tar of a blob, in order. A context manager; `piece` until it is empty, then `figures`."""

    def __init__(self, blob: BinaryIO, witness: Witness | MemberWitness | None = None) -> None:
        self._blob = blob
        self._witness = witness
        self._begins: Callable[[int, int], None] | None = getattr(witness, "begins", None)
        self._crc32 = engine().crc32
        self._tar = hashlib.sha256()
        self._crc = 0
        self._member_size = 0
        self._size = 0
        self._input = bytearray(_INPUT)
        self._input_view = memoryview(self._input)
        self._input_address = _address(self._input)
        self._begin = self._end = self._base = 0
        self._window = bytearray(WINDOW + _OUTPUT)
        self._window_view = memoryview(self._window)
        self._window_address = _address(self._window)
        self._at = WINDOW
        self._inflate: Inflate | None = None
        self._zstd: Iterator[bytes] | None = None
        self._inside = False
        self._started = False
        self._done = False

    def __enter__(self) -> LayerStream:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Frees the native memory; the blob stays open."""
        if self._inflate:
            self._inflate.close()
            self._inflate = None

    @property
    def compression(self) -> str:
        """`gzip`, `zstd` or nothing, as the blob's first bytes say once `piece` was called."""
        return "gzip" if self._inflate else "zstd" if self._zstd is not None else ""

    @property
    def position(self) -> int:
        """Bytes of the blob that were inflated so far; an error is found near it."""
        return self._base + self._begin

    def piece(self) -> memoryview:
        """The next bytes of the tar, none at its end; they stay until the next call. Raises `LayerError`."""
        self._window[:WINDOW] = self._window[self._at - WINDOW : self._at]
        self._at = WINDOW
        if not self._started:
            self._start()
        while not self._done and self._at == WINDOW:
            if self._inflate:
                self._inflate_some(self._inflate)
            elif self._zstd is not None:
                self._decompress_some(self._zstd)
            else:
                self._copy_some()
        found = self._window_view[WINDOW : self._at]
        self._tar.update(found)
        self._size += len(found)
        return found

    def figures(self) -> Figures:
        """What the layer was, once `piece` has given all."""
        assert self._done, "the layer was not read to its end"
        return Figures(self._base + self._end, Digest(self._tar.hexdigest()), self._size)

    def _start(self) -> None:
        self._started = True
        while self._end < 4 and self._fill():
            pass
        magic = bytes(self._input_view[:4])
        if not self._end:
            raise LayerError("the blob is empty")
        if magic == b"\x28\xb5\x2f\xfd" or (magic[1:] == b"\x2a\x4d\x18" and magic[0] >> 4 == 5):
            self._zstd = self._decompressed()
        if magic[:2] == b"\x1f\x8b":
            self._inflate = Inflate(engine())

    def _fill(self) -> bool:
        """Reads more of the blob behind what there is; False at its end."""
        if self._begin == self._end == len(self._input):
            self._base += self._end
            self._begin = self._end = 0
        data = self._blob.read(len(self._input) - self._end)
        if not data:
            return False
        self._input[self._end : self._end + len(data)] = data
        if self._witness:
            self._witness.blob(self._input_view[self._end : self._end + len(data)])
        self._end += len(data)
        return True

    def _copy_some(self) -> None:
        if self._begin == self._end and not self._fill():
            self._done = True
            return
        count = min(self._end - self._begin, len(self._window) - self._at)
        self._window[self._at : self._at + count] = self._input_view[self._begin : self._begin + count]
        self._at += count
        self._begin += count

    def _decompressed(self) -> Iterator[bytes]:
        """What the frames of a zstd blob hold, in pieces that fit into the window."""
        if sys.version_info >= (3, 14):  # few layers are compressed with it
            from compression import zstd
        else:
            from backports import zstd
        options = {int(zstd.DecompressionParameter.window_log_max): _MAX_ZSTD_WINDOW}
        decompressor = zstd.ZstdDecompressor(options=options)
        try:
            while rest := decompressor.unused_data or self._rest():
                decompressor = zstd.ZstdDecompressor(options=options)
                while not decompressor.eof:
                    if not rest and decompressor.needs_input and not (rest := self._rest()):
                        raise LayerError("the compressed data is cut off")
                    data, rest = decompressor.decompress(rest, _OUTPUT), b""
                    if data:
                        yield data
        except zstd.ZstdError as error:
            raise LayerError(f"the compressed data is damaged near byte {self.position}: {error}") from error

    def _rest(self) -> bytes:
        """The next bytes of the blob, none at its end."""
        if self._begin == self._end and not self._fill():
            return b""
        data = bytes(self._input_view[self._begin : self._end])
        self._begin = self._end
        return data

    def _decompress_some(self, zstd: Iterator[bytes]) -> None:
        data = next(zstd, b"")
        self._done = not data
        self._window[self._at : self._at + len(data)] = data
        self._at += len(data)

    def _inflate_some(self, inflate: Inflate) -> None:
        """Inflates until the window is full or the blob ends."""
        while self._at < len(self._window):
            if not self._inside and not self._member(inflate):
                self._done = True
                return
            if self._begin == self._end and not self._fill():
                raise LayerError("the compressed data is cut off")
            inflate.feed(self._input_address + self._begin, self._end - self._begin)
            if self._step(inflate):
                self._trailer()

    def _step(self, inflate: Inflate) -> bool:
        """Inflates until input or room is used up; whether the member's stream ended."""
        while True:
            room = len(self._window) - self._at
            status, wrote, left, kind = inflate.step(self._window_address + self._at, room)
            if status not in (Z_OK, Z_STREAM_END, Z_BUF_ERROR) or (status == Z_BUF_ERROR and left and room):
                raise LayerError(f"the compressed data is damaged near byte {self._base + self._end - left}")
            self._crc = self._crc32(self._window_view[self._at : self._at + wrote], self._crc)
            self._at += wrote
            self._member_size += wrote
            self._begin = self._end - left
            if kind & BLOCK_END and kind & LAST_BLOCK:
                return True
            if kind & BLOCK_END:
                self._boundary(kind & 7)
            elif not left or self._at == len(self._window):
                return False
            if self._at == len(self._window):
                return False

    def _boundary(self, bits: int) -> None:
        if self._witness:
            out = self._size + self._at - WINDOW
            self._witness.boundary(self._base + self._begin, out, bits, self._current_window)

    def _current_window(self) -> bytes:
        return bytes(self._window_view[self._at - WINDOW : self._at])

    def _member(self, inflate: Inflate) -> bool:
        """Reads a member's header (RFC 1952); False at the end of the blob."""
        if self._begin == self._end and not self._fill():
            return False
        start = self._base + self._begin
        head = self._take(10)
        if head[:2] != b"\x1f\x8b":
            raise LayerError("something that is no gzip member follows the compressed data")
        if head[2] != 8 or head[3] & _RESERVED:
            raise LayerError("the gzip header is not one of RFC 1952")
        if head[3] & _FEXTRA:
            self._take(int.from_bytes(self._take(2), "little"))
        for flag in (_FNAME, _FCOMMENT):
            if head[3] & flag:
                self._text()
        if head[3] & _FHCRC:
            self._take(2)
        inflate.reset()
        self._crc = self._member_size = 0
        self._inside = True
        if self._begins:
            self._begins(start, self._size + self._at - WINDOW)
        self._boundary(0)
        return True

    def _trailer(self) -> None:
        trailer = self._take(8)
        if trailer[:4] != self._crc.to_bytes(4, "little"):
            raise LayerError("the inflated data has another CRC-32 than the gzip trailer says")
        if trailer[4:] != (self._member_size & 0xFFFFFFFF).to_bytes(4, "little"):
            raise LayerError("the inflated data has another size than the gzip trailer says")
        self._inside = False

    def _take(self, count: int) -> bytes:
        data = bytearray()
        while len(data) < count:
            if self._begin == self._end and not self._fill():
                raise LayerError("the compressed data is cut off")
            step = min(count - len(data), self._end - self._begin)
            data += self._input_view[self._begin : self._begin + step]
            self._begin += step
        return bytes(data)

    def _text(self) -> None:
        for _ in range(_MAX_FIELD):
            if self._take(1) == b"\0":
                return
        raise LayerError(f"a text of the gzip header is longer than {_MAX_FIELD} bytes")


def _address(buffer: bytearray) -> int:
    return ctypes.addressof((ctypes.c_char * len(buffer)).from_buffer(buffer))
