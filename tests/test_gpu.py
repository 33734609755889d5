"""Which GPUs and drivers run what: the rules, the contract of real closures, its words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from builder import documents
from builder.gpu import architectures, drivers, labels
from builder.gpu.contract import GpuError, Support, check, decide, verdict
from builder.gpu.values import GpuCode, GpuContract

CLOSURES = json.loads((Path(__file__).parent / "data/gpu/closures.json").read_text())
"""What `builder.binaries.contract.gpu_code` says of the wheels of torch 2.15.0, onnxruntime-gpu[cuda,cudnn] 1.31.1,
jax[cuda13], cupy-cuda13x[ctk] 14.2.0 and vllm 0.21.0, for x86_64."""


@pytest.mark.parametrize(
    ("code", "on", "not_on"),
    [
        ("sm_80", (80, 86, 89), (75, 87, 88, 90)),
        ("sm_86", (86, 89), (80, 87)),
        ("sm_87", (87,), (80, 86, 88, 89)),
        ("sm_89", (89,), (80, 86, 90)),
        ("sm_90", (90,), (89, 100)),
        ("sm_90a", (90,), (89, 100)),
        ("sm_100", (100, 103, 107), (90, 110, 120)),
        ("sm_100a", (100,), (103, 107)),
        ("sm_100f", (100, 103, 107), (90, 110, 120)),
        ("sm_110", (110,), (100, 111, 120)),
        ("sm_120", (120, 121), (100, 110)),
        ("sm_120a", (120,), (121,)),
        ("sm_121", (121,), (120,)),
        ("compute_80", (), (80, 90)),
        ("nonsense", (), (80,)),
    ],
)
def test_machine_code(code: str, on: tuple[int, ...], not_on: tuple[int, ...]) -> None:
    assert [gpu for gpu in on if not architectures.runs(code, gpu)] == []
    assert [gpu for gpu in not_on if architectures.runs(code, gpu)] == []


@pytest.mark.parametrize(
    ("code", "on", "not_on"),
    [
        ("compute_75", (75, 80, 87, 90, 110, 121), (70, 72)),
        ("compute_90", (90, 100, 110, 120), (89,)),
        ("compute_90a", (90,), (100, 120)),
        ("compute_100f", (100, 103), (90, 110, 120)),
        ("sm_80", (), (80, 90)),
    ],
)
def test_intermediate_code(code: str, on: tuple[int, ...], not_on: tuple[int, ...]) -> None:
    assert [gpu for gpu in on if not architectures.compiles(code, gpu)] == []
    assert [gpu for gpu in not_on if architectures.compiles(code, gpu)] == []


@pytest.mark.parametrize("text", ["sm_9", "sm_", "90", "sm_90a", "compute_90", "sm_99999", "SM_90", "sm_90 "])
def test_no_architecture_of_a_gpu(text: str) -> None:
    with pytest.raises(ValueError, match="such as sm_90"):
        architectures.number(text)


def test_drivers() -> None:
    assert [drivers.floor(cuda) for cuda in ("11.8", "12.1", "12.9", "13.5", "14.0")] == [
        "450.80.02",
        "525.60.13",
        "525.60.13",
        "580.65.06",
        None,
    ]
    assert [drivers.driver_of(cuda) for cuda in ("12.4", "13.0", "13.5")] == ["550.54.14", "580.65.06", None]
    isas = {"7.8": "11.8", "8.0": "12.0", "8.4": "12.4", "8.5": "12.5", "8.6": "12.7", "8.8": "12.9", "9.2": "13.2"}
    assert {isa: drivers.cuda_of(isa) for isa in isas} == isas
    for text in ("", "13.", "x", "1" * 20, "13.2-rc1"):
        with pytest.raises(ValueError, match="expected a version"):
            drivers.version(text)


def contract_of(name: str, *without: str) -> GpuContract:
    closure = CLOSURES[name]
    code = [documents.load_json(GpuCode, json.dumps(row), name) for row in closure["code"]]
    kept = [item for item in code if item.project not in without]
    return decide(kept, runtimes=closure["runtimes"], require=["sm_90"], request="sha256:0")


def test_torch() -> None:
    found = contract_of("torch")
    assert found.native == ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90")
    assert found.ptx == ("sm_100", "sm_103", "sm_107", "sm_120", "sm_121")
    assert (found.partly, found.driver, found.require) == ((), "580.65.06", "cuda>=13.0")
    on_120 = verdict(found.code, 120)
    assert (on_120.compiled, on_120.isa) == (("nvidia-cufile",), "8.2")
    assert verdict(found.code, 110).lacking[-1][0] == "torch"


def test_onnxruntime() -> None:
    """It has no code for the data centre's Blackwell, and for sm_120 only what runs there."""
    found = contract_of("ort")
    assert (found.native, found.ptx) == (("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_120"), ())
    assert [project for project, _ in verdict(found.code, 100).lacking] == ["onnxruntime-gpu"]
    assert [project for project, _ in verdict(found.code, 121).lacking] == ["onnxruntime-gpu"]


