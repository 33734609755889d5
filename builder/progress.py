"""Narration and progress: what is being done, how much of it, how fast, how long it will take."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType
from typing import Protocol, Self, TextIO

_LIVE_INTERVAL = 0.1
_LINE_INTERVAL = 5.0
_WORTH_A_LINE = 1.0
_WINDOW = 5.0
_CLEAR = "\r\x1b[K"


class Task(Protocol):
    """Something that takes time, for the length of a `with` block."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def advance(self, amount: int) -> None:
        """So much more is done (less, if negative); cheap, and fine from any thread."""


class Progress(Protocol):
    """Where steps tell what they do."""

    def task(self, label: str, total: int | None = None, unit: str = "B") -> Task:
        """`total` in `unit`s if it is known; the unit `B` is shown as kB, MB, GB."""

    def note(self, message: str) -> None:
        """One line of narration."""


class Silent:
    """Says nothing."""

    def task(self, label: str, total: int | None = None, unit: str = "B") -> Task:
        return _SilentTask()

    def note(self, message: str) -> None:
        return None


class Terminal:
    """Tells people on a text stream: one live line on a terminal, elsewhere a line now and then.

    `clock` gives seconds and never goes back. `live` is whether the stream is a terminal that can redraw a line
    (None: ask the stream), `color` whether its text may be coloured.
    """

    def __init__(
        self, stream: TextIO, clock: Callable[[], float], *, live: bool | None = None, color: bool = False
    ) -> None:
        self._stream = stream
        self._clock = clock
        self._live = stream.isatty() if live is None else live
        self._color = color and self._live
        self._guard = threading.RLock()
        self._batch: list[_TerminalTask] = []  # the running tasks and those that ended while others ran
        self._meters: dict[str, _Meter] = {}
        self._next = 0.0
        self._drawn = False

    def task(self, label: str, total: int | None = None, unit: str = "B") -> Task:
        return _TerminalTask(self, _one_line(label), total, unit)

    def note(self, message: str) -> None:
        with self._guard:
            self._erase()
            self._write(_one_line(message) + "\n")
            self._draw_if_live()

    def _enter(self, task: _TerminalTask) -> None:
        with self._guard:
            now = self._clock()
            if not any(other.running for other in self._batch):
                self._batch.clear()
                self._meters.clear()
                self._next = now + (_LIVE_INTERVAL if self._live else _LINE_INTERVAL)
            task.start(now)
            self._batch.append(task)
            self._draw_if_live()

    def _advance(self, task: _TerminalTask, amount: int) -> None:
        with self._guard:
            task.done += amount
            now = self._clock()
            if now < self._next:
                return
            if self._live:
                self._draw(now)
            else:
                self._next = now + _LINE_INTERVAL
                self._write(self._line(now) + "\n")

    def _exit(self, task: _TerminalTask, succeeded: bool) -> None:
        with self._guard:
            now = self._clock()
            task.running = False
            self._erase()
            if succeeded and now - task.started > _WORTH_A_LINE:
                self._write(_summary(task, now) + "\n")
            if any(other.running for other in self._batch):
                self._draw_if_live()

    def _draw_if_live(self) -> None:
        if self._live and any(task.running for task in self._batch):
            self._draw(self._clock())

    def _draw(self, now: float) -> None:
        self._next = now + _LIVE_INTERVAL
        text = self._line(now)[: self._width() - 1]
        self._write(_CLEAR + (f"\x1b[36m{text}\x1b[0m" if self._color else text))
        self._drawn = True

    def _erase(self) -> None:
        if self._drawn:
            self._write(_CLEAR)
            self._drawn = False

    def _line(self, now: float) -> str:
        """One part per unit: tasks that count the same thing are summed."""
        units = list(dict.fromkeys(task.unit for task in self._batch))
        parts = []
        for unit in units:
            tasks = [task for task in self._batch if task.unit == unit]
            running = [task for task in tasks if task.running]
            if running:
                more = f" and {len(running) - 1} more" if len(running) > 1 else ""
                parts.append(f"{running[0].label}{more}  {self._amounts(unit, tasks, now)}".rstrip())
        return " · ".join(parts)

    def _amounts(self, unit: str, tasks: list[_TerminalTask], now: float) -> str:
        done = sum(task.done for task in tasks)
        meter = self._meters.setdefault(unit, _Meter(tasks[0].started))
        rate = meter.rate(now, done)
        totals = [task.total for task in tasks if task.total is not None]
        words = []
        if len(totals) == len(tasks):
            total = sum(totals)
            words.append(f"{min(100 * done // total, 100)}%" if total else "100%")
            words.append(f"{_amount(done, unit) if unit == 'B' else done} of {_amount(total, unit)}")
        else:
            total = 0
            words.append(_amount(done, unit) if done else f"{human_time(now - tasks[0].started)}")
        if rate > 0 and unit == "B":
            words.append(f"{human_size(rate)}/s")
        if rate > 0 and total > done:
            words.append(f"{human_time((total - done) / rate)} left")
        return "  ".join(words)

    def _width(self) -> int:
        with suppress(OSError, ValueError):
            return os.get_terminal_size(self._stream.fileno()).columns or 80
        return 80

    def _write(self, text: str) -> None:
        with suppress(OSError, ValueError):  # nobody reads it any more: that must not end the work
            self._stream.write(text)
            self._stream.flush()


