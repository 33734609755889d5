"""CUDA in images: links lead to what the wheels bring, containers are told, headers are there once."""

from __future__ import annotations

import csv
import io
import json
import os
import subprocess
from pathlib import Path

import baseimages
import cudawheels
import pytest
from debarchive import Item
from hypothesis import given
from hypothesis import strategies as st
from indexserver import wheel
from world import World, package, run, write_project

from builder.cuda import links
from builder.layers.tar import Kind

SITE = "opt/venv/lib/python3.11/site-packages"
PROFILE = """\
profile: 1
name: cuda
base: {{debian: bookworm}}
{python}cuda: {{version: "{version}", flavour: {flavour}, cudnn: {cudnn}}}
"""
PYTHON = 'python: {version: "3.11", requirements: [alpha], bytecode: false}\n'


def shown(minor: str, wheels: dict[str, list[str]]) -> dict[str, str]:
    """The links as `place -> target`."""
    found = links.entries(minor, "site", wheels)
    assert [entry.path for entry in found] == sorted({entry.path for entry in found}, key=str.encode)
    return {entry.path: entry.linkname for entry in found if entry.kind is Kind.SYMLINK}


def test_cuda_13_is_a_link_to_what_the_wheels_share() -> None:
    wheels = {
        "nvidia-cuda-runtime": ["nvidia/cu13/lib/libcudart.so.13", "nvidia/cu13/include/cuda.h", "x/y.py"],
        "nvidia-cuda-nvcc": ["nvidia/cu13/bin/nvcc", "nvidia/cu13/nvvm/bin/cicc"],
        "nvidia-cudnn-cu13": ["nvidia/cudnn/lib/libcudnn.so.9", "nvidia/cudnn/include/cudnn.h", "nvidia/__init__.py"],
        "nvidia-nccl-cu13": ["nvidia/nccl/include/dev/core.h", "nvidia/nccl/share/doc", "nvidia/nccl/lib/__init__.py"],
    }
    assert shown("13.2", wheels) == {
        "site/nvidia/cu13/include/cudnn.h": "../../cudnn/include/cudnn.h",
        "site/nvidia/cu13/include/dev": "../../nccl/include/dev",
        "site/nvidia/cu13/lib/libcudart.so": "libcudart.so.13",
        "site/nvidia/cu13/lib/libcudnn.so": "libcudnn.so.9",
        "site/nvidia/cu13/lib/libcudnn.so.9": "../../cudnn/lib/libcudnn.so.9",
        "site/nvidia/cu13/lib64": "lib",
        "usr/local/cuda": "cuda-13.2",
        "usr/local/cuda-13.2": "../../site/nvidia/cu13",
    }


def test_cuda_12_is_a_folder_of_links() -> None:
    wheels = {
        "nvidia-cublas-cu12": ["nvidia/cublas/lib/libcublas.so.12", "nvidia/cublas/include/cublas.h"],
        "nvidia-cuda-cccl-cu12": ["nvidia/cuda_cccl/include/cub/a.h", "nvidia/cuda_cccl/include/cub/b/c.h"],
        "nvidia-cuda-nvcc-cu12": ["nvidia/cuda_nvcc/bin/ptxas", "nvidia/cuda_nvcc/include/crt/host.h"],
        "nvidia-cuda-runtime-cu12": [
            "nvidia/__init__.py",
            "nvidia/cuda_runtime/__init__.py",
            "nvidia/cuda_runtime/include/__init__.py",
            "nvidia/cuda_runtime/include/crt/math.h",
            "nvidia/cuda_runtime/include/crt/host.h",
        ],
    }
    home = "usr/local/cuda-12.8"
    site = "../../../../site/nvidia"
    assert shown("12.8", wheels) == {
        f"{home}/bin": "../../../site/nvidia/cuda_nvcc/bin",
        f"{home}/include/crt/host.h": "../../../../../site/nvidia/cuda_nvcc/include/crt/host.h",
        f"{home}/include/crt/math.h": "../../../../../site/nvidia/cuda_runtime/include/crt/math.h",
        f"{home}/include/cub": f"{site}/cuda_cccl/include/cub",
        f"{home}/include/cublas.h": f"{site}/cublas/include/cublas.h",
        f"{home}/lib/libcublas.so": "libcublas.so.12",
        f"{home}/lib/libcublas.so.12": f"{site}/cublas/lib/libcublas.so.12",
        f"{home}/lib64": "lib",
        "usr/local/cuda": "cuda-12.8",
    }


