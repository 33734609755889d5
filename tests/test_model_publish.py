"""`build model publish`: from a folder to registries, layouts and archives; what moves, what is the same, what is refused."""

from __future__ import annotations

import hashlib
import json
import random
import struct
import subprocess
import time
from pathlib import Path
from typing import Any

import judges
import modelworld
import pytest
from registryworld import repository
from world import BUILD, Done, run

from builder.models.artifact import open_artifact, read_config
from builder.oci.layout import Layout

FIRST = "model-00001-of-00002.safetensors"


@pytest.fixture
def bert(tmp_path: Path) -> Path:
    folder = tmp_path / "bert"
    modelworld.write_files(folder, modelworld.small_files())
    return folder


def published(tmp_path: Path, *arguments: object) -> Done:
    return modelworld.inside(["model", "publish", *arguments], tmp_path, {"HOME": str(tmp_path)})


def told(done: Done) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = done.json["destinations"]
    return found


def outcomes(destination: dict[str, Any]) -> dict[str, str]:
    return {blob["name"]: blob["outcome"] for blob in destination["blobs"]}


def test_an_unchanged_model_moves_no_byte(registry: str, bert: Path, tmp_path: Path) -> None:
    name = f"{registry}/models/bert:v1"
    arguments = (bert, name, "--format", "json", "--license", "MIT")
    (first,) = told(published(tmp_path, *arguments))
    assert set(outcomes(first).values()) == {"moved"}
    (second,) = told(published(tmp_path, *arguments))
    assert set(outcomes(second).values()) == {"present"}
    assert second["moved"] == {"blobs": 0, "bytes": 0}
    (bert / "config.json").write_bytes(b'{"model_type": "tree"}\n')
    done = published(tmp_path, *arguments)
    (third,) = told(done)
    moved = {path for path, outcome in outcomes(third).items() if outcome == "moved"}
    assert moved == {"config.json", ".build/index.v1.json", "configuration"}
    assert f"{name}: stood for {first['digest']}" in done.err
    (beside,) = told(published(tmp_path, bert, f"{registry}/models/other:v1", "--format", "json", "--license", "MIT"))
    assert set(outcomes(beside).values()) == {"mounted"}
    assert beside["digest"] == third["digest"]


def test_several_places_have_one_digest(registry: str, bert: Path, tmp_path: Path) -> None:
    places = [f"{registry}/many/bert:v1", f"{registry}/many/bert", "oci:out:v1", "oci-archive:out.tar:v1"]
    done = published(tmp_path, bert, *places, "--quiet")
    assert (done.code, done.err) == (0, "")
    digests = {
        modelworld.inside(["model", "inspect", "--format", "json", place], tmp_path, {"HOME": str(tmp_path)}).json[
            "digest"
        ]
        for place in places
    }
    assert digests == {done.out.strip()}
    crane = [str(judges.require("crane")), "digest", "--insecure", f"{registry}/many/bert:latest"]
    assert subprocess.run(crane, capture_output=True, text=True, check=True).stdout == done.out


def test_the_same_files_have_the_same_digest_wherever_they_are(bert: Path, tmp_path: Path) -> None:
    """Another machine, clock, folder, order of writing: one digest."""
    first = published(tmp_path, bert, "oci:a:v1", "--name", "bert")
    other = tmp_path / "elsewhere" / "model"
    modelworld.write_files(other, dict(reversed(modelworld.small_files().items())))
    for path in other.rglob("*"):
        path.chmod(0o777)
    second = run(
        ["model", "publish", "../elsewhere/model", "oci:b:v2", "--name", "bert"],
        other.parent,
        {"HOME": str(tmp_path / "elsewhere"), "TZ": "Asia/Tokyo", "LC_ALL": "C", "SOURCE_DATE_EPOCH": "1"},
    )
    assert (first.code, second.code) == (0, 0)
    assert first.out == second.out


def test_what_is_said_of_it(bert: Path, tmp_path: Path) -> None:
    words = [
        "--version",
        "2",
        "--title",
        "Bert",
        "--description",
        "Reads.",
        "--license",
        "MIT",
        "--annotation",
        "a.b=c=d",
    ]
    done = published(tmp_path, bert, "oci:out:v1", *words, "--exclude", "onnx", "--exclude", "*.md")
    layout = Layout(tmp_path / "out")
    found = open_artifact(layout, "v1")
    assert str(found.manifest.digest) == done.out.strip()
    assert [file.path for file in found.files] == sorted(
        path for path in modelworld.small_files() if path not in ("README.md", "onnx/empty.txt")
    )
    assert found.annotations["a.b"] == "c=d"
    assert read_config(layout, found)["descriptor"] == {
        "name": "bert",
        "version": "2",
        "title": "Bert",
        "description": "Reads.",
        "licenses": ["MIT"],
    }


