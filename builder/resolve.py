"""The step from a profile to its lock: every input by digest, kept where nothing asks for another one."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from packaging.utils import canonicalize_name

from builder.errors import BuilderError
from builder.lock import (
    FORMAT,
    Lock,
    LockedDebian,
    LockedFile,
    LockedInclude,
    LockedLocal,
    LockedPlatform,
    LockedPython,
    LockedTemplate,
    LockedWheel,
    SociSettings,
)
from builder.oci import spec
from builder.oci.config import Execution
from builder.oci.digest import Digest
from builder.oci.spec import Platform
from builder.profile import LoadedProfile, Profile, Python
from builder.progress import Progress
from builder.sources import local, requirements
from builder.sources.requirements import Requirements
from builder.sources.simple import Catalogue

if TYPE_CHECKING:
    from builder.sources.debian import Archive
    from builder.sources.target import Target
    from builder.store import Store

_ALWAYS = ("base-files",)
_MAX_TEMPLATE = 16 << 20
_NO_UPGRADE: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Places:
    """Where inputs are looked up, and the architecture of this machine in the words of an OCI platform; where a decision
    depends on what is in an input, `ensure` brings it into `store`."""

    archives: Mapping[str, Archive]
    catalogue: Catalogue
    architecture: str
    store: Store
    ensure: Callable[[Iterable[LockedFile]], None]


@dataclass(frozen=True)
class Local:
    """What a lock takes from the profile's own folder, as it is now; `rendered` are the templates by place."""

    includes: tuple[LockedInclude, ...]
    files: tuple[LockedLocal, ...]
    templates: tuple[LockedTemplate, ...]
    rendered: Mapping[str, bytes]


def read_local(loaded: LoadedProfile) -> Local:
    """Reads, hashes and renders all local inputs of a profile."""
    copies = [
        local.Copy(item.source, item.to, str(item.mode) if item.mode is not None else None, item.exclude)
        for item in loaded.profile.files
    ]
    files = local.scan(loaded.root, copies)
    templates, rendered = [], {}
    for item in loaded.profile.templates:
        from builder.render import render  # it takes long to import, and few profiles have templates

        source = _template(loaded.root, item.source)
        text = render(source, loaded.profile.template_values, item.source)
        rendered[item.to] = text
        digest, size = Digest.of(text).hex, len(text)
        templates.append(
            LockedTemplate(item.to, item.source, str(item.mode), Digest.of(source.encode()).hex, digest, size)
        )
    includes = tuple(LockedInclude(include.source, include.sha256) for include in loaded.includes)
    return Local(includes, files, tuple(sorted(templates)), rendered)


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
    platforms = tuple(
        _platform(loaded, platform, places, _of(previous, platform), upgrade, progress)
        for platform in sorted(profile.platforms)
    )
    if isinstance(upgrade, frozenset):
        _check_known(upgrade, platforms)
    lock = Lock(
        name=profile.name,
        profile=str(profile.digest),
        created=previous.created if previous else created,
        platforms=platforms,
        includes=found.includes,
        files=found.files,
        templates=found.templates,
        image=_execution(profile),
        soci=_soci(profile),
    )
    return lock if lock == previous else replace(lock, created=created)


def staleness(loaded: LoadedProfile, found: Local, lock: Lock) -> list[str]:
    """Why a lock does not belong to a profile as it is now; empty if it does. Nothing is looked up."""
    profile = loaded.profile
    reasons = []
    if lock.format != FORMAT:
        reasons.append(f"it was made for format {lock.format} of images, this version builds format {FORMAT}")
    if lock.name != profile.name:
        reasons.append(f"it is the lock of {lock.name}, not of {profile.name}")
    elif lock.profile != str(profile.digest):
        reasons.append("the profile has changed")
    reasons += _differences("file", lock.files, found.files)
    reasons += _differences("template", lock.templates, found.templates)
    if lock.includes != found.includes and not reasons:
        reasons.append("a profile that it extends has changed")
    for locked in lock.platforms:
        asked = profile.python and _python_request(loaded, profile.python, locked.platform)
        if profile.python and locked.python and asked != locked.python.request and not reasons:
            reasons.append(f"the requirements of {locked.platform} have changed")
    wanted = (tuple(sorted(profile.platforms)), _execution(profile), _soci(profile))
    if not reasons and (tuple(item.platform for item in lock.platforms), lock.image, lock.soci) != wanted:
        reasons.append("its settings are not those of the profile")
    return reasons


def _differences(
    noun: str,
    then: Sequence[LockedLocal] | Sequence[LockedTemplate],
    now: Sequence[LockedLocal] | Sequence[LockedTemplate],
) -> list[str]:
    before, after = {item.to: item for item in then}, {item.to: item for item in now}
    changed = [f"{noun} {after[to].source} has changed" for to in after if to in before and after[to] != before[to]]
    added = [f"{noun} {after[to].source} is new" for to in after if to not in before]
    return sorted(changed + added + [f"{noun} {before[to].source} is gone" for to in before if to not in after])


def _platform(
    loaded: LoadedProfile,
    platform: Platform,
    places: Places,
    previous: LockedPlatform | None,
    upgrade: bool | frozenset[str],
    progress: Progress,
) -> LockedPlatform:
    profile = loaded.profile
    if profile.base is None:
        return LockedPlatform(platform)
    found, closure = _debian(profile, platform, places, previous, upgrade, progress)
    python = None
    if profile.python:
        python = _python(loaded, profile.python, platform, found, closure, places, previous, upgrade, progress)
    return LockedPlatform(platform, found, python)


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
    suite, architecture = profile.base.debian, platform.architecture
    wanted = {*_ALWAYS, *profile.base.packages}
    minimal = f"python{profile.python.version}-minimal" if profile.python else None
    if profile.python:
        wanted |= {f"python{profile.python.version}"}
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


