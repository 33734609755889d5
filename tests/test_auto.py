"""`cuda: {flavour: auto}`, from profile to lock: small wheels with ELF files, and NVIDIA's in small."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import baseimages
import cudawheels
import pytest
from debarchive import Item
from elftrees import Elf
from indexserver import Archive, wheel
from world import World, package, run, world

HEAD = """\
profile: 1
name: auto
base: {debian: bookworm}
"""
SITE = "opt/venv/lib/python3.11/site-packages"


@pytest.fixture(scope="module")
def small_cuda(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A world whose wheels are libraries that the loader would take."""
    with world(tmp_path_factory.mktemp("auto")) as running:
        running.index.publish(*_nvidias())
        running.index.publish(
            module("plain", ["libc.so.6"]),
            module("needs-cudart", ["libcudart.so.13", "libcuda.so.1"]),
            module("needs-blas", ["libcublas.so.13"]),
            module("needs-old", ["libcublas.so.12"]),
            module("opens-dnn", ["libc.so.6"], more=b"\0libcudnn.so.9\0libOpenCL.so.1\0"),
            module("needs-nothing-else", ["libcublas.so.13", "libmissing.so.1"]),
            module(
                "finds-wheels", ["libcublas.so.13"], runpath="$ORIGIN/../nvidia/cu13/lib", requires=["nvidia-cublas"]
            ),
            module("loses-wheels", ["libcublas.so.13"], requires=["nvidia-cublas"]),
        )
        running.release(
            package("libc6", "2.37", [Item("./lib/x86_64-linux-gnu/libc.so.6", Elf("libc.so.6").bytes(), mode=0o755)]),
            package("libstdc++6", "12.2.0-14", [Item("./usr/share/doc/x", b"x")]),
            package("zlib1g", "1:1.2.13", [Item("./usr/share/doc/y", b"y")]),
        )
        yield running


def blas() -> Elf:
    return Elf("libcublas.so.13", ["libcublasLt.so.13"], runpath="$ORIGIN")


def module(
    name: str, needed: Sequence[str], *, runpath: str | None = None, more: bytes = b"", requires: Sequence[str] = ()
) -> Archive:
    """A wheel with one extension module."""
    elf = Elf(None, needed, runpath=runpath, more=more)
    files = {f"{name.replace('-', '_')}/_ext.cpython-311-x86_64-linux-gnu.so": elf.bytes()}
    return wheel(name, "1.0", tag=cudawheels.X86, requires=requires, files=files)


def _nvidias() -> list[Archive]:
    """CUDA 13.2 with cuBLAS, cuDNN and NCCL as ELF files."""
    libraries = {
        ("nvidia-cuda-runtime", "13.2.75"): {"cu13/lib/libcudart.so.13": Elf("libcudart.so.13")},
        ("nvidia-cublas", "13.4.0.1"): {
            "cu13/lib/libcublas.so.13": blas(),
            "cu13/lib/libcublasLt.so.13": Elf("libcublasLt.so.13"),
        },
        ("nvidia-cudnn-cu13", "9.26.0.51"): {"cudnn/lib/libcudnn.so.9": Elf("libcudnn.so.9")},
        ("nvidia-nccl-cu13", "2.30.7"): {"nccl/lib/libnccl.so.2": Elf("libnccl.so.2")},
    }
    wheels = [
        wheel(
            name,
            version,
            tag=cudawheels.X86,
            requires=["nvidia-cublas"] if "cudnn" in name else [],
            files={f"nvidia/{path}": elf.bytes() for path, elf in files.items()},
        )
        for (name, version), files in libraries.items()
    ]
    return [cudawheels.table("13.2.1", {"cudart": "13.2.75", "cublas": "13.4.0.1"}), *wheels]


