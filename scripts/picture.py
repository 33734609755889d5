"""Draws a line of text as a PNG with the standard library alone: what the demo gives its service to read."""

from __future__ import annotations

import math
import struct
import zlib
from collections.abc import Iterator
from itertools import pairwise

# Strokes of each character on a grid 6 high, y downwards: points "x,y", strokes parted by "|".
_GLYPHS = {
    "A": "0,6 2,0 4,6|0.7,4 3.3,4",
    "D": "0,0 2.4,0 4,1.6 4,4.4 2.4,6 0,6 0,0",
    "E": "3.6,0 0,0 0,6 3.6,6|0,3 3,3",
    "G": "4,1.3 2.7,0 1.3,0 0,1.5 0,4.5 1.3,6 2.7,6 4,4.8 4,3.2 2.4,3.2",
    "H": "0,0 0,6|4,0 4,6|0,3 4,3",
    "I": "0,0 0,6",
    "L": "0,0 0,6 3.6,6",
    "O": "1.3,0 2.7,0 4,1.5 4,4.5 2.7,6 1.3,6 0,4.5 0,1.5 1.3,0",
    "R": "0,6 0,0 2.7,0 4,0.9 4,2.2 2.7,3.1 0,3.1|1.8,3.1 4,6",
    "T": "0,0 4,0|2,0 2,6",
    "W": "0,0 1.3,6 2.6,1 3.9,6 5.2,0",
    "Y": "0,0 2,3 4,0|2,3 2,6",
    "0": "1.2,0 2.4,0 3.6,1.5 3.6,4.5 2.4,6 1.2,6 0,4.5 0,1.5 1.2,0",
    "2": "0,1.4 1.2,0 2.6,0 3.8,1.2 3.8,2.3 0,6 3.8,6",
    "6": "3.6,0.9 2.6,0 1.4,0 0,1.8 0,4.6 1.2,6 2.6,6 3.8,4.7 3.8,3.9 2.6,2.8 1.2,2.8 0,3.9",
    " ": "",
}
_UNIT = 6  # pixels
_PEN = 3.5
_MARGIN = 40
_GAP = 1.6
_SPACE = 1.0

Segment = tuple[float, float, float, float]


def draw(text: str) -> bytes:
    """A PNG of black text on white; `text` has only the characters of the table above."""
    strokes = list(_layout(text))
    width = math.ceil(max(max(x, to_x) for x, _, to_x, _ in strokes)) + _MARGIN
    canvas = [bytearray(b"\xff" * width) for _ in range(6 * _UNIT + 2 * _MARGIN)]
    for segment in strokes:
        _stroke(canvas, segment)
    return _png(width, canvas)


def _layout(text: str) -> Iterator[Segment]:
    """The strokes in pixels."""
    left = 0.0
    for character in text:
        right = _SPACE
        for stroke in filter(None, _GLYPHS[character].split("|")):
            points = [(float(x), float(y)) for x, y in (point.split(",") for point in stroke.split())]
            right = max(right, *(x for x, _ in points))
            for (x, y), (to_x, to_y) in pairwise(points):
                yield _px(left + x), _px(y), _px(left + to_x), _px(to_y)
        left += right + _GAP


def _px(units: float) -> float:
    return _MARGIN + units * _UNIT


def _stroke(canvas: list[bytearray], segment: Segment) -> None:
    """Draws a segment with a round pen: each pixel is as dark as it is near."""
    x, y, to_x, to_y = segment
    dx, dy = to_x - x, to_y - y
    for row in range(int(min(y, to_y) - _PEN), int(max(y, to_y) + _PEN) + 1):
        for column in range(int(min(x, to_x) - _PEN), int(max(x, to_x) + _PEN) + 1):
            along = ((column - x) * dx + (row - y) * dy) / (dx * dx + dy * dy)
            nearest = min(1.0, max(0.0, along))
            distance = math.hypot(column - x - nearest * dx, row - y - nearest * dy)
            shade = min(1.0, max(0.0, distance - _PEN / 2 + 0.5))
            canvas[row][column] = min(canvas[row][column], int(255 * shade))


def _png(width: int, rows: list[bytearray]) -> bytes:
    header = struct.pack(">IIBBBBB", width, len(rows), 8, 0, 0, 0, 0)  # 8 bit grey
    pixels = zlib.compress(b"".join(b"\0" + row for row in rows))
    return b"\x89PNG\r\n\x1a\n" + _chunk(b"IHDR", header) + _chunk(b"IDAT", pixels) + _chunk(b"IEND", b"")


def _chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
