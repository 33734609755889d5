"""Which thread does which request: a few threads where connections are quick, all where each brings little."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Sequence

from builder.models.requests import Piece, Run
from builder.parallel import Stop

FEW = 4
"""How many threads begin."""

_ENOUGH = 100_000_000
"""Bytes a second of a connection at which more of them bring nothing: what is left to be done is this machine's own work, and
threads that wait for one another make more of it."""

_MUCH = 128 << 20
"""Bytes from which it is worth finding out."""

_LOOK = 0.1
"""Seconds between two looks at what comes."""

_AWAITED = 0.25
"""Seconds that the first bytes may take."""

_SLOW = 1.5
"""Seconds after which a request has taken too long if others have nothing to do; `PART` at 11 MB/s."""


class Lanes:
    """Requests for `size` bytes to be done by threads, each with a number, its lane; shared by them.

    A thread for which nothing is left takes over half of what a slow one has still to fetch, so that no bad connection keeps
    all waiting. The first `few` lanes begin.
    """

    def __init__(self, tasks: Sequence[Run | Piece], size: int, stop: Stop, few: int = FEW) -> None:
        self._few = few
        self._tasks = deque(tasks)
        self._stop = stop
        self._news = threading.Condition()
        self._running: list[Run] = []
        self._wide = size < _MUCH
        self._came = 0
        self._seen = 0
        self._looked = time.monotonic()

    def take(self, lane: int) -> Run | Piece | None:
        """The next request for a thread, when there is one; None if there will be none for it."""
        with self._news:
            while not self._stop.is_set():
                if self._tasks and (self._wide or lane < self._few):
                    return self._begun(self._tasks.popleft())
                if self._tasks:
                    self._look()
                elif half := self._half():
                    return self._begun(half)
                elif not any(run.last > run.at for run in self._running):
                    return None
                self._news.wait(_LOOK / 2)
            return None

    def came(self, amount: int) -> None:
        """So many bytes have come."""
        with self._news:
            if not self._came:
                self._looked = time.monotonic()
            self._came += amount

    def next(self, run: Run) -> bool:
        """A chunk of a run is done; whether there is another one to be fetched."""
        with self._news:
            run.at += 1
            return run.at <= run.last

    def ended(self, task: Run | Piece) -> None:
        """A thread does nothing more for it."""
        with self._news:
            if isinstance(task, Run):
                self._running.remove(task)
            if not self._tasks:
                self._news.notify_all()

    def _begun(self, task: Run | Piece) -> Run | Piece:
        if isinstance(task, Run):
            task.begun = time.monotonic()
            self._running.append(task)
        return task

    def _look(self) -> None:
        """Lets all threads begin if a few do not bring much."""
        now = time.monotonic()
        past = now - self._looked
        if past < (_LOOK if self._came else _AWAITED):
            return
        if self._came - self._seen < past * self._few * _ENOUGH:
            self._wide = True
            self._news.notify_all()
        self._looked, self._seen = now, self._came

    def _half(self) -> Run | None:
        """What a slow thread needs not fetch any more."""
        slow = time.monotonic() - _SLOW
        runs = [run for run in self._running if run.begun < slow and run.last > run.at]
        if not runs:
            return None
        run = max(runs, key=lambda run: run.last - run.at)
        middle = (run.at + run.last) // 2 + 1
        half = Run(run.opened, middle, run.last)
        run.last = middle - 1
        return half
