"""The inputs of a locked platform as findings see them, and where its processes look for libraries."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from builder.binaries.facts import InputFacts
from builder.binaries.gather import gather
from builder.binaries.known import known
from builder.cuda import environment, links
from builder.findings.loader import Search
from builder.findings.root import Input, Root, compose
from builder.findings.scan import Scan, scan
from builder.layers.tar import Kind
from builder.lock import LockedDeb, LockedFile, LockedPlatform, LockedWheel
from builder.progress import Progress
from builder.sources import slim
from builder.sources.wheel import site_packages
from builder.store import Store

_MACHINES = {"amd64": "x86_64", "arm64": "aarch64"}


def read(
    locked: LockedPlatform, store: Store, ensure: Callable[[Iterable[LockedFile]], None], progress: Progress
) -> Mapping[str, InputFacts]:
    """The facts of all packages and wheels of a platform by digest; what is not known is fetched and read."""
    return gather(_items(locked), store, ensure, progress)


def unread(locked: LockedPlatform, store: Store) -> tuple[str, ...]:
    """The names of the packages and wheels whose facts the store does not have."""
    return tuple(item.name for item in _items(locked) if known(store, item.file.sha256) is None)


def of(locked: LockedPlatform, facts: Mapping[str, InputFacts], below: Sequence[Input] = ()) -> tuple[Input, ...]:
    """The inputs, bottom first; `below` are those of an image that all stands on."""
    debs = [
        Input(f"{deb.name} {deb.version}", "deb", facts[deb.file.sha256])
        for deb in (locked.debian.packages if locked.debian else ())
    ]
    wheels = [
        Input(f"{wheel.name} {wheel.version}", "wheel", facts[wheel.file.sha256], _gone(wheel))
        for wheel in locked.wheels
    ]
    return (*below, *debs, *wheels, *_links(locked, facts))


def python(locked: LockedPlatform) -> str | None:
    """The version `3.N` in the name of the folder that wheels are in."""
    if locked.python:
        return locked.python.version
    return locked.cuda.python if locked.cuda else None


def environ(locked: LockedPlatform, env: Mapping[str, str]) -> Mapping[str, str]:
    """The variables of the image, where `env` are the profile's own."""
    own = environment.variables(locked.cuda.version, locked.cuda.flavour) if locked.cuda else {}
    return {**own, **env}


def search(locked: LockedPlatform, env: Mapping[str, str]) -> Search:
    """Where processes of the image look, whose variables are `env`.

    An image of CUDA has a cache of the loader: the NVIDIA container toolkit makes it when a container starts.
    """
    paths = env.get("LD_LIBRARY_PATH", "").replace(";", ":").split(":")
    has_links = locked.cuda is not None and locked.cuda.flavour != "none"
    return Search(
        _MACHINES.get(locked.platform.architecture, locked.platform.architecture),
        tuple(path for path in paths if path),
        (f"{links.HOME}/lib64",) if has_links else None,
    )


def root(inputs: Iterable[Input], locked: LockedPlatform) -> Root:
    """The files of the image, but for the profile's own."""
    return compose(inputs, python(locked))


def scanned(
    locked: LockedPlatform, facts: Mapping[str, InputFacts], env: Mapping[str, str], below: Sequence[Input] = ()
) -> Scan:
    """All binaries of a platform, opened; `env` are the variables that the profile itself sets."""
    tree = root(of(locked, facts, below), locked)
    return scan(tree, search(locked, environ(locked, env)), locked.python.version if locked.python else None)


def _items(locked: LockedPlatform) -> tuple[LockedDeb | LockedWheel, ...]:
    return *(locked.debian.packages if locked.debian else ()), *locked.wheels


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
