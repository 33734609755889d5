"""Prefetch artifacts of layers that are in the store, by what a start reads; made once, and remembered there."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from builder.image import BuiltLayer
from builder.layers.untar import normal
from builder.oci import spec
from builder.oci.digest import Digest
from builder.soci import adaptive, prefetch, read
from builder.soci.ranges import by_path
from builder.store import Store

_RECORD = "prefetch"


def prefetched(layers: Sequence[BuiltLayer], ranges: bytes, store: Store) -> dict[Digest, bytes]:
    """The artifacts of those layers of an image, bottom first, of which something is read, by the digests of their blobs.

    `ranges` is what a start reads, as `[[path, start, end], …]`. A file that several layers have is read from the uppermost.
    """
    key = Digest.of(
        spec.encode(
            {
                "format": 1,
                "ranges": str(Digest.of(ranges)),
                "ztocs": [[str(layer.blob.digest), str(layer.ztoc.digest)] for layer in layers if layer.ztoc],
            }
        )
    ).hex
    record = store.record(_RECORD, key)
    try:
        found = _read(record) if record else None
    except (LookupError, TypeError, ValueError, AttributeError):  # a record that says something else counts as absent
        found = None
    if found is None:
        made = _made(layers, ranges, store)
        store.put_record(_RECORD, key, {"artifacts": made})
        found = _read({"artifacts": made})
    return found


def _read(record: Mapping[str, Any]) -> dict[Digest, bytes]:
    found = {Digest.parse(name): text.encode() for name, text in record["artifacts"].items()}
    for artifact in found.values():
        prefetch.decode(artifact)
    return found


def _made(layers: Sequence[BuiltLayer], ranges: bytes, store: Store) -> Mapping[str, str]:
    parts = by_path(ranges)
    found: dict[str, str] = {}
    for layer in reversed(layers):
        if not (layer.ztoc and parts):
            continue
        with store.mapped(layer.ztoc.digest) as data:
            own = read.decode(data)
            there = {name for entry in own.toc() if (name := normal(entry.name)) in parts}
            regions = adaptive.regions(own, {name: parts[name] for name in there})
            if spans := prefetch.spans_of(own, adaptive.parts(regions)):
                found[str(layer.blob.digest)] = prefetch.encode(spans).decode()
        parts = {name: wanted for name, wanted in parts.items() if name not in there}
    return found
