"""What is measured, one function each, and the rows of the table that come of it."""

from __future__ import annotations

import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from bench import floor, watch
from bench.engines import Engine
from bench.watch import Cost
from bench.workplace import Workplace, new_blobs, top_digest

MB = 10**6
_HELP_RUNS = 9


@dataclass(frozen=True)
class Row:
    """One line of the table."""

    name: str
    cost: Cost
    note: str = ""


def least(inputs: Sequence[Path], engine: Engine) -> list[Row]:
    """The floor; its sum is the last row."""
    found = floor.measure(inputs, engine)
    total = Cost(
        sum(part.wall for part in (found.hash_inputs, found.inflate, found.hash_tar)),
        sum(part.cpu for part in (found.hash_inputs, found.inflate, found.hash_tar)),
    )
    return [
        Row("floor: SHA-256 of the inputs", found.hash_inputs, f"{found.input_bytes / MB:,.0f} MB"),
        Row(f"floor: inflate by {engine.name}", found.inflate, f"{found.inflated_bytes / MB:,.0f} MB"),
        Row("floor: SHA-256 of the tar", found.hash_tar, f"{found.tar_bytes / MB:,.0f} MB"),
        Row("floor, sum", total),
    ]


def cold(work: Workplace, rounds: int, lowest: Cost) -> Row:
    """Lock to layout and SOCI index, with the inputs in the store and no layer known; every round the same digest."""
    costs, digests = [], set()
    for _ in range(rounds):
        store, layout = work.store(), work.layout()
        costs.append(work.publish(store, layout))
        digests.add(top_digest(layout))
        work.remove(store, layout)
    if len(digests) > 1:
        sys.exit(f"bench: the rounds made different images: {', '.join(sorted(digests))}")
    cost = median(costs)
    note = f"{cost.wall / lowest.wall:.1f} x the floor, CPU {cost.cpu / lowest.cpu:.1f} x; {digests.pop()[:19]}"
    return Row(f"cold, median of {rounds}", cost, note)


def again(work: Workplace) -> list[Row]:
    """The same publish once more; then with one file of the application changed."""
    store, layout = work.store(), work.layout()
    work.publish(store, layout)
    unchanged = median([work.publish(store, layout) for _ in range(3)])
    known = {path.name for path in layout.glob("blobs/sha256/*")}
    name = work.change_file()
    changed = work.publish(store, layout, "--lock")
    new = new_blobs(layout, known)
    work.remove(store, layout)
    blobs = ", ".join(f"{kind} {size:,}" for kind, size in new)
    return [
        Row("nothing changed", unchanged),
        Row(f"{name} changed", changed, f"new, in bytes: {blobs or 'none'}"),
    ]


def cores(work: Workplace) -> list[Row]:
    """From cold on two cores and on four, where there are four."""
    usable = sorted(os.sched_getaffinity(0))
    if len(usable) < 4:
        return []
    rows = []
    for number in (2, 4):
        store, layout = work.store(), work.layout()
        rows.append(Row(f"cold on {number} cores", work.publish(store, layout, cpus=usable[:number])))
        work.remove(store, layout)
    gain = rows[0].cost.wall / rows[1].cost.wall
    return [rows[0], Row(rows[1].name, rows[1].cost, f"{gain:.2f} x faster")]


def start(build: str) -> list[Row]:
    """The start of the command, and of its Python alone."""
    env = dict(os.environ)
    shown = median([watch.run([build, "--help"], env) for _ in range(_HELP_RUNS)])
    with Path(build).open("rb") as script:
        first = script.readline().decode(errors="replace").strip()
    rows = [Row(f"build --help, median of {_HELP_RUNS}", shown)]
    if first.startswith("#!") and "python" in first:
        bare = median([watch.run([first[2:], "-c", ""], env) for _ in range(_HELP_RUNS)])
        rows.append(Row("an empty Python, the same way", bare))
    return rows


def median(costs: Sequence[Cost]) -> Cost:
    """Of each figure by itself; memory and bytes are the largest."""
    return Cost(
        statistics.median(cost.wall for cost in costs),
        statistics.median(cost.cpu for cost in costs),
        max(cost.memory for cost in costs),
        max(cost.anonymous for cost in costs),
        max(cost.read for cost in costs),
    )
