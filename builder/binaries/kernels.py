"""The GPU code of inputs, as a contract takes it: which files of a project are for which architectures."""

from __future__ import annotations

from builder.binaries.facts import InputFacts
from builder.gpu.architectures import ordered
from builder.gpu.contract import GpuCode


def gpu_code(project: str, facts: InputFacts) -> tuple[GpuCode, ...]:
    """The code in the libraries of one input, files with the same architectures together; cubins are not looked at."""
    groups: dict[tuple[tuple[str, ...], str | None], list[str]] = {}
    for binary in facts.binaries:
        if binary.code and binary.machine != "cuda":
            names = ordered(name for name, _ in binary.code)
            groups.setdefault((names, binary.isa), []).append(binary.path)
    return tuple(
        GpuCode(
            project,
            tuple(sorted(files)),
            tuple(name for name in names if name.startswith("sm_")),
            tuple(name for name in names if name.startswith("compute_")),
            isa if any(name.startswith("compute_") for name in names) else None,
        )
        for (names, isa), files in sorted(groups.items(), key=str)
    )