def test_what_is_there_is_not_linked_over() -> None:
    """A linker's name, a lib64, or a file in the place of a link that a wheel brings by itself."""
    wheels = {
        "nvidia-a": [
            *(
                f"nvidia/cu13/lib/{name}"
                for name in ("liba.so", "liba.so.1", "libb.so.9", "libb.so.10", "libcudnn.so.9")
            ),
            *("nvidia/cu13/lib64/x", "nvidia/cu13/include/dev"),
        ],
        "nvidia-cudnn-cu13": ["nvidia/cudnn/lib/libcudnn.so.9", "nvidia/cudnn/include/dev/core.h"],
    }
    assert shown("13.2", wheels) == {
        "site/nvidia/cu13/lib/libb.so": "libb.so.10",
        "site/nvidia/cu13/lib/libcudnn.so": "libcudnn.so.9",
        "usr/local/cuda": "cuda-13.2",
        "usr/local/cuda-13.2": "../../site/nvidia/cu13",
    }


PARTS = st.sampled_from(
    ["nvidia", "cu13", "cudnn", "lib", "lib64", "include", "liba.so.1", "liba.so", "liba.so.1.", "a", "b"]
)
PATHS = st.lists(st.lists(PARTS, min_size=1, max_size=7).map("/".join), max_size=12)


@given(st.dictionaries(st.sampled_from(["nvidia-a", "nvidia-b", "nvidia-c"]), PATHS), st.sampled_from(["12.8", "13.2"]))
def test_links_of_any_wheels(wheels: dict[str, list[str]], minor: str) -> None:
    """No place is there twice, or below a link, or is a wheel's file; every link leads to a wheel's file or folder."""
    files = {path for paths in wheels.values() for path in paths}
    wheels = {name: [path for path in paths if not _is_folder(path, files)] for name, paths in wheels.items()}
    there = {f"site/{path}" for paths in wheels.values() for path in paths}
    folders = {"/".join(path.split("/")[:depth]) for path in there for depth in range(1, path.count("/") + 1)}
    found = shown(minor, wheels)
    assert not found.keys() & (there | folders)
    for place, target in found.items():
        above = place.rpartition("/")[0]
        assert not any(f"{above}/".startswith(f"{other}/") for other in found), place
        leads = os.path.normpath(f"{above}/{target}")
        if place not in ("usr/local/cuda", "usr/local/cuda-13.2") and not place.endswith("/lib64"):
            assert leads in there | folders | found.keys(), place


def _is_folder(path: str, files: set[str]) -> bool:
    return any(other.startswith(f"{path}/") for other in files)


# -- whole images ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def cuda(world: World) -> World:
    """The small world with NVIDIA's wheels in small."""
    world.index.publish(*cudawheels.all_wheels())
    libraries = (("libstdc++6", "12.2.0-14"), ("zlib1g", "1:1.2.13"), ("dash", "0.5.12"), ("g++", "4:12.2.0"))
    world.release(*(package(name, version, [Item(f"./usr/share/{name}/x", b"x")]) for name, version in libraries))
    return world


def published(world: World, root: Path, profile: str) -> tuple[Path, dict[str, str], dict[str, str]]:
    """The unpacked root of a new image, its variables and labels."""
    path = write_project(root / "project", profile)
    assert not any((root / name).exists() for name in ("out", "root"))
    environ = world.environment(world.root / "cache")
    assert run(["publish", "-q", path, f"oci:{root / 'out'}"], root, environ).code == 0
    out, unpacked = root / "out", root / "root"

    def blob(digest: str) -> Path:
        return out / "blobs/sha256" / digest.partition(":")[2]

    document = json.loads((out / "index.json").read_bytes())
    while "manifests" in document:
        document = json.loads(blob(document["manifests"][0]["digest"]).read_bytes())
    unpacked.mkdir()
    for layer in document["layers"]:
        # tarfile has filters from Python 3.11.4 on only
        subprocess.run(
            ["tar", "--extract", "--gzip", "--file", blob(layer["digest"]), "--directory", unpacked], check=True
        )
    config = json.loads(blob(document["config"]["digest"]).read_bytes())["config"]
    return unpacked, dict(line.partition("=")[::2] for line in config["Env"]), config.get("Labels", {})


