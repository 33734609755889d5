"""Two images, locks or profiles side by side, as a person and a program read it."""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from pathlib import Path
from typing import Any

import pytest
from debarchive import Item
from images import Parts, recontent, reheader
from world import PROFILE, Done, World, package, run


@pytest.fixture
def environment(world: World) -> dict[str, str]:
    return world.environment(world.root / "cache")


@pytest.fixture
def other(small: Path, tmp_path: Path) -> Parts:
    """A copy of the small image, to be changed."""
    return Parts.of(small.parent / "out", tmp_path / "other")


def diff(small: Path, other: Parts, environment: dict[str, str], *options: str) -> Done:
    return run(["diff", "-q", "oci:out", f"oci:{other.root}", *options], small.parent, environment)


def document(small: Path, other: Parts, environment: dict[str, str], *options: str) -> Any:
    return diff(small, other, environment, "--format", "json", *options).json


def test_no_difference(small: Path, other: Parts, environment: dict[str, str]) -> None:
    done = diff(small, other, environment, "--exit-code")
    assert (done.code, done.out, done.err) == (0, "no difference\n", "")
    found = document(small, other, environment)
    assert found["same"] is True
    (platform,) = found["platforms"].values()
    assert len(platform["layers"]["shared"]) == 3
    assert platform["files"] == []


def test_files_and_settings(small: Path, other: Parts, environment: dict[str, str]) -> None:
    def change(tar: bytearray) -> bytes:
        recontent("app/deep/er/notes.txt", 3, b"X")(tar)
        reheader("app/zeta", 100, b"0004755\0")(tar)
        reheader("app/note", 157, b"/etc/passwd\0")(tar)
        reheader("app/Alpha", 0, b"app/\x1b[2J\0")(tar)
        return bytes(tar)

    other.retar(2, change)
    other.config["config"]["Env"].append("DEBUG=1")
    other.config["config"]["User"] = "0"
    other.write()
    (platform,) = document(small, other, environment)["platforms"].values()
    assert [(file["path"], file["change"], file["what"]) for file in platform["files"]] == [
        ("/app/\x1b[2J", "added", []),
        ("/app/Alpha", "removed", []),
        ("/app/deep/er/notes.txt", "changed", ["content"]),
        ("/app/note", "changed", ["link"]),
        ("/app/zeta", "changed", ["mode"]),
    ]
    assert platform["settings"] == [
        {"path": "$.config.Env.DEBUG", "b": "1"},
        {"path": "$.config.User", "a": "65532:65532", "b": "0"},
    ]
    assert [layer["name"] for layer in platform["layers"]["b"]] == ["files"]
    assert platform["packages"] == platform["wheels"] == []
    done = diff(small, other, environment)
    assert done.code == 0
    assert "\x1b" not in done.out
    assert "~ /app/deep/er/notes.txt  content\n" in done.out
    assert '$.config.User: "65532:65532" → "0"' in done.out
    assert "layers: 2 shared" in done.out
    assert diff(small, other, environment, "--exit-code").code == 3
    unread = document(small, other, environment, "--no-files")
    assert unread["platforms"]["linux/amd64"]["files"] is None
    assert unread["same"] is False


def test_many_files(small: Path, other: Parts, environment: dict[str, str]) -> None:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for number in range(300):
            archive.addfile(tarfile.TarInfo(f"many/{number:03}"))
    other.layers[2] = gzip.compress(out.getvalue())
    other.write()
    assert "more (--all shows them)" in diff(small, other, environment).out
    everything = diff(small, other, environment, "--all").out
    assert "+ /many/299  0 B" in everything
    assert "(--all" not in everything
    (platform,) = document(small, other, environment)["platforms"].values()
    assert sum(file["change"] == "added" for file in platform["files"]) == 300


