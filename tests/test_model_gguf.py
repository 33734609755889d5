"""Headers of GGUF files: read as the library of their makers writes them, and every lie refused by name."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from modelworld import header_of

from builder.models.formats import HeaderError, gguf
from builder.models.values import Header, Tensor

Item = tuple[str, Sequence[int], int, int]


def text(value: str | bytes) -> bytes:
    data = value.encode() if isinstance(value, str) else value
    return struct.pack("<Q", len(data)) + data


def file(
    tensors: Sequence[Item] = (),
    keys: Sequence[bytes] = (),
    data: bytes = b"",
    *,
    head: tuple[bytes, int, int, int] | None = None,
    alignment: int = 32,
) -> bytes:
    """A file of (name, dimensions, type, offset); `keys` are whole entries."""
    magic, version, count, number = head or (b"GGUF", 3, len(tensors), len(keys))
    content = struct.pack("<4sIQQ", magic, version, count, number) + b"".join(keys)
    for name, shape, kind, offset in tensors:
        content += text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)
    return content + bytes(-len(content) % alignment) + data if tensors else content + data


def key(name: str, kind: int, value: bytes) -> bytes:
    return text(name) + struct.pack("<I", kind) + value


def read(folder: Path, content: bytes) -> Header:
    (folder / "m.gguf").write_bytes(content)
    return header_of(folder / "m.gguf")


def test_as_the_library_writes_it(tmp_path: Path) -> None:
    import gguf as library
    import numpy

    path = tmp_path / "m.gguf"
    writer = library.GGUFWriter(path, "llama")
    writer.add_name("small")
    writer.add_uint32("llama.block_count", 2)
    writer.add_float32("llama.eps", 0.5)
    writer.add_bool("flag", True)
    writer.add_token_list(["a", "b", "ü"])
    writer.add_array("numbers", [1, 2, 3])
    arrays: dict[str, Any] = {
        "token_embd.weight": numpy.arange(64 * 96, dtype=numpy.float32).reshape(64, 96),
        "output.weight": numpy.ones((3, 5), dtype=numpy.float16),
        "bias": numpy.arange(7, dtype=numpy.int32),
    }
    for name, array in arrays.items():
        writer.add_tensor(name, array)
    blocks = library.quants.quantize(arrays["token_embd.weight"], library.GGMLQuantizationType.Q8_0)
    writer.add_tensor("quantised", blocks, raw_dtype=library.GGMLQuantizationType.Q8_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()

    header, content = header_of(path), path.read_bytes()
    theirs = library.GGUFReader(path)
    assert [tensor.name for tensor in header.tensors] == [tensor.name for tensor in theirs.tensors]
    for ours, their in zip(header.tensors, theirs.tensors, strict=True):
        assert ours.start == their.data_offset
        assert content[ours.start : ours.end] == their.data.tobytes()
        assert ours.dtype == their.tensor_type.name
        assert ours.shape == tuple(reversed([int(size) for size in their.shape]))
    assert header.length == theirs.data_offset
    assert header.metadata["general.name"] == "small"
    assert header.metadata["llama.block_count"] == "2"
    assert header.metadata["flag"] == "true"
    assert header.metadata["llama.eps"] == "0.5"
    assert "tokenizer.ggml.tokens" not in header.metadata


def test_every_type_of_the_library() -> None:
    from gguf.constants import GGML_QUANT_SIZES

    theirs = {int(kind): (kind.name, *sizes) for kind, sizes in GGML_QUANT_SIZES.items()}
    assert {number: theirs.get(number) for number in gguf.TYPES} == dict(gguf.TYPES)
    assert theirs.keys() <= gguf.TYPES.keys()


def test_order_and_padding(tmp_path: Path) -> None:
    items = [("a", (3,), 0, 0), ("b", (2, 2), 24, 32)]
    for tail in (b"", bytes(28)):
        found = read(tmp_path, file(items, data=bytes(32) + b"abcd" + tail))
        begin = found.length
        assert found.tensors == (
            Tensor("a", "F32", (3,), begin, begin + 12),
            Tensor("b", "I8", (2, 2), begin + 32, begin + 36),
        )


def test_alignment(tmp_path: Path) -> None:
    keys = [key("general.alignment", 4, struct.pack("<I", 64))]
    content = file([("a", (1,), 24, 0), ("b", (1,), 24, 64)], keys, bytes(65), alignment=64)
    assert [tensor.start % 64 for tensor in read(tmp_path, content).tensors] == [0, 0]


A = ("a", (4,), 24, 0)


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (b"", "a head of 24 bytes"),
        (b"GGUF\3\0\0\0", "a head of 24 bytes"),
        (file(head=(b"GGML", 3, 0, 0)), "not a GGUF file"),
        (file(head=(b"GGUF", 1, 0, 0)), "version 1"),
        (file(head=(b"GGUF", 3 << 24, 0, 0)), "version 50331648"),
        (file(head=(b"GGUF", 3, 1 << 40, 0)), "it claims 1099511627776 tensors"),
        (file(head=(b"GGUF", 3, 0, 1 << 40)), "1099511627776 keys"),
        (file(head=(b"GGUF", 3, 0, 1)), "a length of 8 bytes"),
        (file(keys=[struct.pack("<Q", 1 << 62)]), "a key of 4611686018427387904 bytes"),
        (file(keys=[text("k")]), "a type of 4 bytes"),
        (file(keys=[key("", 0, b"\1")]), "the key  is empty"),
        (file(keys=[key("k", 0, b"\1"), key("k", 0, b"\1")]), "the key k is there twice"),
        (file(keys=[key("k", 13, b"")]), "unknown type 13"),
        (file(keys=[key("k", 8, struct.pack("<Q", 1 << 40))]), "a text of 1099511627776 bytes"),
        (file(keys=[key("k", 8, text(b"\xff"))]), "not UTF-8"),
        (file(keys=[key(b"\xff".decode("latin-1"), 8, text(b"a\0b"))]), "holds a NUL"),
        (file(keys=[key("k", 9, struct.pack("<IQ", 4, 1 << 61))]), "a list of"),
        (file(keys=[key("k", 9, struct.pack("<IQ", 8, 1 << 61))]), "a list of"),
        (file(keys=[key("k", 9, struct.pack("<IQ", 9, 1) * 6)]), "lists, 4 deep"),
        (file(keys=[key("k", 9, struct.pack("<IQ", 99, 1))]), "unknown type 99"),
        (file([A], [key("general.alignment", 4, struct.pack("<I", 3))], b"abcd"), "no power of two"),
        (file([A], [key("general.alignment", 4, struct.pack("<I", 0))], b"abcd"), "no power of two"),
        (file([("", (4,), 24, 0)], data=b"abcd"), "without a name"),
        (file([("a", (1,) * 9, 24, 0)], data=b"a"), "9 dimensions"),
        (file([("a", (4,), 4, 0)], data=b"abcd"), "unknown type 4"),
        (file([("a", (4,), 24, 32)], data=bytes(36)), "lies at 32, the one before it ends at 0"),
        (file([A, ("b", (4,), 24, 0)], data=bytes(36)), "tensor b lies at 0, the one before it ends at 32"),
        (file([A, ("b", (4,), 24, 64)], data=bytes(68)), "tensor b lies at 64"),
        (file([A, ("a", (4,), 24, 32)], data=bytes(36)), "two tensors have one name"),
        (file([("a", (5,), 24, 0)], data=b"abcd"), "the file ends 1 bytes early"),
        (file([A], data=bytes(33)), "29 bytes that belong to no tensor"),
        (file(data=b"x"), "1 bytes that belong to no tensor"),
        (file([("a", (33,), 8, 0)], data=bytes(68)), "rows of 33 numbers are no whole blocks of 32"),
        (file([("a", (1 << 40, 1 << 40), 24, 0)]), "more elements than can be counted"),
        (file([("a", (1 << 40, 1 << 40, 0), 24, 0)]), "more elements than can be counted"),
    ],
)
def test_lies(tmp_path: Path, content: bytes, why: str) -> None:
    with pytest.raises(HeaderError, match=f"^m.gguf: .*{why}") as caught:
        read(tmp_path, content)
    assert len(str(caught.value)) < 500


GOOD = file(
    [A, ("b", (32,), 8, 32)],
    [key("k", 8, text("v")), key("l", 9, struct.pack("<IQ", 8, 1) + text("t")), key("n", 6, bytes(4))],
    bytes(66),
)


@settings(max_examples=400, deadline=None)
@given(st.integers(0, len(GOOD) - 1), st.binary(min_size=1, max_size=9))
def test_damaged(tmp_path_factory: Any, at: int, bytes_: bytes) -> None:
    content = bytearray(GOOD)
    content[at : at + len(bytes_)] = bytes_
    never_crashes(tmp_path_factory, bytes(content))


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=200))
def test_anything(tmp_path_factory: Any, data: bytes) -> None:
    never_crashes(tmp_path_factory, struct.pack("<4sIQQ", b"GGUF", 3, 1, 1) + data)


def never_crashes(factory: Any, content: bytes) -> None:
    try:
        found = read(factory.getbasetemp(), content)
    except HeaderError:
        return
    assert all(found.length <= tensor.start <= tensor.end <= len(content) for tensor in found.tensors)
