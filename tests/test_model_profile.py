"""Models of a profile: locked, published beside the image, known to it and knowing it, copied and verified with it."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import faultserver
import judges
import pytest
from layouts import Layout
from modelworld import inside, safetensors, small_files, write_files
from world import Done, World

from builder.oci.artifact import TITLE
from builder.oci.companions import MAX_MODELS, MODEL, models
from builder.oci.digest import Digest
from builder.store import Store

TITLES = ("README.md", "config.json", "model-00001-of-00002.safetensors", "tokenizer/tokenizer.json")
PROFILE = """\
profile: 1
name: app
files: [{from: app.txt, to: /app.txt}]
models:
  - {name: weights, from: model, exclude: ["*.txt"]}
"""


@pytest.fixture(scope="module")
def one_registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with judges.registry("docker-registry", tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def environment(world: World, tmp_path: Path) -> dict[str, str]:
    return world.environment(tmp_path / "cache")


@pytest.fixture
def profile(tmp_path: Path) -> Path:
    return project(tmp_path / "project")


def project(root: Path, text: str = PROFILE) -> Path:
    root.mkdir()
    write_files(root / "model", small_files())
    (root / "app.txt").write_text("hello\n")
    (root / "app.yaml").write_text(text)
    return root / "app.yaml"


def build(profile: Path, environment: dict[str, str], *arguments: object) -> Done:
    done = inside(arguments, profile.parent, environment)
    assert "Traceback" not in done.err
    return done


def lock_of(profile: Path) -> Any:
    return json.loads(profile.with_suffix(".lock.json").read_text())


def model_of(profile: Path) -> str:
    return str(lock_of(profile)["models"][0]["manifest"])


def judge(name: str, *arguments: object, cwd: Path | None = None) -> str:
    argv = [str(judges.require(name)), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300, cwd=cwd)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def tags_of(layout: Path) -> dict[str, str]:
    entries = json.loads((layout / "index.json").read_text())["manifests"]
    name = "org.opencontainers.image.ref.name"
    return {entry["annotations"][name]: entry["digest"] for entry in entries if name in entry.get("annotations", {})}


def moved(done: Done) -> dict[str, str]:
    """What came to the first destination, and was not there before: names and sizes."""
    return {
        blob["name"]: blob["size"] for blob in done.json["destinations"][0]["blobs"] if blob["outcome"] != "present"
    }


def test_oras_pulls_it_and_image_and_model_know_each_other(
    registry: str, profile: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    reference = f"{registry}/{tmp_path.name}"
    digest = build(profile, environment, "publish", "-q", profile, f"{reference}:v1").digest
    model = model_of(profile)
    short = model.removeprefix("sha256:")[:12]
    for tag in ("model-weights", f"model-weights-{short}"):
        found = judge("oras", "resolve", "--plain-http", f"{reference}:{tag}").strip()
        assert found == model
    judge("oras", "pull", "--plain-http", f"{reference}:model-weights", "-o", tmp_path / "pulled")
    wanted = {path: data for path, data in small_files().items() if not path.endswith(".txt")}
    pulled = {
        str(path.relative_to(tmp_path / "pulled")): path for path in (tmp_path / "pulled").rglob("*") if path.is_file()
    }
    assert {name: path.read_bytes() for name, path in pulled.items() if name in wanted} == wanted
    assert set(pulled) - set(wanted) == {".build/index.v1.json"}

    index = json.loads(judge("oras", "manifest", "fetch", "--plain-http", f"{reference}@{digest}"))
    manifest = json.loads(
        judge("oras", "manifest", "fetch", "--plain-http", f"{reference}@{index['manifests'][0]['digest']}")
    )
    assert manifest["annotations"]["vnd.layerwright.model.weights"] == model
    referrers = json.loads(judge("oras", "discover", "--plain-http", "--format", "json", f"{reference}@{model}"))
    (used,) = referrers.get("referrers") or referrers["manifests"]
    assert used["artifactType"] == "application/vnd.layerwright.used-by.v1+json"
    judge("oras", "pull", "--plain-http", f"{reference}@{used['digest']}", "-o", tmp_path / "used")
    assert json.loads((tmp_path / "used/app.json").read_text()) == {"image": digest, "name": "app"}


def test_an_unchanged_model_moves_no_byte(
    one_registry: str, profile: Path, environment: dict[str, str], world: World, tmp_path: Path
) -> None:
    reference = f"{one_registry}/{tmp_path.name}:v1"
    first = build(profile, environment, "publish", "--format", "json", profile, reference)
    assert any("model-00001-of-00002.safetensors" in name for name in moved(first))
    second = build(profile, environment, "publish", "--format", "json", profile, reference)
    assert second.json["digest"] == first.json["digest"]
    assert moved(second) == {}
    (profile.parent / "app.txt").write_text("hello again\n")
    third = build(profile, environment, "publish", "--lock", "--format", "json", profile, reference)
    assert third.json["digest"] != first.json["digest"]
    assert third.json["destinations"][0]["moved"]["bytes"] < 10_000

    # A machine that has nothing of it finds the model where it is to be, and fetches nothing.
    elsewhere = world.environment(tmp_path / "other-cache")
    fourth = build(profile, elsewhere, "publish", "--format", "json", profile, reference)
    assert fourth.json["digest"] == third.json["digest"]
    assert moved(fourth) == {}
    assert fourth.json["models"] == {"weights": model_of(profile)}


def test_where_a_model_is_already_its_source_is_not_asked(
    one_registry: str, world: World, environment: dict[str, str], tmp_path: Path
) -> None:
    address = f"{one_registry}/{tmp_path.name}"
    with faultserver.serving() as server:
        server.files["/w.safetensors"] = small_files()["model-00002-of-00002.safetensors"]
        text = PROFILE.replace("from: model", f"from: {server.url('/w.safetensors')}")
        profile = project(tmp_path / "project", text)
        build(profile, environment, "publish", "-q", profile, f"{address}/app")
        assert server.address not in profile.with_suffix(".lock.json").read_text()
        server.always["/w.safetensors"] = faultserver.status(410)
        fresh = world.environment(tmp_path / "fresh")
        assert build(profile, fresh, "publish", "-q", profile, f"{address}/app").code == 0
        refused = build(profile, fresh, "publish", "-q", profile, f"{address}/other")
        assert (refused.code, "answered 410" in refused.err) == (1, True)


def test_a_model_that_the_registry_has_is_mounted(
    one_registry: str, profile: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    source = f"{one_registry}/{tmp_path.name}/source:v1"
    name = "model-00001-of-00002.safetensors"
    judge("oras", "push", "--plain-http", source, name, "config.json", cwd=profile.parent / "model")
    profile.write_text(PROFILE.replace("from: model", f"from: oci://{source}"))
    done = build(profile, environment, "publish", "--format", "json", profile, f"{one_registry}/{tmp_path.name}:v1")
    blobs = {blob["name"]: blob["outcome"] for blob in done.json["destinations"][0]["blobs"]}
    assert blobs[f"model weights: {name}"] == "mounted"
    assert one_registry not in profile.with_suffix(".lock.json").read_text()


def test_a_place_of_their_own(one_registry: str, profile: Path, environment: dict[str, str], tmp_path: Path) -> None:
    own = f"{one_registry}/{tmp_path.name}/models"
    profile.write_text(f"{PROFILE}publish: {{models: '{own}'}}\n")
    done = build(profile, environment, "publish", profile, "oci:out")
    assert done.code == 0, done.err
    assert set(tags_of(profile.parent / "out")) == {"latest"}
    assert judge("oras", "resolve", "--plain-http", f"{own}:model-weights").strip() == model_of(profile)
    # where it is published is no matter of the lock
    profile.write_text(PROFILE)
    assert build(profile, environment, "lock", "--check", profile).code == 0
    copied = build(profile, environment, "copy", "oci:out", "oci:copy")
    assert "the model weights" in copied.err
    verified = build(profile, environment, "verify", "oci:copy")
    assert (verified.code, "it is in another place" in verified.out) == (0, True)
    profile.write_text(f"{PROFILE}publish: {{models: '{own}:v1'}}\n")
    refused = build(profile, environment, "publish", profile, "oci:out")
    assert (refused.code, "tagged by its name" in refused.err) == (1, True)


def test_tags_that_clash(profile: Path, environment: dict[str, str]) -> None:
    done = build(profile, environment, "publish", profile, "oci:out:model-weights")
    assert (done.code, "the tag of a model" in done.err) == (2, True)


def test_what_images_may_name() -> None:
    digest = f"sha256:{'0' * 64}"
    good = {MODEL + "a": digest, MODEL + "a.b_c-1": digest}
    bad = {
        MODEL: digest,
        MODEL + "../x": digest,
        MODEL + "A": digest,
        MODEL + "b": "sha256:0",
        MODEL + "a" * 101: digest,
    }
    assert models({**good, **bad, "other": digest}) == (("a", Digest("0" * 64)), ("a.b_c-1", Digest("0" * 64)))
    assert len(models({f"{MODEL}{number}": digest for number in range(1000)})) == MAX_MODELS


def test_copies_carry_models(one_registry: str, profile: Path, environment: dict[str, str], tmp_path: Path) -> None:
    profile.write_text(PROFILE.replace("exclude:", "image: true, exclude:"))
    digest = build(profile, environment, "publish", "-q", profile, "oci:out:v1").digest
    tags = tags_of(profile.parent / "out")
    short = model_of(profile).removeprefix("sha256:")[:12]
    assert set(tags) == {"v1", "model-weights", f"model-weights-{short}", "model-weights-image"}
    assert judge("skopeo", "inspect", "--raw", f"oci:{profile.parent / 'out'}:model-weights-image")
    chain = ["oci:out", "oci-archive:a.tar", f"{one_registry}/{tmp_path.name}:v1", "oci:end"]
    for source, target in pairwise(chain):
        assert build(profile, environment, "copy", "-q", source, target).digest == digest
    assert tags_of(profile.parent / "end") == tags
    assert Layout(profile.parent / "end").blobs() == Layout(profile.parent / "out").blobs()
    without = build(profile, environment, "copy", "-q", "--no-models", "oci:out", "oci:bare")
    assert without.digest == digest
    assert set(tags_of(profile.parent / "bare")) == {"v1"}


def test_verify_reads_models(profile: Path, environment: dict[str, str]) -> None:
    build(profile, environment, "publish", "-q", profile, "oci:out")
    verified = build(profile, environment, "verify", "--format", "json", "oci:out")
    assert verified.json["verdict"] == "identical"
    (model,) = verified.json["models"]
    assert (model["name"], model["digest"], model["files"]) == ("weights", model_of(profile), 5)
    assert "weights" in build(profile, environment, "inspect", "oci:out").out
    big = next(file for file in lock_of(profile)["models"][0]["files"] if "00001" in file["path"])
    blob = profile.parent / "out/blobs/sha256" / big["sha256"]
    data = bytearray(blob.read_bytes())
    data[-1] ^= 1
    blob.unlink()
    blob.write_bytes(data)
    damaged = build(profile, environment, "verify", "--quick", "oci:out")
    assert damaged.code == 3
    assert "model: weights: model-00001-of-00002.safetensors" in damaged.out
    assert build(profile, environment, "verify", "--quick", "--no-models", "oci:out").code == 0
    shutil.rmtree(profile.parent / "out")
    build(profile, environment, "publish", "-q", profile, "oci:out")
    assert build(profile, environment, "verify", "--quick", "oci:out").code == 0


def test_verify_sees_an_index_that_lies(profile: Path, environment: dict[str, str]) -> None:
    """Everything has its digest, and yet the index says of a chunk what is not so."""
    build(profile, environment, "publish", "-q", profile, "oci:out")
    out = profile.parent / "out"
    manifest = json.loads(read(out, model_of(profile)))
    entry = next(layer for layer in manifest["layers"] if layer["annotations"][TITLE] == ".build/index.v1.json")
    index = json.loads(read(out, entry["digest"]))
    big = next(file for file in index["files"] if "00001" in file["path"])
    big["chunks"][-1] = "0" * 64
    entry["digest"], entry["size"] = put(out, index)
    digest, _ = put(out, manifest)
    top = json.loads(read(out, tags_of(out)["latest"]))
    image = json.loads(read(out, top["manifests"][0]["digest"]))
    image["annotations"]["vnd.layerwright.model.weights"] = digest
    top["manifests"][0]["digest"], top["manifests"][0]["size"] = put(out, image)
    digest, _ = put(out, top)
    lying = build(profile, environment, "verify", "--quick", f"oci:out@{digest}")
    assert lying.code == 3
    assert "the index has another digest of the bytes from" in lying.out


def read(layout: Path, digest: str) -> bytes:
    return (layout / "blobs/sha256" / digest.removeprefix("sha256:")).read_bytes()


def put(layout: Path, document: Any) -> tuple[str, int]:
    data = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    sha256 = hashlib.sha256(data).hexdigest()
    (layout / "blobs/sha256" / sha256).write_bytes(data)
    return f"sha256:{sha256}", len(data)


@pytest.mark.parametrize("what", ["app.txt", "model/README.md"])
def test_a_layout_that_is_published_to_again_has_the_new_papers(
    what: str, profile: Path, environment: dict[str, str]
) -> None:
    """Of an image that changed, and of a model: tags move one after the other, and none takes what belongs to another."""
    for number in range(3):
        (profile.parent / what).write_text(f"{number}\n")
        done = build(profile, environment, "publish", "--lock", "-q", profile)
        assert done.code == 0, done.err
    out = profile.parent / "out/app"
    attached = build(profile, environment, "inspect", "--format", "json", "oci:out/app").json["attached"]
    kinds = [item["kind"] for item in attached if item["platform"] is None]
    assert "lock" in kinds
    assert len(kinds) == len(set(kinds))
    entries = json.loads((out / "index.json").read_text())["manifests"]
    there = {done.digest, *tags_of(out).values(), *(entry["digest"] for entry in entries)}
    there |= {entry["digest"] for entry in json.loads(read(out, done.digest))["manifests"]}
    subjects = [json.loads(read(out, entry["digest"])).get("subject", {}).get("digest") for entry in entries]
    assert {subject for subject in subjects if subject} <= there


def test_a_lock_is_stale_when_a_folder_changes(profile: Path, environment: dict[str, str]) -> None:
    root = profile.parent

    def check() -> str:
        done = build(profile, environment, "lock", "--check", profile)
        assert done.code in (0, 3), done.err
        return done.err

    build(profile, environment, "lock", profile)
    text = profile.with_suffix(".lock.json").read_bytes()
    assert check() == ""
    assert build(profile, environment, "lock", profile).code == 0
    assert profile.with_suffix(".lock.json").read_bytes() == text
    (root / "model/config.json").write_text("{}")
    assert "model weights has changed" in check()
    write_files(root / "model", {"config.json": small_files()["config.json"], "more.json": b"{}"})
    assert "model weights has changed" in check()
    (root / "model/more.json").unlink()
    assert check() == ""
    (root / "model/README.md").rename(root / "readme")
    assert "model weights has changed" in check()
    assert build(profile, environment, "publish", profile, "oci:out").code == 3
    relocked = build(profile, environment, "lock", profile)
    assert "~ model weights" in relocked.err
    assert "- README" not in relocked.err
    assert build(profile, environment, "plan", profile).out.count("weights") == 1
    profile.write_text(PROFILE.partition("models:")[0])
    assert "the profile has changed; model weights is gone" in check()


def test_a_file_that_changes_after_it_was_locked(
    one_registry: str, profile: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    """Its size and times as they were: what is sent is still checked, and no tag moves."""
    big = profile.parent / "model/model-00001-of-00002.safetensors"
    os.utime(big, (1_600_000_000, 1_600_000_000))
    build(profile, environment, "lock", profile)
    good = build(profile, environment, "publish", "-q", profile, "oci:good")
    assert good.code == 0, good.err
    lock = lock_of(profile)
    record = {"sha256": lock["models"][0]["files"][2]["sha256"]}
    data = bytearray(big.read_bytes())
    data[-1] ^= 1
    big.write_bytes(data)
    found = big.stat()
    state = [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]
    Store(tmp_path / "cache/layerwright").put_record("model-place", _key(big), {**record, "state": state})
    reference = f"{one_registry}/{tmp_path.name}:v1"
    for target in ("oci:out", reference):
        done = build(profile, environment, "publish", "-q", profile, target)
        assert (done.code, f"{big}: it is not what it was when it was locked" in done.err) == (1, True), done.err
    assert build(profile, environment, "inspect", reference).code == 1
    assert not (profile.parent / "out/index.json").exists()


def _key(path: Path) -> str:
    return hashlib.sha256(os.fsencode(path.absolute())).hexdigest()


def test_precision(profile: Path, environment: dict[str, str]) -> None:
    weights = safetensors({"w": ("F32", (64, 64), b"\x00\x00\x80\x3f" * 4096)})
    write_files(profile.parent / "other", {"w.safetensors": weights})
    profile.write_text(PROFILE + "  - {name: half, from: other, precision: fp16}\n")
    assert build(profile, environment, "publish", "-q", profile, "oci:out").code == 0
    half = next(model for model in lock_of(profile)["models"] if model["name"] == "half")
    (file,), (converted,) = half["files"], half["converted"]
    assert converted["size"] < file["size"] * 0.6
    assert converted["sha256"] in {path.name for path in (profile.parent / "out/blobs/sha256").iterdir()}
    assert file["sha256"] not in {path.name for path in (profile.parent / "out/blobs/sha256").iterdir()}
    # what was converted is gone: it is made again, and is the same
    store = Path(environment["XDG_CACHE_HOME"]) / "layerwright/sha256" / converted["sha256"][:2] / converted["sha256"]
    store.unlink()
    shutil.rmtree(profile.parent / "out")
    assert build(profile, environment, "publish", "-q", profile, "oci:out").code == 0
    assert store.is_file()
    # another machine takes it from a mirror, and converts nothing
    elsewhere = {"XDG_CACHE_HOME": str(profile.parent / "cache"), "LAYERWRIGHT_OFFLINE": "1", "HOME": "/nowhere"}
    elsewhere["LAYERWRIGHT_MIRRORS"] = str(Path(environment["XDG_CACHE_HOME"]) / "layerwright")
    done = build(profile, {**environment, **elsewhere}, "publish", "-q", profile, "oci:other")
    assert (done.code, Layout(profile.parent / "other").blobs()) == (0, Layout(profile.parent / "out").blobs())


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ("from: model", "from: nothing", "models: nothing: No such file"),
        ("from: model,", "from: model, include: ['*.gguf'],", "no file is left"),
        ("from: model,", "from: model, precision: fp16, include: [README.md],", "safetensors"),
    ],
)
def test_what_cannot_be_locked(old: str, new: str, why: str, profile: Path, environment: dict[str, str]) -> None:
    profile.write_text(PROFILE.replace(old, new))
    done = build(profile, environment, "lock", profile)
    assert (done.code, why in done.err, "hint:" in done.err) == (1, True, True), done.err
    assert not profile.with_suffix(".lock.json").exists()


@pytest.mark.parametrize(
    ("key", "value", "why"),
    [
        ("manifest", "sha256:00", "no digest of its manifest"),
        ("request", "x", "no digest of its manifest, or of its request"),
        ("files", [{"path": "../x", "sha256": "0" * 64, "size": 1}], "is no path of a file"),
        ("files", [{"path": "x", "sha256": "0", "size": 1}], "no sha256, or no size"),
        ("files", [{"path": "x", "sha256": "0" * 64, "size": -1}], "no sha256, or no size"),
        ("files", [{"path": "x", "sha256": "0" * 64, "size": 1}] * 2, "is locked twice"),
    ],
)
def test_locks_that_lie(key: str, value: object, why: str, profile: Path, environment: dict[str, str]) -> None:
    build(profile, environment, "lock", profile)
    lock = lock_of(profile)
    lock["models"][0][key] = value
    profile.with_suffix(".lock.json").write_text(json.dumps(lock, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    done = build(profile, environment, "plan", profile)
    assert (done.code, why in done.err) == (1, True), done.err


def test_a_lock_of_another_artifact(profile: Path, environment: dict[str, str]) -> None:
    """What is locked cannot be made: nothing else is published in its place."""
    build(profile, environment, "lock", profile)
    lock = lock_of(profile)
    lock["models"][0]["manifest"] = f"sha256:{'0' * 64}"
    profile.with_suffix(".lock.json").write_text(json.dumps(lock, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    done = build(profile, environment, "publish", "-q", profile, "oci:out")
    assert (done.code, "it becomes the artifact" in done.err, "weights --upgrade" in done.err) == (3, True, True)
    assert build(profile, environment, "lock", "--upgrade", profile, "weights").code == 0
    assert build(profile, environment, "publish", "-q", profile, "oci:out").code == 0
