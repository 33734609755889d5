"""What begins anew in a forked process.

A fork has one thread alone: locks that others held are held for ever there, what they were doing is never done, and
connections are those of the parent.
"""

from __future__ import annotations

import os
import weakref
from typing import Protocol


class Renewed(Protocol):
    """What has connections, or waits for threads."""

    def renew(self) -> None:
        """Called once in a new process, before anything else uses the thing there; no lock may be asked for."""


_renewed: weakref.WeakSet[Renewed] = weakref.WeakSet()


def renew_in_forks(thing: Renewed) -> None:
    """Calls `thing.renew` in each process that this one forks, as long as the thing lives."""
    _renewed.add(thing)


def _renew() -> None:
    for thing in list(_renewed):
        thing.renew()


os.register_at_fork(after_in_child=_renew)
