"""Small images for tests of registries, and how they are pushed and pulled."""

from __future__ import annotations

import io
import json
import random
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from builder.client import Client
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.registry import Credentials, Keychain, Reference, Repository
from builder.settings import Network

QUICK = Network(backoff=0.002, attempts=8, connect_timeout=5, read_timeout=5)
NETWORK = Network(backoff=0.01, attempts=4, connect_timeout=2, read_timeout=2)


@dataclass(frozen=True)
class Image:
    """A manifest and its blobs."""

    manifest: bytes
    blobs: tuple[tuple[Descriptor, bytes], ...]

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(spec.MANIFEST, Digest.of(self.manifest), len(self.manifest))


def described(data: bytes, media_type: str = "application/octet-stream") -> Descriptor:
    return Descriptor(media_type, Digest.of(data), len(data))


def image(*layers: bytes, subject: Descriptor | None = None, artifact_type: str = "application/x-test") -> Image:
    config = b"{}"
    blobs = ((described(config, "application/vnd.oci.empty.v1+json"), config), *((described(b), b) for b in layers))
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": spec.MANIFEST,
        "artifactType": artifact_type,
        "config": blobs[0][0].document(),
        "layers": [descriptor.document() for descriptor, _ in blobs[1:]],
    }
    if subject is not None:
        document["subject"] = subject.document()
    return Image(spec.encode(document), blobs)


def random_layers(chance: random.Random, count: int, largest: int) -> list[bytes]:
    return [chance.randbytes(chance.randint(1, largest)) for _ in range(count)]


def repository(address: str, path: str = "some/image", **options: object) -> Repository:
    client = Client(options.pop("network", QUICK))  # type: ignore[arg-type]
    keychain = options.pop("keychain", Keychain())
    return Repository(Reference.parse(f"{address}/{path}"), client, keychain, **{"writing": True, **options})  # type: ignore[arg-type]


def as_stream(data: bytes) -> AbstractContextManager[BinaryIO]:
    return closing(io.BytesIO(data))


def push(target: Repository, pushed: Image, tag: str | None = None, folder: Path | None = None) -> list[str]:
    """Blobs first, the tag last; what became of each blob. In a `folder`, blobs are files."""
    outcomes = []
    for descriptor, data in pushed.blobs:
        path = None if folder is None else folder / descriptor.digest.hex
        if path is not None:
            path.write_bytes(data)
        outcomes.append(str(target.put_blob(descriptor, lambda data=data: as_stream(data), path)))  # type: ignore[misc]
    target.put_manifest(pushed.descriptor, pushed.manifest, tag)
    return outcomes


def pull(source: Repository, reference: str) -> Image:
    """All of an image, every byte checked by the source."""
    manifest = source.manifest(source.resolve(reference))
    document = json.loads(manifest)
    blobs = []
    for entry in [document["config"], *document["layers"]]:
        descriptor = Descriptor.parse(entry)
        with source.blob(descriptor) as stream:
            blobs.append((descriptor, stream.read()))
    return Image(manifest, tuple(blobs))


USER = Credentials("me", "s3cret/:ä")
