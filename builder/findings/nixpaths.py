"""What there is to say of a closure from Nix: drivers that do not belong into images, and CUDA that is there twice. Pure."""

from __future__ import annotations

import posixpath
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from builder.findings.report import CUDA, LEVELS, Finding
from builder.findings.root import Root
from builder.findings.scan import stem
from builder.layers.tar import Kind
from builder.sources.nar import Node

Trees = Mapping[str, Sequence[Node]]
"""What is in each path of a closure, by its name."""
_DRIVER = re.compile(r"lib(?:cuda|nvidia-[\w-]+|nvcuvid|nvoptix|cudadebugger)\.so(?:\.\d[\d.]*)?")
_STUBS = "/stubs/"
_KEEP = "keep CUDA, and what needs it, as wheels; take the package without it: nixpkgs has `config.cudaSupport = false`"


def report(trees: Trees, root: Root) -> tuple[Finding, ...]:
    """The findings of a closure; `root` are the files of all other inputs of the image."""
    found = [*_drivers(trees), *_twice(trees, root), *_unreachable(trees)]
    return tuple(sorted(found, key=lambda item: (LEVELS.index(item.level), -item.size, item.what)))


def _drivers(trees: Trees) -> Iterator[Finding]:
    for name, nodes in sorted(trees.items()):
        files = [node for node in nodes if _DRIVER.fullmatch(posixpath.basename(node.path)) and not _is_stub(node)]
        files = [node for node in files if node.kind is Kind.FILE]
        if files:
            listed = ", ".join(sorted({posixpath.basename(node.path) for node in files})[:4])
            yield Finding(
                "warning",
                "driver",
                f"{name[33:]} of Nix has libraries of NVIDIA's driver: {listed}",
                tuple(f"/nix/store/{name}/{node.path}" for node in files),
                sum(node.size for node in files),
                "leave it out: the driver of the node is put into containers, and fits no other libraries of a driver",
            )


def _twice(trees: Trees, root: Root) -> Iterator[Finding]:
    wheels: dict[str, set[str]] = defaultdict(set)
    for file in root.files.values():
        name = posixpath.basename(file.path)
        if file.kind == "wheel" and CUDA.fullmatch(name):
            wheels[stem(name)].add(file.owner)
    for name, nodes in sorted(trees.items()):
        twice = [node for node in _cuda(nodes) if stem(posixpath.basename(node.path)) in wheels]
        if twice:
            owners = sorted({owner for node in twice for owner in wheels[stem(posixpath.basename(node.path))]})
            yield Finding(
                "warning",
                "twice",
                f"{name[33:]} of Nix brings CUDA libraries that {', '.join(owners[:3])} has, too",
                tuple(f"/nix/store/{name}/{node.path}" for node in twice),
                sum(node.size for node in twice),
                _KEEP,
            )


def _unreachable(trees: Trees) -> Iterator[Finding]:
    having = sorted(name for name, nodes in trees.items() if any(_cuda(nodes)))
    if having:
        yield Finding(
            "warning",
            "driver-path",
            f"{having[0][33:]}{f' and {len(having) - 1} more' if having[1:] else ''} of Nix: CUDA of nixpkgs looks for the "
            "driver in /run/opengl-driver/lib, where a container has none",
            tuple(f"/nix/store/{name}" for name in having),
            0,
            _KEEP,
        )


def _cuda(nodes: Sequence[Node]) -> Iterator[Node]:
    for node in nodes:
        if node.kind is Kind.FILE and CUDA.fullmatch(posixpath.basename(node.path)) and not _is_stub(node):
            yield node


def _is_stub(node: Node) -> bool:
    return _STUBS in f"/{node.path}"
