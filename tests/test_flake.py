"""The flake: it evaluates and checks without inputs, a network or nixpkgs, and says of Layerwright what pyproject.toml says."""

from __future__ import annotations

import json
import os
import re
import shutil
import tomllib
from pathlib import Path

import judges
import nixworld
import pytest

from builder import __version__

ROOT = Path(__file__).resolve().parent.parent
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


@pytest.fixture(scope="module")
def flake(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What Nix reads of the sources, in a folder of its own: a checkout may have what is not committed."""
    judges.require("nix")
    root = tmp_path_factory.mktemp("flake")
    for name in ("flake.nix", "pyproject.toml", "nix", "builder/__init__.py"):
        (root / "source" / name).parent.mkdir(parents=True, exist_ok=True)
        copy = shutil.copytree if (ROOT / name).is_dir() else shutil.copyfile
        copy(ROOT / name, root / "source" / name)
    return root


@pytest.fixture(params=["installed", "newer"])
def store(request: pytest.FixtureRequest, flake: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store for each version of Nix, which is the first on PATH."""
    if request.param == "newer":
        monkeypatch.setenv("PATH", f"{request.getfixturevalue('newer_nix')}:{os.environ['PATH']}")
    return flake / str(request.param)


def test_show(flake: Path, store: Path) -> None:
    shown = json.loads(nixworld.nix(store, "flake", "show", "--json", f"path:{flake}/source"))
    assert shown["checks"]["x86_64-linux"]["smoke"]["type"] == "derivation"
    assert shown["overlays"]["default"]["type"] == "nixpkgs-overlay"


def test_check(flake: Path, store: Path) -> None:
    """It builds the smoke check, which holds what the engine makes of a plan."""
    nixworld.nix(store, "flake", "check", f"path:{flake}/source")
    system = nixworld.evaluated(store, "builtins.currentSystem")
    argv = ("build", "--no-link", "--json", f"path:{flake}/source#checks.{system}.smoke")
    (built,) = json.loads(nixworld.nix(store, *argv))
    told = json.loads((store / "nix" / built["outputs"]["out"].removeprefix("/")).read_bytes())
    assert told["version"] == __version__
    assert re.fullmatch(r"/nix/store/\w{32}-smoke-layers\.drv", told["all"])
    assert re.fullmatch(r"/nix/store/\w{32}-smoke-image\.drv", told["image"])
    assert re.fullmatch(r"/nix/store/\w{32}-a-layer\.drv", told["layer"])


@pytest.mark.parametrize("version", ["3.11.9", "3.14.0"])
def test_the_package(flake: Path, version: str) -> None:
    """Of a nixpkgs that only says what it is asked for; the overlay and the second flake give the same."""
    names = [re.split(r"[^A-Za-z0-9.-]", text)[0].replace(".", "-") for text in PROJECT["dependencies"]]
    listed = " ".join(f'"{name}"' for name in [*names, "hatchling"])
    pkgs = f"""
      let packages = builtins.listToAttrs (map (name: {{ inherit name; value = name; }}) [ {listed} ]);
      in {{ python3 = {{ version = "{version}"; pkgs = packages // {{ buildPythonApplication = x: x; }}; }}; }}"""
    top = f'(builtins.getFlake "path:{flake}/source")'
    plain = "package: builtins.removeAttrs package [ ''src'' ] // { source = baseNameOf package.src; }"
    ways = f"""
      let pkgs = {pkgs}; plain = {plain};
          second = (import {flake}/source/nix/nixpkgs/flake.nix).outputs {{
            self = {{ }}; nixpkgs.legacyPackages = {{ x86_64-linux = pkgs; aarch64-linux = pkgs; }};
          }};
      in map plain [
        ({top}.lib.mkPackage {{ inherit pkgs; }})
        ({top}.overlays.default pkgs pkgs).layerwright
        second.packages.x86_64-linux.default
      ]"""
    first, *others = nixworld.evaluated(flake, ways)
    assert others == [first, first]
    assert (first["pname"], first["version"]) == ("layerwright", __version__)
    old = version < "3.14"
    assert first["dependencies"] == [name for name in names if old or name != "backports-zstd"]
