"""Where spans begin if it is known what a start reads: small ones there, large ones elsewhere. Pure.

Each span costs 32 KiB of index, and each read of a byte brings its whole span. A ztoc whose spans have different lengths is
read, and verified, by soci-snapshotter as any other: it finds the span of a byte among the checkpoints.

Two rules, whose numbers locks name and which stay as they are: the first one (`rule`) looks at the tar alone and joins
what lies less than 2 MiB apart; the second one (`parts`, `choose`) knows what each piece weighs in the blob.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby

from builder.layers.spans import Checkpoint
from builder.layers.tar import BLOCK
from builder.layers.untar import normal
from builder.soci.read import Ztoc

HOT = 2 << 20
COLD = 32 << 20
_LEAST = 128 << 10
_AHEAD = 384 << 10
"""So much of a file the kernel reads beyond what it was asked for, and a read that ends where a span does brings the next."""
READ = 4 << 20
"""The second rule's `HOT`: spans of less than that save no byte where all of them are read, and cost index."""
REST = 48 << 20
"""The second rule's `COLD`: with it the index of torch's closure is less than a hundredth of its blobs."""
NEAR = 512 << 10
"""How far apart places are looked for where something is read, in bytes of the tar."""
_BEFORE, _BEHIND = 64 << 10, 192 << 10
"""So much of a file a kernel reads before and behind a page that a program touches: 128 KiB around it, and as much after that.
Of what starts of torch read with a kernel's read-ahead and not without, this has 99.9 %."""
_BRIDGE = 128 << 10
"""What weighs less in the blob than this is not worth a span of its own: two checkpoints, and one request more."""
_LONG = 1 << 20
"""What is longer in the tar than this is not bridged, little as it may weigh: it would be inflated."""


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


@dataclass(frozen=True)
class Region:
    """A file of which something is read: where its header, its content and what follows begin in the tar, and the `parts` of it
    that are read, in bytes of the tar."""

    header: int
    begin: int
    end: int
    parts: tuple[tuple[int, int], ...]


def regions(own: Ztoc, parts: Mapping[str, Sequence[tuple[int, int]]]) -> Iterator[Region]:
    """What is read of a layer's tar; `parts` are from `start` to before `end`, by the files' paths."""
    end = 0
    for entry in own.toc():
        header, end = end, entry.offset + -(-entry.size // BLOCK) * BLOCK
        read = [
            (start, min(stop, entry.size)) for start, stop in parts.get(normal(entry.name), ()) if start < entry.size
        ]
        if entry.type == "reg" and read:
            found = tuple((entry.offset + start, entry.offset + stop) for start, stop in read)
            yield Region(header, entry.offset, entry.offset + entry.size, found)


def parts(regions: Iterable[Region]) -> list[tuple[int, int]]:
    """What is fetched of a tar, in bytes of it, sorted and apart, by what is read of files.

    The kernel reads more than programs do, and soci-snapshotter checks a file's header before it gives any of the file.
    """
    read = []
    for region in regions:
        read.append((region.header, region.begin))
        read += [(max(region.header, a - _BEFORE), min(region.end, b + _BEHIND)) for a, b in region.parts]
    found: list[tuple[int, int]] = []
    for start, end in sorted(read):
        if found and start <= found[-1][1]:
            found[-1] = found[-1][0], max(end, found[-1][1])
        else:
            found.append((start, end))
    return found


def choose(
    places: Sequence[Checkpoint], parts: Sequence[tuple[int, int]], blob_size: int, tar_size: int
) -> tuple[int, ...]:
    """The numbers of those places at which spans begin; `places` are what `layers.cuts.places` found for `parts`.

    A span is either read or not, but for what is too small to be left out. It holds at most about `READ` bytes of the tar where
    something is read, else `REST`.
    """
    ins = [*(place.in_offset for place in places), blob_size]
    outs = [*(place.out_offset for place in places), tar_size]
    hot = _bridged(_hot(outs, parts), ins, outs)
    found = [0]
    for number in range(1, len(places)):
        limit = READ if hot[number] else REST
        if hot[number] != hot[number - 1] or outs[number + 1] - outs[found[-1]] > limit:
            found.append(number)
    return tuple(found)


def _hot(outs: Sequence[int], parts: Sequence[tuple[int, int]]) -> list[bool]:
    """Whether something is read between one place and the next. A read that ends on a place brings what follows."""
    found = [False] * (len(outs) - 1)
    for start, end in parts:
        first = max(0, bisect_right(outs, start) - 1)
        last = min(len(found) - 1, bisect_right(outs, end) - 1)
        found[first : last + 1] = [True] * (last + 1 - first)
    return found


def _bridged(hot: Sequence[bool], ins: Sequence[int], outs: Sequence[int]) -> list[bool]:
    found = []
    for is_hot, numbers in groupby(range(len(hot)), lambda number: hot[number]):
        run = list(numbers)
        weight, length = ins[run[-1] + 1] - ins[run[0]], outs[run[-1] + 1] - outs[run[0]]
        inside = run[0] > 0 and run[-1] + 1 < len(hot)
        found += [is_hot or (inside and weight < _BRIDGE and length <= _LONG)] * len(run)
    return found
