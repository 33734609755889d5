"""`build model list`, `inspect` and `diff`: what people and programs are told of published models."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import judges
import modelworld
import pytest
from registryworld import image, push, repository

from builder.models import modelpack
from builder.models.artifact import EncodedModel
from builder.models.compare import ModelSide, compare
from builder.models.describe import Description
from builder.models.index import parse
from builder.models.publish import publish
from builder.oci.layout import Layout
from builder.places.delivery import Sink
from builder.progress import Silent


def second_version() -> dict[str, bytes]:
    """The small model, other at its end: one byte of the large tensor, and the little shard."""
    files = modelworld.small_files()
    big = bytearray(files["model-00001-of-00002.safetensors"])
    big[-1] ^= 1
    little = {"norm": ("F16", (8,), b"1" * 16), "bias": ("F16", (2, 2), b"2" * 8), "new": ("I8", (1,), b"1")}
    files["model-00001-of-00002.safetensors"] = bytes(big)
    files["model-00002-of-00002.safetensors"] = modelworld.safetensors(little)
    files["more.json"] = files.pop("config.json")
    return files


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> tuple[EncodedModel, EncodedModel]:
    folder = tmp_path_factory.mktemp("models")
    first = modelworld.small_model(folder / "1")
    return first, modelworld.small_model(folder / "2", second_version(), Description(name="small", version="2"))


@pytest.fixture(scope="module")
def place(models: tuple[EncodedModel, EncodedModel], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A repository with two models, an image, and a tag that stands for a list of referrers."""
    with judges.registry("docker-registry", tmp_path_factory.mktemp("registry")) as address:
        target = repository(address, "team/models")
        for tag, model in zip(("v1", "v2"), models, strict=True):
            publish(model, [Sink("registry", target, (tag,))], Silent())
        push(target, image(b"a layer"), "an-image")
        push(target, image(b"papers", subject=models[0].manifest))
        yield f"{address}/team/models"


def test_list(place: str, models: tuple[EncodedModel, EncodedModel], tmp_path: Path) -> None:
    done = modelworld.inside(["model", "list", place], tmp_path, {"HOME": str(tmp_path)})
    lines = [line.split() for line in done.out.splitlines()]
    assert [line[0] for line in lines] == ["TAG", "v1", "v2"]
    assert lines[1] == ["v1", models[0].manifest.digest.short, "6.3", "MB", "6", "safetensors", "1.57m", "float32"]
    listed = modelworld.inside(["model", "list", "--format", "json", place], tmp_path, {"HOME": str(tmp_path)}).json
    assert [item["digest"] for item in listed] == [str(model.manifest.digest) for model in models]
    assert listed[0]["indexed"] is True
    (tmp_path / "empty").mkdir()
    nothing = modelworld.inside(["model", "list", "oci:empty"], tmp_path, {"HOME": str(tmp_path)})
    assert (nothing.code, nothing.out, nothing.err) == (0, "", "oci:empty: no models among 0 tags\n")
    nowhere = modelworld.inside(["model", "list", "oci:nowhere"], tmp_path, {"HOME": str(tmp_path)})
    assert (nowhere.code, nowhere.out) == (1, "")
    assert nowhere.err == "error: oci:nowhere: there is no such folder\nhint: publish a model to it first\n"


def test_inspect(place: str, models: tuple[EncodedModel, EncodedModel], tmp_path: Path) -> None:
    done = modelworld.inside(["model", "inspect", "--tensors", f"{place}:v1"], tmp_path, {"HOME": str(tmp_path)})
    assert done.out.startswith(f"{place}:v1  {models[0].manifest.digest}\n")
    for words in (
        ["model-00001-of-00002.safetensors", "6.3", "MB", models[0].layers[2][0].digest.short, "weight", "3", "1"],
        ["embed.weight", "F32", "1536", "x", "1024", "6.3", "MB", "136", "6291592"],
        ["precision:", "float32"],
        ["version:", "1"],
        ["format:", "pt"],
    ):
        assert words in [line.split() for line in done.out.splitlines()]
    found = modelworld.inside(
        ["model", "inspect", "--format", "json", "--tensors", f"{place}:v1"], tmp_path, {"HOME": str(tmp_path)}
    )
    document = found.json
    assert document["files"][3]["tensors"][1] == {
        "name": "bias",
        "dtype": "F32",
        "shape": [2, 2],
        "start": 160,
        "end": 176,
    }
    assert document["files"][2]["parameters"] == 1536 * 1024
    assert document["config"] == json.loads(models[0].config[1])
    plain = modelworld.inside(
        ["model", "inspect", "--format", "json", f"{place}:v1"], tmp_path, {"HOME": str(tmp_path)}
    ).json
    assert "tensors" not in plain["files"][3]


@pytest.mark.parametrize("verb", ["inspect", "diff"])
def test_an_image_is_no_model(verb: str, place: str, tmp_path: Path) -> None:
    names = [f"{place}:an-image"] * (2 if verb == "diff" else 1)
    done = modelworld.inside(["model", verb, *names], tmp_path, {"HOME": str(tmp_path)})
    assert (done.code, done.out) == (1, "")
    assert "has no files: none of its layers has a name\nhint: name a model" in done.err


@pytest.mark.parametrize("arguments", [["inspect"], ["verify"], ["verify", "--quick"], ["diff", "oci:x:v1"]])
def test_a_model_is_no_image(
    arguments: list[str], models: tuple[EncodedModel, EncodedModel], place: str, tmp_path: Path
) -> None:
    words = [place + word.removeprefix("oci:x") if word.startswith("oci:x") else word for word in arguments]
    done = modelworld.inside([*words, f"{place}:v1"], tmp_path, {"HOME": str(tmp_path)})
    assert (done.code, done.out) == (1, "")
    what = "is a model" if arguments == ["inspect"] else f"is an artifact of the type {modelpack.ARTIFACT_TYPE}"
    assert (
        f"{models[0].manifest.digest} {what}, and no image\nhint: look into it with `build model inspect`" in done.err
    )


