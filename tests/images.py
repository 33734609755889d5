"""Published images taken apart and put together again, every digest made anew: what somebody does who changes an image."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import shutil
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

SOCI = "com.amazon.soci."


def digest(data: bytes) -> str:
    return f"sha256:{hashlib.sha256(data).hexdigest()}"


@dataclass
class Parts:
    """An image of one platform in a layout: change its parts, then `write`."""

    root: Path
    tag: str
    top: dict[str, Any]
    manifest: dict[str, Any]
    config: dict[str, Any]
    soci: dict[str, Any]
    layers: list[bytes]
    ztocs: dict[int, bytes]

    @classmethod
    def of(cls, layout: Path, root: Path) -> Parts:
        """Those of a copy of a layout at `root`."""
        shutil.copytree(layout, root)
        entry = next(
            entry
            for entry in json.loads((root / "index.json").read_bytes())["manifests"]
            if "org.opencontainers.image.ref.name" in entry.get("annotations", {})
        )
        top = json.loads(_blob(root, entry["digest"]))
        manifest, soci = (json.loads(_blob(root, item["digest"])) for item in top["manifests"])
        layers = [_blob(root, layer["digest"]) for layer in manifest["layers"]]
        names = [layer["digest"] for layer in manifest["layers"]]
        ztocs = {
            names.index(item["annotations"][SOCI + "image-layer-digest"]): _blob(root, item["digest"])
            for item in soci["layers"]
        }
        config = json.loads(_blob(root, manifest["config"]["digest"]))
        tag = entry["annotations"]["org.opencontainers.image.ref.name"]
        return cls(root, tag, top, manifest, config, soci, layers, ztocs)

    def blob(self, name: str) -> Path:
        return self.root / "blobs/sha256" / name.removeprefix("sha256:")

    def layer(self, number: int) -> Path:
        """The file of a layer."""
        return self.blob(self.manifest["layers"][number]["digest"])

    def ztoc(self) -> Path:
        """The file of the only ztoc."""
        return self.blob(self.soci["layers"][0]["digest"])

    def spoil(self, path: Path, place: int, data: bytes | None = None) -> None:
        """Other bytes in a file; one bit without `data`."""
        content = bytearray(path.read_bytes())
        new = data if data is not None else bytes([content[place] ^ 1])
        content[place : place + len(new)] = new
        path.unlink()  # it may be a link into a store
        path.write_bytes(content)

    def retar(self, number: int, change: Callable[[bytearray], bytes | bytearray | None]) -> None:
        """Changes the tar of a layer, and its diff_id with it."""
        tar = bytearray(gzip.decompress(self.layers[number]))
        changed = change(tar)
        tar = bytearray(changed) if changed is not None else tar
        self.layers[number] = gzip.compress(bytes(tar), 6, mtime=0)
        self.config["rootfs"]["diff_ids"][number] = digest(bytes(tar))

    def write(self) -> str:
        """Puts all parts into the layout and tags the outcome; its digest."""
        names = [self._put(layer) for layer in self.layers]
        for entry, name, layer in zip(self.manifest["layers"], names, self.layers, strict=True):
            entry |= {"digest": name, "size": len(layer)}
        for entry, (number, ztoc) in zip(self.soci["layers"], self.ztocs.items(), strict=True):
            entry |= {"digest": self._put(ztoc), "size": len(ztoc)}
            entry["annotations"][SOCI + "image-layer-digest"] = names[number]
        self._refer(self.manifest["config"], self.config)
        first, second = self.top["manifests"]
        self._refer(second, self.soci)
        self.manifest["annotations"][SOCI + "index-digest"] = second["digest"]
        first["annotations"][SOCI + "index-digest"] = second["digest"]
        self._refer(first, self.manifest)
        second["annotations"][SOCI + "image-manifest-digest"] = first["digest"]
        return self.bind()

    def bind(self) -> str:
        """Puts the index as it is into the layout and tags it; its digest."""
        data = encoded(self.top)
        entry = {
            "mediaType": self.top["mediaType"],
            "digest": self._put(data),
            "size": len(data),
            "annotations": {"org.opencontainers.image.ref.name": self.tag},
        }
        index = {"schemaVersion": 2, "mediaType": self.top["mediaType"], "manifests": [entry]}
        (self.root / "index.json").unlink()
        (self.root / "index.json").write_bytes(encoded(index))
        return str(entry["digest"])

    def _refer(self, entry: dict[str, Any], document: dict[str, Any]) -> None:
        data = encoded(document)
        entry |= {"digest": self._put(data), "size": len(data)}

    def _put(self, data: bytes) -> str:
        path = self.blob(digest(data))
        if not path.exists():
            path.write_bytes(data)
        return digest(data)


def encoded(document: dict[str, Any]) -> bytes:
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()


def reheader(name: str, start: int, field: bytes) -> Callable[[bytearray], None]:
    """Sets bytes of the header of a member, and its checksum."""

    def change(tar: bytearray) -> None:
        at = _member(tar, name).offset_data - 512
        tar[at + start : at + start + len(field)] = field
        tar[at + 148 : at + 156] = b"        "
        tar[at + 148 : at + 156] = b"%06o\0 " % sum(tar[at : at + 512])

    return change


def recontent(name: str, place: int, data: bytes) -> Callable[[bytearray], None]:
    """Sets bytes of a member's content."""

    def change(tar: bytearray) -> None:
        at = _member(tar, name).offset_data + place
        tar[at : at + len(data)] = data

    return change


def rearranged(order: Callable[[list[str]], list[str]]) -> Callable[[bytearray], bytes]:
    """The members that `order` names, in its order, as blocks that stay as they are."""

    def change(tar: bytearray) -> bytes:
        blocks: dict[str, bytes] = {}
        with tarfile.open(fileobj=io.BytesIO(bytes(tar))) as archive:
            members = archive.getmembers()
        ends = [member.offset for member in members[1:]] + [len(tar.rstrip(b"\0")) + 511 & ~511]
        for member, end in zip(members, ends, strict=True):
            blocks[member.name] = bytes(tar[member.offset : end])
        return b"".join(blocks[name] for name in order(list(blocks))) + bytes(1024)

    return change


def _member(tar: bytearray, name: str) -> tarfile.TarInfo:
    with tarfile.open(fileobj=io.BytesIO(bytes(tar))) as archive:
        return archive.getmember(name)


def _blob(root: Path, name: str) -> bytes:
    return (root / "blobs/sha256" / name.removeprefix("sha256:")).read_bytes()
