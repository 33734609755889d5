"""One planned layer goes into the store: its blob, its ztoc, the list of its files, and the records that lead to them."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from builder.baseimage import LockedFolder
from builder.errors import BuilderError, HostileInputError, StaleLockError, StoreError
from builder.image import BuiltLayer
from builder.layers.member import GzipMember
from builder.layers.merge import Origin, merge
from builder.layers.pack import Open, PackedLayer, pack
from builder.layers.spans import LayerSpans
from builder.layers.tar import BLOCK, Entry, Inline, Kind
from builder.lock import LockedTemplate, SociSettings
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.plan import (
    BaseLayer,
    EnvironmentLayer,
    FilesLayer,
    Layer,
    LinksLayer,
    NixLayer,
    SystemLayer,
    WheelLayer,
    files,
    has_table,
    inputs,
    media_type,
)
from builder.soci import index, ztoc
from builder.sources import local
from builder.store import Store

if TYPE_CHECKING:
    from builder.sources.bytecode import Limit

COMPILERS_MEMORY = 72 << 20
_UNIT = 4 << 20
UNITS = COMPILERS_MEMORY // _UNIT
_limit: Limit = lambda memory: nullcontext()  # noqa: E731


@dataclass(frozen=True)
class Folder:
    """Where the profile's own files are: the folder that their paths start from, and the rendered templates by place."""

    root: Path
    rendered: Mapping[str, bytes] = field(default_factory=dict)

    def text(self, template: LockedTemplate) -> bytes:
        """The rendered text that the lock has the digest of. Raises `StaleLockError` if there is none."""
        # A base image may have sent it elsewhere than the profile says: then its bytes tell which one it is.
        texts = self.rendered
        data = texts.get(template.to) or next((text for text in texts.values() if _is(text, template)), None)
        if data is None or not _is(data, template):
            raise StaleLockError(f"{template.source} renders to other text than when it was locked")
        return data


