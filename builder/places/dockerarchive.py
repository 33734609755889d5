"""Images as `docker save` writes them into a tar file (`docker-archive:`), to be read.

Such a file has configurations and layers and no manifests: `manifest.json` says which layers make an image. The manifest that
is given out is made from that, always in the same way, so that its digest can be pinned like any other.
"""

from __future__ import annotations

import hashlib
import json
import os
import posixpath
import tarfile
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from builder.oci import spec
from builder.oci.checking import Checked
from builder.oci.content import MAX_MANIFEST
from builder.oci.digest import Digest
from builder.oci.listing import LayoutError
from builder.oci.spec import Descriptor
from builder.places.archive import FILES, Part, Range, members, opened

_MAX_LAYERS = 4096
_MAX_LINKS = 8
_PIECE = 1 << 20
_LIST = "manifest.json"


@dataclass(frozen=True)
class _Saved:
    """An image of `manifest.json`: names of members, and what it is called."""

    config: str
    layers: tuple[str, ...]
    names: tuple[str, ...]


class DockerArchive:
    """The images in the archive `path`, which has to be there; a `Source` and a `Place`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members, self._links = _members(path)
        self._saved = self._images()
        self._made: dict[Digest, bytes] = {}
        self._blobs: dict[Digest, Range] = {}
        self._guard = threading.Lock()

    def resolve(self, reference: str | None) -> Descriptor:
        """The manifest of an image: of the only one, of the one with this name (`NAME:TAG`), or with this digest."""
        if reference and reference.startswith("sha256:"):
            for saved in self._saved:
                found = self._manifest(saved)
                if str(found.digest) == reference:
                    return found
            raise LayoutError(f"{self.path}: {reference} is not in it", hint="name another digest, or a name and tag")
        wanted = [saved for saved in self._saved if reference is None or _is_called(saved, reference)]
        if len(wanted) != 1:
            names = ", ".join(sorted(name for saved in self._saved for name in saved.names)) or "images without names"
            raise LayoutError(f"{self.path}: it holds {names}", hint="name one of them as docker-archive:FILE:NAME:TAG")
        return self._manifest(wanted[0])

    def find(self, tag: str) -> Descriptor | None:
        """The image with this name; None if there is none."""
        return self.resolve(tag) if any(_is_called(saved, tag) for saved in self._saved) else None

    def tags(self) -> tuple[str, ...]:
        """The names of all images, each with its tag."""
        return tuple(sorted(name for saved in self._saved for name in saved.names))

    def manifest(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest that `resolve` gave."""
        if descriptor.digest not in self._made:
            self.resolve(str(descriptor.digest))
        data = self._made[descriptor.digest]
        if len(data) != descriptor.size:
            raise LayoutError(f"{self.path}: the manifest {descriptor.digest} has {len(data)} bytes", hint=_HINT)
        return data

    @contextmanager
    def blob(self, descriptor: Descriptor) -> Iterator[BinaryIO]:
        """The bytes of a configuration or a layer, checked while they are read."""
        if descriptor.digest not in self._blobs:
            for saved in self._saved:  # the manifest may be known from a lock
                self._manifest(saved)
        found = self._blobs.get(descriptor.digest)
        if found is None or found.size != descriptor.size:
            why = f"has {found.size} bytes instead of {descriptor.size}" if found else "is not there"
            raise LayoutError(f"{self.path}: {descriptor.digest} {why}", hint=_HINT)

        def wrong(why: str) -> LayoutError:
            return LayoutError(f"{self.path}: {descriptor.digest} is damaged: {why}", hint=_HINT)

        with Checked(Part(opened(self.path), found), descriptor, wrong) as stream:  # type: ignore[arg-type]
            yield stream  # type: ignore[misc]

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """Nothing refers to images there."""
        return ()

    def _images(self) -> list[_Saved]:
        try:
            listed = json.loads(self._small(_LIST))
            found = [
                _Saved(_name(item["Config"]), tuple(map(_name, item["Layers"])), tuple(item.get("RepoTags") or ()))
                for item in listed
            ]
            if not found or not all(isinstance(name, str) for saved in found for name in saved.names):
                raise ValueError("it names no images")
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise LayoutError(f"{self.path}: {_LIST}: not what `docker save` writes ({error})", hint=_HINT) from error
        if any(len(saved.layers) > _MAX_LAYERS for saved in found):
            raise LayoutError(f"{self.path}: {_LIST}: an image with more than {_MAX_LAYERS} layers", hint=_HINT)
        return found

    def _manifest(self, saved: _Saved) -> Descriptor:
        """Makes the manifest of an image; layers are hashed, for nothing vouches for them but their configuration."""
        config = self._small(saved.config)
        with self._guard:
            layers = [self._layer(name) for name in saved.layers]
            described = Descriptor(spec.CONFIG, Digest.of(config), len(config))
            self._blobs[described.digest] = self._range(saved.config)
            data = spec.encode(
                {
                    "schemaVersion": 2,
                    "mediaType": spec.MANIFEST,
                    "config": described.document(),
                    "layers": [layer.document() for layer in layers],
                }
            )
            digest = Digest.of(data)
            self._made[digest] = data
        return Descriptor(spec.MANIFEST, digest, len(data))

    def _layer(self, name: str) -> Descriptor:
        part = self._range(name)
        known = next((digest for digest, there in self._blobs.items() if there == part), None)
        with opened(self.path) as file:
            magic = os.pread(file.fileno(), min(4, part.size), part.offset)
            digest = known or _digest(file, part)
        self._blobs[digest] = part
        gzip, zstd = magic[:2] == b"\x1f\x8b", magic == b"\x28\xb5\x2f\xfd"
        return Descriptor(spec.LAYER_GZIP if gzip else spec.LAYER_ZSTD if zstd else spec.LAYER, digest, part.size)

    def _small(self, name: str) -> bytes:
        part = self._range(name)
        if part.size > MAX_MANIFEST:
            raise LayoutError(f"{self.path}: {name} is larger than {MAX_MANIFEST} bytes", hint=_HINT)
        with opened(self.path) as file:
            return os.pread(file.fileno(), part.size, part.offset)

    def _range(self, name: str) -> Range:
        """Where a member's bytes are; a layer that two images share may be a link."""
        for _ in range(_MAX_LINKS):
            if found := self._members.get(name):
                return found
            if name not in self._links:
                break
            name = self._links[name]
        raise LayoutError(f"{self.path}: no {name!r} is in it: it was not made by `docker save`", hint=_HINT)


