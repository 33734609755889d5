"""Chunks of a model's files, from where the model is: in parallel ranges, each checked before anybody can read it."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Protocol, runtime_checkable

from builder.errors import BuilderError
from builder.models.cuts import cuts
from builder.models.filling import Filling
from builder.models.values import CHUNK_SIZE, FileIndex, ModelFile
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.parallel import Stop, for_each

CONNECTIONS = 12
"""How many requests are on their way at once: at 50 MB/s for each connection, that is 600 MB/s."""

PART = 16 << 20
"""The most bytes of one request."""

_LEAST = 1 << 20
_MEMORY = CONNECTIONS * CHUNK_SIZE
_TRIES = 3
_BLOCK = 1 << 20


class WrongModelError(BuilderError):
    """The bytes that a place gives are not those of the model: asking again does not help."""

    exit_code = 3
    hint = "the registry, or what stands before it, is damaged, or the model was published wrongly: publish it again"


@dataclass(frozen=True)
class Chunked:
    """A file of a published model, its blob, and how it is cut; `hashes` (64 digits) are known where the model has an index."""

    file: ModelFile
    blob: Descriptor
    cuts: tuple[int, ...]
    hashes: tuple[str, ...] | None

    @classmethod
    def of(cls, file: ModelFile, blob: Descriptor, index: FileIndex | None) -> Chunked:
        if index is None:
            return cls(file, blob, cuts(file.size, CHUNK_SIZE, None), None)
        return cls(file, blob, cuts(file.size, index.chunk_size, index.header), index.chunks)

    @property
    def parts_key(self) -> Digest:
        """What chunks that were checked are kept under: they are as good as the hashes that they were checked against."""
        return Digest.of("\n".join(("parts", self.file.sha256, *map(str, self.cuts), *(self.hashes or ()))).encode())

    @property
    def whole_key(self) -> Digest:
        """What the file is kept under while all of it comes; it is checked at its end."""
        return Digest.of("\n".join(("whole", self.file.sha256, *map(str, self.cuts))).encode())

    @property
    def largest(self) -> int:
        """The bytes of the largest chunk."""
        return max((end - start for start, end in pairwise(self.cuts)), default=0)

    def length(self, chunk: int) -> int:
        """The bytes of a chunk."""
        return self.cuts[chunk + 1] - self.cuts[chunk]


@dataclass
class Open:
    """A file that is being filled; `landed` is told of each chunk that is there, `finished` is called after one that made the file
    complete, perhaps more than once. Chunks are checked before they are written, unless `check` says otherwise."""

    chunked: Chunked
    filling: Filling
    check: bool = True
    landed: Callable[[int, int], None] = lambda start, end: None
    finished: Callable[[], None] = lambda: None
    whole: threading.Lock = field(default_factory=threading.Lock)


@runtime_checkable
class Ranged(Protocol):
    """A source that can be asked for a part of a blob; it raises `NoRangesError` if the server cannot."""

    def ranges(self, descriptor: Descriptor, start: int, end: int, stop: Stop | None = None) -> Iterator[bytes]: ...


class Fetcher:
    """Brings chunks from `source`; shared by threads. `advance` is told of bytes that came from there."""

    def __init__(self, source: Source, stop: Stop, advance: Callable[[int], None] = lambda _: None) -> None:
        self._source = source
        self._stop = stop
        self._advance = advance

    def fetch(self, wanted: Sequence[tuple[Open, Sequence[int]]]) -> None:
        """These chunks (in ascending order) are there afterwards.

        Raises `WrongModelError` where what comes is not what the index says, and what the source raises.
        """
        tasks: list[_Run | _Piece] = []
        size = sum(opened.chunked.length(chunk) for opened, chunks in wanted for chunk in chunks)
        most = min(PART, max(CHUNK_SIZE, size // CONNECTIONS))
        for opened, chunks in wanted:
            if chunks:
                tasks += _runs(opened, chunks, most) if isinstance(self._source, Ranged) else [_Run(opened, 0, 0)]
        if not tasks:
            return
        if (
            isinstance(self._source, Ranged)
            and len(tasks) <= CONNECTIONS // 2
            and all(each.check for each, _ in wanted)
        ):
            tasks = list(_shared(tasks))
        largest = max(1, *(opened.chunked.largest for opened, _ in wanted if opened.check), 1)
        threads = max(1, min(CONNECTIONS, len(tasks), _MEMORY // largest))
        stop = Stop(self._stop)
        failures = for_each(_Worker(self._source, stop, self._advance).do, tasks, threads, stop)
        self._stop.check()
        if failures:
            raise failures[0]


class _Worker:
    """Does the tasks of one call, until one of them fails; shared by its threads."""

    def __init__(self, source: Source, stop: Stop, advance: Callable[[int], None]) -> None:
        self._source = source
        self._stop = stop
        self._advance = advance
        self._spare: queue.SimpleQueue[bytearray] = queue.SimpleQueue()

    def do(self, task: _Run | _Piece) -> None:
        """One request, or several where what came is wrong."""
        from builder.registry import NoRangesError

        if not isinstance(self._source, Ranged):
            self._stream(task.opened)
            return
        try:
            if isinstance(task, _Piece):
                self._piece(task)
            else:
                self._run(task)
        except NoRangesError:
            self._stream(task.opened)

    def _run(self, run: _Run) -> None:
        """Chunks that lie side by side, in one request; a wrong one is asked for again, alone."""
        opened = run.opened
        if not opened.check:
            self._run_unchecked(run)
            return
        try:
            buffer = self._spare.get_nowait()
        except queue.Empty:
            buffer = bytearray()
        cut = opened.chunked.cuts
        blocks = self._read(opened.chunked, cut[run.first], cut[run.last + 1])
        wrong = self._take(opened, run.first, run.last + 1, blocks, buffer)
        for chunk in wrong:
            for attempt in range(1, _TRIES):
                blocks = self._read(opened.chunked, *opened.filling.span(chunk))
                if not self._take(opened, chunk, chunk + 1, blocks, buffer):
                    break
                if attempt == _TRIES - 1:
                    raise _wrong(opened.chunked, chunk)
        self._spare.put(buffer)

    def _run_unchecked(self, run: _Run) -> None:
        """The same, each block written as it comes."""
        opened, filling, chunk = run.opened, run.opened.filling, run.first
        offset, end = filling.cuts[chunk], filling.cuts[run.last + 1]
        for block in self._read(opened.chunked, offset, end):
            filling.write(offset, block)
            offset += len(block)
            while chunk <= run.last and offset >= filling.cuts[chunk + 1]:
                filling.mark(chunk)
                self._landed(opened, chunk)
                chunk += 1

    def _take(self, opened: Open, first: int, end: int, blocks: Iterator[bytes], buffer: bytearray) -> list[int]:
        """Cuts blocks into chunks; returns those of which other bytes came."""
        chunked = opened.chunked
        if len(buffer) < chunked.largest:
            buffer.extend(bytes(chunked.largest - len(buffer)))
        wrong = []
        chunk, filled = first, 0
        with memoryview(buffer) as room:
            for block in blocks:
                left = memoryview(block)
                while left and chunk < end:
                    length = chunked.length(chunk)
                    count = min(length - filled, len(left))
                    room[filled : filled + count] = left[:count]
                    left = left[count:]
                    filled += count
                    if filled == length:
                        if not self._finish(opened, chunk, room[:length]):
                            wrong.append(chunk)
                        chunk, filled = chunk + 1, 0
        return wrong

    def _piece(self, piece: _Piece) -> None:
        """A part of a chunk; who brings the last one checks the chunk."""
        opened, chunk, room = piece.opened, piece.chunk, piece.shared
        reached = piece.start
        base = opened.chunked.cuts[chunk]
        view = memoryview(room.buffer)
        for block in self._read(opened.chunked, piece.start, piece.end):
            view[reached - base : reached - base + len(block)] = block
            reached += len(block)
        with room.guard:
            room.left -= 1
            last = not room.left
        if last and not self._finish(opened, chunk, view):
            self._run(_Run(opened, chunk, chunk))

    def _finish(self, opened: Open, chunk: int, data: memoryview) -> bool:
        """Whether these are the bytes of the chunk; then they are there now."""
        hashes = opened.chunked.hashes
        if opened.check and hashes is not None and Digest.of(data).hex != hashes[chunk]:
            return False
        opened.filling.put(chunk, data)
        self._landed(opened, chunk)
        return True

    def _landed(self, opened: Open, chunk: int) -> None:
        opened.landed(*opened.filling.span(chunk))
        if opened.filling.complete:
            opened.finished()

    def _read(self, chunked: Chunked, start: int, end: int) -> Iterator[bytes]:
        """The bytes in order. An address that the registry sends to may expire on the way there: it names a fresh one."""
        from builder.registry.session import DeniedElsewhereError

        assert isinstance(self._source, Ranged)
        for attempt in range(1, _TRIES + 1):
            try:
                for block in self._source.ranges(chunked.blob, start, end, self._stop):
                    self._advance(len(block))
                    if len(block) > end - start:
                        raise WrongModelError(
                            f"{chunked.file.path}: more of its blob {chunked.blob.digest} came than was asked for"
                        )
                    start += len(block)
                    yield block
            except DeniedElsewhereError:
                if attempt == _TRIES:
                    raise
                continue
            if start < end:
                raise WrongModelError(f"{chunked.file.path}: its blob {chunked.blob.digest} ends early")
            return

    def _stream(self, opened: Open) -> None:
        """All of a file by one request, since its place does not give parts; others of its requests wait and find it done."""
        chunked, filling = opened.chunked, opened.filling
        with opened.whole:
            missing = set(filling.missing())
            if not missing:
                return
            with self._source.blob(chunked.blob) as stream:
                view = memoryview(bytearray(chunked.largest))
                for chunk in range(len(chunked.cuts) - 1):
                    room = view[: chunked.length(chunk)]
                    filled = 0
                    while filled < len(room):
                        self._stop.check()
                        count = stream.readinto(room[filled : filled + _BLOCK])  # type: ignore[attr-defined]
                        if not count:
                            raise WrongModelError(f"{chunked.file.path}: its blob {chunked.blob.digest} ends early")
                        filled += count
                    self._advance(filled)
                    if chunk in missing and not self._finish(opened, chunk, room):
                        raise _wrong(chunked, chunk)


@dataclass
class _Run:
    """The chunks `first` to `last` of a file, in one request."""

    opened: Open
    first: int
    last: int


@dataclass
class _Room:
    """Where the pieces of a chunk meet; `left` of them are still to come."""

    buffer: bytearray
    left: int
    guard: threading.Lock = field(default_factory=threading.Lock)


@dataclass
class _Piece:
    """A part of a chunk, in one request."""

    opened: Open
    chunk: int
    start: int
    end: int
    shared: _Room


def _runs(opened: Open, chunks: Sequence[int], most: int) -> Iterator[_Run]:
    """Chunks that lie side by side together, up to so many bytes."""
    run: _Run | None = None
    cut = opened.chunked.cuts
    for chunk in chunks:
        if run is not None and chunk == run.last + 1 and cut[chunk + 1] - cut[run.first] <= most:
            run.last = chunk
            continue
        if run is not None:
            yield run
        run = _Run(opened, chunk, chunk)
    if run is not None:
        yield run


def _shared(runs: Sequence[_Run | _Piece]) -> Iterator[_Run | _Piece]:
    """Few runs in as many requests as there are connections: first chunks, then parts of chunks."""
    chunks = [(run.opened, chunk) for run in runs if isinstance(run, _Run) for chunk in range(run.first, run.last + 1)]
    if len(chunks) > CONNECTIONS:
        yield from runs if len(runs) >= CONNECTIONS // 2 else (_Run(opened, chunk, chunk) for opened, chunk in chunks)
        return
    pieces = max(CONNECTIONS // len(chunks), 1)
    for opened, chunk in chunks:
        start, end = opened.filling.span(chunk)
        count = max(1, min(pieces, (end - start) // _LEAST))
        if count == 1:
            yield _Run(opened, chunk, chunk)
            continue
        room = _Room(bytearray(end - start), count)
        bounds = [start + (end - start) * number // count for number in range(count + 1)]
        for begin, until in pairwise(bounds):
            yield _Piece(opened, chunk, begin, until, room)


def _wrong(chunked: Chunked, chunk: int) -> WrongModelError:
    start, end = chunked.cuts[chunk], chunked.cuts[chunk + 1]
    return WrongModelError(
        f"{chunked.file.path}: bytes {start} to {end} of its blob {chunked.blob.digest} are not those of the model's index"
    )
