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
_POLL = 0.1
_SOON = 0.25
"""Seconds that threads which open connections get to end, and processes that have nothing to do."""


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
        self, descriptor: Descriptor, start: int, ends: Sequence[int], file: int, stop: Stop
    ) -> Generator[int, None, None]:
        """The bytes of a blob from `start` to the last of `ends` go to the same places in an open file: how many more are there,
        again and again, in no step beyond the next end. Nothing beyond an end is written before the next step is asked for.

        It ends when all are there, or early: then something went wrong after those that were told. Nothing checks them.
        Close it to receive no more. Raises `StoppedError`.
        """
        if self._lost:
            return
        ahead = list(reversed(ends))
        over = False
        try:
            self._ask(descriptor, start, ahead[-1], ahead[0], file)
            while amount := self._told(stop):
                start += amount
                yield amount
                if start == ahead[-1] and len(ahead) > 1:
                    ahead.pop()
                    self._child.connection.send(ahead[-1])
            over = True
        except (EOFError, OSError):
            pass
        finally:
            if not over and not (start == ahead[-1] and self._has_ended()):
                # it may be in the middle of writing: nobody waits for that, and nobody wants it any more
                self._lost = True
                self._child.kill()

    def _ask(self, descriptor: Descriptor, start: int, limit: int, end: int, file: int) -> None:
        from multiprocessing import reduction

        self._child.connection.send((descriptor, start, limit, end))
        reduction.send_handle(self._child.connection, file, 0)

    def _told(self, stop: Stop) -> int:
        while not self._child.connection.poll(_POLL):
            stop.check()
        return int(self._child.connection.recv())

    def _has_ended(self) -> bool:
        """It is asked for nothing more, at an end where it waits for what it may do."""
        with suppress(EOFError, OSError):
            self._child.connection.send(None)
            return self._child.connection.poll(_SOON) and not self._child.connection.recv()
        return False


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
        if not isinstance(asked, tuple):
            continue  # it was allowed, or forbidden, to go on with what had gone wrong, or was at its end
        file = reduction.recv_handle(connection)
        try:
            _receive(source, connection, file, *asked)
        except Exception:  # whoever asked sees what is missing, and brings that
            pass
        finally:
            os.close(file)
        connection.send(0)


def _receive(
    source: Single, connection: Connection, file: int, descriptor: Descriptor, start: int, limit: int, end: int
) -> None:
    """Brings the bytes from `start` to `end`, those beyond `limit` only when a new limit has come, which may be none."""
    told, at = time.monotonic(), start
    with closing(source.once(descriptor, start, end)) as blocks:
        for block in blocks:
            rest = memoryview(block)
            while rest:
                part = rest[: limit - at]
                write(file, at, part)
                at, rest = at + len(part), rest[len(part) :]
                if at == limit or time.monotonic() > told + _POLL:
                    connection.send(at - start)
                    told, start = time.monotonic(), at
                if at == limit != end and (limit := connection.recv()) is None:
                    return