def _python(
    loaded: LoadedProfile,
    python: Python,
    platform: Platform,
    base: LockedDebian,
    closure: tuple[str, ...],
    places: Places,
    previous: LockedPlatform | None,
    upgrade: bool | frozenset[str],
    progress: Progress,
) -> LockedPython:
    before = previous.python if previous else None
    if isinstance(upgrade, frozenset):
        upgrade = frozenset(map(canonicalize_name, upgrade))
    request = _python_request(loaded, python, platform)
    target = _target(python, platform, base)
    names = {wheel.name for wheel in before.wheels} if before else set()
    if before and before.request == request and upgrade is not True and not (upgrade or _NO_UPGRADE) & names:
        wheels = before.wheels
    else:
        with progress.task(f"lock Python packages for {platform}", None):
            from builder.sources import pypi

            wheels = pypi.resolve(
                _requirements(loaded, python),
                target,
                catalogue=places.catalogue,
                previous=[replace(wheel, drop=()) for wheel in before.wheels] if before else (),
                upgrade=upgrade,
            )
    wheels = _slim(loaded.profile, wheels, places)
    return LockedPython(
        version=python.version,
        executable=f"/usr/bin/python{python.version}",
        bytecode=_bytecode(python, platform, places.architecture, before),
        interpreter=closure,
        request=request,
        wheels=wheels,
    )


def _slim(profile: Profile, wheels: Sequence[LockedWheel], places: Places) -> tuple[LockedWheel, ...]:
    """The wheels with what the profile leaves out of each."""
    whole = tuple(replace(wheel, drop=()) for wheel in wheels)
    if not profile.slim or not profile.python:
        return whole
    from builder.sources import slim

    rules = [slim.Rule(rule.wheels, rule.drop) for rule in profile.slim]
    return slim.decide(whole, rules, profile.python.version, places.store, places.ensure)


def _bytecode(python: Python, platform: Platform, architecture: str, before: LockedPython | None) -> bool:
    """`auto` is decided once, when a platform is first locked: a relock on another machine changes no image."""
    if python.bytecode != "auto":
        return python.bytecode
    return before.bytecode if before else platform.architecture == architecture


def _python_request(loaded: LoadedProfile, python: Python, platform: Platform) -> str:
    asked = str(requirements.request(_requirements(loaded, python)))
    document = {"requirements": asked, "python": python.version, "platform": str(platform)}
    return str(Digest.of(spec.encode(document)))


def _requirements(loaded: LoadedProfile, python: Python) -> Requirements:
    if isinstance(python.requirements, str):
        return Requirements(file=loaded.root / python.requirements)
    return Requirements(lines=python.requirements)


def _target(python: Python, platform: Platform, base: LockedDebian) -> Target:
    """The target as the locked packages make it: the interpreter's own version, and its C library's."""
    from builder.sources.target import Target

    versions = {deb.name: deb.version for deb in base.packages}
    full = _upstream(versions[f"python{python.version}"])
    libc = re.match(r"(\d+)\.(\d+)", _upstream(versions.get("libc6", "")))
    if not libc:
        raise BuilderError(
            f"Debian {base.suite}: Python there does not come with the C library that wheels need (libc6)"
        )
    return Target(python.version, full, platform, (int(libc[1]), int(libc[2])))


def _upstream(version: str) -> str:
    """The upstream part of a Debian version, as a release of Python: without epoch, revision and `~rc1` and the like."""
    return re.split(r"[-+~]", version.rpartition(":")[2])[0]


def _template(root: Path, source: str) -> str:
    path = root / source
    try:
        if path.stat().st_size > _MAX_TEMPLATE:
            raise BuilderError(f"templates: {source} is larger than 16 MiB", hint="put it under `files`")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise BuilderError(
            f"templates: {source}: {error.strerror or error}", hint="correct `from` in the profile"
        ) from error
    except UnicodeDecodeError as error:
        raise BuilderError(f"templates: {source} is not UTF-8", hint="put it under `files`") from error


def _check_known(names: frozenset[str], platforms: Sequence[LockedPlatform]) -> None:
    debs = {deb.name for item in platforms if item.debian for deb in item.debian.packages}
    wheels = {wheel.name for item in platforms if item.python for wheel in item.python.wheels}
    if unknown := sorted(name for name in names if name not in debs and canonicalize_name(name) not in wheels):
        raise BuilderError(
            f"nothing named {', '.join(unknown)} is in the lock", hint="`build plan` lists what is in it"
        )


def _of(lock: Lock | None, platform: Platform) -> LockedPlatform | None:
    return next((item for item in lock.platforms if item.platform == platform), None) if lock else None


def _execution(profile: Profile) -> Execution:
    image = profile.image
    return Execution(
        entrypoint=image.entrypoint,
        cmd=image.cmd,
        env=tuple(sorted(image.env)),
        user=image.user,
        workdir=image.workdir,
        ports=tuple(str(port) for port in image.ports),
        labels=tuple(sorted(image.labels)),
        stop_signal=image.stop_signal,
    )


def _soci(profile: Profile) -> SociSettings:
    soci = profile.publish.soci
    return SociSettings(soci.enabled, int(soci.span_size), int(soci.min_layer_size))
