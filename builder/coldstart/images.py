"""An image to be started, wherever it is: its platform's configuration, and its blobs in any part."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from builder.errors import HostileInputError
from builder.oci.content import MAX_MANIFEST, Source
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.oci.lazy import TOC_DIGEST
from builder.oci.spec import Descriptor
from builder.registry import Repository

_PIECE = 1 << 20
_MOST_MANIFESTS = 1000


@dataclass(frozen=True)
class Startable:
    """`top` is what is started, `config` the configuration of its image for the wanted platform; `sizes` has every blob."""

    top: Descriptor
    config: Mapping[str, Any]
    sizes: Mapping[Digest, int]
    layers: tuple[Descriptor, ...]

    @property
    def tables(self) -> frozenset[Digest]:
        """The layers of which a manifest tells the table, as of eStargz ones: what stargz-snapshotter mounts."""
        return frozenset(layer.digest for layer in self.layers if TOC_DIGEST in layer.annotations)

    def arguments(self, cmd: tuple[str, ...], entrypoint: str = "") -> tuple[str, ...]:
        """The program with its arguments, as docker composes them: `cmd` replaces the image's Cmd, `entrypoint` both."""
        settings = self.config.get("config") or {}
        if entrypoint:
            return entrypoint, *cmd
        return (*map(str, settings.get("Entrypoint") or ()), *(cmd or map(str, settings.get("Cmd") or ())))


def look(source: Source, reference: str | None, platform: str) -> Startable:
    """What is started for `platform`. Raises `HostileInputError` for documents that are none, or if the platform is not there."""
    top = source.resolve(reference)
    try:
        return _look(source, top, platform)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HostileInputError(
            f"{top.digest}: it is no image that can be started ({error})",
            hint="name another image, or publish it again",
        ) from error


def sizes_of(source: Source, top: Descriptor) -> Mapping[Digest, int]:
    """Every blob of what `top` is the manifest of, a model for instance. Raises `HostileInputError` for what is none."""
    try:
        return {
            blob.digest: blob.size
            for document in _documents(source, top)
            for blob in map(Descriptor.parse, (document["config"], *document["layers"]))
        }
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise HostileInputError(f"{top.digest}: it is no artifact ({error})", hint="name another one") from error


def _documents(source: Source, top: Descriptor) -> Iterator[dict[str, Any]]:
    """The manifests that belong to it, without the indexes that name them."""
    waiting, seen = [top], 0
    while waiting:
        document: dict[str, Any] = json.loads(source.manifest(waiting.pop()))
        waiting += [Descriptor.parse(entry) for entry in document.get("manifests") or ()]
        seen += 1
        if seen + len(waiting) > _MOST_MANIFESTS:
            raise ValueError("too many manifests belong to it")
        if "manifests" not in document:
            yield document


def _look(source: Source, top: Descriptor, platform: str) -> Startable:
    sizes: dict[Digest, int] = {}
    found: tuple[Mapping[str, Any], tuple[Descriptor, ...]] | None = None
    for document in _documents(source, top):
        layers = tuple(Descriptor.parse(entry) for entry in document.get("layers") or ())
        sizes |= {layer.digest: layer.size for layer in layers}
        if "config" in document:
            described = Descriptor.parse(document["config"])
            sizes[described.digest] = described.size
            config = _config(source, described) if not document.get("artifactType") else {}
            if f"{config.get('os')}/{config.get('architecture')}" == platform:
                found = config, layers
    if found is None:
        raise ValueError(f"it has no image for {platform}")
    return Startable(top, found[0], sizes, found[1])


def _config(source: Source, descriptor: Descriptor) -> dict[str, Any]:
    if descriptor.size > MAX_MANIFEST:
        raise ValueError(f"its configuration has {descriptor.size} bytes")
    with source.blob(descriptor) as stream:
        document = json.loads(stream.read())
    return document if isinstance(document, dict) else {}


@dataclass(frozen=True)
class Blobs:
    """The blobs of an image, by ranges where its place can give them."""

    source: Source
    sizes: Mapping[Digest, int]

    def size(self, digest: Digest) -> int | None:
        """How many bytes a blob has; None if it is none of the image's."""
        return self.sizes.get(digest)

    def ranges(self, digest: Digest, start: int, end: int) -> Iterator[bytes | memoryview]:
        """The bytes from `start` to before `end`."""
        descriptor = Descriptor("", digest, self.sizes[digest])
        if isinstance(self.source, Repository | Layout):
            yield from self.source.ranges(descriptor, start, end)
        else:
            yield from _of_stream(self.source, descriptor, start, end)


def _of_stream(source: Source, descriptor: Descriptor, start: int, end: int) -> Iterator[bytes]:
    """An archive's blobs are read from their beginning."""
    with source.blob(descriptor) as stream:
        at = 0
        while at < end and (data := stream.read(_PIECE)):
            piece = data[max(0, start - at) : max(0, end - at)]
            at += len(data)
            if piece:
                yield piece
