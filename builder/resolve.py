"""The step from a profile to its lock: every input by digest, kept where nothing asks for another one."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from builder.asked import check_known, python_version, request_in, request_of, requirements_of
from builder.baseimage import LockedImage
from builder.errors import BuilderError
from builder.lock import (
    Lock,
    LockedCuda,
    LockedDeb,
    LockedDebian,
    LockedFile,
    LockedLocal,
    LockedModel,
    LockedNix,
    LockedPlatform,
    LockedPython,
    LockedWheel,
)
from builder.oci.content import Source
from builder.oci.spec import Platform
from builder.own import Local, compression, execution, own_places, soci_settings
from builder.packing import Folder, Packer
from builder.profile import PYTHON_OF, Cuda, LoadedProfile, Profile, Python
from builder.progress import Progress
from builder.sources.requirements import Requirements
from builder.sources.simple import Catalogue

if TYPE_CHECKING:
    from builder.base.locking import OwnPlaces
    from builder.cuda.flavours import Asked
    from builder.findings.flavour import Composed
    from builder.models.sources import Means
    from builder.sources.debian import Archive
    from builder.sources.nix import Means as NixMeans
    from builder.store import Store

_ALWAYS = ("base-files",)
_NO_UPGRADE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Places:
    """Where inputs are looked up, and the architecture of this machine in the words of an OCI platform; where a decision
    depends on what is in an input, `ensure` brings it into `store`. `means` is what models need, where there are any; `base` opens
    the place of the profile's base image and says what it is called there; `nix` is what references to Nix need."""

    archives: Mapping[str, Archive]
    catalogue: Catalogue
    architecture: str
    store: Store
    ensure: Callable[[Iterable[LockedFile]], None]
    means: Means | None = None
    base: Callable[[], tuple[Source, str | None]] | None = None
    nix: NixMeans | None = None


def resolve(
    loaded: LoadedProfile,
    found: Local,
    places: Places,
    *,
    created: str,
    previous: Lock | None = None,
    upgrade: bool | frozenset[str] = False,
    progress: Progress,
) -> Lock:
    """The lock of a profile.

    What `previous` locked stays where the profile asks for the same as then, unless `upgrade` (all, or these names)
    moves it; then nothing is looked up. `created` (RFC 3339, UTC) is taken only if anything else changes.
    """
    profile = loaded.profile
    own = own_places(found), own_places(previous) if previous else ()
    unmoved = previous if previous and upgrade is not True else None
    if unmoved and (unmoved.start and unmoved.start.unordered) != found.start:
        unmoved = None
    platforms = tuple(
        _with_contract(
            _platform(loaded, platform, places, _of(previous, platform), upgrade, progress, own, found.files),
            loaded,
            found.files,
            _of(previous, platform),
            places,
            progress,
        )
        for platform in sorted(profile.platforms)
    )
    if isinstance(upgrade, frozenset):
        check_known(upgrade, platforms, profile.models)
    start = found.start
    if start and profile.start and profile.start.ordered:
        from builder.sources import startorder  # few images have an order

        same = unmoved if unmoved and unmoved.profile == str(profile.digest) else None
        means = startorder.Means(places.store, places.ensure, same)
        start = startorder.with_order(start, found.rendered, profile.start.order == "all", platforms, means)
    lock = Lock(
        name=profile.name,
        profile=str(profile.digest),
        created=previous.created if previous else created,
        platforms=platforms,
        includes=found.includes,
        files=found.files,
        templates=found.templates,
        models=_models(profile, found, places, previous, upgrade),
        start=start,
        image=execution(profile),
        soci=soci_settings(profile, unmoved.soci if unmoved else None),
        compression=compression(profile, previous),
    )
    return lock if lock == previous else replace(lock, created=created)


def _platform(
    loaded: LoadedProfile,
    platform: Platform,
    places: Places,
    previous: LockedPlatform | None,
    upgrade: bool | frozenset[str],
    progress: Progress,
    own: OwnPlaces,
    files: Sequence[LockedLocal],
) -> LockedPlatform:
    profile = loaded.profile
    nix, own = _nix(profile, platform, places, previous, upgrade, progress, own)
    if profile.base is None:
        return LockedPlatform(platform, nix=nix)
    found: LockedDebian | None = None
    image: LockedImage | None = None
    closure: tuple[str, ...] = ()
    if profile.base.image:
        image = _image(profile, platform, places, previous, own, upgrade, progress)
        if profile.cuda:
            from builder.cuda import environment

            environment.check(profile.cuda.version, profile.cuda.flavour, dict(image.execution.env))
    else:
        found, closure = _debian(profile, platform, places, previous, upgrade, progress)
    below = image or found
    assert below
    if not profile.python and not profile.cuda:
        return LockedPlatform(platform, found, image=image, nix=nix)
    request = request_of(loaded, platform, image)
    wheels, cuda = _wheels(loaded, platform, below, request, places, previous, upgrade, progress, files)
    version = python_version(profile, image)
    wheels = _slim(profile, wheels, version, places)
    python = None
    if profile.python:
        python = LockedPython(
            version=version,
            executable=image.executable if image else f"/usr/bin/python{version}",
            bytecode=profile.python.bytecode is True
            if image
            else _bytecode(profile.python, platform, places.architecture, previous.python if previous else None),
            interpreter=closure,
            request=request,
            wheels=wheels,
            compiler=_compiler(profile.python, version, platform, places, previous, upgrade) if image else (),
        )
    elif cuda:
        cuda = replace(cuda, python=version, wheels=wheels)
    return LockedPlatform(platform, found, python, cuda=cuda, image=image, nix=nix)


