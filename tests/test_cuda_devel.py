"""A composed devel flavour compiles: with its own nvcc and its own gcc, in its unpacked root.

It takes 2 GB of wheels, so that it runs where it is asked for: LAYERWRIGHT_TEST_DEVEL=1, as `make test-devel` does.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from pathlib import Path

import judges
import pytest
from world import run

PROFILE = """\
profile: 1
name: devel
base: {debian: bookworm}
cuda: {version: "13.2", flavour: devel}
publish: {soci: false}
"""
SOURCE = Path(__file__).parent / "data/sums.cu"

asked = pytest.mark.skipif(not os.environ.get("LAYERWRIGHT_TEST_DEVEL"), reason="LAYERWRIGHT_TEST_DEVEL is not set")


@asked
def test_a_kernel_is_compiled_and_linked_in_the_image(tmp_path: Path) -> None:
    """The program has code for sm_90, needs what it was linked with, and starts: without a GPU it says that there is none."""
    cuobjdump = judges.require("cuobjdump")
    root, env = _unpacked(tmp_path)
    shutil.copy(SOURCE, root / "tmp/sums.cu")
    for name, options in (("static", []), ("shared", ["-cudart", "shared"])):
        _inside(root, env, ["nvcc", "-arch=sm_90", *options, "-o", f"/tmp/{name}", "/tmp/sums.cu", "-lcublas"])
        program = root / "tmp" / name
        listed = subprocess.run([cuobjdump, "--list-elf", program], capture_output=True, text=True, check=True).stdout
        assert "sm_90." in listed
        needed = subprocess.run(["readelf", "-d", program], capture_output=True, text=True, check=True).stdout
        assert "[libcublas.so.13]" in needed
        assert ("[libcudart.so.13]" in needed) is (name == "shared")
        done = _inside(root, env, [f"/tmp/{name}"], check=False)
        if done.returncode == 3:  # the error's name depends on how much of a driver there is
            assert done.stdout.strip() in ("cudaErrorInsufficientDriver", "cudaErrorNoDevice")
        else:
            assert (done.returncode, done.stdout) == (0, "1024 1024\n")


def _unpacked(folder: Path) -> tuple[Path, dict[str, str]]:
    """The root of a new image of the profile, and the variables of its containers."""
    profile = folder / "devel.yaml"
    profile.write_text(PROFILE)
    out = folder / "out"
    assert run(["publish", "-q", "--no-attach", profile, f"oci:{out}"], folder, os.environ).code == 0

    def blob(digest: str) -> Path:
        return out / "blobs/sha256" / digest.partition(":")[2]

    document = json.loads((out / "index.json").read_bytes())
    while "manifests" in document:
        document = json.loads(blob(document["manifests"][0]["digest"]).read_bytes())
    root = folder / "root"
    root.mkdir()
    for layer in document["layers"]:
        # tarfile has filters from Python 3.11.4 on only
        subprocess.run(["tar", "--extract", "--gzip", "--file", blob(layer["digest"]), "--directory", root], check=True)
        blob(layer["digest"]).unlink()
    config = json.loads(blob(document["config"]["digest"]).read_bytes())["config"]
    return root, dict(line.split("=", 1) for line in config["Env"])


def _inside(
    root: Path, env: dict[str, str], command: list[str], *, check: bool = True
) -> subprocess.CompletedProcess[str]:
    """Runs a program of the image, with the image's root as its root."""
    become_root = [] if os.geteuid() == 0 else ["unshare", "--user", "--map-root-user"]
    argv = [*become_root, "chroot", str(root), *command]
    done = subprocess.run(
        argv, env={**env, "PATH": f"{env['PATH']}:/usr/sbin"}, capture_output=True, text=True, check=False
    )
    assert not check or done.returncode == 0, done.stdout + done.stderr
    return done
