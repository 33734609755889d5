"""An OCI image layout on disk (image-spec, image-layout.md): blobs first, `index.json` last, each by rename.

A manifest with a subject that no tag points at is listed in `index.json` by its digest alone, as ORAS does it: that is
how referrers are found again.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import stat
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from builder.oci import spec
from builder.oci.checking import Checked, checked
from builder.oci.content import MAX_MANIFEST, Outcome
from builder.oci.digest import Digest
from builder.oci.files import replacing, sweep, write
from builder.oci.listing import REF_NAME as REF_NAME
from builder.oci.listing import LayoutError as LayoutError
from builder.oci.listing import Listing, children, parse_index, subject
from builder.oci.spec import Descriptor

_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_BLOCK = 1 << 20


class Layout:
    """The layout in the folder `root`, which is made when something is written; a `Source` and a `Target`."""

    def __init__(self, root: Path) -> None:
        self.root = root

    def path(self, digest: Digest) -> Path:
        return self.root / "blobs" / "sha256" / digest.hex

    def check(self) -> None:
        """Raises `LayoutError` if there is an index that cannot be read, so that no tag could be set."""
        self._index()

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob of that digest and size is there."""
        try:
            found = self.path(descriptor.digest).stat()
        except OSError:
            return False
        return stat.S_ISREG(found.st_mode) and found.st_size == descriptor.size

    def put_blob(
        self,
        descriptor: Descriptor,
        open: Callable[[], AbstractContextManager[BinaryIO]],
        path: Path | None = None,
        *,
        known: bool = False,
    ) -> Outcome:
        """The blob is there afterwards: as a hard link to `path` where that is possible (mounted), else as a copy (moved).

        Its bytes are checked first, unless they are `known`: those of a file that was written and hashed just now. Raises
        `LayoutError`, and what reading raises.
        """
        if self.has(descriptor):
            return Outcome.PRESENT
        target = self.path(descriptor.digest)
        with _explained(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            if target.is_file():
                target.unlink(missing_ok=True)  # it is damaged
            if path is not None and _can_link(path, target):
                if not known:
                    with open() as stream:
                        _read(checked(stream, descriptor, _wrong(descriptor)))
                if _linked(path, target):
                    return Outcome.MOUNTED
        with open() as stream, _explained(self.root), replacing(target) as writer:
            shutil.copyfileobj(checked(stream, descriptor, _wrong(descriptor)), writer, _BLOCK)
        return Outcome.MOVED

    def receive(self, descriptor: Descriptor, fetch: Callable[[Path], None]) -> Outcome:
        """The blob is there afterwards: `fetch` brings it, whole and checked, to the file that it is given.

        What an interrupted call left in that file is there again for the next one; others that want the same blob wait.
        """
        if self.has(descriptor):
            return Outcome.PRESENT
        target = self.path(descriptor.digest)
        part, lock = (target.with_name(f".{target.name}.{suffix}") for suffix in ("part", "lock"))
        with _explained(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
        with _explained(self.root), lock.open("wb") as held:
            fcntl.flock(held, fcntl.LOCK_EX)
            if self.has(descriptor):
                return Outcome.PRESENT
            fetch(part)
            with part.open("rb") as file:
                os.fsync(file.fileno())
            part.replace(target)
            lock.unlink(missing_ok=True)
        return Outcome.MOVED

    def put_manifest(self, descriptor: Descriptor, data: bytes, tag: str | None = None) -> None:
        """Stores a manifest or index; with a tag it gets that name, and one with a subject is listed in any case."""
        if Digest.of(data) != descriptor.digest:
            raise ValueError(f"these are not the bytes of {descriptor.digest}")
        self.put(data)
        if tag is not None:
            self.tag(tag, descriptor)
        elif subject(data) is not None:
            self._change(lambda entries: _listed(entries, descriptor))

    def put(self, data: bytes) -> Digest:
        """Stores a small blob."""
        digest = Digest.of(data)
        if not self.path(digest).is_file() or self.path(digest).read_bytes() != data:
            with _explained(self.root):
                self.path(digest).parent.mkdir(parents=True, exist_ok=True)
                write(self.path(digest), data)
        return digest

    def read(self, digest: Digest, limit: int = MAX_MANIFEST) -> bytes:
        """A small blob, checked against its digest."""
        try:
            with self.path(digest).open("rb") as file:
                data = file.read(limit + 1)
        except FileNotFoundError as error:
            raise LayoutError(f"{self.root}: the blob {digest} is missing", hint="publish to it again") from error
        except OSError as error:
            raise LayoutError(f"{self.root}: the blob {digest} cannot be read: {error.strerror}") from error
        if len(data) > limit:
            raise LayoutError(f"{self.root}: the blob {digest} is more than {limit} bytes", hint="choose another image")
        if Digest.of(data) != digest:
            raise self._damaged(digest)
        return data

    def manifest(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest or index, checked."""
        data = self.read(descriptor.digest)
        if len(data) != descriptor.size:
            raise self._damaged(descriptor.digest)
        return data

    @contextmanager
    def blob(self, descriptor: Descriptor) -> Iterator[BinaryIO]:
        """The bytes of a blob, checked while they are read."""
        try:
            file = self.path(descriptor.digest).open("rb", buffering=0)
        except FileNotFoundError as error:
            missing = f"{self.root}: the blob {descriptor.digest} is missing"
            raise LayoutError(missing, hint="publish to it again") from error
        except OSError as error:
            raise LayoutError(f"{self.root}: {descriptor.digest} cannot be read: {error.strerror}") from error
        with Checked(file, descriptor, lambda why: self._damaged(descriptor.digest, why)) as stream:
            yield stream  # type: ignore[misc]

    def find(self, tag: str) -> Descriptor | None:
        """What a tag stands for; None if there is no such tag."""
        return self._listing().find(tag)

    def ranges(self, descriptor: Descriptor, start: int, end: int, stop: object = None) -> Iterator[bytes]:
        """The bytes `start` up to `end` of a blob, in blocks; nothing checks them here."""
        try:
            with self.path(descriptor.digest).open("rb", buffering=0) as file:
                file.seek(start)
                while start < end and (block := file.read(min(_BLOCK, end - start))):
                    start += len(block)
                    yield block
        except OSError as error:
            raise LayoutError(f"{self.root}: {descriptor.digest} cannot be read: {error.strerror}") from error

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """The manifests listed in `index.json` whose subject is `digest`."""
        return self._listing().referrers(digest)

    def tags(self) -> tuple[str, ...]:
        """The names of all tags."""
        return self._listing().tags

    def tag(self, tag: str, descriptor: Descriptor) -> None:
        """Points `tag` at a manifest or index that the layout already holds; other tags stay.

        What refers to an image that no tag points at any more is listed no longer.
        """
        entry = descriptor.document() | {"annotations": {**descriptor.annotations, REF_NAME: tag}}

        def change(entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
            others = [other for other in entries if _ref_name(other) != tag]
            # Those with a name come first: some look at these alone.
            named = [other for other in others if _ref_name(other) is not None]
            kept = [*named, entry, *(other for other in others if _ref_name(other) is None)]
            before = {Digest.parse(other["digest"]) for other in entries if _ref_name(other) == tag}
            return self._without_orphans(kept, before - {descriptor.digest})

        self._change(change)

    def _without_orphans(self, entries: list[dict[str, Any]], lost: set[Digest]) -> list[dict[str, Any]]:
        """The entries less those that refer to what has `lost` its tag, unless it is tagged otherwise, part of a tagged
        index, or listed itself. What refers to anything else stays: its subject may get its tag in a moment."""
        there = {Digest.parse(entry["digest"]) for entry in entries}
        named = {Digest.parse(entry["digest"]) for entry in entries if _ref_name(entry) is not None}
        there |= {child for digest in named for child in children(self._bytes(digest))}
        lost = (lost | {child for digest in lost for child in children(self._bytes(digest))}) - there
        while lost:
            kept = [
                entry
                for entry in entries
                if _ref_name(entry) is not None or subject(self._bytes(Digest.parse(entry["digest"]))) not in lost
            ]
            gone = {Digest.parse(entry["digest"]) for entry in entries} - {
                Digest.parse(entry["digest"]) for entry in kept
            }
            entries, lost = kept, gone
        return entries

    def resolve(self, reference: str | None) -> Descriptor:
        """What a tag or a digest stands for (`Listing.resolve`)."""
        return self._listing().resolve(reference)

    def _listing(self) -> Listing:
        entries = [Descriptor.parse(entry) for entry in self._index()]
        return Listing(str(self.root), "oci:DIR", entries, lambda digest: self._bytes(digest) or None)

    def _bytes(self, digest: Digest) -> bytes:
        """A manifest's bytes, none if it is not there."""
        return self.read(digest) if self.path(digest).is_file() else b""

    def _change(self, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]] | None]) -> None:
        """Writes what `change` makes of the entries of `index.json`; None changes nothing."""
        with _explained(self.root):
            self.root.mkdir(parents=True, exist_ok=True)
        with _explained(self.root), _alone(self.root):
            entries = change(self._index())
            if entries is not None:
                index = {"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": entries}
                sweep(self.root)
                sweep(self.root / "blobs" / "sha256")
                write(self.root / "oci-layout", _VERSION)
                write(self.root / "index.json", spec.encode(index))

    def _damaged(self, digest: Digest, why: str = "") -> LayoutError:
        return LayoutError(
            f"{self.root}: the blob {digest} is damaged" + (f": {why}" if why else ""),
            hint="delete the blob and publish to it again",
        )

    def _index(self) -> list[dict[str, Any]]:
        path = self.root / "index.json"
        try:
            data = path.read_bytes()
        except FileNotFoundError:
            return []
        except NotADirectoryError as error:
            raise LayoutError(f"{self.root}: not a folder", hint="choose another destination") from error
        except OSError as error:
            raise LayoutError(f"{path}: cannot be read: {error.strerror}") from error
        return parse_index(data, str(path))


