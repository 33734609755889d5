"""The words and values of the OCI image specification 1.1 that Layerwright writes."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from builder.oci.digest import Digest

INDEX = "application/vnd.oci.image.index.v1+json"
MANIFEST = "application/vnd.oci.image.manifest.v1+json"
CONFIG = "application/vnd.oci.image.config.v1+json"
LAYER_GZIP = "application/vnd.oci.image.layer.v1.tar+gzip"


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