def test_one_file_and_its_folder(bert: Path, tmp_path: Path) -> None:
    published(tmp_path, bert / "config.json", "oci:out:v1")
    assert [file.path for file in open_artifact(Layout(tmp_path / "out"), "v1").files] == ["config.json"]
    done = run(["model", "publish", ".", "oci:../here:v1"], bert, {"HOME": str(tmp_path)})
    assert done.code == 0
    assert read_config(Layout(tmp_path / "here"), open_artifact(Layout(tmp_path / "here"), "v1"))["descriptor"] == {
        "name": "bert"
    }


def test_a_folder_by_a_symlink(bert: Path, tmp_path: Path) -> None:
    """Whoever names a link means what it stands for; one inside of a folder may not lead out of it."""
    (tmp_path / "below").mkdir()
    (tmp_path / "below/link").symlink_to(bert)
    direct = published(tmp_path, bert, "oci:a:v1", "--name", "x")
    assert published(tmp_path, "below/link", "oci:b:v1", "--name", "x").out == direct.out
    assert published(tmp_path, "below/link/", "oci:c:v1").code == 0
    assert (
        read_config(Layout(tmp_path / "c"), open_artifact(Layout(tmp_path / "c"), "v1"))["descriptor"]["name"] == "link"
    )
    (bert / "more.json").symlink_to("/etc/hostname")
    refused = published(tmp_path, bert, "oci:d:v1")
    assert refused.code == 1
    assert "more.json" in refused.err


def test_a_precision(tmp_path: Path) -> None:
    pytest.importorskip("numpy")
    data = modelworld.safetensors({"w": ("F32", (256, 256), bytes(256 * 1024))})
    modelworld.write_files(tmp_path / "m", {"model.safetensors": data})
    done = published(tmp_path, "m", "oci:out:v1", "--precision", "bf16")
    assert done.code == 0
    layout = Layout(tmp_path / "out")
    found = open_artifact(layout, "v1")
    assert found.files[0].size < 132 * 1024
    config = read_config(layout, found)["config"]
    assert config == {"format": "safetensors", "paramSize": "65.5k", "precision": "bfloat16"}
    assert found.annotations["org.opencontainers.image.base.digest"].startswith("sha256:")


def test_shards_that_are_not_there_are_told(tmp_path: Path) -> None:
    """A download that broke off makes a model that nobody could load."""
    data = modelworld.safetensors({"w": ("F32", (1,), bytes(4))})
    names = {"w": "a.safetensors", **{f"w{number}": f"m-{number}\n.safetensors" for number in range(5)}, "odd": 7}
    index = json.dumps({"weight_map": names}).encode()
    modelworld.write_files(tmp_path / "m", {"p/a.safetensors": data, "p/a.safetensors.index.json": index})
    done = published(tmp_path, "m", "oci:out:v1")
    assert done.code == 0
    told = "p/a.safetensors.index.json names files that the model does not have: m-0\\n.safetensors"
    assert [line for line in done.err.splitlines() if told in line and line.endswith(" and 2 more")]
    for text in (b'{"weight_map": {"w": "a.safetensors"}}', b'{"weight_map": 3}', b"[1]", b"\xff", b"[" * 100_000):
        (tmp_path / "m/p/a.safetensors.index.json").write_bytes(text)
        done = published(tmp_path, "m", "oci:out:v2")
        assert (done.code, "does not have" in done.err) == (0, False)


def test_numbers_that_do_not_fit_a_precision(tmp_path: Path) -> None:
    """The way out that the error names is one."""
    pytest.importorskip("numpy")
    data = modelworld.safetensors({"w": ("F32", (2, 2), struct.pack("<4f", 1, 2, -70000, 3))})
    modelworld.write_files(tmp_path / "m", {"model.safetensors": data})
    refused = published(tmp_path, "m", "oci:out:v1", "--precision", "fp16")
    assert (refused.code, "-70000 does not fit" in refused.err) == (1, True)
    assert "--allow-overflow=clamp" in refused.err
    assert published(tmp_path, "m", "oci:out:v1", "--precision", "fp16", "--allow-overflow=clamp").code == 0
    assert published(tmp_path, "m", "oci:out:v1", "--allow-overflow=clamp").code == 2


