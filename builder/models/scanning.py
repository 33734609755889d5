"""Files on this disk, read once: their sha256, that of each chunk, and their headers; kept in the store for the next time."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import BinaryIO

from builder.errors import BuilderError, StoreError
from builder.models import index as indexes
from builder.models.cuts import cuts
from builder.models.formats import format_of, read_header
from builder.models.values import CHUNK_SIZE, FileIndex, LocalModelFile, ModelFile, ModelIndex
from builder.parallel import Stop, for_each
from builder.progress import Progress
from builder.store import Store

_KIND = "model-file"
_WORTH_KEEPING = 1 << 20
_MOST_READERS = 4
_RECORDS = 1
"""Raised when headers are read in another way, so that what was kept is forgotten."""


class ChangedFileError(BuilderError):
    """A file of a model is not what it was a moment ago, or cannot be read."""

    hint = "wait until nothing writes to it, and run the same command again"


def model_index(
    files: Sequence[LocalModelFile],
    store: Store | None,
    progress: Progress,
    jobs: int = 4,
    stop: Stop | None = None,
    early: Callable[[Path], None] = lambda _: None,
) -> ModelIndex:
    """The index of files whose digests are known; those that the store remembers are not read, of others `early` is told first.

    Raises `ChangedFileError` where the bytes are not those of the digest, and `HeaderError` for a header that lies.
    """
    found = {local.file: known(store, local.file) for local in files}
    missing = [local for local in files if found[local.file] is None]
    if missing:
        with progress.task("index model", sum(local.file.size for local in missing)) as task:

            def index(local: LocalModelFile) -> None:
                early(local.location)
                scanned = scan(local.location, local.file.path, task.advance, stop)
                if scanned.file != local.file:
                    raise ChangedFileError(f"{local.location}: its bytes are not those of sha256:{local.file.sha256}")
                remember(store, scanned)
                found[local.file] = scanned

            for error in for_each(index, missing, min(jobs, readers()), Stop(stop)):
                raise error
    return ModelIndex(tuple(each for file in sorted(found) if (each := found[file]) is not None))


def readers() -> int:
    """How many files are scanned at once at best: each keeps two processors busy, and more wait for one another."""
    return min(_MOST_READERS, max(1, len(os.sched_getaffinity(0)) // 2))


def scan(
    location: Path, name: str, advance: Callable[[int], None] = lambda _: None, stop: Stop | None = None
) -> FileIndex:
    """What the file at `location` is, named `name`: digest, chunks, and its header if its format is understood.

    One pass over its bytes, in 9 MiB of memory beside the header. Raises `ChangedFileError` if somebody writes to it meanwhile.
    """
    try:
        with location.open("rb", buffering=0) as file:
            before = _state(file)
            header = read_header(location, name)
            offsets = cuts(before[0], CHUNK_SIZE, header)
            sha256, chunks = _hashed(file, offsets, advance, stop)
            if _state(file) != before or file.read(1):
                raise ChangedFileError(f"{location}: it changes while it is read")
    except OSError as error:
        raise ChangedFileError(f"{location}: cannot be read: {error.strerror}", hint="make it readable") from error
    return FileIndex(ModelFile(name, before[0], sha256), CHUNK_SIZE, chunks, header)


def known(store: Store | None, file: ModelFile) -> FileIndex | None:
    """What the store remembers of a file's bytes, under whatever name they were scanned."""
    if store is None:
        return None
    try:
        found = indexes.file_index((store.record(_KIND, _key(file)) or {}).get("file"))
    except (StoreError, ValueError, TypeError, KeyError, RecursionError):
        return None
    if (found.file.size, found.file.sha256, found.chunk_size) != (file.size, file.sha256, CHUNK_SIZE):
        return None
    return FileIndex(file, found.chunk_size, found.chunks, found.header)


def remember(store: Store | None, scanned: FileIndex) -> None:
    """Keeps what a scan found, unless the file is so small that it is read sooner; a store that cannot be written keeps nothing."""
    if store is not None and scanned.file.size >= _WORTH_KEEPING:
        try:
            store.put_record(_KIND, _key(scanned.file), {"file": indexes.document(scanned)})
        except StoreError:
            return


def _key(file: ModelFile) -> str:
    """One for each digest and way of reading the header, which the name's ending decides."""
    return f"{_RECORDS}-{file.sha256}-{format_of(file.path) or 'plain'}"


def _hashed(
    file: BinaryIO, offsets: Sequence[int], advance: Callable[[int], None], stop: Stop | None
) -> tuple[str, tuple[str, ...]]:
    """The digest of all of it, and of the chunks between the offsets: these on a second thread, from the same bytes, while a third
    one reads the next chunk."""
    whole, chunks, count = hashlib.sha256(), [], len(offsets) - 1
    buffers = [memoryview(bytearray(min(CHUNK_SIZE, offsets[-1]))) for _ in range(2 if count > 1 else 1)]
    if count <= 1:
        if not _fill(file, buffers[0]):
            raise _shorter(file)
        advance(len(buffers[0]))
        digest = _sha256(buffers[0])
        return digest, (digest,) * count
    with ThreadPoolExecutor(2) as others:

        def read(number: int) -> tuple[memoryview, Future[bool]]:
            chunk = buffers[number % 2][: offsets[number + 1] - offsets[number]]
            return chunk, others.submit(_fill, file, chunk)

        following = read(0)
        for number in range(1, count + 1):
            chunk, filled = following
            if stop:
                stop.check()
            if not filled.result():
                raise _shorter(file)
            if number < count:
                following = read(number)
            hashing = others.submit(_sha256, chunk)
            whole.update(chunk)
            chunks.append(hashing.result())
            advance(len(chunk))
    return whole.hexdigest(), tuple(chunks)


def _shorter(file: BinaryIO) -> ChangedFileError:
    return ChangedFileError(f"{file.name}: it became shorter while it is read")


def _sha256(data: memoryview) -> str:
    return hashlib.sha256(data).hexdigest()


def _fill(file: BinaryIO, buffer: memoryview) -> bool:
    at = 0
    while at < len(buffer):
        count = file.readinto(buffer[at:])  # type: ignore[attr-defined]
        if not count:
            return False
        at += count
    return True


def _state(file: BinaryIO) -> tuple[int, int, int, int]:
    found = os.fstat(file.fileno())
    return found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino
