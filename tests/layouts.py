"""OCI layouts as tests write and read them, without the code that the project itself uses for it."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor

_SOCI = "com.amazon.soci."


@dataclass(frozen=True)
class Layout:
    """A folder with blobs, and an index.json once something is pointed to."""

    root: Path

    def path(self, digest: Digest) -> Path:
        return self.root / "blobs" / "sha256" / digest.hex

    def add(self, data: bytes, media_type: str) -> Descriptor:
        digest = Digest.of(data)
        self.path(digest).parent.mkdir(parents=True, exist_ok=True)
        self.path(digest).write_bytes(data)
        return Descriptor(media_type, digest, len(data))

    def link(self, other: Layout, digest: Digest) -> None:
        """A blob of another layout on the same file system, without a copy of its bytes."""
        self.path(digest).parent.mkdir(parents=True, exist_ok=True)
        if not self.path(digest).exists():
            self.path(digest).hardlink_to(other.path(digest))

    def point_to(self, *entries: Descriptor) -> None:
        (self.root / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (self.root / "index.json").write_bytes(_index([entry.document() for entry in entries]))

    def blobs(self) -> dict[str, bytes]:
        return {path.name: path.read_bytes() for path in (self.root / "blobs" / "sha256").iterdir()}

    def json(self, digest: Digest) -> dict[str, Any]:
        document: dict[str, Any] = json.loads(self.path(digest).read_bytes())
        return document

    def rebind(self, top: Digest, change: Callable[[dict[str, Any]], object]) -> None:
        """Changes the SOCI index of an image of one platform, and points to the image that is bound to what comes of it."""
        index = self.json(top)
        (entry,) = (entry for entry in index["manifests"] if "artifactType" not in entry)
        (bound,) = (entry for entry in index["manifests"] if "artifactType" in entry)
        soci, manifest = self.json(Digest.parse(bound["digest"])), self.json(Digest.parse(entry["digest"]))
        change(soci)
        indexed = self.add(json.dumps(soci).encode(), bound["mediaType"])
        manifest["annotations"][f"{_SOCI}index-digest"] = str(indexed.digest)
        image = self.add(json.dumps(manifest).encode(), entry["mediaType"])
        entry |= {"digest": str(image.digest), "size": image.size}
        bound |= {"digest": str(indexed.digest), "size": indexed.size}
        bound["annotations"][f"{_SOCI}image-manifest-digest"] = str(image.digest)
        self.point_to(self.add(json.dumps(index).encode(), spec.INDEX))


def plain(indexed: Layout, top: Digest, out: Layout) -> Digest:
    """Take the SOCI part out of an image: what somebody would give to `soci convert` to get `top`.

    `out` is a layout that names the plain OCI index alone; its layers are links into `indexed`.
    """
    manifests = []
    for entry in indexed.json(top)["manifests"]:
        if entry.get("artifactType", "").startswith("application/vnd.amazon.soci."):
            continue
        manifest = indexed.json(Digest.parse(entry["digest"]))
        for blob in (manifest["config"], *manifest["layers"]):
            out.link(indexed, Digest.parse(blob["digest"]))
        _drop_soci(manifest)
        _drop_soci(entry)
        added = out.add(_compact(manifest), spec.MANIFEST)
        manifests.append(entry | {"digest": str(added.digest), "size": added.size})
    added = out.add(_index(manifests), spec.INDEX)
    out.point_to(added)
    return added.digest


def _drop_soci(document: dict[str, Any]) -> None:
    kept = {key: value for key, value in document.pop("annotations", {}).items() if not key.startswith(_SOCI)}
    if kept:
        document["annotations"] = kept


def _index(manifests: list[dict[str, object]]) -> bytes:
    return _compact({"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": manifests})


def _compact(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":")).encode()
