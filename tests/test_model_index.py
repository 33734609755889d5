"""The index of a model: what is written is read again, and every lie is refused by name."""

from __future__ import annotations

import hashlib
import json
import threading
import tracemalloc
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import modelworld
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from builder.models.cuts import cuts
from builder.models.formats import HeaderError
from builder.models.index import MAX_BYTES, encode, parse
from builder.models.scanning import ChangedFileError, model_index, scan
from builder.models.values import BadModelError, FileIndex, Header, LocalModelFile, ModelFile, ModelIndex, Tensor
from builder.oci import spec
from builder.progress import Silent


def document(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(modelworld.small_model(folder).index[1])
    return found


def test_it_is_read_as_it_was_written(tmp_path: Path) -> None:
    local = modelworld.write_files(tmp_path, modelworld.small_files())
    index = model_index(local, None, Silent())
    assert parse(encode(index), "m") == index
    assert encode(ModelIndex(index.files[::-1])) == encode(index)


def test_chunks_are_those_of_the_cuts(tmp_path: Path) -> None:
    local = modelworld.write_files(tmp_path, modelworld.small_files())
    for file in model_index(local, None, Silent()).files:
        data = (tmp_path / file.file.path).read_bytes()
        offsets = cuts(len(data), file.chunk_size, file.header)
        assert file.chunks == tuple(hashlib.sha256(data[begin:end]).hexdigest() for begin, end in pairwise(offsets))


def _set(*path: str | int, to: Any) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        for key in path[:-1]:
            found = found[key]
        found[path[-1]] = to

    return change


def _drop(*path: str | int) -> Callable[[Any], None]:
    def change(found: Any) -> None:
        for key in path[:-1]:
            found = found[key]
        del found[path[-1]]

    return change


BIG, LITTLE = 2, 3
HEX = "0" * 64


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (_set("version", to=2), "its version is 2, not 1"),
        (_set("version", to=True), "its version is True"),
        (_set("more", to=1), "version and files, nothing else"),
        (_set("files", to={}), "files is no list"),
        (_set("files", 0, "path", to="../x"), "leaves the folder"),
        (_set("files", 0, "path", to=1), "path is no text"),
        (_set("files", 0, "path", to="zz"), "not sorted"),
        (_set("files", 1, "path", to="README.md"), "twice"),
        (_set("files", 0, "more", to=1), "nothing else"),
        (_drop("files", 0, "sha256"), "nothing else"),
        (_set("files", 0, "sha256", to="x"), "64 hexadecimal digits"),
        (_set("files", 0, "sha256", to="A" * 64), "64 hexadecimal digits"),
        (_set("files", 0, "size", to=-1), "size is no whole number"),
        (_set("files", 0, "size", to=True), "size is no whole number"),
        (_set("files", 0, "size", to=1 << 62), "too few chunks"),
        (_set("files", 0, "chunkSize", to=1), "chunks of 1 bytes"),
        (_set("files", 0, "chunkSize", to=1 << 30), "chunks of 1073741824 bytes"),
        (_set("files", 0, "chunks", to=[HEX]), "another digest than the file"),
        (_set("files", 0, "chunks", to=[]), "too few chunks"),
        (_set("files", 0, "chunks", to=[HEX, HEX]), "it has 2 chunks"),
        (_set("files", BIG, "chunks", 0, to="x"), "64 hexadecimal digits"),
        (_drop("files", BIG, "chunks", 0), "it has 2 chunks"),
        (_drop("files", BIG, "header"), "it has 3 chunks"),
        (_set("files", BIG, "header", to=None), "format, length, tensors and metadata"),
        (_set("files", BIG, "header", "format", to="pickle"), "a format that is known"),
        (_set("files", BIG, "header", "length", to=1 << 40), "longer than the file"),
        (_set("files", BIG, "header", "metadata", "a", to=1), "metadata is no text"),
        (_set("files", BIG, "header", "tensors", 0, 4, to=1 << 40), "outside of the file"),
        (_set("files", LITTLE, "header", "tensors", 1, 3, to=150), "overlaps another"),
        (_set("files", LITTLE, "header", "tensors", 1, 0, to="norm"), "two tensors of one name"),
        (_set("files", LITTLE, "header", "tensors", 1, 2, to=[1] * 65), "a tensor is"),
        (_set("files", LITTLE, "header", "tensors", 1, 2, to=[-1]), "a dimension"),
        (_set("files", LITTLE, "header", "tensors", 1, to=["x"]), "a tensor is"),
    ],
)
def test_lies(change: Callable[[Any], None], why: str, tmp_path: Path) -> None:
    found = document(tmp_path)
    change(found)
    with pytest.raises(BadModelError, match=f"^m: .*{why}") as raised:
        parse(spec.encode(found), "m")
    assert raised.value.hint


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "Expecting value"),
        (b"[]", "version and files"),
        (b"\xff", "utf-8"),
        (b'{"version":1,"version":1,"files":[]}', "the key version is there twice"),
        (b'{"version":NaN,"files":[]}', "NaN is no whole number"),
        (b'{"version":1.0,"files":[]}', "1.0 is no whole number"),
        (b'{"version":' + b"9" * 5000 + b',"files":[]}', "a number of 5000 digits"),
        (b"[" * 100_000, "recursion"),
        (b" " * (MAX_BYTES + 1), "larger than"),
        (b"," * 4_000_001, "more than 4000000 values"),
        (b'{"version":1,"files":[{"path":"\\ud800"}]}', "nothing else"),
    ],
    ids=range(11),
)
def test_bytes_that_are_no_index(data: bytes, why: str) -> None:
    with pytest.raises(BadModelError, match=why):
        parse(data, "m")


