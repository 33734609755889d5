"""A layer of the store goes to a layer cache: its bytes, what is known of it, and the entry that its key leads to."""

from __future__ import annotations

import io
from dataclasses import replace
from pathlib import Path

from builder.layercache import entry
from builder.layercache.entry import LISTING_TYPE, CachedZtoc, Record, tag_of
from builder.layercache.keys import SecretKey
from builder.lock import SociSettings
from builder.oci.digest import Digest
from builder.oci.lazy import TOC_DIGEST
from builder.oci.spec import Descriptor
from builder.packing import Folder, Packer
from builder.plan import Layer, WheelLayer
from builder.registry import Repository
from builder.sbom import licences
from builder.store import Store


def record_here(layer: Layer, store: Store, soci: SociSettings) -> Record | None:
    """What the store knows of a layer; None if it does not have it."""
    found = Packer(store.root, Folder(Path()), soci).known(layer, store)
    if found is None:
        return None
    listing = Descriptor(LISTING_TYPE, found.listing, store.path(found.listing).stat().st_size)
    ztocs = (CachedZtoc(soci.span_size, found.ztoc.digest, found.ztoc.size, found.spans),) if found.ztoc else ()
    blob, toc = replace(found.blob, annotations={}), found.blob.annotations.get(TOC_DIGEST)
    table = Digest.parse(toc) if toc else None
    return Record(layer.key, blob, found.diff_id, found.tar_size, listing, ztocs, _licences(layer, store), table)


def send(repository: Repository, record: Record, name: str, secret: SecretKey | None, store: Store) -> None:
    """The entry is in the repository afterwards: its blobs, then its manifest with the tag of its key.

    Raises `FetchError`, and `DamagedBlobError` where the store's bytes are not those of the record.
    """
    for descriptor in record.blobs:
        path = store.path(descriptor.digest)
        repository.put_blob(descriptor, lambda path=path: path.open("rb"), path)  # type: ignore[misc]
    manifest, document, config, data = entry.manifest(record, name, secret)
    repository.put_blob(config, lambda: io.BytesIO(data))
    repository.put_manifest(manifest, document, tag_of(record.key))


def _licences(layer: Layer, store: Store) -> tuple[tuple[str, dict[str, object]], ...]:
    """What the wheels of the layer tell, so that whoever takes it need not fetch them for its SBOM."""
    if not isinstance(layer, WheelLayer):
        return ()
    found = []
    for wheel in layer.wheels:
        known = store.record(licences.RECORD, wheel.file.sha256)
        if known is None and store.has(wheel.file.digest, wheel.file.size):
            licences.remember(wheel, store)
            known = store.record(licences.RECORD, wheel.file.sha256)
        if known is not None:
            found.append((wheel.file.sha256, {key: known[key] for key in ("expression", "text", "classifiers")}))
    return tuple(found)
