"""`cuda: {flavour: auto}` when a profile is locked: composes, reads the binaries, and composes what they need."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field, replace

from builder.cuda import flavours
from builder.cuda.flavours import Asked
from builder.findings import auto, inputs
from builder.findings.root import Input
from builder.findings.scan import Scan
from builder.lock import LockedCuda, LockedFile, LockedPlatform, LockedPython, LockedWheel
from builder.progress import Progress
from builder.store import Store

Composed = tuple[tuple[LockedWheel, ...], LockedCuda]
"""The wheels of Python and CUDA together, and which CUDA that is."""


@dataclass(frozen=True)
class Means:
    """What reading inputs needs; `env` are the variables that the profile sets, `files` its own files."""

    store: Store
    ensure: Callable[[Iterable[LockedFile]], None]
    progress: Progress
    env: Mapping[str, str] = field(default_factory=dict)
    files: Input | None = None


def decide(
    asked: Asked,
    composed: Callable[[Asked], Composed],
    skeleton: LockedPlatform,
    version: str,
    executable: str,
    means: Means,
) -> Composed:
    """The smallest flavour that the binaries of an image need, with the reasons.

    `composed` resolves a flavour; `skeleton` is the platform without Python and CUDA, `version` (`3.N`) what wheels are
    for, `executable` the interpreter's path, empty where the profile has no Python. All inputs are brought into the store.
    Raises `AutoError` where no flavour does, and what those raise.
    """
    candidates = flavours.candidates(asked.version, asked.cudnn, asked.nccl)
    result = composed(candidates[0].asked(asked.version))

    def scanned() -> Scan:
        wheels, cuda = result
        locked = replace(skeleton, cuda=replace(cuda, python=version, wheels=wheels))
        if executable:
            locked = replace(skeleton, python=LockedPython(version, executable, False, (), "", wheels), cuda=cuda)
        facts = inputs.read(locked, means.store, means.ensure, means.progress)
        return inputs.scanned(locked, facts, means.env, means.files)

    choice = auto.choose(scanned(), candidates, asked.version)
    if choice.candidate != candidates[0]:
        result = composed(choice.candidate.asked(asked.version))
        auto.check(scanned(), choice)
    wheels, cuda = result
    return wheels, replace(cuda, reasons=choice.reasons)
