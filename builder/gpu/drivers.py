"""Which driver which CUDA needs, on Linux: tables of the CUDA Toolkit's release notes, as of 13.3 (Table 2, "minimum required
driver version for minor version compatibility", and Table 3, "toolkit driver version", of each minor version's first
release), and the versions of the PTX language by release ("Release History" of the PTX ISA)."""

from __future__ import annotations

import re

_FLOORS = {11: "450.80.02", 12: "525.60.13", 13: "580.65.06"}
_DRIVERS = {
    "11.8": "520.61.05",
    "12.0": "525.60.13",
    "12.1": "530.30.02",
    "12.2": "535.54.03",
    "12.3": "545.23.06",
    "12.4": "550.54.14",
    "12.5": "555.42.02",
    "12.6": "560.28.03",
    "12.8": "570.26",
    "12.9": "575.51.03",
    "13.0": "580.65.06",
    "13.1": "590.44.01",
    "13.2": "595.45.04",
    "13.3": "610.43.02",
}
_ISA_OF_12 = {"8.0": 0, "8.1": 1, "8.2": 2, "8.3": 3, "8.4": 4, "8.5": 5, "8.6": 7, "8.7": 8, "8.8": 9}
_VERSION = re.compile(r"\d{1,9}(?:\.\d{1,9}){0,3}")


def floor(cuda: str) -> str | None:
    """The lowest driver that runs machine code of a CUDA release such as `13.2`: that of its major version."""
    return _FLOORS.get(version(cuda)[0])


def driver_of(cuda: str) -> str | None:
    """The lowest driver that knows all of a CUDA release, so that it compiles its PTX; None if that is not known here."""
    return _DRIVERS.get(cuda)


def cuda_of(isa: str) -> str:
    """The first CUDA release with a version of the PTX language: `9.2` came with CUDA `13.2`."""
    major, minor = (*version(isa), 0)[:2]
    if isa in _ISA_OF_12:
        return f"12.{_ISA_OF_12[isa]}"
    return f"{major + 4}.{minor}"  # 7.8 came with 11.8; since 9.0 with 13.0 the minor versions go together


def version(text: str) -> tuple[int, ...]:
    """The numbers in `550.54.14`. Raises `ValueError` for other text."""
    if not _VERSION.fullmatch(text):
        raise ValueError(f"expected a version such as 550.54.14, found {text[:60]!r}")
    return tuple(map(int, text.split(".")))
