"""The profile's own files, without the profile's folder: taken out of the image, and checked against the lock."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from builder.errors import BuilderError
from builder.layers.untar import TarReader, normal
from builder.lock import Lock, LockedLocal, LockedTemplate
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.published import PublishedImage
from builder.packing import Folder
from builder.sources.local import image_path
from builder.verify.findings import UNREADABLE, Finding, Kind, says_no
from builder.verify.quick import Structure

_MAX_MORE = 64 << 20

Own = LockedLocal | LockedTemplate


@dataclass(frozen=True)
class OwnFiles:
    """What is needed to pack the files layer again: `lock` names the files as they lie in `folder`. `findings` are those that
    are not what the lock said, and `lock` says what they are; those that are nowhere to be had are not in it."""

    lock: Lock
    folder: Folder
    findings: tuple[Finding, ...]


def own_files(source: Source, found: Structure, lock: Lock, near: Path | None, target: Path) -> OwnFiles:
    """Gathers the files and templates of a lock in the empty folder `target`.

    A file that lies in `near`, the profile's folder, with the locked bytes is taken from there; all others out of the
    image, from its uppermost layer that has them, where their bytes have to have the locked digests.
    """
    image = next((image for image in found.images if image.layers), None)
    below = next((each.image for each in lock.platforms if image and each.platform == image.platform), None)
    wanted: dict[str, Own] = {}
    files: list[LockedLocal] = []
    templates: list[LockedTemplate] = []
    texts: dict[str, bytes] = {}
    start = lock.start.files if lock.start else ()
    own: list[Own] = [*lock.files, *lock.templates, *start]
    for item in own:
        beside = near / item.source if near and isinstance(item, LockedLocal) else None
        if item.sha256 is None:
            files.append(item)  # a template has a digest
        elif beside and _is(beside, item):
            files.append(replace(item, source=str(beside.absolute())))  # type: ignore[arg-type]
        else:
            wanted[image_path(below.place(item.to) if below else item.to)] = item
    findings: list[Finding] = []
    told = {(finding.platform, finding.layer) for finding in found.findings if finding.kind in UNREADABLE}
    whole = image is not None
    for number in range(len(image.layers), 0, -1) if image else ():
        if image is None or not wanted:
            break
        if (str(image.platform), number) in told:
            whole = False  # what may be in it is not missing
            continue
        for path, item in _extract(source, image, number, wanted, target, findings):
            if isinstance(item, LockedTemplate):
                texts[item.to] = path.read_bytes()
                if item not in start:
                    templates.append(item)
            else:
                files.append(replace(item, source=str(path)))
    for name in sorted(wanted) if whole else ():
        findings.append(Finding(Kind.MISSING, "a file of the profile is in no layer, or is no file there", path=name))
    rebuildable = replace(lock, files=tuple(sorted(files)), templates=tuple(sorted(templates)))
    return OwnFiles(rebuildable, Folder(Path("/"), texts), tuple(findings))


def _is(path: Path, item: Own) -> bool:
    """Whether a file has the locked bytes."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == item.sha256
    except OSError:
        return False


def _extract(
    source: Source,
    image: PublishedImage,
    number: int,
    wanted: dict[str, Own],
    target: Path,
    findings: list[Finding],
) -> Iterator[tuple[Path, Own]]:
    """Takes those of the wanted files out of a layer that are in it, and out of `wanted`.

    One that is not what the lock says is a finding; it is given with the digest that it has, so that the rest of the layer can
    be compared.
    """
    platform, layer = str(image.platform), image.names[number - 1]
    try:
        with source.blob(image.layers[number - 1]) as blob, TarReader(blob) as reader:
            while member := reader.next():
                name, size = normal(member.entry.name), member.entry.size
                item = wanted.get(name)
                if item is None or member.entry.type != "reg":
                    continue
                del wanted[name]
                path, hashed = target / Digest.of(item.to.encode()).hex, hashlib.sha256()
                if size <= (item.size or 0) + _MAX_MORE:
                    with path.open("wb") as file:
                        for piece in reader.content():
                            hashed.update(piece)
                            file.write(piece)
                    yield path, replace(item, sha256=hashed.hexdigest(), size=size)
                if size != item.size:
                    message = f"it has {size} bytes, the lock says {item.size}"
                    findings.append(Finding(Kind.CONTENT, message, platform, number, layer, name))
                elif hashed.hexdigest() != item.sha256:
                    message = f"its bytes have the sha256 {hashed.hexdigest()}, the lock says {item.sha256}"
                    findings.append(Finding(Kind.CONTENT, message, platform, number, layer, name))
    except BuilderError as error:
        if not says_no(error):
            raise  # a damaged layer was found before
