"""Parts of a tensor: which of its bytes an index such as `[1024:2048, :]` stands for."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import EllipsisType

Index = int | slice | EllipsisType | tuple[int | slice | EllipsisType, ...]

_MERGED = 1 << 20
"""Bytes between two parts that are fetched along rather than asked around."""


def ranges(shape: Sequence[int], index: Index) -> tuple[range, ...]:
    """For each dimension the elements that an index takes, as numpy understands it. Raises `IndexError`."""
    given = index if isinstance(index, tuple) else (index,)
    ellipses = [at for at, each in enumerate(given) if each is Ellipsis]  # arrays would compare by element
    if len(ellipses) > 1:
        raise IndexError("an index has one ellipsis at most")
    for at in ellipses:
        filled = (slice(None),) * (len(shape) - len(given) + 1)
        given = (*given[:at], *filled, *given[at + 1 :])
    if len(given) > len(shape):
        raise IndexError(f"too many indices: the tensor has {len(shape)} dimensions")
    given = (*given, *(slice(None),) * (len(shape) - len(given)))
    return tuple(_range(length, each) for length, each in zip(shape, given, strict=True))


def spans(shape: Sequence[int], bits: int, index: Index) -> list[tuple[int, int]]:
    """The bytes of a tensor, from its first, that an index needs: start and end of stretches, ascending.

    `bits` are those of one element; what lies less than 1 MiB from the next is one stretch with it.
    """
    taken = ranges(shape, index)
    if any(not each for each in taken):
        return []
    found = [(0, bits)]
    size = bits
    for length, each in zip(reversed(shape), reversed(taken), strict=True):
        low, high = min(each[0], each[-1]), max(each[0], each[-1])
        step = abs(each.step)
        first, last = found[0][0], found[-1][1]
        if step * size - (last - first) <= _MERGED * 8 and len(found) == 1:
            found = [(low * size + first, high * size + last)]
        else:
            found = _merged(
                [(at * size + start, at * size + end) for at in range(low, high + 1, step) for start, end in found]
            )
        size *= length
    return [(start // 8, math.ceil(end / 8)) for start, end in found]


def _merged(stretches: list[tuple[int, int]]) -> list[tuple[int, int]]:
    found = [stretches[0]]
    for start, end in stretches[1:]:
        if start - found[-1][1] <= _MERGED * 8:
            found[-1] = (found[-1][0], end)
        else:
            found.append((start, end))
    return found


def _range(length: int, index: int | slice | EllipsisType) -> range:
    if isinstance(index, slice):
        return range(length)[index]
    # numpy takes a truth value for a mask
    if isinstance(index, EllipsisType | bool) or not hasattr(index, "__index__"):
        raise IndexError(f"an index is made of numbers and slices, not of {index!r}")
    try:
        number = index.__index__()
    except TypeError as error:
        raise IndexError("an index is made of numbers and slices, not of arrays") from error
    if not -length <= number < length:
        raise IndexError(f"{number} is out of bounds for a dimension of {length}")
    return range(number % length, number % length + 1)
