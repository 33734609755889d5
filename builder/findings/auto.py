"""`cuda: {flavour: auto}`: the smallest flavour that leaves no library of CUDA unresolved but the driver's own. Pure.

What counts is what a file needs (NEEDED), or names with its version as a library that it opens, or is known to open, and
that is nowhere in the image; and what is there where the loader does not look, if the package does not find it by itself.
A file that cannot be opened anyway, because something that is no part of CUDA is missing, asks for nothing.
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from builder.cuda.flavours import Candidate
from builder.errors import BuilderError
from builder.findings import known
from builder.findings.root import File
from builder.findings.scan import Scan, Unmet, stem, variants

_OWN_CHOICE = re.compile(r"libOpenCL\.so\..*|libcufile(_rdma)?\.so\..*")
"""Libraries that are opened where they are there, and not missed where they are not."""
_MOST_REASONS = 20
_SITE = "/site-packages/"


class AutoError(BuilderError):
    """No flavour brings what the binaries need."""

    hint = "choose another version of CUDA, or of the package, or name a flavour and a package that brings the library"


@dataclass(frozen=True)
class Choice:
    """What was chosen, and why: lines that name files and libraries."""

    candidate: Candidate
    reasons: tuple[str, ...]


def choose(scan: Scan, candidates: Sequence[Candidate], version: str) -> Choice:
    """The first of the candidates, the smallest first, that brings what is missing.

    `scan` is of the image with the first of them. Raises `AutoError` where none does, such as for libraries of another
    version of CUDA than `version`.
    """
    brought = frozenset(name for candidate in candidates for name in candidate.sonames)
    demands = dict(_demands(scan, brought))
    _check_versions(scan, brought, version)
    unreachable = dict(_unreachable(scan))
    for candidate in candidates:
        if demands.keys() <= candidate.sonames and (not unreachable or candidate.flavour != "none"):
            return Choice(candidate, tuple(_reasons(scan, demands, unreachable, brought)))
    names = ", ".join(sorted(demands))
    raise AutoError(f"cuda.flavour: auto: no flavour that the profile allows brings all of {names}")


def check(scan: Scan, choice: Choice) -> None:
    """Raises `AutoError` if something that was chosen for is missing after all, in the image with the choice."""
    missing = sorted(name for name, _ in _demands(scan, choice.candidate.sonames))
    if missing:
        raise AutoError(
            f"cuda.flavour: auto: {choice.candidate.flavour} was to bring {', '.join(missing)}, and its wheels do not"
        )


def _demands(scan: Scan, brought: frozenset[str]) -> Iterator[tuple[str, list[File]]]:
    """The libraries of CUDA that are nowhere, and who needs them."""
    dead = {item.file.path for item in scan.unmet if not item.there and item.name not in brought}
    found: dict[str, list[File]] = defaultdict(list)
    for item in scan.unmet:
        if item.name in brought and not item.there and item.file.path not in dead and not _is_free(item):
            found[item.name].append(item.file)
    for file, name in scan.lost:
        if name in brought and not _OWN_CHOICE.fullmatch(name) and file.kind != "deb" and file.path not in dead:
            found[name].append(file)
    for file, start in scan.guessed:
        for name in brought:
            if name.startswith(start):
                found[name].append(file)
    yield from sorted(found.items())


def _unreachable(scan: Scan) -> Iterator[tuple[str, list[File]]]:
    """Libraries of NVIDIA's wheels that the loader does not find, for files of packages that do not find them by
    themselves."""
    dead = {item.file.path for item in scan.unmet if not item.there}
    found: dict[str, list[File]] = defaultdict(list)
    for item in scan.unmet:
        by_itself = item.after or known.loading(item.file.owner) == "import"
        if _is_nvidias(item) and not by_itself and item.file.path not in dead:
            found[item.name].append(item.file)
    yield from sorted(found.items())


def _check_versions(scan: Scan, brought: frozenset[str], version: str) -> None:
    """A wheel that is made for another CUDA is a mistake of the profile, and no reason for the smallest flavour."""
    stems = {stem(name): name for name in brought}
    served = variants(scan) | {(item.file.owner, stem(item.name)) for item in scan.unmet if item.name in brought}
    for item in scan.unmet:
        is_other = not item.there and item.name not in brought and stem(item.name) in stems
        is_variant = (item.file.owner, stem(item.name)) in served
        if is_other and ".so." in item.name and not is_variant and not _is_free(item):
            raise AutoError(
                f"cuda.flavour: auto: {item.file.owner} needs {item.name} ({_short(item.file)}), "
                f"and CUDA {version} has {stems[stem(item.name)]}",
                hint="choose the cuda.version that the package is made for, or the package for this CUDA",
            )


def _reasons(
    scan: Scan, demands: Mapping[str, list[File]], unreachable: Mapping[str, list[File]], brought: frozenset[str]
) -> Iterator[str]:
    lines = [f"{name}: needed by {_who(files)}, brought by nothing else" for name, files in demands.items()]
    lines += [
        f"{name}: needed by {_who(files)}; {scan.by_soname[name][0].owner} brings it, found by way of /usr/local/cuda"
        for name, files in unreachable.items()
    ]
    lines = lines or list(_met(scan, brought)) or ["no file needs a library of CUDA"]
    yield from lines[:_MOST_REASONS]
    if len(lines) > _MOST_REASONS:
        yield f"and {len(lines) - _MOST_REASONS} more"


def _met(scan: Scan, brought: frozenset[str]) -> Iterator[str]:
    """Who brings the libraries of CUDA where no flavour has to."""
    stems = {stem(name) for name in brought}
    users: dict[tuple[str, str, str], list[File]] = defaultdict(list)
    for edge in scan.edges:
        is_other = edge.file.owner != edge.target.owner and edge.target.kind == "wheel"
        if is_other and stem(edge.name) in stems and not edge.file.owner.startswith("nvidia-"):
            users[edge.name, edge.target.owner, "needed"].append(edge.file)
    for file, name in scan.opens:
        target = scan.by_soname[name][0]
        is_other = target.kind == "wheel" and target.owner != file.owner
        if stem(name) in stems and is_other and not file.owner.startswith("nvidia-"):
            users[name, target.owner, "opened"].append(file)
    for item in scan.unmet:
        if _is_nvidias(item) and known.loading(item.file.owner) == "import":
            users[item.name, item.there[0].owner, "loaded"].append(item.file)
    for (name, owner, how), files in sorted(users.items()):
        yield f"{name}: {how} by {_who(files)}, {owner} brings it"


def _is_free(item: Unmet) -> bool:
    return known.is_optional(item.file.owner, item.file.path, item.name)


def _is_nvidias(item: Unmet) -> bool:
    return any(f"{_SITE}nvidia/" in file.path for file in item.there)


def _who(files: Sequence[File]) -> str:
    first = min(files, key=lambda file: file.path)
    others = len({file.path for file in files}) - 1
    return _short(first) + (f" and {others} more" if others else "") + f" ({first.owner})"


def _short(file: File) -> str:
    """A path as people know it: below site-packages, or absolute."""
    return file.path.partition(_SITE)[2] or file.path
