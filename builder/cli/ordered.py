"""What `build plan` says of layers in which what a start reads comes first: what sharing that costs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace

from builder import plan as plans
from builder.assemble import known_layers
from builder.image import BuiltLayer
from builder.lock import Lock
from builder.plan import Layer, PlatformPlan
from builder.plan.values import StartOrder
from builder.progress import human_size
from builder.store import Store


def lines(lock: Lock, planned: PlatformPlan, known: Mapping[Layer, BuiltLayer], store: Store) -> Iterator[str]:
    """Which layers of a platform have an order, how large they are, and what there is of them without one."""
    found = [layer for layer in planned.layers if files(layer)]
    if not found:
        return
    assert lock.start
    plain = known_layers(plans.plan(replace(lock, start=lock.start.unordered)), store)
    without = {(type(layer), layer.name): built for layer, built in plain.items()}
    yield "what the start reads comes first, and only images whose start reads the same files have these layers in common:"
    for layer in found:
        own, other = known.get(layer), without.get((type(layer), layer.name))
        size = human_size(own.blob.size if own else sum(size for _, size in plans.inputs(layer)))
        also = f"; without an order it is in the store: {other.blob.digest.short}" if other else ""
        yield f"  {layer.name}: {files(layer)} files first, {size}{also}"


def files(layer: Layer) -> int:
    """How many files come first in a layer, 0 where it is in the order of paths."""
    order = getattr(layer, "order", None)
    return order.locked.count if isinstance(order, StartOrder) else 0
