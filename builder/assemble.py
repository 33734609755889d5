"""The step from a plan to images: every layer is taken from the store or packed into it, then configured and indexed."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.errors import HostileInputError, StaleLockError
from builder.fetch import Fetcher
from builder.layers.merge import CollisionError, Origin, merge
from builder.layers.pack import PackedLayer, pack
from builder.layers.tar import Entry, Inline, Kind
from builder.lock import LockedFile, LockedTemplate
from builder.oci import config, spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor, Platform
from builder.parallel import Stop, for_each
from builder.plan import FilesLayer, Layer, Plan, PlatformPlan, SystemLayer, WheelLayer, inputs
from builder.progress import Progress
from builder.soci import index, ztoc
from builder.soci.index import Converted, PlainImage
from builder.sources import local, system, wheels
from builder.sources.wheels import Compiler
from builder.store import Store


@dataclass(frozen=True)
class Folder:
    """Where the profile's own files are: the folder that their paths start from, and the rendered templates by place."""

    root: Path
    rendered: Mapping[str, bytes] = field(default_factory=dict)


@dataclass(frozen=True)
class BuiltLayer:
    """A layer in the store. `spans` counts the spans of its ztoc, 0 without one; `packed` says that it was made just now."""

    name: str
    blob: Descriptor
    diff_id: Digest
    tar_size: int
    ztoc: Descriptor | None
    spans: int
    listing: Digest
    packed: bool


@dataclass(frozen=True)
class Image:
    """The image of one platform: its layers, bottom first, and its configuration's bytes."""

    platform: Platform
    layers: tuple[BuiltLayer, ...]
    config: bytes


@dataclass(frozen=True)
class Assembled:
    """All images of a plan and the documents that bind them; `documents.top` is what a tag points at."""

    name: str
    images: tuple[Image, ...]
    documents: Converted

    def blobs(self) -> Iterator[Descriptor]:
        """Every blob that lies in the store, layers and ztocs, each once."""
        seen: set[Digest] = set()
        for layer in (layer for image in self.images for layer in image.layers):
            for descriptor in filter(None, (layer.blob, layer.ztoc)):
                if descriptor.digest not in seen:
                    seen.add(descriptor.digest)
                    yield descriptor


def assemble(plan: Plan, store: Store, fetcher: Fetcher, folder: Folder, progress: Progress, jobs: int) -> Assembled:
    """Makes every layer of the plan that the store does not have, `jobs` at a time, and the images of them.

    Inputs are read only for layers that have to be made. Raises what the inputs deserve: `FetchError`,
    `HostileInputError`, `CollisionError`, `StaleLockError`.
    """
    layers = list(dict.fromkeys(layer for platform in plan.platforms for layer in platform.layers))
    with store.in_use():
        known = {layer: _known(layer, plan, store) for layer in layers}
        missing = [layer for layer in layers if known[layer] is None]
        fetcher.ensure(_needed(missing))
        known |= _pack_all(missing, plan, store, folder, progress, jobs)
        images = tuple(_image(platform, plan, known, store) for platform in plan.platforms)
        return Assembled(plan.name, images, _documents(images, plan, store))


def known_layers(plan: Plan, store: Store) -> dict[Layer, BuiltLayer]:
    """The layers of a plan that the store has already."""
    layers = (layer for platform in plan.platforms for layer in platform.layers)
    return {layer: found for layer in layers if (found := _known(layer, plan, store))}


