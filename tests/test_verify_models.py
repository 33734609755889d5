"""What the index of a model says of its files is held against their bytes: chunks, and the headers of all formats."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

import modelworld
import pytest
import test_model_gguf as a_gguf
import test_model_onnx as an_onnx
from hypothesis import example, given
from hypothesis import strategies as some

from builder.models import index as indexes
from builder.models.formats import HeaderError, gguf, onnx, read_header, reading
from builder.models.scanning import scan
from builder.models.values import FileIndex, Header, ModelFile
from builder.verify.models import _file

FILES = {
    "m.safetensors": modelworld.safetensors({"a": ("U8", (3, 4), bytes(12)), "b": ("U8", (9,), bytes(9))}, {"k": "v"}),
    "m.gguf": a_gguf.file(
        [("a", (4, 3), 0, 0), ("b", (8,), 0, 64)], [a_gguf.key("k", 4, b"\1\0\0\0")], bytes(48) + bytes(16) + bytes(32)
    ),
    "m.onnx": an_onnx.model(an_onnx.weight(b"a", 2, (2, 2)), an_onnx.weight(b"b")) + an_onnx.field(6, b"x" * 300_000),
    "m.bin": b"no format",
    "empty.txt": b"",
}
FORMATS = [name for name in FILES if name.startswith("m.") and name != "m.bin"]


def index_of(folder: Path, name: str, data: bytes) -> FileIndex:
    """As whoever reads a published index has it."""
    (folder / name).write_bytes(data)
    return indexes.file_index(json.loads(json.dumps(indexes.document(scan(folder / name, name)))))


def said(data: bytes, index: FileIndex) -> str | None:
    passed: list[int] = []
    found = _file(io.BytesIO(data), index, passed.append)
    assert sum(passed) == len(data), "all of it has to be read, since its end is checked"
    return found


@pytest.mark.parametrize("name", FILES)
def test_what_is_true_is_found_to_be(name: str, tmp_path: Path) -> None:
    assert said(FILES[name], index_of(tmp_path, name, FILES[name])) is None


LIES: dict[str, Callable[[Header], Header]] = {
    "name": lambda header: replace(header, tensors=(replace(header.tensors[0], name="x"), *header.tensors[1:])),
    "shape": lambda header: replace(
        header, tensors=(replace(header.tensors[0], shape=(*header.tensors[0].shape[::-1], 1)), *header.tensors[1:])
    ),
    "dtype": lambda header: replace(header, tensors=(replace(header.tensors[0], dtype="I8"), *header.tensors[1:])),
    "left out": lambda header: replace(header, tensors=header.tensors[1:]),
    "metadata": lambda header: replace(header, metadata={**header.metadata, "license": "other"}),
}


@pytest.mark.parametrize("lie", LIES)
@pytest.mark.parametrize("name", FORMATS)
def test_a_header_that_is_another_in_the_index(name: str, lie: str, tmp_path: Path) -> None:
    index = index_of(tmp_path, name, FILES[name])
    assert index.header is not None
    wrong = LIES[lie](index.header)
    assert (
        said(FILES[name], replace(index, header=wrong)) == "the index has another table of its tensors than its header"
    )


@pytest.mark.parametrize("name", FORMATS)
def test_a_chunk_that_is_another_in_the_index(name: str, tmp_path: Path) -> None:
    index = index_of(tmp_path, name, FILES[name])
    wrong = replace(index, chunks=(*index.chunks[:-1], "0" * 64))
    assert "the index has another digest of the bytes from" in str(said(FILES[name], wrong))


def test_a_header_that_is_longer_than_the_index_says_is_not_read(tmp_path: Path) -> None:
    """A hundred megabytes of JSON, say."""
    index = index_of(tmp_path, "m.safetensors", FILES["m.safetensors"])
    data = (90_000_000).to_bytes(8, "little") + bytes(90_000_100)
    index = replace(index, file=ModelFile("m.safetensors", len(data), "0" * 64), chunk_size=1 << 30, chunks=("0" * 64,))

    class Counted(io.BytesIO):
        most = 0

        def read(self, size: int | None = -1) -> bytes:
            self.most = max(self.most, size or 0)
            return super().read(size)

    stream = Counted(data)
    assert _file(stream, index, lambda _: None)
    assert stream.most <= 1 << 20


@pytest.mark.parametrize("name", FORMATS)
@given(data=some.binary(max_size=400), cut=some.integers(0, 200), at=some.integers(0, 120))
@example(data=b"", cut=0, at=0)
def test_any_bytes_under_any_index(
    name: str, data: bytes, cut: int, at: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """There is an answer, and all was read."""
    true = FILES[name][:400]
    changed = (true[:at] + data + true[at + cut :])[:400]
    index = index_of(tmp_path_factory.getbasetemp(), name, FILES[name])
    told = replace(
        index, file=ModelFile(name, len(changed), "0" * 64), chunk_size=1 << 20, chunks=("0" * 64,) if changed else ()
    )
    found = said(changed, replace(told, header=replace(told.header, tensors=()) if told.header else None))
    assert found is None or found


def test_names_have_a_limit_together(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A file cannot ask for as much memory as it has names."""
    monkeypatch.setattr(reading, "_MAX_KEPT", 100)
    many = [a_gguf.key(f"key{number}" * 4, 4, b"\1\0\0\0") for number in range(8)]
    for path, content in (
        ("k.gguf", a_gguf.file([("a", (4,), 0, 0)], many, bytes(16))),
        ("t.gguf", a_gguf.file([("t" * 60, (4,), 0, 0), ("u" * 60, (4,), 0, 32)], (), bytes(48))),
        ("m.onnx", an_onnx.model(an_onnx.weight(b"a" * 60), an_onnx.weight(b"b" * 60))),
    ):
        (tmp_path / path).write_bytes(content)
        with pytest.raises(HeaderError, match="names of more than"):
            read_header(tmp_path / path, path)


@pytest.mark.parametrize(("name", "read"), [("m.gguf", gguf.read), ("m.onnx", onnx.read)])
def test_headers_are_read_forward_only(name: str, read: Callable[[BinaryIO, int, str], Header], tmp_path: Path) -> None:
    class Forward(io.BytesIO):
        def seek(self, offset: int, whence: int = 0) -> int:
            assert whence == 0
            assert offset >= self.tell()
            return super().seek(offset)

    assert read(Forward(FILES[name]), len(FILES[name]), name) == index_of(tmp_path, name, FILES[name]).header
