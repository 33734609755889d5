"""Images on their way into targets: blobs several at once, documents after what they refer to, tags last of all.

What is there already is never sent again, so a delivery that was interrupted goes on when it is done again.
"""

from __future__ import annotations

import io
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from queue import SimpleQueue
from types import TracebackType
from typing import Any, BinaryIO, Self

from builder.oci.content import Outcome, Target
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.oci.listing import subject
from builder.oci.spec import Descriptor
from builder.parallel import Stop, StoppedError, for_each
from builder.places.archive import NewArchive
from builder.places.remote import Remote
from builder.progress import Progress, Task

_GRACE = 2.0
_POLL = 0.2


@dataclass(frozen=True)
class Blob:
    """A blob that is to be delivered: `open` gives its bytes, checked, each time it is called; `path` as in `Target`.

    One that comes from a `remote` place may be fetched into a file, too, faster and going on where it was interrupted.
    `known` says that the file at `path` was written, and hashed, in this run.
    """

    descriptor: Descriptor
    open: Callable[[], AbstractContextManager[BinaryIO]]
    path: Path | None = None
    remote: Remote | None = None
    known: bool = False


@dataclass(frozen=True)
class Document:
    """A manifest or index that is to be delivered, under a `tag` of its own if it has one (models, cosign's signatures)."""

    descriptor: Descriptor
    data: bytes
    tag: str | None = None


@dataclass(frozen=True)
class Sink:
    """Where to deliver to: the `name` of the place for people, the tags that are set at the end, and what is told then of all
    blobs that the place has."""

    name: str
    target: Target
    tags: tuple[str, ...] = ()
    delivered: Callable[[Iterable[Digest]], None] = lambda _: None


@dataclass(frozen=True)
class Delivered:
    """What became of every blob in one place, and how long it took from the first offer to the last tag, in seconds."""

    sink: Sink
    digest: Digest
    blobs: tuple[tuple[Descriptor, Outcome], ...]
    seconds: float

    def count(self, *outcomes: Outcome) -> int:
        """How many blobs had one of these outcomes."""
        return sum(outcome in outcomes for _, outcome in self.blobs)

    def size(self, *outcomes: Outcome) -> int:
        """How many bytes they have."""
        return sum(descriptor.size for descriptor, outcome in self.blobs if outcome in outcomes)

    @property
    def rate(self) -> float:
        """Bytes moved in a second."""
        return self.size(Outcome.MOVED) / self.seconds if self.seconds > 0 else 0.0


class Delivery:
    """A delivery into all `sinks`, for the length of a `with` block: blobs are sent from when they are offered.

    `connections` blobs are under way at once. The first failure stops all others; tags are not set then.
    """

    def __init__(self, sinks: Sequence[Sink], progress: Progress, connections: int, label: str = "publish") -> None:
        self._sinks = tuple(sinks)
        self._connections = connections
        self._progress = progress
        self._label = label
        self._task: Task | None = None
        self._queue: SimpleQueue[tuple[Blob, int] | None] = SimpleQueue()
        self._stop = Stop()
        self._done = threading.Condition()
        self._open = 0
        self._offered: dict[Digest, int] = {}
        self._sent = 0
        self._failures: list[tuple[Blob, Exception]] = []
        self._threads: list[threading.Thread] = []
        self._tallies: list[dict[Digest, tuple[Descriptor, Outcome]]] = [{} for _ in self._sinks]
        self._started = 0.0

    def __enter__(self) -> Self:
        earlier = [sink.target.sending_since for sink in self._sinks if isinstance(sink.target, Remote)]
        self._started = min([time.monotonic(), *filter(None, earlier)])
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stop.set()
        for _ in self._threads:
            self._queue.put(None)
        until = time.monotonic() + _GRACE
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))  # a silent peer is not waited for
        if self._task is not None:
            self._task.__exit__(kind, error, trace)

    @property
    def failed(self) -> Blob | None:
        """The blob that could not be delivered."""
        return next((blob for blob, _ in self._failures), None)

    def offer(self, blob: Blob) -> None:
        """Begins to send a blob, unless it was offered before; from any thread. Starts threads."""
        with self._done:
            if blob.descriptor.digest in self._offered:
                return
            self._offered[blob.descriptor.digest] = blob.descriptor.size
            if self._task is None:
                self._task = self._progress.task(self._label).__enter__()
            self._open += len(self._sinks)
            while len(self._threads) < min(self._connections, self._open):
                thread = threading.Thread(target=self._work, daemon=True)
                self._threads.append(thread)
                thread.start()
        for number in range(len(self._sinks)):
            self._queue.put((blob, number))

    def complete(self, documents: Sequence[Document], top: Document) -> tuple[Delivered, ...]:
        """Waits for the blobs, then delivers the documents, in their order, and points the tags at `top`.

        Raises the first failure.
        """
        self._show_total()
        self._wait()
        for sink in self._sinks:
            for document in _missing(sink.target, documents, self._connections):
                sink.target.put_manifest(document.descriptor, document.data, document.tag)
        for sink in self._sinks:
            for tag in sink.tags:
                sink.target.put_manifest(top.descriptor, top.data, tag)
            if isinstance(sink.target, NewArchive):
                sink.target.finish()
            sink.delivered(self._offered)
        seconds = time.monotonic() - self._started
        return tuple(
            Delivered(sink, top.descriptor.digest, tuple(tally[digest] for digest in self._offered), seconds)
            for sink, tally in zip(self._sinks, self._tallies, strict=True)
        )

    def _show_total(self) -> None:
        """Nothing more will be offered: from here on it is known how much is left."""
        with self._done:
            left = sum(self._offered.values()) * len(self._sinks) - self._sent
            if self._task is not None:
                self._task.__exit__(None, None, None)
            self._task = self._progress.task(self._label, left).__enter__()

    def _advance(self, amount: int) -> None:
        with self._done:
            self._sent += amount
            if self._task is not None:
                self._task.advance(amount)

    def _sending(self, amount: int) -> None:
        """The same, of bytes on their way; ends the sending when asked to stop."""
        if amount > 0:
            self._stop.check()
        self._advance(amount)

    def _wait(self) -> None:
        with self._done:
            while self._open and not self._failures:
                self._done.wait(_POLL)
            if self._failures:
                raise self._failures[0][1]

    def _work(self) -> None:
        while (item := self._queue.get()) is not None and not self._stop.is_set():
            blob, number = item
            failure: Exception | None = None
            try:
                self._send(blob, number)
            except StoppedError:
                return
            except Exception as error:
                failure = error
            with self._done:
                self._open -= 1
                if failure is not None:
                    self._failures.append((blob, failure))
                    self._stop.set()
                self._done.notify_all()

    def _send(self, blob: Blob, number: int) -> None:
        target, descriptor = self._sinks[number].target, blob.descriptor
        counter: _Counter | None = None
        if isinstance(target, Remote):  # it tells what it sends
            target.watch = self._sending
            outcome = target.put_blob(descriptor, blob.open, blob.path)
        elif blob.remote is not None:  # that tells what it gives
            blob.remote.watch = self._advance
            if isinstance(target, Layout):
                outcome = target.receive(descriptor, partial(blob.remote.download, descriptor))
            else:
                outcome = target.put_blob(descriptor, blob.open)
        else:
            counter = counted = _Counter(self._advance, self._stop)
            way = partial(counted.counted, blob.open)
            if isinstance(target, Layout):
                outcome = target.put_blob(descriptor, way, blob.path, known=blob.known)
            else:
                outcome = target.put_blob(descriptor, way, blob.path)
        if counter is not None:
            counter.complete(descriptor.size)
        elif outcome is not Outcome.MOVED:
            self._advance(descriptor.size)
        with self._done:
            self._tallies[number][descriptor.digest] = (descriptor, outcome)


