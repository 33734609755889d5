"""The inputs of a locked platform as findings see them, and where its processes look for libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from builder.binaries.facts import InputFacts
from builder.binaries.files import of_files
from builder.binaries.gather import Item, gather
from builder.binaries.known import known
from builder.cuda import environment, links
from builder.findings.loader import Search
from builder.findings.root import Input, compose
from builder.findings.scan import Scan, scan
from builder.layers.tar import Kind
from builder.lock import LockedFile, LockedLocal, LockedPlatform, LockedWheel
from builder.plan import base_layers
from builder.progress import Progress
from builder.sources import slim
from builder.sources.local import image_path
from builder.sources.wheel import site_packages
from builder.store import Store

_BASE_CONF = (
    "/usr/local/lib",
    "/usr/local/cuda/targets/x86_64-linux/lib",
    "/usr/local/cuda/targets/sbsa-linux/lib",
    "/usr/local/cuda/lib64",
)
"""What `/etc/ld.so.conf.d` of Debian, Ubuntu and nvidia/cuda names."""
_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def read(
    locked: LockedPlatform, store: Store, ensure: Callable[[Iterable[LockedFile]], None], progress: Progress
) -> Mapping[str, InputFacts]:
    """The facts of all inputs of a platform by digest; what is not known is fetched and read."""
    return gather(_items(locked), store, ensure, progress)


def unread(locked: LockedPlatform, store: Store) -> tuple[str, ...]:
    """The names of the inputs whose facts the store does not have."""
    return tuple(item.name for item in _items(locked) if known(store, item.file.sha256) is None)


def of(locked: LockedPlatform, facts: Mapping[str, InputFacts]) -> tuple[Input, ...]:
    """The inputs, bottom first."""
    layers = base_layers(locked.image) if locked.image else ()
    below = [Input(f"base image, {layer.name[5:]}", "image", facts[layer.file.sha256]) for layer in layers]
    debs = [
        Input(f"{deb.name} {deb.version}", "deb", facts[deb.file.sha256])
        for deb in (locked.debian.packages if locked.debian else ())
    ]
    wheels = [
        Input(f"{wheel.name} {wheel.version}", "wheel", facts[wheel.file.sha256], _gone(wheel))
        for wheel in locked.wheels
    ]
    return (*below, *debs, *wheels, *_links(locked, facts))


def own(files: Iterable[LockedLocal], folder: Path) -> Input:
    """The profile's own files, whose paths start from `folder`: binaries, and links."""
    placed = [(file, f"/{image_path(file.to)}") for file in files]
    facts = of_files((place, folder / file.source) for file, place in placed if file.target is None)
    links = tuple(sorted((place, file.target) for file, place in placed if file.target is not None))
    return Input("own files", "files", replace(facts, links=links))


def python(locked: LockedPlatform) -> str | None:
    """The version `3.N` in the name of the folder that wheels are in."""
    if locked.python:
        return locked.python.version
    return locked.cuda.python if locked.cuda else None


def environ(locked: LockedPlatform, env: Mapping[str, str]) -> Mapping[str, str]:
    """The variables of the image, where `env` are the profile's own."""
    below = dict(locked.image.execution.env) if locked.image else {}
    own = environment.variables(locked.cuda.version, locked.cuda.flavour, below) if locked.cuda else {}
    return {**below, **own, **env}


def search(locked: LockedPlatform, env: Mapping[str, str]) -> Search:
    """Where processes of the image look, whose variables are `env`.

    An image of CUDA has a cache of the loader: the NVIDIA container toolkit makes it when a container starts. Of a base
    image, it has what the image's own configuration of the loader names, and what images of NVIDIA name in theirs.
    """
    paths = env.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":")
    has_links = locked.cuda is not None and locked.cuda.flavour != "none"
    folders = [f"{links.HOME}/lib64"] if has_links else []
    folders += (*locked.image.search, *_BASE_CONF) if locked.image else ()
    return Search(
        _MACHINES.get(locked.platform.architecture, locked.platform.architecture),
        tuple(path for path in paths if path),
        tuple(folders) if folders else None,
    )


def scanned(
    locked: LockedPlatform, facts: Mapping[str, InputFacts], env: Mapping[str, str], files: Input | None = None
) -> Scan:
    """All binaries of a platform, opened; `env` are the variables that the profile itself sets, `files` its own files."""
    tree = compose((*of(locked, facts), *([files] if files else [])), python(locked))
    version = locked.python.version if locked.python else None
    executable = locked.python.executable if locked.python else ""
    return scan(tree, search(locked, environ(locked, env)), version, executable)


def _items(locked: LockedPlatform) -> tuple[Item, ...]:
    layers = base_layers(locked.image) if locked.image else ()
    return *layers, *(locked.debian.packages if locked.debian else ()), *locked.wheels


def _gone(wheel: LockedWheel) -> Callable[[str], bool] | None:
    patterns = wheel.drop
    return (lambda path: any(slim.drops(path, pattern) for pattern in patterns)) if patterns else None


def _links(locked: LockedPlatform, facts: Mapping[str, InputFacts]) -> list[Input]:
    """`/usr/local/cuda`."""
    version = python(locked)
    if locked.cuda is None or locked.cuda.flavour == "none" or version is None:
        return []
    wheels = {}
    for wheel in locked.wheels:
        if wheel.name.startswith("nvidia-"):
            paths = (path.removeprefix("site/") for path, _, _ in facts[wheel.file.sha256].files if path[:5] == "site/")
            gone = _gone(wheel)
            wheels[wheel.name] = [path for path in paths if not (gone and gone(path))]
    minor = ".".join(locked.cuda.version.split(".")[:2])
    made = links.entries(minor, site_packages(version), wheels)
    pairs = sorted((f"/{entry.path}", entry.linkname) for entry in made if entry.kind is Kind.SYMLINK)
    return [Input(f"cuda {minor}", "cuda", InputFacts(links=tuple(pairs)))]
