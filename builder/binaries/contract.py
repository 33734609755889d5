"""The contract of a locked platform with GPUs, from the facts of its inputs."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

from packaging.version import InvalidVersion, Version

from builder import documents
from builder.binaries import image
from builder.binaries.facts import BinaryFacts, InputFacts
from builder.binaries.files import of_files
from builder.binaries.gather import gather
from builder.gpu.architectures import ordered
from builder.gpu.contract import GpuError, check, decide
from builder.gpu.values import GpuCode, GpuContract
from builder.layers.untar import readable
from builder.lock import LockedDeb, LockedFile, LockedPlatform, LockedWheel
from builder.oci import spec
from builder.oci.digest import Digest
from builder.plan import BaseLayer, base_layers
from builder.profile import Gpu
from builder.progress import Progress
from builder.store import Store

_LIBRARY = re.compile(r"\.so[.\d]*$")
_RUNTIMES = ("nvidia-cuda-runtime", "nvidia-cuda-runtime-cu11", "nvidia-cuda-runtime-cu12", "nvidia-cuda-runtime-cu13")


def contract(
    locked: LockedPlatform,
    own: Iterable[tuple[str, Path]],
    asked: Gpu | None,
    previous: GpuContract | None,
    store: Store,
    ensure: Callable[[Iterable[LockedFile]], None],
    progress: Progress,
) -> GpuContract:
    """The contract, where `own` are the profile's own files (place in the image, place here) and `asked` is what the profile
    asks for; `previous` if that was decided from the same.

    Raises `GpuError` where the platform cannot run on what is asked for, and what `gather` raises.
    """
    gpu = asked or Gpu()
    debs = locked.debian.packages if locked.debian else ()
    below = base_layers(locked.image) if locked.image else ()
    files = of_files(own)
    request = _request(locked.wheels, debs, below, files, gpu)
    if previous and previous.request == request:
        return previous
    facts = gather((*locked.wheels, *debs, *below), store, ensure, progress)
    items: tuple[LockedWheel | LockedDeb, ...] = (*debs, *locked.wheels)
    inputs = image.projects([*(facts[layer.file.sha256] for layer in below), files])
    inputs |= {item.name: _kept(item, facts[item.file.sha256]) for item in items}
    deciding = {name: found for name, found in inputs.items() if not _is_optional(name, gpu)}
    if gpu.require:
        _check_readable(deciding, str(locked.platform))
    found = decide(
        [code for name, item in deciding.items() for code in gpu_code(name, item)],
        runtimes=_runtimes(locked.wheels),
        require=gpu.require,
        request=request,
    )
    check(found, gpu.require, gpu.driver.removeprefix(">=") or None, str(locked.platform))
    return found


def gpu_code(project: str, facts: InputFacts) -> tuple[GpuCode, ...]:
    """The code in the libraries of one input, files with the same architectures together; cubins are not looked at."""
    groups: dict[tuple[tuple[str, ...], str | None], list[str]] = {}
    for binary in facts.binaries:
        if binary.code and binary.machine != "cuda":
            names = ordered(name for name, _ in binary.code)
            groups.setdefault((names, binary.isa), []).append(readable(binary.path))
    return tuple(
        GpuCode(
            project,
            tuple(sorted(files)),
            tuple(name for name in names if name.startswith("sm_")),
            tuple(name for name in names if name.startswith("compute_")),
            isa or "" if any(name.startswith("compute_") for name in names) else "",
        )
        for (names, isa), files in groups.items()
    )


def _request(
    wheels: Iterable[LockedWheel],
    debs: Iterable[LockedDeb],
    below: Iterable[BaseLayer],
    files: InputFacts,
    gpu: Gpu,
) -> str:
    asked = {
        "gpu": documents.dump(gpu),
        "image": [layer.file.sha256 for layer in below],
        "files": [list(file) for file in files.files],
        "wheels": sorted([wheel.name, wheel.file.sha256, *wheel.drop] for wheel in wheels),
        "debs": sorted(deb.file.sha256 for deb in debs),
    }
    return str(Digest.of(spec.encode(asked)))


def _kept(item: LockedWheel | LockedDeb, facts: InputFacts) -> InputFacts:
    """The facts without the files that the profile leaves out."""
    if not isinstance(item, LockedWheel) or not item.drop:
        return facts
    from builder.sources.slim import drops

    def stays(binary: BinaryFacts) -> bool:
        below = binary.path.removeprefix("site/")
        path = below if below != binary.path else f"../../../{binary.path.removeprefix('venv/')}"
        return not any(drops(path, pattern) for pattern in item.drop)

    return replace(facts, binaries=tuple(filter(stays, facts.binaries)))


def _is_optional(name: str, gpu: Gpu) -> bool:
    return any(fnmatch.fnmatchcase(name, pattern.lower().replace("_", "-")) for pattern in gpu.optional)


def _check_readable(inputs: Mapping[str, InputFacts], where: str) -> None:
    for name, facts in inputs.items():
        for path, why in facts.damaged:
            if _LIBRARY.search(path):
                raise GpuError(
                    f"{where}: {name}: which GPUs {readable(path)} is for cannot be told: {why}",
                    hint=f"choose another version of {name}, or, if nothing uses that file, add {name} to gpu.optional",
                )


def _runtimes(wheels: Iterable[LockedWheel]) -> Iterator[str]:
    for wheel in wheels:
        if wheel.name in _RUNTIMES:
            try:
                version = Version(wheel.version)
            except InvalidVersion:
                continue
            yield f"{version.major}.{version.minor}"
