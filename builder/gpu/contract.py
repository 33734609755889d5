"""The contract of an image with the GPUs that it is for: pure, from the architectures of the code in its inputs.

What counts is each project, that is each input that has kernels in libraries: its files are built as one, and those for
fewer GPUs than their neighbours are for features of few GPUs. So a GPU is served by a project if one of its files is
for it, and by an image if all projects serve it. Kernels in files of their own, cubins, decide nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum

from builder.errors import BuilderError
from builder.gpu import architectures, drivers
from builder.gpu.values import GpuCode, GpuContract


class Support(StrEnum):
    """How a GPU runs something: its machine code, what the driver compiles from intermediate code, or not."""

    NATIVE = "native"
    PTX = "ptx"
    NONE = "none"


@dataclass(frozen=True)
class Verdict:
    """How one GPU runs an image: `lacking` are the projects that have nothing for it, each with the architectures that it
    has; `compiled` the projects that the driver compiles, `isa` the version of the PTX language that this takes; `unused`
    are files of projects that have code for it elsewhere."""

    support: Support
    lacking: tuple[tuple[str, tuple[str, ...]], ...] = ()
    compiled: tuple[str, ...] = ()
    isa: str | None = None
    unused: tuple[str, ...] = ()


class GpuError(BuilderError):
    """The image cannot run on the GPUs, or with the driver, that its profile names."""


def decide(code: Iterable[GpuCode], *, runtimes: Iterable[str], require: Sequence[str], request: str) -> GpuContract:
    """The contract for the projects' code. `runtimes` are the versions of CUDA (`13.2`) whose runtime is in the image;
    `require` are the architectures that it is for, which decide whether the driver's compiler is needed."""
    code = tuple(sorted(code))
    verdicts = {gpu: verdict(code, architectures.number(gpu)) for gpu in architectures.KNOWN} if code else {}
    isas = [drivers.cuda_of(item.isa) for item in code if item.isa]
    cuda = max((*runtimes, *isas), key=drivers.version, default=None)
    return GpuContract(
        request=request,
        cuda=cuda,
        driver=drivers.floor(cuda) if cuda else None,
        require=_require(cuda, [verdict(code, architectures.number(gpu)) for gpu in require]) if cuda else None,
        native=tuple(gpu for gpu, found in verdicts.items() if found.support is Support.NATIVE),
        ptx=tuple(gpu for gpu, found in verdicts.items() if found.support is Support.PTX),
        partly=tuple(gpu for gpu, found in verdicts.items() if found.support is not Support.NONE and found.unused),
        code=code,
    )


def verdict(code: Sequence[GpuCode], gpu: int) -> Verdict:
    """How the GPU with that architecture's number runs the projects' code."""
    projects: dict[str, list[GpuCode]] = {}
    for item in code:
        projects.setdefault(item.project, []).append(item)
    lacking, compiled, isas, unused = [], [], list[str](), list[str]()
    for project, items in projects.items():
        found = [support(item, gpu) for item in items]
        served = Support.NATIVE if Support.NATIVE in found else Support.PTX if Support.PTX in found else Support.NONE
        if served is Support.NONE:
            lacking.append((project, architectures.ordered(name for item in items for name in item.sass + item.ptx)))
            continue
        unused += [file for item, how in zip(items, found, strict=True) if how is Support.NONE for file in item.files]
        if served is Support.PTX:
            compiled.append(project)
            isas += [item.isa for item, how in zip(items, found, strict=True) if how is Support.PTX and item.isa]
    overall = Support.NONE if lacking or not projects else Support.PTX if compiled else Support.NATIVE
    isa = max(isas, key=drivers.version, default=None)
    return Verdict(overall, tuple(lacking), tuple(compiled), isa, tuple(sorted(unused)))


def support(item: GpuCode, gpu: int) -> Support:
    """How the GPU with that architecture's number runs some files."""
    if any(architectures.runs(name, gpu) for name in item.sass):
        return Support.NATIVE
    return Support.PTX if any(architectures.compiles(name, gpu) for name in item.ptx) else Support.NONE


def check(contract: GpuContract, require: Sequence[str], driver: str | None, where: str) -> None:
    """Raises `GpuError`, which tells everything that is wrong, where the image cannot run on an architecture of `require`,
    or not with the lowest `driver` (`550`, `550.54.14`) that nodes have. `where` begins the message."""
    problems = list(_problems(contract, require, driver))
    if problems:
        raise GpuError("".join(f"{where}: {what}\n" for what, _ in problems).rstrip("\n"), hint=problems[0][1])


def _problems(contract: GpuContract, require: Sequence[str], driver: str | None) -> Iterator[tuple[str, str]]:
    if require and not contract.code:
        yield (
            f"gpu.require: nothing in the image has code for GPUs, so none for {', '.join(require)}",
            "add the packages that have it, for CPUs only remove `gpu` from the profile",
        )
        return
    found = {gpu: verdict(contract.code, architectures.number(gpu)) for gpu in require}
    for gpu, judged in found.items():
        for project, has in judged.lacking:
            yield (
                f"gpu.require: {gpu}: {project} has no code for it, but for {', '.join(has)}",
                f"choose another version of {project}, leave {gpu} out of gpu.require, or, if nothing that runs there "
                f"uses it, add {project} to gpu.optional",
            )
    if driver is None:
        return
    if contract.driver and drivers.version(driver) < drivers.version(contract.driver)[: len(drivers.version(driver))]:
        yield (
            f"gpu.driver: CUDA {contract.cuda} needs driver {contract.driver} or later, nodes may have {driver}",
            f"choose packages for an older CUDA, or nodes with driver {contract.driver}",
        )
    for gpu, judged in found.items():
        cuda = drivers.cuda_of(judged.isa) if judged.isa else None
        needed = drivers.driver_of(cuda) if cuda else None
        if needed and drivers.version(driver) < drivers.version(needed)[: len(drivers.version(driver))]:
            yield (
                f"gpu.driver: on {gpu} the driver has to compile {', '.join(judged.compiled)}, which takes that of CUDA "
                f"{cuda}, {needed} or later; nodes may have {driver}",
                f"choose versions with machine code for {gpu}, or nodes with driver {needed}",
            )


def _require(cuda: str, asked: Iterable[Verdict]) -> str:
    """NVIDIA_REQUIRE_CUDA: machine code runs with every driver of the same major version of CUDA ("minor version
    compatibility"); what the driver has to compile takes one that knows its language."""
    needed = [f"{drivers.version(cuda)[0]}.0", *(drivers.cuda_of(found.isa) for found in asked if found.isa)]
    return f"cuda>={max(needed, key=drivers.version)}"
