"""A function over many items on a few threads, which can be stopped; and what several threads need once."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from typing import Generic, TypeVar

T = TypeVar("T")
_GRACE = 2.0
_POLL = 0.1


class StoppedError(Exception):
    """This work was asked to stop; never shown to a user."""


class Stop:
    """A request to stop, of this work or of the work that it is part of."""

    def __init__(self, parent: Stop | None = None) -> None:
        self._event = threading.Event()
        self._parent = parent

    def set(self) -> None:
        self._event.set()

    def is_set(self) -> bool:
        return self._event.is_set() or (self._parent is not None and self._parent.is_set())

    def check(self) -> None:
        """Raises `StoppedError` if a stop was asked for."""
        if self.is_set():
            raise StoppedError

    def sleep(self, seconds: float) -> None:
        """Waits, but raises `StoppedError` as soon as a stop is asked for."""
        self.check()
        while seconds > 0:
            self._event.wait(min(seconds, _POLL))
            self.check()
            seconds -= _POLL


def for_each(function: Callable[[T], None], items: Iterable[T], threads: int, stop: Stop) -> list[Exception]:
    """Calls `function` with every item, on `threads` threads at once, and returns what was raised.

    After the first failure no further item is begun and `stop` is set, so that what runs can end early. The threads
    are daemons: an interrupt of the caller asks them to stop and waits for them, but not for a silent peer.
    """
    waiting = list(items)
    waiting.reverse()
    failures: list[Exception] = []
    guard = threading.Lock()
    finished = threading.Event()
    running = min(threads, len(waiting))
    if not running:
        return failures

    def work() -> None:
        nonlocal running
        try:
            while not stop.is_set():
                with guard:
                    if not waiting:
                        break
                    item = waiting.pop()
                function(item)
        except StoppedError:
            pass
        except Exception as error:
            with guard:
                failures.append(error)
            stop.set()
        finally:
            with guard:
                running -= 1
                last = not running
            if last:
                finished.set()

    for _ in range(running):
        threading.Thread(target=work, daemon=True).start()
    try:
        finished.wait()
    except BaseException:
        stop.set()
        finished.wait(_GRACE)
        raise
    return failures


class Once(Generic[T]):
    """What `make` makes when it is first asked for, whichever thread asks; where that fails, the next to ask tries again."""

    def __init__(self, make: Callable[[], T]) -> None:
        self._make = make
        self._guard = threading.Lock()
        self._made: tuple[T] | None = None

    def __call__(self) -> T:
        with self._guard:
            if self._made is None:
                self._made = (self._make(),)
            return self._made[0]
