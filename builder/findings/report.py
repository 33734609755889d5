"""What there is to say of an image's binaries: errors for what cannot run, warnings for waste and risk, notes. Pure."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from builder.findings import known
from builder.findings.root import File
from builder.findings.scan import Scan, TooOld, Unmet, stem, variants

Level = Literal["error", "warning", "note"]
LEVELS: tuple[Level, ...] = ("error", "warning", "note")
CUDA = re.compile(
    r"lib(?:cudart|cublas|cublasLt|nvblas|cufftw?|curand|cusolver|cusolverMg|cusparse|cusparseLt|cudnn\w*|nccl|nvrtc|"
    r"nvrtc-builtins|nvJitLink|nvfatbin|npp\w+|nvjpeg|cupti|cufile|nvToolsExt)\.so(?:\..*)?"
)
_EVERYBODYS = re.compile(r"(?:ld-linux[\w-]*|lib(?:c|m|dl|rt|pthread|gcc_s|stdc\+\+|gomp|z))\.so\.\d+")
"""What the most binaries need, and no option of a package."""
_OF_NVIDIA = re.compile(r"lib(?:cutensor|nvinfer|nvshmem|nvonnx|nvcomp|cudss)")
_GLIB = re.compile(r"lib(?:glib|gobject|gthread|gmodule|gio)-2\.0\.so\.0")
_MB = 1_000_000
_SITE = "/site-packages/"
_ANOTHER = "choose another version of the package, or a newer Debian in base.debian (trixie after bookworm)"


@dataclass(frozen=True)
class Finding:
    """One thing to know: `what` in a line, `where` as details, `size` in bytes that would be saved (0 where that is not the
    point), and what to do."""

    level: Level
    kind: str
    what: str
    where: tuple[str, ...]
    size: int
    remedy: str


def report(scan: Scan, plain: Scan) -> tuple[Finding, ...]:
    """The findings, errors first and the largest of a level first; `plain` is the scan of the same root without
    LD_LIBRARY_PATH and `ld.so.conf`."""
    twice = _groups(scan)
    found = [
        *_missing(scan),
        *_unreachable(scan),
        *_too_old(scan.too_old),
        *_shadowed(scan, plain),
        *_own_cuda(twice),
        *_twice(twice),
        *_guessed(scan),
        *_collisions(scan),
        *(
            Finding(
                "warning", "damaged", f"{what}: it cannot be loaded", (why,), 0, "choose another version of the package"
            )
            for what, why in scan.root.damaged.items()
        ),
    ]
    return tuple(sorted(found, key=lambda item: (LEVELS.index(item.level), -item.size, item.what)))


def short(path: str) -> str:
    """A path as people know it: below site-packages, or absolute."""
    return path.partition(_SITE)[2] or path


def _missing(scan: Scan) -> Iterator[Finding]:
    """Libraries that are nowhere. A file that waits for others than those of CUDA is an option of its package, unless
    Python imports it, or what it waits for is what everything needs."""
    lost = [item for item in scan.unmet if not item.there]
    foreign = {item.file.path for item in lost if not CUDA.fullmatch(item.name)}
    served = variants(scan)
    names: dict[tuple[str, str], list[Unmet]] = defaultdict(list)
    for item in lost:
        names[item.file.owner, item.name].append(item)
    groups: dict[tuple[str, Level, bool], list[Unmet]] = defaultdict(list)
    for (owner, name), items in names.items():
        is_cuda = CUDA.fullmatch(name) is not None
        level: Level = "error" if any(_stops(item, is_cuda, foreign, served) for item in items) else "note"
        is_shared = level == "error" and not is_cuda and len({o for o, n in names if n == name}) > 1
        groups["" if is_shared else owner, level, is_cuda] += items
    for (owner, level, is_cuda), items in groups.items():
        for group in [items] if owner else _by_name(items):
            missing = list(dict.fromkeys(item.name for item in group))
            owners = list(dict.fromkeys(item.file.owner for item in group))
            who = owner or f"{len(owners)} packages ({_listed([each.partition(' ')[0] for each in owners], 4)})"
            remedy = _cuda_remedy(owner, missing) if is_cuda else _system_remedy(missing)
            yield Finding(
                level,
                "missing",
                f"{who}: {_listed(missing, 4)} {'is' if len(missing) == 1 else 'are'} missing",
                tuple(f"{short(item.file.path)} needs {item.name}: {item.reason}" for item in group),
                0,
                remedy if level == "error" else f"nothing, if this part of the package is not used; else {remedy}",
            )


def _by_name(items: Iterable[Unmet]) -> Iterable[list[Unmet]]:
    groups: dict[str, list[Unmet]] = defaultdict(list)
    for item in items:
        groups[item.name].append(item)
    return groups.values()


def _stops(item: Unmet, is_cuda: bool, foreign: Collection[str], served: Collection[tuple[str, str]]) -> bool:
    """Whether something cannot run for want of a library."""
    if known.is_optional(item.file.owner, item.file.path, item.name):
        return False
    if is_cuda:
        return item.file.path not in foreign and (item.file.owner, stem(item.name)) not in served
    return item.is_module or _EVERYBODYS.fullmatch(item.name) is not None


def _cuda_remedy(owner: str, names: Sequence[str]) -> str:
    project = owner.partition(" ")[0]
    asked = "".join(
        f", {key}: true" for key in ("cudnn", "nccl") if any(stem(name).startswith(f"lib{key}") for name in names)
    )
    what = f"`cuda: {{version: ..., flavour: auto{asked}}}`"
    return f"add {what}, or the extra of {project} that brings NVIDIA's wheels"


def _system_remedy(names: Sequence[str]) -> str:
    if all(_OF_NVIDIA.match(name) for name in names):
        return f"add to python.requirements the wheel of NVIDIA's that has {'it' if len(names) == 1 else 'them'}"
    packages = ", ".join(dict.fromkeys(map(_package, names)))
    return f"add to base.packages what has {'it' if len(names) == 1 else 'them'} in Debian, usually {packages}"


def _package(name: str) -> str:
    """What Debian calls the package of a library by its rule: libgl1 has libGL.so.1, libx11-6 has libX11.so.6."""
    if _GLIB.fullmatch(name):
        return "libglib2.0-0"
    word = stem(name).lower().replace("_", "-")
    version = name.partition(".so.")[2].partition(".")[0]
    return f"{word}{'-' if word[-1:].isdigit() else ''}{version}"


def _unreachable(scan: Scan) -> Iterator[Finding]:
    """Libraries that are there, but not where the loader looks."""
    groups: dict[tuple[str, str, str], list[Unmet]] = defaultdict(list)
    for item in scan.unmet:
        if item.there:
            is_nvidias = "/nvidia/" in item.there[0].path
            groups[item.file.owner, item.after, known.loading(item.file.owner) if is_nvidias else ""].append(item)
    for (owner, after, loads), items in groups.items():
        places = sorted({posixpath.dirname(item.there[0].path) for item in items})
        where = tuple(
            f"{short(item.file.path)} needs {item.name}, which is {short(item.there[0].path)} of {item.there[0].owner}"
            for item in items
        )
        listed = _listed(sorted({item.name for item in items}), 4)
        if after:
            project = after.partition(" ")[0]
            what, remedy = (
                f"{owner}: {listed}: found once {after} is imported",
                f"import {project} first, as the package does",
            )
            yield Finding("note", "import", what, where, 0, remedy)
        elif loads == "import":
            what = f"{owner}: {listed}: not found by the loader, loaded by the package itself"
            yield Finding("note", "import", what, where, 0, "nothing")
        elif loads:
            remedy = f"call {loads} first, or add `cuda: {{version: ..., flavour: auto}}`: then the loader finds them"
            yield Finding("warning", "unreachable", f"{owner}: the loader does not find {listed}", where, 0, remedy)
        else:
            level: Level = "error" if any(item.is_module for item in items) else "note"
            remedy = f"set LD_LIBRARY_PATH to {':'.join(places)} in image.env"
            yield Finding(level, "unreachable", f"{owner}: the loader does not find {listed}", where, 0, remedy)


def _too_old(items: Sequence[TooOld]) -> Iterator[Finding]:
    groups: dict[tuple[str, str], list[TooOld]] = defaultdict(list)
    for item in items:
        groups[item.file.owner, item.library.path].append(item)
    for (owner, _), group in groups.items():
        library = group[0].library
        wanted = max((version for item in group for version in item.versions), key=_version)
        prefix = wanted.partition("_")[0]
        has = (
            [version for version in library.binary.defines if version.startswith(f"{prefix}_")]
            if library.binary
            else []
        )
        newest = max(has, key=_version, default="none")
        yield Finding(
            "error" if any(item.is_module for item in group) else "warning",
            "too-old",
            f"{owner}: {posixpath.basename(library.path)} is too old: {wanted} is needed, {library.owner} has {newest}",
            tuple(f"{short(item.file.path)} needs {', '.join(item.versions)}" for item in group),
            0,
            _ANOTHER,
        )


def _version(text: str) -> list[int]:
    return [int(number) for number in re.findall(r"\d+", text)]


def _shadowed(scan: Scan, plain: Scan) -> Iterator[Finding]:
    """Libraries that LD_LIBRARY_PATH or ld.so.conf puts in the place of those that files would find by themselves."""
    before = {(edge.file.path, edge.name): edge for edge in plain.edges}
    groups: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for edge in scan.edges:
        own = before.get((edge.file.path, edge.name))
        if own and own.target is not edge.target and own.target.path != edge.target.path:
            groups[edge.name, edge.target.path, own.target.path].append(
                f"{short(edge.file.path)} gets it by {edge.how}, and {short(own.target.path)} without"
            )
    for (name, path, instead), where in groups.items():
        what = f"{name}: {short(path)} takes the place of {short(instead)} for {len(where)} file{'s' if len(where) > 1 else ''}"
        yield Finding(
            "warning", "shadowed", what, tuple(where), 0, "take what brings the other version out of the image"
        )


@dataclass(frozen=True)
class _Group:
    """Files with one SONAME."""

    name: str
    files: tuple[File, ...]

    @property
    def waste(self) -> int:
        """Bytes of all but the largest."""
        sizes = [file.size for file in self.files]
        return sum(sizes) - max(sizes)


def _groups(scan: Scan) -> tuple[_Group, ...]:
    groups: dict[str, dict[str, File]] = defaultdict(dict)
    for file in scan.root.binaries:
        if file.binary and file.binary.soname and file.binary.machine == scan.search.machine:
            groups[file.binary.soname][file.path] = file
    return tuple(_Group(name, tuple(files.values())) for name, files in sorted(groups.items()) if len(files) > 1)


def _own_cuda(groups: Iterable[_Group]) -> Iterator[Finding]:
    """The libraries of CUDA that a base image and wheels bring both."""
    both = [group for group in groups if CUDA.fullmatch(group.name) and _kinds(group) >= {"image", "wheel"}]
    if both:
        waste = sum(file.size for group in both for file in group.files if file.kind == "image")
        yield Finding(
            "warning",
            "own-cuda",
            f"the wheels bring CUDA by themselves: {len(both)} libraries of the base image are there twice, "
            f"{waste / _MB:,.0f} MB",
            tuple(_places(group) for group in both),
            waste,
            "stand on the base flavour of the image, or on Debian: `base: {debian: bookworm}`",
        )


def _twice(groups: Iterable[_Group]) -> Iterator[Finding]:
    for group in groups:
        if CUDA.fullmatch(group.name) and _kinds(group) >= {"image", "wheel"}:
            continue
        owners = {file.owner for file in group.files}
        level: Level = "warning" if group.waste >= _MB and len(owners) > 1 else "note"
        same = len({(file.size, file.checksum) for file in group.files}) == 1
        how = "the same" if same else "different files"
        what = f"{group.name} is there {len(group.files)} times, {how}: {group.waste / _MB:,.1f} MB"
        remedy = "leave one out with `slim`, if its package finds the other, or accept it"
        yield Finding(level, "twice", what, (_places(group),), group.waste, remedy)


def _guessed(scan: Scan) -> Iterator[Finding]:
    groups: dict[File, list[str]] = defaultdict(list)
    for file, start in scan.guessed:
        groups[file].append(f"{start}*")
    for file, names in groups.items():
        what = f"{file.owner}: {_listed(names, 4)}: opened by name, and nothing brings it"
        yield Finding(
            "warning", "missing", what, (f"{short(file.path)} opens them",), 0, _cuda_remedy(file.owner, names)
        )


def _collisions(scan: Scan) -> Iterator[Finding]:
    """Files that two wheels bring with different content: there is no image with both."""
    groups: dict[tuple[str, str], list[str]] = defaultdict(list)
    for path, owner, other in scan.root.collisions:
        groups[owner, other].append(short(path))
    for (owner, other), paths in groups.items():
        what = f"{owner} and {other} both bring {_listed(paths, 2)}, with different content"
        remedy = (
            f"leave out one of them: `slim: [{{wheels: [{other.partition(' ')[0]}], drop: [{', '.join(paths[:4])}]}}]`"
        )
        yield Finding("error", "collision", what, tuple(paths), 0, remedy)


def _kinds(group: _Group) -> set[str]:
    return {file.kind for file in group.files}


def _places(group: _Group) -> str:
    return f"{group.name}: " + ", ".join(f"{short(file.path)} of {file.owner}" for file in group.files)


def _listed(names: Sequence[str], most: int) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def as_documents(findings: Iterable[Finding]) -> list[Mapping[str, object]]:
    """The findings for programs."""
    return [
        {
            "level": item.level,
            "kind": item.kind,
            "what": item.what,
            "where": list(item.where),
            "size": item.size,
            "remedy": item.remedy,
        }
        for item in findings
    ]
