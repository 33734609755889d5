"""Worker processes: a function over many items, side by side, with progress, failures and interrupts as in one process.

Threads will not do for packing: between its calls into libraries it is Python that runs, for every file of a layer.
Workers are forks, which share what this process has in memory.
"""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

from builder.children import Child, children
from builder.errors import ToolError

_T = TypeVar("_T")
_R = TypeVar("_R")
Advance = Callable[[int], None]
_REPORT = 4 << 20


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

    def serve(connection: Connection) -> None:
        if setup:
            setup(*semaphores)
        _serve(connection, task)

    with children(serve, min(processes, len(items))) as made:
        started()
        return _dispatch(made, items, advance, done)


def _dispatch(
    workers: Sequence[Child], items: Sequence[_T], advance: Advance, done: Callable[[Any], None]
) -> list[Any]:
    results: dict[int, Any] = {}
    waiting = list(enumerate(items))
    running: dict[Any, tuple[Child, int]] = {}

    def give(worker: Child) -> None:
        if waiting:
            number, item = waiting.pop(0)
            worker.connection.send(item)
            running[worker.connection] = (worker, number)

    for worker in workers:
        give(worker)
    while running:
        for connection in wait(list(running)):
            worker, number = running[connection]
            kind, value = _received(worker)
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


def _received(worker: Child) -> tuple[str, Any]:
    try:
        kind, value = worker.connection.recv()
    except (EOFError, ConnectionError) as error:
        raise ToolError(
            f"a worker process ended with status {worker.status()} in the middle of its work",
            hint="if the machine ran out of memory, free some; then run the same command again",
        ) from error
    return str(kind), value


def _serve(connection: Connection, task: Callable[..., Any]) -> None:
    """The worker: takes items until there are no more, or nobody wants its answers any longer."""
    report = _Report(connection)
    while True:
        item = connection.recv()
        try:
            result = task(item, report)
            report.flush()
            connection.send(("done", result))
        except Exception as error:
            connection.send(("failed", _portable(error)))


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
