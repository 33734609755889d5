"""What the index of a model says of its files is held against their bytes: chunks, and the headers of all formats."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import modelworld
import pytest
import test_model_gguf as a_gguf
import test_model_onnx as an_onnx
from hypothesis import example, given
from hypothesis import strategies as some
from world import Done

from builder.models import index as indexes
from builder.models.formats import HeaderError, gguf, onnx, read_header, reading
from builder.models.scanning import scan
from builder.models.values import INDEX_PATH, FileIndex, Header, ModelFile
from builder.oci.artifact import TITLE
from builder.oci.digest import Digest
from builder.oci.layout import Layout
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


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    """With a model of files of all formats."""
    modelworld.write_files(tmp_path / "files", {name: data for name, data in FILES.items() if name != "m.bin"})
    done = modelworld.inside(["model", "publish", "-q", "files", "oci:out:v1"], tmp_path, {"HOME": str(tmp_path)})
    assert done.code == 0, done.err
    return Layout(tmp_path / "out")


def verified(layout: Layout, *words: str) -> Done:
    folder = layout.path(Digest("0" * 64)).parents[3]
    return modelworld.inside(["model", "verify", *words], folder, {"HOME": str(folder)})


def manifest_of(layout: Layout) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(layout.manifest(layout.resolve("v1")))
    return found


def put(layout: Layout, data: bytes) -> dict[str, Any]:
    digest = Digest.of(data)
    layout.path(digest).write_bytes(data)
    return {"digest": str(digest), "size": len(data)}


def test_a_model_by_itself(layout: Layout) -> None:
    done = verified(layout, "oci:out:v1")
    assert (done.code, done.out.splitlines()[-1]) == (0, "valid: files are what their digests say; its index is true")
    found = verified(layout, "oci:out:v1", "--format", "json").json
    assert (found["verdict"], found["files"], found["indexed"], found["findings"]) == ("valid", 4, True, [])


def test_a_damaged_model_by_itself(layout: Layout) -> None:
    (blob,) = [layer for layer in manifest_of(layout)["layers"] if layer["annotations"][TITLE] == "m.gguf"]
    path = layout.path(Digest.parse(blob["digest"]))
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.unlink()  # it may be a link to the file that was published
    path.write_bytes(data)
    done = verified(layout, "oci:out:v1")
    assert done.code == 3
    assert "model: m.gguf: " in done.out
    assert done.out.splitlines()[-1] == "damaged: 1 finding"
    (finding,) = json.loads(verified(layout, "oci:out:v1", "--format", "json").out)["findings"]
    assert finding["kind"] == "model"


@pytest.mark.parametrize("what", ["configuration", "index", "no index"])
def test_documents_of_a_model_that_lie(what: str, layout: Layout) -> None:
    document = manifest_of(layout)
    if what == "configuration":
        config = json.loads(layout.path(Digest.parse(document["config"]["digest"])).read_bytes())
        config["modelfs"]["diffIds"][0] = "sha256:" + "0" * 64
        document["config"] |= put(layout, json.dumps(config).encode())
    else:
        (entry,) = [layer for layer in document["layers"] if layer["annotations"][TITLE] == INDEX_PATH]
        if what == "index":
            index = json.loads(layout.path(Digest.parse(entry["digest"])).read_bytes())
            next(file for file in index["files"] if file["path"] == "m.onnx")["header"]["metadata"]["k"] = "other"
            entry |= put(layout, json.dumps(index).encode())
        else:
            document["layers"].remove(entry)
    digest = put(layout, json.dumps(document).encode())["digest"]
    done = verified(layout, f"oci:out@{digest}")
    if what == "no index":
        assert (done.code, done.out.splitlines()[-1]) == (0, "valid: files are what their digests say; it has no index")
    elif what == "index":
        assert done.code == 3
        assert "m.onnx: the index has another table of its tensors than its header" in done.out
    else:
        assert done.code == 3
        assert "its configuration has other digests of its files than its manifest" in done.out


def test_what_is_no_model(layout: Layout) -> None:
    digest = put(layout, json.dumps({"schemaVersion": 2, "config": {}, "layers": []}).encode())["digest"]
    done = verified(layout, f"oci:out@{digest}")
    assert done.code == 1
    assert "is no model" in done.err