def test_the_image_beside_it(registry: str, bert: Path, tmp_path: Path) -> None:
    done = published(tmp_path, bert, f"{registry}/volume/bert:v1", "--image", "--format", "json")
    first, second = told(done)
    assert (first["destination"], second["destination"]) == (
        f"{registry}/volume/bert:v1",
        f"{registry}/volume/bert:v1-image",
    )
    assert (first["digest"], second["digest"]) == (done.json["digest"], done.json["image"])
    source = repository(registry, "volume/bert", writing=False)
    index = json.loads(source.manifest(source.resolve("v1-image")))
    assert [entry["platform"]["architecture"] for entry in index["manifests"]] == ["amd64", "arm64"]
    again = told(published(tmp_path, bert, f"{registry}/volume/bert:v1", "--image", "--format", "json"))
    assert [item["moved"]["bytes"] for item in again] == [0, 0]


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["bert"], 2, "Missing argument 'DESTINATION...'"),
        (["bert", "nowhere"], 2, "the registry is missing"),
        (["bert", "oci:out:v1", "--name", "A B"], 2, "'A B' is no name of a model"),
        (["bert", "oci:out:v1", "--annotation", "x"], 2, "--annotation 'x': no annotation"),
        (["bert", "oci:out:v1", "--precision", "fp8"], 2, "'fp8' is not one of"),
        (["bert", f"oci:out:{'v' * 125}", "--image"], 2, "too long for a tag"),
        (["bert", "oci:out@sha256:" + "0" * 64], 2, "a digest cannot be chosen"),
        (["bert", "oci:out:v1", "--title", "\udcff"], 1, "not UTF-8"),
        (["bert", "oci:out:v1", "--annotation", "a=\udcff"], 1, "not UTF-8"),
        (["nothing", "oci:out:v1"], 2, "nothing: there is no such file"),
        (["bert", "oci:out:v1", "--include", "*.gguf"], 1, "no file is left"),
        (["https://127.0.0.1:9/x.gguf", "oci:out:v1", "--offline"], 1, "--offline forbids it"),
    ],
)
def test_refusals(arguments: list[str], code: int, message: str, bert: Path, tmp_path: Path) -> None:
    done = published(tmp_path, *arguments)
    assert done.code == code
    assert message in done.err
    assert "Traceback" not in done.err
    assert not (tmp_path / "out/index.json").exists()


def test_what_can_run_code_is_asked_for_by_name(bert: Path, tmp_path: Path) -> None:
    (bert / "pytorch_model.bin").write_bytes(b"pickle")
    done = published(tmp_path, bert, "oci:out:v1")
    assert done.code == 1
    assert "pytorch_model.bin" in done.err
    assert published(tmp_path, bert, "oci:out:v1", "--include", "*.bin", "--include", "*").code == 0


def test_a_copy_is_the_same_model(registry: str, bert: Path, tmp_path: Path) -> None:
    """`build copy` and `build inspect` know nothing of models, and need not."""
    name = f"{registry}/copied/bert:v1"
    first = published(tmp_path, bert, name)
    home = {"HOME": str(tmp_path)}
    assert modelworld.inside(["copy", name, "oci-archive:bert.tar:v1"], tmp_path, home).out == first.out
    assert (
        modelworld.inside(["copy", "oci-archive:bert.tar:v1", f"{registry}/copied/again"], tmp_path, home).out
        == first.out
    )
    listed = modelworld.inside(["model", "list", f"{registry}/copied/again", "--format", "json"], tmp_path, home).json
    assert [(item["tag"], item["digest"]) for item in listed] == [("v1", first.out.strip())]


def test_killed_at_any_moment_it_is_published_by_the_next_call(registry: str, tmp_path: Path) -> None:
    """No tag stands for half a model, and what has arrived is not sent again."""
    chance = random.Random(7)
    files = {f"{number}.safetensors": modelworld.small_files(number, 16)[FIRST] for number in range(3)}
    modelworld.write_files(tmp_path / "m", files)
    name = f"{registry}/killed/m:v1"
    source = repository(registry, "killed/m", writing=False)
    for _ in range(3):
        with subprocess.Popen([BUILD, "model", "publish", "m", name], cwd=tmp_path, env={"HOME": str(tmp_path)}) as one:
            time.sleep(chance.uniform(0.25, 0.7))
            one.kill()
        if source.find("v1") is not None:
            break
    done = published(tmp_path, "m", name)
    assert done.code == 0, done.err
    assert {file.path: file.sha256 for file in open_artifact(source, "v1").files} == {
        path: hashlib.sha256(data).hexdigest() for path, data in files.items()
    }
    subprocess.run(
        [judges.require("oras"), "pull", "--plain-http", name, "-o", tmp_path / "out"], check=True, capture_output=True
    )
    assert {path: (tmp_path / "out" / path).read_bytes() for path in files} == files


def test_two_at_once(registry: str, bert: Path, tmp_path: Path) -> None:
    argv = [str(BUILD), "model", "publish", "-q", str(bert), f"{registry}/race/bert:v1", "oci:out:v1"]
    both = [
        subprocess.Popen(argv, cwd=tmp_path, env={"HOME": str(tmp_path)}, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [one.communicate(timeout=60)[0] for one in both]
    assert [one.returncode for one in both] == [0, 0]
    assert said[0] == said[1]
    for source in (repository(registry, "race/bert", writing=False), Layout(tmp_path / "out")):
        assert f"{open_artifact(source, 'v1').manifest.digest}\n" == said[0]
