"""Prefetch artifacts: which spans of a layer a snapshotter fetches while it mounts it, before a container starts. Pure.

The format of soci-snapshotter v0.14.1 (`soci/prefetch.go`, `docs/prefetch.md`), which calls it experimental and reads it where its
settings say `[prefetch] enable = true`. Others pass over it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Iterable

from builder.soci.read import Ztoc

MEDIA_TYPE = "application/vnd.amazon.soci.prefetch.v1+json"
"""The media type of its descriptor in a SOCI index, which the annotation of a layer's digest binds to that layer."""

MAX_SIZE = 16 << 20
"""The largest artifact that is read, in bytes."""

_VERSION = "1.0"


def spans_of(ztoc: Ztoc, regions: Iterable[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """The spans in which these regions of the tar lie, as first and last, ascending, neighbours in one.

    A read that ends where a span does brings the next one, so that it counts, too (`SpanManager.getSpanInfo`).
    """
    starts = [checkpoint.out_offset for checkpoint in ztoc.checkpoints]
    merged: list[tuple[int, int]] = []
    for begin, stop in sorted(regions):
        first, last = (max(bisect_right(starts, at) - 1, 0) for at in (begin, stop))
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = merged[-1][0], max(merged[-1][1], last)
        else:
            merged.append((first, last))
    return tuple(merged)


def encode(spans: Iterable[tuple[int, int]]) -> bytes:
    """The artifact of these spans, as Go writes it."""
    listed = [{"start_span": first, "end_span": last} for first, last in spans]
    return json.dumps({"version": _VERSION, "prefetch_spans": listed}, separators=(",", ":")).encode()


def decode(data: bytes) -> tuple[tuple[int, int], ...]:
    """The spans of an artifact, as first and last; raises ValueError where the bytes are none, or a range ends before it begins."""
    try:
        document = json.loads(data)
        if document["version"] != _VERSION:
            raise ValueError(f"its version is {document['version']!r}")
        found = tuple(
            (_number(entry["start_span"]), _number(entry["end_span"])) for entry in document["prefetch_spans"]
        )
    except (KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"it is no list of spans: {error}") from error
    if not found:
        raise ValueError("it lists no spans")
    for first, last in found:
        if last < first:
            raise ValueError(f"the spans {first} to {last} end before they begin")
    return found


def _number(value: object) -> int:
    if type(value) is not int or not 0 <= value < 1 << 31:
        raise ValueError(f"{value!r} is no number of a span")
    return value
