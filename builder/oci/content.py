"""Where images are read from and written to: the two interfaces that layouts, archives and registries share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from enum import StrEnum
from pathlib import Path
from typing import BinaryIO, Protocol

from builder.oci.digest import Digest
from builder.oci.spec import Descriptor

MAX_MANIFEST = 4 << 20
"""The largest manifest or index, in bytes, that is read or written."""


class Outcome(StrEnum):
    """What became of a blob that should be in a target."""

    MOVED = "moved"  # its bytes were sent
    MOUNTED = "mounted"  # the target took it from another place of its own
    PRESENT = "present"  # it was there


class Source(Protocol):
    """Something that images can be read from. Shared by threads."""

    def resolve(self, reference: str | None) -> Descriptor:
        """What a tag, the text of a digest, or (None) the only or default one stands for."""

    def find(self, tag: str) -> Descriptor | None:
        """What a tag stands for; None if there is no such tag."""

    def manifest(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest or index as they are stored, checked against digest, size and `MAX_MANIFEST`."""

    def blob(self, descriptor: Descriptor) -> AbstractContextManager[BinaryIO]:
        """The bytes of a blob as a stream; the read that meets its end raises if digest or size are others."""

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """The manifests whose subject is `digest`, with their artifact types and annotations."""


class Place(Source, Protocol):
    """A source that can be looked through."""

    def tags(self) -> tuple[str, ...]:
        """The names of all tags."""


class Target(Protocol):
    """Something that images can be written to. Shared by threads."""

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob is there already."""

    def put_blob(
        self,
        descriptor: Descriptor,
        open: Callable[[], AbstractContextManager[BinaryIO]],
        path: Path | None = None,
    ) -> Outcome:
        """The blob is there afterwards. `open` gives its bytes from the start, as often as it is called.

        `path` is the blob as a finished local file, where it is one.
        """

    def put_manifest(self, descriptor: Descriptor, data: bytes, tag: str | None = None) -> None:
        """The manifest or index is there afterwards, under its digest and, if given, under `tag`.

        All that it names must be there; a tag is set in the very last step of a publication.
        """
