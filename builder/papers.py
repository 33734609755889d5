"""The papers of an image: its lock, profile, SBOMs and provenance, each an OCI artifact about the image.

Their bytes depend on the lock and the profile alone, so that attaching twice changes nothing, and so that the store can
remember them: a publication without news makes none, and does not even import what makes them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from builder import lock as locks
from builder.errors import BuilderError, StaleLockError, StoreError
from builder.image import Assembled
from builder.lock import Lock, LockedFile
from builder.oci import spec
from builder.oci.artifact import Artifact, stored
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.profile import LoadedProfile
from builder.store import Store

if TYPE_CHECKING:
    from builder.sbom.licences import Licence

EDITION = 1
"""The number of the rules by which papers are made. A change of any byte of any paper raises it, for what stores
remember is of the rules that made it."""

_CREATED = "org.opencontainers.image.created"
_PREDICATE_TYPE = "in-toto.io/predicate-type"
_RECORD = "papers"


def all_of(
    lock: Lock,
    image: Assembled,
    loaded: LoadedProfile,
    store: Store,
    ensure: Callable[[Iterable[LockedFile]], None],
) -> tuple[tuple[Descriptor, bytes], ...]:
    """All that travels with the image of a lock, as a publication takes it: blobs before the manifests that name them.

    `ensure` is a fetcher's; it brings wheels that nobody has asked for their licence yet and that are not in the store.
    Raises `StaleLockError` if a profile changed meanwhile, and what `sbom.licences.of` raises.
    """
    texts = profile_texts(loaded)
    key = _key(lock, image, texts)
    found = _remembered(store, key)
    if found is None:
        from builder.sbom import licences

        found = stored(documents(lock, image, texts, licences.of(lock, store, ensure)))
        _remember(store, key, found)
    return found


def documents(
    lock: Lock, image: Assembled, profiles: Mapping[str, bytes], told: Mapping[str, Licence]
) -> tuple[Artifact, ...]:
    """Lock, profile and provenance about the image's index; the SBOMs of each platform about that platform's manifest, which
    may be copied alone, and about the index, where people look first.

    `profiles` are the texts of the profile and what it extends by their names, `told` the licences of wheels by sha256. Pure.
    """
    from builder import attach  # what makes papers takes long to import
    from builder.sbom import cyclonedx, inventory, provenance, spdx

    top = image.documents.top
    artifacts = [
        Artifact(attach.LOCK, top, ((f"{lock.name}.lock.json", locks.encode(lock).encode()),)),
        Artifact(attach.PROFILE, top, tuple((_title(name), data) for name, data in profiles.items())),
        Artifact(
            provenance.MEDIA_TYPE,
            top,
            ((f"{lock.name}.intoto.json", provenance.statement(lock, image)),),
            {_PREDICATE_TYPE: provenance.PREDICATE_TYPE},
        ),
    ]
    # After the images' manifests come those of their SOCI indexes.
    for found, manifest in zip(inventory.of(lock, image, told), image.documents.manifests, strict=False):
        name = f"{lock.name}.{str(found.platform).replace('/', '-')}"
        for media_type, title, data in (
            (spdx.MEDIA_TYPE, f"{name}.spdx.json", spdx.document(found)),
            (cyclonedx.MEDIA_TYPE, f"{name}.cdx.json", cyclonedx.document(found)),
        ):
            artifacts += [Artifact(media_type, subject, ((title, data),)) for subject in (top, manifest)]
    created = {_CREATED: lock.created}
    return tuple(replace(item, annotations={**item.annotations, **created}) for item in artifacts)


def profile_texts(loaded: LoadedProfile) -> dict[str, bytes]:
    """The bytes of a profile's files by their names relative to its folder, the profile first.

    Raises `StaleLockError` if one that it extends is not what it was when it was read.
    """
    texts = {loaded.path.name: _file(loaded.path)}
    for include in loaded.includes:
        data = _file(loaded.root / include.source)
        if Digest.of(data).hex != include.sha256:
            raise StaleLockError(f"{loaded.root / include.source}: it has changed since it was read")
        texts[include.source] = data
    return texts


def _key(lock: Lock, image: Assembled, texts: Mapping[str, bytes]) -> str:
    """The digest of all that decides the papers; licences are told by wheels, which the lock has by digest."""
    parts = {
        "edition": EDITION,
        "lock": str(Digest.of(locks.encode(lock).encode())),
        "image": str(image.documents.top.digest),
        "profiles": [[name, str(Digest.of(data))] for name, data in texts.items()],
    }
    return Digest.of(spec.encode(parts)).hex


def _remember(store: Store, key: str, papers: Iterable[tuple[Descriptor, bytes]]) -> None:
    rows = [(str(store.put(data)), descriptor.document()) for descriptor, data in papers]
    store.put_record(_RECORD, key, {"objects": [digest for digest, _ in rows], "papers": [row for _, row in rows]})


def _remembered(store: Store, key: str) -> tuple[tuple[Descriptor, bytes], ...] | None:
    """The papers that the store has; a record that says too little, or a damaged object, counts as absent."""
    record = store.record(_RECORD, key)
    if record is None:
        return None
    try:
        described = [Descriptor.parse(row) for row in record["papers"]]
        return tuple((descriptor, store.read(descriptor.digest)) for descriptor in described)
    except (LookupError, TypeError, ValueError, StoreError):
        return None


def _file(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuilderError(f"{path}: cannot be read: {error.strerror}", hint="or leave it out: --no-attach") from error


def _title(name: str) -> str:
    """A file's name that no reader writes outside of its folder: what is above becomes a folder `_`."""
    return "/".join("_" if part == ".." else part for part in name.split("/") if part not in ("", "."))
