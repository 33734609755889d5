"""Headers of safetensors files: read as the library reads them, and every lie refused by name."""

from __future__ import annotations

import json
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.models.formats import HeaderError, safetensors
from builder.models.values import Tensor


def _file(header: bytes | dict[str, Any], data: bytes = b"") -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + data


def _item(dtype: str, shape: list[int], start: int, end: int) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [start, end]}


def _read(folder: Path, content: bytes) -> Any:
    path = folder / "m.safetensors"
    path.write_bytes(content)
    return safetensors.read_header(path)


def test_as_the_library_writes_it(tmp_path: Path) -> None:
    import numpy
    import safetensors.numpy as library

    arrays: dict[str, Any] = {
        "b": numpy.arange(12, dtype=numpy.float32).reshape(3, 4),
        "a": numpy.ones((2, 0, 5), dtype=numpy.float16),
        "scalar": numpy.array(7, dtype=numpy.int64),
        "c": numpy.array([True, False, True]),
    }
    path = tmp_path / "m.safetensors"
    library.save_file(arrays, path, metadata={"format": "pt"})
    header, content = safetensors.read_header(path), path.read_bytes()
    assert header.metadata == {"format": "pt"}
    assert {tensor.name: tensor.shape for tensor in header.tensors} == {name: a.shape for name, a in arrays.items()}
    for tensor in header.tensors:
        assert content[tensor.start : tensor.end] == arrays[tensor.name].tobytes()
    assert header.length == min(tensor.start for tensor in header.tensors)


def test_order_is_that_of_the_bytes(tmp_path: Path) -> None:
    header = {"b": _item("U8", [2], 0, 2), "e": _item("F32", [0], 2, 2), "a": _item("F4", [2], 2, 3)}
    found = _read(tmp_path, _file(header, b"abc"))
    begin = found.length
    assert found.tensors == (
        Tensor("b", "U8", (2,), begin, begin + 2),
        Tensor("e", "F32", (0,), begin + 2, begin + 2),
        Tensor("a", "F4", (2,), begin + 2, begin + 3),
    )


@pytest.mark.parametrize("spaces", [0, 1, 7])
def test_padding(tmp_path: Path, spaces: int) -> None:
    text = json.dumps({"a": _item("U8", [1], 0, 1)}).encode() + b" " * spaces
    assert len(_read(tmp_path, _file(text, b"x")).tensors) == 1


