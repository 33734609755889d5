"""Layers of foreign artifacts that hold files in a tar, plain or compressed, as modctl and KitOps make them: file by file into
the store."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from builder.errors import StoreError
from builder.layers.stream import LayerError
from builder.layers.untar import TarReader, normal
from builder.lock import LockedModelFile
from builder.models.values import INDEX_PATH, MAX_FILES, BadModelError, check_path
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.store import Store

_KIND = "model-archive"
_MAX_RATIO = 200
"""How many times its own size a layer may unpack to; weights shrink by a tenth, texts to a tenth."""
_LEAST = 64 << 20


@dataclass(frozen=True)
class Archive:
    """One such layer; `name` is what the manifest calls it, `where` names it in errors."""

    source: Source
    layer: Descriptor
    name: str

    @property
    def where(self) -> str:
        return f"{self.layer.digest} ({self.name})"


def unpacked(archive: Archive, store: Store, advance: Callable[[int], None]) -> tuple[LockedModelFile, ...]:
    """The files of an archive, in its order, all of them in the store afterwards. What was unpacked before is known.

    `advance` is told bytes of files. Raises `BadModelError` for anything but files and folders, for paths that lie, and for
    what unpacks to more than 200 times its size; `LayerError` for a damaged archive.
    """
    key = archive.layer.digest.hex
    if record := store.record(_KIND, key):
        return tuple(LockedModelFile(*row) for row in record["files"])
    files = tuple(_files(archive, store, advance))
    try:
        listed = [[file.path, file.sha256, file.size] for file in files]
        store.put_record(_KIND, key, {"files": listed, "objects": [f"sha256:{file.sha256}" for file in files]})
    except StoreError:
        pass  # a store that cannot be written remembers nothing
    return files


def _files(archive: Archive, store: Store, advance: Callable[[int], None]) -> Iterator[LockedModelFile]:
    left = max(archive.layer.size * _MAX_RATIO, _LEAST)
    count = 0
    try:
        with archive.source.blob(archive.layer) as blob, TarReader(blob) as tar:
            while found := tar.next():
                path = normal(found.entry.name)
                if found.entry.type == "dir" or path == INDEX_PATH:
                    continue
                if found.entry.type != "reg":
                    raise BadModelError(f"{archive.where}: {path!r} is a {found.entry.type}, and no file")
                check_path(path, archive.where)
                count, left = count + 1, left - found.entry.size
                if left < 0 or count > MAX_FILES:
                    raise BadModelError(f"{archive.where}: it unpacks to more than can be meant")
                yield _kept(path, tar, store, advance)
    except LayerError as error:
        raise BadModelError(f"{archive.where}: {error}") from error


def _kept(path: str, tar: TarReader, store: Store, advance: Callable[[int], None]) -> LockedModelFile:
    sha256, size = hashlib.sha256(), 0
    with store.temporary() as place:
        with place.open("wb") as file:
            for piece in tar.content():
                sha256.update(piece)
                file.write(piece)
                size += len(piece)
                advance(len(piece))
        digest = Digest(sha256.hexdigest())
        if not store.has(digest, size):
            store.adopt(place, digest)
    return LockedModelFile(path, digest.hex, size)
