"""Where the chunks of a file begin: at its large tensors, so that half of one can be read and checked without its neighbours.

A grid that starts at the beginning of the file would do neither that, nor know a tensor again that moved because the header
before it grew.
"""

from __future__ import annotations

from itertools import pairwise

from builder.models.values import Header


def cuts(size: int, chunk_size: int, header: Header | None) -> tuple[int, ...]:
    """The offsets of the chunks of a file of `size` bytes, and `size` itself at the end.

    No chunk has more than `chunk_size` bytes. A tensor of a quarter of that or more begins a chunk and ends one; what lies
    between such tensors is cut as it comes. Part of the format of the index: the same arguments give the same offsets for ever.
    """
    edges = {0, size}
    for tensor in header.tensors if header else ():
        if (tensor.end - tensor.start) * 4 >= chunk_size:
            edges |= {edge for edge in (tensor.start, tensor.end) if 0 < edge < size}
    found: list[int] = []
    for begin, end in pairwise(sorted(edges)):
        found += range(begin, end, chunk_size)
    return (*found, size)
