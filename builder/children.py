"""Forks of this process that serve it: each has our end of a pipe, and ends when it is told to or when we are killed."""

from __future__ import annotations

import contextlib
import ctypes
import gc
import multiprocessing
import signal
import sys
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkContext, ForkProcess

from builder.errors import ToolError
from builder.interrupts import ended_by

_PATIENCE = 30.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
_PR_SET_PDEATHSIG = 1  # linux/prctl.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


class Child:
    """One process, and `connection`, our end of the pipe to it."""

    def __init__(self, context: ForkContext, serve: Callable[[Connection], None], others: Iterable[Connection]) -> None:
        self.connection, theirs = context.Pipe()
        self._process: ForkProcess = context.Process(
            target=_begin, args=(theirs, serve, [*others, self.connection]), daemon=True
        )
        self._process.start()
        theirs.close()

    def status(self) -> int | None:
        """How it ended, as `multiprocessing.Process.exitcode`; waits for that."""
        self._process.join(_PATIENCE)
        return self._process.exitcode

    def end(self) -> None:
        """Asks the process to end: at once, but after it has cleaned up."""
        self.connection.close()
        self._process.terminate()

    def kill(self) -> None:
        """It does nothing more, from now on."""
        self._process.kill()
        self._process.join()

    def join(self) -> None:
        """Waits for its end."""
        self._process.join(_PATIENCE)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def children(serve: Callable[[Connection], None], count: int) -> Iterator[tuple[Child, ...]]:
    """So many forks of this process, each of which calls `serve` with its end of the pipe, for the length of a `with` block.

    Call it while no other thread is at work: a fork has only the one that made it. `serve` ends by `EOFError` from a pipe
    that has nobody at our end. SIGTERM ends it by `SystemExit`; SIGINT and SIGHUP are left to this process, which decides.
    Raises `ToolError` where no process can be made.
    """
    context = multiprocessing.get_context("fork")
    made: list[Child] = []
    gc.freeze()  # what the collector never looks at stays shared
    try:
        with _blocked(_SIGNALS), _explained():
            for _ in range(count):
                made.append(Child(context, serve, [child.connection for child in made]))
        yield tuple(made)
    finally:
        gc.unfreeze()
        for child in made:
            child.end()
        for child in made:
            child.join()


def _begin(connection: Connection, serve: Callable[[Connection], None], others: Iterable[Connection]) -> None:
    for ours in (signal.SIGINT, signal.SIGHUP):
        signal.signal(ours, signal.SIG_IGN)
    ended_by((signal.SIGTERM,), lambda *_: sys.exit(1))
    signal.pthread_sigmask(signal.SIG_UNBLOCK, _SIGNALS)
    _end_with_parent()
    _return_memory()
    for other in others:
        other.close()  # else none would notice that its pipe has nobody at the other end
    try:
        serve(connection)
    except (EOFError, ConnectionError):
        sys.exit(1)


@contextlib.contextmanager
def _explained() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise ToolError(
            f"no process can be made: {error.strerror or error}",
            hint="allow more processes (`ulimit -u`, the container's limit of pids) or more memory",
        ) from error


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
    """Lets glibc give large blocks back to the system once they are free, and keep small ones: mallopt(3). Other C libraries do
    so anyway."""
    with contextlib.suppress(AttributeError):
        for option, value in ((_M_MMAP_THRESHOLD, 2 << 20), (_M_TRIM_THRESHOLD, 4 << 20), (_M_ARENA_MAX, 1)):
            ctypes.CDLL(None).mallopt(option, value)