def _missing(target: Target, documents: Sequence[Document], connections: int) -> list[Document]:
    """The documents that have to be put. A repository is asked for all at once, which takes less time than putting them.

    One with a subject is there only if it is listed, too: a delivery may have ended in between.
    """
    if not isinstance(target, Remote):
        return list(documents)
    subjects = {document.descriptor.digest: subject(document.data) for document in documents}
    there: set[tuple[Digest, str | None]] = set()

    def look_at(item: Document | Digest) -> None:
        if isinstance(item, Digest):
            there.update((referrer.digest, None) for referrer in target.referrers(item))
        elif item.tag is not None:
            found = target.find(item.tag)
            there.update([(found.digest, item.tag)] if found else [])
        elif target.has(item.descriptor):
            there.add((item.descriptor.digest, None))

    plain = [document for document in documents if document.tag or subjects[document.descriptor.digest] is None]
    questions: list[Document | Digest] = [*plain, *dict.fromkeys(filter(None, subjects.values()))]
    for error in for_each(look_at, questions, connections, Stop()):
        raise error
    return [document for document in documents if (document.descriptor.digest, document.tag) not in there]


class _Counter:
    """Tells a task of the bytes that are read, once, however often they are read; ends the reading when asked to stop."""

    def __init__(self, advance: Callable[[int], None], stop: Stop) -> None:
        self.count = 0
        self._advance = advance
        self._stop = stop

    @contextmanager
    def counted(self, open_blob: Callable[[], AbstractContextManager[BinaryIO]]) -> Iterator[BinaryIO]:
        self._advance(-self.count)
        self.count = 0
        with open_blob() as stream:
            yield _Counted(stream, self)  # type: ignore[misc]

    def complete(self, size: int) -> None:
        """All of it is done, whatever was read; an archive reads it later, and that counts instead."""
        self._advance(size - self.count)
        self.count = size

    def add(self, count: int) -> None:
        self._stop.check()
        self.count += count
        self._advance(count)


class _Counted(io.RawIOBase):
    """A stream whose reads are counted."""

    def __init__(self, stream: BinaryIO, counter: _Counter) -> None:
        self._stream = stream
        self._counter = counter
        self.verified = getattr(stream, "verified", False)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        view = memoryview(buffer)
        if isinstance(self._stream, io.RawIOBase | io.BufferedIOBase):
            count = self._stream.readinto(view) or 0
        else:
            data = self._stream.read(len(view))
            count = len(data)
            view[:count] = data
        self._counter.add(count)
        return count
