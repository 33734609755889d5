"""Things from Nix in a profile: locked with all that they need, brought, checked, and laid out in layers."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

import judges
import nixworld
import pytest
from layouts import Layout
from world import Done, run

from builder import lock as locks
from builder.lock import LockedNix

PROFILE = """\
profile: 1
name: tools
nix:
  - ./default.nix#app
  - {from: "default.nix#other", links: {/opt/other: bin/other}}
publish: {soci: {span-size: 256KiB, min-layer-size: 1MiB}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile with expressions of Nix beside it, locked and published to `out`; its Nix store is `nix`."""
    judges.require("nix")
    root = tmp_path_factory.mktemp("project")
    nixworld.maker(root)
    (root / "tools.yaml").write_text(PROFILE)
    done = build(root, ["publish", "tools.yaml", "oci:out"])
    assert done.code == 0, done.err
    return root


def build(root: Path, arguments: Sequence[object], cache: str = "cache", **more: str) -> Done:
    environ = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(root / cache), "SOURCE_DATE_EPOCH": "1700000000"}
    return run(arguments, root, environ | nixworld.environment(root) | more)


def locked(root: Path, name: str = "tools") -> LockedNix:
    file = root / f"{name}.lock.json"
    found = locks.parse(file.read_text(), str(file)).platforms[0].nix
    assert found
    return found


def test_a_lock_says_what_nix_says(project: Path) -> None:
    nix = locked(project)
    names = [name for root in nix.roots for name in root.outputs]
    document = json.loads(
        nixworld.nix(project, "path-info", "--json", "--recursive", *(f"/nix/store/{name}" for name in names))
    )
    said = document if isinstance(document, list) else [{"path": path} | item for path, item in document.items()]
    assert [path.name[33:] for path in sorted(nix.paths, key=lambda path: path.name[33:])] == [
        *("app-1.2", "libc-2.36", "libssl-3.0.1", "other")
    ]
    assert {path.name for path in nix.paths} == {item["path"][11:] for item in said}
    for item in said:
        (path,) = (path for path in nix.paths if path.name == item["path"][11:])
        assert path.size == item["narSize"]
        assert {f"/nix/store/{name}" for name in path.references} == set(item["references"])
        dumped = nixworld.nix(project, "store", "dump-path", item["path"])
        assert hashlib.sha256(dumped).hexdigest() == path.sha256


def test_what_is_in_the_image_is_what_nix_has(project: Path) -> None:
    flat = f"oci:{project / 'flat'}:flat"
    argv = [str(judges.require("skopeo")), "copy", "--quiet", f"oci:{project / 'out'}:latest", flat]
    subprocess.run(argv, check=True, capture_output=True)
    unpacked = project / "unpacked"
    argv = [str(judges.require("umoci")), "unpack", "--rootless", "--image", flat.removeprefix("oci:"), str(unpacked)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    store = project / "nix/nix/store"
    for path in locked(project).paths:
        ours, theirs = unpacked / "rootfs/nix/store" / path.name, store / path.name
        files = sorted(item.relative_to(theirs) for item in theirs.rglob("*"))
        assert files == sorted(item.relative_to(ours) for item in ours.rglob("*"))
        for file in files:
            if (theirs / file).is_file():
                assert (ours / file).read_bytes() == (theirs / file).read_bytes()
                assert (ours / file).stat().st_mtime == 1
                assert (ours / file).stat().st_mode & 0o777 == (theirs / file).stat().st_mode & 0o777
    app = next(path.name for path in locked(project).paths if path.name.endswith("-app-1.2"))
    assert os.readlink(unpacked / "rootfs/usr/local/bin/app-1.2") == f"/nix/store/{app}/bin/app-1.2"
    assert os.readlink(unpacked / "rootfs/opt/other").endswith("-other/bin/other")


def test_a_second_store_makes_the_same_image(project: Path, tmp_path: Path) -> None:
    """Where Nix has to build everything again, too."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("tools.yaml", "tools.lock.json", "default.nix", "maker"):
        (elsewhere / name).write_bytes((project / name).read_bytes())
    (elsewhere / "maker").chmod(0o755)
    done = build(elsewhere, ["publish", "tools.yaml", "oci:out"])
    assert done.code == 0, done.err
    assert Layout(elsewhere / "out").blobs() == Layout(project / "out").blobs()
    assert build(elsewhere, ["verify", "oci:out"]).code == 0
