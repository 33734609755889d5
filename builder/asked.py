"""What a profile asks for, as digests that locks remember: as long as they stay, nothing is looked up again."""

from __future__ import annotations

from collections.abc import Sequence

from builder import documents
from builder.baseimage import LockedImage
from builder.errors import BuilderError
from builder.lock import LockedPlatform
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Platform
from builder.profile import PYTHON_OF, LoadedProfile, Model, Profile, Python
from builder.sources import requirements
from builder.sources.requirements import Requirements


def request_in(previous: LockedPlatform | None) -> str | None:
    """The digest of what was asked for when a platform was locked."""
    if previous is None:
        return None
    return previous.python.request if previous.python else previous.cuda.request if previous.cuda else None


def python_version(profile: Profile, image: LockedImage | None) -> str:
    """The version `3.N` that wheels are chosen for; without Python, that of the Debian, so that images share layers."""
    if image:
        return ".".join(image.python.split(".")[:2]) or next(iter(PYTHON_OF.values()))
    if profile.python:
        return profile.python.version
    assert profile.base
    assert profile.base.debian
    return PYTHON_OF[profile.base.debian]


def request_of(loaded: LoadedProfile, platform: Platform, image: LockedImage | None) -> str:
    """The digest of all that decides which wheels an image has."""
    profile = loaded.profile
    asked = requirements.request(requirements_of(loaded, profile.python) if profile.python else Requirements())
    document: dict[str, object] = {"requirements": str(asked), "python": python_version(profile, image)}
    if image:
        document |= {"interpreter": image.python, "libc": image.libc}
    if profile.cuda:
        document["cuda"] = documents.dump(profile.cuda)
    return str(Digest.of(spec.encode(document | {"platform": str(platform)})))


def requirements_of(loaded: LoadedProfile, python: Python) -> Requirements:
    """The Python requirements of a profile, lines or a file."""
    if isinstance(python.requirements, str):
        return Requirements(file=loaded.root / python.requirements)
    return Requirements(lines=python.requirements)


def check_known(names: frozenset[str], platforms: Sequence[LockedPlatform], models: Sequence[Model]) -> None:
    """Raises `BuilderError` if nothing in a lock has one of these names."""
    from packaging.utils import canonicalize_name  # it takes long to import, and names are given rarely

    debs = {deb.name for item in platforms if item.debian for deb in item.debian.packages}
    wheels = {wheel.name for item in platforms for wheel in item.wheels}
    images = {item.image.name for item in platforms if item.image}
    if any(item.nix for item in platforms):
        from builder.sources import nix

        images |= {name for item in platforms for name in nix.names(item.nix)}
    others = debs | images | {model.name for model in models}
    if unknown := sorted(name for name in names if name not in others and canonicalize_name(name) not in wheels):
        raise BuilderError(
            f"nothing named {', '.join(unknown)} is in the lock", hint="`build plan` lists what is in it"
        )
