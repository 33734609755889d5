"""Which requests bring the chunks that are wanted: few large ones where much is wanted, many small ones where little is."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

from builder.models.chunked import Open
from builder.models.values import CHUNK_SIZE

CONNECTIONS = 12
"""How many requests are on their way at once: at 50 MB/s for each connection, that is 600 MB/s."""

PART = 16 << 20
"""The most bytes of one request."""

_LEAST = 1 << 20


@dataclass(eq=False)
class Run:
    """The chunks `at` to `last` of a file, in one request; `at` is the one that comes just now."""

    opened: Open
    at: int
    last: int
    begun: float = field(default_factory=time.monotonic)


@dataclass
class Room:
    """Where the pieces of a chunk meet, each as the blocks that came, by its first byte; `left` of them are still to come."""

    left: int
    pieces: dict[int, list[bytes]] = field(default_factory=dict)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def blocks(self) -> list[bytes]:
        """All of the chunk, in order, when all pieces have come."""
        return [block for _, piece in sorted(self.pieces.items()) for block in piece]


@dataclass
class Piece:
    """A part of a chunk, in one request."""

    opened: Open
    chunk: int
    start: int
    end: int
    shared: Room


def runs(wanted: Sequence[tuple[Open, Sequence[int]]]) -> Iterator[Run]:
    """Chunks that lie side by side together: a few at the beginning, so that what follows in the file is soon there without a
    gap; many then; and a few at the end, so that all requests end together."""
    left = sum(opened.chunked.length(chunk) for opened, chunks in wanted for chunk in chunks)
    done = 0
    for opened, chunks in wanted:
        run: Run | None = None
        size = 0
        for chunk in chunks:
            length = opened.chunked.length(chunk)
            most = max(min(PART, done // CONNECTIONS, left // CONNECTIONS), CHUNK_SIZE)
            if run is not None and chunk == run.last + 1 and size + length <= most:
                run.last, size = chunk, size + length
            else:
                if run is not None:
                    yield run
                run, size = Run(opened, chunk, chunk), length
            left -= length
            done += length
        if run is not None:
            yield run


def shared(runs: Sequence[Run | Piece]) -> Iterator[Run | Piece]:
    """Few runs in as many requests as there are connections: first chunks, then parts of chunks."""
    chunks = [(run.opened, chunk) for run in runs if isinstance(run, Run) for chunk in range(run.at, run.last + 1)]
    if len(chunks) > CONNECTIONS:
        yield from runs if len(runs) >= CONNECTIONS // 2 else (Run(opened, chunk, chunk) for opened, chunk in chunks)
        return
    pieces = max(CONNECTIONS // len(chunks), 1)
    for opened, chunk in chunks:
        start, end = opened.filling.span(chunk)
        count = max(1, min(pieces, (end - start) // _LEAST))
        if count == 1:
            yield Run(opened, chunk, chunk)
            continue
        room = Room(count)
        bounds = [start + (end - start) * number // count for number in range(count + 1)]
        for begin, until in pairwise(bounds):
            yield Piece(opened, chunk, begin, until, room)
