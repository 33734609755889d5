"""Contents of files of a base image, out of the layers that have them: one pass over each such layer."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from builder.base.tree import Node
from builder.layers.untar import TarReader, normal
from builder.plan import BaseLayer
from builder.store import Store

LIMIT = 64 << 20
"""So many bytes are read at once, of one file or of several; what lies behind them is not looked at."""


def contents(
    nodes: Mapping[str, Node], layers: Sequence[BaseLayer], store: Store, limit: int = LIMIT
) -> dict[str, bytes]:
    """Contents of files by the keys of `nodes`, which are of a tree of these layers: `limit` bytes in all, which are in memory.

    The layers were scanned: they can be read.
    """
    wanted: dict[int, dict[str, list[str]]] = {}
    for key, node in nodes.items():
        if node.type == "reg":
            wanted.setdefault(node.layer, {}).setdefault(node.path, []).append(key)
    found: dict[str, bytes] = {}
    left = limit
    for number, paths in wanted.items():
        with store.path(layers[number].file.digest).open("rb") as blob, TarReader(blob) as reader:
            while member := reader.next():
                keys = paths.get(normal(member.entry.name))
                if keys and member.entry.type == "reg":  # a member that comes twice counts as it came last
                    data = bytearray()
                    for piece in reader.content():
                        data += piece[: left - len(data)]
                    left -= len(data)
                    found |= dict.fromkeys(keys, bytes(data))
    return found
