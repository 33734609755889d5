"""What may go better when it is tried again, and how long to wait before that."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace

from builder.errors import FetchError
from builder.parallel import Stop
from builder.settings import Network

_LONGEST_DELAY = 30.0
_LONGEST_RETRY_AFTER = 120.0


class NotFoundError(FetchError):
    """The place says that it does not have it: the next one may."""


class ForbiddenError(FetchError):
    """The place gives it to others only, or wants to know who asks."""

    hint = "check the user and password of that address in your configuration"


class ForbiddenThereError(ForbiddenError):
    """The address that a server redirects to is refused: it may have expired, and the server will name another one."""

    hint = "the server sends there, and no credentials were sent along: try again later, or ask whoever runs the server"


class TransientError(FetchError):
    """The place may answer better when asked again, at the earliest after `retry_after` seconds if that is known."""

    hint = "check the network, proxies and the address, or try again later"

    def __init__(self, message: str, *, retry_after: float | None = None, hint: str | None = None) -> None:
        super().__init__(message, hint=hint)
        self.retry_after = retry_after


class RefusedError(TransientError):
    """Nobody listens there."""


class Patience:
    """Counts failed attempts and waits between them, longer each time and never in step with others; `tell` is told why."""

    def __init__(self, network: Network, stop: Stop, tell: Callable[[str], None] | None = None) -> None:
        self._network = network
        self._stop = stop
        self._tell = tell
        self._failures = 0

    def hurried(self) -> Patience:
        """A fresh count of two failures at most."""
        return Patience(replace(self._network, attempts=min(self._network.attempts, 2)), self._stop, self._tell)

    def failed(self, error: TransientError, *, progressed: bool = False) -> None:
        """Waits before the next attempt, or raises `error` when there were enough; progress starts a new count."""
        self._failures = 1 if progressed else self._failures + 1
        if self._failures >= self._network.attempts:
            raise error
        delay = min(self._network.backoff * 2 ** (self._failures - 1), _LONGEST_DELAY) * (0.5 + random.random())
        if error.retry_after is not None:
            if error.retry_after > _LONGEST_RETRY_AFTER:
                raise error
            delay = max(delay, error.retry_after)
        if self._tell is not None:
            left = self._network.attempts - self._failures
            self._tell(f"{error}; asked again in {delay:.1f} s, {left} more time{'s' if left > 1 else ''}")
        self._stop.sleep(delay)
