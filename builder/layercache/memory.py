"""What the store remembers of layer caches: which layers came from one, and which went there.

A cache is called `HOST/REPOSITORY`, as the settings have it.
"""

from __future__ import annotations

from builder.oci import spec
from builder.oci.digest import Digest
from builder.plan import BaseLayer, EnvironmentLayer, FilesLayer, Layer
from builder.store import Store

ORIGIN = "cache"
"""The key of a layer's record that tells the cache that it comes from."""
_RECORD = "layer-cache"


def is_cached(layer: Layer) -> bool:
    """Whether layers of this kind are kept in caches: a base image has its own place, and what is the profile's own, or has no
    input, takes less time to pack than to ask for."""
    return not isinstance(layer, BaseLayer | EnvironmentLayer | FilesLayer)


def is_there(cache: str, layer: Layer, store: Store) -> bool:
    """Whether the layer that the store has came from the cache, or went there."""
    known = store.record("layer", layer.key.hex)
    if known is None:
        return False
    if known.get(ORIGIN) == cache:
        return True
    told = store.record(_RECORD, _key(cache, layer))
    return told is not None and [told.get("layer")] == list(known.get("objects", ()))[:1]


def remember(cache: str, layer: Layer, blob: Digest, store: Store) -> None:
    """Notes that the cache has the layer."""
    store.put_record(_RECORD, _key(cache, layer), {"layer": str(blob)})


def _key(cache: str, layer: Layer) -> str:
    return Digest.of(spec.encode({"cache": cache, "layer": str(layer.key)})).hex
