"""An OCI layout in one tar file (`oci-archive:`), as skopeo and others carry images over an air gap.

The file is written anew in one piece, its members in the order of their names after `oci-layout` and `index.json`, with
our own headers: equal content makes equal bytes, whatever order it arrived in.
"""

from __future__ import annotations

import io
import os
import re
import shutil
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

from builder.layers.tar import END, Entry, Kind, Region, header, padding
from builder.oci import spec
from builder.oci.checking import Checked, checked
from builder.oci.content import MAX_MANIFEST, Outcome
from builder.oci.digest import Digest
from builder.oci.files import replacing, sweep
from builder.oci.listing import REF_NAME, LayoutError, Listing, parse_index, subject
from builder.oci.spec import Descriptor

_VERSION = b'{"imageLayoutVersion":"1.0.0"}'
_BLOBS = "blobs/sha256/"
_NAME = re.compile(r"(?:\./)?(oci-layout|index\.json|blobs/sha256/[0-9a-f]{64})")
_PACKED = (b"\x1f\x8b", b"\x28\xb5\x2f\xfd", b"\xfd7zXZ\0", b"BZh")
_MAX_MEMBERS = 100_000
FILES = (tarfile.REGTYPE, tarfile.AREGTYPE)
"""The types of members that are files of their own."""
_COPY = 1 << 20

Open = Callable[[], AbstractContextManager[BinaryIO]]


@dataclass(frozen=True, slots=True)
class Range:
    """Where a member's bytes are in the file."""

    offset: int
    size: int


class Archive:
    """The images in the archive `path`, which has to be there; a `Source`."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._members = _members(path)
        data = self._small("index.json")
        if data is None:
            raise LayoutError(f"{path}: no OCI archive: it has no index.json", hint="make one with `build copy`")
        self._index = parse_index(data, f"{path}: index.json")

    def resolve(self, reference: str | None) -> Descriptor:
        """What a tag or a digest stands for (`Listing.resolve`)."""
        return self._listing().resolve(reference)

    def find(self, tag: str) -> Descriptor | None:
        """What a tag stands for; None if there is no such tag."""
        return self._listing().find(tag)

    def referrers(self, digest: Digest) -> tuple[Descriptor, ...]:
        """The manifests listed in `index.json` whose subject is `digest`."""
        return self._listing().referrers(digest)

    def tags(self) -> tuple[str, ...]:
        """The names of all tags."""
        return self._listing().tags

    def manifest(self, descriptor: Descriptor) -> bytes:
        """The bytes of a manifest or index, checked."""
        data = self._manifest(descriptor.digest)
        if data is None or len(data) != descriptor.size:
            raise self._wrong(descriptor.digest, "it is not there" if data is None else "it has another size")
        return data

    @contextmanager
    def blob(self, descriptor: Descriptor) -> Iterator[BinaryIO]:
        """The bytes of a blob, checked while they are read."""
        found = self._members.get(_BLOBS + descriptor.digest.hex)
        if found is None or found.size != descriptor.size:
            why = f"it has {found.size} bytes instead of {descriptor.size}" if found else "it is not there"
            raise self._wrong(descriptor.digest, why)
        part = Part(opened(self.path), found)
        with Checked(part, descriptor, lambda why: self._wrong(descriptor.digest, why)) as stream:  # type: ignore[arg-type]
            yield stream  # type: ignore[misc]

    def has(self, descriptor: Descriptor) -> bool:
        """Whether a blob of that digest and size is there."""
        found = self._members.get(_BLOBS + descriptor.digest.hex)
        return found is not None and found.size == descriptor.size

    def is_exactly(self, sizes: dict[Digest, int], index: bytes) -> bool:
        """Whether it holds these blobs, this `index.json` and nothing else."""
        blobs = {name: found.size for name, found in self._members.items() if name.startswith(_BLOBS)}
        return (
            blobs == {_BLOBS + digest.hex: size for digest, size in sizes.items()}
            and self._small("index.json") == index
        )

    def _listing(self) -> Listing:
        entries = [Descriptor.parse(entry) for entry in self._index]
        return Listing(str(self.path), "oci-archive:FILE", entries, self._manifest)

    def _manifest(self, digest: Digest) -> bytes | None:
        data = self._small(_BLOBS + digest.hex)
        if data is not None and Digest.of(data) != digest:
            raise self._wrong(digest, "its bytes have another digest")
        return data

    def _small(self, name: str) -> bytes | None:
        found = self._members.get(name)
        if found is None:
            return None
        if found.size > MAX_MANIFEST:
            raise LayoutError(f"{self.path}: {name} is larger than {MAX_MANIFEST} bytes")
        with opened(self.path) as file:
            return os.pread(file.fileno(), found.size, found.offset)

    def _wrong(self, digest: Digest, why: str) -> LayoutError:
        return LayoutError(f"{self.path}: the blob {digest} is damaged: {why}", hint="make the archive again")


class NewArchive:
    """A `Target` that becomes the archive `path` when `finish` is called, in place of one that is there.

    Until then it only remembers what is to be in it: a blob's `open` is called by `finish`, once. What the old archive has
    counts as present and is taken from it; if nothing would change, the file is left as it is. The old images that are
    not given again are gone.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._guard = threading.Lock()
        self._blobs: dict[Digest, tuple[int, Open]] = {}
        self._entries: list[dict[str, Any]] = []
        self._old: Archive | None = None
        if path.exists() and (path.is_dir() or path.stat().st_size):
            self._old = Archive(path)  # raises: somebody's file that is no archive is not replaced

    def has(self, descriptor: Descriptor) -> bool:
        """Whether the blob was given before, or the archive that is to be replaced has it."""
        with self._guard:
            given = descriptor.digest in self._blobs
        return given or (self._old is not None and self._old.has(descriptor))

    def put_blob(self, descriptor: Descriptor, open: Open, path: Path | None = None) -> Outcome:
        """Remembers a blob."""
        old = self._old
        present = old is not None and old.has(descriptor)
        with self._guard:
            self._blobs[descriptor.digest] = (
                descriptor.size,
                (lambda: old.blob(descriptor)) if old is not None and present else open,
            )
        return Outcome.PRESENT if present else Outcome.MOVED

    def put_manifest(self, descriptor: Descriptor, data: bytes, tag: str | None = None) -> None:
        """Remembers a manifest or index; with a tag it gets that name, and one with a subject is listed in any case."""
        with self._guard:
            self._blobs[descriptor.digest] = (len(data), lambda: io.BytesIO(data))
            if tag is not None:
                self._entries = [other for other in self._entries if _tag(other) != tag]
                annotations = {**descriptor.annotations, REF_NAME: tag}
                self._entries.append(descriptor.document() | {"annotations": annotations})
            elif subject(data) is not None:
                self._entries.append(descriptor.document())

    def finish(self) -> None:
        """Writes the file: it appears whole, or the old one stays. Raises `LayoutError`, and what reading blobs raises."""
        order = sorted(self._entries, key=lambda entry: (_tag(entry) is None, _tag(entry) or "", str(entry["digest"])))
        index = spec.encode({"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": order})
        if self._old and self._old.is_exactly({digest: size for digest, (size, _) in self._blobs.items()}, index):
            return
        with _explained(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            sweep(self.path.parent, self.path.name)
        with _explained(self.path), replacing(self.path) as file:
            _add(file, self.path, "oci-layout", len(_VERSION), io.BytesIO(_VERSION))
            _add(file, self.path, "index.json", len(index), io.BytesIO(index))
            for digest, (size, open_blob) in sorted(self._blobs.items()):
                described = Descriptor("", digest, size)
                with open_blob() as stream:
                    _add(file, self.path, _BLOBS + digest.hex, size, checked(stream, described, _given(digest)))
            file.write(END)


def _tag(entry: dict[str, Any]) -> str | None:
    annotations: dict[str, str] = entry.get("annotations", {})
    return annotations.get(REF_NAME)


def _given(digest: Digest) -> Callable[[str], LayoutError]:
    return lambda why: LayoutError(f"the bytes given for {digest} are wrong: {why}", hint="try again")


def _add(file: BinaryIO, path: Path, name: str, size: int, stream: BinaryIO) -> None:
    entry = Entry(name, Kind.FILE, 0o644, Region(path, 0, size))
    file.write(header(entry))
    shutil.copyfileobj(stream, file, _COPY)
    file.write(padding(size))


class Part(io.RawIOBase):
    """A range of an open file, as a stream of its own; closing it closes the file."""

    def __init__(self, file: BinaryIO, part: Range) -> None:
        self._file = file
        self._offset = part.offset
        self._end = part.offset + part.size

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)[: self._end - self._offset]
        count = os.preadv(self._file.fileno(), [view], self._offset) if view else 0
        self._offset += count
        return count

    def close(self) -> None:
        if not self.closed:
            self._file.close()
        super().close()