def locked(world: World, root: Path, requirements: Sequence[str], more: str = "") -> dict[str, Any]:
    """The CUDA part of the lock of a profile with these requirements."""
    path = profile(root, requirements, more)
    done = run(["lock", path], root, world.environment(world.root / "cache"))
    assert done.code == 0, done.err
    document = json.loads(path.with_suffix(".lock.json").read_text())["platforms"][0]
    wheels = {item["name"] for item in (document.get("python") or document["cuda"])["wheels"]}
    return {**document["cuda"], "wheels": sorted(name for name in wheels if name.startswith("nvidia-"))}


def profile(root: Path, requirements: Sequence[str], more: str = "") -> Path:
    python = f'python: {{version: "3.11", requirements: {json.dumps(list(requirements))}, bytecode: false}}\n'
    root.mkdir(exist_ok=True)
    path = root / "auto.yaml"
    path.write_text(HEAD + python + f'cuda: {{version: "13.2", flavour: auto{more}}}\n')
    return path


@pytest.mark.parametrize(
    ("requirement", "flavour", "wheels", "reason"),
    [
        ("plain", "none", [], "no file needs a library of CUDA"),
        ("needs-cudart", "base", ["cuda-runtime"], "libcudart.so.13: needed by needs_cudart/_ext."),
        ("opens-dnn", "base", ["cublas", "cuda-runtime", "cudnn-cu13"], "libcudnn.so.9: needed by opens_dnn/_ext."),
        ("loses-wheels", "base", ["cublas", "cuda-runtime"], "brings it, found by way of /usr/local/cuda"),
    ],
)
def test_what_is_chosen(
    requirement: str, flavour: str, wheels: list[str], reason: str, small_cuda: World, tmp_path: Path
) -> None:
    found = locked(small_cuda, tmp_path, [requirement])
    assert found["flavour"] == flavour
    assert found["wheels"] == [f"nvidia-{name}" for name in wheels]
    assert any(reason in line for line in found["reasons"]), found["reasons"]


def test_the_choice_is_kept(small_cuda: World, tmp_path: Path) -> None:
    """And made anew where something else is asked for."""
    first = locked(small_cuda, tmp_path, ["needs-blas"])
    path = tmp_path / "auto.lock.json"
    text = path.read_text()
    assert locked(small_cuda, tmp_path, ["needs-blas"]) == first
    assert path.read_text() == text
    assert locked(small_cuda, tmp_path, ["needs-cudart"])["flavour"] == "base"


def test_what_the_profile_says_beside_it_counts(small_cuda: World, tmp_path: Path) -> None:
    assert locked(small_cuda, tmp_path / "dnn", ["plain"], ", cudnn: true")["wheels"][-1] == "nvidia-cudnn-cu13"
    assert "nvidia-cudnn-cu13" not in locked(small_cuda, tmp_path / "none", ["opens-dnn"], ", cudnn: false")["wheels"]


def test_the_profiles_own_files_count(small_cuda: World, tmp_path: Path) -> None:
    """A library of one's own, for which nothing else is in the image, and a link to it."""
    path = profile(tmp_path, ["plain"])
    (tmp_path / "app").mkdir()
    (tmp_path / "app/libown.so").write_bytes(Elf("libown.so", ["libcudart.so.13"]).bytes())
    (tmp_path / "app/liblink.so").symlink_to("libown.so")
    path.write_text(path.read_text() + "files: [{from: app, to: /lib/own}]\n")
    environ = small_cuda.environment(small_cuda.root / "cache")
    assert run(["lock", path], tmp_path, environ).code == 0
    cuda = json.loads(path.with_suffix(".lock.json").read_text())["platforms"][0]["cuda"]
    assert cuda["flavour"] == "base"
    assert cuda["reasons"] == ["libcudart.so.13: needed by /usr/lib/own/libown.so (own files), brought by nothing else"]
    libraries = run(["plan", path, "--findings", "--format", "json"], tmp_path, environ).json["platforms"][
        "linux/amd64"
    ]["libraries"]
    assert ("own files", "libcudart.so.13") in {(item["of"], item["needs"]) for item in libraries}


