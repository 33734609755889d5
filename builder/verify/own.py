"""The profile's own files, without the profile's folder: taken out of the image, and checked against the lock."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from builder.errors import BuilderError
from builder.layers.untar import TarReader, normal
from builder.lock import Lock, LockedLocal, LockedTemplate
from builder.oci.content import Source
from builder.oci.published import PublishedImage
from builder.packing import Folder
from builder.sources.local import image_path
from builder.verify.findings import Finding, Kind, says_no
from builder.verify.quick import Structure

_MAX_TEMPLATE = 64 << 20

Own = LockedLocal | LockedTemplate


@dataclass(frozen=True)
class OwnFiles:
    """What is needed to pack the files layer again: `lock` names the files as they lie in `folder`, without those that are
    nowhere to be had, which `findings` name."""

    lock: Lock
    folder: Folder
    findings: tuple[Finding, ...]


def own_files(source: Source, found: Structure, lock: Lock, near: Path | None, target: Path) -> OwnFiles:
    """Gathers the files and templates of a lock in the empty folder `target`.

    A file that lies in `near`, the profile's folder, with the locked bytes is taken from there; all others out of the
    uppermost layer of the image, where their bytes have to have the locked digests.
    """
    wanted: dict[str, Own] = {}
    sources: dict[str, str] = {}
    own: list[Own] = [*lock.files, *lock.templates]
    for item in own:
        path = near / item.source if near and isinstance(item, LockedLocal) and item.sha256 else None
        if path and _is(path, item):
            sources[item.to] = str(path.absolute())
        elif item.sha256 is not None:
            wanted[image_path(item.to)] = item
    findings: list[Finding] = []
    texts: dict[str, bytes] = {}
    image = next((image for image in found.images if image.layers), None)
    if image and wanted:
        for path_, item in _extract(source, image, wanted, target, findings):
            sources[item.to] = str(path_)
            if isinstance(item, LockedTemplate):
                texts[item.to] = path_.read_bytes()
    reported = {finding.path for finding in findings}
    for name, item in wanted.items():
        if item.to not in sources and name not in reported:
            findings.append(_finding(image, Kind.MISSING, name, "a file of the profile is not in the uppermost layer"))
    files = tuple(
        replace(file, source=sources[file.to]) if file.to in sources else file
        for file in lock.files
        if file.target is not None or file.to in sources
    )
    templates = tuple(item for item in lock.templates if item.to in texts)
    return OwnFiles(replace(lock, files=files, templates=templates), Folder(Path("/"), texts), tuple(findings))


def _is(path: Path, item: Own) -> bool:
    """Whether a file has the locked bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == item.sha256
    except OSError:
        return False


def _extract(
    source: Source, image: PublishedImage, wanted: Mapping[str, Own], target: Path, findings: list[Finding]
) -> Iterator[tuple[Path, Own]]:
    """The wanted files of the uppermost layer that are what the lock says; those that are not become findings."""
    try:
        with source.blob(image.layers[-1]) as blob, TarReader(blob) as reader:
            number = 0
            while member := reader.next():
                name = normal(member.entry.name)
                item = wanted.get(name)
                if item is None or member.entry.type != "reg":
                    continue
                limit = _MAX_TEMPLATE if isinstance(item, LockedTemplate) else member.entry.size
                if member.entry.size != item.size or member.entry.size > limit:
                    message = f"it has {member.entry.size} bytes, the lock says {item.size}"
                    findings.append(_finding(image, Kind.CONTENT, name, message))
                    continue
                number += 1
                path, hashed = target / str(number), hashlib.sha256()
                with path.open("wb") as file:
                    for piece in reader.content():
                        hashed.update(piece)
                        file.write(piece)
                if hashed.hexdigest() == item.sha256:
                    yield path, item
                else:
                    message = f"its bytes have the sha256 {hashed.hexdigest()}, the lock says {item.sha256}"
                    findings.append(_finding(image, Kind.CONTENT, name, message))
    except BuilderError as error:
        if not says_no(error):
            raise  # a damaged layer was found before


def _finding(image: PublishedImage | None, kind: Kind, name: str, message: str) -> Finding:
    if image is None:
        return Finding(kind, message, path=name)
    return Finding(kind, message, str(image.platform), len(image.layers), image.names[-1], name)
