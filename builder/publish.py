"""The step from images to where nodes find them: an OCI layout, its tag moved last."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from builder.errors import UsageError
from builder.image import Assembled
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.oci.spec import Descriptor
from builder.progress import Progress
from builder.store import Store

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
DEFAULT_TAG = "latest"


@dataclass(frozen=True)
class Destination:
    """`oci:DIR[:TAG]`: the folder of an OCI layout, and a tag in it."""

    folder: Path
    tag: str | None = None

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Raises `UsageError` for what is no destination."""
        scheme, colon, rest = text.partition(":")
        if scheme != "oci" or not colon:
            raise UsageError(f"{text!r} is no destination of this version", hint="write oci:DIR or oci:DIR:TAG")
        folder, colon, tag = rest.rpartition(":")
        if not colon or "/" in tag:
            folder, tag = rest, ""
        if not folder or (colon and folder != rest and not _TAG.fullmatch(tag)):
            raise UsageError(f"{text!r}: {tag!r} is no tag" if folder else f"{text!r} names no folder")
        return cls(Path(folder), tag or None)

    def __str__(self) -> str:
        return f"oci:{self.folder}" + (f":{self.tag}" if self.tag else "")


@dataclass(frozen=True)
class Publication:
    """What was published: where, the digest that the tag points at, and how many bytes were new there, or there before."""

    destination: Destination
    digest: Digest
    new_blobs: int
    new_bytes: int
    present_blobs: int
    present_bytes: int


def publish(image: Assembled, store: Store, destination: Destination, progress: Progress) -> Publication:
    """Puts all blobs of the images into the layout, then its documents, then moves the tag.

    Blobs are hard links into the store where the file system allows it. Raises `LayoutError`.
    """
    layout = Layout(destination.folder)
    layout.check()
    blobs = list(image.blobs())
    configs = [config for item in image.images if (config := _config(item.config))]
    new = [blob for blob in (*blobs, *configs) if not _is_there(layout, blob)]
    present = [blob for blob in (*blobs, *configs) if blob not in new]
    with progress.task("publish", sum(blob.size for blob in new)) as task:
        for blob in new:
            layout.link(store.path(blob.digest), blob.digest, blob.size)
            task.advance(blob.size)
    for _, data in image.documents.blobs:
        layout.put(data)
    tag = destination.tag or DEFAULT_TAG
    layout.tag(tag, image.documents.top)
    return Publication(
        Destination(destination.folder, tag),
        image.documents.top.digest,
        len(new),
        sum(blob.size for blob in new),
        len(present),
        sum(blob.size for blob in present),
    )


def _config(data: bytes) -> Descriptor:
    return Descriptor("", Digest.of(data), len(data))


def _is_there(layout: Layout, blob: Descriptor) -> bool:
    path = layout.path(blob.digest)
    return path.is_file() and path.stat().st_size == blob.size
