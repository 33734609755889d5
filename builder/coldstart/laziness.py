"""Whether an image really starts lazily: clients that find something amiss pull everything, without a word."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

from builder.coldstart import measure
from builder.coldstart.gateway import Gateway
from builder.coldstart.images import Startable
from builder.coldstart.measure import Wanted
from builder.coldstart.stack import Stack
from builder.oci.digest import Digest


@dataclass(frozen=True)
class LayerMount:
    """How a layer of `size` bytes came to the node: `moved` of them had come when the container could start. `spanned` says that
    it has a ztoc, or a table, and so need not come whole."""

    digest: Digest
    size: int
    moved: int
    spanned: bool

    @property
    def lazy(self) -> bool:
        """Whether less than all of it came."""
        return self.moved < self.size


def mounts(
    stack: Stack, gateway: Gateway, wanted: Wanted, image: Startable, spanned: Collection[Digest]
) -> tuple[LayerMount, ...]:
    """Pulls the image and mounts its root, without running anything of it; how each layer came, bottom first.

    Raises what `measure.start` raises.
    """
    measure.mount(stack, gateway, wanted)
    moved: dict[str, int] = {}
    for request in gateway.requests:
        if request.kind == "blob":
            moved[request.digest] = moved.get(request.digest, 0) + request.sent
    return tuple(
        LayerMount(layer.digest, layer.size, moved.get(str(layer.digest), 0), layer.digest in spanned)
        for layer in image.layers
    )
