"""A layer's tar as its blob: as it is, or in frames of zstd, each of which holds one piece of it.

Streams of wheels are inflated, with the checks that splicing them makes. Frames are independent of one another, so that
several are made at once, and a reader could open several at once: the tar is cut every 4 MiB, wherever that is in it.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import BinaryIO

from builder.errors import HostileInputError
from builder.layers.deflate import inflater
from builder.layers.member import ContentHash
from builder.layers.spans import Checkpoint
from builder.layers.zstd import Compress
from builder.oci.digest import Digest

FRAME = 4 << 20
"""Bytes of tar in each frame but the last: a rule of the format."""
_INPUT, _OUTPUT = 256 << 10, 1 << 20
_THREADS, _AHEAD = 2, 2


class TarBlob:
    """Takes the bytes of a tar in order, as `GzipMember` does, and writes them to `file`, by `compress` if there is one.

    Without it the layer has spans of equal lengths, for which there are no windows; with it, it has none.
    """

    plain_spans = True

    def __init__(
        self,
        file: BinaryIO,
        _: BinaryIO,
        span_size: int,
        advance: Callable[[int], None] = lambda count: None,
        compress: Compress | None = None,
    ) -> None:
        self._file = file
        self._advance = advance
        self._compress = compress
        self._spans = None if compress else PlainSpans(span_size)
        self._pool = ThreadPoolExecutor(_THREADS) if compress else None
        self._frames: deque[Future[bytes]] = deque()
        self._tar, self._blob = hashlib.sha256(), hashlib.sha256()
        self._size = self._flushed = 0
        self._pending = bytearray()

    @property
    def position(self) -> int:
        """Bytes of the tar so far."""
        return self._flushed + len(self._pending)

    @property
    def checkpoints(self) -> tuple[Checkpoint, ...]:
        return tuple(self._spans.checkpoints) if self._spans else ()

    @property
    def span_digests(self) -> tuple[Digest, ...]:
        return tuple(self._spans.digests) if self._spans else ()

    def plain(self, data: bytes | memoryview) -> None:
        """Adds bytes that no stream delivers."""
        self._pending += data
        while len(self._pending) >= FRAME:
            self._flush(FRAME)

    def stream(
        self, source: int, offset: int, compressed_size: int, size: int, label: str, algorithm: str | None = None
    ) -> tuple[int, str]:
        """Adds what a raw deflate stream inflates to; as `GzipMember.stream`."""
        content = ContentHash(algorithm)
        for data in _inflated(source, offset, compressed_size, size, label):
            content.update(data)
            self.plain(data)
        return content.result()

    def finish(self) -> tuple[Digest, int, Digest, int]:
        """Ends the blob: (digest, size) of the blob, (diff_id, size) of the tar."""
        if self._pending:
            self._flush(len(self._pending))
        while self._frames:
            self._write_frame()
        if self._spans:
            self._spans.finish()
        diff_id = Digest(self._tar.hexdigest())
        digest = Digest(self._blob.hexdigest()) if self._compress else diff_id
        return digest, self._size, diff_id, self._flushed

    def close(self) -> None:
        """Ends the threads; the blob cannot be used any more."""
        if self._pool:
            self._pool.shutdown(cancel_futures=True)

    def _flush(self, count: int) -> None:
        data = bytes(memoryview(self._pending)[:count])
        del self._pending[:count]
        self._flushed += count
        if self._pool and self._compress:
            self._frames.append(self._pool.submit(self._compress, data))
            if len(self._frames) > _AHEAD:
                self._write_frame()
        else:
            self._file.write(data)
            self._size += count
        if self._spans:
            self._spans.blob(memoryview(data))
        self._tar.update(data)
        self._advance(count)

    def _write_frame(self) -> None:
        frame = self._frames.popleft().result()
        self._blob.update(frame)
        self._file.write(frame)
        self._size += len(frame)


class PlainSpans:
    """A witness (`layers.stream.Witness`) of a layer without compression: spans of equal lengths, the last one shorter."""

    def __init__(self, span_size: int) -> None:
        self.checkpoints: list[Checkpoint] = []
        self.digests: list[Digest] = []
        self._span_size = span_size
        self._hash = hashlib.sha256()
        self._position = 0

    def blob(self, data: memoryview) -> None:
        """The next bytes of the blob."""
        start = 0
        while start < len(data):
            place = self._position % self._span_size
            if not place:
                self._end()
                self.checkpoints.append(Checkpoint(self._position, self._position, 0))
            count = min(len(data) - start, self._span_size - place)
            self._hash.update(data[start : start + count])
            self._position += count
            start += count

    def boundary(self, in_offset: int, out_offset: int, bits: int, window: Callable[[], bytes]) -> None:
        """Something is compressed after all; who reads it says so."""

    def finish(self) -> None:
        """The blob was read to its end."""
        self._end()

    def _end(self) -> None:
        if self.checkpoints:
            self.digests.append(Digest(self._hash.hexdigest()))
            self._hash = hashlib.sha256()


def _inflated(source: int, offset: int, compressed_size: int, size: int, label: str) -> Iterator[bytes]:
    """What the raw deflate stream at `offset` of the open file `source` inflates to, at most 1 MiB at a time.

    Raises `HostileInputError`, naming `label`, when the stream is not one stream of exactly the two sizes.
    """
    stream, damaged = inflater()
    consumed = produced = 0
    while not stream.eof:
        data = stream.unconsumed_tail
        if not data and consumed < compressed_size:
            data = os.pread(source, min(_INPUT, compressed_size - consumed), offset + consumed)
            if not data:
                raise HostileInputError(f"{label}: the file ends inside of its data")
            consumed += len(data)
        try:
            found = stream.decompress(data, min(_OUTPUT, size - produced + 1))
        except damaged as error:
            raise HostileInputError(f"{label}: its compressed data is damaged ({error})") from error
        produced += len(found)
        if produced > size:
            raise HostileInputError(f"{label}: inflates to more than the {size} bytes it is said to have")
        if found:
            yield found
        elif not data:
            break
    left = compressed_size - consumed + len(stream.unused_data)
    if stream.eof and left:
        raise HostileInputError(f"{label}: {left} bytes follow its compressed data")
    if not stream.eof or produced != size:
        raise HostileInputError(f"{label}: inflates to {produced} bytes, not to the {size} it is said to have")
