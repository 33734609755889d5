"""Publishing to registries: what moves and what does not, several places at once, interrupted, damaged, and refused."""

from __future__ import annotations

import json
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import faultregistry
import judges
import pytest
from faultregistry import Request, before, only
from layouts import Layout as RawLayout
from world import BUILD, PROFILE, World, run, write_project

from builder.oci.digest import Digest
from builder.store import Store


@pytest.fixture
def environment(world: World) -> dict[str, str]:
    return world.environment(world.root / "cache")


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with judges.registry("docker-registry", tmp_path_factory.mktemp("plain")) as address:
        yield address


def published(arguments: list[object], cwd: Path, environment: dict[str, str]) -> list[dict[str, Any]]:
    document = run(["publish", "--format", "json", *arguments], cwd, environment).json
    destinations: list[dict[str, Any]] = document["destinations"]
    return destinations


def outcomes(destination: dict[str, Any]) -> set[str]:
    return {blob["outcome"] for blob in destination["blobs"]}


def digest_at(name: str) -> str:
    argv = [str(judges.require("crane")), "digest", "--insecure", name]
    return subprocess.run(argv, capture_output=True, text=True, check=False).stdout.strip()


def test_what_moves_is_told(registry: str, small: Path, world: World, tmp_path: Path) -> None:
    """The first time everything moves, the second time nothing, and a neighbour takes it from the first."""
    environment = world.environment(tmp_path / "cache", LAYERWRIGHT_MIRRORS=str(world.root / "cache/layerwright"))
    (first,) = published([small, f"{registry}/told/one:v1"], tmp_path, environment)
    assert first["destination"] == f"{registry}/told/one:v1"
    assert outcomes(first) == {"moved"}
    assert first["moved"]["bytes"] == sum(blob["size"] for blob in first["blobs"]) > 1_500_000
    assert first["bytes_per_second"] > 0
    (second,) = published([small, f"{registry}/told/one:v1"], tmp_path, environment)
    assert outcomes(second) == {"present"}
    assert second["moved"] == second["mounted"] == second["new"] == {"blobs": 0, "bytes": 0}
    assert second["present"]["bytes"] == first["moved"]["bytes"]
    (beside,) = published([small, f"{registry}/told/two:v1"], tmp_path, environment)
    assert outcomes(beside) == {"mounted"}
    forgetful = world.environment(tmp_path / "other", LAYERWRIGHT_MIRRORS=str(world.root / "cache/layerwright"))
    arguments = [small, f"{registry}/told/three:v1", "--mount-from", f"{registry}/told/one"]
    (told,) = published(arguments, tmp_path, forgetful)
    assert outcomes(told) == {"mounted"}
    assert digest_at(f"{registry}/told/three:v1") == digest_at(f"{registry}/told/one:v1") == first["digest"]