def _nix(
    profile: Profile,
    platform: Platform,
    places: Places,
    previous: LockedPlatform | None,
    upgrade: bool | frozenset[str],
    progress: Progress,
    own: OwnPlaces,
) -> tuple[LockedNix | None, OwnPlaces]:
    """What comes from Nix, and the places of ours with those of that."""
    if not profile.nix:
        return None, own
    from builder.sources import nix

    assert places.nix
    before = previous.nix if previous else None
    with progress.task(f"lock what comes from Nix for {platform}", None):
        found = nix.lock(profile.from_nix, platform.architecture, places.nix, before, upgrade)
    return found, (own[0] + nix.places(found), own[1] + nix.places(before))


def _with_contract(
    locked: LockedPlatform,
    loaded: LoadedProfile,
    files: Sequence[LockedLocal],
    previous: LockedPlatform | None,
    places: Places,
    progress: Progress,
) -> LockedPlatform:
    """The platform with what it asks of GPUs, where the profile speaks of CUDA or GPUs."""
    gpu = loaded.profile.gpu
    if not gpu and not loaded.profile.cuda:
        return locked
    from builder.binaries.contract import contract

    before = previous.gpu if previous else None
    own = [(file.to, loaded.root / file.source) for file in files if file.target is None]
    return replace(locked, gpu=contract(locked, own, gpu, before, places.store, places.ensure, progress))


def _image(
    profile: Profile,
    platform: Platform,
    places: Places,
    previous: LockedPlatform | None,
    own: OwnPlaces,
    upgrade: bool | frozenset[str],
    progress: Progress,
) -> LockedImage:
    """The base image, pinned by its digest, with what the files of it say that decides about what goes on top."""
    from builder.base import locking

    assert places.base
    packer = Packer(places.store.root, Folder(Path()), soci_settings(profile))
    reader = locking.Reader(places.store, places.ensure, lambda layer: packer(layer, lambda _: None), places.base)
    with progress.task(f"lock the base image for {platform}", None):
        return locking.resolve(profile, platform, reader, previous.image if previous else None, own, upgrade)


def _compiler(
    python: Python,
    version: str,
    platform: Platform,
    places: Places,
    previous: LockedPlatform | None,
    upgrade: bool | frozenset[str],
) -> tuple[LockedDeb, ...]:
    """Debian's interpreter that makes bytecode for an image's own: bytecode is the same for all releases of a version."""
    before = previous.python if previous else None
    if python.bytecode is not True:
        return ()
    if before and before.compiler and before.version == version and upgrade is not True:
        return before.compiler
    from builder.sources import debian  # what only resolving needs takes long to import

    suite = next((suite for suite, has in PYTHON_OF.items() if has == version), None)
    if suite is None:
        raise BuilderError(
            f"python.bytecode: the base image has Python {version}, and no Debian has an interpreter that compiles for it",
            hint=f"write auto, for none, or choose a base image with Python {' or '.join(PYTHON_OF.values())}",
        )
    minimal = f"python{version}-minimal"
    resolution = debian.resolve(suite, platform.architecture, [minimal], places.archives[suite])
    names = set(resolution.closure([minimal]))
    return tuple(deb for deb in resolution.locked.packages if deb.name in names)


