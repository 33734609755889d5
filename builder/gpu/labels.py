"""The contract in words: labels and annotations of an image, and their reading."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence

from builder.gpu.drivers import version
from builder.gpu.values import GpuCode, GpuContract

_PREFIX = "vnd.layerwright.gpu."
NATIVE, PTX, PARTLY = f"{_PREFIX}native", f"{_PREFIX}ptx", f"{_PREFIX}partly"
_PROJECT = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,199}")
_WORD = re.compile(r"c?\d{2,4}[af]?")
_MAX_CODE = 1 << 20
CUDA, DRIVER, CODE = f"{_PREFIX}cuda", f"{_PREFIX}driver", f"{_PREFIX}code"


def labels(contract: GpuContract) -> dict[str, str]:
    """Labels of an image, which are annotations of its manifest too: lists have spaces between their items, `code` has all
    that `code_of` needs to judge any GPU. What is empty is left out."""
    found = {
        NATIVE: " ".join(contract.native),
        PTX: " ".join(contract.ptx),
        PARTLY: " ".join(contract.partly),
        CUDA: contract.cuda or "",
        DRIVER: f">={contract.driver}" if contract.driver else "",
        CODE: _encoded(contract.code),
    }
    return {name: text for name, text in found.items() if text}


def environment(contract: GpuContract, below: Mapping[str, str]) -> dict[str, str]:
    """The variables that the NVIDIA container runtime reads: all GPUs, for computing and nvidia-smi, where the driver is
    new enough. `below` are those of a base image, which stay; but what that asks of the driver is not enough if there is a
    newer major version of CUDA on top of it. (Images of NVIDIA name older drivers, too, for which they have libraries.)"""
    found = {"NVIDIA_VISIBLE_DEVICES": "all", "NVIDIA_DRIVER_CAPABILITIES": "compute,utility"}
    found = {name: value for name, value in found.items() if name not in below}
    if contract.require and not ("NVIDIA_REQUIRE_CUDA" in below and _major(below) >= version(contract.cuda or "0")[0]):
        found["NVIDIA_REQUIRE_CUDA"] = contract.require
    return found


def _major(variables: Mapping[str, str]) -> int:
    try:
        return version(variables.get("CUDA_VERSION", ""))[0]
    except ValueError:
        return 0


def code_of(labels: Mapping[str, str]) -> tuple[GpuCode, ...] | None:
    """The code that the labels of an image speak of, without the names of files; None where they say nothing. Raises
    `ValueError` for labels that are not as `labels` writes them."""
    text = labels.get(CODE)
    return tuple(sorted(_decoded(text))) if text is not None else None


def _encoded(code: Sequence[GpuCode]) -> str:
    """`torch:75 80 90a c120@9.0|75 80;…`: each project with the architectures of its different files, PTX marked with `c`."""
    projects: dict[str, list[str]] = {}
    for item in sorted(code, key=lambda item: (item.project, -len(item.sass + item.ptx), item)):
        names = [name.removeprefix("sm_") for name in item.sass]
        names += [f"c{name.removeprefix('compute_')}" for name in item.ptx]
        text = " ".join(names) + (f"@{item.isa}" if item.isa else "")
        projects.setdefault(item.project, []).append(text)
    return ";".join(f"{project}:{'|'.join(texts)}" for project, texts in projects.items())


def driver_of(labels: Mapping[str, str]) -> str | None:
    """The lowest driver that the labels of an image name; None where they name none. Raises `ValueError` for other text."""
    text = labels.get(DRIVER)
    if text is None:
        return None
    version(text.removeprefix(">="))
    return text.removeprefix(">=")


def _decoded(text: str) -> Iterator[GpuCode]:
    if len(text) > _MAX_CODE:
        raise ValueError(f"{CODE}: it has {len(text)} characters")
    for part in text.split(";"):
        project, colon, rest = part.partition(":")
        if not colon or not _PROJECT.fullmatch(project):
            raise ValueError(f"{CODE}: {part[:60]!r} names no project")
        for number, entry in enumerate(rest.split("|"), 1):
            names, _, isa = entry.partition("@")
            words = names.split(" ") if names else []
            if not all(map(_WORD.fullmatch, words)):
                raise ValueError(f"{CODE}: {entry[:60]!r} are no architectures")
            if isa:
                version(isa)
            sass = tuple(f"sm_{word}" for word in words if not word.startswith("c"))
            ptx = tuple(f"compute_{word[1:]}" for word in words if word.startswith("c"))
            yield GpuCode(project, (f"{project} ({number})",), sass, ptx, isa)
