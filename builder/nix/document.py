"""The plan in JSON, as `nix/engine.nix` reads it: of layers, and of whole images."""

from __future__ import annotations

import base64
import platform
import re
from collections.abc import Iterable, Mapping

from builder import lock as locks
from builder import plan as plans
from builder.lock import Lock, LockedFile
from builder.nix.inside import encode, packs
from builder.plan import Layer

VERSION = 1
PREFIX = "key-"
"""What the keys of layers have before them: attributes of Nix do not begin with a digit."""
_FORBIDDEN = re.compile(r"[^0-9A-Za-z+\-_?=.]+")


def document_of(name: str, layers: Iterable[Layer], span_size: int, packer: str) -> dict[str, object]:
    """What `engine.nix` reads: JSON."""
    chosen = list(layers)
    return {
        "version": VERSION,
        "name": safe(name),
        "system": f"{platform.machine()}-linux",
        "runtime": packer,
        "files": {file.sha256: {} for layer in chosen for file in plans.files(layer)},
        "layers": {
            f"{PREFIX}{layer.key.hex}": {
                "name": name_of(layer),
                "spec": encode(layer, span_size),
                "files": list(dict.fromkeys(file.sha256 for file in plans.files(layer))),
            }
            for layer in chosen
        },
    }


def name_of(layer: Layer) -> str:
    """The name of a layer's derivation: its own, and of its key enough to tell it from others. Nix builds in the order of names:
    three digits come first that are less for what takes longer, so that the last to end is not the longest."""
    weight = max(1, plans.weight(layer))
    quarter = 4 * weight.bit_length() + (weight << 2 >> weight.bit_length() - 1 & 3)
    return f"{max(0, 199 - quarter):03}-{safe(layer.name)}-{layer.key.hex[:8]}"


def safe(name: str) -> str:
    """A name without what Nix forbids in names."""
    return _FORBIDDEN.sub("-", name).strip(".-")[:120] or "layer"


def image_of(
    lock: Lock, packer: str, rendered: Mapping[str, bytes], places: Mapping[LockedFile, Mapping[str, str]]
) -> dict[str, object]:
    """What `engine.nix` reads of an image: the layers that derivations make, and what its own derivation needs for the rest, its
    templates as they are `rendered` by place. `places` say where inputs are: at a `url`, or in the store's `path` of which
    they are the archive; what has none must be in Nix's store already."""
    planned = plans.plan(lock)
    layers = list(dict.fromkeys(layer for item in planned.platforms for layer in item.layers))
    made = [layer for layer in layers if packs(layer)]
    rest = dict.fromkeys(file for layer in layers if layer not in made for file in plans.files(layer))
    known = {file.sha256: dict(place) for file, place in places.items()}
    document = document_of(lock.name, made, planned.soci.span_size, packer)
    wanted = [*(file for layer in made for file in plans.files(layer)), *rest]
    return document | {
        "files": {file.sha256: known.get(file.sha256, {}) for file in wanted},
        "inputs": [file.sha256 for file in rest],
        "lock": locks.encode(lock),
        "rendered": {place: base64.b64encode(text).decode() for place, text in sorted(rendered.items())},
    }
