"""Where spans begin if it is known what a start reads: small ones there, large ones elsewhere. Pure.

Each span costs 32 KiB of index, and each read of a byte brings its whole span. A ztoc whose spans have different lengths is
read, and verified, by soci-snapshotter as any other: it finds the span of a byte among the checkpoints.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable

HOT = 2 << 20
COLD = 32 << 20
_LEAST = 128 << 10
_AHEAD = 384 << 10
"""So much of a file the kernel reads beyond what it was asked for, and a read that ends where a span does brings the next."""


def rule(regions: Iterable[tuple[int, int]]) -> Callable[[int, int], bool]:
    """Says of a span that began at `last` whether it ends at `out`, both in bytes of the tar; `regions` are what is read.

    A span holds at most about `HOT` bytes where something is read, else `COLD`, and ends where that changes, but for gaps and
    islands that are too small to be worth a span.
    """
    merged: list[tuple[int, int]] = []
    for start, end in sorted((start, end + _AHEAD) for start, end in regions):
        if merged and start - merged[-1][1] < HOT:
            merged[-1] = merged[-1][0], max(end, merged[-1][1])
        else:
            merged.append((start, end))
    starts = [start for start, _ in merged]

    def hot(begin: int, end: int) -> bool:
        at = bisect_right(starts, end - 1) - 1
        return at >= 0 and merged[at][1] > begin

    def full(last: int, out: int) -> bool:
        is_hot = hot(last, out)
        if is_hot != hot(out, out + _LEAST) and out - last >= _LEAST:
            return True
        return out - last > (HOT if is_hot else COLD)

    return full
