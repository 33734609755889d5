"""`gpu` in a profile: decided when it is locked, told by the image, asked of a published one."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from baseimages import debian, file, layout, python
from elfmaker import Library, Module, fatbin
from indexserver import wheel
from layouts import Layout
from world import BUILD, World, run, write_project

from builder import lock as locks
from builder.lock import LockError
from builder.oci.digest import Digest

PROFILE = """\
profile: 1
name: kernels
base: {{debian: bookworm}}
python: {{version: "3.11", requirements: [gpu-one, gpu-two], bytecode: false}}
gpu: {gpu}
publish: {{soci: false}}
"""


def library(*modules: Module | str) -> bytes:
    return Library(sections={".nv_fatbin": fatbin(*modules)}).made().data


WHEELS = (
    wheel(
        "gpu-one",
        "1.0",
        requires=["nvidia-cuda-runtime-cu12"],
        files={
            "gpu_one/_C.so": library("sm_80", "sm_90", Module("compute_90", isa=(8, 7))),
            "gpu_one/_hopper.so": library("sm_90a"),
        },
    ),
    wheel("gpu-two", "1.0", files={"gpu_two/_C.so": library("sm_80", "sm_90", "sm_120")}),
    wheel("nvidia-cuda-runtime-cu12", "12.4.127"),
)


@pytest.fixture(scope="module")
def gpu_world(world: World) -> World:
    world.index.publish(*WHEELS)
    return world


def locked(world: World, root: Path, gpu: str) -> Any:
    """Writes the profile below `root` and locks it: how that ended."""
    profile = write_project(root, PROFILE.format(gpu=gpu), name="kernels.yaml")
    return run(["lock", profile], root, world.environment(world.root / "cache"))


def contract(root: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((root / "kernels.lock.json").read_text())["platforms"][0]["gpu"]
    return found


def image(layout: Layout) -> tuple[dict[str, Any], dict[str, Any]]:
    """The entry of the one image in a layout's index, and its manifest."""
    entries = json.loads((layout.root / "index.json").read_text())["manifests"]
    (top,) = (
        entry
        for entry in entries
        if "artifactType" not in entry and "subject" not in layout.json(Digest.parse(entry["digest"]))
    )
    (described,) = layout.json(Digest.parse(top["digest"]))["manifests"]
    return described, layout.json(Digest.parse(described["digest"]))


