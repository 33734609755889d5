"""The numbers: a piece of a tensor from one type to another, and how far it is from where it was.

All results are rounded to nearest, ties to even, element by element, so that they are the same on every machine. Sums of
errors are not (vector units add in different orders); they are reported and decide no byte. Nothing large is allocated for a
piece: memory that the system gives and takes back costs as much as the arithmetic.
"""

from __future__ import annotations

import threading
from typing import Any

import numpy as np
import numpy.typing as npt

from builder.models.convert.memory import pages
from builder.models.convert.report import Errors

Floats = npt.NDArray[np.float32] | npt.NDArray[np.float64]

LIMITS = {"F16": 65504.0, "BF16": float(np.array([0x7F7F0000], np.uint32).view(np.float32)[0])}
"""The largest finite number of a type."""
LEVELS = 127

_OVERFLOWS = {"F16": 65520.0, "BF16": float(np.array([0x7F7F8000], np.uint32).view(np.float32)[0])}
"""The smallest number that rounds to infinity."""
_SMALLEST_NORMAL, _INFINITE = 0x38800000, 0x477FF000
"""The bits of 2**-14 and 65520 as float32: between them numbers are rounded to `F16` by adding to their bits."""
_NONE = {"F16": 0x7E00, "BF16": 0x7FC0}
_PIECE = 1 << 16
"""Elements at a time: what fits the caches of a core."""
_PIECE_OF_HALF = 1 << 15
"""The same, where more is kept beside them."""
_SIGN, _EXPONENT = np.array(0x8000, np.uint16), np.array(0x7F80, np.uint16)
_EXPONENTS = np.array((1 << 16) + (1 << 3), np.uint32)
"""What puts the exponent of the upper half of a float32 where float32 has it, and where `F16` has it, too."""
_OFFSETS = np.array((13 << 23) - (_SMALLEST_NORMAL >> 13), np.uint32)
_SUMMED = 1 << 13
"""As many products are added up by BLAS at once; from 10000 it would start threads beside ours."""
_spare = threading.local()


class DoesNotFitError(Exception):
    """Numbers that the target type cannot hold: how many, and the largest."""

    def __init__(self, count: int, largest: float) -> None:
        super().__init__(count, largest)
        self.count = count
        self.largest = largest


class NoNumberError(Exception):
    """Numbers that are infinite or none, where a scale has to be found."""


def floats(raw: Any, dtype: str) -> Floats:
    """The numbers in little-endian bytes of `BF16`, `F16`, `F32` or `F64`; good until this thread asks again."""
    if dtype == "BF16":
        short = np.frombuffer(raw, "<u2")
        bits = _scratch("floats", len(short), np.uint32)
        np.copyto(bits, short)
        np.left_shift(bits, 16, out=bits)
        wide: npt.NDArray[np.float32] = bits.view(np.float32)
        return wide
    if dtype == "F16":
        half = np.frombuffer(raw, "<f2")
        single: npt.NDArray[np.float32] = _scratch("floats", len(half), np.float32)
        np.copyto(single, half)
        return single
    return np.frombuffer(raw, "<f4" if dtype == "F32" else "<f8")


def cast(raw: Any, dtype: str, target: str, out: Any, *, clamp: bool, known: float = 0.0) -> Errors:
    """Writes bytes of `dtype` as bytes of `target`, `F16` or `BF16`, to `out`. Raises `DoesNotFitError` unless `clamp`.

    `known` is the largest error of the same tensor so far: the answer has it where there is no larger one.
    """
    numbers = floats(raw, dtype)
    written = np.frombuffer(out, "<u2")
    if target == "F16" and numbers.dtype == np.float32:
        halves: _Halves | None = getattr(_spare, "halves", None)
        if halves is None:
            halves = _spare.halves = _Halves()
        if found := halves(numbers, written, known):
            return found
    errors = Errors(known)
    piece = _PIECE_OF_HALF if target == "F16" else _PIECE
    with np.errstate(all="ignore"):
        for start in range(0, len(numbers), piece):
            errors += _cast(numbers[start : start + piece], written[start : start + piece], target, clamp)
    return errors


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
        out = np.frombuffer(encode(found, dtype), "<u2")
        found = (
            (out.astype(np.uint32) << 16).view(np.float32) if dtype == "BF16" else out.view("<f2").astype(np.float32)
        )
    smallest = {"F16": 2.0**-24, "BF16": 2.0**-126, "F32": 2.0**-126}[dtype]
    found = np.maximum(found, np.float32(smallest))
    found[largest == 0] = 1
    return found


