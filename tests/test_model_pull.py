"""Models are pulled: whole, in parts, again, side by side, from servers that misbehave and onto disks that are full."""

from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faultregistry
import modelworld
import pytest
from faultregistry import FaultRegistry
from modelregistry import found, published, pull, push, serving

from builder.errors import BuilderError, OfflineError, UsageError
from builder.models.cache import Remembering
from builder.models.chunked import WrongModelError
from builder.models.lazy import Model
from builder.models.placing import FolderError, How
from builder.models.publish import publish
from builder.models.pull import Published, Pulling
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.places.delivery import Sink
from builder.progress import Silent
from builder.store import Store

FILES = modelworld.small_files(megabytes=12)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A registry that holds the model `some/image:v1` of `FILES`."""
    with serving(tmp_path_factory.mktemp("registry"), FILES) as address:
        yield address


def blobs(state: FaultRegistry) -> int:
    return len(state.requests("GET blobs"))


def test_a_model_is_pulled_and_nothing_else_is_there(registry: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    pulled = pull(registry, store, tmp_path / "model")
    assert found(tmp_path / "model") == FILES
    assert (pulled.changed, pulled.moved.fetched, pulled.moved.reused) == (True, sum(map(len, FILES.values())), 0)
    assert list((tmp_path / "cache/partial").iterdir()) == []
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "model"]


def test_a_second_pull_moves_nothing(way: FaultRegistry, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    pull(way.address, store, tmp_path / "one")
    before = blobs(way)
    assert not pull(way.address, store, tmp_path / "one").changed
    again = pull(way.address, store, tmp_path / "two")
    assert (again.changed, again.moved.fetched) == (True, 0)
    assert found(tmp_path / "two") == FILES
    assert blobs(way) == before


def test_a_digest_that_is_in_the_cache_needs_no_network(registry: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    digest = str(pull(registry, store, tmp_path / "one").digest)
    model = published(registry, store, digest, offline=True)
    assert Pulling(store, Silent()).pull(model, tmp_path / "two").moved.fetched == 0
    assert published(registry, store, "v1", offline=True).digest == model.digest
    with pytest.raises(OfflineError):
        published(registry, store, "v2", offline=True)


def test_two_folders_share_one_copy(registry: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    for name in ("one", "two"):
        pull(registry, store, tmp_path / name, how=How.HARD)
    inodes = {(tmp_path / name / "model-00001-of-00002.safetensors").stat().st_ino for name in ("one", "two")}
    assert len(inodes) == 1
    pull(registry, store, tmp_path / "three", how=How.COPY)
    assert (tmp_path / "three/model-00001-of-00002.safetensors").stat().st_ino not in inodes
    assert found(tmp_path / "three") == FILES


def test_a_subset(registry: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    pulled = pull(registry, store, tmp_path / "model", subset=("*.json",))
    assert sorted(found(tmp_path / "model")) == ["config.json", "tokenizer/tokenizer.json"]
    assert pulled.moved.fetched < 1000
    assert pull(registry, store, tmp_path / "model").changed
    assert found(tmp_path / "model") == FILES
    with pytest.raises(UsageError, match=r"tokeniser\.json") as caught:
        pull(registry, store, tmp_path / "model", subset=("tokenizer/tokeniser.json",))
    assert caught.value.hint == "did you mean tokenizer/tokenizer.json?"


def test_only_what_changed_is_fetched(way: FaultRegistry, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    pull(way.address, store, tmp_path / "model")
    old = FILES["model-00001-of-00002.safetensors"]
    start = len(old) - 3_000_000
    # another header: every tensor lies at another place than before
    changed = modelworld.safetensors(
        {"embed.weight": ("F32", (12 * 256, 1024), old[-(12 << 20) :])}, {"format": "pt", "step": "x" * 1000}
    )
    changed = changed[:start] + b"tuned" + changed[start + 5 :]
    push(way.address, tmp_path / "files", FILES | {"model-00001-of-00002.safetensors": changed}, "v2")
    pulled = pull(way.address, store, tmp_path / "model", "v2")
    assert found(tmp_path / "model")["model-00001-of-00002.safetensors"] == changed
    assert pulled.moved.reused == 8 << 20
    assert 0 < pulled.moved.fetched < (4 << 20) + 2000


def test_the_folder_changes_in_one_step(registry: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    push(registry, tmp_path / "files", {"config.json": b"{}", "other.txt": b"x"}, "other")
    target = tmp_path / "model"
    pull(registry, store, target)
    opened = (target / "config.json").open("rb")
    watch = (
        "import os, sys\nlost = 0\nprint(flush=True)\n"
        "while not os.path.exists(sys.argv[2]):\n"
        "    for _ in range(1000):\n"
        "        try: os.stat(sys.argv[1])\n"
        "        except FileNotFoundError: lost += 1\n"
        "print(lost)"
    )
    command = [sys.executable, "-c", watch, str(target / "config.json"), str(tmp_path / "done")]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as watcher:
        assert watcher.stdout is not None
        watcher.stdout.readline()
        models = [published(registry, store, tag) for tag in ("other", "v1")]
        for model in models * 40:
            Pulling(store, Silent()).pull(model, target)
        (tmp_path / "done").touch()
        assert watcher.stdout.read() == "0\n"
    (tmp_path / "done").unlink()
    assert opened.read() == FILES["config.json"]
    opened.close()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["cache", "files", "model"]


def test_foreign_files_are_not_replaced(registry: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    target = tmp_path / "model"
    target.mkdir()
    (target / "thesis.doc").write_text("mine")
    with pytest.raises(FolderError, match="no pulled model"):
        pull(registry, store, target)
    assert [path.name for path in target.iterdir()] == ["thesis.doc"]
    assert pull(registry, store, target, force=True).changed
    assert found(target) == FILES
    (tmp_path / "file").write_text("")
    with pytest.raises(FolderError, match="no folder"):
        pull(registry, store, tmp_path / "file", force=True)
    (tmp_path / "link").symlink_to(target)
    with pytest.raises(FolderError, match="no folder"):
        pull(registry, store, tmp_path / "link", force=True)


def test_foreign_files_beside_a_model_are_not_lost(registry: str, tmp_path: Path) -> None:
    """They stay as long as the model does, and it is not replaced without a word."""
    store, target = Store(tmp_path / "cache"), tmp_path / "model"
    pull(registry, store, target, subset=("config.json",))
    (target / "onnx").mkdir()
    (target / "onnx/thesis.doc").write_text("mine")
    assert not pull(registry, store, target, subset=("config.json",)).changed
    with pytest.raises(FolderError, match=r"onnx/thesis\.doc is of none"):
        pull(registry, store, target)
    assert (target / "onnx/thesis.doc").read_text() == "mine"
    assert pull(registry, store, target, force=True).changed
    assert found(target) == FILES


def test_damage_of_the_folder_is_repaired(registry: str, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    target = tmp_path / "model"
    pull(registry, store, target, how=How.COPY)
    (target / "config.json").unlink()
    assert pull(registry, store, target, how=How.COPY).changed
    (target / "config.json").write_bytes(b"x" * len(FILES["config.json"]))
    assert not pull(registry, store, target, how=How.COPY).changed  # it was not asked to read
    assert pull(registry, store, target, how=How.COPY, read=True).changed
    assert found(target) == FILES


def test_the_ready_file_tells_that_the_folder_is_complete(way: FaultRegistry, tmp_path: Path) -> None:
    store = Store(tmp_path / "cache")
    ready = tmp_path / "run/ready"
    pulled = pull(way.address, store, tmp_path / "model", ready_file=ready)
    assert json.loads(ready.read_text()) == {"digest": str(pulled.digest)}
    (tmp_path / "model").rename(tmp_path / "gone")
    way.decide = faultregistry.always({"GET blobs": faultregistry.damaged_answer})
    with pytest.raises(BuilderError):
        pull(way.address, Store(tmp_path / "other"), tmp_path / "model", ready_file=ready)
    assert not ready.exists()


@pytest.mark.parametrize(
    "fault",
    [
        faultregistry.cut,
        faultregistry.truncated,
        faultregistry.busy(503),
        faultregistry.busy(429),
        faultregistry.damaged_answer,
    ],
    ids=["cut", "truncated", "503", "429", "damaged"],
)
def test_faults_that_pass(way: FaultRegistry, tmp_path: Path, fault: faultregistry.Fault) -> None:
    way.decide = faultregistry.only("GET blobs", None, fault, None, fault)
    pull(way.address, Store(tmp_path / "cache"), tmp_path / "model")
    assert found(tmp_path / "model") == FILES


def test_a_server_without_ranges(way: FaultRegistry, tmp_path: Path) -> None:
    refused = faultregistry.busy(416)
    for number, fault in enumerate((faultregistry.no_ranges, refused)):
        way.decide = lambda request, fault=fault: fault if request.headers["range"] else None  # type: ignore[misc]
        pull(way.address, Store(tmp_path / f"cache{number}"), tmp_path / f"model{number}")
        assert found(tmp_path / f"model{number}") == FILES


def test_bytes_that_stay_wrong(way: FaultRegistry, tmp_path: Path) -> None:
    """A blob that was changed on the server: the error names the file and the bytes; nothing of it can be read."""
    big = hashlib.sha256(FILES["model-00001-of-00002.safetensors"]).hexdigest()
    way.decide = lambda request: faultregistry.damaged_answer if big in request.path else None
    store = Store(tmp_path / "cache")
    with pytest.raises(
        WrongModelError, match=r"model-00001-of-00002\.safetensors: bytes \d+ to \d+ of its blob"
    ) as caught:
        pull(way.address, store, tmp_path / "model")
    assert caught.value.exit_code == 3
    assert not (tmp_path / "model").exists()
    way.decide = lambda request: None
    pull(way.address, store, tmp_path / "model")
    assert found(tmp_path / "model") == FILES


def test_from_a_layout(tmp_path: Path) -> None:
    model = modelworld.small_model(tmp_path / "files", FILES)
    layout = Layout(tmp_path / "layout")
    publish(model, [Sink("layout", layout, ("v1",))], Silent())
    store = Store(tmp_path / "cache")
    opened = Published.open("oci:layout", Remembering(store, "oci:layout", lambda: layout), "v1")
    with Model(opened, store) as lazy:
        assert bytes(lazy.tensor("embed.weight").bytes()) == FILES["model-00001-of-00002.safetensors"][-(12 << 20) :]
    path = layout.path(Digest(hashlib.sha256(FILES["config.json"]).hexdigest()))
    path.chmod(0o644)
    path.write_bytes(b"short")
    with pytest.raises(WrongModelError, match=r"config\.json: its blob .* ends early"):
        Pulling(store, Silent()).pull(opened, tmp_path / "model")
    path.unlink()
    with pytest.raises(BuilderError, match="cannot be read"):
        Pulling(store, Silent()).pull(opened, tmp_path / "model")
    path.write_bytes(FILES["config.json"])
    assert Pulling(store, Silent()).pull(opened, tmp_path / "model").changed
    assert found(tmp_path / "model") == FILES
