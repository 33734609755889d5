"""One layer of a base image in the store: checked, listed, and with its ztoc, by one pass over its blob."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from builder.baseimage import COMPRESSIONS
from builder.errors import HostileInputError
from builder.image import BuiltLayer
from builder.layers import foreign
from builder.layers.spans import LayerSpans, TocEntry
from builder.layers.stream import LayerError
from builder.layers.untar import normal
from builder.lock import SociSettings
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.plan import BaseLayer
from builder.soci import index
from builder.store import Store

if TYPE_CHECKING:
    from builder.layers.tablecheck import TableFault

_RECORD = "base-layer"
_HINT = "the base image is damaged or hostile: choose another one, or another version of it"


def known(layer: BaseLayer, store: Store, packed: bool = False) -> BuiltLayer | None:
    """The layer out of the store's records, without its ztoc; None unless all of it is there."""
    record = store.record(_RECORD, layer.key.hex)
    if record is None or not store.has(layer.file.digest, layer.file.size):
        return None
    if layer.table and record.get("table") != str(layer.table):
        return None
    blob = Descriptor(layer.media_type, layer.file.digest, layer.file.size)
    try:
        listing, tar_size, whole = Digest.parse(record["objects"][0]), int(record["tar_size"]), str(record["whole"])
        if layer.table:
            from builder.layers import estargz  # few images are of it

            blob = replace(blob, annotations=estargz.labels(layer.table, tar_size))
    except (LookupError, TypeError, ValueError):  # a record that says too little counts as absent
        return None
    return BuiltLayer(layer.name, blob, layer.diff_id, tar_size, None, 0, listing, packed, whole)


def make(
    layer: BaseLayer,
    store: Store,
    soci: SociSettings,
    put_ztoc: Callable[[Digest, LayerSpans], None],
    advance: Callable[[int], None],
) -> None:
    """Reads the blob, which is in the store, and records what is in it; `put_ztoc` is given the spans of its digest.

    Raises `HostileInputError` where it is not what the image says of it.
    """
    digest = layer.file.digest
    name = f"{layer.file.path}, {layer.name} ({digest.short})"
    with store.temporary() as windows, store.path(digest).open("rb") as blob:
        try:
            scanned = foreign.scan(blob, COMPRESSIONS[layer.media_type], windows, soci.span_size, advance)
            rows = _rows(scanned.entries)
        except LayerError as error:
            raise HostileInputError(f"{name}: {error}", hint=_HINT) from error
        for fault in _table_faults(layer, store):
            raise HostileInputError(f"{name}: {fault.message}", hint=_HINT)
        if scanned.figures.diff_id != layer.diff_id:
            message = f"its tar has the digest {scanned.figures.diff_id}, the configuration says {layer.diff_id}"
            raise HostileInputError(f"{name}: {message}", hint=_HINT)
        if scanned.spans and index.wants_ztoc(
            Descriptor(layer.media_type, digest, layer.file.size), soci.min_layer_size
        ):
            put_ztoc(digest, scanned.spans)
    listing = store.put(json.dumps(rows, separators=(",", ":")).encode())
    record = {
        "name": layer.name,
        "objects": [str(listing)],
        "tar_size": scanned.figures.tar_size,
        "whole": scanned.why_whole,
        **({"table": str(layer.table)} if layer.table else {}),
    }
    store.put_record(_RECORD, layer.key.hex, record)


def _table_faults(layer: BaseLayer, store: Store) -> Sequence[TableFault]:
    """What is wrong with the table of an eStargz layer: lazy clients would see something else than what is listed."""
    if layer.table is None:
        return ()
    from builder.layers import tablecheck

    with store.path(layer.file.digest).open("rb") as blob:
        return tablecheck.faults(blob, layer.table)


def rows(layer: BuiltLayer, store: Store) -> Sequence[Sequence[Any]]:
    """What is in a layer that was scanned, for `base.tree`: path, type, mode, size, link, uid and gid of each member."""
    listed: Sequence[Sequence[Any]] = json.loads(store.read(layer.listing))
    return listed


def _rows(entries: Sequence[TocEntry]) -> list[list[object]]:
    found: list[list[object]] = []
    for entry in entries:
        path = normal(entry.name)
        if ".." in path.split("/"):
            raise LayerError(f"{entry.name!r} leads out of the image")
        link = normal(entry.linkname) if entry.type == "hardlink" else entry.linkname
        size = entry.size if entry.type == "reg" else 0
        found.append([path, entry.type, entry.mode & 0o7777, size, link, entry.uid, entry.gid])
    return found
