"""What is in ONNX files: as the library of their makers reads it, and every lie refused by name."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelworld import header_of

from builder.models.formats import HeaderError, onnx
from builder.models.values import Header

VARINT, FIXED64, BYTES, FIXED32 = 0, 1, 2, 5


def varint(value: int) -> bytes:
    data = bytearray()
    while value > 0x7F:
        data.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*data, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | BYTES) + varint(len(value)) + value


def weight(name: bytes = b"w", kind: int = 2, shape: tuple[int, ...] = (4,), raw: bytes | None = b"abcd") -> bytes:
    data = b"".join(field(1, size) for size in shape) + field(2, kind) + field(8, name)
    return data + (field(9, raw) if raw is not None else b"")


def model(*weights: bytes, graph: bytes | None = None, head: bytes = field(1, 8)) -> bytes:
    inner = graph if graph is not None else b"".join(field(5, item) for item in weights)
    return head + field(2, b"maker") + field(7, inner)


def external(location: bytes) -> bytes:
    return weight(raw=None) + field(13, field(1, b"location") + field(2, location)) + field(14, 1)


def read(folder: Path, content: bytes) -> Header:
    (folder / "m.onnx").write_bytes(content)
    return header_of(folder / "m.onnx")


def test_as_the_library_writes_it(tmp_path: Path) -> None:
    import numpy
    import onnx as library
    from onnx import helper, numpy_helper

    arrays: dict[str, Any] = {
        "a": numpy.arange(12, dtype=numpy.float32).reshape(3, 4),
        "b": numpy.array(5, dtype=numpy.int64),
        "c": numpy.ones((2, 0), dtype=numpy.float16),
        "d": numpy.array([True, False]),
    }
    tensors = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    typed = helper.make_tensor("typed", library.TensorProto.FLOAT, [2], [1.0, 2.0])
    nodes = [helper.make_node("Identity", ["a"], ["y"])]
    output = helper.make_tensor_value_info("y", library.TensorProto.FLOAT, [3, 4])
    graph = helper.make_graph(nodes, "g", [], [output], [*tensors, typed])
    made = helper.make_model(graph, producer_name="test", producer_version="1")
    path = tmp_path / "m.onnx"
    library.save(made, path)
    header, content = header_of(path), path.read_bytes()
    assert {tensor.name for tensor in header.tensors} == arrays.keys()
    for tensor in header.tensors:
        assert tensor.shape == arrays[tensor.name].shape
        assert content[tensor.start : tensor.end] == arrays[tensor.name].tobytes()
    assert [tensor.start for tensor in header.tensors] == sorted(tensor.start for tensor in header.tensors)
    assert {tensor.name: tensor.dtype for tensor in header.tensors} == {
        "a": "FLOAT",
        "b": "INT64",
        "c": "FLOAT16",
        "d": "BOOL",
    }
    assert header.metadata["producer_name"] == "test"

    library.save(made, tmp_path / "e.onnx", save_as_external_data=True, location="e.data", size_threshold=0)
    outside = header_of(tmp_path / "e.onnx")
    assert outside.metadata["external_data"] == "e.data"
    assert {tensor.name for tensor in outside.tensors}.isdisjoint({"a"})


def test_every_type_of_the_library() -> None:
    import onnx as library

    theirs = {number: name for name, number in library.TensorProto.DataType.items() if number}
    assert {number: name for number, (name, _) in onnx.TYPES.items()}.items() >= theirs.items()


def test_packed_and_plain_shapes(tmp_path: Path) -> None:
    packed = field(1, varint(2) + varint(2)) + field(2, 2) + field(8, b"w") + field(9, b"abcd")
    assert read(tmp_path, model(packed)).tensors[0].shape == (2, 2)
    assert read(tmp_path, model(weight(kind=22, shape=(3,), raw=b"ab"))).tensors[0].dtype == "INT4"


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "it has no graph"),
        (field(1, 8), "it has no graph"),
        (field(7, b""), "no graph, or no version"),
        (b"\x80\x04\x95pickle", "wire type|number|bytes|field"),
        (b"PK\x03\x04", "bytes|field|number"),
        (model() + field(7, b""), "graph is there twice"),
        (field(1, 8) + field(7, 1), "its graph is no message"),
        (b"\x0b\x00", "wire type 3"),
        (b"\x00\x00", "field of the number 0"),
        (b"\xff" * 11, "more than 64 bits"),
        (field(1, 8) + b"\x3a\xff\x01", "a field of 255 bytes, what holds it has 0 more"),
        (model(graph=b"\x2a\x05abc"), "a field of 5 bytes, what holds it has 3 more"),
        (model(graph=b"\x09"), "a number of 8 bytes, the file has 0 more"),
        (model(graph=b"\x09") + field(2, b"12345678"), "reaches beyond what holds it"),
        (model(weight(kind=0)), "unknown type 0"),
        (model(weight(kind=99)), "unknown type 99"),
        (model(weight(), weight()), "the weight w is there twice"),
        (model(weight(raw=b"abc")), "has 3 bytes, UINT8 of shape"),
        (model(weight(raw=b"abcde")), "has 5 bytes"),
        (model(weight(kind=8)), "STRING of shape"),
        (model(weight(shape=(1 << 40, 1 << 40))), "more elements than can be counted"),
        (model(weight(shape=(1 << 63, 0))), "more elements than can be counted"),
        (model(weight(shape=(1,) * 65, raw=b"a")), "more than 64 dimensions"),
        (model(field(1, b"\xff") + weight()), "beyond its list|dimension"),
        (model(weight(name=b"\xff")), "not UTF-8"),
        (model(weight(name=b"n" * 70_000)), "70000 bytes, 65536 are allowed"),
        (model(external(b"../../etc/passwd")), "leaves the folder"),
        (model(external(b"/etc/passwd")), "absolute"),
        (model(external(b"C:\\x")), "it has"),
        (model(external(b"")), "it is empty"),
    ],
)
def test_lies(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(HeaderError, match=rf"^m\.onnx: .*({why})") as caught:
        read(tmp_path, content)
    assert len(str(caught.value)) < 500


GOOD = model(weight(), weight(b"x", 1, (2, 2), bytes(16)), external(b"w.data"))


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=6))
def test_damaged(tmp_path_factory: Any, at: int, bytes_: bytes) -> None:
    content = bytearray(GOOD)
    content[at : at + len(bytes_)] = bytes_
    never_crashes(tmp_path_factory, bytes(content))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=120))
def test_anything(tmp_path_factory: Any, data: bytes) -> None:
    never_crashes(tmp_path_factory, model(graph=field(5, data)))
    never_crashes(tmp_path_factory, data)


def never_crashes(factory: Any, content: bytes) -> None:
    try:
        found = read(factory.getbasetemp(), content)
    except HeaderError:
        return
    assert all(0 <= tensor.start <= tensor.end <= len(content) for tensor in found.tensors)
