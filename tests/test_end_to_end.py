"""Whole builds, from a profile to a layout, and what the judges say of them."""

from __future__ import annotations

import json
import os
import random
import shutil
import stat
import subprocess
import tarfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import indexserver
import judges
import pytest
from layouts import Layout, plain
from world import CREATED, FILES, LINKS, PROFILE, Real, World, run, write_project

from builder import lock as locks
from builder.oci.digest import Digest

MTIME = 315532800
AARCH64, X86_64 = 183, 62
MACHINES = {"amd64": X86_64, "arm64": AARCH64}


def judge(name: str, *arguments: object) -> str:
    """What a judge says; its complaint is the failure."""
    argv = [str(judges.require(name)), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def top_of(out: Path, tag: str = "latest") -> Digest:
    for entry in json.loads((out / "index.json").read_bytes())["manifests"]:
        if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == tag:
            return Digest.parse(entry["digest"])
    raise AssertionError(f"{out} has no {tag}")


def attached(out: Path) -> set[str]:
    """The names of the blobs that only what refers to an image has: manifests without a tag, and their files."""
    names = set()
    for entry in json.loads((out / "index.json").read_bytes())["manifests"]:
        if "org.opencontainers.image.ref.name" not in entry.get("annotations", {}):
            document = Layout(out).json(Digest.parse(entry["digest"]))
            blobs = [entry, document["config"], *document["layers"]]
            names |= {blob["digest"].removeprefix("sha256:") for blob in blobs}
    return names - {Digest.of(b"{}").hex}


def manifests(out: Path) -> dict[str, dict[str, Any]]:
    """The manifest of each architecture, without those of SOCI indexes."""
    layout = Layout(out)
    return {
        entry["platform"]["architecture"]: layout.json(Digest.parse(entry["digest"]))
        for entry in layout.json(top_of(out))["manifests"]
        if "artifactType" not in entry
    }


def members(out: Path, architecture: str = "amd64") -> Iterator[tuple[tarfile.TarInfo, bytes]]:
    """Every member of every layer, bottom first, with the content of files."""
    for layer in manifests(out)[architecture]["layers"]:
        with tarfile.open(Layout(out).path(Digest.parse(layer["digest"])), "r:gz") as archive:
            for member in archive:
                file = archive.extractfile(member) if member.isreg() else None
                yield member, file.read() if file else b""


def layers_packed(done_json: Any) -> list[str]:
    return [layer["name"] for layers in done_json["platforms"].values() for layer in layers if layer["packed"]]


@pytest.fixture(scope="module", params=["small", "real", "both"])
def published(request: pytest.FixtureRequest) -> tuple[Path, Path]:
    """A profile and the layout that it was published to."""
    made = request.getfixturevalue(request.param)
    return (made.profile, made.out) if isinstance(made, Real) else (made, made.parent / "out")


def test_skopeo_copies_every_image(published: tuple[Path, Path], tmp_path: Path) -> None:
    """Nothing below the index changes; the index itself is written anew, since this skopeo drops what it does not know."""
    _, out = published
    copy = tmp_path / "copy"
    judge("skopeo", "copy", "--insecure-policy", "--all", f"oci:{out}:latest", f"oci:{copy}:latest")
    ours, theirs = Layout(out).json(top_of(out)), Layout(copy).json(top_of(copy))
    assert [entry["digest"] for entry in theirs["manifests"]] == [entry["digest"] for entry in ours["manifests"]]
    indexes = {top_of(out).hex, top_of(copy).hex}
    left_out = indexes | attached(out)
    expected = {name: data for name, data in Layout(out).blobs().items() if name not in left_out}
    assert {name: data for name, data in Layout(copy).blobs().items() if name not in indexes} == expected


@pytest.mark.parametrize("architecture", ["amd64", "arm64"])
def test_skopeo_makes_an_archive_for_docker(both: Real, architecture: str, tmp_path: Path) -> None:
    override = ("--insecure-policy", f"--override-arch={architecture}", "--override-os=linux")
    archive = f"docker-archive:{tmp_path / 'image.tar'}:both:latest"
    judge("skopeo", "copy", *override, f"oci:{both.out}:latest", archive)
    config = json.loads(judge("skopeo", *override[1:], "inspect", "--config", archive))
    assert config["architecture"] == architecture
    ours = manifests(both.out)[architecture]
    assert config["rootfs"] == Layout(both.out).json(Digest.parse(ours["config"]["digest"]))["rootfs"]


def test_soci_makes_the_very_same_index(published: tuple[Path, Path], tmp_path: Path) -> None:
    """The whole image, converted by soci's own code from the plain image, has our digest."""
    profile, out = published
    soci = locks.parse(profile.with_suffix(".lock.json").read_text(), "lock").soci
    plain(Layout(out), top_of(out), Layout(tmp_path / "plain"))
    sizes = ("-span-size", soci.span_size, "-min-layer-size", soci.min_layer_size)
    assert judge("soci-peer", "convert", *sizes, tmp_path / "plain", tmp_path / "theirs").strip() == str(top_of(out))
    ours = {name: data for name, data in Layout(out).blobs().items() if name not in attached(out)}
    assert ours.items() <= Layout(tmp_path / "theirs").blobs().items()


def test_soci_reads_every_layer_through_its_ztoc(published: tuple[Path, Path]) -> None:
    _, out = published
    layout, checked = Layout(out), 0
    for entry in layout.json(top_of(out))["manifests"]:
        if "artifactType" in entry:
            for described in layout.json(Digest.parse(entry["digest"]))["layers"]:
                layer = Digest.parse(described["annotations"]["com.amazon.soci.image-layer-digest"])
                ztoc = layout.path(Digest.parse(described["digest"]))
                assert "spans" in judge("soci-peer", "check", ztoc, layout.path(layer))
                checked += 1
    assert checked


def test_umoci_unpacks_what_the_layers_hold(published: tuple[Path, Path], tmp_path: Path) -> None:
    """Every file, link, mode, owner and time arrives as it stands in the tars."""
    _, out = published
    for architecture in manifests(out):
        root = unpacked(out, architecture, tmp_path / architecture)
        expected = {member.name.rstrip("/"): (member, data) for member, data in members(out, architecture)}
        found = {str(path.relative_to(root)): path for path in root.rglob("*")}
        assert found.keys() == expected.keys()
        for name, (member, data) in expected.items():
            status = found[name].lstat()
            assert (member.uid, member.gid, member.mtime) == (0, 0, MTIME), name
            assert int(status.st_mtime) == MTIME, name
            if member.issym():
                assert os.readlink(found[name]) == member.linkname
            else:
                assert stat.S_IMODE(status.st_mode) == member.mode, name
            if member.isreg():
                assert found[name].read_bytes() == data, name


def test_the_profiles_own_files_are_in_the_image(small: Path) -> None:
    held = {member.name: (member, data) for member, data in members(small.parent / "out")}
    for path, text in FILES.items():
        if path.startswith("app/"):
            member, data = held[path]
            assert data == text.encode()
            assert member.mode == (0o755 if path == "app/zeta" else 0o644)
    for path, target in LINKS.items():
        assert held[path][0].linkname == target
    assert held["app/settings.json"][1] == b'{"port": 8080, "names": ["x", "y"]}\n'
    assert held["opt/venv/lib/python3.11/site-packages/alpha/__init__.py"][1] == b"__version__ = '1.0'\n"
    assert held["usr/lib/x86_64-linux-gnu/libc.so.6"][0].size == 400_000


def test_how_a_container_starts(small: Path) -> None:
    layout = Layout(small.parent / "out")
    config = layout.json(Digest.parse(manifests(small.parent / "out")["amd64"]["config"]["digest"]))
    assert config["config"] == {
        "Entrypoint": ["python", "/app/main.py"],
        "Env": ["LANG=C.UTF-8", "PATH=/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"],
        "ExposedPorts": {"8080/tcp": {}},
        "User": "65532:65532",
    }
    assert config["created"] == "2023-11-14T22:13:20Z"
    assert int(CREATED) == 1_700_000_000
    assert len(config["history"]) == len(config["rootfs"]["diff_ids"]) == 3


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can change the root")
def test_the_image_runs(real: Real, tmp_path: Path) -> None:
    """The application finds its settings, numpy, and numpy's bytecode, which is not made anew."""
    root = unpacked(real.out, "amd64", tmp_path)
    (cached,) = root.glob("opt/venv/lib/python3.11/site-packages/numpy/__pycache__/__init__.*.pyc")
    before = cached.read_bytes()
    chroot = shutil.which("chroot") or "/usr/sbin/chroot"
    argv = [chroot, str(root), "/opt/venv/bin/python", "-v", "/app/app.py"]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, env={})
    assert done.returncode == 0, done.stderr[-3000:]
    home = "/opt/venv/lib/python3.11/site-packages/numpy"
    assert done.stdout == f"real 10 {home}/__init__.py {home}/__pycache__/__init__.cpython-311.pyc\n"
    assert f"# {home}/__pycache__/__init__.cpython-311.pyc matches {home}/__init__.py" in done.stderr
    assert cached.read_bytes() == before


