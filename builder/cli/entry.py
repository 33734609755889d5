"""Where the programs begin: until one is ready to say that it was interrupted, an interrupt ends it without a word.

It imports next to nothing, since Python answers an interrupt that comes before `_quietly` with a traceback.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found] # what `signal` is made of, and there already: that takes 3 ms to import
import os


def main() -> None:
    """`build`. Ends the process."""
    _quietly()
    from builder.cli.main import main as begin

    begin()


def pull() -> None:
    """`build-model-pull`. Ends the process."""
    _quietly()
    from builder.cli.model.program import main as begin

    begin()


def _quietly() -> None:
    """Nothing is begun yet that had to be cleared away; `builder.cli.main.main` takes over from here."""
    if _signal.getsignal(_signal.SIGINT) is _signal.default_int_handler:  # who ignores it goes on ignoring it
        _signal.signal(_signal.SIGINT, _end)
    if _signal.getsignal(_signal.SIGTERM) == _signal.SIG_DFL:
        _signal.signal(_signal.SIGTERM, _end)


def _end(number: int, _: object) -> None:
    """By that signal, as any other program; the first process of a container is ended by none that it does not handle."""
    _signal.signal(number, _signal.SIG_DFL)
    os.kill(os.getpid(), number)
    os._exit(128 + number)