@pytest.mark.parametrize("name", ["jax", "cupy"])
def test_jax_and_cupy(name: str) -> None:
    served = ("sm_75", "sm_80", "sm_86", "sm_89", "sm_90", "sm_100", "sm_103", "sm_107", "sm_120", "sm_121")
    assert (contract_of(name).native, contract_of(name).ptx) == (served, ())


def test_vllm() -> None:
    """A package for Blackwell only keeps the image from all else, unless it is said that nothing needs it there; kernels for
    Hopper among those for all do not."""
    assert contract_of("vllm").native == ()
    assert [project for project, _ in verdict(contract_of("vllm").code, 90).lacking] == ["tokenspeed-mla"]
    found = contract_of("vllm", "tokenspeed-mla")
    assert found.native == ("sm_75", "sm_80", "sm_86", "sm_89")
    assert found.ptx == ("sm_90", "sm_100", "sm_103", "sm_107", "sm_120", "sm_121")
    assert "sm_80" in found.partly
    assert "site/vllm/vllm_flash_attn/_vllm_fa3_C.abi3.so" in verdict(found.code, 80).unused


def code(project: str, *names: str, isa: str = "", files: tuple[str, ...] = ("lib.so",)) -> GpuCode:
    sass = tuple(name for name in names if name.startswith("sm"))
    return GpuCode(project, files, sass, tuple(name for name in names if not name.startswith("sm")), isa)


def decided(*items: GpuCode, runtimes: tuple[str, ...] = (), require: tuple[str, ...] = ()) -> GpuContract:
    return decide(items, runtimes=runtimes, require=require, request="")


def test_what_decides() -> None:
    """All projects, and of each the file that serves best."""
    found = decided(
        code("one", "sm_80", "compute_80", isa="8.0"),
        code("two", "sm_90a", files=("hopper.so",)),
        code("two", "sm_80", "sm_120", files=("all.so",)),
    )
    assert found.native == ("sm_80", "sm_86", "sm_89")
    assert found.ptx == ("sm_90", "sm_120", "sm_121")
    assert found.partly == ("sm_80", "sm_86", "sm_89", "sm_90", "sm_120", "sm_121")
    assert verdict(found.code, 80).unused == ("hopper.so",)
    assert verdict(found.code, 90).compiled == ("one",)
    assert verdict(found.code, 100).lacking == (("two", ("sm_80", "sm_90a", "sm_120")),)


def test_nothing_for_gpus() -> None:
    assert decided() == GpuContract("")
    assert verdict((), 90).support is Support.NONE


def test_what_a_driver_has_to_be() -> None:
    """Machine code needs the major version's driver, PTX one that knows its language, where a required GPU needs it."""
    one = code("one", "sm_80", "compute_80", isa="8.4")
    assert decided(one).require == "cuda>=12.0"
    assert decided(one, require=("sm_80",)).require == "cuda>=12.0"
    assert decided(one, require=("sm_90",)).require == "cuda>=12.4"
    assert decided(one, runtimes=("13.2",)).require == "cuda>=13.0"
    assert decided(one, runtimes=("13.2",)).cuda == "13.2"
    assert decided(code("one", "sm_80"), runtimes=("12.10", "12.9")).cuda == "12.10"
    assert decided(code("one", "sm_80")).require is None


REFUSALS: dict[str, tuple[GpuContract, tuple[str, ...], str | None, str, str]] = {
    "a GPU that is not served": (
        decided(code("one", "sm_80"), code("two", "sm_80", "sm_90")),
        ("sm_80", "sm_90"),
        None,
        "here: gpu.require: sm_90: one has no code for it, but for sm_80",
        "leave sm_90 out of gpu.require, or, if nothing that runs there uses it, add one to gpu.optional",
    ),
    "nothing for GPUs": (
        decided(),
        ("sm_80",),
        None,
        "here: gpu.require: nothing in the image has code for GPUs, so none for sm_80",
        "for CPUs only remove `gpu` from the profile",
    ),
    "an old driver": (
        decided(code("one", "sm_80"), runtimes=("13.2",)),
        (),
        "550",
        "here: gpu.driver: CUDA 13.2 needs driver 580.65.06 or later, nodes may have 550",
        "choose packages for an older CUDA",
    ),
    "a driver that is a little too old": (
        decided(code("one", "sm_80"), runtimes=("13.2",)),
        (),
        "580.65.5",
        "nodes may have 580.65.5",
        "nodes with driver 580.65.06",
    ),
    "a driver that cannot compile": (
        decided(code("one", "sm_80", "compute_80", isa="8.4")),
        ("sm_90",),
        "535",
        "on sm_90 the driver has to compile one, which takes that of CUDA 12.4, 550.54.14 or later; nodes may have 535",
        "choose versions with machine code for sm_90",
    ),
}