def test_what_cannot_run_is_told_when_locking(small_cuda: World, tmp_path: Path) -> None:
    path = profile(tmp_path, ["needs-nothing-else"])
    done = run(["lock", path], tmp_path, small_cuda.environment(small_cuda.root / "cache"))
    assert done.code == 0
    assert "cannot run on linux/amd64: needs-nothing-else 1.0: libmissing.so.1 is missing" in done.err


def test_a_wheel_for_another_cuda(small_cuda: World, tmp_path: Path) -> None:
    path = profile(tmp_path, ["needs-old"])
    done = run(["lock", path], tmp_path, small_cuda.environment(small_cuda.root / "cache"))
    assert done.code == 1
    assert "needs-old 1.0 needs libcublas.so.12 (needs_old/_ext." in done.err
    assert "and CUDA 13.2 has libcublas.so.13" in done.err
    assert "hint: choose the cuda.version" in done.err


def test_the_same_image_from_two_locks(small_cuda: World, tmp_path: Path) -> None:
    digests = set()
    for number, seed in enumerate(("1", "77")):
        root = tmp_path / str(number)
        path = profile(root, ["loses-wheels", "opens-dnn"])
        environ = small_cuda.environment(root / "cache", PYTHONHASHSEED=seed)
        digests.add(run(["publish", "-q", path, f"oci:{root / 'out'}"], root, environ).digest)
    assert len(digests) == 1


def test_a_plan_says_what_is_found_and_where(small_cuda: World, tmp_path: Path) -> None:
    """In short, in full, for programs; and with the exit status, for scripts."""
    environ = small_cuda.environment(small_cuda.root / "cache")
    path = profile(tmp_path, ["loses-wheels"])
    assert run(["lock", path], tmp_path, environ).code == 0
    full = run(["plan", path, "--findings"], tmp_path, environ)
    assert full.code == 0, full.err
    assert "CUDA 13.2.1, flavour base:" in full.out
    assert "found by way of /usr/local/cuda" in full.out
    (row,) = (line for line in full.out.splitlines() if line.startswith("loses-wheels 1.0 "))
    assert row.split()[2:] == [
        "libcublas.so.13",
        "nvidia-cublas",
        "13.4.0.1",
        "/usr/local/cuda/lib64/libcublas.so.13,",
        "by",
        "LD_LIBRARY_PATH",
    ]
    assert "findings: none" in full.out
    document = run(["plan", path, "--findings", "--minimal", "--format", "json"], tmp_path, environ).json["platforms"][
        "linux/amd64"
    ]
    assert set(document) == {"layers", "gpu", "findings", "libraries", "savings"}
    assert {
        "file": f"/{SITE}/loses_wheels/_ext.cpython-311-x86_64-linux-gnu.so",
        "of": "loses-wheels 1.0",
        "needs": "libcublas.so.13",
        "found": "/usr/local/cuda/lib64/libcublas.so.13",
        "is": f"/{SITE}/nvidia/cu13/lib/libcublas.so.13",
        "from": "nvidia-cublas 13.4.0.1",
        "how": "LD_LIBRARY_PATH",
    } in document["libraries"]
    assert set(run(["plan", path, "--format", "json"], tmp_path, environ).json["platforms"]["linux/amd64"]) == {
        "layers",
        "gpu",
    }