def test_both_architectures_are_what_they_say(both: Real) -> None:
    """Bytecode is made where the interpreter runs, and every program and library is of its image's machine."""
    lock = locks.parse(both.profile.with_suffix(".lock.json").read_text(), "lock")
    assert [str(item.platform) for item in lock.platforms] == ["linux/amd64", "linux/arm64"]
    for architecture, machine in MACHINES.items():
        names, machines = [], set()
        for member, data in members(both.out, architecture):
            names.append(member.name)
            if data[:4] == b"\x7fELF":
                machines.add(int.from_bytes(data[18:20], "little"))
        assert machines == {machine}
        compiled = [name for name in names if name.endswith(".pyc")]
        assert bool(compiled) is (architecture == "amd64")
        assert any(name.endswith(".so") and "markupsafe" in name for name in names)


def test_a_second_build_of_a_foreign_architecture_is_the_same(both: Real, tmp_path: Path) -> None:
    environment = {
        **os.environ,
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        "LAYERWRIGHT_MIRRORS": str(both.cache / "layerwright"),
    }
    done = run(["publish", "-q", "--offline", both.profile, f"oci:{tmp_path / 'out'}"], tmp_path, environment)
    assert done.digest == both.digest


def test_a_changed_file_packs_one_layer(world: World, tmp_path: Path) -> None:
    profile = world.project(tmp_path)
    environment = world.environment(world.root / "cache")
    before = run(["publish", profile, "oci:out", "--format", "json"], tmp_path, environment).json
    (tmp_path / "app/main.py").write_text("print('changed')\n")
    after = run(["publish", profile, "oci:out", "--lock", "--format", "json"], tmp_path, environment).json
    assert layers_packed(after) == ["files"]
    assert after["digest"] != before["digest"]
    (old,), (new,) = before["platforms"].values(), after["platforms"].values()
    assert old[:-1] == [{**layer, "packed": old[number]["packed"]} for number, layer in enumerate(new[:-1])]
    new = [blob["name"] for blob in after["destinations"][0]["blobs"] if blob["outcome"] != "present" and blob["name"]]
    assert new == ["files", "configuration of linux/amd64"]
    (tmp_path / "app/main.py").write_text(FILES["app/main.py"])
    (tmp_path / "small.lock.json").unlink()
    again = run(["publish", profile, "oci:out", "--format", "json"], tmp_path, environment).json
    assert again["digest"] == before["digest"]
    assert layers_packed(again) == []