_HINT = "save the image again: docker save -o FILE NAME:TAG"


def _name(value: object) -> str:
    if not isinstance(value, str) or not value:
        raise TypeError("a name is no text")
    return posixpath.normpath(value)


def _is_called(saved: _Saved, reference: str) -> bool:
    name = reference if ":" in reference.rpartition("/")[2] else f"{reference}:latest"
    return any(one == name or one.endswith(f"/{name}") for one in saved.names)


def _digest(file: BinaryIO, part: Range) -> Digest:
    sha256, offset, end = hashlib.sha256(), part.offset, part.offset + part.size
    while offset < end and (data := os.pread(file.fileno(), min(_PIECE, end - offset), offset)):
        sha256.update(data)
        offset += len(data)
    return Digest(sha256.hexdigest())


def _members(path: Path) -> tuple[Mapping[str, Range], Mapping[str, str]]:
    """Where files are, and where links lead, by their names."""
    found: dict[str, Range] = {}
    links: dict[str, str] = {}
    for member in members(path, _HINT):
        name = posixpath.normpath(member.name)
        if member.type in FILES:
            found[name] = Range(member.offset_data, member.size)
        elif member.type == tarfile.SYMTYPE:
            links[name] = posixpath.normpath(posixpath.join(posixpath.dirname(name), member.linkname))
        elif member.type == tarfile.LNKTYPE:
            links[name] = posixpath.normpath(member.linkname)
    return found, links
