"""Where the spans of a layer may begin if it is known which parts of its tar are read: next to these parts, and here and there
between. One pass over the blob finds the places; which of them are used is decided after it, when all of them are known.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import BinaryIO

from builder.layers.spans import WINDOW, Checkpoint
from builder.layers.stream import LayerStream
from builder.oci.digest import Digest

_READ = 1 << 20


def places(
    blob: BinaryIO,
    windows: BinaryIO,
    parts: Sequence[tuple[int, int]],
    near: int,
    far: int,
    advance: Callable[[int], None] = lambda count: None,
) -> list[Checkpoint]:
    """Reads a gzip layer to its end: places where spans may begin, in order, whose windows are written to `windows`.

    Those are the last place before each of the `parts` (bytes of the tar, from a start to before an end, sorted and apart) and
    the first one behind it; in a part one about every `near` bytes of the tar, elsewhere one every `far`. Raises `LayerError`.
    """
    witness = _Places(windows, parts, near, far)
    told = 0
    with LayerStream(blob, witness) as stream:
        while stream.piece():
            advance(stream.position - told)
            told = stream.position
    return witness.found


def digests(blob: BinaryIO, checkpoints: Sequence[Checkpoint], blob_size: int) -> tuple[Digest, ...]:
    """The digests of the spans that begin at these places; a byte in which two spans meet belongs to both."""
    ends = [*(checkpoint.in_offset for checkpoint in checkpoints[1:]), blob_size]
    return tuple(
        _digest(blob, checkpoint.in_offset - (1 if checkpoint.bits else 0), end)
        for checkpoint, end in zip(checkpoints, ends, strict=True)
    )


def chosen(windows: BinaryIO, numbers: Iterable[int], out: Path) -> None:
    """Writes the windows of these numbers, in order, to the file `out`."""
    with out.open("wb") as file:
        for number in numbers:
            windows.seek(number * WINDOW)
            file.write(windows.read(WINDOW))


def _digest(blob: BinaryIO, start: int, end: int) -> Digest:
    found = hashlib.sha256()
    blob.seek(start)
    left = end - start
    while left and (data := blob.read(min(_READ, left))):
        found.update(data)
        left -= len(data)
    return Digest(found.hexdigest())


class _Places:
    """A witness (`layers.stream.Witness`) that keeps the last place until it is known whether it is wanted."""

    def __init__(self, windows: BinaryIO, parts: Sequence[tuple[int, int]], near: int, far: int) -> None:
        self.found: list[Checkpoint] = []
        self._windows = windows
        self._parts = parts
        self._near, self._far = near, far
        self._part = 0
        self._last: tuple[Checkpoint, bytes] | None = None

    def blob(self, data: memoryview) -> None:
        """The next bytes of the blob."""

    def boundary(self, in_offset: int, out_offset: int, bits: int, window: Callable[[], bytes]) -> None:
        """The first place is always wanted; the one before this if a part begins behind it or the next span would be too long."""
        here = Checkpoint(in_offset, out_offset, bits), window()
        if self._last is None:
            self._keep(here)
        elif out_offset > self._last[0].out_offset:
            self._between(self._last, here)
        else:
            return  # an empty block: nothing lies between
        self._last = here

    def _between(self, last: tuple[Checkpoint, bytes], here: tuple[Checkpoint, bytes]) -> None:
        begin, end = last[0].out_offset, here[0].out_offset
        starts = ends = inside = False
        while self._part < len(self._parts) and self._parts[self._part][0] < end:
            start, stop = self._parts[self._part]
            starts |= begin <= start
            inside |= start < begin
            if stop >= end:
                break
            ends = True
            self._part += 1
        step = self._near if inside or starts else self._far
        if starts or end - self.found[-1].out_offset > step:
            self._keep(last)
        if ends:
            self._keep(here)

    def _keep(self, place: tuple[Checkpoint, bytes]) -> None:
        if not self.found or place[0].out_offset > self.found[-1].out_offset:
            self.found.append(place[0])
            self._windows.write(place[1])