@pytest.mark.parametrize("python", [PYTHON, ""], ids=["with Python", "without Python"])
@pytest.mark.parametrize(("version", "flavour"), [("13.2", "runtime"), ("12.8", "runtime")])
def test_an_image_with_cuda(cuda: World, tmp_path: Path, version: str, flavour: str, python: str) -> None:
    text = PROFILE.format(version=version, flavour=flavour, cudnn="true", python=python)
    root, env, labels = published(cuda, tmp_path, text)
    found = [path for path in root.rglob("*") if path.is_symlink() and "nvidia" in f"{path}{os.readlink(path)}"]
    assert len(found) > 8
    for path in found:
        assert path.resolve().is_relative_to(root), path
        assert path.exists(), path
    major = version.partition(".")[0]
    for name in ("cudart", "cublas", "cublasLt", "nvrtc", "cudnn", "cudnn_ops", "nccl"):
        for home in ("cuda", f"cuda-{version}"):
            assert (root / f"usr/local/{home}/lib64/lib{name}.so").is_file()
    assert (root / f"usr/local/cuda/lib64/libcudart.so.{major}").read_text().startswith("cudart")
    for header in ("cuda_runtime.h", "cublas_v2.h", "crt/math.h", "cudnn.h", "nccl.h", "nccl_device/core.h"):
        assert (root / "usr/local/cuda/include" / header).is_file()
    assert (root / "etc/ld.so.conf.d/nvidia.conf").read_text() == "/usr/local/cuda/lib64\n"
    assert env["CUDA_VERSION"] == ("13.2.1" if major == "13" else "12.8.2")
    assert env["PATH"].startswith("/opt/venv/bin:/usr/local/nvidia/bin:" if python else "/usr/local/nvidia/bin:")
    assert env["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert env["NVIDIA_REQUIRE_CUDA"].startswith("cuda>=")
    assert labels["com.nvidia.cudnn.version"] == "9.26.0.51"
    assert (root / "opt/venv/pyvenv.cfg").exists() is bool(python)


def test_an_image_with_cuda_is_verified_from_its_lock(cuda: World, tmp_path: Path) -> None:
    """And its SBOM has the wheels, and a comparison with another one says what differs."""
    profile = PROFILE.format(version="13.2.0", flavour="devel", cudnn="true", python="")
    published(cuda, tmp_path, profile)
    environ = cuda.environment(cuda.root / "cache")
    done = run(["verify", "--format", "json", f"oci:{tmp_path / 'out'}"], tmp_path, environ)
    assert done.json["verdict"] == "identical"
    lock = tmp_path / "project/small.lock.json"
    names = {deb["name"] for deb in json.loads(lock.read_bytes())["platforms"][0]["debian"]["packages"]}
    assert names >= {"libc6", "libstdc++6", "zlib1g", "dash", "g++"}
    other = write_project(tmp_path / "other", profile.replace("13.2.0", "13.2.1").replace("devel", "runtime"))
    assert run(["lock", other], tmp_path, environ).code == 0
    told = run(["diff", "--exit-code", lock, other.with_suffix(".lock.json")], tmp_path, environ)
    assert told.code == 3
    for line in ("nvidia-cuda-runtime", "13.2.51", "13.2.75", "nvidia-cuda-nvcc", "CUDA_VERSION", "devel", "runtime"):
        assert line in told.out, told.out


def test_images_with_and_without_python_share_layers(cuda: World, tmp_path: Path) -> None:
    """A wheel without modules is the same layer in both."""
    digests = []
    for python in (PYTHON, ""):
        root = tmp_path / str(bool(python))
        text = PROFILE.format(version="13.2", flavour="base", cudnn="auto", python=python)
        path = write_project(root, text)
        environ = cuda.environment(cuda.root / "cache")
        assert run(["lock", path], root, environ).code == 0
        plan = run(["plan", "--format", "json", path], root, environ).json
        digests.append({layer["name"]: layer["key"] for layer in plan["platforms"]["linux/amd64"]["layers"]})
    assert digests[0]["cuda 13.2"] == digests[1]["cuda 13.2"]


def test_flavour_none_only_tells_containers(cuda: World, tmp_path: Path) -> None:
    text = PROFILE.format(version="13.2", flavour="none", cudnn="auto", python=PYTHON)
    root, env, _ = published(cuda, tmp_path, text)
    assert not (root / "usr/local/cuda").is_symlink()
    assert env["CUDA_VERSION"] == "13.2.1"
    assert env["LD_LIBRARY_PATH"] == "/usr/local/nvidia/lib:/usr/local/nvidia/lib64"


@pytest.mark.parametrize("version", ["13.2", "12.8"])
def test_nothing_links_to_what_is_left_out(cuda: World, tmp_path: Path, version: str) -> None:
    text = PROFILE.format(version=version, flavour="runtime", cudnn="auto", python="")
    text += 'slim: [{wheels: [nvidia-cublas, nvidia-cublas-cu12], drop: ["libcublasLt.so.*"]}]\n'
    text = text.replace("nvidia-cublas, nvidia-cublas-cu12", f"nvidia-cublas{'' if version == '13.2' else '-cu12'}")
    root, _, _ = published(cuda, tmp_path, text)
    names = {path.name for path in (root / "usr/local/cuda/lib").iterdir()}
    assert {"libcublas.so", "libcudart.so"} <= names
    assert not {name for name in names if name.startswith("libcublasLt")}
    assert all(path.exists() for path in root.rglob("*") if path.is_symlink())


def test_a_profile_overrides_what_containers_are_told(cuda: World, tmp_path: Path) -> None:
    text = PROFILE.format(version="13.2", flavour="base", cudnn="auto", python="")
    text += (
        "image: {env: {NVIDIA_DRIVER_CAPABILITIES: all, LD_LIBRARY_PATH: /x}, labels: {com.nvidia.cudnn.version: no}}\n"
    )
    _, env, labels = published(cuda, tmp_path, text)
    assert (env["NVIDIA_DRIVER_CAPABILITIES"], env["LD_LIBRARY_PATH"]) == ("all", "/x")
    assert labels["com.nvidia.cudnn.version"] == "no"


def test_on_top_of_an_image(cuda: World, tmp_path: Path) -> None:
    """One without CUDA gets it; one with CUDA keeps its own, and gets no second one."""
    members = [*baseimages.debian(), *baseimages.python("3.11.9")]
    baseimages.layout(tmp_path / "plain", [members], "base", "--config.env=LD_LIBRARY_PATH=/own")
    settings = ("--config.env=CUDA_VERSION=13.2.0", "--config.env=LD_LIBRARY_PATH=/theirs")
    baseimages.layout(tmp_path / "nvidia", [members], "base", *settings)

    def profile(base: str, flavour: str, version: str = "13.2") -> str:
        text = PROFILE.format(
            version=version, flavour=flavour, cudnn="auto", python=PYTHON.replace(", bytecode: false", "")
        )
        return text.replace("{debian: bookworm}", f'{{image: "oci:{tmp_path / base}:base"}}')

    (tmp_path / "one").mkdir()
    root, env, _ = published(cuda, tmp_path / "one", profile("plain", "base"))
    assert (root / "usr/local/cuda/lib64/libcudart.so").is_file()
    assert env["LD_LIBRARY_PATH"].split(":")[-2:] == ["/usr/local/cuda/lib64", "/own"]
    (tmp_path / "two").mkdir()
    root, env, _ = published(cuda, tmp_path / "two", profile("nvidia", "none"))
    assert (env["CUDA_VERSION"], env["LD_LIBRARY_PATH"]) == ("13.2.0", "/theirs")
    assert not (root / "usr/local/cuda").is_symlink()
    for number, (flavour, version, message) in enumerate(
        (("runtime", "13.2", "that has it already, twice"), ("none", "12.8", "the base image has CUDA 13.2, not 12.8"))
    ):
        path = write_project(tmp_path / str(number), profile("nvidia", flavour, version))
        done = run(["lock", path], tmp_path, cuda.environment(cuda.root / "cache"))
        assert (done.code, message in done.err) == (1, True), done.err


def test_a_lock_with_cuda_is_kept_and_gets_stale(cuda: World, tmp_path: Path) -> None:
    text = PROFILE.format(version="13.2.0", flavour="base", cudnn="auto", python="")
    path = write_project(tmp_path, text)
    environ = cuda.environment(cuda.root / "cache")
    assert run(["lock", path], tmp_path, environ).code == 0
    lock = path.with_suffix(".lock.json")
    before = lock.read_bytes()
    assert run(["lock", "--check", path], tmp_path, environ).code == 0
    assert run(["lock", path], tmp_path, {**environ, "LAYERWRIGHT_OFFLINE": "1"}).code == 0
    assert lock.read_bytes() == before
    path.write_text(text.replace("13.2.0", "13.2"))
    assert run(["lock", "--check", path], tmp_path, environ).code == 3
    assert run(["lock", path], tmp_path, environ).code == 0
    assert json.loads(lock.read_bytes())["platforms"][0]["cuda"]["version"] == "13.2.0"  # as it was: it goes
    assert run(["lock", "--upgrade", path, "cuda-toolkit"], tmp_path, environ).code == 0
    assert json.loads(lock.read_bytes())["platforms"][0]["cuda"]["version"] == "13.2.1"


def test_headers_of_two_wheels_are_there_once(cuda: World, tmp_path: Path) -> None:
    """As CUPTI and the sanitizer have them; with pip, whichever comes last wins."""
    cuda.index.publish(cudawheels.component("sanitizer", "13.2.80", "13.2.1"))
    python = PYTHON.replace("[alpha]", "[nvidia-cuda-sanitizer-api, nvidia-cuda-cupti]")
    text = PROFILE.format(version="13.2", flavour="base", cudnn="auto", python=python)
    root, _, _ = published(cuda, tmp_path, text)
    header = root / SITE / "nvidia/cu13/include/generated_meta.h"
    assert header.read_text() == "cupti 13.2.75 include/generated_meta.h\n"
    (info,) = (root / SITE).glob("nvidia_cuda_sanitizer_api-*.dist-info")
    rows = list(csv.reader(io.StringIO((info / "SHADOWED").read_text())))
    assert [(row[0], row[3]) for row in rows] == [("nvidia/cu13/include/generated_meta.h", "nvidia-cuda-cupti")]
    assert rows[0][2] == str(len("sanitizer 13.2.80 include/generated_meta.h\n"))
    recorded = {row[0] for row in csv.reader(io.StringIO((info / "RECORD").read_text()))}
    assert f"{info.name}/SHADOWED" in recorded
    assert "nvidia/cu13/include/generated_meta.h" not in recorded
    assert "nvidia/cu13/include/sanitizer.h" in recorded


@pytest.mark.parametrize(
    ("project", "path"), [("nvidia-other", "nvidia/cu13/lib/libx.so.1"), ("other", "nvidia/cu13/include/x.h")]
)
def test_nothing_else_may_collide(cuda: World, tmp_path: Path, project: str, path: str) -> None:
    cuda.index.publish(
        wheel(project, "1.0", files={path: b"one"}), wheel(f"nvidia-2-{project}", "1.0", files={path: b"two"})
    )
    python = PYTHON.replace("alpha", f"{project}, nvidia-2-{project}")
    profile = write_project(tmp_path, PROFILE.format(version="13.2", flavour="base", cudnn="auto", python=python))
    environ = cuda.environment(cuda.root / "cache")
    done = run(["publish", "-q", profile, f"oci:{tmp_path / 'out'}"], tmp_path, environ)
    assert done.code == 1
    assert f"both bring /{SITE}/{path}, with different content" in done.err
