"""On top of images of others: whole builds, judged by the tools that made the bases and by the real soci."""

from __future__ import annotations

import json
import random
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from baseimages import blob, debian, file, layout, manifest, python, skopeo
from judges import require
from layouts import Layout, plain
from test_soci import peer
from world import Done, World, run, world

from builder.oci.digest import Digest

NOISE = random.Random(5).randbytes(3 << 20)
CONFIG = (
    "--config.env=LANG=C.UTF-8",
    "--config.env=PATH=/usr/games:/usr/bin",
    "--config.user=1000:1000",
    "--config.workingdir=/srv",
    "--config.entrypoint=/bin/tini",
    "--config.cmd=serve",
    "--config.label=org.example.base=yes",
    "--config.label=org.example.both=base",
    "--config.exposedports=80/tcp",
    "--config.volume=/data",
    "--config.stopsignal=SIGQUIT",
    "--author=Somebody",
)
PROFILE = """\
profile: 1
name: top
base: {{image: "{base}"}}
python: {{version: "3.11", requirements: [alpha, "beta>=1"]}}
files:
  - {{from: app, to: /app}}
image:
  env: {{LOG: info}}
  ports: [8080]
  labels: {{org.example.both: ours}}
publish:
  soci: {{span-size: 256KiB, min-layer-size: 1MiB}}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with a Debian of three layers; the second takes away and replaces, the last is large."""
    second = [
        file("var/lib/.wh..wh..opq"),
        file("usr/share/.wh.gone"),
        *python("3.11.9"),
        file("etc/motd", b"second\n"),
    ]
    first = [*debian(), file("usr/share/gone", b"x"), file("var/lib/old", b"x"), file("etc/motd", b"first\n")]
    root = tmp_path_factory.mktemp("base") / "layout"
    return layout(root, [first, second, [file("usr/share/large", NOISE)]], "base", *CONFIG)


class Project:
    """A profile on a base image, with a store of its own."""

    def __init__(self, small: World, root: Path, base: str, profile: str = PROFILE) -> None:
        self.root, self.small = root, small
        (root / "app").mkdir(parents=True)
        (root / "app/main.py").write_text("print('hello')\n")
        self.path = root / "top.yaml"
        self.path.write_text(profile.format(base=base))

    def build(self, *arguments: object) -> Done:
        return run(arguments, self.root, self.small.environment(self.root / "cache"))

    def lock(self) -> dict[str, Any]:
        done = self.build("lock", self.path)
        assert done.code == 0, done.err
        document: dict[str, Any] = json.loads(self.path.with_suffix(".lock.json").read_text())
        return document

    def publish(self, *to: str) -> str:
        return self.build("publish", self.path, *to).digest


def image_of(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and configuration of the only platform of a published layout."""
    found = Layout(out)
    top = json.loads((out / "index.json").read_bytes())["manifests"][0]
    index = found.json(Digest.parse(top["digest"]))
    document = found.json(Digest.parse(index["manifests"][0]["digest"]))
    return document, found.json(Digest.parse(document["config"]["digest"]))


def test_layers_are_those_of_the_base_and_its_settings_are_inherited(small: World, base: Path, tmp_path: Path) -> None:
    project = Project(small, tmp_path / "project", f"oci:{base}:base")
    locked = project.lock()["platforms"][0]
    below = manifest(base)
    assert locked["image"]["manifest"] == below["digest"]
    assert locked["image"]["system"] == "Debian GNU/Linux 12 (bookworm)"
    assert (locked["image"]["python"], locked["image"]["libc"]) == ("3.11.9", "2.36")
    assert locked["python"]["executable"] == "/usr/bin/python3.11"
    out = tmp_path / "out"
    top = project.publish(f"oci:{out}")
    document, config = image_of(out)
    assert document["layers"][:3] == below["layers"]
    assert len(document["layers"]) == 6
    for layer in below["layers"]:
        assert blob(out, layer["digest"]).read_bytes() == blob(base, layer["digest"]).read_bytes()
    assert document["annotations"]["org.opencontainers.image.base.digest"] == below["digest"]
    under = json.loads(blob(base, below["config"]["digest"]).read_bytes())
    assert config["rootfs"]["diff_ids"][:3] == under["rootfs"]["diff_ids"]
    assert config["history"][: len(under["history"])] == under["history"]
    assert [step["created_by"] for step in config["history"][len(under["history"]) :]] == [
        "layerwright: environment",
        "layerwright: 3 wheels",
        "layerwright: files",
    ]
    assert config["config"] == {
        "Cmd": ["serve"],
        "Entrypoint": ["/bin/tini"],
        "Env": ["LANG=C.UTF-8", "LOG=info", "PATH=/opt/venv/bin:/usr/games:/usr/bin"],
        "ExposedPorts": {"80/tcp": {}, "8080/tcp": {}},
        "Labels": {"org.example.base": "yes", "org.example.both": "ours"},
        "StopSignal": "SIGQUIT",
        "User": "1000:1000",
        "Volumes": {"/data": {}},
        "WorkingDir": "/srv",
    }
    # umoci judges what is there in the end: whiteouts of the base hold, ours lies on top.
    subprocess.run(
        [require("umoci"), "unpack", "--rootless", "--image", f"{_flat(out, tmp_path)}:flat", tmp_path / "bundle"],
        check=True,
        capture_output=True,
    )
    root = tmp_path / "bundle/rootfs"
    assert (root / "etc/motd").read_text() == "second\n"
    assert not (root / "usr/share/gone").exists()
    assert not (root / "var/lib/old").exists()
    assert (root / "opt/venv/bin/python").readlink() == Path("/usr/bin/python3.11")
    assert (root / "app/main.py").exists()
    # The real tool makes the same of the plain image, byte for byte.
    plain(Layout(out), Digest.parse(top), Layout(tmp_path / "plain"))
    theirs = peer("convert", "-span-size", 256 << 10, "-min-layer-size", 1 << 20, tmp_path / "plain", tmp_path / "soci")
    assert theirs == top
    assert project.build("verify", f"oci:{out}").code == 0
    assert project.publish(f"oci:{out}") == top


def _flat(out: Path, tmp_path: Path) -> Path:
    """The image alone, as umoci reads it."""
    skopeo(f"oci:{out}:latest", f"oci:{tmp_path / 'flat'}:flat")
    return tmp_path / "flat"
