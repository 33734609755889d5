"""Chunks of a model's files, from where the model is: in parallel ranges, each checked before anybody can read it."""

from __future__ import annotations

import hashlib
import queue
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing
from typing import Protocol, runtime_checkable

from builder.models.chunked import Chunked, Open, WrongModelError
from builder.models.lanes import FEW, Lanes
from builder.models.receivers import Receiver
from builder.models.requests import CONNECTIONS, Piece, Run, runs, shared
from builder.models.values import CHUNK_SIZE
from builder.oci.content import Source
from builder.oci.spec import Descriptor
from builder.parallel import Stop, for_each

MEMORY = CONNECTIONS * CHUNK_SIZE
"""The most bytes that are in memory to be checked; one chunk, if that alone is larger."""

_TRIES = 3
_BLOCK = 1 << 20


@runtime_checkable
class Ranged(Protocol):
    """A source that can be asked for a part of a blob; it raises `NoRangesError` if the server cannot."""

    def ranges(self, descriptor: Descriptor, start: int, end: int, stop: Stop | None = None) -> Iterator[bytes]: ...


class Fetcher:
    """Brings chunks from `source`; shared by threads. `advance` is told of bytes that came from there.

    What need not be checked as it comes, `receivers` bring, as far as there are any; one call of `fetch` at a time has them.
    """

    def __init__(
        self,
        source: Source,
        stop: Stop,
        advance: Callable[[int], None] = lambda _: None,
        receivers: Sequence[Receiver] = (),
    ) -> None:
        self._receivers = receivers
        self._source = source
        self._stop = stop
        self._advance = advance

    def fetch(self, wanted: Sequence[tuple[Open, Sequence[int]]]) -> None:
        """These chunks (in ascending order) are there afterwards.

        Raises `WrongModelError` where what comes is not what the index says, and what the source raises.
        """
        tasks: list[Run | Piece] = (
            list(runs(wanted))
            if isinstance(self._source, Ranged)
            else [Run(opened, 0, 0) for opened, chunks in wanted if chunks]
        )
        if not tasks:
            return
        checked = all(opened.check for opened, _ in wanted)
        size = sum(opened.chunked.length(chunk) for opened, chunks in wanted for chunk in chunks)
        if isinstance(self._source, Ranged) and checked and len(tasks) <= CONNECTIONS // 2 and size <= MEMORY:
            tasks = list(shared(tasks))
        largest = max((opened.chunked.largest for opened, _ in wanted if opened.check), default=1)
        threads = max(1, min(CONNECTIONS, len(tasks), MEMORY // max(largest, 1)))
        stop = Stop(self._stop)
        receivers = () if checked else self._receivers
        lanes = Lanes(tasks, size, stop, len(receivers) or FEW)
        worker = _Worker(self._source, stop, self._advance, lanes, receivers)
        failures = for_each(worker.do, range(threads), threads, stop)
        self._stop.check()
        if failures:
            raise failures[0]


class _Worker:
    """Does the tasks of one call, until one of them fails; shared by its threads."""

    def __init__(
        self,
        source: Source,
        stop: Stop,
        advance: Callable[[int], None],
        lanes: Lanes,
        receivers: Sequence[Receiver],
    ) -> None:
        self._receivers = receivers
        self._source = source
        self._stop = stop
        self._advance = advance
        self._lanes = lanes
        self._spare: queue.SimpleQueue[bytearray] = queue.SimpleQueue()

    def do(self, lane: int) -> None:
        """One request after the other, until there is none left for this thread."""
        receiver = self._receivers[lane] if lane < len(self._receivers) else None
        while task := self._lanes.take(lane):
            try:
                self._try(task, receiver)
            finally:
                self._lanes.ended(task)

    def _try(self, task: Run | Piece, receiver: Receiver | None) -> None:
        from builder.registry import NoRangesError

        if not isinstance(self._source, Ranged):
            self._stream(task.opened)
            return
        try:
            if isinstance(task, Piece):
                self._piece(task)
            elif task.opened.check:
                self._run(task)
            else:
                self._run_unchecked(task, receiver)
        except NoRangesError:
            self._stream(task.opened)

    def _run(self, run: Run) -> None:
        """Chunks that lie side by side, in one request; a wrong one is asked for again, alone."""
        opened = run.opened
        try:
            buffer = self._spare.get_nowait()
        except queue.Empty:
            buffer = bytearray()
        for chunk in self._take(run, buffer):
            for attempt in range(1, _TRIES):
                if not self._take(Run(opened, chunk, chunk), buffer):
                    break
                if attempt == _TRIES - 1:
                    raise _wrong(opened.chunked, chunk)
        self._spare.put(buffer)

    def _run_unchecked(self, run: Run, receiver: Receiver | None) -> None:
        """The same, each block written as it comes; nothing of a chunk is, before it is known that nobody else brings it."""
        filling = run.opened.filling
        offset = filling.cuts[run.at]
        with closing(self._written(run, receiver)) as written:
            for amount in written:
                offset += amount
                if offset == filling.cuts[run.at + 1]:
                    filling.mark(run.at)
                    self._landed(run.opened, run.at)
                    if not self._lanes.next(run):
                        return

    def _written(self, run: Run, receiver: Receiver | None) -> Generator[int, None, None]:
        """How many bytes more of the run are in the file, again and again, in no step beyond a chunk: first those that the
        receiver brings."""
        chunked, filling = run.opened.chunked, run.opened.filling
        at = filling.cuts[run.at]
        if receiver is not None:
            ends = filling.cuts[run.at + 1 : run.last + 2]
            with closing(receiver.receive(chunked.blob, at, ends, filling.fileno(), self._stop)) as amounts:
                for amount in amounts:
                    at += amount
                    self._came(amount)
                    yield amount
        if at < (end := filling.cuts[run.last + 1]):
            for block in self._read(chunked, at, end):
                rest = memoryview(block)
                while rest:
                    part = rest[: filling.cuts[run.at + 1] - at]
                    filling.write(at, part)
                    at, rest = at + len(part), rest[len(part) :]
                    yield len(part)

    def _take(self, run: Run, buffer: bytearray) -> list[int]:
        """Cuts what comes into chunks; returns those of which other bytes came."""
        chunked = run.opened.chunked
        if len(buffer) < chunked.largest:
            buffer.extend(bytes(chunked.largest - len(buffer)))
        wrong = []
        filled = 0
        with memoryview(buffer) as room:
            for block in self._read(chunked, chunked.cuts[run.at], chunked.cuts[run.last + 1]):
                left = memoryview(block)
                while left:
                    length = chunked.length(run.at)
                    count = min(length - filled, len(left))
                    room[filled : filled + count] = left[:count]
                    left = left[count:]
                    filled += count
                    if filled == length:
                        if not self._finish(run.opened, run.at, [room[:length]]):
                            wrong.append(run.at)
                        filled = 0
                        if not self._lanes.next(run):
                            return wrong
        return wrong

    def _piece(self, piece: Piece) -> None:
        """A part of a chunk; who brings the last one checks the chunk."""
        room = piece.shared
        found = list(self._read(piece.opened.chunked, piece.start, piece.end))
        with room.guard:
            room.pieces[piece.start] = found
            room.left -= 1
            last = not room.left
        if last and not self._finish(piece.opened, piece.chunk, room.blocks()):
            self._run(Run(piece.opened, piece.chunk, piece.chunk))

    def _finish(self, opened: Open, chunk: int, data: Sequence[bytes | memoryview]) -> bool:
        """Whether these are the bytes of the chunk; then they are there now."""
        hashes = opened.chunked.hashes
        if opened.check and hashes is not None and _sha256(data) != hashes[chunk]:
            return False
        opened.filling.put(chunk, *data)
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
                    self._came(len(block))
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

    def _came(self, amount: int) -> None:
        self._advance(amount)
        self._lanes.came(amount)

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
                    if chunk in missing and not self._finish(opened, chunk, [room]):
                        raise _wrong(chunked, chunk)


def _sha256(data: Sequence[bytes | memoryview]) -> str:
    found = hashlib.sha256()
    for piece in data:
        found.update(piece)
    return found.hexdigest()


def _wrong(chunked: Chunked, chunk: int) -> WrongModelError:
    start, end = chunked.cuts[chunk], chunked.cuts[chunk + 1]
    return WrongModelError(
        f"{chunked.file.path}: bytes {start} to {end} of its blob {chunked.blob.digest} are not those of the model's index"
    )
