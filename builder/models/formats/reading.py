"""Reads the heads of binary files piece by piece: nothing beyond the end, nothing large into memory."""

from __future__ import annotations

import struct
from typing import Any, BinaryIO

from builder.models.formats import HeaderError

_MAX_KEPT = 64 << 20
"""Bytes of all names of one file; no index could hold more."""


class Reader:
    """A file's bytes from `at` up to `end`; errors call the file `name`. It is at its beginning, and only sought forward."""

    def __init__(self, file: BinaryIO, end: int, name: str) -> None:
        self._file = file
        self.end = end
        self.name = name
        self.at = 0
        self._kept = 0

    def wrong(self, why: str) -> HeaderError:
        """The error that says why the file is refused, and where."""
        return HeaderError(f"{self.name}: byte {self.at}: {why}")

    def take(self, count: int, what: str) -> bytes:
        """The next `count` bytes."""
        if count > self.end - self.at:
            raise self.wrong(f"{what} of {count} bytes, the file has {self.end - self.at} more")
        data = self._file.read(count)
        if len(data) != count:
            raise self.wrong("the file became shorter while it was read")
        self.at += count
        return data

    def skip(self, count: int, what: str) -> None:
        """Passes over `count` bytes."""
        if count > self.end - self.at:
            raise self.wrong(f"{what} of {count} bytes, the file has {self.end - self.at} more")
        self.at += count
        self._file.seek(self.at)

    def unpack(self, form: struct.Struct, what: str) -> tuple[Any, ...]:
        """The next values."""
        return form.unpack(self.take(form.size, what))

    def kept(self, text: str) -> str:
        """The same text, which will stay in memory."""
        self._kept += len(text)
        if self._kept > _MAX_KEPT:
            raise self.wrong(f"names of more than {_MAX_KEPT >> 20} MiB together")
        return text

    def varint(self, what: str) -> int:
        """A number as protocol buffers write it, of 64 bits at most."""
        value = 0
        for shift in range(0, 70, 7):
            byte = self.take(1, what)[0]
            value |= (byte & 0x7F) << shift
            if not byte & 0x80:
                if value >= 1 << 64:
                    break
                return value
        raise self.wrong(f"{what}: a number of more than 64 bits")


def text_of(data: bytes, what: str, reader: Reader) -> str:
    """UTF-8 without control characters that a terminal or an index cannot take."""
    try:
        text = data.decode()
    except UnicodeDecodeError as error:
        raise reader.wrong(f"{what} is not UTF-8") from error
    if "\0" in text:
        raise reader.wrong(f"{what} holds a NUL")
    return text


def short(text: str, most: int = 80) -> str:
    """Foreign text, fit for one line of an error."""
    printable = text if text.isprintable() else repr(text)[1:-1]
    return printable if len(printable) <= most else f"{printable[:most]}…"