def _known(layer: Layer, plan: Plan, store: Store, packed: bool = False) -> BuiltLayer | None:
    """The layer out of the store's records, if it and the ztoc that the plan asks for are there, in their full size."""
    record = store.record("layer", layer.key.hex)
    if record is None:
        return None
    try:
        blob = Descriptor(spec.LAYER_GZIP, Digest.parse(record["objects"][0]), int(record["size"]))
        described, spans = None, 0
        if plan.soci.enabled and index.wants_ztoc(blob, plan.soci.min_layer_size):
            spanned = store.record("ztoc", _ztoc_key(blob.digest, plan.soci.span_size))
            if spanned is None:
                return None
            described = Descriptor(ztoc.MEDIA_TYPE, Digest.parse(spanned["objects"][0]), int(spanned["size"]))
            spans = int(spanned["spans"])
        diff_id, listing = Digest.parse(record["diff_id"]), Digest.parse(record["objects"][1])
        tar_size = int(record["tar_size"])
    except (LookupError, TypeError, ValueError):  # a record that says too little counts as absent
        return None
    if not all(store.has(item.digest, item.size) for item in (blob, described) if item):
        return None
    return BuiltLayer(layer.name, blob, diff_id, tar_size, described, spans, listing, packed)


def _ztoc_key(blob: Digest, span_size: int) -> str:
    return Digest.of(spec.encode({"layer": str(blob), "span-size": span_size})).hex


def _needed(layers: Iterable[Layer]) -> list[LockedFile]:
    """The inputs of the layers that have to be made, each once."""
    files: dict[LockedFile, None] = {}
    for layer in layers:
        if isinstance(layer, SystemLayer):
            files |= dict.fromkeys(deb.file for deb in layer.packages)
        elif isinstance(layer, WheelLayer):
            files |= dict.fromkeys(wheel.file for wheel in layer.wheels)
            files |= dict.fromkeys(deb.file for deb in layer.bytecode.packages) if layer.bytecode else {}
    return list(files)


def _pack_all(
    layers: Sequence[Layer], plan: Plan, store: Store, folder: Folder, progress: Progress, jobs: int
) -> dict[Layer, BuiltLayer]:
    """Packs layers side by side, the largest first, so that the last to end is not the longest."""
    if not layers:
        return {}
    built: dict[Layer, BuiltLayer] = {}
    by_size = sorted(layers, key=lambda layer: -sum(size for _, size in inputs(layer)))
    stop = Stop()
    with (
        _compilers(store, jobs) as compilers,
        progress.task("packing layers", None) as task,
    ):

        def advance(amount: int) -> None:
            stop.check()  # an interrupt, or a layer that failed, ends the others soon
            task.advance(amount)

        def one(layer: Layer) -> None:
            with store.locked(f"layer-{layer.key.hex}", stop.check):
                found = _known(layer, plan, store)
                if found is None:
                    _pack(layer, plan, store, folder, compilers, advance)
                    found = _known(layer, plan, store, packed=True)
            assert found, "a layer that was just packed is in the store"
            built[layer] = found

        failures = for_each(one, by_size, jobs, stop)
    if failures:
        raise failures[0]
    return built


class _Compilers:
    """One compiler for each interpreter, made when the first layer needs it."""

    def __init__(self, store: Store, executor: ThreadPoolExecutor) -> None:
        self._store, self._executor = store, executor
        self._made: dict[Digest, Compiler] = {}
        self._guard = threading.Lock()

    def of(self, layer: WheelLayer) -> Compiler | None:
        if layer.bytecode is None:
            return None
        identity = system.identity(layer.bytecode)
        with self._guard:
            if identity not in self._made:
                interpreter = system.interpreter(layer.bytecode, layer.python, self._store)
                self._made[identity] = Compiler(interpreter, identity, self._executor)
            return self._made[identity]


@contextmanager
def _compilers(store: Store, jobs: int) -> Iterator[_Compilers]:
    with ThreadPoolExecutor(max_workers=jobs) as executor:
        yield _Compilers(store, executor)


def _pack(
    layer: Layer, plan: Plan, store: Store, folder: Folder, compilers: _Compilers, advance: Callable[[int], None]
) -> None:
    """Makes one layer: its blob, its ztoc, the listing of its files, and last the records that lead to them."""
    with (
        store.temporary() as blob,
        store.temporary() as windows,
        store.workspace() as spool,
    ):
        entries = _entries(layer, store, folder, compilers, spool)
        packed = pack(entries, blob, windows, plan.soci.span_size, advance)
        store.adopt(blob, packed.digest)
        _put_ztoc(packed, plan.soci.span_size, store)
        listing = store.put(_listing(packed, entries))
    record = {
        "name": layer.name,
        "objects": [str(packed.digest), str(listing)],
        "size": packed.size,
        "diff_id": str(packed.diff_id),
        "tar_size": packed.spans.tar_size,
    }
    store.put_record("layer", layer.key.hex, record)