def _debian(
    profile: Profile,
    platform: Platform,
    places: Places,
    previous: LockedPlatform | None,
    upgrade: bool | frozenset[str],
    progress: Progress,
) -> tuple[LockedDebian, tuple[str, ...]]:
    """The Debian packages, and those of them that the interpreter needs to run."""
    from builder.sources import debian  # what only resolving needs takes long to import
    from builder.sources.solve import SKIP

    assert profile.base
    assert profile.base.debian
    suite, architecture = profile.base.debian, platform.architecture
    wanted = {*_ALWAYS, *profile.base.packages}
    minimal = f"python{profile.python.version}-minimal" if profile.python else None
    if profile.python:
        wanted |= {f"python{profile.python.version}"}
    if profile.cuda:
        from builder.cuda import flavours

        wanted |= set(flavours.packages(_asked(profile.cuda)))
    skip = {**SKIP, "*": {*SKIP["*"], *profile.base.skip}}
    before = previous.debian if previous else None
    names = {deb.name for deb in before.packages} if before else set()
    unmoved = before and before.request == debian.request(suite, architecture, wanted, skip)
    if before and unmoved and upgrade is not True and not (upgrade or _NO_UPGRADE) & names:
        return before, previous.python.interpreter if previous and previous.python else ()
    with progress.task(f"lock Debian {suite} for {platform}", None):
        keep = None if upgrade is True else before
        moving: Collection[str] = upgrade if isinstance(upgrade, frozenset) else ()
        resolution = debian.resolve(
            suite, architecture, wanted, places.archives[suite], previous=keep, upgrade=moving, skip=skip
        )
    return resolution.locked, resolution.closure([minimal]) if minimal else ()


def _wheels(
    loaded: LoadedProfile,
    platform: Platform,
    base: LockedDebian | LockedImage,
    request: str,
    places: Places,
    previous: LockedPlatform | None,
    upgrade: bool | frozenset[str],
    progress: Progress,
    files: Sequence[LockedLocal],
) -> tuple[tuple[LockedWheel, ...], LockedCuda | None]:
    """The wheels of Python and CUDA together, and which CUDA that is; kept where nothing else is asked for."""
    profile = loaded.profile
    if isinstance(upgrade, frozenset):
        upgrade = frozenset(map(canonicalize_name, upgrade))
    before = tuple(replace(wheel, drop=()) for wheel in previous.wheels) if previous else ()
    was = request_in(previous)
    moving = upgrade is True or (upgrade or _NO_UPGRADE) & {wheel.name for wheel in before}
    if previous and was == request and not moving:
        return before, replace(previous.cuda, wheels=()) if previous.cuda else None
    from builder.sources.target import target_of

    image, debian = (base, None) if isinstance(base, LockedImage) else (None, base)
    version = python_version(profile, image)
    target = target_of(version, platform, base)
    asked = requirements_of(loaded, profile.python) if profile.python else Requirements()
    with progress.task(f"lock {'Python packages' if profile.python else 'CUDA'} for {platform}", None):
        if profile.cuda is None:
            from builder.sources import pypi

            found = pypi.resolve(asked, target, catalogue=places.catalogue, previous=before, upgrade=upgrade)
            return found, None
        from builder.sources import toolkit

        cuda = _asked(profile.cuda)
        release = previous.cuda.version if previous and previous.cuda else None

        def composed(flavour: Asked) -> Composed:
            found = toolkit.resolve(
                asked, flavour, target, catalogue=places.catalogue, previous=before, release=release, upgrade=upgrade
            )
            return found.wheels, LockedCuda(found.version, flavour.flavour, request)

        if cuda.flavour != "auto":
            return composed(cuda)
    from builder.findings import flavour as smallest
    from builder.findings import inputs

    executable = (image.executable if image else f"/usr/bin/python{version}") if profile.python else ""
    own = inputs.own(files, loaded.root)
    means = smallest.Means(places.store, places.ensure, progress, dict(profile.image.env), own)
    return smallest.decide(cuda, composed, LockedPlatform(platform, debian, image=image), version, executable, means)


def _asked(cuda: Cuda) -> Asked:
    from builder.cuda.flavours import Asked

    return Asked(cuda.version, cuda.flavour, cuda.cudnn, cuda.nccl)


def _slim(profile: Profile, wheels: Sequence[LockedWheel], version: str, places: Places) -> tuple[LockedWheel, ...]:
    """The wheels with what the profile leaves out of each."""
    whole = tuple(replace(wheel, drop=()) for wheel in wheels)
    if not profile.slim:
        return whole
    from builder.sources import slim

    rules = [slim.Rule(rule.wheels, rule.drop) for rule in profile.slim]
    return slim.decide(whole, rules, version, places.store, places.ensure)


def _bytecode(python: Python, platform: Platform, architecture: str, before: LockedPython | None) -> bool:
    """`auto` is decided once, when a platform is first locked: a relock on another machine changes no image."""
    if python.bytecode != "auto":
        return python.bytecode
    return before.bytecode if before else platform.architecture == architecture


def _models(
    profile: Profile, found: Local, places: Places, previous: Lock | None, upgrade: bool | frozenset[str]
) -> tuple[LockedModel, ...]:
    if not profile.models:
        return ()
    from builder.models import locking

    assert places.means
    before = previous.models if previous else ()
    return locking.lock_models(profile.models, found.models, places.means, before, upgrade)


def _of(lock: Lock | None, platform: Platform) -> LockedPlatform | None:
    return next((item for item in lock.platforms if item.platform == platform), None) if lock else None