def test_a_huge_claim_costs_no_memory(tmp_path: Path) -> None:
    found = document(tmp_path)
    found["files"][0] |= {"size": (1 << 63) - 1, "chunkSize": 64 << 10}
    data = spec.encode(found)
    tracemalloc.start()
    with pytest.raises(BadModelError, match="too few chunks"):
        parse(data, "m")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.text(max_size=8) | some.just(HEX),
    lambda inner: (
        some.lists(inner, max_size=4)
        | some.dictionaries(some.sampled_from(["path", "size", "sha256", "chunkSize", "chunks", "header"]), inner)
    ),
)


@settings(deadline=None)
@given(some.lists(values, max_size=3) | values)
def test_any_document_is_an_index_or_refused(files: Any) -> None:
    try:
        index = parse(json.dumps({"version": 1, "files": files}).encode(), "m")
    except BadModelError:
        return
    assert parse(encode(index), "m") == index


@settings(deadline=None)
@given(some.binary(max_size=200))
def test_any_bytes(data: bytes) -> None:
    with pytest.raises(BadModelError):
        parse(data, "m")


def test_an_index_that_is_too_large_is_not_written() -> None:
    tensors = tuple(Tensor("x" * 4000 + str(number), "I8", (0,), 10, 10) for number in range(20_000))
    file = FileIndex(ModelFile("a", 10, HEX), 4 << 20, (HEX,), Header("safetensors", 10, tensors))
    with pytest.raises(BadModelError, match=f"{MAX_BYTES} are allowed"):
        encode(ModelIndex((file,)))


def test_a_header_that_lies_is_told_when_it_is_scanned(tmp_path: Path) -> None:
    path = tmp_path / "m.safetensors"
    path.write_bytes(modelworld.safetensors({"a": ("F32", (2,), b"1234")}))
    with pytest.raises(HeaderError, match=r"m\.safetensors: tensor a"):
        scan(path, "m.safetensors")


def test_a_file_that_is_written_to_while_it_is_read(tmp_path: Path) -> None:
    """The writer changes its end when the first chunk was read."""
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(12 << 20))
    begun = threading.Event()

    def advance(_: int) -> None:
        if not begun.is_set():
            begun.set()
            with path.open("r+b") as file:
                file.seek(11 << 20)
                file.write(b"other")

    with pytest.raises(ChangedFileError, match="it changes while it is read"):
        scan(path, "m.bin", advance)


@pytest.mark.parametrize(("size", "why"), [(1 << 20, "it became shorter"), (20 << 20, "it changes")])
def test_a_file_that_changes_its_size_while_it_is_read(size: int, why: str, tmp_path: Path) -> None:
    path = tmp_path / "m.bin"
    path.write_bytes(bytes(12 << 20))

    def advance(_: int) -> None:
        with path.open("r+b") as file:
            file.truncate(size)

    with pytest.raises(ChangedFileError, match=why) as raised:
        scan(path, "m.bin", advance)
    assert str(path) in str(raised.value)


def test_a_file_that_is_gone(tmp_path: Path) -> None:
    local = LocalModelFile(ModelFile("a", 1, HEX), tmp_path / "a")
    with pytest.raises(ChangedFileError, match="a: cannot be read: No such file"):
        model_index([local], None, Silent())
