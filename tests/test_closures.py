"""What is said of the large closures that people build, on what their binaries were recorded to say."""

from __future__ import annotations

import posixpath
from dataclasses import dataclass, field
from functools import cache

import closures
import pytest

from builder.cuda import flavours
from builder.findings import auto, known
from builder.findings.loader import Search
from builder.findings.root import compose
from builder.findings.scan import Scan, scan

OTHER = {
    "libcufile_rdma.so.1",
    "libibverbs.so.1",
    "libmlx5.so.1",
    "librdmacm.so.1",
    "libmpi.so.40",
    "libpmix.so.2",
    "liboshmem.so.40",
    "libfabric.so.1",
    "libucp.so.0",
    "libucs.so.0",
}
"""Networks that a node has or has not, and which only files of NVIDIA's for these networks need."""


@dataclass(frozen=True)
class Told:
    """What is expected of a closure: the flavour that it needs, with cuDNN or not; what modules lack, and other files."""

    flavour: str
    modules: set[str] = field(default_factory=set)
    others: set[str] = field(default_factory=set)
    cudnn: bool = False
    cuda: str = "13.2"


CUPY = {f"lib{name}" for name in ("cufft.so.12", "nvrtc.so.13", "cublas.so.13", "curand.so.10", "cusolver.so.12")}
CUPY |= {"libcusparse.so.12"}
CUPY_OPTIONAL = {"libcutensor.so.2", "libcutensorMg.so.2", "libnccl.so.2"}
ORT = {"libcublas.so.13", "libcublasLt.so.13", "libcudart.so.13", "libcurand.so.10", "libcudnn.so.9"}
TENSORRT = {"libnvinfer.so.10", "libnvonnxparser.so.10"}

CLOSURES = {
    "torch": Told("none", others={*OTHER - {"libcufile_rdma.so.1"}, "libquadmath.so.0"}),
    "onnxruntime": Told("runtime", others={*ORT, *TENSORRT}, cudnn=True),
    "onnxruntime-cuda": Told("base", others={*ORT, *TENSORRT}),
    "jax": Told("none", others=OTHER - {"libcufile_rdma.so.1", "libibverbs.so.1", "librdmacm.so.1"}),
    "cupy": Told("runtime", modules={*CUPY, *CUPY_OPTIONAL}),
    "cupy-ctk": Told("none", modules={*CUPY, *CUPY_OPTIONAL}),
    "vllm": Told(
        "none",
        modules={"libtbb.so.12"},
        others={*OTHER - {"libcufile_rdma.so.1"}, "libcute_dsl_runtime.so"},
        cuda="13.0",
    ),
}


@cache
def scanned(name: str) -> Scan:
    inputs, python = closures.read(name)
    return scan(compose(inputs, python), Search(), python)


@pytest.mark.parametrize("name", CLOSURES)
def test_what_is_missing(name: str) -> None:
    told, found = CLOSURES[name], scanned(name)
    missing = [item for item in found.unmet if not item.after]
    assert {item.name for item in missing if item.is_module} == told.modules
    assert {item.name for item in missing if not item.is_module} == told.others
    assert found.too_old == ()


@pytest.mark.parametrize("name", CLOSURES)
def test_the_smallest_flavour(name: str) -> None:
    told = CLOSURES[name]
    choice = auto.choose(scanned(name), flavours.candidates(told.cuda), told.cuda)
    assert (choice.candidate.flavour, choice.candidate.cudnn, choice.candidate.nccl) == (
        told.flavour,
        told.cudnn,
        False,
    )
    assert choice.reasons


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("torch", "libcublas.so.13: needed by torch/lib/libtorch_cuda.so and 1 more (torch 2.15.0), nvidia-cublas "),
        (
            "onnxruntime",
            "libcublasLt.so.13: needed by onnxruntime/capi/libonnxruntime_providers_cuda.so "
            "(onnxruntime-gpu 1.31.1), brought by nothing else",
        ),
        ("onnxruntime", "libcudnn.so.9: needed by onnxruntime/capi/libonnxruntime_providers_cuda.so"),
        ("onnxruntime-cuda", "brings it, found by way of /usr/local/cuda"),
        ("cupy-ctk", "libcufft.so.12: loaded by cupy/cuda/cufft.cpython-313-x86_64-linux-gnu.so (cupy-cuda13x 14.2.0)"),
        ("jax", "libcudnn.so.9: opened by jax_plugins/xla_cuda13/xla_cuda_plugin.so (jax-cuda13-pjrt "),
    ],
)
def test_why(name: str, reason: str) -> None:
    told = CLOSURES[name]
    choice = auto.choose(scanned(name), flavours.candidates(told.cuda), told.cuda)
    assert any(reason in line for line in choice.reasons), choice.reasons


