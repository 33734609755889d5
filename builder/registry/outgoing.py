"""The bytes of a blob that are to be sent: read in pieces from anywhere, and found out if they are not those of the blob."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import BinaryIO

from builder.errors import BuilderError
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.parallel import Stop

PIECE = 256 << 10
"""How many bytes are read, and sent, at once: so many that it does not cost, so few that a processor's cache holds them."""

Open = Callable[[], AbstractContextManager[BinaryIO]]


class DamagedBlobError(BuilderError):
    """The bytes of a blob that are to be sent are not those of its digest."""

    hint = "run the same command again: what is damaged is made or fetched anew"

    def __init__(self, message: str, descriptor: Descriptor) -> None:
        super().__init__(message)
        self.descriptor = descriptor


@dataclass(frozen=True)
class Outgoing:
    """The bytes of the blob `descriptor`, from the start each time `open` is called; `name` says which ones to people."""

    descriptor: Descriptor
    open: Open
    name: str

    def pieces(self, start: int, end: int, stop: Stop, sent: Callable[[int], None]) -> Iterator[memoryview]:
        """The bytes from `start` to `end`, each piece in the same memory; `sent` is told of each when the next one is wanted.

        Raises `DamagedBlobError` if there are fewer, or more at the end, and `BuilderError` if they cannot be read.
        """
        buffer = memoryview(bytearray(PIECE))
        with self._readable(), self.open() as source:
            _skip(source, start, buffer)
            left = end - start
            while left:
                stop.check()
                count = _readinto(source, buffer[: min(left, PIECE)])
                if not count:
                    raise self._damaged(f"the bytes to be sent end {left} too early")
                left -= count
                if not left and end == self.descriptor.size and source.read(1):
                    raise self._damaged("more bytes are to be sent than it has")
                yield buffer[:count]
                sent(count)

    def check(self, stop: Stop) -> None:
        """Raises `DamagedBlobError` if they are not those of the digest."""
        state = hashlib.sha256()
        for piece in self.pieces(0, self.descriptor.size, stop, lambda _: None):
            state.update(piece)
        if Digest(state.hexdigest()) != self.descriptor.digest:
            raise self._damaged("the bytes to be sent are damaged")

    @contextmanager
    def _readable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            # left as it is, it would be taken for a broken connection
            raise BuilderError(f"{self.name}: its bytes cannot be read: {error.strerror or error}") from error

    def _damaged(self, why: str) -> DamagedBlobError:
        return DamagedBlobError(f"{self.name}: {why}", self.descriptor)


def _readinto(source: BinaryIO, buffer: memoryview) -> int:
    if hasattr(source, "readinto"):
        return source.readinto(buffer) or 0
    data = source.read(len(buffer))
    buffer[: len(data)] = data
    return len(data)


def _skip(source: BinaryIO, count: int, buffer: memoryview) -> None:
    if count and source.seekable():
        source.seek(count)
        return
    while count:
        read = _readinto(source, buffer[: min(count, len(buffer))])
        if not read:
            return  # the next read finds out
        count -= read