_GOOD = b'{"a":{"dtype":"U8","shape":[1],"data_offsets":[0,1]}}'


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "too few"),
        (b"\2\0\0\0\0\0\0\0", "too few"),
        (struct.pack("<Q", 100_000_001) + b"{}", "allows 100000000"),
        (struct.pack("<Q", 1 << 63) + b"{}", "allows 100000000"),
        (struct.pack("<Q", 3) + b"{}", "claims 3 bytes, the file has 2"),
        (struct.pack("<Q", 0) + b"{}", "claims 0 bytes"),
        (_file(b"[]"), "does not begin"),
        (_file(b" {}"), "does not begin"),
        (_file(b"{}{}"), "Extra data"),
        (_file(b'{"a'), "cannot be read"),
        (_file(b'{"\xff":1}'), "utf-8"),
        (_file(b'{"a":' + b"[" * 100_000), "cannot be read"),
        (_file(b'{"a":[' + b"0," * 1_000_001), "more than 1000000 values"),
        (_file(b'{"a":NaN}'), "'?NaN is no whole number"),
        (_file(b'{"a":-Infinity}'), "Infinity is no whole number"),
        (_file(b'{"a":1.5}'), "1.5 is no whole number"),
        (_file(b'{"a":' + b"9" * 50 + b"}"), "a number of 50 digits"),
        (_file(_GOOD[:-1] + b"," + _GOOD[1:], b"x"), "the key a is there twice"),
        (_file(_GOOD.replace(b'"shape"', b'"dtype":"U8","shape"'), b"x"), "dtype is there twice"),
        (_file(b'{"a":1}'), "nothing else"),
        (_file(b'{"a":{"dtype":"U8","shape":[1]}}', b"x"), "nothing else"),
        (_file(_GOOD.replace(b"]}", b'],"x":1}'), b"x"), "nothing else"),
        (_file(b'{"__metadata__":{"a":1}}'), "__metadata__ is to be text"),
        (_file(b'{"__metadata__":[]}'), "__metadata__ is to be text"),
        (_file(b'{"__metadata__":{"a":"\\ud800"}}'), "surrogate"),
        (_file({"": _item("U8", [1], 0, 1)}, b"x"), "1 to 4096 characters"),
        (_file({"n" * 4097: _item("U8", [1], 0, 1)}, b"x"), "1 to 4096 characters"),
        (_file({"a": _item("U9", [1], 0, 1)}, b"x"), "unknown dtype U9"),
        (_file({"a": {**_item("U8", [1], 0, 1), "dtype": ["U8"]}}, b"x"), "unknown dtype"),
        (_file({"a": _item("U8", [-1], 0, 1)}, b"x"), "whole numbers from 0"),
        (_file({"a": _item("U8", [True], 0, 1)}, b"x"), "whole numbers from 0"),
        (_file({"a": {**_item("U8", [1], 0, 1), "data_offsets": [0, 1, 2]}}, b"x"), "two of them"),
        (_file({"a": _item("U8", [1], 1, 0)}, b"x"), "before it begins"),
        (_file({"a": _item("F32", [1], 0, 3)}, b"xyz"), "it has 3 bytes, F32 of shape .1. has 4"),
        (_file({"a": _item("F4", [3], 0, 1)}, b"x"), "no whole bytes"),
        (_file({"a": _item("U8", [1 << 62, 1 << 62], 0, 1)}, b"x"), "more elements than can be counted"),
        (_file({"a": _item("U8", [1 << 62, 4, 0], 0, 0)}), "more elements than can be counted"),
        (_file({"a": _item("U8", [1] * 65, 0, 1)}, b"x"), "65 dimensions"),
        (_file({"a": _item("U8", [2], 0, 2), "b": _item("U8", [2], 1, 3)}, b"xyz"), "tensor b overlaps"),
        (_file({"a": _item("U8", [2], 0, 2), "b": _item("U8", [2], 0, 2)}, b"xy"), "tensor b overlaps"),
        (_file({"a": _item("U8", [1], 0, 1), "b": _item("U8", [1], 2, 3)}, b"xyz"), "tensor b leaves a gap of 1"),
        (_file({"a": _item("U8", [1], 1, 2)}, b"xy"), "tensor a leaves a gap"),
        (_file({"a": _item("U8", [2], 0, 2)}, b"x"), "the file ends 1 bytes early"),
        (_file({"a": _item("U8", [1], 0, 1)}, b"xyz"), "2 bytes belong to no tensor"),
        (_file({}, b"x"), "1 bytes belong to no tensor"),
        (_file({"a\x1b[31m": _item("U8", [3], 0, 1)}, b"x"), r"tensor a\\x1b"),
    ],
)
def test_lies(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(HeaderError, match=f"^m.safetensors: .*{why}") as caught:
        _read(tmp_path, content)
    assert len(str(caught.value)) < 500
    assert str(caught.value).isprintable()


def test_a_claimed_header_is_not_read_before_it_is_believed(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    with path.open("wb") as file:
        file.write(struct.pack("<Q", 99_000_000) + b"{" + b"[" * 1000)
        file.truncate(100_000_000)
    tracemalloc.start()
    with pytest.raises(HeaderError):
        safetensors.read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 250_000_000


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 200), st.binary(min_size=1, max_size=4))
def test_damaged(at: int, bytes_: bytes) -> None:
    header = {"__metadata__": {"k": "v"}, "a": _item("F16", [2, 2], 0, 8), "b": _item("I8", [3], 8, 11)}
    content = bytearray(_file(header, b"x" * 11))
    at %= len(content)
    content[at : at + len(bytes_)] = bytes_
    _never_crashes(bytes(content))


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=200))
def test_anything(text: bytes) -> None:
    _never_crashes(_file(b"{" + text, b"xy"))


def _never_crashes(content: bytes) -> None:
    try:
        length = safetensors.header_length(content[:8], len(content), "m")
        found = safetensors.parse(content[8:length], len(content), "m")
    except HeaderError:
        return
    assert all(length <= tensor.start <= tensor.end <= len(content) for tensor in found.tensors)