def _ref_name(entry: Mapping[str, Any]) -> str | None:
    annotations = entry.get("annotations")
    return annotations.get(REF_NAME) if isinstance(annotations, dict) else None


def _listed(entries: list[dict[str, Any]], descriptor: Descriptor) -> list[dict[str, Any]] | None:
    """The entries with one more, if none of them names the same manifest."""
    if any(entry.get("digest") == str(descriptor.digest) for entry in entries):
        return None
    return [*entries, descriptor.document()]


def _wrong(descriptor: Descriptor) -> Callable[[str], LayoutError]:
    return lambda why: LayoutError(f"the bytes given for {descriptor.digest} are wrong: {why}", hint="try again")


def _can_link(source: Path, target: Path) -> bool:
    """Whether a hard link is likely to work."""
    try:
        return source.stat().st_dev == target.parent.stat().st_dev
    except OSError:
        return False


def _read(stream: BinaryIO) -> None:
    buffer = bytearray(_BLOCK)
    while stream.readinto(buffer):  # type: ignore[attr-defined] # a raw stream
        pass


def _linked(source: Path, target: Path) -> bool:
    """Whether `target` is the same file as `source` now, or another writer was faster, with the same bytes."""
    try:
        os.link(source, target)
    except FileExistsError:
        return True
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES):
            raise
        return False
    return True


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
