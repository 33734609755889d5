"""A stream that is checked while it is read: what was promised comes out of it, or an error."""

from __future__ import annotations

import hashlib
import io
from collections.abc import Callable
from typing import BinaryIO

from builder.errors import BuilderError
from builder.oci.spec import Descriptor


class Checked(io.RawIOBase):
    """The bytes of `stream`, which have to be those of `descriptor`.

    The read that would give the last byte raises what `wrong` makes of the reason if size or digest are others, so that
    whoever has read `descriptor.size` bytes has the right ones. Closing it closes `stream`.
    """

    verified = True

    def __init__(self, stream: BinaryIO, descriptor: Descriptor, wrong: Callable[[str], BuilderError]) -> None:
        self._stream = stream
        self._descriptor = descriptor
        self._wrong = wrong
        self._sha256 = hashlib.sha256()
        self._left = descriptor.size
        if not self._left:
            self._check_end()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        view = memoryview(buffer)[: self._left]
        if not view:
            return 0
        count = self._fill(view)
        self._sha256.update(view[:count])
        self._left -= count
        if not count:
            raise self._wrong(f"it ends {self._left} bytes early")
        if not self._left:
            self._check_end()
        return count

    def close(self) -> None:
        if not self.closed:
            self._stream.close()
        super().close()

    def _fill(self, view: memoryview) -> int:
        try:
            if isinstance(self._stream, io.RawIOBase | io.BufferedIOBase):
                return self._stream.readinto(view) or 0
            data = self._stream.read(len(view))
        except OSError as error:
            raise self._wrong(error.strerror or str(error)) from error
        view[: len(data)] = data
        return len(data)

    def _check_end(self) -> None:
        if self._stream.read(1):
            raise self._wrong(f"it is longer than {self._descriptor.size} bytes")
        if self._sha256.hexdigest() != self._descriptor.digest.hex:
            raise self._wrong("its bytes have another digest")


def checked(stream: BinaryIO, descriptor: Descriptor, wrong: Callable[[str], BuilderError]) -> BinaryIO:
    """The stream itself if it says that it is `verified`, as a `Checked` one does, else a checked one."""
    if getattr(stream, "verified", False):
        return stream
    return Checked(stream, descriptor, wrong)  # type: ignore[return-value]
