"""The step from a plan to images: every layer is taken from the store or packed into it, then configured and indexed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from builder.base.tree import Tree
from builder.image import Assembled, BuiltLayer, Image
from builder.layers.merge import CollisionError
from builder.layers.tar import Kind
from builder.lock import LockedFile, LockedTemplate
from builder.oci import config, spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.packing import UNITS, Folder, Packer, limit_compilers
from builder.plan import BaseLayer, FilesLayer, Layer, Plan, PlatformPlan, files, inputs, weight
from builder.progress import Progress
from builder.soci import index, mounting
from builder.soci.index import Converted, PlainImage
from builder.store import Store, collect

_MOST_PROCESSES = 4
"""Each takes tens of MiB; all of a build together stay below 200 MiB."""
_WORTH_PROCESSES = 8 << 20
"""Below so many bytes of input, packing takes less time than starting processes for it."""


class Fetcher(Protocol):
    """Brings files of a lock into the store, checked."""

    def ensure(self, files: Iterable[LockedFile]) -> None: ...


Engine = Callable[[Sequence[Layer], int, Store, Callable[[Iterable[LockedFile]], None]], None]
"""Brings layers into the store, as many of them as it can or likes to; it is given the size of spans, and what brings files."""


def assemble(
    plan: Plan,
    store: Store,
    fetcher: Fetcher,
    folder: Folder,
    progress: Progress,
    jobs: int,
    ready: Callable[[BuiltLayer], None] = lambda _: None,
    engine: Engine | None = None,
    bring: Callable[[Sequence[Layer]], None] = lambda _: None,
) -> Assembled:
    """Makes every layer of the plan that the store does not have, `jobs` at a time, and the images of them.

    `ready` is called with every layer as soon as it is in the store; it may start threads. Inputs are read only for
    layers that have to be made; `bring` is told of these before, and may put some into the store, and then an `engine` is
    asked for the rest. What neither brings is packed here. Raises what the inputs deserve: `FetchError`, `HostileInputError`,
    `CollisionError`, `StaleLockError`.
    """
    layers = list(dict.fromkeys(layer for platform in plan.platforms for layer in platform.layers))
    with store.in_use():
        packer = Packer(store.root, folder, plan.soci)
        known = {layer: packer.known(layer, store) for layer in layers}
        missing = [layer for layer in layers if known[layer] is None]
        if missing:
            bring(missing)
            known |= {layer: packer.known(layer, store) for layer in missing}
            missing = [layer for layer in missing if known[layer] is None]
        if engine and missing:
            engine(missing, plan.soci.span_size, store, fetcher.ensure)
            known |= {layer: packer.known(layer, store, packed=True) for layer in missing}
            missing = [layer for layer in missing if known[layer] is None]
        fetcher.ensure(dict.fromkeys(file for layer in missing for file in files(layer)))
        there = [found for found in known.values() if found]
        told = (lambda layer: ready(replace(layer, ztoc=None))) if plan.soci.spans else ready
        try:
            known |= _pack_all(missing, packer, progress, jobs, there, told)
            images = tuple(
                _image(
                    platform, plan, _adapted(platform, known, plan, folder, store, progress), folder, store, progress
                )
                for platform in plan.platforms
            )
        except BaseException:
            collect.sweep(store)
            raise
        return Assembled(plan.name, images, _documents(images, plan, folder, store))


def _adapted(
    platform: PlatformPlan,
    known: Mapping[Layer, BuiltLayer | None],
    plan: Plan,
    folder: Folder,
    store: Store,
    progress: Progress,
) -> Mapping[Layer, BuiltLayer | None]:
    """The layers of a platform, with adaptive spans where they are asked for and it is known what its start reads."""
    if not plan.soci.spans or platform.reads is None:
        return known
    from builder import adaptive  # few images have them

    built = [layer for planned in platform.layers if (layer := known[planned])]
    found = adaptive.adapted(built, folder.text(platform.reads), plan.soci, store, progress)
    return {planned: found[layer.blob.digest] for planned in platform.layers if (layer := known[planned])}


def known_layers(plan: Plan, store: Store) -> dict[Layer, BuiltLayer]:
    """The layers of a plan that the store has already."""
    packer = Packer(store.root, Folder(Path()), plan.soci)
    layers = (layer for platform in plan.platforms for layer in platform.layers)
    return {layer: found for layer in layers if (found := packer.known(layer, store))}


def _pack_all(
    layers: Sequence[Layer],
    packer: Packer,
    progress: Progress,
    jobs: int,
    there: Sequence[BuiltLayer],
    ready: Callable[[BuiltLayer], None],
) -> dict[Layer, BuiltLayer]:
    """Packs layers side by side, those that take longest first, so that the last to end is not the longest."""
    ordered = sorted(layers, key=weight, reverse=True)

    def started() -> None:
        for layer in there:
            ready(layer)

    total = sum(size for layer in layers for _, size in inputs(layer))
    with progress.task("pack layers", total) as task:
        if sum(weight(layer) for layer in layers) < _WORTH_PROCESSES or jobs == 1:
            started()
            packed = {}
            for layer in ordered:
                packed[layer] = packer(layer, task.advance)
                ready(packed[layer])
            return packed
        from builder import workers  # takes long to import

        processes = min(jobs, _MOST_PROCESSES)
        built = workers.run(
            packer, ordered, processes, task.advance, limit_compilers, (UNITS, 1), started=started, done=ready
        )
        return dict(zip(ordered, built, strict=True))


def _image(
    platform: PlatformPlan,
    plan: Plan,
    known: Mapping[Layer, BuiltLayer | None],
    folder: Folder,
    store: Store,
    progress: Progress,
) -> Image:
    layers = tuple(found for layer in platform.layers if (found := known[layer]))
    _check_collisions(platform, layers, store)
    if platform.reads:
        from builder import readahead  # few images have a trace

        if told := readahead.missing(folder.text(platform.reads), layers, platform.reads.source, store):
            progress.note(told)
    own = [layer.name for layer in platform.layers if not isinstance(layer, BaseLayer)]
    document = config.image_config(
        platform.platform,
        plan.created,
        platform.config,
        [layer.diff_id for layer in layers],
        [f"layerwright: {name}" for name in own],
        platform.base.more if platform.base else None,
        platform.base.history if platform.base else (),
    )
    return Image(platform.platform, layers, document)


def _check_collisions(platform: PlatformPlan, layers: Sequence[BuiltLayer], store: Store) -> None:
    """Files of one path in two layers have to be the same, but for the profile's own files, which replace others.

    A combination of layers that was found good is remembered.
    """
    key = Digest.of(spec.encode({"layers": [str(layer.diff_id) for layer in layers]})).hex
    if store.record("combination", key) is not None:
        return
    found: dict[str, tuple[list[Any], str]] = {}
    below = Tree()
    for planned, layer in zip(platform.layers, layers, strict=True):
        if isinstance(planned, BaseLayer):
            below.add(json.loads(store.read(layer.listing)))
            continue
        for row in json.loads(store.read(layer.listing)):
            other = found.get(row[0]) or _below(below, row[0])
            if other and other[0][1:] != row[1:]:
                _check_replaced(other, row, layer.name, isinstance(planned, FilesLayer))
            found[row[0]] = (row, layer.name)
    store.put_record("combination", key, {"layers": [layer.name for layer in layers]})


def _below(tree: Tree, path: str) -> tuple[list[Any], str] | None:
    """What the base image has there, as a row of a listing."""
    node = tree.at(path)
    if node is None:
        return None
    kind = Kind.DIR if node.type == "dir" else Kind.SYMLINK if node.type == "symlink" else Kind.FILE
    return [path, kind, node.mode, node.size, node.link], "the base image"


def _check_replaced(other: tuple[list[Any], str], row: list[Any], name: str, may_replace: bool) -> None:
    (path, kind, *_), below = other
    if kind == row[1] == Kind.DIR or (may_replace and Kind.DIR not in (kind, row[1])):
        return
    if kind != row[1] and Kind.DIR in (kind, row[1]):
        raise CollisionError(f"/{path} is a {kind} in the layer {below} and a {row[1]} in the layer {name}")
    raise CollisionError(f"the layers {below} and {name} both bring /{path}, with different content")


def _prefetched(image: Image, reads: LockedTemplate | None, folder: Folder, store: Store) -> Mapping[Digest, bytes]:
    """The prefetch artifacts of an image's layers, where it is known what its start reads."""
    if reads is None:
        return {}
    from builder import prefetch  # few images have them

    return prefetch.prefetched(image.layers, folder.text(reads), store)


