"""Chunks of a model's files: where they begin."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as some

from builder.models.cuts import cuts
from builder.models.values import Header, Tensor


def header(*spans: tuple[int, int]) -> Header:
    tensors = tuple(Tensor(str(number), "U8", (end - start,), start, end) for number, (start, end) in enumerate(spans))
    return Header("safetensors", spans[0][0] if spans else 0, tensors)


def test_without_a_header_chunks_are_a_grid() -> None:
    assert cuts(10, 4, None) == (0, 4, 8, 10)
    assert cuts(8, 4, None) == (0, 4, 8)
    assert cuts(0, 4, None) == (0,)


def test_a_large_tensor_has_chunks_of_its_own() -> None:
    assert cuts(1000, 400, header((10, 110), (110, 120), (120, 130), (130, 1000))) == (0, 10, 110, 130, 530, 930, 1000)


def test_small_tensors_share_chunks() -> None:
    assert cuts(100, 400, header(*((start, start + 10) for start in range(10, 100, 10)))) == (0, 100)


@given(
    some.integers(0, 5000),
    some.integers(1, 600),
    some.lists(some.tuples(some.integers(0, 6000), some.integers(0, 900))),
)
def test_chunks_cover_the_file_and_are_never_too_long(size: int, most: int, spans: list[tuple[int, int]]) -> None:
    found = cuts(size, most, header(*((start, start + length) for start, length in spans)))
    assert (found[0], found[-1]) == (0, size)
    assert all(0 < end - begin <= most for begin, end in pairwise(found))
