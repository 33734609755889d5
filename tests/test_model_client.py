"""The client by itself: the same bytes always, and a Python without anything installed pulls and reads with it."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator, Sequence
from pathlib import Path

import faultregistry
import judges
import modelworld
import pytest
from conftest import _other_pythons
from modelregistry import found, serving
from test_fetch import disk
from world import BUILD

from builder.models.client import client, modules

FILES = modelworld.small_files(seed=7, megabytes=40)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("registry"), FILES) as address:
        yield address


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("client") / "build-model-pull.pyz"
    path.write_bytes(client())
    path.chmod(0o755)
    return path


def start(
    program: Path, arguments: Sequence[str | Path], folder: Path, python: str = sys.executable
) -> subprocess.Popen[str]:
    """The client in a Python that sees nothing else, as a user without a home."""
    environ = {"XDG_CACHE_HOME": str(folder / "cache"), "PATH": os.environ["PATH"]}
    command = [python, "-I", "-S", str(program), *map(str, arguments)]
    return subprocess.Popen(command, cwd=folder, env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def run(
    program: Path, arguments: Sequence[str | Path], folder: Path, python: str = sys.executable
) -> tuple[int, str, str]:
    with start(program, arguments, folder, python) as process:
        out, err = process.communicate(timeout=60)
    return process.returncode, out, err


def test_it_is_always_the_same_file() -> None:
    made = client()
    assert client() == made
    with zipfile.ZipFile(io.BytesIO(made)) as archive:
        assert {info.date_time for info in archive.infolist()} == {(1980, 1, 1, 0, 0, 0)}
        assert archive.namelist() == sorted(archive.namelist())
        assert {"licenses/click/LICENSE.txt", "licenses/urllib3/LICENSE.txt"} <= set(archive.namelist())


def test_it_has_what_pulls_and_nothing_that_builds() -> None:
    rooms = {name.split(".")[1] for name in modules() if "." in name}
    assert not rooms & {
        "assemble",
        "fetch",
        "lock",
        "packing",
        "plan",
        "profile",
        "resolve",
        "soci",
        "sources",
        "workers",
    }
    assert "builder.models.publish" not in modules()


def test_it_pulls(program: Path, registry: str, tmp_path: Path) -> None:
    code, out, err = run(program, [f"{registry}/some/image:v1", "model", "--ready-file", "run/ready"], tmp_path)
    assert (code, found(tmp_path / "model")) == (0, FILES), err
    assert re.fullmatch(r"sha256:[0-9a-f]{64}\n", out)
    assert json.loads((tmp_path / "run/ready").read_text()) == {"digest": out.strip()}
    code, out, err = run(
        program, [f"{registry}/some/image@{out.strip()}", "again", "--offline", "--format", "json"], tmp_path
    )
    assert (code, json.loads(out)["moved"]["fetched"]) == (0, 0)
    assert found(tmp_path / "again") == FILES


def test_another_python_pulls_and_reads(program: Path, registry: str, tmp_path: Path) -> None:
    python = next(_other_pythons(), None)
    if python is None:
        judges.missing("python-other", "no other CPython")
    assert run(program, [f"{registry}/some/image:v1", "model", "--no-cache"], tmp_path, str(python))[0] == 0
    assert found(tmp_path / "model") == FILES
    assert [path.name for path in tmp_path.iterdir()] == ["model"]
    code = (
        f"import sys; sys.path.append({str(program)!r}); from builder.models import open_model\n"
        f"model = open_model('{registry}/some/image:v1', cache={str(tmp_path / 'cache')!r})\n"
        "print(model.tensor('norm').bytes().hex())"
    )
    said = subprocess.run([python, "-I", "-S", "-c", code], capture_output=True, text=True, check=True).stdout
    assert bytes.fromhex(said) == FILES["model-00002-of-00002.safetensors"][-32:-16]


def test_an_old_python_is_named(program: Path) -> None:
    code = f"import runpy, sys; sys.version_info = (3, 9, 0); runpy.run_path({str(program)!r}, run_name='__main__')"
    done = subprocess.run([sys.executable, "-I", "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (
        1,
        "error: build-model-pull needs Python 3.11 or newer, and this is 3.9\n",
    )


def test_what_is_behind_two_dashes_is_a_command(program: Path, registry: str, tmp_path: Path) -> None:
    """Also where no folder is named: a container that pulled into a folder `ls`, and ended well, would be no service."""
    place = f"{registry}/some/image:v1"
    code, out, _ = run(program, [place, "-q", "--no-cache", "--", "ls", "-d", "image", "--"], tmp_path)
    assert (code, out) == (0, "image\n")
    assert [path.name for path in tmp_path.iterdir()] == ["image"]
    code, out, _ = run(program, [place, "other", "-q", "--", "ls", "-d", "other"], tmp_path)
    assert (code, out) == (0, "other\n")


def test_what_is_refused_leaves_nothing(program: Path, registry: str, tmp_path: Path) -> None:
    (tmp_path / "model").mkdir()
    (tmp_path / "model/mine").touch()
    code, _, err = run(program, [f"{registry}/some/image:v1", "model", "--no-cache"], tmp_path)
    assert (code, "holds files that are of no pulled model" in err) == (1, True)
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


def test_the_exit_status_says_what_to_do(program: Path, registry: str, tmp_path: Path) -> None:
    def status(*arguments: str | Path) -> int:
        code, _, err = run(program, arguments, tmp_path)
        assert err.startswith(("error: ", "Usage: ")), err
        return code

    assert status() == 2
    assert status("no/such/place", "model") == 2
    assert status(f"{registry}/some/image:v1", "model", "--subset", "*.nothing") == 2
    assert status(f"{registry}/some/image:v9", "model") == 1
    with faultregistry.before(registry) as way:
        way.decide = faultregistry.always({"GET blobs": faultregistry.damaged_answer})
        assert status(f"{way.address}/some/image:v1", "model") in (1, 3)
        index_is_right = 1
        way.seen.clear()
        way.decide = lambda request: (
            faultregistry.damaged_answer if "range" in request.headers and len(way.seen) > index_is_right else None
        )
        assert status(f"{way.address}/some/image:v1", "model") == 3
    assert not (tmp_path / "model").exists()


def test_replicas_of_a_node_download_once(program: Path, registry: str, tmp_path: Path) -> None:
    with faultregistry.before(registry) as way:
        way.decide = lambda request: faultregistry.slow if request.what == "GET blobs" else None
        processes = [start(program, [f"{way.address}/some/image:v1", f"model-{n}"], tmp_path) for n in range(4)]
        for process in processes:
            assert process.wait(60) == 0, process.communicate()
            process.communicate()
        blobs = [request.path for request in way.requests("GET blobs")]
        ranges = [request.headers["range"] for request in way.requests("GET blobs")]
    asked = [pair for pair in zip(blobs, ranges, strict=True) if pair[1]]
    assert len(asked) == len(set(asked)), "a range was fetched by two of them"
    inodes = {(tmp_path / f"model-{n}/model-00001-of-00002.safetensors").stat().st_ino for n in range(4)}
    assert len(inodes) == 1
    assert all(found(tmp_path / f"model-{n}") == FILES for n in range(4))


def test_cat_gives_files_and_tensors(registry: str, tmp_path: Path) -> None:
    environ = {"HOME": str(tmp_path), "PATH": os.environ["PATH"]}
    place = f"{registry}/some/image:v1"

    def cat(*arguments: str) -> subprocess.CompletedProcess[bytes]:
        command = [str(BUILD), "model", "cat", place, *arguments, "-q"]
        return subprocess.run(command, env=environ, capture_output=True, check=False)

    assert cat("tokenizer/tokenizer.json").stdout == FILES["tokenizer/tokenizer.json"]
    assert cat("--tensor", "norm").stdout == FILES["model-00002-of-00002.safetensors"][-32:-16]
    assert cat("--tensor", "embed.weight").stdout == FILES["model-00001-of-00002.safetensors"][-(40 << 20) :]
    assert cat().returncode == 2
    missing = cat("tokenizer.json")
    assert (missing.returncode, missing.stdout) == (2, b"")
    assert b"hint: did you mean tokenizer/tokenizer.json?" in missing.stderr


@pytest.mark.parametrize("options", [[], ["--no-cache"]], ids=["cache", "no-cache"])
def test_two_pulls_into_one_folder(program: Path, registry: str, tmp_path: Path, options: list[str]) -> None:
    processes = [start(program, [f"{registry}/some/image:v1", "model", *options], tmp_path) for _ in range(4)]
    for process in processes:
        _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
    assert found(tmp_path / "model") == FILES
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model"] if options else ["cache", "model"]


def test_a_mounted_volume_without_a_cache(program: Path, registry: str, tmp_path: Path) -> None:
    with disk(tmp_path / "model", "128m") as volume:
        for _ in range(2):
            code, _, err = run(program, [f"{registry}/some/image:v1", volume, "--no-cache"], tmp_path)
            assert code == 0, err
            assert found(volume) == FILES
            assert sorted(path.name for path in (volume / ".build").iterdir()) == ["model.json"]


def test_ended_and_resumed(program: Path, registry: str, tmp_path: Path) -> None:
    """Asked to end three times on the way: what was there is not fetched again, and the folder is all or nothing."""
    fetched = 0
    with faultregistry.before(registry) as way:
        way.decide = lambda request: faultregistry.slow if request.what == "GET blobs" else None
        for part in (1, 2, 3):
            before = len(way.requests("GET blobs"))
            process = start(program, [f"{way.address}/some/image:v1", "model"], tmp_path)
            until = time.monotonic() + 20
            while (
                len(way.requests("GET blobs")) < before + 2 * part
                and process.poll() is None
                and time.monotonic() < until
            ):
                time.sleep(0.01)
            process.send_signal(signal.SIGTERM)
            process.communicate(timeout=30)
            assert not (tmp_path / "model").exists() or found(tmp_path / "model") == FILES
        code, out, err = run(program, [f"{way.address}/some/image:v1", "model", "--format", "json"], tmp_path)
    assert code == 0, err
    fetched = json.loads(out)["moved"]["fetched"] if json.loads(out)["changed"] else 0
    assert fetched <= sum(map(len, FILES.values()))
    assert found(tmp_path / "model") == FILES
    assert list((tmp_path / "cache/layerwright/partial").iterdir()) == []
    assert not list(tmp_path.glob(".model*"))