class _SilentTask:
    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        return None

    def advance(self, amount: int) -> None:
        return None


class _TerminalTask:
    def __init__(self, terminal: Terminal, label: str, total: int | None, unit: str) -> None:
        self.label = label
        self.total = total
        self.unit = unit
        self.done = 0
        self.started = 0.0
        self.running = False
        self._terminal = terminal

    def start(self, now: float) -> None:
        self.started = now
        self.running = True

    def __enter__(self) -> Self:
        self._terminal._enter(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._terminal._exit(self, error is None)

    def advance(self, amount: int) -> None:
        self._terminal._advance(self, amount)


class _Meter:
    """The rate of the last seconds, from samples."""

    def __init__(self, started: float) -> None:
        self._samples: deque[tuple[float, int]] = deque([(started, 0)])

    def rate(self, now: float, done: int) -> float:
        self._samples.append((now, done))
        while len(self._samples) > 2 and self._samples[1][0] <= now - _WINDOW:
            self._samples.popleft()
        since, before = self._samples[0]
        return max(done - before, 0) / (now - since) if now > since else 0.0


def human_size(amount: float) -> str:
    """Bytes in decimal units: `999 B`, `1.2 kB`, `3.4 GB`."""
    if abs(amount) < 999.5:
        return f"{amount:.0f} B"
    for unit in ("kB", "MB", "GB"):
        amount /= 1000
        if abs(amount) < 999.95:
            return f"{amount:.1f} {unit}"
    return f"{amount / 1000:.1f} TB"


def counted(number: int, noun: str) -> str:
    """`1 file`, `2 files`: a number and what is counted, whose plural ends with an s."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def human_time(seconds: float) -> str:
    """`0:07`, `12:34`, `1:02:03`."""
    minutes, rest = divmod(max(round(seconds), 0), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"


def _amount(number: int, unit: str) -> str:
    return human_size(number) if unit == "B" else f"{number} {unit}"


def _summary(task: _TerminalTask, now: float) -> str:
    seconds = now - task.started
    took = f"{seconds:.1f} s" if seconds < 60 else human_time(seconds)
    if not task.done:
        return f"{task.label}  {took}"
    rate = f"  {human_size(task.done / seconds)}/s" if task.unit == "B" else ""
    return f"{task.label}  {_amount(task.done, task.unit)} in {took}{rate}"


def _one_line(text: str) -> str:
    """Foreign names may hold control characters: they must not steer the terminal."""
    return "".join(letter if letter.isprintable() else "?" for letter in text)
