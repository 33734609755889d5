"""The facts of a whole image from those of its layers, and the projects that its files belong to."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence

from builder.binaries.facts import BinaryFacts, InputFacts

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_PACKAGE = re.compile(r"/(?:site|dist)-packages/([A-Za-z0-9][^/]*)/")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9._+-]+|^[^A-Za-z0-9]+")


def projects(layers: Sequence[InputFacts]) -> dict[str, InputFacts]:
    """What is left of the binaries of an image's layers, bottom first, by project: the package in `site-packages` that a
    file is of, else the file's own name."""
    found: dict[str, BinaryFacts] = {}
    damaged: dict[str, str] = {}
    for layer in layers:
        hidden = _hidden(layer)
        for known in (found, damaged):
            for path in [path for path in known if not hidden.isdisjoint(_above(path))]:
                del known[path]
        found |= {binary.path: binary for binary in layer.binaries}
        damaged |= dict(layer.damaged)
    names: dict[str, tuple[list[BinaryFacts], list[tuple[str, str]]]] = {}
    for path, binary in sorted(found.items()):
        names.setdefault(_project(path), ([], []))[0].append(binary)
    for path, why in sorted(damaged.items()):
        names.setdefault(_project(path), ([], []))[1].append((path, why))
    return {name: InputFacts(tuple(binaries), damaged=tuple(broken)) for name, (binaries, broken) in names.items()}


def _hidden(layer: InputFacts) -> set[str]:
    """What a layer hides of those below it (image-spec, layer.md): paths, and with a `/` at their end what is below them."""
    hidden = {path for path, _ in layer.links}
    for path, _, _ in layer.files:
        folder, _, name = path.rpartition("/")
        if name == _OPAQUE:
            hidden.add(f"{folder}/")
        elif name.startswith(_WHITEOUT):
            gone = f"{folder}/{name.removeprefix(_WHITEOUT)}"
            hidden |= {gone, f"{gone}/"}
        else:
            hidden.add(path)
    return hidden


def _above(path: str) -> Iterator[str]:
    """The path itself, and each folder that it is in with a `/` at its end."""
    yield path
    while path:
        path = path.rpartition("/")[0]
        yield f"{path}/"


def _project(path: str) -> str:
    match = _PACKAGE.search(path)
    name = match[1] if match else path.rpartition("/")[2]
    return _NOT_IN_NAMES.sub("", name)[:200] or "file"
