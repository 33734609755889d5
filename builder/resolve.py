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
    from builder.cuda.flavours import Asked as CudaAsked
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
        _platform(_Asked(loaded, platform, places, _of(previous, platform), upgrade, progress, found.files), own)
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


@dataclass(frozen=True)
class _Asked:
    """What is to be locked for one platform: `previous` is what was locked for it, `files` are those of the profile's folder."""

    loaded: LoadedProfile
    platform: Platform
    places: Places
    previous: LockedPlatform | None
    upgrade: bool | frozenset[str]
    progress: Progress
    files: Sequence[LockedLocal]

    @property
    def profile(self) -> Profile:
        return self.loaded.profile

    @property
    def python(self) -> LockedPython | None:
        """The Python that was locked."""
        return self.previous.python if self.previous else None


def _platform(asked: _Asked, own: OwnPlaces) -> LockedPlatform:
    """The inputs of a platform, with what it asks of GPUs, where the profile speaks of CUDA or GPUs."""
    locked, gpu = _inputs(asked, own), asked.profile.gpu
    if not gpu and not asked.profile.cuda:
        return locked
    from builder.binaries.contract import contract

    before = asked.previous.gpu if asked.previous else None
    files = [(file.to, asked.loaded.root / file.source) for file in asked.files if file.target is None]
    return replace(
        locked, gpu=contract(locked, files, gpu, before, asked.places.store, asked.places.ensure, asked.progress)
    )


def _inputs(asked: _Asked, own: OwnPlaces) -> LockedPlatform:
    profile, platform = asked.profile, asked.platform
    nix, own = _nix(asked, own)
    if profile.base is None:
        return LockedPlatform(platform, nix=nix)
    found: LockedDebian | None = None
    image: LockedImage | None = None
    closure: tuple[str, ...] = ()
    if profile.base.image:
        image = _image(asked, own)
        if profile.cuda:
            from builder.cuda import environment

            environment.check(profile.cuda.version, profile.cuda.flavour, dict(image.execution.env))
    else:
        found, closure = _debian(asked)
    below = image or found
    assert below
    if not profile.python and not profile.cuda:
        return LockedPlatform(platform, found, image=image, nix=nix)
    request = request_of(asked.loaded, platform, image)
    wheels, cuda = _wheels(asked, below, request)
    version = python_version(profile, image)
    wheels = _slim(profile, wheels, version, asked.places)
    python = None
    if profile.python:
        python = LockedPython(
            version=version,
            executable=image.executable if image else f"/usr/bin/python{version}",
            bytecode=profile.python.bytecode is True if image else _bytecode(asked, profile.python),
            interpreter=closure,
            request=request,
            wheels=wheels,
            compiler=_compiler(asked, profile.python, version) if image else (),
        )
    elif cuda:
        cuda = replace(cuda, python=version, wheels=wheels)
    return LockedPlatform(platform, found, python, cuda=cuda, image=image, nix=nix)


def _nix(asked: _Asked, own: OwnPlaces) -> tuple[LockedNix | None, OwnPlaces]:
    """What comes from Nix, and the places of ours with those of that."""
    if not asked.profile.nix:
        return None, own
    from builder.sources import nix

    assert asked.places.nix
    before = asked.previous.nix if asked.previous else None
    with asked.progress.task(f"lock what comes from Nix for {asked.platform}", None):
        architecture = asked.platform.architecture
        found = nix.lock(asked.profile.from_nix, architecture, asked.places.nix, before, asked.upgrade)
    return found, (own[0] + nix.places(found), own[1] + nix.places(before))


def _image(asked: _Asked, own: OwnPlaces) -> LockedImage:
    """The base image, pinned by its digest, with what the files of it say that decides about what goes on top."""
    from builder.base import locking

    places = asked.places
    assert places.base
    packer = Packer(places.store.root, Folder(Path()), soci_settings(asked.profile))
    reader = locking.Reader(places.store, places.ensure, lambda layer: packer(layer, lambda _: None), places.base)
    before = asked.previous.image if asked.previous else None
    with asked.progress.task(f"lock the base image for {asked.platform}", None):
        return locking.resolve(asked.profile, asked.platform, reader, before, own, asked.upgrade)


