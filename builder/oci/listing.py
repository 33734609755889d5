"""What `index.json` of a layout lists, in a folder or in an archive: tags, digests, and referrers by their subject."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from builder.errors import BuilderError
from builder.oci import spec
from builder.oci.companions import OF_MODEL, is_companion
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor

REF_NAME = "org.opencontainers.image.ref.name"


class LayoutError(BuilderError):
    """A folder or archive is not the OCI layout that it should be, or cannot be written."""


@dataclass(frozen=True)
class Listing:
    """The entries of the `index.json` of the layout `where`; `read` gives a manifest's bytes, None if it is not there.

    `scheme` is how people name such a layout.
    """

    where: str
    scheme: str
    entries: Sequence[Descriptor]
    read: Callable[[Digest], bytes | None]

    def resolve(self, reference: str | None) -> Descriptor:
        """What a tag or the text of a digest stands for; None: the only one, tagged ones first, referrers never, models only
        where there is nothing else.

        The annotation `REF_NAME` of the outcome tells its tag. Raises `LayoutError`.
        """
        if reference is not None and ":" in reference:
            return self._by_digest(reference)
        if not self.entries:
            raise LayoutError(f"{self.where}: no image is in it, or it is no OCI layout", hint="publish to it first")
        tagged = [entry for entry in self.entries if REF_NAME in entry.annotations]
        if reference is None:
            images = [entry for entry in tagged if not _belongs_to_another(entry)]
            others = (entry for entry in self.entries if subject(self.read(entry.digest) or b"") is None)
            found = images or [*{entry.digest: entry for entry in others}.values()]
        else:
            found = [entry for entry in tagged if entry.annotations[REF_NAME] == reference]
        if len(found) != 1:
            names = ", ".join(sorted(entry.annotations[REF_NAME] for entry in tagged)) or "images without a tag"
            raise LayoutError(f"{self.where}: it holds {names}", hint=f"name one of them as {self.scheme}:TAG")
        return found[0]

    def find(self, tag: str) -> Descriptor | None:
        """What a tag stands for; None if there is no such tag, or more than one."""
        found = [entry for entry in self.entries if entry.annotations.get(REF_NAME) == tag]
        return found[0] if len(found) == 1 else None

    @property
    def tags(self) -> tuple[str, ...]:
        """The names of all tags, each once, sorted."""
        return tuple(sorted({entry.annotations[REF_NAME] for entry in self.entries if REF_NAME in entry.annotations}))

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """The listed manifests whose subject is `digest`; one whose bytes are not there is left out."""
        found = {}
        for entry in self.entries:
            data = self.read(entry.digest)
            if data is not None and subject(data) == digest:
                found[entry.digest] = described(entry, data)
        return tuple(found.values())

    def _by_digest(self, reference: str) -> Descriptor:
        try:
            digest = Digest.parse(reference)
        except ValueError as error:
            raise LayoutError(f"{self.where}: {error}", hint="name a tag, or a digest of sha256") from error
        for entry in self.entries:
            if entry.digest == digest:
                return entry
        data = self.read(digest)
        if data is None:
            raise LayoutError(f"{self.where}: {digest} is not in it", hint="name another digest, or a tag")
        with suppress(ValueError, KeyError, TypeError, RecursionError):
            return Descriptor(_media_type(json.loads(data)), digest, len(data))
        raise LayoutError(f"{self.where}: {digest} is no manifest", hint="name a tag, or the digest of a manifest")


def _belongs_to_another(entry: Descriptor) -> bool:
    """Whether what is tagged was published for the sake of an image: signatures, models, and the images of models."""
    return is_companion(entry.annotations[REF_NAME]) or bool(entry.artifact_type) or OF_MODEL in entry.annotations


def _media_type(document: Any) -> str:
    """What a manifest says that it is; some do not say it. Raises `KeyError` where it is none."""
    if "mediaType" in document:
        return str(document["mediaType"])
    return (
        spec.INDEX
        if isinstance(document["manifests" if "manifests" in document else "config"], list)
        else spec.MANIFEST
    )


def parse_index(data: bytes, name: str) -> list[dict[str, Any]]:
    """The entries of an `index.json` as documents. Raises `LayoutError` that names the file."""
    try:
        entries = json.loads(data)["manifests"]
        if not isinstance(entries, list):
            raise TypeError("manifests is not a list of descriptors")
        for entry in entries:
            Descriptor.parse(entry)
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise LayoutError(f"{name}: not an OCI index ({error})", hint="choose an empty folder, or mend it") from error
    return entries


def subject(data: bytes) -> Digest | None:
    """The digest of what a manifest refers to; None for what has no subject or is no manifest."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        return Digest.parse(json.loads(data)["subject"]["digest"])
    return None


def children(data: bytes) -> frozenset[Digest]:
    """The digests of the manifests that an index names; none for what is no index."""
    with suppress(ValueError, KeyError, TypeError, RecursionError):
        return frozenset(Digest.parse(entry["digest"]) for entry in json.loads(data)["manifests"])
    return frozenset()


def described(listed: Descriptor, data: bytes) -> Descriptor:
    """A referrer as the referrers API describes it: with the artifact type and the annotations of its manifest."""
    document = json.loads(data)
    config = document.get("config")
    kind = document.get("artifactType") or (config.get("mediaType") if isinstance(config, dict) else None)
    annotations = document.get("annotations")
    return replace(
        listed,
        artifact_type=kind if isinstance(kind, str) else None,
        annotations=annotations if isinstance(annotations, dict) else {},
    )
