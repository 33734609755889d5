"""A measurement for people: phases as bars in a terminal, and as a timeline in SVG."""

from __future__ import annotations

from collections.abc import Iterator
from html import escape

from builder.coldstart.values import Measurement, Spread, Start, Summary
from builder.progress import human_size

_WIDTH = 40
_ROW, _LEFT, _RIGHT, _TOP = 28, 130, 260, 40
_COLOURS = ("#4269d0", "#efb118", "#ff725c", "#6cc5b0", "#3ca951", "#ff8ab7", "#a463f2", "#97bbf5", "#9c6b4e")


def text(measurement: Measurement) -> str:
    """Several lines: the starts from nothing, then those of an image that was there."""
    lines = [
        f"{measurement.reference}  {measurement.platform}  {measurement.snapshotter}",
        f"{measurement.digest}, {human_size(measurement.size)} of layers",
    ]
    for title, starts in (("cold", measurement.cold()), ("again", measurement.again())):
        if starts:
            lines += ["", *_lines(title, starts)]
    return "\n".join(lines)


def _lines(title: str, starts: tuple[Start, ...]) -> Iterator[str]:
    summary, shown = Summary.of(starts), typical(starts)
    spread = f" ({_spread(summary.seconds)})" if summary.count > 1 else ""
    times = f", median of {summary.count}{spread}" if summary.count > 1 else ""
    opened = "" if shown.opened is None else f"; {shown.opened} files opened"
    yield (
        f"{title}: ready after {summary.seconds.median:.2f} s{times}; {human_size(int(summary.bytes.median))} in "
        f"{summary.requests.median:.0f} requests, {summary.spans.median:.0f} of them spans{opened}"
    )
    width = max((len(phase.name) for phase in shown.phases), default=0)
    scale = _WIDTH / shown.seconds if shown.seconds else 0.0
    for phase in shown.phases:
        bar = " " * int(phase.begin * scale) + ("█" * round(phase.seconds * scale) or "▏")
        moved = f"{human_size(phase.bytes)}, {phase.requests} requests" if phase.requests else ""
        files = f"{phase.opened} files" if phase.opened else ""
        counted = ", ".join(filter(None, (moved, files)))
        yield f"  {phase.name.ljust(width)}  {phase.seconds:7.2f} s  {bar.ljust(_WIDTH)}  {counted}".rstrip()


def typical(starts: tuple[Start, ...]) -> Start:
    """The start whose time is nearest to the median."""
    median = Summary.of(starts).seconds.median
    return min(starts, key=lambda start: abs(start.seconds - median))


def svg(measurement: Measurement) -> str:
    """The typical start of each kind as a timeline: seconds to the right, a row for each phase."""
    rows = [
        (title, typical(starts))
        for title, starts in (("cold", measurement.cold()), ("again", measurement.again()))
        if starts
    ]
    width, scale = 720, 720 / max((start.seconds for _, start in rows), default=1.0)
    parts, y = [], _TOP
    for title, start in rows:
        parts.append(_label(8, y, f"{title}: {start.seconds:.2f} s", bold=True))
        y += _ROW
        for number, phase in enumerate(start.phases):
            x, length = _LEFT + phase.begin * scale, max(phase.seconds * scale, 1.0)
            colour = _COLOURS[number % len(_COLOURS)]
            parts.append(_label(8, y, phase.name))
            parts.append(f'<rect x="{x:.1f}" y="{y - 14}" width="{length:.1f}" height="20" fill="{colour}"/>')
            moved = f", {human_size(phase.bytes)}" if phase.bytes else ""
            parts.append(_label(x + length + 6, y, f"{phase.seconds:.2f} s{moved}"))
            y += _ROW
        y += _ROW // 2
    title = _label(8, 20, f"{measurement.reference} · {measurement.snapshotter}", bold=True)
    size = f'width="{_LEFT + width + _RIGHT}" height="{y}"'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="13">\n'
        f'<rect width="100%" height="100%" fill="white"/>\n{title}\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _label(x: float, y: float, words: str, *, bold: bool = False) -> str:
    weight = ' font-weight="bold"' if bold else ""
    return f'<text x="{x:.1f}" y="{y}"{weight}>{escape(words)}</text>'


def _spread(spread: Spread) -> str:
    return f"{spread.least:.2f} to {spread.most:.2f} s"
