"""An OCI image layout on disk (image-spec, image-layout.md): blobs first, `index.json` last, each by rename."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO

from builder.errors import BuilderError
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor

REF_NAME = "org.opencontainers.image.ref.name"
_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_MAX_INDEX = 4 << 20
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{12}")


class LayoutError(BuilderError):
    """A folder is not the OCI layout that it should be, or cannot be written."""


class Layout:
    """The layout in the folder `root`, which is made when something is written."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: Digest) -> Path:
        return self.root / "blobs" / "sha256" / digest.hex

    def link(self, source: Path, digest: Digest, size: int) -> None:
        """Makes the finished file `source` the blob `digest`: a hard link where possible, else a copy."""
        target = self.path(digest)
        with _explained(self.root):
            if target.is_file():
                if target.stat().st_size == size:
                    return
                target.unlink(missing_ok=True)  # it is damaged
            target.parent.mkdir(parents=True, exist_ok=True)
            _link_or_copy(source, target)

    def check(self) -> None:
        """Raises `LayoutError` if there is an index that cannot be read, so that no tag could be set."""
        self._index()

    def put(self, data: bytes) -> Digest:
        """Stores a small blob."""
        digest = Digest.of(data)
        if not self.path(digest).is_file() or self.path(digest).read_bytes() != data:
            with _explained(self.root):
                self.path(digest).parent.mkdir(parents=True, exist_ok=True)
                _write(self.path(digest), data)
        return digest

    def read(self, digest: Digest, limit: int = _MAX_INDEX) -> bytes:
        """A small blob, checked against its digest."""
        try:
            with self.path(digest).open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError as error:
            raise LayoutError(f"{self.root}: the blob {digest} is missing", hint="publish to it again") from error
        if len(data) > limit or Digest.of(data) != digest:
            raise LayoutError(
                f"{self.root}: the blob {digest} is damaged", hint="delete the blob and publish to it again"
            )
        return data

    def tag(self, tag: str, descriptor: Descriptor) -> None:
        """Points `tag` at a manifest or index that the layout already holds; other tags stay."""
        entry = descriptor.document() | {"annotations": {**descriptor.annotations, REF_NAME: tag}}
        with _explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with _explained(self.root), _alone(self.root):
            others = [other for other in self._index() if _ref_name(other) != tag]
            index = {"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": [*others, entry]}
            _sweep(self.root)
            _write(self.root / "oci-layout", _VERSION)
            _write(self.root / "index.json", spec.encode(index))

    def resolve(self, tag: str | None) -> dict[str, Any]:
        """The descriptor, as a document, that `tag` points at; without a tag, the only one."""
        index = self._index()
        if not index:
            raise LayoutError(f"{self.root}: no image is in it, or it is no OCI layout", hint="publish to it first")
        found = [entry for entry in index if tag is None or _ref_name(entry) == tag]
        if len(found) != 1:
            names = ", ".join(sorted(str(_ref_name(entry)) for entry in index))
            raise LayoutError(f"{self.root}: it holds {names}", hint="name one of them as oci:DIR:TAG")
        return found[0]

    def _index(self) -> list[dict[str, Any]]:
        path = self.root / "index.json"
        try:
            with path.open("rb") as file:
                document = json.loads(file.read(_MAX_INDEX))
            entries = document["manifests"]
            if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
                raise TypeError("manifests is not a list of descriptors")
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise LayoutError(f"{self.root}: not a folder", hint="choose another destination") from error
        except (ValueError, KeyError, TypeError, OSError) as error:
            raise LayoutError(
                f"{path}: not an OCI index ({error})", hint="choose an empty folder, or mend it"
            ) from error
        return entries


def _ref_name(entry: Mapping[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    return annotations.get(REF_NAME) if isinstance(annotations, dict) else None


def _link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except FileExistsError:
        return  # another writer was faster, with the same bytes
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        with source.open("rb") as reader, _replacing(target) as writer:
            shutil.copyfileobj(reader, writer, 4 << 20)


def _write(path: Path, data: bytes) -> None:
    with _replacing(path) as file:
        file.write(data)


@contextmanager
def _replacing(path: Path) -> Iterator[BinaryIO]:
    """A new file beside `path` that takes its place, complete, at the end of the block; it is locked while it is written."""
    temporary, file = _temporary(path)
    try:
        with file:
            yield file
            file.flush()
            os.fsync(file.fileno())
            os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _temporary(path: Path) -> tuple[Path, BinaryIO]:
    while True:
        temporary = path.with_name(f".{path.name}.{secrets.token_hex(6)}")
        file = temporary.open("xb")
        fcntl.flock(file, fcntl.LOCK_EX)
        if temporary.exists():  # else it was swept away before it was locked
            return temporary, file
        file.close()


def _sweep(root: Path) -> None:
    """Removes what killed writers left."""
    for folder in (root, root / "blobs" / "sha256"):
        for path in [path for path in folder.glob(".*") if _TEMPORARY.fullmatch(path.name)]:
            with suppress(FileNotFoundError, BlockingIOError), path.open("rb") as file:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                path.unlink()


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turns an OSError of writing into an error with a remedy."""
    try:
        yield
    except OSError as error:
        hint = "free disk space" if error.errno == errno.ENOSPC else "choose a destination that can be written"
        raise LayoutError(f"{root}: cannot be written: {error.strerror or error}", hint=hint) from error


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Keeps other writers of the same layout out while its index is changed."""
    descriptor = os.open(root, os.O_RDONLY | os.O_DIRECTORY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