@np.errstate(all="ignore")
def quantise(numbers: Floats, dtype: str, out: Any) -> tuple[bytes, Errors]:
    """Writes the rows of a matrix in steps of their `scales` to `out`, a signed byte each; gives the scales as bytes of `dtype`.

    Raises `NoNumberError`.
    """
    rows, columns = numbers.shape
    written = np.frombuffer(out, np.int8).reshape(rows, columns)
    found = scales(numbers, dtype)
    steps = found[:, None]
    errors = Errors()
    count = max(1, _PIECE // columns)
    for start in range(0, rows, count):
        part = numbers[start : start + count]
        step = steps[start : start + count]
        near = _scratch("near", part.size, np.float32).reshape(part.shape)
        np.divide(part, step, out=near)
        np.rint(near, out=near)
        np.clip(near, -LEVELS, LEVELS, out=near)
        np.copyto(written[start : start + count], near, casting="unsafe")
        np.multiply(near, step, out=near)
        errors += _errors(part, near)
    return encode(found, dtype), errors


def pack(out: Any, columns: int) -> Any:
    """Rows of `columns` signed bytes as little-endian 32-bit words of four, each byte shifted by 128; rows are filled with
    zeros. The bytes in `out` change."""
    shifted = np.frombuffer(out, np.uint8)
    np.bitwise_xor(shifted, 0x80, out=shifted)
    if columns % 4:
        return np.pad(shifted.reshape(-1, columns), ((0, 0), (0, -columns % 4))).reshape(-1).data
    return shifted.data


def _cast(part: Floats, out: npt.NDArray[np.uint16], target: str, clamp: bool) -> Errors:
    clamped = unbounded = 0
    source, signal, most = part, _power(part), _OVERFLOWS[target]
    same = signal < most * most / 2 or bool(max(part.max(), -part.min()) < most)  # of no number, neither is true
    if not same:
        bounded = np.isfinite(part)
        excess = bounded & (np.abs(part) >= most)
        clamped, unbounded = int(excess.sum()), int((~bounded).sum())
        if clamped and not clamp:
            raise DoesNotFitError(clamped, float(part[excess][np.abs(part[excess]).argmax()]))
        part = np.where(excess, np.copysign(part.dtype.type(LIMITS[target]), part), part)
    near = _round(part, out, target)
    if unbounded:
        none = np.isnan(part)  # one form of it: what is kept of others depends on the processor
        out[none] = _NONE[target] | np.signbit(part[none]).astype(np.uint16) << 15
        source, near = source[bounded], near[bounded]
    found = _errors(source, near, signal if same else None)
    return Errors(found.largest, found.signal, found.noise, clamped, unbounded)


class _Halves:
    """float32 to `F16`, a piece at a time, with the fewest and the cheapest steps that numpy has for it.

    To a number with the exponent e, 2**(e + 13) of the same sign is added: what is left of it in float32 then are the bits that
    `F16` has, as the processor rounds. Of numbers below 2**-14, the smallest with all bits, e is that of the smallest. The
    lower bits of what is added begin not at 0 but at what the exponent is in `F16`, so that the sum's lower half is
    the result but for its sign. One multiplication makes all of that of the upper half of the number.
    """

    def __init__(self) -> None:
        upper, exponent, smallest = (np.frombuffer(pages(_PIECE_OF_HALF * 2), np.uint16) for _ in range(3))
        added, near = (np.frombuffer(pages(_PIECE_OF_HALF * 4), dtype) for dtype in (np.uint32, np.float32))
        smallest[:] = _SMALLEST_NORMAL >> 16  # for numpy is slow at the maximum of an array and a number
        self._memory: tuple[Any, ...] = (
            upper,
            exponent,
            smallest,
            added,
            added.view(np.float32),
            near,
            near.view(np.uint32),
        )

    def __call__(self, numbers: Floats, out: npt.NDArray[np.uint16], known: float) -> Errors | None:
        """Writes float32 as `F16` to `out`; None, and nothing useful there, where a number is near the end of `F16` or beyond.

        The largest error is not looked for where it cannot be larger than `known`, which is given instead.
        """
        noise = 0.0
        for start in range(0, len(numbers), _PIECE_OF_HALF):
            part, memory = numbers[start : start + _PIECE_OF_HALF], self._memory
            if len(part) < _PIECE_OF_HALF:
                memory = tuple(each[: len(part)] for each in memory)
            top = self._exponents(part, memory)
            if top >= _INFINITE >> 23:
                return None
            far = self._round(part, out[start : start + _PIECE_OF_HALF], memory)
            if known < 2.0 ** (max(top, _SMALLEST_NORMAL >> 23) - 127 - 11):
                known = max(known, float(far.max()), -float(far.min()))
            noise += _power(far)
        return Errors(known, _power(numbers), noise)

    def _exponents(self, part: Floats, memory: tuple[Any, ...]) -> int:
        """Finds the upper halves of numbers and the exponents in them; gives the largest exponent."""
        upper, exponent, *_ = memory
        _upper_halves(part.view(np.uint32), upper)
        np.bitwise_and(upper, _EXPONENT, out=exponent)
        return int(exponent.max()) >> 7

    def _round(self, part: Floats, out: npt.NDArray[np.uint16], memory: tuple[Any, ...]) -> npt.NDArray[np.float32]:
        """Writes what `_exponents` was asked for; gives how far each number is."""
        upper, exponent, smallest, bits, power, near, sums = memory
        np.maximum(exponent, smallest, out=exponent)
        np.bitwise_and(upper, _SIGN, out=upper)
        np.bitwise_or(exponent, upper, out=exponent)
        np.copyto(bits, exponent)
        np.multiply(bits, _EXPONENTS, out=bits)
        np.add(bits, _OFFSETS, out=bits)
        np.add(part, power, out=near)
        np.copyto(out, sums, casting="unsafe")
        np.bitwise_or(out, upper, out=out)
        np.subtract(near, power, out=near)
        np.subtract(near, part, out=near)
        found: npt.NDArray[np.float32] = near
        return found


def _round(part: Floats, out: npt.NDArray[np.uint16], target: str) -> npt.NDArray[np.float32]:
    """Writes `part` as `target` to `out`; returns what was written, as numbers that may be changed."""
    if target == "F16":
        half = out.view("<f2")
        half[...] = part
        return half.astype(np.float32)
    bits = np.ascontiguousarray(part, "<f4").view(np.uint32)
    near = _scratch("near", len(bits), np.uint32)
    np.right_shift(bits, 16, out=near)
    np.bitwise_and(near, 1, out=near)
    np.add(near, 0x7FFF, out=near)
    np.add(near, bits, out=near)
    _upper_halves(near, out)
    np.bitwise_and(near, 0xFFFF0000, out=near)
    written: npt.NDArray[np.float32] = near.view(np.float32)
    return written


def _upper_halves(bits: npt.NDArray[np.uint32], out: npt.NDArray[np.uint16]) -> None:
    """Writes them to `out`: they are the lower ones of what begins with them, which takes half as long as to shift."""
    halves = bits.view(np.uint16)
    np.copyto(out[:-1], halves[1:-1].view(np.uint32), casting="unsafe")
    out[-1] = halves[-1]


def _errors(part: Floats, near: npt.NDArray[np.float32], signal: float | None = None) -> Errors:
    """How far `near`, which is written over, is from `part`, whose power is `signal` if it is known."""
    if not part.size:
        return Errors()
    far = np.subtract(near, part, out=near if part.dtype == near.dtype else None).reshape(-1)
    flat = part.reshape(-1)
    signal, noise = _power(flat) if signal is None else signal, _power(far)
    if not np.isfinite(signal + noise):
        signal, noise = _power(flat.astype(np.float64)), _power(far.astype(np.float64))
    return Errors(float(max(far.max(), -far.min())), signal, noise)


def _power(numbers: Floats) -> float:
    """The sum of the squares of numbers that lie side by side."""
    whole = len(numbers) // _SUMMED * _SUMMED
    rows, rest = numbers[:whole].reshape(-1, _SUMMED), numbers[whole:]
    sums: list[float] = np.matmul(rows[:, None], rows[:, :, None]).ravel().tolist()
    return sum(sums, float(np.dot(rest, rest)) if len(rest) else 0.0)


def _scratch(name: str, count: int, dtype: Any) -> Any:
    """Memory of this thread for `count` elements, the same whenever it asks by this name."""
    size = count * np.dtype(dtype).itemsize
    memory: npt.NDArray[np.uint8] | None = getattr(_spare, name, None)
    if memory is None or len(memory) < size:
        memory = np.frombuffer(pages(size), np.uint8)
        setattr(_spare, name, memory)
    return memory[:size].view(dtype)
