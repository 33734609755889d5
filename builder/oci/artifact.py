"""Artifacts that refer to an image: manifests with a type, a subject and the empty config (image-spec 1.1, manifest.md)."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor

TITLE = "org.opencontainers.image.title"
"""The annotation of a file's descriptor that tells its name."""

EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_EMPTY = b"{}"


@dataclass(frozen=True)
class Artifact:
    """Files about `subject`: each is (title, bytes). `annotations` are those of the manifest."""

    artifact_type: str
    subject: Descriptor
    files: tuple[tuple[str, bytes], ...]
    annotations: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Encoded:
    """An artifact as it is stored: its manifest's descriptor and bytes, and its blobs."""

    manifest: Descriptor
    data: bytes
    blobs: tuple[tuple[Descriptor, bytes], ...]


def encode(artifact: Artifact) -> Encoded:
    """The manifest of an artifact and the blobs that it names (image-spec 1.1, "Guidelines for Artifact Usage")."""
    config = Descriptor(EMPTY_TYPE, Digest.of(_EMPTY), len(_EMPTY))
    files = [
        (Descriptor(artifact.artifact_type, Digest.of(data), len(data), annotations={TITLE: title}), data)
        for title, data in artifact.files
    ]
    subject = artifact.subject
    data = spec.encode(
        {
            "schemaVersion": 2,
            "mediaType": spec.MANIFEST,
            "artifactType": artifact.artifact_type,
            "config": config.document() | {"data": base64.b64encode(_EMPTY).decode()},
            "layers": [descriptor.document() for descriptor, _ in files],
            "subject": Descriptor(subject.media_type, subject.digest, subject.size).document(),
            "annotations": dict(artifact.annotations),
        }
    )
    manifest = Descriptor(
        spec.MANIFEST, Digest.of(data), len(data), artifact.annotations, artifact_type=artifact.artifact_type
    )
    return Encoded(manifest, data, ((config, _EMPTY), *files))


def stored(artifacts: Iterable[Artifact]) -> tuple[tuple[Descriptor, bytes], ...]:
    """All blobs and manifests of some artifacts, each once, what is referred to first."""
    found: dict[Digest, tuple[Descriptor, bytes]] = {}
    for encoded in map(encode, artifacts):
        for descriptor, data in (*encoded.blobs, (encoded.manifest, encoded.data)):
            found.setdefault(descriptor.digest, (descriptor, data))
    return tuple(found.values())