def test_a_plan_of_what_cannot_run(small_cuda: World, tmp_path: Path) -> None:
    environ = small_cuda.environment(small_cuda.root / "cache")
    path = profile(tmp_path, ["needs-nothing-else"])
    path.write_text(path.read_text().partition("cuda:")[0])
    assert run(["lock", path], tmp_path, environ).code == 0
    cache = small_cuda.environment(tmp_path / "cache")
    unread = run(["plan", path], tmp_path, cache)
    assert (unread.code, "error" in unread.out) == (0, False), "nothing is fetched for a plan"
    done = run(["plan", path, "--findings"], tmp_path, cache)
    assert done.code == 3
    assert "error: needs-nothing-else 1.0: libmissing.so.1 is missing" in done.out
    assert "1 finding says that something cannot run" in done.err
    short = run(["plan", path], tmp_path, cache)
    assert short.code == 0
    assert "error: needs-nothing-else 1.0: libmissing.so.1 is missing" in short.out
    assert "--findings shows them" in short.out
    assert "savings: none" in run(["plan", path, "--minimal"], tmp_path, cache).out


@pytest.fixture(scope="module")
def cuda_image(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An image that brings CUDA, and names it where nvidia/cuda does."""
    libraries = {"libcublas.so.13": blas(), "libcublasLt.so.13": Elf("libcublasLt.so.13", more=b"x" * 300_000)}
    members = [
        *baseimages.python("3.11.9"),
        *(baseimages.file(f"usr/local/cuda-13.2/lib64/{name}", elf.bytes()) for name, elf in libraries.items()),
        baseimages.link("usr/local/cuda", "cuda-13.2"),
    ]
    root = tmp_path_factory.mktemp("cuda-image") / "layout"
    env = "--config.env=LD_LIBRARY_PATH=/usr/local/cuda/lib64"
    return baseimages.layout(root, [baseimages.debian(), members], "base", env)


def on_image(root: Path, image: Path, requirement: str, more: str = "") -> Path:
    root.mkdir(exist_ok=True)
    path = root / "auto.yaml"
    path.write_text(
        f"profile: 1\nname: auto\nbase: {{image: 'oci:{image}:base'}}\n"
        f'python: {{version: "3.11", requirements: [{requirement}], bytecode: false}}\n{more}'
    )
    return path


def test_what_a_base_image_and_the_wheels_bring_both(small_cuda: World, cuda_image: Path, tmp_path: Path) -> None:
    """A waste, and a mixture: the image's variable comes before the paths that wheels have."""
    environ = small_cuda.environment(small_cuda.root / "cache")
    path = on_image(tmp_path, cuda_image, "finds-wheels")
    assert run(["lock", path], tmp_path, environ).code == 0
    done = run(["plan", path, "--findings", "--format", "json"], tmp_path, environ)
    found = {item["kind"]: item for item in done.json["platforms"]["linux/amd64"]["findings"]}
    assert set(found) == {"own-cuda", "shadowed", "damaged"}  # its C library is no real one
    assert found["own-cuda"]["size"] > 300_000
    assert "2 libraries of the base image are there twice" in found["own-cuda"]["what"]
    shadowed = [item for item in done.json["platforms"]["linux/amd64"]["findings"] if item["kind"] == "shadowed"]
    assert [item["what"] for item in shadowed] == [
        f"{name}: /usr/local/cuda-13.2/lib64/{name} takes the place of nvidia/cu13/lib/{name} for 1 file"
        for name in ("libcublas.so.13", "libcublasLt.so.13")
    ]
    assert "finds_wheels/_ext." in shadowed[0]["where"][0]


@pytest.mark.parametrize(("requirement", "flavour"), [("needs-blas", "none"), ("needs-cudart", "base")])
def test_what_a_base_image_brings_no_flavour_has_to(
    requirement: str, flavour: str, small_cuda: World, cuda_image: Path, tmp_path: Path
) -> None:
    path = on_image(tmp_path, cuda_image, requirement, 'cuda: {version: "13.2", flavour: auto}\n')
    done = run(["lock", path], tmp_path, small_cuda.environment(small_cuda.root / "cache"))
    assert done.code == 0, done.err
    cuda = json.loads(path.with_suffix(".lock.json").read_text())["platforms"][0]["cuda"]
    assert cuda["flavour"] == flavour, cuda
