"""Worker processes: a function over many items, side by side, with progress, failures and interrupts as in one process.

Threads will not do for packing: between its calls into libraries it is Python that runs, for every file of a layer.
Workers are forks, which share what this process has in memory.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import signal
import sys
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from multiprocessing.context import ForkContext, ForkProcess
from typing import Any, TypeVar

from builder.errors import ToolError
from builder.interrupts import ended_by

_T = TypeVar("_T")
_R = TypeVar("_R")
Advance = Callable[[int], None]
_REPORT = 4 << 20
_PATIENCE = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def run(
    task: Callable[[_T, Advance], _R],
    items: Sequence[_T],
    processes: int,
    advance: Advance,
    setup: Callable[..., None] | None = None,
    slots: Sequence[int] = (),
    *,
    started: Callable[[], None] = lambda: None,
    done: Callable[[_R], None] = lambda _: None,
) -> list[_R]:
    """`task(item, advance)` of every item, in the order of the items, by at most `processes` processes.

    Items are begun in their order. `task` and its results travel as pickles. `setup` is called first in every
    worker, with one semaphore for each number in `slots`. The first failure ends the others and is raised here; so does
    an interrupt. Call it while no other thread is at work: a fork has only the one that made it. `started` is called when
    all forks are made and `done` with every result as it comes; they may start threads.
    """
    context = multiprocessing.get_context("fork")
    semaphores = [context.BoundedSemaphore(count) for count in slots]
    workers: list[_Worker] = []
    gc.freeze()  # what the collector never looks at stays shared
    try:
        with _blocked(_SIGNALS):
            for _ in range(min(processes, len(items))):
                inherited = [worker.connection for worker in workers]
                workers.append(_Worker(context, task, setup, semaphores, inherited))
        started()
        return _dispatch(workers, items, advance, done)
    finally:
        gc.unfreeze()
        for worker in workers:
            worker.end()
        for worker in workers:
            worker.join()


def _dispatch(
    workers: Sequence[_Worker], items: Sequence[_T], advance: Advance, done: Callable[[Any], None]
) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = list(enumerate(items))
    running: dict[Any, tuple[_Worker, int]] = {}

    def give(worker: _Worker) -> None:
        if waiting:
            number, item = waiting.pop(0)
            worker.connection.send(item)
            running[worker.connection] = (worker, number)

    for worker in workers:
        give(worker)
    while running:
        for connection in wait(list(running)):
            worker, number = running[connection]
            kind, value = worker.receive()
            if kind == "advanced":
                advance(value)
            elif kind == "failed":
                raise value
            else:
                results[number] = value
                del running[connection]
                give(worker)
                done(value)
    return [results[number] for number in range(len(items))]


class _Worker:
    """One process and our end of the pipe to it."""

    def __init__(
        self,
        context: ForkContext,
        task: Callable[..., Any],
        setup: Callable[..., None] | None,
        semaphores: Sequence[Any],
        inherited: Sequence[Connection],
    ) -> None:
        self.connection, theirs = context.Pipe()
        self._process: ForkProcess = context.Process(
            target=_serve, args=(theirs, task, setup, semaphores, [*inherited, self.connection]), daemon=True
        )
        self._process.start()
        theirs.close()

    def receive(self) -> tuple[str, Any]:
        try:
            kind, value = self.connection.recv()
        except (EOFError, ConnectionError) as error:
            self._process.join(_PATIENCE)
            raise ToolError(
                f"a worker process ended with status {self._process.exitcode} in the middle of its work",
                hint="if the machine ran out of memory, free some; then run the same command again",
            ) from error
        return str(kind), value

    def end(self) -> None:
        """Asks the process to end: at once, but after it has cleaned up."""
        self.connection.close()
        self._process.terminate()

    def join(self) -> None:
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


def _serve(
    connection: Connection,
    task: Callable[..., Any],
    setup: Callable[..., None] | None,
    semaphores: Sequence[Any],
    inherited: Sequence[Connection],
) -> None:
    """The worker: takes items until there are no more, or nobody wants its answers any longer."""
    for ours in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ours, signal.SIG_IGN)  # the parent gets it too, and decides
    ended_by((signal.SIGTERM,), lambda *_: sys.exit(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    _end_with_parent()
    _return_memory()
    for other in inherited:
        other.close()  # else no worker would notice that its pipe has nobody at the other end
    report = _Report(connection)
    if setup:
        setup(*semaphores)
    try:
        while True:
            item = connection.recv()
            try:
                result = task(item, report)
                report.flush()
                connection.send(("done", result))
            except Exception as error:
                connection.send(("failed", _portable(error)))
    except (EOFError, ConnectionError):
        sys.exit(1)


@contextlib.contextmanager
def _blocked(signals: Iterable[signal.Signals]) -> Iterator[None]:
    """Signals wait: a new process must not get them before it has said what they mean to it."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signals)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with_parent() -> None:
    """Has the system end this process when its parent is killed: prctl(2), Linux only."""
    with contextlib.suppress(AttributeError):
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGTERM))


def _return_memory() -> None:
    """Lets glibc give large blocks back to the system once they are free: mallopt(3). Other C libraries do so anyway."""
    with contextlib.suppress(AttributeError):
        for option, value in ((_M_MMAP_THRESHOLD, 2 << 20), (_M_TRIM_THRESHOLD, 4 << 20), (_M_ARENA_MAX, 1)):
            ctypes.CDLL(None).mallopt(option, value)


class _Report:
    """Tells the parent about progress, not about every kilobyte."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pending = 0

    def __call__(self, amount: int) -> None:
        self._pending += amount
        if self._pending >= _REPORT:
            self.flush()

    def flush(self) -> None:
        self._connection.send(("advanced", self._pending))
        self._pending = 0


def _portable(error: Exception) -> Exception:
    """The error with the worker's own traceback as a note, which is all that is left of it in the parent."""
    error.add_note("in a worker process:\n" + "".join(traceback.format_exception(error)))
    error.__traceback__ = error.__cause__ = error.__context__ = None
    return error
