"""Worker processes: results in order, failures and deaths told, nothing left running."""

from __future__ import annotations

import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from builder import workers
from builder.errors import BuilderError, ToolError

pytestmark = pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")


def square(number: int, advance: Callable[[int], None]) -> int:
    advance(number)
    return number * number


def fail_at_three(number: int, advance: Callable[[int], None]) -> int:
    if number == 3:
        raise BuilderError("three is too many", hint="take two")
    time.sleep(60 if number > 3 else 0)
    return number


def die(number: int, advance: Callable[[int], None]) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def process_id(number: int, advance: Callable[[int], None]) -> int:
    time.sleep(0.05)
    return os.getpid()


def test_results_come_in_the_order_of_the_items() -> None:
    done: list[int] = []
    assert workers.run(square, range(20), 4, done.append) == [number * number for number in range(20)]
    assert sum(done) == sum(range(20))


def test_no_more_processes_than_asked_for() -> None:
    pids = workers.run(process_id, range(12), 3, lambda amount: None)
    assert len(set(pids)) <= 3
    assert os.getpid() not in pids


def test_a_failure_ends_the_others_and_keeps_its_hint_and_traceback() -> None:
    with pytest.raises(BuilderError, match="three is too many") as caught:
        workers.run(fail_at_three, [1, 3, 4, 5], 3, lambda amount: None)
    assert caught.value.hint == "take two"
    assert "fail_at_three" in caught.value.__notes__[0]
    assert not multiprocessing.active_children()


def test_a_worker_that_is_killed_is_told() -> None:
    with pytest.raises(ToolError, match="ended with status -9"):
        workers.run(die, [1, 2], 2, lambda amount: None)
    assert not multiprocessing.active_children()


def test_workers_end_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    program = (
        "import os, pathlib, time\n"
        "from builder import workers\n"
        "def work(number, advance):\n"
        f"    pathlib.Path({str(tmp_path)!r}, str(os.getpid())).touch()\n"
        "    time.sleep(60)\n"
        "workers.run(work, [1, 2], 2, lambda amount: None)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", program])
    while len(list(tmp_path.iterdir())) < 2:
        assert parent.poll() is None
        time.sleep(0.02)
    parent.kill()
    parent.wait()
    for path in tmp_path.iterdir():
        while Path("/proc", path.name).exists() and "Z" not in _state(path.name):
            time.sleep(0.02)


def _state(pid: str) -> str:
    try:
        return Path("/proc", pid, "stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "Z"