def test_a_layout_is_no_source_of_a_model(tmp_path: Path) -> None:
    done = modelworld.inside(["model", "publish", "oci:x:v1", "oci:y:v1"], tmp_path, {"HOME": str(tmp_path)})
    assert (done.code, done.out) == (2, "")
    assert "hint: `build model pull oci:x:v1 DIR` makes a folder of a model in a layout; name that\n" in done.err


def test_diff(place: str, tmp_path: Path) -> None:
    done = modelworld.inside(
        ["model", "diff", "--exit-code", f"{place}:v1", f"{place}:v2"], tmp_path, {"HOME": str(tmp_path)}
    )
    assert done.code == 3
    assert done.out.splitlines() == [
        "- config.json  23 B",
        "~ model-00001-of-00002.safetensors  6.3 MB, 2.1 MB of it new",
        "    ~ embed.weight  bytes",
        "~ model-00002-of-00002.safetensors  176 B → 233 B, 233 B of it new",
        "    ~ bias  F32 2 x 2 → F16 2 x 2",
        "    + new  I8 1",
        "    ~ norm  perhaps: its chunk differs",
        "+ more.json  23 B",
        "configuration:",
        '  $.descriptor.version: "1" → "2"',
        "annotations:",
        '  $["org.opencontainers.image.version"]: "1" → "2"',
        "2.1 MB of 6.3 MB are new to whoever has the first",
    ]
    same = modelworld.inside(
        ["model", "diff", "--exit-code", f"{place}:v1", f"{place}:v1"], tmp_path, {"HOME": str(tmp_path)}
    )
    assert (same.code, same.out) == (0, "no difference\n")
    document = modelworld.inside(
        ["model", "diff", "--format", "json", f"{place}:v1", f"{place}:v2"], tmp_path, {"HOME": str(tmp_path)}
    ).json
    assert document["missing"] == 6 * 2**20 - 4 * 2**20 + 233
    assert document["files"][1]["tensors"] == [
        {
            "name": "embed.weight",
            "a": {"dtype": "F32", "shape": [1536, 1024]},
            "b": {"dtype": "F32", "shape": [1536, 1024]},
            "what": ["bytes"],
        }
    ]


def test_what_the_documents_do_not_tell_is_read(place: str, tmp_path: Path) -> None:
    first = {"w": ("F32", (4,), b"1" * 16), "same[0]": ("F16", (2,), b"same"), "other": ("F16", (2,), b"othe")}
    second = {**first, "w": ("F32", (4,), b"2" * 16), "other": ("F16", (2,), b"else")}
    for tag, tensors in (("a", first), ("b", second)):
        model = modelworld.small_model(tmp_path / tag, {"m.safetensors": modelworld.safetensors(tensors)})
        publish(model, [Sink("layout", Layout(tmp_path / "layout"), (tag,))], Silent())
    for options, told in ((), {"w", "same[0]", "other"}), (("--read",), {"w", "other"}):
        done = modelworld.inside(
            ["model", "diff", *options, "oci:layout:a", "oci:layout:b"], tmp_path, {"HOME": str(tmp_path)}
        )
        lines = [line.split() for line in done.out.splitlines() if line.startswith("    ~")]
        assert {line[1] for line in lines} == told
        assert {line[2] for line in lines} == {"bytes" if options else "perhaps:"}


def test_a_renamed_file_is_not_new(models: tuple[EncodedModel, EncodedModel]) -> None:
    """Whoever has its bytes under another name needs none of them."""
    sides = [ModelSide(model.artifact, parse(model.index[1], "m"), {}) for model in models]
    changes = {change.path: change for change in compare(*sides).files}
    assert changes["more.json"].missing == 0
    assert compare(sides[1], sides[0]).missing == 6 * 2**20 - 4 * 2**20 + 176


def test_without_an_index_files_are_compared_as_wholes(models: tuple[EncodedModel, EncodedModel]) -> None:
    sides = [ModelSide(model.artifact, None, {}) for model in models]
    found = compare(*sides)
    assert found.missing == models[1].layers[1][0].size + models[1].layers[2][0].size
    assert all(change.tensors == () for change in found.files)


def test_names_cannot_steer_the_terminal(tmp_path: Path) -> None:
    files = {"m.safetensors": modelworld.safetensors({"\x1b[2J": ("I8", (1,), b"1")}, {"a": "\x1b[31m"})}
    model = modelworld.small_model(tmp_path / "files", files, Description(name="x\x1b[1m"))
    publish(model, [Sink("layout", Layout(tmp_path / "layout"), ("v1",))], Silent())
    done = modelworld.inside(["model", "inspect", "--tensors", "oci:layout"], tmp_path, {"HOME": str(tmp_path)})
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "\\x1b[2J" in done.out


def test_what_cannot_be_a_tag_is_passed_over(tmp_path: Path) -> None:
    model = modelworld.small_model(tmp_path / "files")
    publish(model, [Sink("layout", Layout(tmp_path / "layout"), ("v1",))], Silent())
    path = tmp_path / "layout/index.json"
    index = json.loads(path.read_text())
    for tag in ("\x1b[2J", "../../v2/x", ""):
        index["manifests"].append({**index["manifests"][0], "annotations": {"org.opencontainers.image.ref.name": tag}})
    path.write_text(json.dumps(index))
    done = modelworld.inside(["model", "list", "oci:layout", "--format", "json"], tmp_path, {"HOME": str(tmp_path)})
    assert [item["tag"] for item in done.json] == ["v1"]
