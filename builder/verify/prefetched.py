"""Whether a prefetch artifact is right about its layer."""

from __future__ import annotations

from builder.oci.content import Source
from builder.oci.published import read_small
from builder.oci.spec import Descriptor
from builder.soci import prefetch
from builder.soci.read import Ztoc


def wrong(source: Source, described: Descriptor, ztoc: Ztoc | None) -> str | None:
    """What is wrong with a prefetch artifact of a layer with this ztoc; None if nothing is. Raises what the source raises, and
    `ImageError` if it is too large."""
    if ztoc is None:
        return "it has a prefetch artifact, and no ztoc that can be read"
    try:
        spans = prefetch.decode(read_small(source, described, prefetch.MAX_SIZE))
    except ValueError as error:
        return f"its prefetch artifact {described.digest} cannot be read: {error}"
    last, most = max(last for _, last in spans), len(ztoc.checkpoints) - 1
    return f"its prefetch artifact lists span {last}, the last one is {most}" if last > most else None
