"""One entry of a layer cache goes into the store: its bytes by their digests, and the records that lead to them."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass
from pathlib import Path

from builder.baseimage import COMPRESSIONS
from builder.layercache.entry import CachedZtoc, LyingCacheError, Record, rows_of
from builder.layercache.memory import ORIGIN
from builder.layers import foreign
from builder.layers.stream import LayerError
from builder.lock import SociSettings
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.packing import Folder, Packer, ztoc_key
from builder.parallel import Stop
from builder.plan import Layer, WheelLayer, has_table, inputs, media_type
from builder.progress import human_size
from builder.registry import Repository
from builder.sbom.licences import RECORD as LICENCE
from builder.soci import index, read
from builder.store import Store, free_bytes, partial_lock

_GROWTH, _ROOM = 16, 256 << 20


def small(repository: Repository, descriptor: Descriptor) -> bytes:
    """The bytes of a blob that is no layer, checked."""
    with repository.blob(descriptor) as stream:
        return stream.read(descriptor.size + 1)


@dataclass(frozen=True)
class Taker:
    """Takes layers from the repository of a `cache`. If it is `thorough`, it reads a layer to its end and makes its ztoc itself,
    and believes neither what the record says of the tar nor its ztocs. `busy` surrounds what moves no bytes of the
    repository."""

    cache: str
    repository: Repository
    store: Store
    soci: SociSettings
    thorough: bool
    stop: Stop
    busy: Callable[[], AbstractContextManager[object]]

    def take(self, layer: Layer, record: Record) -> None:
        """The layer is in the store afterwards as if it had been packed here.

        Raises `LyingCacheError` where it is not what its record says, `FetchError`, and `StoreError`.
        """
        if record.blob.media_type != media_type(layer):
            raise LyingCacheError(f"it is of the type {record.blob.media_type}")
        if has_table(layer) != bool(record.table):
            raise LyingCacheError(f"it {'has no table, as eStargz has' if has_table(layer) else 'is of eStargz'}")
        self._check_size(layer, record)
        listing = small(self.repository, record.listing)
        rows_of(listing)
        self._bring(record.blob)
        self._ztoc(record)
        store = self.store
        for sha256, told in record.licences:
            if isinstance(layer, WheelLayer) and any(wheel.file.sha256 == sha256 for wheel in layer.wheels):
                store.put_record(LICENCE, sha256, told)
        document = {
            "name": layer.name,
            "objects": [str(record.blob.digest), str(store.put(listing))],
            "size": record.blob.size,
            "diff_id": str(record.diff_id),
            "tar_size": record.tar_size,
            **({"table": str(record.table)} if record.table else {}),
            ORIGIN: self.cache,
        }
        store.put_record("layer", layer.key.hex, document)

    def _check_size(self, layer: Layer, record: Record) -> None:
        """No lie fills the disk: layers are about as large as what goes into them."""
        size = sum(descriptor.size for descriptor in record.blobs)
        if size > _ROOM + _GROWTH * sum(amount for _, amount in inputs(layer)):
            raise LyingCacheError(f"it has {human_size(size)}, more than its inputs can become")
        if size > free_bytes(self.store.root):
            raise LyingCacheError(f"it has {human_size(size)}, and the disk has no room for that")

    def _bring(self, descriptor: Descriptor) -> None:
        """A blob is in the store; where another process fetches it already, its end is waited for."""
        digest, store = descriptor.digest, self.store
        with ExitStack() as stack:
            with self.busy():
                stack.enter_context(store.locked(partial_lock(digest), self.stop.check))
            if store.has(digest, descriptor.size):
                return
            path = store.partial(digest)
            with store.explained():
                self.repository.download(descriptor, path)
                store.adopt(path, digest)

    def _ztoc(self, record: Record) -> None:
        wanted = self.soci.enabled and index.wants_ztoc(record.blob, self.soci.min_layer_size)
        made = next((one for one in record.ztocs if one.span_size == self.soci.span_size), None)
        if wanted and made and not self.thorough:
            self._bring(made.descriptor)
            self._check_ztoc(record, made)
            document = {"objects": [str(made.digest)], "size": made.size, "spans": made.spans}
            self.store.put_record("ztoc", ztoc_key(record.blob.digest, made.span_size), document)
        elif wanted or self.thorough:
            with self.busy():
                self._scan(record, wanted)

    def _check_ztoc(self, record: Record, made: CachedZtoc) -> None:
        try:
            with self.store.mapped(made.digest) as data:
                found = read.decode(data)
                told = (found.blob_size, found.tar_size, found.span_size, len(found.checkpoints))
                del found
        except ValueError as error:
            raise LyingCacheError(f"its ztoc cannot be read: {error}") from error
        if told != (record.blob.size, record.tar_size, made.span_size, made.spans):
            raise LyingCacheError("its ztoc is that of another layer")

    def _check_table(self, record: Record, table: Digest) -> None:
        from builder.layers import tablecheck  # few layers have one

        with self.store.path(record.blob.digest).open("rb") as blob:
            for fault in tablecheck.faults(blob, table, self.stop.check):
                raise LyingCacheError(fault.message)

    def _scan(self, record: Record, wanted: bool) -> None:
        """Reads the layer to its end, checks what is said of it, and makes its ztoc."""
        store = self.store
        with store.temporary() as windows, store.path(record.blob.digest).open("rb") as blob:
            try:
                scanned = foreign.scan(
                    blob,
                    COMPRESSIONS[record.blob.media_type],
                    windows,
                    self.soci.span_size,
                    lambda _: self.stop.check(),
                )
            except LayerError as error:
                raise LyingCacheError(f"it is no layer: {error}") from error
            if (scanned.figures.diff_id, scanned.figures.tar_size) != (record.diff_id, record.tar_size):
                raise LyingCacheError("its tar is another one than its record says")
            if record.table:
                self._check_table(record, record.table)
            if not wanted:
                return
            if scanned.spans is None:
                raise LyingCacheError(f"it can have no ztoc: {scanned.why_whole}")
            Packer(store.root, Folder(Path()), self.soci).put_ztoc(record.blob.digest, scanned.spans, store)