def test_what_upper_layers_delete(small: Path, other: Parts, environment: dict[str, str]) -> None:
    """Whiteouts, as other builders write them: a file, and all that is below a directory."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as archive:
        for name in ("usr/bin/.wh.hello", "etc/.wh..wh..opq", "etc/new"):
            archive.addfile(tarfile.TarInfo(name))
    other.layers[2] = gzip.compress(out.getvalue())
    for read in (False, True):
        if read:  # compressed anew, so that it is another layer, whatever the configuration says
            other.layers[0] = gzip.compress(gzip.decompress(other.layers[0]), 1, mtime=0)
        other.write()
        (platform,) = document(small, other, environment)["platforms"].values()
        changes = {file["path"]: file["change"] for file in platform["files"]}
        assert changes["/usr/bin/hello"] == "removed"
        assert changes["/etc/new"] == "added"
        assert not any(".wh." in path for path in changes)
        assert changes.get("/etc/debian_version") == ("removed" if read else None)
        assert "/usr/lib/x86_64-linux-gnu/libc.so.6" not in changes


def test_packages_wheels_and_locks(world: World, small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """The same profile a release later: two images, two locks, two profiles, and an image with a lock."""
    world.release(package("hello", "2.11-1", [Item("./usr/bin/hello", b"#!/bin/sh\n", mode=0o755)], depends="libc6"))
    changed = (
        PROFILE.replace("beta>=1", "beta==1.0")
        .replace("8080", "9090")
        .replace("packages: [hello]", "packages: [tool, hello]")
    )
    later = world.project(tmp_path / "later", changed)
    assert run(["publish", "-q", later, "oci:out"], later.parent, environment).code == 0
    places = {
        "images": ("oci:out", f"oci:{later.parent / 'out'}"),
        "locks": (small.with_suffix(".lock.json"), later.with_suffix(".lock.json")),
        "profiles": (small, later),
        "image and lock": ("oci:out", later.with_suffix(".lock.json")),
        "lock and image": (small.with_suffix(".lock.json"), f"oci:{later.parent / 'out'}"),
    }
    told = run(["diff", *places["image and lock"]], small.parent, environment)
    assert "an image and a lock: packages, wheels and settings are compared, files are not\n" in told.err
    for kind, (a, b) in places.items():
        found = run(["diff", "-q", a, b, "--format", "json"], small.parent, environment).json
        (platform,) = found["platforms"].values()
        assert platform["packages"] == [
            {"name": "hello", "a": "2.10-3", "b": "2.11-1"},
            {"name": "tool", "a": None, "b": "1.0"},
        ], kind
        assert platform["wheels"] == [{"name": "beta", "a": "1.1", "b": "1.0"}], kind
        assert [change["path"] for change in platform["settings"]] == [
            '$.config.ExposedPorts["8080/tcp"]',
            '$.config.ExposedPorts["9090/tcp"]',
        ], kind
        files = found["files"] if kind in ("locks", "profiles") else platform["files"]
        if kind == "images":
            assert "/app/settings.json" in [file["path"] for file in files]
            assert "/usr/bin/tool" in [file["path"] for file in files]
        elif kind in ("locks", "profiles"):
            assert [(file["path"], file["what"]) for file in files] == [("/app/settings.json", ["content"])]
        else:
            assert files is None
        if kind == "profiles":
            assert "$.profile.values.port" in [change["path"] for change in found["values"]]
        text = run(["diff", "-q", a, b], small.parent, environment).out
        assert "~ hello 2.10-3 → 2.11-1" in text
        assert "+ tool 1.0" in text


def test_an_image_on_a_base_is_what_its_lock_says(small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """What the base has installed is no wheel of the profile."""
    (tmp_path / "main.py").touch()
    above = tmp_path / "above.yaml"
    above.write_text(
        f"profile: 1\nname: above\nbase: {{image: 'oci:{small.parent}/out'}}\nfiles: [{{from: main.py, to: /main.py}}]\n"
    )
    assert run(["publish", "-q", above], tmp_path, environment).code == 0
    for pair in (("oci:out/above", above), (above, "oci:out/above")):
        done = run(["diff", *pair, "--exit-code"], tmp_path, environment)
        assert (done.code, done.out) == (0, "no difference\n"), done.err
        assert "stale" not in done.err
    above.write_text(above.read_text() + "image: {user: nobody}\n")
    done = run(["diff", above, "oci:out/above"], tmp_path, environment)
    assert (done.code, "above.lock.json is stale" in done.err) == (0, True)


def test_another_platform(small: Path, other: Parts, environment: dict[str, str]) -> None:
    other.config["architecture"] = "arm64"
    other.top["manifests"][0]["platform"]["architecture"] = "arm64"
    other.write()
    found = document(small, other, environment)
    assert (found["missing"], found["extra"], found["platforms"]) == (["linux/amd64"], ["linux/arm64"], {})
    assert "- platform linux/amd64\n+ platform linux/arm64\n" in diff(small, other, environment).out


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["oci:out", "oci:nowhere"], 1),
        (["oci:out", "oci:out:v9"], 1),
        (["oci:out", "nowhere.yaml"], 2),
        (["oci:out", "nowhere.json"], 2),
        (["oci:out", ""], 2),
        (["oci:out"], 2),
    ],
)
def test_what_cannot_be_compared(arguments: list[str], code: int, small: Path, environment: dict[str, str]) -> None:
    done = run(["diff", *arguments], small.parent, environment)
    assert (done.code, done.out) == (code, "")
    assert "Traceback" not in done.err


def test_a_damaged_layer(small: Path, other: Parts, environment: dict[str, str]) -> None:
    other.retar(2, recontent("app/zeta", 0, b"y"))
    other.write()
    other.spoil(other.layer(2), 40)
    done = diff(small, other, environment)
    assert done.code == 1
    assert "Traceback" not in done.err
    assert json.loads(diff(small, other, environment, "--no-files", "--format", "json").out)["same"] is False
