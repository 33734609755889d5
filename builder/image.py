"""Images as values: what assembling makes and publishing takes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from builder.oci.digest import Digest
from builder.oci.spec import Descriptor, Platform
from builder.soci.index import Converted


@dataclass(frozen=True)
class BuiltLayer:
    """A layer in the store. `spans` counts the spans of its ztoc, 0 without one; `listing` is the digest of the list of its
    files; `packed` says that it was made just now. `whole` says why it can have no ztoc, where that is so."""

    name: str
    blob: Descriptor
    diff_id: Digest
    tar_size: int
    ztoc: Descriptor | None
    spans: int
    listing: Digest
    packed: bool
    whole: str = ""


@dataclass(frozen=True)
class Image:
    """The image of one platform: its layers, bottom first, and its configuration's bytes."""

    platform: Platform
    layers: tuple[BuiltLayer, ...]
    config: bytes


@dataclass(frozen=True)
class Assembled:
    """All images of a plan and the documents that bind them; `documents.top` is what a tag points at."""

    name: str
    images: tuple[Image, ...]
    documents: Converted

    def blobs(self) -> Iterator[Descriptor]:
        """Every blob that lies in the store, layers and ztocs, each once."""
        seen: set[Digest] = set()
        for layer in (layer for image in self.images for layer in image.layers):
            for descriptor in filter(None, (layer.blob, layer.ztoc)):
                if descriptor.digest not in seen:
                    seen.add(descriptor.digest)
                    yield descriptor
