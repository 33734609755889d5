"""How what was measured is shown."""

from __future__ import annotations

import os
import platform
import sys
from pathlib import Path

from bench.measurements import MB, Row

HEAD = "| | wall s | CPU s | memory MB | anonymous MB | read MB | |\n|---|---:|---:|---:|---:|---:|---|"


def line(row: Row) -> str:
    """A row of the table; what was not measured stays empty."""
    sizes = (f"{size / MB:,.0f}" if size else "" for size in (row.cost.memory, row.cost.anonymous, row.cost.read))
    return f"| {row.name} | {row.cost.wall:.2f} | {row.cost.cpu:.2f} | {' | '.join(sizes)} | {row.note} |"


def machine() -> str:
    """The processor, how many of its cores may be used, and the Python that runs this."""
    models = [text for text in Path("/proc/cpuinfo").read_text().splitlines() if text.startswith("model name")]
    model = models[0].partition(":")[2].strip() if models else platform.machine()
    return f"{model}, {len(os.sched_getaffinity(0))} cores, Python {platform.python_version()}"


def say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)
