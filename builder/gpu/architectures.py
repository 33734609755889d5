"""Which GPUs run which code (CUDA C++ Programming Guide, "Compute Capabilities" and "Feature set compiler targets").

Machine code `sm_86` runs on GPUs of the same major version, from its minor version on; `sm_90a` on that very architecture
only, `sm_100f` on its family, which is the same as far as it is known: the same major version, from its minor version on.
Intermediate code `compute_90` is compiled by the driver for any later GPU; with `a` or `f` where machine code would run.
The GPUs of Tegra systems run only machine code made for them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

KNOWN = (
    *("sm_50", "sm_52", "sm_53", "sm_60", "sm_61", "sm_62", "sm_70", "sm_72", "sm_75", "sm_80", "sm_86", "sm_87"),
    *("sm_88", "sm_89", "sm_90", "sm_100", "sm_103", "sm_107", "sm_110", "sm_120", "sm_121"),
)
"""The architectures of GPUs that a contract speaks of: a change changes images, for new locks."""

_TEGRA = frozenset({53, 62, 72, 87, 88, 101, 110})
_NAME = re.compile(r"(sm|compute)_([1-9][0-9]{1,3})([af]?)")


def number(architecture: str) -> int:
    """The number in `sm_90`. Raises `ValueError` for what is not the architecture of a GPU."""
    match = _NAME.fullmatch(architecture)
    if not match or match[1] != "sm" or match[3]:
        raise ValueError(f"expected the architecture of a GPU such as sm_90, found {architecture!r}")
    return int(match[2])


def runs(code: str, gpu: int) -> bool:
    """Whether the machine code `sm_…` runs on the architecture with that number; of anything else: False."""
    match = _NAME.fullmatch(code)
    if not match or match[1] != "sm":
        return False
    made_for = int(match[2])
    if match[3] == "a" or made_for in _TEGRA or gpu in _TEGRA:
        return made_for == gpu
    return made_for // 10 == gpu // 10 and made_for <= gpu


def compiles(code: str, gpu: int) -> bool:
    """Whether a driver can compile the intermediate code `compute_…` for the architecture with that number."""
    match = _NAME.fullmatch(code)
    if not match or match[1] != "compute":
        return False
    made_for = int(match[2])
    if match[3] == "a":
        return made_for == gpu
    return made_for <= gpu and (not match[3] or made_for // 10 == gpu // 10)


def ordered(codes: Iterable[str]) -> tuple[str, ...]:
    """Names of architectures, each once, by kind and number; what is none comes last."""

    def key(code: str) -> tuple[int, int, str]:
        match = _NAME.fullmatch(code)
        return (match[1] != "sm", int(match[2]), match[3]) if match else (2, 0, code)

    return tuple(sorted(set(codes), key=key))
