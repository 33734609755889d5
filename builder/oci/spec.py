"""The words and values of the OCI image specification 1.1 that Layerwright writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from builder.oci.digest import Digest

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER = "application/vnd.oci.image.layer.v1.tar"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"
LAYER_ZSTD = "application/vnd.oci.image.layer.v1.tar+zstd"

BASE_DIGEST = "org.opencontainers.image.base.digest"
"""The annotation of a manifest that tells the manifest of the image below it."""

PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
"""Where programs are found in an image that says nothing of it."""


def encode(document: Mapping[str, object]) -> bytes:
    """The canonical bytes of a document: equal documents have equal digests."""
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()


@dataclass(frozen=True, order=True, slots=True)
class Platform:
    """`os/architecture[/variant]` as in an OCI index; text form as docker and skopeo write it."""

    os: str
    architecture: str
    variant: str | None = None

    @classmethod
    def parse(cls, text: str) -> Platform:
        parts = text.split("/")
        if len(parts) not in (2, 3) or not all(parts):
            raise ValueError(f"not a platform: {text!r} (write it as linux/amd64)")
        return cls(*parts)

    def __str__(self) -> str:
        return "/".join(filter(None, (self.os, self.architecture, self.variant)))

    def document(self) -> dict[str, object]:
        document: dict[str, object] = {"architecture": self.architecture, "os": self.os}
        return document | ({"variant": self.variant} if self.variant else {})


@dataclass(frozen=True)
class Descriptor:
    """What a manifest says of a blob (image-spec, descriptor.md)."""

    media_type: str
    digest: Digest
    size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    platform: Platform | None = None
    artifact_type: str | None = None

    @classmethod
    def parse(cls, document: Any) -> Descriptor:
        """The descriptor that a JSON document holds. Raises `ValueError` that says what is wrong with it.

        Keys that say nothing of these fields (`urls`, `data`, a platform's features) are not kept.
        """
        match document:
            case {"mediaType": str(media_type), "digest": str(digest), "size": int(size)} if media_type:
                pass
            case _:
                raise ValueError("a descriptor needs mediaType, digest and size")
        if isinstance(size, bool) or size < 0:
            raise ValueError(f"not the size of a blob: {size!r}")
        artifact_type = document.get("artifactType")
        if artifact_type is not None and not isinstance(artifact_type, str):
            raise ValueError("artifactType is no text")
        return cls(
            media_type,
            Digest.parse(digest),
            size,
            _annotations(document.get("annotations")),
            _platform(document.get("platform")),
            artifact_type or None,
        )

    def document(self) -> dict[str, object]:
        document: dict[str, object] = {
            "mediaType": self.media_type,
            "digest": str(self.digest),
            "size": self.size,
        }
        if self.annotations:
            document["annotations"] = dict(sorted(self.annotations.items()))
        if self.platform:
            document["platform"] = self.platform.document()
        if self.artifact_type:
            document["artifactType"] = self.artifact_type
        return document


def _annotations(document: object) -> dict[str, str]:
    match document:
        case None:
            return {}
        case dict() if all(isinstance(key, str) and isinstance(value, str) for key, value in document.items()):
            return dict(document)
    raise ValueError("annotations are not a mapping of text to text")


def _platform(document: Any) -> Platform | None:
    match document:
        case None:
            return None
        case {"os": str(os), "architecture": str(architecture)}:
            variant = document.get("variant")
            if variant is None or isinstance(variant, str):
                return Platform(os, architecture, variant or None)
    raise ValueError("a platform needs os and architecture")
