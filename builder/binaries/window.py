"""Reading pieces of a foreign file at places that the file itself names."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from dataclasses import dataclass

from builder.errors import HostileInputError

_PIECE = 1 << 20


class BinaryError(HostileInputError):
    """A binary is damaged, cut off, or says things of itself that cannot be."""

    hint = "the loader may refuse the file as well: choose another version of what brings it, or leave the file out"


@dataclass(frozen=True, slots=True)
class Window:
    """The `size` bytes of an open file from `start` on; `label` names them in errors. Nothing outside is ever read."""

    fd: int
    start: int
    size: int
    label: str

    def read(self, offset: int, size: int, what: str) -> bytes:
        """Exactly `size` bytes at `offset`. Raises `BinaryError`, which says `what` is missing, if they are not there."""
        if offset < 0 or size < 0 or offset + size > self.size:
            raise BinaryError(f"{self.label}: {what} reaches beyond the end of the file, which is damaged or cut off")
        data = os.pread(self.fd, size, self.start + offset)
        if len(data) != size:
            raise BinaryError(f"{self.label}: {what}: the file became shorter while it was read")
        return data

    def unpack(self, form: struct.Struct, offset: int, what: str) -> tuple[int, ...]:
        """The numbers of a structure at `offset`."""
        return form.unpack(self.read(offset, form.size, what))

    def text(self, offset: int, limit: int, what: str) -> str:
        """The text at `offset` up to its NUL, of at most `limit` bytes. Bytes that are not UTF-8 become escapes."""
        if not 0 <= offset < self.size:
            raise BinaryError(f"{self.label}: {what} lies beyond the end of the file, which is damaged or cut off")
        data, nul, _ = os.pread(self.fd, min(limit + 1, self.size - offset), self.start + offset).partition(b"\0")
        if not nul:
            raise BinaryError(f"{self.label}: {what} has no end")
        return data.decode("utf-8", "backslashreplace")

    def pieces(self, begin: int, end: int, overlap: int) -> Iterator[tuple[int, bytes]]:
        """The bytes from `begin` to `end` in pieces of bounded size, each with its offset; a piece begins with the last
        `overlap` bytes of the one before."""
        tail = b""
        while begin < end:
            data = os.pread(self.fd, min(_PIECE, end - begin), self.start + begin)
            if not data:
                raise BinaryError(f"{self.label}: the file became shorter while it was read")
            yield begin - len(tail), tail + data
            begin += len(data)
            tail = (tail + data)[-overlap:]
