"""Ztocs with adaptive spans: made of layers that are in the store, by one more pass over each, and remembered there.

Layers stay what they are; only the image's SOCI index is its own, as far as the trace of its start is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryFile

from builder.image import BuiltLayer
from builder.layers import cuts, foreign
from builder.layers.spans import LayerSpans
from builder.lock import ADAPTIVE, SociSettings
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.parallel import Stop, for_each
from builder.progress import Progress
from builder.soci import adaptive, read, ztoc
from builder.soci.adaptive import Region
from builder.soci.ranges import by_path
from builder.store import Store

_THREADS = 4
_RECORD = "ztoc"


def adapted(
    layers: Sequence[BuiltLayer], ranges: bytes, soci: SociSettings, store: Store, progress: Progress
) -> dict[Digest, BuiltLayer]:
    """The layers with other ztocs, those that have one, by the digests of their blobs.

    `ranges` is what a start reads, as `[[path, start, end], …]`; the layers have ztocs as `soci` says.
    """

    def key(layer: BuiltLayer) -> str:
        return _key(layer, ranges, soci)

    found: dict[Digest, BuiltLayer] = {}
    missing: list[BuiltLayer] = []
    for layer in {layer.blob.digest: layer for layer in layers}.values():
        known = _known(layer, key(layer), store)
        if known:
            found[layer.blob.digest] = known
        else:
            missing.append(layer)
    if not missing:
        return found
    parts = by_path(ranges)
    with progress.task("adapt spans", sum(layer.blob.size for layer in missing)) as task:

        def make(layer: BuiltLayer) -> None:
            _make(layer, parts, soci.spans, key(layer), store, task.advance)

        largest_first = sorted(missing, key=lambda layer: -layer.blob.size)
        for error in for_each(make, largest_first, _THREADS, Stop()):
            raise error
    for layer in missing:
        made = _known(layer, key(layer), store)
        assert made, "a ztoc that was just made is in the store"
        found[layer.blob.digest] = made
    return found


def _known(layer: BuiltLayer, key: str, store: Store) -> BuiltLayer | None:
    if layer.ztoc is None:
        return layer
    record = store.record(_RECORD, key)
    if record is None:
        return None
    try:
        described = Descriptor(ztoc.MEDIA_TYPE, Digest.parse(record["objects"][0]), int(record["size"]))
        spans = int(record["spans"])
    except (LookupError, TypeError, ValueError):  # a record that says too little counts as absent
        return None
    return replace(layer, ztoc=described, spans=spans) if store.has(described.digest, described.size) else None


def _key(layer: BuiltLayer, ranges: bytes, soci: SociSettings) -> str:
    parts = {
        "layer": str(layer.blob.digest),
        "span-size": soci.span_size,
        "rule": soci.spans,
        "ranges": str(Digest.of(ranges)),
    }
    return Digest.of(spec.encode(parts)).hex


def _make(
    layer: BuiltLayer,
    parts: Mapping[str, Sequence[tuple[int, int]]],
    rule: str,
    key: str,
    store: Store,
    advance: Callable[[int], None],
) -> None:
    """Writes the ztoc and its record. A layer without compression keeps its own: all of its spans cost nothing."""
    assert layer.ztoc
    with store.mapped(layer.ztoc.digest) as data:
        own = read.decode(data)
        regions = list(adaptive.regions(own, parts))
        if own.plain:
            record = {"objects": [str(layer.ztoc.digest)], "size": layer.ztoc.size, "spans": layer.spans}
            store.put_record(_RECORD, key, record)
            return
        with store.temporary() as windows, store.temporary() as path:
            blob = store.path(layer.blob.digest)
            spans = (_first if rule == ADAPTIVE[0] else _second)(blob, own, regions, windows, advance)
            with path.open("wb") as out:
                described = ztoc.write(spans, out)
            store.adopt(path, described.digest)
    record = {"objects": [str(described.digest)], "size": described.size, "spans": len(spans.checkpoints)}
    store.put_record(_RECORD, key, record)


def _first(
    path: Path, own: read.Ztoc, regions: Sequence[Region], windows: Path, advance: Callable[[int], None]
) -> LayerSpans:
    rule = adaptive.rule(part for region in regions for part in region.parts)
    with path.open("rb") as blob:
        spans = foreign.scan(blob, "gzip", windows, adaptive.HOT, advance, full=rule).spans
    assert spans, "a layer that has a ztoc can have another one"
    return spans


def _second(
    path: Path, own: read.Ztoc, regions: Sequence[Region], windows: Path, advance: Callable[[int], None]
) -> LayerSpans:
    parts = adaptive.parts(regions)
    with path.open("rb") as blob, TemporaryFile(dir=windows.parent) as found:
        places = cuts.places(blob, found, parts, adaptive.NEAR, adaptive.REST, advance)
        numbers = adaptive.choose(places, parts, own.blob_size, own.tar_size)
        cuts.chosen(found, numbers, windows)
        checkpoints = tuple(places[number] for number in numbers)
        digests = cuts.digests(blob, checkpoints, own.blob_size)
    return LayerSpans(adaptive.READ, own.blob_size, own.tar_size, checkpoints, digests, windows, tuple(own.toc()))
