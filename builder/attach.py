"""What is attached to an image: OCI artifacts whose subject it is, ours and those of others."""

from __future__ import annotations

import io
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from builder import lock as locks
from builder.errors import BuilderError
from builder.lock import Lock
from builder.oci.artifact import TITLE, Artifact, encode
from builder.oci.content import Source, Target
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.parallel import Stop, for_each
from builder.sbom import cyclonedx, provenance, spdx

LOCK = "application/vnd.layerwright.lock.v1+json"
PROFILE = "application/vnd.layerwright.profile.v1+yaml"
KINDS: Mapping[str, str] = {
    LOCK: "lock",
    PROFILE: "profile",
    spdx.MEDIA_TYPE: "SBOM (SPDX)",
    cyclonedx.MEDIA_TYPE: "SBOM (CycloneDX)",
    provenance.MEDIA_TYPE: "provenance",
}
"""What artifact types are called for people; types of others have no name here."""

MAX_FILE = 64 << 20
"""The largest attached file, in bytes, that is read."""

_FOREIGN = re.compile(r"[A-Za-z0-9][A-Za-z0-9!#$&^_.+/;= -]{0,254}")
_PIECE = 1 << 20
_MOST = 1000
_THREADS = 4


class AttachmentError(BuilderError):
    """What is attached to an image is not what the specification says."""

    hint = "publish the image again, or remove the attached manifest"


class Place(Source, Target, Protocol):
    """Somewhere that artifacts are attached: it can say what is attached already."""


@dataclass(frozen=True)
class Attached:
    """A manifest that is attached to `subject`. `kind` is a name for people, `files` are descriptors with their titles as
    annotations; `platform` is that of the subject, where an index names it."""

    artifact_type: str
    manifest: Descriptor
    subject: Digest
    files: tuple[Descriptor, ...]
    platform: str | None = None

    @property
    def kind(self) -> str:
        if self.artifact_type in KINDS:
            return KINDS[self.artifact_type]
        return self.artifact_type if _FOREIGN.fullmatch(self.artifact_type) else "of an unknown type"

    @property
    def names(self) -> tuple[str, ...]:
        """What the files are called, fit for a terminal; a file without a name has its digest."""
        titles = (file.annotations.get(TITLE) or file.digest.short for file in self.files)
        return tuple("".join(character if character.isprintable() else "?" for character in title) for title in titles)


def attach(place: Place, artifacts: Sequence[Artifact]) -> tuple[Descriptor, ...]:
    """Every artifact is in `place` afterwards, listed under its subject; returns their manifests' descriptors, in order.

    The subjects need not be there yet: who attaches first and tags last never shows an image without its papers.
    What is attached already is not sent again. Raises what the place raises.
    """
    there = {
        descriptor.digest
        for subject in dict.fromkeys(artifact.subject.digest for artifact in artifacts)
        for descriptor in place.referrers(subject)
    }
    encoded = [encode(artifact) for artifact in artifacts]
    new = [item for item in encoded if item.manifest.digest not in there]
    blobs = {blob.digest: (blob, data) for item in new for blob, data in item.blobs}
    for error in for_each(lambda item: _put(place, *item), blobs.values(), _THREADS, Stop()):
        raise error
    for item in new:  # one after the other: a registry without referrers has one list of them, that each write changes
        place.put_manifest(item.manifest, item.data)
    return tuple(item.manifest for item in encoded)


def list(source: Source, digest: Digest) -> tuple[Attached, ...]:
    """What is attached to an image, whoever attached it: to what a tag points at, and to its platforms' manifests.

    `digest` is that of an index or a manifest. In the order of subjects, types and digests. Raises `AttachmentError` for
    manifests that are not what they should be, and what the source raises.
    """
    subjects = _subjects(source, digest)
    return tuple(item for subject, platform in subjects.items() for item in _attached_to(source, subject, platform))


