"""Ztocs with adaptive spans: made of layers that are in the store, by one more pass over each, and remembered there.

Layers stay what they are; only the image's SOCI index is its own, as far as the trace of its start is.
"""

from __future__ import annotations

import json
import mmap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from builder.image import BuiltLayer
from builder.layers import foreign
from builder.layers.untar import normal
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.parallel import Stop, for_each
from builder.progress import Progress
from builder.soci import adaptive, read, ztoc
from builder.store import Store

_THREADS = 4
_RECORD = "ztoc"


def adapted(
    layers: Sequence[BuiltLayer], ranges: bytes, span_size: int, store: Store, progress: Progress
) -> dict[Digest, BuiltLayer]:
    """The layers with other ztocs, those that have one, by the digests of their blobs.

    `ranges` is what a start reads, as `[[path, start, end], …]`, `span_size` that of the ztocs that they have.
    """
    found: dict[Digest, BuiltLayer] = {}
    missing: list[BuiltLayer] = []
    for layer in {layer.blob.digest: layer for layer in layers}.values():
        known = _known(layer, ranges, span_size, store)
        if known:
            found[layer.blob.digest] = known
        else:
            missing.append(layer)
    if not missing:
        return found
    parts: dict[str, list[tuple[int, int]]] = {}
    for path, start, end in json.loads(ranges):
        parts.setdefault(path.lstrip("/"), []).append((start, end))
    with progress.task("adapt spans", sum(layer.blob.size for layer in missing)) as task:

        def make(layer: BuiltLayer) -> None:
            _make(layer, parts, _key(layer, ranges, span_size), store, task.advance)

        largest_first = sorted(missing, key=lambda layer: -layer.blob.size)
        for error in for_each(make, largest_first, _THREADS, Stop()):
            raise error
    for layer in missing:
        made = _known(layer, ranges, span_size, store)
        assert made, "a ztoc that was just made is in the store"
        found[layer.blob.digest] = made
    return found


def _known(layer: BuiltLayer, ranges: bytes, span_size: int, store: Store) -> BuiltLayer | None:
    if layer.ztoc is None:
        return layer
    record = store.record(_RECORD, _key(layer, ranges, span_size))
    if record is None:
        return None
    try:
        described = Descriptor(ztoc.MEDIA_TYPE, Digest.parse(record["objects"][0]), int(record["size"]))
        spans = int(record["spans"])
    except (LookupError, TypeError, ValueError):  # a record that says too little counts as absent
        return None
    return replace(layer, ztoc=described, spans=spans) if store.has(described.digest, described.size) else None


def _key(layer: BuiltLayer, ranges: bytes, span_size: int) -> str:
    parts = {
        "layer": str(layer.blob.digest),
        "span-size": span_size,
        "hot": adaptive.HOT,
        "cold": adaptive.COLD,
        "ranges": str(Digest.of(ranges)),
    }
    return Digest.of(spec.encode(parts)).hex


def _make(
    layer: BuiltLayer,
    parts: Mapping[str, Sequence[tuple[int, int]]],
    key: str,
    store: Store,
    advance: Callable[[int], None],
) -> None:
    """Writes the ztoc and its record. A layer without compression keeps its own: all of its spans cost nothing."""
    assert layer.ztoc
    with store.path(layer.ztoc.digest).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        own = read.decode(data)
        regions = [
            (entry.offset + start, entry.offset + min(end, entry.size))
            for entry in own.toc()
            for start, end in parts.get(normal(entry.name), ())
            if entry.type == "reg" and start < entry.size
        ]
        plain = own.plain
    if plain:
        record = {"objects": [str(layer.ztoc.digest)], "size": layer.ztoc.size, "spans": layer.spans}
        store.put_record(_RECORD, key, record)
        return
    with store.temporary() as windows, store.temporary() as path:
        with store.path(layer.blob.digest).open("rb") as blob:
            rule = adaptive.rule(regions)
            spans = foreign.scan(blob, "gzip", windows, adaptive.HOT, advance, full=rule).spans
        assert spans, "a layer that has a ztoc can have another one"
        with path.open("wb") as out:
            described = ztoc.write(spans, out)
        store.adopt(path, described.digest)
    record = {"objects": [str(described.digest)], "size": described.size, "spans": len(spans.checkpoints)}
    store.put_record(_RECORD, key, record)
