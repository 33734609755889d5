"""The image by Nix alone: `build plan --format nix` writes what `lib.mkImage` of the flake makes the whole image of."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import baseimages
import judges
import nixworld
import pytest
from nixmachines import CONFIG, SYSTEM, Machine, Machines
from world import PROFILE, run, write_project

from builder.coldstart import trace as traces
from builder.coldstart.trace import Part, Trace, TracedFile

ROOT = Path(__file__).resolve().parent.parent
FLAKE = """\
{{
  inputs.layerwright.url = "path:{source}";
  outputs = {{ self, layerwright }}: {{
    packages.{system}.default = (layerwright.lib.mkImage {{ plan = ./plan.json; src = ./.; }}).image;
  }};
}}
"""


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The flake of Layerwright, without what a checkout has beside it."""
    root = tmp_path_factory.mktemp("source")
    for name in ("flake.nix", "nix", "builder/__init__.py"):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile)(ROOT / name, root / name)
    return root


def flake(machine: Machine, source: Path, *options: str) -> Path:
    """The profile's folder as a flake, with its plan."""
    folder = machine.root / "flake"
    shutil.copytree(machine.project, folder, symlinks=True)
    done = machine("plan", "--format", "nix", *options)
    assert done.code == 0, done.err
    (folder / "plan.json").write_text(done.out)
    (folder / "flake.nix").write_text(FLAKE.format(source=source, system=SYSTEM))
    return folder


def build(machine: Machine, folder: Path) -> subprocess.CompletedProcess[str]:
    """Builds the flake."""
    config = f"{CONFIG}experimental-features = nix-command flakes\nsandbox = true\nsandbox-fallback = false\n"
    argv = ["nix", "build", "--json", "--no-link", "--no-write-lock-file", f"path:{folder}"]
    where = {**os.environ, "NIX_REMOTE": str(machine.root / "nix"), "NIX_CONFIG": config}
    return subprocess.run(argv, env=where, check=False, capture_output=True, text=True)


def built(machine: Machine, folder: Path) -> Path:
    """Builds the flake; where the layout is on the disk."""
    done = build(machine, folder)
    assert done.returncode == 0, done.stderr
    (made,) = json.loads(done.stdout)
    return machine.root / "nix" / str(made["outputs"]["out"]).lstrip("/")


def test_the_image_is_the_same(nix_machines: Machines, source: Path) -> None:
    """Nix fetches the inputs by itself, and needs the profile's folder for its files."""
    machine = nix_machines.new("flake")
    folder = flake(machine, source)
    plan = json.loads((folder / "plan.json").read_text())
    assert {place.get("url", "")[:17] for place in plan["files"].values()} == {"http://127.0.0.1:"}
    layout = built(machine, folder)
    assert digest(layout) == nix_machines.digest
    blobs = list((layout / "blobs/sha256").iterdir())
    assert all(path.is_file() for path in blobs)
    assert sum(path.is_symlink() and "-3-wheels-" in os.readlink(path) for path in blobs) == 2  # the layer and its ztoc
    argv = [str(judges.require("skopeo")), "copy", "--quiet", f"oci:{layout}:latest", f"dir:{machine.root / 'copied'}"]
    subprocess.run(argv, check=True)
    where = nix_machines.world.environment(machine.root / "cache")
    assert run(["copy", f"oci:{layout}", "oci:elsewhere"], machine.root, where).code == 0
    assert "valid: " in run(["verify", "--quick", "oci:elsewhere"], machine.root, where).out
    assert not any(path.is_symlink() for path in (machine.root / "elsewhere").rglob("*"))
    (folder / "app/Alpha").write_text("changed")
    done = build(machine, folder)
    assert done.returncode
    assert "layerwright error: " in done.stderr
    assert "app/Alpha" in done.stderr


def test_on_top_of_an_image_with_things_from_nix(nix_machines: Machines, tmp_path: Path) -> None:
    """Base layers have no address, and are added; what comes from Nix is taken from its store; nothing is fetched."""
    nix_machines.at(tmp_path)
    nixworld.maker(tmp_path)
    base = baseimages.layout(tmp_path / "base", [[*baseimages.debian(), baseimages.folder("srv/tools", 0o750, 7, 8)]])
    text = f"""\
profile: 1
name: top
base: {{image: "oci:{base}:base"}}
platforms: [linux/amd64]
nix: [{{from: default.nix#app, links: {{/srv/tools: bin}}}}]
templates: [{{from: text, to: /srv/text}}]
"""
    (tmp_path / "top.yaml").write_text(text)
    (tmp_path / "text").write_text("{{ 6 * 7 }}")
    where = nix_machines.world.environment(tmp_path / "cache", **nixworld.environment(tmp_path))
    expected = run(["publish", "top.yaml", "oci:out"], tmp_path, where).digest
    done = run(["plan", "--offline", "--format", "nix", "top.yaml"], tmp_path, where)
    assert done.code == 0, done.err
    (tmp_path / "plan.json").write_text(done.out)
    plan = json.loads(done.out)
    assert sorted(list(place) for place in plan["files"].values()) == [[], ["path"], ["path"], ["path"]]
    argv = ("-f", str(ROOT / "nix/engine.nix"), "--argstr", "plan", str(tmp_path / "plan.json"), "image")
    (made,) = json.loads(nixworld.nix(tmp_path, "build", "--json", "--no-link", *argv))
    assert digest(tmp_path / "nix" / made["outputs"]["out"].lstrip("/")) == expected


def test_what_a_start_reads_first(nix_machines: Machines, tmp_path: Path) -> None:
    """No derivation of a layer knows the trace: those layers are packed in that of the image."""
    text = PROFILE.replace("soci: {", "soci: {spans: adaptive, prefetch: true, ")
    profile = write_project(tmp_path / "project", f"{text}start: {{trace: small.trace.json, order: all}}\n")
    files = (
        TracedFile("opt/venv/lib/python3.11/site-packages/alpha/blob.bin", 4096000, (Part(1 << 20, 2 << 20),)),
        TracedFile("usr/bin/hello", 12),
    )
    profile.with_name("small.trace.json").write_text(traces.encode(Trace(traces.VERSION, "linux/amd64", files)))
    machine = nix_machines.at(tmp_path / "machine", profile.parent)
    assert machine("lock").code == 0
    expected = machine("assemble", "--no-attach").digest
    done = machine("plan", "--offline", "--format", "nix")
    assert done.code == 0, done.err
    plan = json.loads(done.out)
    assert plan["layers"] == {}
    (tmp_path / "plan.json").write_text(done.out)
    layers = ["--arg", "src", str(profile.parent), "image"]
    argv = ["-f", str(ROOT / "nix/engine.nix"), "--argstr", "plan", str(tmp_path / "plan.json"), *layers]
    command = ["--extra-experimental-features", "nix-command", "build", "--json", "--no-link", *argv]
    (made,) = json.loads(machine.nix("nix", *command))
    assert digest(machine.root / "nix" / made["outputs"]["out"].lstrip("/")) == expected


def test_what_cannot_be_meant(nix_machines: Machines) -> None:
    machine = nix_machines.new("usage")
    assert machine("plan", "--format", "nix", "--findings").code == 2
    assert machine("plan", "--nix-packer", "/nix/store/x").code == 2


def digest(layout: Path) -> str:
    """Of the one image in a layout."""
    (entry,) = json.loads((layout / "index.json").read_text())["manifests"]
    return str(entry["digest"])
