"""Programs that pull and read models are killed at any moment: what is there is right, and the next one goes on with it."""

from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import suppress
from pathlib import Path

import faultregistry
import modelworld
import pytest
from faultregistry import FaultRegistry
from modelregistry import found, serving
from world import BUILD

from builder.models.chunked import Chunked
from builder.models.filling import Filling
from builder.models.index import parse
from builder.models.values import FileIndex
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor

FILES = modelworld.small_files(seed=11, megabytes=32)
WEIGHTS = "model-00001-of-00002.safetensors"
KILLS = 5

_READER = """
import random, sys
from builder.models import open_model
model = open_model(sys.argv[1], cache="cache")
tensor = model.tensor("embed.weight")
chance = random.Random(int(sys.argv[2]))
print("reads", flush=True)
while True:
    row = chance.randrange(tensor.shape[0])
    tensor[row : row + 64]
"""


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("registry"), FILES) as address:
        yield address


@pytest.fixture
def way(registry: str) -> Iterator[FaultRegistry]:
    """To the registry, so slow that a pull takes about a second."""
    with faultregistry.before(registry) as state:
        state.decide = lambda request: faultregistry.slow if request.what == "GET blobs" else None
        yield state


def start(command: Sequence[str | Path], folder: Path) -> subprocess.Popen[str]:
    environ = {"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "xdg"), "PATH": os.environ["PATH"]}
    return subprocess.Popen(
        [str(word) for word in command],
        cwd=folder,
        env=environ,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def pull(way: FaultRegistry, target: str) -> list[str | Path]:
    return [BUILD, "model", "pull", f"{way.address}/some/image:v1", target, "--cache", "cache", "--format", "json"]


def assert_nothing_wrong(folder: Path, *targets: str) -> None:
    """Folders are whole or not there, and so is what the cache has under its names."""
    for target in targets:
        assert not (folder / target).exists() or found(folder / target) == FILES
    for path in (folder / "cache").glob("sha256/*/*"):
        assert hashlib.sha256(path.read_bytes()).hexdigest().endswith(path.name), f"half a file at {path}"


def left(folder: Path) -> list[Path]:
    return [*(folder / "cache/partial").iterdir(), *folder.glob(".one*"), *folder.glob(".two*")]


def test_pulls_are_killed_at_any_moment(way: FaultRegistry, tmp_path: Path) -> None:
    """Alone, and while another one waits for it."""
    chance = random.Random(12)
    met = 0
    for number in range(KILLS):
        pulls = [start(pull(way, target), tmp_path) for target in ("one", "two")[: 1 + number % 2]]
        time.sleep(chance.uniform(0.2, 1.0))
        pulls[0].kill()
        pulls[0].communicate()
        met += any((tmp_path / "cache/partial").glob("*.chunks"))
        assert_nothing_wrong(tmp_path, "one")
        for other in pulls[1:]:
            if chance.random() < 0.5:
                other.kill()
            out, err = other.communicate(timeout=60)
            assert other.returncode in (0, -9), err
            assert other.returncode or (json.loads(out)["changed"] and found(tmp_path / "two") == FILES)
            assert_nothing_wrong(tmp_path, "one", "two")
        if (tmp_path / "one").exists() or (tmp_path / "two").exists():  # the next ones begin again
            for target in ("one", "two", "cache"):
                shutil.rmtree(tmp_path / target, ignore_errors=True)
    assert met, "no kill met a pull at work"
    for target in ("one", "two"):
        last = start(pull(way, target), tmp_path)
        assert last.communicate(timeout=60)[1] is not None
        assert last.returncode == 0
        assert found(tmp_path / target) == FILES
    assert left(tmp_path) == []


def test_readers_are_killed_at_any_moment(way: FaultRegistry, registry: str, tmp_path: Path) -> None:
    """Two at once, in one cache: each chunk of which the journal tells is right, and a pull takes it from there."""
    chance = random.Random(13)
    most = 0
    for number in range(KILLS):
        readers = [
            start([sys.executable, "-c", _READER, f"{way.address}/some/image:v1", str(2 * number + each)], tmp_path)
            for each in range(2)
        ]
        for reader in readers:
            assert reader.stdout is not None
            reader.stdout.readline()
        time.sleep(chance.uniform(0, 0.3))
        for reader in readers:
            reader.kill()
            reader.communicate()
        most = max(most, checked_chunks(tmp_path / "cache"))
    assert most
    last = start(pull(way, "one"), tmp_path)
    out, err = last.communicate(timeout=60)
    assert last.returncode == 0, err
    assert json.loads(out)["moved"]["resumed"] > 0
    assert found(tmp_path / "one") == FILES
    assert left(tmp_path) == []


def checked_chunks(cache: Path) -> int:
    """How many chunks of the weights the journal of a reader tells of; all of them are right."""
    index = next((each for each in indexes(cache) if each.file.path == WEIGHTS), None)
    if index is None:
        return 0
    digest = Digest(index.file.sha256)
    chunked = Chunked.of(index.file, Descriptor("application/octet-stream", digest, index.file.size), index)
    path = cache / "partial" / chunked.parts_key.hex
    if not path.exists():
        return 0
    with Filling(path, chunked.cuts) as filling:
        there = set(range(len(chunked.cuts) - 1)) - set(filling.missing())
    data = path.read_bytes()
    for chunk in there:
        piece = data[chunked.cuts[chunk] : chunked.cuts[chunk + 1]]
        assert hashlib.sha256(piece).hexdigest() == index.chunks[chunk]
    return len(there)


def indexes(cache: Path) -> Iterator[FileIndex]:
    for path in cache.glob("sha256/*/*"):
        with suppress(Exception):
            yield from parse(path.read_bytes(), "an index").files