@dataclass(frozen=True)
class Packer:
    """Packs layers, in whichever process it finds itself. Calling it makes the layer, unless somebody else just did."""

    store: Path
    folder: Folder
    soci: SociSettings

    def __call__(self, layer: Layer, advance: Callable[[int], None]) -> BuiltLayer:
        store = Store(self.store)
        with store.locked(f"layer-{layer.key.hex}", lambda: advance(0)):
            found = self.known(layer, store)
            if found is None:
                self._pack(layer, store, advance)
                found = self.known(layer, store, packed=True)
        assert found, "a layer that was just packed is in the store"
        return found

    def known(self, layer: Layer, store: Store, packed: bool = False) -> BuiltLayer | None:
        """The layer out of the store's records, if it and the ztoc that is asked for are there, in their full size."""
        if isinstance(layer, BaseLayer):
            return self._known_base(layer, store, packed)
        record = store.record("layer", layer.key.hex)
        if record is None:
            return None
        try:
            blob = Descriptor(media_type(layer), Digest.parse(record["objects"][0]), int(record["size"]))
            diff_id, listing = Digest.parse(record["diff_id"]), Digest.parse(record["objects"][1])
            tar_size = int(record["tar_size"])
            if has_table(layer):
                from builder.layers import estargz  # few images are of it

                blob = replace(blob, annotations=estargz.labels(Digest.parse(record["table"]), tar_size))
                if not store.has(blob.digest, blob.size):
                    return None
                return BuiltLayer(layer.name, blob, diff_id, tar_size, None, 0, listing, packed)
            found = self._ztoc(blob, store)
            if found is None:
                return None
            described, spans = found
        except (LookupError, TypeError, ValueError):  # a record that says too little counts as absent
            return None
        if not all(store.has(item.digest, item.size) for item in (blob, described) if item):
            return None
        return BuiltLayer(layer.name, blob, diff_id, tar_size, described, spans, listing, packed)

    def _ztoc(self, blob: Descriptor, store: Store) -> tuple[Descriptor | None, int] | None:
        """The ztoc that a layer has to have, and the number of its spans; None where the store lacks it."""
        if not (self.soci.enabled and index.wants_ztoc(blob, self.soci.min_layer_size)):
            return None, 0
        record = store.record("ztoc", ztoc_key(blob.digest, self.soci.span_size))
        if record is None:
            return None
        described = Descriptor(ztoc.MEDIA_TYPE, Digest.parse(record["objects"][0]), int(record["size"]))
        return (described, int(record["spans"])) if store.has(described.digest, described.size) else None

    def _known_base(self, layer: BaseLayer, store: Store, packed: bool) -> BuiltLayer | None:
        from builder.base import scan

        found = scan.known(layer, store, packed)
        if found is None or found.whole:
            return found
        spanned = self._ztoc(found.blob, store)
        return replace(found, ztoc=spanned[0], spans=spanned[1]) if spanned else None

    def _pack(self, layer: Layer, store: Store, advance: Callable[[int], None]) -> None:
        if isinstance(layer, BaseLayer):
            from builder.base import scan

            scan.make(layer, store, self.soci, lambda digest, spans: self.put_ztoc(digest, spans, store), advance)
            return
        with store.temporary() as blob, store.temporary() as windows, store.workspace() as spool:
            try:
                entries, first = self._in_order(layer, self._entries(layer, store, spool), store)
                scaled = _Scaled(layer, entries, advance)
                if has_table(layer):
                    packed = _with_table(layer, entries, first, blob, scaled)
                else:
                    packed = pack(entries, blob, windows, self.soci.span_size, scaled, _sink(layer))
            except (BuilderError, FileNotFoundError) as error:
                raise _explained(error, layer, store) from error
            store.adopt(blob, packed.digest)
            if packed.spans.checkpoints:
                self.put_ztoc(packed.digest, packed.spans, store)
            listing = store.put(_listing(packed, entries))
        record = {
            "name": layer.name,
            "objects": [str(packed.digest), str(listing)],
            "size": packed.size,
            "diff_id": str(packed.diff_id),
            "tar_size": packed.spans.tar_size,
            **({"table": str(packed.table)} if packed.table else {}),
        }
        store.put_record("layer", layer.key.hex, record)

    def _in_order(self, layer: Layer, entries: tuple[Entry, ...], store: Store) -> tuple[tuple[Entry, ...], int]:
        """The entries with what a start reads first, if there is an order, and how many are to be fetched in one go."""
        if not isinstance(layer, SystemLayer | WheelLayer) or layer.order is None:
            return entries, 0
        from builder.sources import startorder  # few images have an order

        reads = self.folder.text(layer.order.reads)
        if not has_table(layer):
            return startorder.ordered(layer, entries, reads, store), 0
        from builder.layers import estargz

        return estargz.prefetching(entries, startorder.first(layer, entries, reads, store))

    def _entries(self, layer: Layer, store: Store, spool: Path) -> tuple[Entry, ...]:
        if isinstance(layer, SystemLayer):
            from builder.sources import system  # what only packing needs takes long to import

            return system.entries(layer, store, spool)
        if isinstance(layer, WheelLayer):
            return _wheels(layer, store)
        if isinstance(layer, LinksLayer):
            from builder.sources import wheels

            return wheels.links(layer, store)
        if isinstance(layer, NixLayer):
            from builder.sources import nixpaths

            return _owned(nixpaths.entries(layer, store), layer.folders)
        if isinstance(layer, EnvironmentLayer):
            from builder.sources import system

            return merge([Origin("the environment", system.skeleton(layer.executable, layer.python))])
        assert isinstance(layer, FilesLayer)
        origins = [*local.origins(self.folder.root, layer.files), *(self._rendered(item) for item in layer.templates)]
        return _owned(merge(origins), layer.folders)

    def _rendered(self, template: LockedTemplate) -> Origin:
        data = self.folder.text(template)
        entry = Entry(local.image_path(template.to), mode=int(template.mode, 8), content=Inline(data))
        return Origin(template.source, (entry,))

    def put_ztoc(self, blob: Digest, spans: LayerSpans, store: Store) -> None:
        """The ztoc of a layer's spans is in the store afterwards, and is found there."""
        with store.temporary() as path:
            with path.open("wb") as out:
                described = ztoc.write(spans, out)
            store.adopt(path, described.digest)
        record = {"objects": [str(described.digest)], "size": described.size, "spans": len(spans.checkpoints)}
        store.put_record("ztoc", ztoc_key(blob, self.soci.span_size), record)


def _with_table(
    layer: Layer, entries: Sequence[Entry], first: int, blob: Path, advance: Callable[[int], None]
) -> PackedLayer:
    from builder.layers import estargz  # few images are of it

    if not isinstance(layer, BaseLayer) and layer.compression:
        estargz.check_rules(layer.compression.version)
    return estargz.pack(entries, blob, advance, prefetched=first)


