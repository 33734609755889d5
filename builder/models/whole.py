"""Whole files of a model, in the store under their digests: from there, from older versions, from where the model is.

Of several processes that want one file at the same time, one brings it and the others wait. What one that was killed has
brought is there for the next.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field

from builder.errors import StoreError
from builder.models.chunked import Chunked, Open, WrongModelError
from builder.models.delta import Older, Place
from builder.models.fetching import MEMORY, Fetcher
from builder.models.filling import Filling, journal_of
from builder.models.hashing import Hasher
from builder.models.receivers import Receiver
from builder.oci.digest import Digest
from builder.parallel import Stop, for_each
from builder.progress import Progress, human_size
from builder.store import Store, free_bytes, partial_lock

_READERS = 4
_AT_ONCE = 96
"""Files that are filled at the same time, each with three open files."""
_FOLLOWED = 8 << 20
"""From this size, files are hashed while they fill up, and not at their end."""
_MARGIN = 16 << 20


@dataclass
class Moved:
    """Where bytes came from: `fetched` over the network (or from a layout), `reused` from older versions, `resumed` from a
    pull that was interrupted, or from reads by the tensor, `present` were in the store."""

    fetched: int = 0
    reused: int = 0
    resumed: int = 0
    present: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock, repr=False)

    def add(self, name: str, amount: int) -> None:
        """Counts; from any thread."""
        with self.guard:
            setattr(self, name, getattr(self, name) + amount)


@dataclass(frozen=True)
class Bringing:
    """What bringing needs: the store, what asks the place, older versions, progress, and the request to stop.

    `receivers` makes processes that receive for the fetcher, for so many bytes.
    """

    store: Store
    fetcher: Callable[[Callable[[int], None], Sequence[Receiver]], Fetcher]
    receivers: Callable[[int], AbstractContextManager[Sequence[Receiver]]]
    older: Older
    progress: Progress
    stop: Stop

    def bring(self, files: Sequence[Chunked], label: str) -> Moved:
        """All these files are in the store afterwards, every byte checked against their digests.

        Raises `WrongModelError`, `StoreError` for a disk that is full, and what the source raises.
        """
        moved = Moved()
        wanted = list({chunked.file.sha256: chunked for chunked in files}.values())
        missing = [chunked for chunked in wanted if not self._has(chunked)]
        moved.present = sum(chunked.file.size for chunked in wanted) - sum(chunked.file.size for chunked in missing)
        if not missing:
            return moved
        total = sum(chunked.file.size for chunked in missing)
        with (
            self.receivers(total) as receivers,  # first: what they inherit is open as long as they are there
            self.store.in_use(),
            self.store.explained(),
            self.progress.task(f"pull {label}", total) as task,
        ):

            def fetched(amount: int) -> None:
                moved.add("fetched", amount)
                task.advance(amount)

            fetcher = self.fetcher(fetched, receivers)
            for first in range(0, len(missing), _AT_ONCE):
                self._batch(missing[first : first + _AT_ONCE], fetcher, moved, task.advance)
        return moved

    def _batch(self, files: Sequence[Chunked], fetcher: Fetcher, moved: Moved, advance: Callable[[int], None]) -> None:
        with ExitStack() as stack:
            # the same order everywhere: no deadlock
            for chunked in sorted(files, key=lambda chunked: chunked.whole_key):
                self._lock(stack, chunked)
            still = [chunked for chunked in files if not self._has(chunked)]
            others = sum(chunked.file.size for chunked in files) - sum(chunked.file.size for chunked in still)
            moved.add("present", others)
            advance(others)
            self._bring(still, fetcher, moved, advance)

    def _has(self, chunked: Chunked) -> bool:
        return self.store.has(Digest(chunked.file.sha256), chunked.file.size)

    def _lock(self, stack: ExitStack, chunked: Chunked) -> None:
        told = False

        def check() -> None:
            nonlocal told
            self.stop.check()
            if not told:
                told = True
                self.progress.note(f"waiting for {chunked.file.path}, which another process brings")

        stack.enter_context(self.store.locked(partial_lock(chunked.whole_key), check))

    def _bring(self, files: Sequence[Chunked], fetcher: Fetcher, moved: Moved, advance: Callable[[int], None]) -> None:
        with ExitStack() as stack:
            filled = [stack.enter_context(_Whole(self.store, chunked, fetcher, self.stop)) for chunked in files]
            missing = [(each, each.opened.filling.missing()) for each in filled]
            for each, chunks in missing:
                there = each.chunked.file.size - sum(map(each.chunked.length, chunks))
                moved.add("resumed", there)
                advance(there)
            self._check_room(sum(each.chunked.length(chunk) for each, chunks in missing for chunk in chunks))
            self._reuse([(each.opened, chunk) for each, chunks in missing for chunk in chunks], moved, advance)
            fetcher.fetch([(each.opened, each.opened.filling.missing(chunks)) for each, chunks in missing])
            for each in filled:
                each.settle()

    def _check_room(self, needed: int) -> None:
        free = free_bytes(self.store.root)
        if needed and needed + _MARGIN > free:
            raise StoreError(
                f"{self.store.root}: {human_size(needed)} are needed and {human_size(free)} are free",
                hint="free some space, `build cache gc --max-size 10GB` removes what was not used lately, "
                "or name a cache on another disk with --cache",
            )

    def _reuse(self, wanted: Sequence[tuple[Open, int]], moved: Moved, advance: Callable[[int], None]) -> None:
        """Takes chunks that were read by the tensor before, and those of older versions."""
        named = [(each, chunk, each.chunked.hashes[chunk]) for each, chunk in wanted if each.chunked.hashes is not None]
        older = self.older.places({(digest, each.chunked.length(chunk)) for each, chunk, digest in named})
        read = {id(each): parts(self.store, each.chunked) for each in {id(each): each for each, _, _ in named}.values()}
        rooms = threading.local()

        def take(item: tuple[Open, int, str]) -> None:
            each, chunk, digest = item
            length = each.chunked.length(chunk)
            if len(getattr(rooms, "room", b"")) < length:
                rooms.room = bytearray(length)
            view = memoryview(rooms.room)[:length]
            for place, name in ((read[id(each)].get(chunk), "resumed"), (older.get((digest, length)), "reused")):
                if place is not None and place.read(view) and Digest.of(view).hex == digest:
                    each.filling.put(chunk, view)
                    each.landed(*each.filling.span(chunk))
                    moved.add(name, length)
                    advance(length)
                    return

        if not older and not any(read.values()):
            return
        largest = max(each.chunked.largest for each, _, _ in named)
        failures = for_each(take, named, max(1, min(_READERS, MEMORY // largest)), Stop(self.stop))
        self.stop.check()
        if failures:
            raise failures[0]


class _Whole:
    """One file while it fills up; a large one is hashed meanwhile."""

    def __init__(self, store: Store, chunked: Chunked, fetcher: Fetcher, stop: Stop) -> None:
        self.chunked = chunked
        self._store = store
        self._fetcher = fetcher
        self._stop = stop
        self._guard = threading.Lock()
        self._settled = False
        self._stack = ExitStack()

    def __enter__(self) -> _Whole:
        with ExitStack() as stack:
            filling = stack.enter_context(Filling(self._store.partial(self.chunked.whole_key), self.chunked.cuts))
            self.opened = Open(self.chunked, filling, check=False, finished=self.settle)
            self._hasher: Hasher | None = None
            if self.chunked.file.size >= _FOLLOWED:
                self._hasher = stack.enter_context(Hasher(filling))
                self.opened.landed = self._hasher.landed
                missing = set(filling.missing())
                for chunk in range(len(self.chunked.cuts) - 1):
                    if chunk not in missing:
                        self._hasher.landed(*filling.span(chunk))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def settle(self) -> None:
        """The file, all of whose chunks have come, gets its name in the store if its digest is right."""
        with self._guard:
            if not self._settled:
                self._settle()
                self._settled = True

    def _settle(self) -> None:
        chunked, filling = self.chunked, self.opened.filling
        expected = Digest(chunked.file.sha256)
        found = self._hasher.digest() if self._hasher else filling.digest()
        if found != expected:
            damaged = _damaged(self.opened)
            if chunked.hashes is not None and not damaged:
                filling.discard()
                raise WrongModelError(
                    f"{chunked.file.path}: the model's index lies: its chunks make {found}, the manifest says {expected}",
                    hint="it was published wrongly, or somebody tampered with it: publish it again",
                )
            filling.forget(damaged)
            self._fetcher.fetch([(Open(chunked, filling), damaged)])  # checked, where there is an index
            found = filling.digest()
        if found != expected:
            filling.discard()
            raise WrongModelError(
                f"{chunked.file.path}: the bytes of its blob make {found}, the manifest says {expected}"
            )
        if not filling.is_current():
            raise StoreError(f"{filling.path}: somebody took it away", hint="run the same command again")
        self._store.adopt(filling.path, expected)
        filling.settle()
        read = self._store.partial(chunked.parts_key)
        for path in (journal_of(read), read):
            path.unlink(missing_ok=True)


def parts(store: Store, chunked: Chunked) -> Mapping[int, Place]:
    """The chunks of a file that were read by the tensor."""
    path = store.partial(chunked.parts_key)
    if not path.is_file():
        return {}
    with Filling(path, chunked.cuts) as filling:
        missing = set(filling.missing())
        chunks = [chunk for chunk in range(len(chunked.cuts) - 1) if chunk not in missing]
    return {chunk: Place(path, chunked.cuts[chunk]) for chunk in chunks}


def _damaged(opened: Open) -> list[int]:
    """The chunks whose bytes on the disk are not those of the index; all, if there is none."""
    hashes = opened.chunked.hashes
    chunks = range(len(opened.chunked.cuts) - 1)
    if hashes is None:
        return list(chunks)
    buffer = memoryview(bytearray(opened.chunked.largest))
    found = []
    for chunk in chunks:
        room = buffer[: opened.chunked.length(chunk)]
        if opened.filling.read(chunk, room) != len(room) or Digest.of(room).hex != hashes[chunk]:
            found.append(chunk)
    return found