def _documents(images: Sequence[Image], plan: Plan, folder: Folder, store: Store) -> Converted:
    plain = []
    for image, platform in zip(images, plan.platforms, strict=True):
        artifacts = _prefetched(image, platform.reads, folder, store) if plan.soci.prefetch else {}
        described = Descriptor(spec.CONFIG, store.put(image.config), len(image.config))
        parallel = plan.soci.mount == "parallel"
        layers = tuple(
            index.Layer(layer.blob, layer.ztoc, artifacts.get(layer.blob.digest), parallel and _bare(layer.ztoc, store))
            for layer in image.layers
        )
        annotations = dict(plan.annotations) | dict(platform.annotations)
        plain.append(PlainImage(image.platform, described, layers, plan.soci.span_size, annotations, parallel))
    return index.convert(plain, unlisted=plan.soci.platform == "unknown")


def _bare(ztoc: Descriptor | None, store: Store) -> bool:
    """Whether the layer of this ztoc has no extended attributes. It is remembered: all of the ztoc has to be looked through."""
    if ztoc is None:
        return False
    known = (store.record("bare", ztoc.digest.hex) or {}).get("bare")
    if isinstance(known, bool):
        return known
    with store.mapped(ztoc.digest) as data:
        found = mounting.without_xattrs(data)
    store.put_record("bare", ztoc.digest.hex, {"bare": found})
    return found