def _entries(layer: Layer, store: Store, folder: Folder, compilers: _Compilers, spool: Path) -> tuple[Entry, ...]:
    if isinstance(layer, SystemLayer):
        return system.entries(layer, store, spool)
    if isinstance(layer, WheelLayer):
        return wheels.entries(layer, store, compilers.of(layer))
    origins = [*local.origins(folder.root, layer.files), *(_rendered(item, folder) for item in layer.templates)]
    try:
        return merge(origins)
    except HostileInputError as error:
        raise StaleLockError(str(error)) from error


def _rendered(template: LockedTemplate, folder: Folder) -> Origin:
    data = folder.rendered[template.to]
    if Digest.of(data).hex != template.sha256:
        raise StaleLockError(f"{template.source} renders to other text than when it was locked")
    entry = Entry(local.image_path(template.to), mode=int(template.mode, 8), content=Inline(data))
    return Origin(template.source, (entry,))


def _put_ztoc(packed: PackedLayer, span_size: int, store: Store) -> None:
    with store.temporary() as path:
        with path.open("wb") as out:
            described = ztoc.write(packed.spans, out)
        store.adopt(path, described.digest)
    record = {"objects": [str(described.digest)], "size": described.size, "spans": len(packed.spans.checkpoints)}
    store.put_record("ztoc", _ztoc_key(packed.digest, span_size), record)


def _listing(packed: PackedLayer, entries: Sequence[Entry]) -> bytes:
    """The layer's files for the comparison with other layers: path, kind, mode, size, CRC-32 or link."""
    rows = [
        [entry.path, entry.kind.value, entry.mode, entry.size, crc32 if entry.kind is Kind.FILE else entry.linkname]
        for entry, crc32 in zip(entries, packed.crc32s, strict=True)
    ]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()


def _image(platform: PlatformPlan, plan: Plan, known: Mapping[Layer, BuiltLayer | None], store: Store) -> Image:
    layers = tuple(found for layer in platform.layers if (found := known[layer]))
    _check_collisions(platform, layers, store)
    history = [f"layerwright: {layer.name}" for layer in layers]
    document = config.image_config(
        platform.platform, plan.created, platform.config, [layer.diff_id for layer in layers], history
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
    for planned, layer in zip(platform.layers, layers, strict=True):
        for row in json.loads(store.path(layer.listing).read_bytes()):
            other = found.get(row[0])
            if other and other[0][1:] != row[1:]:
                _check_replaced(other, row, layer.name, isinstance(planned, FilesLayer))
            found[row[0]] = (row, layer.name)
    store.put_record("combination", key, {"layers": [layer.name for layer in layers]})


def _check_replaced(other: tuple[list[Any], str], row: list[Any], name: str, may_replace: bool) -> None:
    (path, kind, *_), below = other
    if kind == row[1] == Kind.DIR or (may_replace and Kind.DIR not in (kind, row[1])):
        return
    if kind != row[1] and Kind.DIR in (kind, row[1]):
        raise CollisionError(f"/{path} is a {kind} in the layer {below} and a {row[1]} in the layer {name}")
    raise CollisionError(f"the layers {below} and {name} both bring /{path}, with different content")


def _documents(images: Sequence[Image], plan: Plan, store: Store) -> Converted:
    plain = []
    for image in images:
        described = Descriptor(spec.CONFIG, store.put(image.config), len(image.config))
        layers = tuple(index.Layer(layer.blob, layer.ztoc) for layer in image.layers)
        plain.append(PlainImage(image.platform, described, layers, plan.soci.span_size))
    return index.convert(plain)
