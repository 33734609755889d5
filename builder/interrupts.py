"""Signals that end a program by what their handler raises, wherever it is at that moment."""

from __future__ import annotations

import atexit
import signal
import sys
from collections.abc import Callable, Iterable

_SOON = 0.01


def ended_by(signals: Iterable[signal.Signals], handler: Callable[..., object]) -> None:
    """`handler`, which raises `KeyboardInterrupt` or `SystemExit`, is called for these signals.

    Where one comes while the interpreter clears something away, what the handler raises is dropped: it is called again a moment
    later, by a timer (SIGALRM), and so is Python's own handler of SIGINT. At the end of the program nothing is left to end.
    """
    for each in (*signals, signal.SIGALRM):
        signal.signal(each, handler)
    sys.unraisablehook = _again
    atexit.register(signal.setitimer, signal.ITIMER_REAL, 0)


def _again(lost: sys.UnraisableHookArgs) -> None:
    if isinstance(lost.exc_value, KeyboardInterrupt | SystemExit):
        if not sys.is_finalizing():
            signal.setitimer(signal.ITIMER_REAL, _SOON)
    else:
        sys.__unraisablehook__(lost)