def _sink(layer: Layer) -> Open:
    """What writes the blob of a layer."""
    if isinstance(layer, BaseLayer) or layer.compression is None:
        return GzipMember
    from builder.layers.plain import TarBlob  # few images need it

    if layer.compression.kind == "none":
        return TarBlob
    from builder.layers import zstd

    return partial(TarBlob, compress=zstd.encoder(layer.compression.version, layer.compression.level or 0))


def _is(text: bytes, template: LockedTemplate) -> bool:
    return Digest.of(text).hex == template.sha256


def _owned(entries: Sequence[Entry], as_below: Sequence[LockedFolder]) -> tuple[Entry, ...]:
    """The entries, with folders as the base image has them."""
    folders = {folder.real.lstrip("/"): folder for folder in as_below}
    return tuple(
        replace(entry, mode=int(folder.mode, 8), uid=folder.uid, gid=folder.gid)
        if entry.kind is Kind.DIR and (folder := folders.get(entry.path))
        else entry
        for entry in entries
    )


class _Scaled:
    """Turns bytes of a layer's tar into bytes of its inputs, which are known before anything is unpacked."""

    def __init__(self, layer: Layer, entries: Sequence[Entry], advance: Callable[[int], None]) -> None:
        self._total = sum(size for _, size in inputs(layer))
        self._tar = sum(entry.size + BLOCK for entry in entries) + 1
        self._advance = advance
        self._passed = self._told = 0

    def __call__(self, amount: int) -> None:
        self._passed += amount
        reached = min(self._total, self._total * self._passed // self._tar)
        self._advance(reached - self._told)
        self._told = reached


class MemoryLimit:
    """Lets interpreters run, in whatever process, as long as they need no more than `COMPILERS_MEMORY` together.

    `units` is a semaphore of `UNITS`, `queue` one of 1: who waits for many units is not overtaken for ever.
    """

    def __init__(self, units: AbstractContextManager[object], queue: AbstractContextManager[object]) -> None:
        self._units, self._queue = units, queue

    @contextmanager
    def __call__(self, memory: int) -> Iterator[None]:
        with ExitStack() as stack:
            with self._queue:
                for _ in range(min(UNITS, -(-memory // _UNIT))):
                    stack.enter_context(self._units)
            yield


def limit_compilers(units: AbstractContextManager[object], queue: AbstractContextManager[object]) -> None:
    """Gives this process the semaphores that all workers share."""
    global _limit
    _limit = MemoryLimit(units, queue)


def _wheels(layer: WheelLayer, store: Store) -> tuple[Entry, ...]:
    from builder.sources import system, wheels

    with ExitStack() as stack:
        compiler = None
        if layer.bytecode:
            interpreter = system.interpreter(layer.bytecode, layer.python, store)
            threads = len(os.sched_getaffinity(0)) if len(layer.wheels) == 1 else 2  # the largest wheel is waited for
            executor = stack.enter_context(ThreadPoolExecutor(threads))
            compiler = wheels.Compiler(interpreter, system.identity(layer.bytecode), executor, _limit)
        return wheels.entries(layer, store, compiler)


def ztoc_key(blob: Digest, span_size: int) -> str:
    """The key of the record `ztoc` of a blob."""
    return Digest.of(spec.encode({"layer": str(blob), "span-size": span_size})).hex


def _explained(error: BuilderError | FileNotFoundError, layer: Layer, store: Store) -> BuilderError:
    """What does not look right may be no fault of whoever made it: the profile's own files are not hostile, they were
    changed; and the store's disk may have lost a byte, or a file, since it was fetched."""
    if isinstance(error, FileNotFoundError):
        gone = f"{error.filename} is gone"
        hint = "run the same command again: it is fetched anew"
        return StaleLockError(gone) if isinstance(layer, FilesLayer) else StoreError(gone, hint=hint)
    if isinstance(layer, FilesLayer) and isinstance(error, HostileInputError):
        return StaleLockError(str(error))
    if damaged := [file.path for file in dict.fromkeys(files(layer)) if not store.verify(file.digest)]:
        return StoreError(
            f"{', '.join(damaged)}: damaged in the store {store.root}",
            hint="run the same command again: what is damaged is fetched anew",
        )
    return error


def _listing(packed: PackedLayer, entries: Sequence[Entry]) -> bytes:
    """The layer's files for the comparison with other layers: path, kind, mode, size, CRC-32 or link."""
    rows = [
        [entry.path, entry.kind.value, entry.mode, entry.size, crc32 if entry.kind is Kind.FILE else entry.linkname]
        for entry, crc32 in zip(entries, packed.crc32s, strict=True)
    ]
    return json.dumps(rows, separators=(",", ":"), ensure_ascii=False).encode()
