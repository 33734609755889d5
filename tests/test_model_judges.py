"""Published models as others see them: oras, crane, skopeo and umoci, with registries that know referrers or do not."""

from __future__ import annotations

import io
import json
import subprocess
import tarfile
from dataclasses import replace
from pathlib import Path

import judges
import modelworld
import pytest
from registryworld import QUICK, repository

from builder.client import Client
from builder.models import image as images
from builder.models.artifact import EncodedModel, open_artifact, read_index
from builder.models.image import image_of, publish_image
from builder.models.publish import publish
from builder.models.scanning import ChangedFileError
from builder.models.values import INDEX_PATH, LocalModelFile
from builder.oci.layout import Layout
from builder.places.delivery import Sink
from builder.places.remote import Remote
from builder.progress import Silent
from builder.registry import Keychain, Reference
from builder.store import Store


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> EncodedModel:
    return modelworld.small_model(tmp_path_factory.mktemp("model"))


def judge(name: str, *arguments: object) -> str:
    argv = [str(judges.require(name)), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def files_below(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_oras_pulls_every_file(registry: str, model: EncodedModel, tmp_path: Path) -> None:
    publish(model, [Sink("registry", repository(registry, "oras/model"), ("v1",))], Silent())
    judge("oras", "pull", "--plain-http", f"{registry}/oras/model:v1", "-o", tmp_path / "out")
    assert files_below(tmp_path / "out") == {**modelworld.small_files(), INDEX_PATH: model.index[1]}
    manifest = json.loads(judge("oras", "manifest", "fetch", "--plain-http", f"{registry}/oras/model:v1"))
    assert manifest == json.loads(model.data)


def test_what_oras_pushes_is_a_model(registry: str, tmp_path: Path) -> None:
    files = modelworld.small_files()
    modelworld.write_files(tmp_path / "files", files)
    argv = [judges.require("oras"), "push", "--plain-http", f"{registry}/pushed/model:v1", *sorted(files)]
    subprocess.run([str(word) for word in argv], cwd=tmp_path / "files", check=True, capture_output=True)
    source = repository(registry, "pushed/model", writing=False)
    found = open_artifact(source, "v1")
    assert {file.path: file.size for file in found.files} == {path: len(data) for path, data in files.items()}
    assert read_index(source, found) is None


def test_skopeo_and_crane_copy_it_unchanged(registry: str, model: EncodedModel, tmp_path: Path) -> None:
    publish(model, [Sink("registry", repository(registry, "copied/model"), ("v1",))], Silent())
    name = f"{registry}/copied/model:v1"
    judge("skopeo", "copy", "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path}/layout:v1")
    judge("crane", "copy", "--insecure", name, f"{registry}/copied/again:v2")
    for source, tag in ((Layout(tmp_path / "layout"), "v1"), (repository(registry, "copied/again"), "v2")):
        assert open_artifact(source, tag) == model.artifact
    layout = Layout(tmp_path / "ours")
    publish(model, [Sink("layout", layout, ("v1",))], Silent())
    judge(
        "skopeo", "copy", "--dest-tls-verify=false", f"oci:{tmp_path}/ours:v1", f"docker://{registry}/skopeo/model:v1"
    )
    assert open_artifact(repository(registry, "skopeo/model"), "v1") == model.artifact


def test_the_image_of_a_model(registry: str, model: EncodedModel, tmp_path: Path) -> None:
    """skopeo takes the layers for the platform, umoci unpacks them: the files lie in /models."""
    image = image_of(model, None, Silent())
    (first,) = publish_image(image, [Sink("registry", repository(registry, "volume/model"), ("v1-image",))], Silent())
    assert {outcome.value for _, outcome in first.blobs} == {"moved"}
    (second,) = publish_image(image, [Sink("registry", repository(registry, "volume/model"), ("v1-image",))], Silent())
    assert {outcome.value for _, outcome in second.blobs} == {"present"}
    for architecture in ("amd64", "arm64"):
        layout = f"oci:{tmp_path}/{architecture}:v1"
        judge(
            *("skopeo", "--override-os=linux", f"--override-arch={architecture}", "copy", "--src-tls-verify=false"),
            *(f"docker://{registry}/volume/model:v1-image", layout),
        )
        config = json.loads(judge("skopeo", "inspect", "--config", layout))
        assert config["architecture"] == architecture
        assert config["config"]["Labels"][images.MODEL_DIGEST] == str(model.manifest.digest)
    bundle = tmp_path / "bundle"
    judge("umoci", "unpack", "--rootless", "--image", f"{tmp_path}/amd64:v1", bundle)
    assert files_below(bundle / "rootfs/models") == modelworld.small_files()


def test_layers_of_the_image(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Large files have layers of their own, whose weights begin after two blocks; of many some share one."""
    monkeypatch.setattr(images, "_OWN_LAYER", 1 << 20)
    model = modelworld.small_model(tmp_path / "files")
    store = Store(tmp_path / "store")
    image = image_of(model, store, Silent())
    assert [[local.file.path for local in group] for _, group in image.layers] == [
        [path for path in modelworld.small_files() if "00001" not in path],
        ["model-00001-of-00002.safetensors"],
    ]
    layout = Layout(tmp_path / "layout")
    publish_image(image, [Sink("layout", layout, ("v1",))], Silent())
    data = layout.path(image.layers[1][0].digest).read_bytes()
    assert data[1024:].startswith(modelworld.small_files()["model-00001-of-00002.safetensors"])
    for descriptor, _ in image.layers:
        with tarfile.open(fileobj=io.BytesIO(layout.path(descriptor.digest).read_bytes())) as tar:
            for member in tar:
                assert (member.uid, member.gid, member.mtime) == (0, 0, 315532800)
                assert member.name.startswith("models")
    again = image_of(model, store, Silent())  # from what the store remembers
    assert again == image == image_of(model, None, Silent())
    local = model.layers[2][1]
    many = [replace(local.file, path=f"{number:03}.safetensors") for number in range(250)]
    groups = images._groups([LocalModelFile(file, local.location) for file in many])
    assert (len(groups), sum(map(len, groups))) == (84, 250)


def test_a_file_that_changed_before_the_image_was_sent(tmp_path: Path) -> None:
    model = modelworld.small_model(tmp_path / "files")
    image = image_of(model, None, Silent())
    (tmp_path / "files/config.json").write_bytes(b'{"model_type": "tree"}\n')
    layout = Layout(tmp_path / "layout")
    with pytest.raises(ChangedFileError, match="it is not what it was"):
        publish_image(image, [Sink("layout", layout, ("v1",))], Silent())
    (tmp_path / "files/config.json").write_bytes(b"{}")
    with pytest.raises(ChangedFileError, match=r"config\.json: .* it ends 21 bytes early"):
        image_of(model, None, Silent())
    assert not (layout.root / "index.json").exists()


@pytest.mark.parametrize("what", ["other bytes", "shorter", "gone"])
def test_a_registry_gets_no_changed_file(what: str, registry: str, tmp_path: Path) -> None:
    """The kernel sends files to registries, unread: what they refuse is looked at, and the file is blamed."""
    model = modelworld.small_model(tmp_path / "files")
    path = tmp_path / "files/model-00001-of-00002.safetensors"
    if what == "gone":
        path.unlink()
    else:
        data = path.read_bytes()
        path.write_bytes(data[:-1] + b"?" if what == "other bytes" else data[:-1])
    place = f"{registry}/changed/{what.replace(' ', '-')}"
    target = Remote(Reference.parse(place), Client(QUICK), Keychain(), writing=True)
    with pytest.raises(ChangedFileError, match=f"{path}: it is not what it was when it was locked"):
        publish(model, [Sink("registry", target, ("v1",))], Silent())
    assert target.find("v1") is None