def test_a_large_wheel_is_the_same_layer_in_every_image(world: World, tmp_path: Path) -> None:
    data = random.Random(3).randbytes(64 << 20)
    world.index.publish(indexserver.wheel("heavy", "1.0", files={"heavy/weights.bin": data}, method=zipfile.ZIP_STORED))
    layers = []
    profiles = {
        "one": PROFILE.replace("alpha,", "alpha, heavy,"),
        "two": PROFILE.replace('alpha, "beta>=1"', "heavy").replace(", packages: [hello]", "").replace("8080", "80"),
    }
    for name, text in profiles.items():
        profile = write_project(tmp_path / name, text)
        environment = world.environment(tmp_path / name / "cache")
        published = run(["publish", profile, "oci:out", "--format", "json"], profile.parent, environment).json
        (found,) = [layer for layer in published["platforms"]["linux/amd64"] if layer["name"] == "heavy 1.0"]
        layers.append(found)
    assert layers[0] == layers[1]
    assert layers[0]["size"] > 64 << 20


def test_several_destinations_and_tags(world: World, small: Path, tmp_path: Path) -> None:
    environment = world.environment(world.root / "cache")
    done = run(["publish", small, "oci:one:v1", "oci:one:v2", "oci:two"], tmp_path, environment)
    assert {str(top_of(tmp_path / "one", tag)) for tag in ("v1", "v2")} == {done.digest}
    assert str(top_of(tmp_path / "two")) == done.digest
    assert Layout(tmp_path / "one").blobs() == Layout(tmp_path / "two").blobs()
    other = write_project(tmp_path / "other", PROFILE.replace("8080", "8081"))
    changed = run(["publish", other, "oci:one:v2"], tmp_path, environment)
    assert str(top_of(tmp_path / "one", "v2")) == changed.digest != done.digest
    assert str(top_of(tmp_path / "one", "v1")) == done.digest


def test_the_destination_that_the_profile_names_lies_beside_it(world: World, tmp_path: Path) -> None:
    profile = world.project(tmp_path / "project", PROFILE + "  to: oci:images/small:v3\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    done = run(["publish", profile], elsewhere, world.environment(world.root / "cache"))
    assert str(top_of(profile.parent / "images/small", "v3")) == done.digest
    assert list(elsewhere.iterdir()) == []


def unpacked(out: Path, architecture: str, folder: Path) -> Path:
    """The root file system, unpacked by umoci."""
    copy = Layout(folder / "plain")
    plain(Layout(out), top_of(out), copy)
    (entry,) = json.loads((copy.root / "index.json").read_bytes())["manifests"]
    found = copy.json(Digest.parse(entry["digest"]))["manifests"]
    (manifest,) = [each for each in found if each["platform"]["architecture"] == architecture]
    named = manifest | {"annotations": {"org.opencontainers.image.ref.name": "latest"}}
    (copy.root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    rootless = [] if os.geteuid() == 0 else ["--rootless"]
    judge("umoci", "raw", "unpack", *rootless, "--image", f"{copy.root}:latest", folder / "root")
    return folder / "root"
