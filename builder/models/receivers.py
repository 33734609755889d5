"""Processes that receive: each brings one part of a blob after the other from the network into a file.

Where connections are quick, what a pull waits for is this machine's own work: decrypting, copying, hashing. Threads of one
interpreter do it one after the other for the most part. What a process cannot do, a thread here does in its place: it says
what is wrong, and tries again.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import ExitStack, closing, contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, runtime_checkable

from builder.errors import ToolError
from builder.models.filling import write
from builder.oci.content import Source
from builder.oci.spec import Descriptor
from builder.parallel import Stop

if TYPE_CHECKING:
    from multiprocessing.connection import Connection

    from builder.children import Child

MUCH = 128 << 20
"""Bytes from which it is worth making processes."""

_USUAL = 2
_REPORT = 4 << 20
_POLL = 0.1
_SOON = 0.25
"""Seconds that threads which open connections get to end."""


@runtime_checkable
class Single(Protocol):
    """A source that can be asked for a part of a blob by one request, which is not tried again; forks of this process can, too."""

    def once(self, descriptor: Descriptor, start: int, end: int) -> Generator[bytes, None, None]: ...


class Receiver:
    """One process, for one thread at a time."""

    def __init__(self, child: Child) -> None:
        self._child = child
        self._lost = False

    def receive(
        self, descriptor: Descriptor, start: int, end: int, file: int, stop: Stop
    ) -> Generator[int, None, None]:
        """The bytes `start` to `end` of a blob go to the same place in an open file: how many more are there, again and again.

        It ends when all are there, or early: then something went wrong after those that were told. Nothing checks them.
        Close it to receive no more. Raises `StoppedError`.
        """
        if self._lost:
            return
        amount = 1
        try:
            self._ask(descriptor, start, end, file)
            while amount := self._told(stop):
                yield amount
        except (EOFError, OSError):
            self._lost = True
        finally:
            if amount and not self._lost:
                self._give_up()

    def _ask(self, descriptor: Descriptor, start: int, end: int, file: int) -> None:
        from multiprocessing import reduction

        self._child.connection.send((descriptor, start, end))
        reduction.send_handle(self._child.connection, file, 0)

    def _told(self, stop: Stop) -> int:
        while not self._child.connection.poll(_POLL):
            stop.check()
        return int(self._child.connection.recv())

    def _give_up(self) -> None:
        """It is asked for nothing more if it does not end at once: what it waits for may take long."""
        with suppress(EOFError, OSError):
            self._child.connection.send(None)
            while self._child.connection.poll(_SOON):
                if not self._child.connection.recv():
                    return
        self._lost = True


@contextmanager
def receivers(source: Source, count: int, size: int) -> Iterator[Sequence[Receiver]]:
    """At most so many processes that receive from `source`, for the length of a `with` block: none where `size` bytes are not
    worth it, the source cannot do it, or this process has other threads, which no fork would have."""
    if not count or size < MUCH or not isinstance(source, Single) or not _alone():
        yield ()
        return
    from builder.children import children  # few pulls need any

    with ExitStack() as stack:
        made: Sequence[Child] = ()
        with suppress(ToolError):  # threads do it, too
            made = stack.enter_context(children(lambda connection: _serve(source, connection), count))
        yield tuple(map(Receiver, made))


def usual() -> int:
    """How many processes help on this machine: two bring more than one thread can hash, and share a single processor in vain."""
    return _USUAL if len(os.sched_getaffinity(0)) > 1 else 0


def _alone() -> bool:
    until = time.monotonic() + _SOON
    while threading.active_count() > 1:
        if time.monotonic() > until:
            return False
        time.sleep(_SOON / 50)
    return True


def _serve(source: Single, connection: Connection) -> None:
    """The process: receives until nobody is at the other end of the pipe."""
    from multiprocessing import reduction

    while True:
        asked = connection.recv()
        if asked is None:
            continue  # it was asked to stop what it had ended
        descriptor, start, end = asked
        file = reduction.recv_handle(connection)
        try:
            with closing(source.once(descriptor, start, end)) as blocks:
                told = time.monotonic()
                amount = 0
                for block in blocks:
                    write(file, start, block)
                    start += len(block)
                    amount += len(block)
                    if amount >= _REPORT or time.monotonic() > told + _POLL:
                        connection.send(amount)
                        told, amount = time.monotonic(), 0
                        if connection.poll():
                            break
                if amount:
                    connection.send(amount)
        except Exception:  # whoever asked sees what is missing, and brings that
            pass
        finally:
            os.close(file)
        connection.send(0)
