"""The phases of one start, put together: what was seen from outside, what the program marked, and what went over the wire."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from builder.coldstart.gateway import NAME, Request
from builder.coldstart.values import Phase, Start

MOST_MARKS = 4 << 20
"""So many bytes of marks are read of a program, at most."""
PROGRAM = "program"
"""The phase in which the program runs until it is ready; phases that it marks are cut out of it."""
_SHORT = 0.001


@dataclass(frozen=True)
class Mark:
    """A phase that the program marked, in seconds of `time.monotonic`."""

    name: str
    begin: float
    end: float


@dataclass(frozen=True)
class Seen:
    """What was seen of a start, all times in seconds of `time.monotonic`: when it began, the ends of its phases in order, `program`
    among them, what was asked of the registry, and when each file was opened first (None: not watched)."""

    begun: float
    ends: Sequence[tuple[str, float]]
    requests: Sequence[Request] = ()
    opened: Mapping[str, float] | None = field(default=None)


def marks(path: Path) -> list[Mark]:
    """The phases that the program has marked and that lie in no other, in order; lines that are none are left out."""
    found = []
    for line in _lines(path):
        with suppress(ValueError, KeyError, TypeError, OverflowError):
            entry = json.loads(line)
            end = int(entry["end_ns"]) / 1e9
            begin = int(entry.get("begin_ns", 0)) / 1e9
            if isinstance(entry["phase"], str) and entry["phase"].isprintable() and not entry.get("depth"):
                found.append(Mark(entry["phase"][:100], begin, end))
    return sorted(found, key=lambda mark: mark.end)


def says_ready(path: Path) -> bool:
    """Whether the program has said that it is."""
    for line in _lines(path):
        with suppress(ValueError, TypeError):
            if "ready_ns" in json.loads(line):
                return True
    return False


def _lines(path: Path) -> list[bytes]:
    with path.open("rb") as file:
        return file.read(MOST_MARKS).splitlines()


def told(seen: Seen, marked: Sequence[Mark], status: int | None, again: bool) -> Start:
    """The phases one after another: those that the program marked are their own, and what lies between is the program's."""
    end = seen.ends[-1][1]
    phases: list[Phase] = []
    at = seen.begun

    def add(name: str, until: float) -> None:
        nonlocal at
        until = min(max(until, at), end)
        phases.append(_phase(name, at, until, seen))
        at = until

    for name, until in seen.ends:
        if name != PROGRAM:
            add(name, until)
            continue
        within = [mark for mark in marked if mark.begin < until]
        for mark in within:
            if mark.begin > at + _SHORT:
                add(PROGRAM, mark.begin)
            add(mark.name, min(mark.end, until))
        if not within or until > at + _SHORT:
            add(PROGRAM, until)
    there = [request for request in seen.requests if request.at <= end]
    return Start(
        tuple(phases),
        round(end - seen.begun, 3),
        sum(request.sent for request in there),
        len(there),
        sum(map(_is_span, there)),
        again,
        status,
        None if seen.opened is None else sum(time <= end for time in seen.opened.values()),
    )


def _phase(name: str, begin: float, end: float, seen: Seen) -> Phase:
    there = [request for request in seen.requests if begin <= request.at < end]
    return Phase(
        name,
        round(begin - seen.begun, 3),
        round(end - begin, 3),
        sum(request.sent for request in there),
        len(there),
        sum(map(_is_span, there)),
        None if seen.opened is None else sum(begin < time <= end for time in seen.opened.values()),
    )


def _is_span(request: Request) -> bool:
    return request.kind == "blob" and request.status == 206 and request.repository == NAME