@pytest.fixture(scope="module")
def published(gpu_world: World, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a profile that was published to `out` there."""
    root = tmp_path_factory.mktemp("kernels")
    assert locked(gpu_world, root, '{require: [sm_80, sm_90], driver: ">=525.60.13"}').code == 0
    done = run(["publish", "kernels.yaml", "oci:out"], root, gpu_world.environment(gpu_world.root / "cache"))
    assert done.code == 0, done.err
    return root


def test_the_lock_says_what_the_image_asks_of_gpus(published: Path) -> None:
    found = contract(published)
    assert found.pop("request").startswith("sha256:")
    assert found == {
        "cuda": "12.8",
        "driver": "525.60.13",
        "require": "cuda>=12.0",
        "native": ["sm_80", "sm_86", "sm_89", "sm_90"],
        "ptx": ["sm_120", "sm_121"],
        "partly": ["sm_80", "sm_86", "sm_89", "sm_120", "sm_121"],
        "code": [
            {"project": "gpu-one", "files": ["site/gpu_one/_C.so"], "sass": ["sm_80", "sm_90"]}
            | {"ptx": ["compute_90"], "isa": "8.7"},
            {"project": "gpu-one", "files": ["site/gpu_one/_hopper.so"], "sass": ["sm_90a"]},
            {"project": "gpu-two", "files": ["site/gpu_two/_C.so"], "sass": ["sm_80", "sm_90", "sm_120"]},
        ],
    }


def test_the_image_tells_it(published: Path) -> None:
    layout = Layout(published / "out")
    described, manifest = image(layout)
    config = layout.json(Digest.parse(manifest["config"]["digest"]))["config"]
    told = {name: text for name, text in config["Labels"].items() if name.startswith("vnd.layerwright.gpu.")}
    assert told == {
        "vnd.layerwright.gpu.cuda": "12.8",
        "vnd.layerwright.gpu.code": "gpu-one:80 90 c90@8.7|90a;gpu-two:80 90 120",
        "vnd.layerwright.gpu.driver": ">=525.60.13",
        "vnd.layerwright.gpu.native": "sm_80 sm_86 sm_89 sm_90",
        "vnd.layerwright.gpu.partly": "sm_80 sm_86 sm_89 sm_120 sm_121",
        "vnd.layerwright.gpu.ptx": "sm_120 sm_121",
    }
    assert manifest["annotations"] == described["annotations"] == told
    variables = dict(item.split("=", 1) for item in config["Env"])
    assert variables["NVIDIA_REQUIRE_CUDA"] == "cuda>=12.0"
    assert variables["NVIDIA_VISIBLE_DEVICES"] == "all"
    assert variables["NVIDIA_DRIVER_CAPABILITIES"] == "compute,utility"


def test_the_plan_shows_it(gpu_world: World, published: Path) -> None:
    environ = gpu_world.environment(gpu_world.root / "cache")
    shown = run(["plan", "kernels.yaml"], published, environ).out
    assert shown.splitlines()[-1] == (
        "GPUs: sm_80, sm_86, sm_89, sm_90 natively; sm_120, sm_121 compiled by the driver; driver 525.60.13 or later"
    )
    document = run(["plan", "kernels.yaml", "--format", "json"], published, environ).json
    assert document["platforms"]["linux/amd64"]["gpu"] == contract(published)


ANSWERS = {
    "sm_90": (0, "linux/amd64: sm_90: runs natively\nlinux/amd64: driver 525.60.13 or later\n"),
    "sm_86": (
        0,
        "linux/amd64: sm_86: runs natively\nlinux/amd64: sm_86: some files of gpu-one are for other GPUs\n"
        "linux/amd64: driver 525.60.13 or later\n",
    ),
    "sm_120": (
        0,
        "linux/amd64: sm_120: runs; the driver compiles gpu-one, which takes the driver of CUDA 12.8 or later\n"
        "linux/amd64: sm_120: some files of gpu-one are for other GPUs\nlinux/amd64: driver 525.60.13 or later\n",
    ),
    "sm_100": (3, "linux/amd64: sm_100: gpu-two has no code for it, but for sm_80, sm_90, sm_120\n"),
    "sm_75": (
        3,
        "linux/amd64: sm_75: gpu-one has no code for it, but for sm_80, sm_90, sm_90a, compute_90\n"
        "linux/amd64: sm_75: gpu-two has no code for it, but for sm_80, sm_90, sm_120\n",
    ),
}


@pytest.mark.parametrize("gpu", ANSWERS)
def test_inspect_answers_without_layers(gpu: str, gpu_world: World, published: Path, tmp_path: Path) -> None:
    """The layers are not even there."""
    shutil.copytree(published / "out", tmp_path / "out")
    layout = Layout(tmp_path / "out")
    for entry in image(layout)[1]["layers"]:
        layout.path(Digest.parse(entry["digest"])).unlink()
    done = run(["inspect", f"oci:{tmp_path / 'out'}", "--gpu", gpu], tmp_path, gpu_world.environment(tmp_path))
    assert (done.code, done.out) == ANSWERS[gpu], done.err


def test_inspect_answers_programs(gpu_world: World, published: Path) -> None:
    argv = ["inspect", "oci:out", "--gpu", "sm_75", "--format", "json"]
    done = run(argv, published, gpu_world.environment(gpu_world.root / "cache"))
    assert done.code == 3
    answer = json.loads(done.out)["platforms"]["linux/amd64"]
    assert (answer["support"], answer["lacking"]["gpu-two"]) == ("none", ["sm_80", "sm_90", "sm_120"])


def test_an_image_that_says_nothing(world: World, small: Path) -> None:
    done = run(["inspect", "oci:out", "--gpu", "sm_90"], small.parent, world.environment(world.root / "cache"))
    assert (done.code, done.out) == (
        3,
        "linux/amd64: it says nothing of GPUs: it was not made with `gpu` or `cuda` in its profile\n",
    )


def test_a_mistyped_architecture(world: World, small: Path) -> None:
    done = run(["inspect", "oci:out", "--gpu", "9.0"], small.parent, world.environment(world.root / "cache"))
    assert done.code == 2
    assert "did you mean sm_90?" in done.err


REFUSED = {
    "{require: [sm_100]}": "linux/amd64: gpu.require: sm_100: gpu-two has no code for it, but for sm_80, sm_90, sm_120",
    '{driver: ">=470"}': "linux/amd64: gpu.driver: CUDA 12.8 needs driver 525.60.13 or later, nodes may have 470",
    '{require: [sm_120], driver: ">=535"}': "the driver has to compile gpu-one, which takes that of CUDA 12.8, 570.26",
    '{require: [sm_80], optional: ["gpu-*"]}': "nothing in the image has code for GPUs, so none for sm_80",
    "{require: [sm_91]}": '$.gpu.require[0]: unknown name "sm_91" (did you mean sm_90?)',
    "{require: [sm_9O]}": "did you mean",
    '{driver: ">= 550"}': 'write ">=550"',
    "{driver: 550}": "gpu.driver: expected",
}


@pytest.mark.parametrize("gpu", REFUSED)
def test_what_a_profile_cannot_have(gpu: str, gpu_world: World, tmp_path: Path) -> None:
    done = locked(gpu_world, tmp_path, gpu)
    assert done.code == 1, done.err
    assert REFUSED[gpu] in done.err
    assert not (tmp_path / "kernels.lock.json").exists()


def test_what_is_optional_does_not_decide(gpu_world: World, tmp_path: Path) -> None:
    assert locked(gpu_world, tmp_path, "{require: [sm_100], optional: [gpu-two]}").code == 0
    assert {item["project"] for item in contract(tmp_path)["code"]} == {"gpu-one"}


def test_what_is_left_out_does_not_decide(gpu_world: World, tmp_path: Path) -> None:
    profile = write_project(tmp_path, PROFILE.format(gpu="{}"), name="kernels.yaml")
    profile.write_text(profile.read_text() + 'slim: [{wheels: [gpu-one], drop: ["_hopper.so"]}]\n')
    done = run(["lock", profile], tmp_path, gpu_world.environment(gpu_world.root / "cache"))
    assert done.code == 0, done.err
    assert contract(tmp_path).get("partly", []) == []


def test_a_damaged_library(gpu_world: World, tmp_path: Path) -> None:
    gpu_world.index.publish(wheel("gpu-broken", "1.0", files={"gpu_broken/_C.so": library("sm_80")[:900]}))
    text = PROFILE.replace("gpu-two", "gpu-two, gpu-broken")
    for gpu, code in (("{require: [sm_80]}", 1), ("{require: [sm_80], optional: [gpu-broken]}", 0)):
        profile = write_project(tmp_path / gpu, text.format(gpu=gpu), name="kernels.yaml")
        done = run(["lock", profile], tmp_path, gpu_world.environment(gpu_world.root / "cache"))
        assert done.code == code, done.err
        if code:
            assert "gpu-broken: which GPUs site/gpu_broken/_C.so is for cannot be told" in done.err
            assert "add gpu-broken to gpu.optional" in done.err


def test_nothing_is_read_again(gpu_world: World, published: Path, tmp_path: Path) -> None:
    """Locked again, the contract stays: without a network, and without the inputs."""
    for name in ("kernels.yaml", "kernels.lock.json"):
        shutil.copy(published / name, tmp_path)
    write_project(tmp_path, (published / "kernels.yaml").read_text(), name="kernels.yaml")
    before = contract(tmp_path)
    done = run(["lock", "--offline", "kernels.yaml"], tmp_path, gpu_world.environment(tmp_path / "empty"))
    assert done.code == 0, done.err
    assert contract(tmp_path) == before


@pytest.mark.parametrize(
    ("old", "new", "why"),
    [
        ('"sm_90a"', '"sm_90x"', "'sm_90x' is no architecture of a GPU"),
        ('"525.60.13"', '"525 or so"', "'525 or so' is no version"),
        ('"cuda>=12.0"', '"cuda>=12.0 brand=x"', "'12.0 brand=x' is no version"),
        ('"project": "gpu-two"', '"project": "gpu;two"', "'gpu;two' is no name of a package"),
    ],
)
def test_locks_that_no_one_wrote(old: str, new: str, why: str, published: Path) -> None:
    text = (published / "kernels.lock.json").read_text()
    assert old in text
    with pytest.raises(LockError, match=why):
        locks.parse(text.replace(old, new), "kernels.lock.json")


def test_the_same_image_whoever_looks_at_it(
    gpu_world: World, published: Path, other_build: Path, tmp_path: Path
) -> None:
    """From a lock of its own, by another Python and with the facts read in another order."""
    made: list[dict[str, bytes]] = [Layout(published / "out").blobs()]
    for name, build in (("one", BUILD), ("two", other_build)):
        root = tmp_path / name
        profile = write_project(root, (published / "kernels.yaml").read_text(), name="kernels.yaml", backwards=True)
        environ = gpu_world.environment(tmp_path / f"{name}-cache", PYTHONHASHSEED=str(len(made)))
        done = run(["publish", "-q", profile, f"oci:{root / 'out'}"], root, environ, build=build)
        assert done.code == 0, done.err
        made.append(Layout(root / "out").blobs())
    assert made[0] == made[1] == made[2]


def test_on_top_of_an_image(gpu_world: World, tmp_path: Path) -> None:
    """What is in the base image decides, too; not what a higher layer of it takes away. (The C library of this base is none.)"""
    first = [*debian(), file("opt/lib/libfirst.so", library("sm_90")), file("opt/lib/libgone.so", library("sm_70"))]
    second = [*python("3.11.9"), file("opt/lib/.wh.libgone.so")]
    root = layout(tmp_path / "base", [first, second], "base")
    text = PROFILE.replace("debian: bookworm", f'image: "oci:{root}:base"').replace(", bytecode: false", "")
    environ = gpu_world.environment(gpu_world.root / "cache")
    for gpu, code in (
        ("{require: [sm_90], optional: [libc.so.6]}", 0),
        ("{require: [sm_80], optional: [libc.so.6]}", 1),
        ("{require: [sm_80], optional: [libc.so.6, libfirst.so]}", 0),
    ):
        profile = write_project(tmp_path / gpu, text.format(gpu=gpu), name="kernels.yaml")
        done = run(["lock", profile], tmp_path, environ)
        assert done.code == code, done.err
        if code:
            assert "sm_80: libfirst.so has no code for it, but for sm_90" in done.err
        else:
            projects = {item["project"]: item["files"] for item in contract(tmp_path / gpu)["code"]}
            assert projects.get("libfirst.so") in (["/opt/lib/libfirst.so"], None)
            assert "libgone.so" not in projects


def test_files_of_the_profile(gpu_world: World, tmp_path: Path) -> None:
    """A library of one's own decides, too, and what else changes in the folder changes no contract."""
    text = PROFILE.format(gpu="{require: [sm_90]}") + "files: [{from: lib, to: /app/lib}]\n"
    profile = write_project(tmp_path, text, name="kernels.yaml")
    (tmp_path / "lib").mkdir()
    (tmp_path / "lib/notes.txt").write_text("a")
    environ = gpu_world.environment(gpu_world.root / "cache")
    for modules, code in (("sm_80", 1), ("sm_90", 0)):
        (tmp_path / "lib/libown.so").write_bytes(library(modules))
        done = run(["lock", profile], tmp_path, environ)
        assert done.code == code, done.err
        if code:
            assert "sm_90: libown.so has no code for it, but for sm_80" in done.err
    before = contract(tmp_path)
    assert [item["files"] for item in before["code"] if item["project"] == "libown.so"] == [["/app/lib/libown.so"]]
    (tmp_path / "lib/notes.txt").write_text("b")
    assert run(["lock", profile], tmp_path, environ).code == 0
    assert contract(tmp_path) == before


def test_what_a_base_image_said_of_gpus_is_not_inherited(gpu_world: World, tmp_path: Path) -> None:
    """It was said of that image, and not of what is put on top of it."""
    told = [f"--config.label=vnd.layerwright.gpu.{name}=x" for name in ("code", "partly")]
    root = layout(tmp_path / "base", [[*debian(), *python("3.11.9")]], "base", *told, "--config.label=org.example=kept")
    profile = write_project(tmp_path / "top", PROFILE, name="kernels.yaml")
    text = PROFILE.replace("debian: bookworm", f'image: "oci:{root}:base"').replace(", bytecode: false", "")
    profile.write_text(text.replace("gpu: {gpu}\n", "").format())
    environ = gpu_world.environment(gpu_world.root / "cache")
    done = run(["publish", "-q", profile, f"oci:{tmp_path / 'out'}"], tmp_path, environ)
    assert done.code == 0, done.err
    found = Layout(tmp_path / "out")
    config = found.json(Digest.parse(image(found)[1]["config"]["digest"]))["config"]
    assert config["Labels"] == {"org.example": "kept"}


def test_it_is_built_again_from_its_lock(gpu_world: World, published: Path) -> None:
    done = run(["verify", "oci:out"], published, gpu_world.environment(gpu_world.root / "cache"))
    assert (done.code, "identical" in done.out) == (0, True), done.err