def read(source: Source, file: Descriptor) -> bytes:
    """The bytes of an attached file; raises `AttachmentError` if it is larger than `MAX_FILE`."""
    if file.size > MAX_FILE:
        raise AttachmentError(f"{file.digest}: {file.size} bytes are too many for an attached file")
    with source.blob(file) as stream:
        pieces = []
        while piece := stream.read(_PIECE):
            pieces.append(piece)
    return b"".join(pieces)


def locks_of(source: Source, digest: Digest) -> tuple[Lock, ...]:
    """The locks that are attached to the image `digest`, an index as a rule: one, or several that lead to the same image.

    Raises what `list` and `read` raise, and what `lock.parse` raises for a file that is no lock of ours.
    """
    return tuple(
        locks.parse(_text(read(source, file), file), f"the attached lock {file.digest.short}")
        for attached in _attached_to(source, digest, only=LOCK)
        for file in attached.files
    )


def _put(target: Target, blob: Descriptor, data: bytes) -> None:
    if not target.has(blob):
        target.put_blob(blob, lambda: io.BytesIO(data))


def _subjects(source: Source, digest: Digest) -> dict[Digest, str | None]:
    """What something can be attached to, with the platform where an index names one; SOCI indexes are no images."""
    document = _document(source, source.resolve(str(digest)))
    subjects: dict[Digest, str | None] = {digest: None}
    try:
        for entry in document.get("manifests", ()):
            found = Descriptor.parse(entry)
            if not found.artifact_type:
                subjects.setdefault(found.digest, str(found.platform) if found.platform else None)
    except (ValueError, TypeError) as error:
        raise AttachmentError(f"{digest}: it is no index: {error}", hint="publish the image again") from error
    return subjects


def _attached_to(
    source: Source, subject: Digest, platform: str | None = None, only: str | None = None
) -> Iterator[Attached]:
    """What refers to `subject`, by type and digest; with `only`, what other types look like does not matter."""
    listed = source.referrers(subject)
    referrers = {item.digest: item for item in listed if only is None or item.artifact_type in (None, only)}
    if len(referrers) > _MOST:
        raise AttachmentError(f"{subject}: more than {_MOST} manifests are attached to it")
    attached = [_attached(source, item, subject, platform) for item in referrers.values()]
    wanted = (item for item in attached if only in (None, item.artifact_type))
    yield from sorted(wanted, key=lambda item: (item.artifact_type, item.manifest.digest))


def _attached(source: Source, descriptor: Descriptor, subject: Digest, platform: str | None) -> Attached:
    document = _document(source, descriptor)
    try:
        if document["subject"]["digest"] != str(subject):
            raise ValueError(f"its subject is {document['subject']['digest']!r}, not {subject}")
        config = document.get("config") or {}
        artifact_type = document.get("artifactType") or config.get("mediaType") or ""
        if not isinstance(artifact_type, str):
            raise ValueError("artifactType is no text")
    except (AttributeError, LookupError, TypeError, ValueError) as error:
        raise AttachmentError(f"{descriptor.digest}: it is no manifest of an artifact: {error}") from error
    try:
        files = tuple(Descriptor.parse(entry) for entry in document.get("layers") or document.get("blobs") or ())
    except (TypeError, ValueError) as error:
        if artifact_type in KINDS:
            raise AttachmentError(f"{descriptor.digest}: its files cannot be read: {error}") from error
        files = ()  # others may use digests that are not ours to read
    return Attached(artifact_type, descriptor, subject, files, platform)


def _document(source: Source, descriptor: Descriptor) -> dict[str, Any]:
    try:
        document = json.loads(source.manifest(descriptor))
    except (ValueError, RecursionError) as error:
        raise AttachmentError(f"{descriptor.digest}: it is no JSON: {error}") from error
    if not isinstance(document, dict):
        raise AttachmentError(f"{descriptor.digest}: it is no manifest")
    return document


def _text(data: bytes, file: Descriptor) -> str:
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise AttachmentError(f"{file.digest}: it is not UTF-8") from error
