"""A repository of layers: those that are missing here are taken from it, those that were packed here go to it.

Nothing of it can fail a build, or change one. What it gives is believed for a signature and checked by digest; what it does
not give, gives too slowly or lies about is packed, and a note says so.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from builder.client import NotFoundError
from builder.errors import BuilderError, FetchError
from builder.layercache import entry, taking
from builder.layercache.entry import LyingCacheError, Record, tag_of
from builder.layercache.keys import PublicKey, SecretKey
from builder.layercache.memory import is_cached, remember
from builder.layercache.sending import record_here, send
from builder.lock import SociSettings
from builder.parallel import Stop, for_each
from builder.places import memory
from builder.places.remote import Remote
from builder.plan import Layer
from builder.progress import Progress, human_size
from builder.registry import WrongBytesError
from builder.store import Store

_LOOKING, _MOVING = 8, 4
_POLL = 0.05
_GRACE = 2.0


@dataclass(frozen=True)
class Trust:
    """Layers that one of the keys `public` has signed are taken, and any, if `unsigned`, after they were read to their end. What
    is packed here is signed with `secret`; without one it is sent only if `unsigned`."""

    public: tuple[PublicKey, ...] = ()
    secret: SecretKey | None = None
    unsigned: bool = False

    @property
    def sends(self) -> bool:
        return self.unsigned or self.secret is not None


@dataclass(frozen=True)
class Pace:
    """For how many seconds fewer than `least` bytes a second may come."""

    slow: float = 30.0
    least: int = 32 << 10


class LayerCache:
    """One cache, called `name`, for the length of a run. `open` gives its repository, to be written to or not, whose work a stop
    ends.

    Once it was `down`, which says why, it is not asked any more.
    """

    def __init__(
        self,
        name: str,
        open: Callable[[bool, Stop], Remote],
        trust: Trust,
        store: Store,
        progress: Progress,
        pace: Pace = Pace(),
    ) -> None:
        self.down = ""
        self.name = name
        self._open = open
        self._trust = trust
        self._store = store
        self._progress = progress
        self._pace = pace
        self._stop = Stop()
        self._guard = threading.Lock()

    def pull(self, layers: Sequence[Layer], soci: SociSettings) -> None:
        """Those of the `layers` that the cache has are in the store afterwards, with the ztocs that `soci` asks for."""
        wanted = [layer for layer in layers if is_cached(layer)]
        if not wanted or self.down:
            return
        repository = self._open(False, self._stop)
        found = self._found(repository, wanted)
        taken = self._taken(repository, found, soci) if found and not self.down else []
        reference = repository.reference
        if taken:
            blobs = [record.blob.digest for record in taken]
            memory.remember(self._store, reference.registry, reference.repository, blobs)
        if self.down and not taken:
            return
        size = f", {human_size(sum(record.blob.size for record in taken))}" if taken else ""
        self._note(repository, f"{len(taken)} of {len(wanted)} missing layers taken{size}")

    def push(self, layers: Sequence[Layer], soci: SociSettings) -> int:
        """Those of the `layers` that the store has are in the cache afterwards; how many were sent."""
        wanted = [layer for layer in dict.fromkeys(layers) if is_cached(layer)]
        if self.down or not self._trust.sends or not wanted:
            return 0
        repository = self._open(True, self._stop)
        records = {layer: record for layer in wanted if (record := record_here(layer, self._store, soci))}
        sent: list[Record] = []

        def give(layer: Layer) -> None:
            if self._send(repository, layer, records[layer]):
                sent.append(records[layer])
            remember(self.name, layer, records[layer].blob.digest, self._store)

        if records:
            with self._progress.task("fill the layer cache", sum(one.blob.size for one in records.values())) as task:
                self._run(repository, give, list(records), _MOVING, task.advance)
            size = f", {human_size(sum(record.blob.size for record in sent))}" if sent else ""
            self._note(repository, f"{len(sent)} of {len(records)} layers sent{size}")
        return len(sent)

    def find(self, repository: Remote, layer: Layer) -> Record | None:
        """The entry of a layer, checked; None if there is none. Raises `FetchError` and `LyingCacheError`."""
        described = repository.find(tag_of(layer.key))
        if described is None:
            return None
        config, signature = entry.record_of(repository.manifest(described))
        data = taking.small(repository, config)
        if not self._trust.unsigned:
            entry.check(data, signature, self._trust.public)
        record = Record.parse(data)
        if record.key != layer.key:
            raise LyingCacheError(f"it is the entry of another layer, {record.key.short}")
        return record

    def _found(self, repository: Remote, layers: Sequence[Layer]) -> dict[Layer, Record]:
        found: dict[Layer, Record] = {}

        def look(layer: Layer) -> None:
            if (record := self.find(repository, layer)) is not None:
                with self._guard:
                    found[layer] = record

        self._run(repository, look, layers, _LOOKING)
        with self._guard:
            return {} if self.down else dict(found)

    def _taken(self, repository: Remote, found: dict[Layer, Record], soci: SociSettings) -> list[Record]:
        taken: list[Record] = []
        flow = _Flow()
        taker = taking.Taker(self.name, repository, self._store, soci, self._trust.unsigned, self._stop, flow.busy)

        def take(layer: Layer) -> None:
            try:
                taker.take(layer, found[layer])
            except FetchError as error:
                if type(error) is not FetchError:
                    raise
                raise LyingCacheError(str(error)) from error  # the cache answers, but not what the entry says
            taken.append(found[layer])

        largest_first = sorted(found, key=lambda layer: -found[layer].blob.size)
        with self._progress.task("take cached layers", sum(one.blob.size for one in found.values())) as task:
            self._run(repository, take, largest_first, _MOVING, task.advance, flow)
        return list(taken)

    def _send(self, repository: Remote, layer: Layer, record: Record) -> bool:
        """Whether it had to be sent. A layer of other bytes stays, if somebody who is trusted made it: one of the two is wrong."""
        try:
            other = self.find(repository, layer)
        except (LyingCacheError, WrongBytesError, NotFoundError) as error:
            self._note(repository, f"{layer.name} is replaced: {error}")
            other = None
        if other is not None and other.blob.digest != record.blob.digest:
            self._note(
                repository,
                f"{layer.name} was packed to other bytes by somebody else ({other.blob.digest.short} there, "
                f"{record.blob.digest.short} here): that entry stays; run `build verify` on images of both",
            )
        if other is None:
            send(repository, record, layer.name, self._trust.secret, self._store)
        return other is None

    def _run(
        self,
        repository: Remote,
        function: Callable[[Layer], None],
        layers: Sequence[Layer],
        threads: int,
        advance: Callable[[int], None] = lambda _: None,
        flow: _Flow | None = None,
    ) -> None:
        """Calls the function with each layer; a layer that fails is noted, a cache that fails is `down`."""
        bugs: list[BaseException] = []

        def one(layer: Layer) -> None:
            try:
                function(layer)
            except (LyingCacheError, WrongBytesError, NotFoundError) as error:
                self._note(repository, f"{layer.name} is not taken: {error}")
            except FetchError as error:
                self._fail(repository, str(error))
            except BuilderError as error:
                self._note(repository, f"{layer.name}: {error}")

        def all_of_them() -> None:
            bugs.extend(for_each(one, layers, threads, self._stop))

        flow = flow or _Flow()

        def moved(amount: int) -> None:
            flow.moved(amount)
            advance(amount)

        repository.watch = moved
        worker = threading.Thread(target=all_of_them, daemon=True)
        worker.start()
        try:
            self._wait(repository, worker, flow)
        except BaseException:
            self._stop.set()
            worker.join(_GRACE)
            raise
        for bug in bugs:
            raise bug

    def _wait(self, repository: Remote, worker: threading.Thread, flow: _Flow) -> None:
        pace, begun, before = self._pace, time.monotonic(), flow.total
        while worker.is_alive():
            worker.join(_POLL)
            if flow.is_busy:
                begun, before = time.monotonic(), flow.total
            elif time.monotonic() - begun >= pace.slow:
                if flow.total - before < pace.least * pace.slow:
                    self._fail(repository, f"it is too slow: {human_size(flow.total - before)} in {pace.slow:g} s")
                    worker.join(_GRACE)
                    return
                begun, before = time.monotonic(), flow.total

    def _fail(self, repository: Remote, why: str) -> None:
        with self._guard:
            if self.down:
                return
            self.down = why
        self._stop.set()
        self._note(repository, f"it is left alone from here on: {why}")

    def _note(self, repository: Remote, text: str) -> None:
        self._progress.note(f"cache {repository}: {text}")


class _Flow:
    """What moves, and whether something else is waited for."""

    def __init__(self) -> None:
        self.total = 0
        self._busy = 0
        self._guard = threading.Lock()

    @property
    def is_busy(self) -> bool:
        return self._busy > 0

    def moved(self, amount: int) -> None:
        with self._guard:
            self.total += amount

    @contextmanager
    def busy(self) -> Iterator[None]:
        with self._guard:
            self._busy += 1
        try:
            yield
        finally:
            with self._guard:
                self._busy -= 1
