"""CUDA in a profile: which release, and how much of it."""

# ruff: noqa: RUF009 (`field` makes a field, and the defaults are frozen)

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from builder.documents import Form, field

_Complaints = Iterator[tuple[tuple[str | int, ...], str]]


def _cuda_advice(text: str) -> str | None:
    if re.fullmatch(r"\d{1,2}", text):
        return f'write "{text}.0", or the release that is meant'
    if re.fullmatch(r"(?:[1-9]|1[01])\.\d+.*", text):
        return "12.0 is the oldest release that there are wheels for"
    return None


CudaVersion = Annotated[
    str,
    Form(
        r"(?:1[2-9]|[2-9]\d)\.(?:0|[1-9]\d{0,2})(?:\.(?:0|[1-9]\d{0,2})){0,2}",
        'a release of CUDA in quotes such as "13.2"',
        advice=_cuda_advice,
    ),
]


def _flavour_can_be_composed(version: str, flavour: str) -> _Complaints:
    if flavour == "devel" and version.startswith("12."):
        yield (
            ("flavour",),
            "devel cannot be composed for CUDA 12, no wheel of which has a compiler: write version 13.0 or newer, or "
            "build upon an image that has it, with base.image",
        )


def _none_is_nothing(flavour: str, cudnn: str | bool, nccl: str | bool) -> _Complaints:
    for name, wanted in (("cudnn", cudnn), ("nccl", nccl)):
        if flavour == "none" and wanted is True:
            yield (name,), f"flavour none adds nothing: leave {name} out, or write flavour: base"


@dataclass(frozen=True, kw_only=True)
class Cuda:
    """CUDA, composed from NVIDIA's own wheels as nvidia/cuda has it, at `/usr/local/cuda`; see cuda.md."""

    checks: ClassVar = (_flavour_can_be_composed, _none_is_nothing)

    version: CudaVersion = field(
        doc="The release of CUDA, such as 13.2, or an exact one such as 13.2.1. All CUDA libraries in the image are of it: "
        "what the Python packages bring is held to it.",
        example="13.2",
    )
    flavour: Literal["auto", "none", "base", "runtime", "devel"] = field(
        doc="What the image has of it, as nvidia/cuda names it. `none`: what the Python packages bring by themselves; "
        "`base`: the CUDA runtime library; `runtime`: all libraries, and NCCL; `devel`: the compiler, headers and tools, too, "
        "from CUDA 13 on; `auto`: the smallest in which every library finds those that it needs.",
        default="auto",
        example="runtime",
    )
    cudnn: Literal["auto", True, False] = field(
        doc="Whether cuDNN is added. `auto` adds it where flavour is `auto` and it is needed.", default="auto"
    )
    nccl: Literal["auto", True, False] = field(
        doc="Whether NCCL is added. `auto` adds it to `runtime` and `devel`, as nvidia/cuda has it, and where flavour is "
        "`auto` if it is needed.",
        default="auto",
    )