def _compiler(asked: _Asked, python: Python, version: str) -> tuple[LockedDeb, ...]:
    """Debian's interpreter that makes bytecode for an image's own: bytecode is the same for all releases of a version."""
    before = asked.python
    if python.bytecode is not True:
        return ()
    if before and before.compiler and before.version == version and asked.upgrade is not True:
        return before.compiler
    from builder.sources import debian  # what only resolving needs takes long to import

    suite = next((suite for suite, has in PYTHON_OF.items() if has == version), None)
    if suite is None:
        raise BuilderError(
            f"python.bytecode: the base image has Python {version}, and no Debian has an interpreter that compiles for it",
            hint=f"write auto, for none, or choose a base image with Python {' or '.join(PYTHON_OF.values())}",
        )
    minimal = f"python{version}-minimal"
    resolution = debian.resolve(suite, asked.platform.architecture, [minimal], asked.places.archives[suite])
    names = set(resolution.closure([minimal]))
    return tuple(deb for deb in resolution.locked.packages if deb.name in names)


def _debian(asked: _Asked) -> tuple[LockedDebian, tuple[str, ...]]:
    """The Debian packages, and those of them that the interpreter needs to run."""
    from builder.sources import debian  # what only resolving needs takes long to import
    from builder.sources.solve import SKIP

    profile, upgrade = asked.profile, asked.upgrade
    assert profile.base
    assert profile.base.debian
    suite, architecture = profile.base.debian, asked.platform.architecture
    wanted = {*_ALWAYS, *profile.base.packages}
    minimal = f"python{profile.python.version}-minimal" if profile.python else None
    if profile.python:
        wanted |= {f"python{profile.python.version}"}
    if profile.cuda:
        from builder.cuda import flavours

        wanted |= set(flavours.packages(_cuda(profile.cuda)))
    skip = {**SKIP, "*": {*SKIP["*"], *profile.base.skip}}
    before = asked.previous.debian if asked.previous else None
    names = {deb.name for deb in before.packages} if before else set()
    unmoved = before and before.request == debian.request(suite, architecture, wanted, skip)
    if before and unmoved and upgrade is not True and not (upgrade or _NO_UPGRADE) & names:
        return before, asked.python.interpreter if asked.python else ()
    with asked.progress.task(f"lock Debian {suite} for {asked.platform}", None):
        keep = None if upgrade is True else before
        moving: Collection[str] = upgrade if isinstance(upgrade, frozenset) else ()
        resolution = debian.resolve(
            suite, architecture, wanted, asked.places.archives[suite], previous=keep, upgrade=moving, skip=skip
        )
    return resolution.locked, resolution.closure([minimal]) if minimal else ()


def _wheels(
    asked: _Asked, base: LockedDebian | LockedImage, request: str
) -> tuple[tuple[LockedWheel, ...], LockedCuda | None]:
    """The wheels of Python and CUDA together, and which CUDA that is; kept where nothing else is asked for."""
    profile, platform, places = asked.profile, asked.platform, asked.places
    previous, upgrade = asked.previous, asked.upgrade
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
    wanted = requirements_of(asked.loaded, profile.python) if profile.python else Requirements()
    with asked.progress.task(f"lock {'Python packages' if profile.python else 'CUDA'} for {platform}", None):
        if profile.cuda is None:
            from builder.sources import pypi

            found = pypi.resolve(wanted, target, catalogue=places.catalogue, previous=before, upgrade=upgrade)
            return found, None
        from builder.sources import toolkit

        cuda = _cuda(profile.cuda)
        release = previous.cuda.version if previous and previous.cuda else None

        def composed(flavour: CudaAsked) -> Composed:
            found = toolkit.resolve(
                wanted, flavour, target, catalogue=places.catalogue, previous=before, release=release, upgrade=upgrade
            )
            return found.wheels, LockedCuda(found.version, flavour.flavour, request)

        if cuda.flavour != "auto":
            return composed(cuda)
    from builder.findings import flavour as smallest
    from builder.findings import inputs

    executable = (image.executable if image else f"/usr/bin/python{version}") if profile.python else ""
    own = inputs.own(asked.files, asked.loaded.root)
    means = smallest.Means(places.store, places.ensure, asked.progress, dict(profile.image.env), own)
    return smallest.decide(cuda, composed, LockedPlatform(platform, debian, image=image), version, executable, means)


def _cuda(cuda: Cuda) -> CudaAsked:
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


def _bytecode(asked: _Asked, python: Python) -> bool:
    """`auto` is decided once, when a platform is first locked: a relock on another machine changes no image."""
    if python.bytecode != "auto":
        return python.bytecode
    return asked.python.bytecode if asked.python else asked.platform.architecture == asked.places.architecture


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
