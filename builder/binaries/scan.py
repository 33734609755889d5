"""What lies in a binary's data and no table leads to: names of libraries that it may open, and fatbins that a library keeps
for itself, as cuFFT does."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from builder.binaries.window import BinaryError, Window

_MAX_NAMES = 4096
_MAX_NAME = 255
_MAX_FATBINS = 1 << 18
_OVERLAP = 2 * _MAX_NAME
_LIBRARY = re.compile(rb"(?:[\w./@$+{}-]*/)?lib[\w.+-]+\.so(?:\.\w+)*")
_SUFFIX = re.compile(rb"(?:\.\w{1,40}){0,8}\0")
_FATBIN = b"\x50\xed\x55\xba\x01\0\x10\0"


@dataclass(frozen=True)
class Found:
    """`libraries` are texts from NUL to NUL that are the name of a library, or the path of one, sorted; `fatbins` the places
    where one may begin."""

    libraries: tuple[str, ...]
    fatbins: tuple[int, ...]


def scan(file: Window, ranges: Sequence[tuple[int, int]]) -> Found:
    """Looks through the parts (begin, end) of a file. Raises `BinaryError` where there is more than any binary has."""
    libraries: set[str] = set()
    fatbins: list[int] = []
    for begin, end in ranges:
        for offset, piece in file.pieces(begin, end, _OVERLAP):
            libraries.update(_libraries(piece, whole=offset == begin))
            fatbins += (offset + at for at in _fatbins(piece) if not fatbins or offset + at > fatbins[-1])
            if len(libraries) > _MAX_NAMES or len(fatbins) > _MAX_FATBINS:
                raise BinaryError(
                    f"{file.label}: it holds {len(libraries)} names of libraries, {len(fatbins)} fatbins: "
                    "more than any binary does"
                )
    return Found(tuple(sorted(libraries)), tuple(fatbins))


def _libraries(piece: bytes, *, whole: bool) -> Iterator[str]:
    """The names in a piece; `whole` says that a text may begin where it begins."""
    at = piece.find(b".so")
    while at >= 0:
        suffix = _SUFFIX.match(piece, at + 3)
        if suffix:
            begin = piece.rfind(b"\0", max(0, at - _MAX_NAME), at) + 1
            text = piece[begin : suffix.end() - 1]
            if (begin or whole) and _LIBRARY.fullmatch(text):
                yield text.decode("ascii", "backslashreplace")
        at = piece.find(b".so", at + 3)


def _fatbins(piece: bytes) -> Iterator[int]:
    at = piece.find(_FATBIN)
    while at >= 0:
        yield at
        at = piece.find(_FATBIN, at + len(_FATBIN))
