"""The numbers: a piece of a tensor from one type to another, and how far it is from where it was.

All results are rounded to nearest, ties to even, element by element, so that they are the same on every machine. Sums of
errors are not (vector units add in different orders); they are reported and decide no byte.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.models.convert.report import Errors

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

LIMITS = {"F16": 65504.0, "BF16": float(np.array([0x7F7F0000], np.uint32).view(np.float32)[0])}
"""The largest finite number of a type."""
_OVERFLOWS = {"F16": 65520.0, "BF16": float(np.array([0x7F7F8000], np.uint32).view(np.float32)[0])}
"""The smallest number that rounds to infinity."""
_SMALLEST_NORMAL, _INFINITE = 0x38800000, 0x477FF000
"""The bits of 2**-14 and 65520 as float32: between them numbers are rounded to `F16` by adding to their bits."""
_NONE = {"F16": 0x7E00, "BF16": 0x7FC0}
_PIECE = 1 << 17
"""Elements at a time: what fits the caches of a core."""
LEVELS = 127


class DoesNotFitError(Exception):
    """Numbers that the target type cannot hold: how many, and the largest."""

    def __init__(self, count: int, largest: float) -> None:
        super().__init__(count, largest)
        self.count = count
        self.largest = largest


class NoNumberError(Exception):
    """Numbers that are infinite or none, where a scale has to be found."""


@dataclass(frozen=True)
class Piece:
    """Converted bytes, and their errors."""

    data: Any
    errors: Errors


def floats(raw: Any, dtype: str) -> Floats:
    """The numbers in little-endian bytes of `BF16`, `F16`, `F32` or `F64`."""
    if dtype == "BF16":
        wide = np.frombuffer(raw, "<u2").astype(np.uint32)
        np.left_shift(wide, 16, out=wide)
        return wide.view(np.float32)
    if dtype == "F16":
        return np.frombuffer(raw, "<f2").astype(np.float32)
    return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f8")


@np.errstate(all="ignore")
def cast(raw: Any, dtype: str, target: str, *, clamp: bool) -> Piece:
    """Bytes of `dtype` as bytes of `target`, `F16` or `BF16`. Raises `DoesNotFitError` unless `clamp`."""
    numbers = floats(raw, dtype)
    out = np.empty(len(numbers), "<u2")
    errors = Errors()
    for start in range(0, len(numbers), _PIECE):
        part = numbers[start : start + _PIECE]
        errors += _cast(part, out[start : start + _PIECE], target, clamp)
    return Piece(out.data, errors)


def encode(numbers: npt.NDArray[np.float32], dtype: str) -> bytes:
    """A few numbers as bytes of `dtype`; they have to fit."""
    if dtype == "F32":
        return numbers.astype("<f4").tobytes()
    out = np.empty(len(numbers), "<u2")
    _round(numbers, out, dtype)
    return out.tobytes()


@np.errstate(all="ignore")
def scales(numbers: Floats, dtype: str) -> npt.NDArray[np.float32]:
    """One scale for each row of a matrix, as `dtype` holds it: the row's largest number is 127 of it.

    A row of zeros has the scale 1. Raises `NoNumberError`.
    """
    largest = np.maximum(numbers.max(1), -numbers.min(1)).astype(np.float32)
    if not np.isfinite(largest).all():
        raise NoNumberError
    found: npt.NDArray[np.float32] = largest / np.float32(LEVELS)
    if dtype != "F32":
        found = floats(encode(found, dtype), dtype).astype(np.float32)
    smallest = {"F16": 2.0**-24, "BF16": 2.0**-126, "F32": 2.0**-126}[dtype]
    found = np.maximum(found, np.float32(smallest))
    found[largest == 0] = 1
    return found


@np.errstate(all="ignore")
def quantise(numbers: Floats, dtype: str) -> tuple[npt.NDArray[np.int8], Errors]:
    """The rows of a matrix in steps of their `scales`. Raises `NoNumberError`."""
    rows, columns = numbers.shape
    out = np.empty((rows, columns), np.int8)
    steps = scales(numbers, dtype)[:, None]
    errors = Errors()
    count = max(1, _PIECE // columns)
    scratch = np.empty((min(count, rows), columns), np.float32)
    for start in range(0, rows, count):
        part = numbers[start : start + count]
        step = steps[start : start + count]
        near = scratch[: len(part)]
        np.divide(part, step, out=near)
        np.rint(near, out=near)
        np.clip(near, -LEVELS, LEVELS, out=near)
        np.copyto(out[start : start + count], near, casting="unsafe")
        np.multiply(near, step, out=near)
        np.subtract(near, part, out=near)
        errors += _errors(part, near)
    return out, errors


def pack(steps: npt.NDArray[np.int8]) -> Any:
    """Rows of signed bytes as little-endian 32-bit words of four, each shifted by 128; rows are filled with zeros."""
    rows, columns = steps.shape
    shifted = steps.view(np.uint8) ^ np.uint8(0x80)
    if columns % 4:
        shifted = np.pad(shifted, ((0, 0), (0, -columns % 4)))
    return np.ascontiguousarray(shifted).reshape(rows * (columns + -columns % 4)).data


def _cast(part: Floats, out: npt.NDArray[np.uint16], target: str, clamp: bool) -> Errors:
    clamped = unbounded = 0
    if not max(part.max(), -part.min()) < _OVERFLOWS[target]:  # so that it is also true of no number
        bounded = np.isfinite(part)
        excess = bounded & (np.abs(part) >= _OVERFLOWS[target])
        clamped, unbounded = int(excess.sum()), int((~bounded).sum())
        if clamped and not clamp:
            raise DoesNotFitError(clamped, float(part[excess][np.abs(part[excess]).argmax()]))
        part = np.where(excess, np.copysign(part.dtype.type(LIMITS[target]), part), part)
    near = _round(part, out, target)
    if unbounded:
        none = np.isnan(part)  # one form of it: what is kept of others depends on the processor
        out[none] = _NONE[target] | np.signbit(part[none]).astype(np.uint16) << 15
        part, near = part[bounded], near[bounded]
    found = _errors(part, near - part)
    return Errors(found.largest, found.signal, found.noise, clamped, unbounded)


def _round(part: Floats, out: npt.NDArray[np.uint16], target: str) -> Floats:
    """Writes `part` as `target` to `out`; returns what was written, as numbers."""
    if target == "F16" and part.dtype == np.float64:
        return _half(part, out)  # at once: twice would round twice
    dropped = 13 if target == "F16" else 16
    bits = np.ascontiguousarray(part, "<f4").view(np.uint32)
    near = np.right_shift(bits, dropped)
    np.bitwise_and(near, 1, out=near)
    np.add(near, (1 << dropped - 1) - 1, out=near)
    np.add(near, bits, out=near)
    np.bitwise_and(near, 0xFFFFFFFF >> dropped << dropped, out=near)
    out[...] = np.right_shift(near, dropped)
    if target == "F16":
        np.subtract(out, 0xC000, out=out)  # the exponent counts from 15 and no longer from 127
        np.bitwise_and(out, 0x7FFF, out=out)
        np.bitwise_or(out, (bits >> 16).astype(np.uint16) & 0x8000, out=out)
        near_zero = np.bitwise_and(bits, 0x7FFFFFFF)
        np.subtract(near_zero, _SMALLEST_NORMAL, out=near_zero)  # what is smaller wraps around
        others = np.flatnonzero(near_zero >= _INFINITE - _SMALLEST_NORMAL)
        if len(others):
            halves = np.empty(len(others), "<u2")
            near[others] = _half(bits.view(np.float32)[others], halves).view(np.uint32)
            out[others] = halves
    return near.view(np.float32)


def _half(part: Floats, out: npt.NDArray[np.uint16]) -> npt.NDArray[np.float32]:
    """numpy's own way to `F16`, several times slower."""
    half = out.view("<f2")
    half[...] = part
    return half.astype(np.float32)


def _errors(part: Floats, distance: Floats) -> Errors:
    if not part.size:
        return Errors()
    flat, far = part.reshape(-1), distance.reshape(-1)
    signal, noise = _power(flat), _power(far)
    if not np.isfinite(signal + noise):
        signal, noise = _power(flat.astype(np.float64)), _power(far.astype(np.float64))
    return Errors(float(max(far.max(), -far.min())), signal, noise)


def _power(numbers: Floats) -> float:
    return float(np.einsum("i,i->", numbers, numbers))  # np.dot would start BLAS's threads beside ours