def opened(path: Path) -> BinaryIO:
    """The file, to be read in places."""
    try:
        return path.open("rb", buffering=0)
    except OSError as error:
        raise LayoutError(f"{path}: cannot be read: {error.strerror}", hint="name a file that is there") from error


def _members(path: Path) -> dict[str, Range]:
    """Where the members that belong to a layout are; everything else is passed over."""
    found: dict[str, Range] = {}
    for member in members(path, "it is no OCI archive: name another file"):
        name = _NAME.fullmatch(member.name)
        if name and member.type in FILES:
            found[name[1]] = Range(member.offset_data, member.size)
    return found


def members(path: Path, hint: str) -> Iterator[tarfile.TarInfo]:
    """What is in a tar file, one after the other; nothing is unpacked. Raises `LayoutError` where it cannot be read, is cut off in
    a file, or has more than a hundred thousand members, of which `hint` says what to do then."""
    end = 0
    with opened(path) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as archive:
                for number, member in enumerate(archive):
                    archive.members = []  # type: ignore[attr-defined]  # else it keeps all of them
                    if number > _MAX_MEMBERS:
                        raise LayoutError(f"{path}: more than {_MAX_MEMBERS} members", hint=hint)
                    if member.type in FILES:
                        end = max(end, member.offset_data + member.size)
                    yield member
        except (tarfile.TarError, OSError, ValueError, EOFError) as error:
            raise no_tar(path, file, error) from error
        size = os.fstat(file.fileno()).st_size
    if end > size:
        raise LayoutError(f"{path}: it is cut off after {size} bytes", hint="bring the archive here again")


def no_tar(path: Path, file: BinaryIO, error: Exception) -> LayoutError:
    """Why a file cannot be read as a tar, and what to do about it."""
    file.seek(0)
    if file.read(6).startswith(_PACKED):
        return LayoutError(f"{path}: no tar file that can be read: it is compressed", hint="unpack it first")
    return LayoutError(
        f"{path}: no tar file that can be read: {error}", hint="bring the archive here again, or name another file"
    )


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Turns an OSError of writing into an error with a remedy."""
    try:
        yield
    except OSError as error:
        raise LayoutError(
            f"{path}: cannot be written: {error.strerror or error}",
            hint="free disk space, or choose a destination that can be written",
        ) from error
