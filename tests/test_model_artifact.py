"""Models as artifacts: what they are made of, that they are always the same, and what is refused when they are read."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

import jsonschema
import modelworld
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from registryworld import as_stream

from builder.models.artifact import NotAModelError, encode, open_artifact, read_config, read_index
from builder.models.describe import Description
from builder.models.image import image_of
from builder.models.modelpack import kind
from builder.models.publish import publish
from builder.models.scanning import ChangedFileError, model_index
from builder.models.values import (
    CHUNK_SIZE,
    INDEX_PATH,
    BadModelError,
    FileIndex,
    Header,
    LocalModelFile,
    ModelFile,
    ModelIndex,
    Tensor,
    check_path,
)
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.oci.spec import Descriptor
from builder.places.delivery import Sink
from builder.progress import Silent
from builder.store import Store


def test_the_manifest_is_what_modelpack_says(tmp_path: Path) -> None:
    said = Description(name="small", title="Small", version="1", licenses=("MIT", "Apache-2.0"), base_name="a/b")
    model = modelworld.small_model(tmp_path, said=said)
    manifest = json.loads(model.data)
    assert manifest["artifactType"] == "application/vnd.cncf.model.manifest.v1+json"
    assert manifest["config"]["mediaType"] == "application/vnd.cncf.model.config.v1+json"
    assert manifest["annotations"] == {
        "org.opencontainers.image.base.name": "a/b",
        "org.opencontainers.image.licenses": "MIT AND Apache-2.0",
        "org.opencontainers.image.title": "Small",
        "org.opencontainers.image.version": "1",
    }
    layers = {layer["annotations"]["org.cncf.model.filepath"]: layer for layer in manifest["layers"]}
    prefix = "application/vnd.cncf.model."
    assert {path: layer["mediaType"].removeprefix(prefix) for path, layer in layers.items()} == {
        "README.md": "doc.v1.raw",
        "config.json": "weight.config.v1.raw",
        "model-00001-of-00002.safetensors": "weight.v1.raw",
        "model-00002-of-00002.safetensors": "weight.v1.raw",
        "onnx/empty.txt": "weight.config.v1.raw",
        "tokenizer/tokenizer.json": "weight.config.v1.raw",
        INDEX_PATH: "weight.config.v1.raw",
    }
    for path, layer in layers.items():
        assert layer["annotations"]["org.opencontainers.image.title"] == path
        assert json.loads(layer["annotations"]["org.cncf.model.file.metadata+json"]) == {
            "name": path.rpartition("/")[2],
            "mode": 0o644,
            "uid": 0,
            "gid": 0,
            "size": layer["size"],
            "mtime": "1970-01-01T00:00:00Z",
            "typeflag": 48,
        }
    config = json.loads(model.config[1])
    assert config["config"] == {"format": "safetensors", "paramSize": "1.57m", "precision": "float32"}
    assert config["descriptor"] == {
        "name": "small",
        "title": "Small",
        "version": "1",
        "licenses": ["MIT", "Apache-2.0"],
    }
    assert config["modelfs"] == {"type": "layers", "diffIds": [layer["digest"] for layer in manifest["layers"]]}


_TEXT = {"type": "string"}
_TEXTS = {"type": "array", "items": _TEXT}
SCHEMA = {
    "type": "object",
    "required": ["descriptor", "config", "modelfs"],
    "additionalProperties": False,
    "properties": {
        "descriptor": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                **dict.fromkeys(("family", "docURL", "sourceURL", "version", "revision", "vendor", "title"), _TEXT),
                "createdAt": _TEXT | {"format": "date-time"},
                "name": _TEXT | {"minLength": 1},
                "description": _TEXT,
                "authors": _TEXTS,
                "licenses": _TEXTS,
                "datasetsURL": _TEXTS,
            },
        },
        "config": {
            "type": "object",
            "additionalProperties": False,
            "properties": dict.fromkeys(("architecture", "format", "paramSize", "precision", "quantization"), _TEXT),
        },
        "modelfs": {
            "type": "object",
            "required": ["type", "diffIds"],
            "additionalProperties": False,
            "properties": {"type": {"enum": ["layers"]}, "diffIds": _TEXTS | {"minItems": 1}},
        },
    },
}
"""What the specification allows in a configuration, less what is never written."""


def test_a_configuration_keeps_to_the_schema(tmp_path: Path) -> None:
    words = {
        name: "x" for name in Description.__dataclass_fields__ if name not in ("authors", "licenses", "annotations")
    }
    said = Description(**words | {"created": "2026-01-01T00:00:00Z"}, authors=("a",), licenses=("MIT",))  # type: ignore[arg-type]
    for description in (Description(), said):
        model = modelworld.small_model(tmp_path, said=description)
        jsonschema.validate(json.loads(model.config[1]), SCHEMA)
    told = json.loads(model.config[1])
    assert set(told["descriptor"]) == set(SCHEMA["properties"]["descriptor"]["properties"]) - {"datasetsURL"}  # type: ignore[index]
    assert set(told["config"]) == set(SCHEMA["properties"]["config"]["properties"])  # type: ignore[index]


def test_what_a_gguf_file_says_is_said(tmp_path: Path) -> None:
    header = Header("gguf", 64, (Tensor("a", "Q4_K", (256, 2), 64, 352),), {"general.architecture": "llama"})
    file = FileIndex(ModelFile("m.gguf", 352, "0" * 64), CHUNK_SIZE, ("0" * 64,), header)
    local = LocalModelFile(file.file, tmp_path)
    config = json.loads(encode([local], ModelIndex((file,)), Description()).config[1])
    assert config["config"] == {"format": "gguf", "paramSize": "512", "quantization": "Q4_K"}
    assert config["descriptor"] == {"family": "llama"}


def test_equal_files_make_equal_artifacts(tmp_path: Path) -> None:
    """Wherever the files lie, in whatever order they are named, and whatever the store remembers."""
    store = Store(tmp_path / "store")
    first = modelworld.small_model(tmp_path / "a", store=store)
    local = modelworld.write_files(tmp_path / "b", modelworld.small_files())
    said = Description(version="1", name="small")
    (tmp_path / "b/config.json").chmod(0o755)
    for known in (None, store):
        again = encode(local[::-1], model_index(local[::-1], known, Silent()), said)
        assert (again.data, again.config, again.index) == (first.data, first.config, first.index)
    other = encode(local, model_index(local, None, Silent()), replace(said, version="2"))
    assert other.manifest.digest != first.manifest.digest
    assert other.index == first.index


def test_digests_are_those_of_ever(tmp_path: Path) -> None:
    """Another digest here is another format: what was published once is published again by everybody."""
    model = modelworld.small_model(tmp_path)
    image = image_of(model, None, Silent())
    assert str(model.index[0].digest) == "sha256:1c549548a1b2f997f97ea5ce13876b3ce2fb0930b06c66a8d8fcd42516426fea"
    assert str(model.manifest.digest) == "sha256:0bb3731c3d0997374d63ec6520e3650b55a665feb020aee97390de1fe56430a6"
    assert (
        str(image.index.descriptor.digest) == "sha256:cf71dc704bd287c3df3741b578f57ef922ee281b688c878bcec7284a78da0a40"
    )


def test_what_the_store_remembers_is_not_read_again(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    local = modelworld.write_files(tmp_path / "a", modelworld.small_files())
    index = model_index(local, store, Silent())
    local[2].location.unlink()
    assert model_index(local, store, Silent()) == index
    renamed = LocalModelFile(replace(local[2].file, path="other.safetensors"), local[2].location)
    assert model_index([renamed], store, Silent()).files[0].chunks == index.files[2].chunks


def test_it_is_read_as_it_was_made(tmp_path: Path) -> None:
    model = modelworld.small_model(tmp_path / "files")
    layout = Layout(tmp_path / "layout")
    (first,) = publish(model, [Sink("layout", layout, ("v1",))], Silent())
    assert {outcome.value for _, outcome in first.blobs} == {"moved"}
    (second,) = publish(model, [Sink("layout", layout, ("v2",))], Silent())
    assert {outcome.value for _, outcome in second.blobs} == {"present"}
    for reference in ("v1", "v2", str(model.manifest.digest)):
        found = open_artifact(layout, reference)
        assert found == model.artifact
    index = read_index(layout, found)
    assert index is not None
    assert [file.file for file in index.files] == [local.file for _, local in model.layers]
    assert len(index.files[2].chunks) == 3  # the header, and the tensor in two
    assert read_config(layout, found)["descriptor"]["name"] == "small"


def test_a_users_file_is_never_a_part_of_a_layout(tmp_path: Path) -> None:
    """A hard link would change the layout when the user's file is written to; the store's objects are never changed."""
    store = Store(tmp_path / "store")
    files = modelworld.small_files()
    local = list(modelworld.write_files(tmp_path / "files", files))
    digest = store.put(files["config.json"])
    local[1] = LocalModelFile(local[1].file, store.path(digest))
    model = encode(local, model_index(local, store, Silent()), Description())
    layout = Layout(tmp_path / "layout")
    (told,) = publish(model, [Sink("layout", layout, ("v1",))], Silent(), store=store)
    assert [descriptor.digest for descriptor, outcome in told.blobs if outcome.value == "mounted"] == [digest]
    assert all(file.location.stat().st_nlink == 1 for file in local if file is not local[1])


def test_a_file_that_changed_is_told(tmp_path: Path) -> None:
    model = modelworld.small_model(tmp_path / "files")
    layout = Layout(tmp_path / "layout")
    big = tmp_path / "files/model-00001-of-00002.safetensors"
    data = bytearray(big.read_bytes())
    data[-1] ^= 1
    big.write_bytes(data)
    with pytest.raises(ChangedFileError, match=f"{big}: it is not what it was"):
        publish(model, [Sink("layout", layout, ("v1",))], Silent())
    assert not (layout.root / "index.json").exists()
    with pytest.raises(ChangedFileError, match="its bytes are not those"):
        model_index([local for _, local in model.layers], None, Silent())


def test_nothing_and_clashes_are_refused(tmp_path: Path) -> None:
    with pytest.raises(BadModelError, match="without files"):
        encode([], ModelIndex(()), Description())
    local = modelworld.write_files(tmp_path, {"a": b"1", "b": b"2"})
    twice = [local[0], LocalModelFile(replace(local[1].file, path="A"), local[1].location)]
    with pytest.raises(BadModelError, match="clashes"):
        encode(twice, model_index(twice, None, Silent()), Description())


def test_too_many_files_for_a_manifest(tmp_path: Path) -> None:
    (local,) = modelworld.write_files(tmp_path, {"a": b"1"})
    many = [LocalModelFile(replace(local.file, path=f"{number:09}" * 8), local.location) for number in range(8_000)]
    with pytest.raises(BadModelError, match="registries take 4194304"):
        encode(
            many,
            ModelIndex(tuple(FileIndex(each.file, CHUNK_SIZE, (each.file.sha256,)) for each in many)),
            Description(),
        )


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("model.SafeTensors", "weight"),
        ("onnx/model.onnx", "weight"),
        ("pytorch_model.bin", "weight"),
        ("model.safetensors.index.json", "weight.config"),
        ("tokenizer.model", "weight.config"),
        ("vocab.txt", "weight.config"),
        ("chat_template.jinja", "weight.config"),
        ("LICENSE", "doc"),
        ("LICENSE-MODEL.txt", "doc"),
        ("docs/x.md", "doc"),
        ("modeling.py", "code"),
        ("eval/data.parquet", "dataset"),
    ],
)
def test_kinds_of_files(path: str, expected: str) -> None:
    assert kind(path) == expected


def stored(layout: Layout, document: Any, *blobs: bytes) -> None:
    for data in (b"{}", *blobs):
        descriptor = Descriptor("x/x", Digest.of(data), len(data))
        layout.put_blob(descriptor, lambda data=data: as_stream(data))  # type: ignore[misc]
    manifest = spec.encode(document)
    media_type = document.get("mediaType", spec.MANIFEST)
    layout.put_manifest(Descriptor(media_type, Digest.of(manifest), len(manifest)), manifest, "v1")


def manifest_of(*layers: tuple[str, dict[str, str], bytes], **others: Any) -> dict[str, Any]:
    empty = Descriptor("application/vnd.oci.empty.v1+json", Digest.of(b"{}"), 2)
    listed = [Descriptor(kind, Digest.of(data), len(data), said).document() for kind, said, data in layers]
    return {"schemaVersion": 2, "mediaType": spec.MANIFEST, "config": empty.document(), "layers": listed, **others}


TITLE = "org.opencontainers.image.title"
PATH = "org.cncf.model.filepath"
OCTETS = "application/octet-stream"


def test_a_plain_artifact_is_a_model_too(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    layers: list[tuple[str, dict[str, str], bytes]]
    layers = [(OCTETS, {TITLE: "a/b.bin"}, b"1"), (OCTETS, {}, b"2"), ("text/plain", {TITLE: "t", PATH: "c"}, b"3")]
    stored(layout, manifest_of(*layers), b"1", b"2", b"3")
    found = open_artifact(layout, "v1")
    assert found.files == (
        ModelFile("a/b.bin", 1, Digest.of(b"1").hex),
        ModelFile("c", 1, Digest.of(b"3").hex),
    )
    assert found.index is None
    assert read_index(layout, found) is None
    assert read_config(layout, found) == {}


@pytest.mark.parametrize(
    ("document", "error", "why"),
    [
        (manifest_of((OCTETS, {TITLE: "../x"}, b"1")), BadModelError, r"'\.\./x' cannot be the path"),
        (manifest_of((OCTETS, {PATH: "/x", TITLE: "x"}, b"1")), BadModelError, "absolute"),
        (manifest_of((OCTETS, {TITLE: "x"}, b"1"), (OCTETS, {TITLE: "X"}, b"2")), BadModelError, "clashes"),
        (manifest_of(*[(OCTETS, {TITLE: INDEX_PATH}, b"1")] * 2), BadModelError, "twice"),
        (manifest_of((OCTETS, {TITLE: ".build/other"}, b"1")), BadModelError, "for the index"),
        (manifest_of((OCTETS, {}, b"1")), NotAModelError, "none of its layers has a name"),
        (manifest_of(("application/vnd.cncf.model.weight.v1.tar", {PATH: "x"}, b"1")), NotAModelError, "an archive"),
        (
            manifest_of((OCTETS, {TITLE: "x", "io.deis.oras.content.unpack": "true"}, b"1")),
            NotAModelError,
            "'x' is an archive",
        ),
        (
            {**manifest_of((OCTETS, {TITLE: "x"}, b"1")), "config": Descriptor("x", Digest.of(b"1"), 2).document()},
            BadModelError,
            "two sizes",
        ),
        ({**manifest_of(), "layers": {}}, NotAModelError, "no list of layers"),
        ({**manifest_of(), "layers": [1]}, NotAModelError, "a descriptor needs"),
        ({**manifest_of(), "schemaVersion": 1}, NotAModelError, "schemaVersion"),
        (
            {"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": []},
            NotAModelError,
            "is an index of images",
        ),
        (
            {**manifest_of(), "config": Descriptor(spec.CONFIG, Digest.of(b"{}"), 2).document()},
            NotAModelError,
            "is an image",
        ),
        (
            {**manifest_of(), "config": {"mediaType": "x", "size": -1, "digest": str(Digest.of(b"{}"))}},
            NotAModelError,
            "not the size",
        ),
    ],
)
def test_manifests_that_lie(document: dict[str, Any], error: type[Exception], why: str, tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    stored(layout, document, b"1", b"2")
    with pytest.raises(error, match=why):
        open_artifact(layout, "v1")


def _other_size(found: dict[str, Any]) -> None:
    found["files"][0]["size"] -= 1


def _one_file_less(found: dict[str, Any]) -> None:
    del found["files"][0]


@pytest.mark.parametrize("change", [_other_size, _one_file_less])
def test_an_index_of_other_files(change: Callable[[dict[str, Any]], None], tmp_path: Path) -> None:
    model = modelworld.small_model(tmp_path / "files")
    found = json.loads(model.index[1])
    change(found)
    data = spec.encode(found)
    layers = [(OCTETS, dict(descriptor.annotations), b"") for descriptor, _ in model.layers]
    document = manifest_of(*layers, (OCTETS, {TITLE: INDEX_PATH}, data))
    for layer, (descriptor, _) in zip(document["layers"], model.layers, strict=False):
        layer |= {"digest": str(descriptor.digest), "size": descriptor.size}
    layout = Layout(tmp_path / "layout")
    stored(layout, document, data)
    with pytest.raises(BadModelError, match="other files than the manifest names"):
        read_index(layout, open_artifact(layout, "v1"))


def test_a_configuration_that_lies(tmp_path: Path) -> None:
    layout = Layout(tmp_path)
    deep = b'{"config":' + b"[" * 40 + b"]" * 40 + b"}"
    huge = b"[" + b" " * (9 << 20) + b"]"
    for data, why in ((b"{" * 100_000, "cannot be read"), (huge, "larger than"), (deep, "nested more than 32 deep")):
        document = manifest_of((OCTETS, {TITLE: "x"}, b"1"))
        config = Descriptor("application/vnd.cncf.model.config.v1+json", Digest.of(data), len(data))
        stored(layout, {**document, "config": config.document()}, data, b"1")
        with pytest.raises(BadModelError, match=why):
            read_config(layout, open_artifact(layout, "v1"))


values = some.recursive(
    some.none() | some.booleans() | some.integers() | some.sampled_from(["x", "../x", str(Digest.of(b"")), OCTETS]),
    lambda inner: (
        some.lists(inner, max_size=3)
        | some.dictionaries(some.sampled_from(["mediaType", "digest", "size", "annotations", TITLE, PATH]), inner)
    ),
    max_leaves=12,
)


@settings(deadline=None)
@given(some.dictionaries(some.sampled_from(["config", "layers", "annotations", "artifactType", "manifests"]), values))
def test_any_manifest_is_a_model_or_refused(parts: dict[str, Any]) -> None:
    document = {**manifest_of((OCTETS, {TITLE: "x"}, b"1")), **parts}
    data = json.dumps(document).encode()
    descriptor = Descriptor(spec.MANIFEST, Digest.of(data), len(data))
    try:
        found = open_artifact(Only(descriptor, data), None)
    except BadModelError:
        return
    assert found.files
    for file in found.files:
        check_path(file.path, "m")


@dataclass(frozen=True)
class Only:
    """A source of one manifest."""

    descriptor: Descriptor
    data: bytes

    def resolve(self, reference: str | None) -> Descriptor:
        return self.descriptor

    def find(self, tag: str) -> Descriptor | None:
        return self.descriptor

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self.data

    def blob(self, descriptor: Descriptor) -> AbstractContextManager[BinaryIO]:
        raise NotImplementedError

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        return ()