@pytest.mark.parametrize("name", REFUSALS)
def test_refusals(name: str) -> None:
    contract, require, driver, what, advice = REFUSALS[name]
    with pytest.raises(GpuError) as caught:
        check(contract, require, driver, "here")
    assert what in str(caught.value)
    assert advice in str(caught.value.hint)


def test_all_that_is_wrong_is_told() -> None:
    contract = decided(code("one", "sm_80"), code("two", "sm_75"), runtimes=("13.0",))
    with pytest.raises(GpuError) as caught:
        check(contract, ("sm_90",), "535", "here")
    assert len(str(caught.value).splitlines()) == 3


@pytest.mark.parametrize("driver", [None, "580", "580.65", "580.65.06", "595.1"])
def test_what_is_served(driver: str | None) -> None:
    check(decided(code("one", "sm_80"), runtimes=("13.2",)), ("sm_86",), driver, "here")


def test_labels() -> None:
    contract = decided(
        code("one", "sm_80", "sm_90a", "compute_90", isa="8.4"),
        code("two", "sm_80", files=("a.so",)),
        code("two", "sm_90", files=("b.so", "c.so")),
    )
    assert labels.labels(contract) == {
        "vnd.layerwright.gpu.native": "sm_80 sm_86 sm_89 sm_90",
        "vnd.layerwright.gpu.partly": "sm_80 sm_86 sm_89 sm_90",
        "vnd.layerwright.gpu.cuda": "12.4",
        "vnd.layerwright.gpu.driver": ">=525.60.13",
        "vnd.layerwright.gpu.code": "one:80 90a c90@8.4|two".replace("|two", ";two:80|90"),
    }
    assert labels.environment(contract, {})["NVIDIA_REQUIRE_CUDA"] == "cuda>=12.0"
    assert labels.labels(decided()) == {}
    assert labels.code_of({}) is None


def test_what_a_base_image_says_stays() -> None:
    contract = decided(code("one", "sm_80"), runtimes=("13.2",))
    said = {"NVIDIA_REQUIRE_CUDA": "cuda>=13.0 brand=tesla,driver>=535", "NVIDIA_VISIBLE_DEVICES": "void"}
    assert labels.environment(contract, said | {"CUDA_VERSION": "13.0.2"}) == {
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"
    }
    for older in ({"CUDA_VERSION": "12.9.1"}, {"CUDA_VERSION": "new"}, {}):
        assert labels.environment(contract, said | older)["NVIDIA_REQUIRE_CUDA"] == "cuda>=13.0"
    assert labels.environment(contract, {"CUDA_VERSION": "13.0.2"})["NVIDIA_REQUIRE_CUDA"] == "cuda>=13.0"


NAMES = st.lists(
    st.builds(
        "{}_{}{}".format, st.sampled_from(["sm", "compute"]), st.integers(50, 130), st.sampled_from(["", "a", "f"])
    ),
    min_size=1,
    max_size=6,
    unique=True,
)
ITEMS = st.lists(
    st.builds(
        lambda project, names, isa: code(project, *architectures.ordered(names), isa=isa),
        st.sampled_from(["torch", "nvidia-cudnn-cu13", "libfoo1.2+b"]),
        NAMES,
        st.sampled_from(["", "8.0", "9.3"]),
    ),
    max_size=6,
)


@given(items=ITEMS)
def test_labels_judge_as_the_contract_does(items: list[GpuCode]) -> None:
    read = labels.code_of(labels.labels(decided(*items))) or ()
    for name in architectures.KNOWN:
        gpu = architectures.number(name)
        here, there = verdict(items, gpu), verdict(read, gpu)
        assert (here.support, dict(here.lacking), set(here.compiled)) == (
            there.support,
            dict(there.lacking),
            set(there.compiled),
        )
        assert here.isa == there.isa


@pytest.mark.parametrize(
    ("text", "why"),
    [
        (":80", "names no project"),
        ("torch", "names no project"),
        (";", "names no project"),
        ("torch:80;:", "names no project"),
        ("\x1b[2J:80", "names no project"),
        ("torch:80 \x1b[2J", "are no architectures"),
        ("torch:80 all", "are no architectures"),
        ("torch:c80@new", "expected a version"),
        ("x:80;" * 300_000, "1500000 characters"),
    ],
)
def test_labels_of_others(text: str, why: str) -> None:
    with pytest.raises(ValueError, match=why):
        labels.code_of({labels.CODE: text})


def test_a_driver_of_others() -> None:
    assert labels.driver_of({}) is None
    assert labels.driver_of({labels.DRIVER: ">=580.65.06"}) == "580.65.06"
    with pytest.raises(ValueError, match="expected a version"):
        labels.driver_of({labels.DRIVER: ">=\x1b[2J"})