def test_text_says_what_became_of_each_blob(
    registry: str, small: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    name = f"{registry}/text:v1"
    done = run(["publish", small, name], tmp_path, environment)
    assert any(line.split()[0] in ("moved", "mounted") and "3 wheels" in line for line in done.err.splitlines())
    assert f"{name}: 3 layers, 0 of them packed now; " in done.err
    again = run(["publish", small, name], tmp_path, environment)
    assert "; 0 B moved, 0 B mounted, " in again.err
    assert "3 wheels" not in again.err
    assert again.out == done.out == f"{digest_at(name)}\n"


def test_several_places_and_tags_at_once(
    registry: str, plain: str, small: Path, environment: dict[str, str], tmp_path: Path
) -> None:
    names = [f"{registry}/many:v1", f"{registry}/many:v2", f"{plain}/many:v1"]
    places: list[object] = [*names, "oci:out:v1", "oci-archive:out.tar:v1", "oci-archive:out.tar:v2", f"{plain}/many"]
    found = published([small, *places], tmp_path, environment)
    assert [item["destination"] for item in found] == [
        *names,
        f"{plain}/many:latest",
        "oci:out:v1",
        "oci-archive:out.tar:v1",
        "oci-archive:out.tar:v2",
    ]
    assert {digest_at(name) for name in (*names, f"{plain}/many:latest")} == {found[0]["digest"]}
    for place in ("oci:out:v1", "oci-archive:out.tar:v2"):
        assert run(["inspect", place, "--format", "json"], tmp_path, environment).json["digest"] == found[0]["digest"]


def test_a_changed_file_moves_little(registry: str, world: World, tmp_path: Path) -> None:
    profile = write_project(tmp_path, PROFILE)
    environment = world.environment(world.root / "cache")
    name = f"{registry}/app:v1"
    (before_it,) = published([profile, name], tmp_path, environment)
    (tmp_path / "app/main.py").write_text("print('changed')\n")
    (after,) = published(["--lock", profile, name], tmp_path, environment)
    assert after["digest"] != before_it["digest"]
    moved = {blob["name"] for blob in after["blobs"] if blob["outcome"] == "moved" and blob["name"]}
    assert moved == {"files", "configuration of linux/amd64"}
    of_image = [blob for blob in after["blobs"] if blob["name"] in moved]
    assert sum(blob["size"] for blob in of_image) < 10_000
    assert digest_at(name) == after["digest"]


def test_the_profile_names_a_registry(plain: str, world: World, tmp_path: Path) -> None:
    profile = world.project(tmp_path / "project", PROFILE + f'  to: "{plain}/named:v1"\n')
    done = run(["publish", "-q", profile], tmp_path, world.environment(world.root / "cache"))
    assert done.digest == digest_at(f"{plain}/named:v1")


def test_a_killed_publish_goes_on(plain: str, small: Path, world: World, tmp_path: Path) -> None:
    """Killed in the middle of a blob: no tag is there, and what arrived is not sent again."""
    environment = world.environment(world.root / "cache")
    name = "killed:v1"
    with before(plain) as proxy:
        proxy.decide = only("PUT uploads", *[None] * 3, *[faultregistry.slow] * 100)
        child = subprocess.Popen(
            [BUILD, "publish", "-q", small, f"{proxy.address}/{name}", "--jobs", "1"],
            cwd=tmp_path,
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        until = time.monotonic() + 20
        while time.monotonic() < until and child.poll() is None and digest_at(f"{plain}/{name}") == "":
            if _blobs_of(plain, small, tmp_path, environment) >= 3:
                break
            time.sleep(0.05)
        child.send_signal(signal.SIGKILL)
        child.communicate()
    assert digest_at(f"{plain}/{name}") == ""
    (after,) = published([small, f"{plain}/{name}"], tmp_path, environment)
    assert after["digest"] == digest_at(f"{plain}/{name}")
    assert after["present"]["blobs"] >= 3


def _blobs_of(address: str, small: Path, cwd: Path, environment: dict[str, str]) -> int:
    """How many blobs of the image are in the repository `killed`."""
    plan = run(["plan", small, "--format", "json"], cwd, environment).json["platforms"]["linux/amd64"]["layers"]
    found = 0
    for layer in plan:
        argv = [str(judges.require("crane")), "blob", "--insecure", f"{address}/killed@{layer['blob']['digest']}"]
        found += subprocess.run(argv, capture_output=True, check=False).returncode == 0
    return found


def test_a_refusing_registry_gets_no_tag(plain: str, small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """One place of two refuses: no tag is moved in either."""
    names: list[Request] = []

    def refuse(request: Request) -> faultregistry.Fault | None:
        names.append(request)
        return faultregistry.busy(403) if request.what == "PUT manifests" else None

    with before(plain) as proxy:
        proxy.decide = refuse
        arguments = ["publish", small, f"{plain}/both:v1", f"{proxy.address}/refused:v1"]
        done = run(arguments, tmp_path, environment)
    assert done.code == 1
    assert done.err.splitlines()[-2].startswith("error: ")
    assert "Traceback" not in done.err
    assert digest_at(f"{plain}/both:v1") == digest_at(f"{plain}/refused:v1") == ""
    assert names


def test_a_damaged_layer_of_the_store_is_made_again(plain: str, small: Path, world: World, tmp_path: Path) -> None:
    environment = world.environment(tmp_path / "cache", LAYERWRIGHT_MIRRORS=str(world.root / "cache/layerwright"))
    (first,) = published([small, "oci:out", "--no-attach"], tmp_path, environment)
    layer = next(blob for blob in first["blobs"] if blob["name"] == "3 wheels")
    path = Store(tmp_path / "cache/layerwright").path(Digest.parse(layer["digest"]))
    data = path.read_bytes()
    path.unlink()  # it shares its bytes with the layout
    path.write_bytes(data[:1000] + b"!" + data[1001:])
    name = f"{plain}/damaged:v1"
    done = run(["publish", small, name, "oci-archive:a.tar:v1"], tmp_path, environment)
    assert done.code == 0, done.err
    assert "the bytes are damaged" in done.err
    assert "it is made again" in done.err
    assert path.read_bytes() == data
    assert digest_at(name) == done.digest == first["digest"]
    path.unlink()
    path.write_bytes(data[:1000] + b"!" + data[1001:])
    done = run(["publish", small, "oci:linked"], tmp_path, environment)
    assert "it is made again" in done.err
    assert done.digest == first["digest"]
    linked = RawLayout(tmp_path / "linked").path(Digest.parse(layer["digest"]))
    assert (linked.read_bytes(), linked.stat().st_ino) == (data, path.stat().st_ino)
    copied = run(["copy", name, "oci:back"], tmp_path, environment)
    assert copied.digest == done.digest
    assert RawLayout(tmp_path / "back").path(Digest.parse(layer["digest"])).read_bytes() == data


def test_unattached_and_attached(registry: str, small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    name = f"{registry}/papers:v1"
    run(["publish", "-q", "--no-attach", small, name], tmp_path, environment)
    assert run(["inspect", name, "--format", "json"], tmp_path, environment).json["attached"] == []
    run(["publish", "-q", small, name], tmp_path, environment)
    attached = run(["inspect", name, "--format", "json"], tmp_path, environment).json["attached"]
    assert {"lock", "profile", "provenance", "SBOM (SPDX)", "SBOM (CycloneDX)"} <= {item["kind"] for item in attached}
    text = run(["inspect", name], tmp_path, environment).out
    assert "ATTACHED" in text
    assert json.dumps(attached)


def test_names_that_cannot_be_published_to(small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    for place, message, code in (
        ("app:v1", "write oci:DIR", 2),
        ("localhost:5000/App:v1", "lower case", 2),
        ("https://localhost:5000/app", "has no scheme", 2),
        (f"localhost:5000/app@sha256:{'0' * 64}", "a digest cannot be chosen", 2),
        ("oci-archive:/proc/none.tar", "cannot be written", 1),
    ):
        done = run(["publish", small, place], tmp_path, {**environment, "LAYERWRIGHT_JOBS": "2"})
        assert (done.code, message in done.err) == (code, True), done.err
        assert "Traceback" not in done.err
    (tmp_path / "mine.odt").write_text("a letter")
    done = run(["publish", small, "oci-archive:mine.odt"], tmp_path, environment)
    assert done.code == 1
    assert (tmp_path / "mine.odt").read_text() == "a letter"
    offline = run(["publish", "--offline", small, "localhost:5000/app:v1"], tmp_path, environment)
    assert (offline.code, "--offline forbids it" in offline.err) == (1, True)