@pytest.mark.parametrize("name", ["onnxruntime", "cupy"])
def test_a_wheel_for_another_cuda_is_an_error(name: str) -> None:
    with pytest.raises(auto.AutoError, match=r"needs lib\w+\.so\.1\d .*, and CUDA 12\.8 has") as caught:
        auto.choose(scanned(name), flavours.candidates("12.8"), "12.8")
    assert caught.value.hint
    assert "cuda.version" in caught.value.hint


def test_jax_with_the_libraries_of_a_flavour() -> None:
    """`jax[cuda13-local]` is jax without NVIDIA's wheels: it opens what it needs by names that no file has."""
    inputs, python = closures.read("jax")
    local = [item for item in inputs if not item.name.startswith("nvidia-")]
    found = scan(compose(local, python), Search(), python)
    choice = auto.choose(found, flavours.candidates("13.2"), "13.2")
    assert (choice.candidate.flavour, choice.candidate.cudnn, choice.candidate.nccl) == ("runtime", True, True)
    assert any(line.startswith("libcudnn.so.9: needed by jax_plugins/xla_cuda13/") for line in choice.reasons)


def test_a_library_that_the_profile_does_not_want() -> None:
    """Without cuDNN there is no flavour that has it; what the profile says counts, and onnxruntime has to do without."""
    choice = auto.choose(scanned("onnxruntime"), flavours.candidates("13.2", cudnn=False), "13.2")
    assert (choice.candidate.flavour, choice.candidate.cudnn) == ("runtime", False)


def test_torch_gets_every_library_from_its_wheels() -> None:
    found = {
        (posixpath.basename(edge.file.path), edge.name): edge.target.owner.partition(" ")[0]
        for edge in scanned("torch").edges
        if edge.file.owner.startswith("torch ")
    }
    assert found["libtorch_cuda.so", "libcublas.so.13"] == "nvidia-cublas"
    assert found["libtorch_cuda.so", "libcudnn.so.9"] == "nvidia-cudnn-cu13"
    assert found["libtorch_cuda.so", "libnccl.so.2"] == "nvidia-nccl-cu13"
    assert found["libtorch_cuda_linalg.so", "libcusolver.so.12"] == "nvidia-cusolver"
    assert found["libc10.so", "libstdc++.so.6"] == "libstdc++6"


def test_what_torch_loads_first_is_there_for_vllm() -> None:
    """vLLM's modules need torch's libraries and have no path to them: they come with `import torch`."""
    after = {(item.file.owner.partition(" ")[0], item.after.partition(" ")[0]) for item in scanned("vllm").unmet}
    assert ("vllm", "torch") in after
    assert not [item for item in scanned("vllm").unmet if item.file.owner.startswith("vllm ") and not item.after]


def test_the_driver_is_nobodys_to_bring() -> None:
    binaries = [item.binary for closure in CLOSURES for item in scanned(closure).root.binaries if item.binary]
    named = {name for binary in binaries for name in (*binary.needed, *binary.opens)}
    drivers = {name for name in named if known.DRIVER.fullmatch(name)}
    assert {"libcuda.so.1", "libnvidia-ml.so.1"} <= drivers
    assert not any(known.DRIVER.fullmatch(item.name) for closure in CLOSURES for item in scanned(closure).unmet)
    assert not known.DRIVER.fullmatch("libcudart.so.13")
    assert not known.DRIVER.fullmatch("libnvrtc.so.13")
