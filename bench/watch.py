"""Runs a command and measures what it took: time, CPU, memory and bytes read, its children counted."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path

_PERIOD = 0.05


@dataclass(frozen=True)
class Cost:
    """What a command took: seconds by the clock, seconds of CPU, and bytes.

    `memory` is the peak, sampled 20 times a second, of the proportional set sizes of all its processes, `anonymous`
    the part of it that is no page of a file. `read` counts what read(2) gave, from disks and caches alike.
    """

    wall: float
    cpu: float
    memory: int = 0
    anonymous: int = 0
    read: int = 0


def run(
    command: Sequence[str], env: Mapping[str, str], *, cpus: Sequence[int] = (), output: Path | None = None
) -> Cost:
    """Runs a command that has to succeed; `cpus` are the only ones it may use. What it prints is shown if it fails;
    with `output`, what it answers goes to that file instead."""
    if cpus:
        command = ["taskset", "--cpu-list", ",".join(map(str, cpus)), *command]
    with tempfile.TemporaryFile() as printed, output.open("wb") if output else nullcontext(printed) as answer:
        begun = time.perf_counter()
        process = subprocess.Popen(command, env=env, stdin=subprocess.DEVNULL, stdout=answer, stderr=printed)
        sampler = _Sampler(process.pid)
        sampler.start()
        try:
            # The ended process is left to be asked once more before it is reaped.
            os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
            wall = time.perf_counter() - begun
            read = _read(process.pid)
        except BaseException:
            process.terminate()
            raise
        finally:
            sampler.stop()
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            printed.seek(0)
            sys.exit(
                f"bench: {' '.join(map(str, command))} ended with {process.returncode}:\n{printed.read().decode()}"
            )
    return Cost(wall, usage.ru_utime + usage.ru_stime, sampler.memory, sampler.anonymous, read)


class _Sampler(threading.Thread):
    """Looks at the memory of a process and its descendants now and then, and keeps the largest sums."""

    def __init__(self, root: int) -> None:
        super().__init__(daemon=True)
        self._root = root
        self._done = threading.Event()
        self.memory = 0
        self.anonymous = 0

    def run(self) -> None:
        while not self._done.wait(_PERIOD):
            sums = [0, 0]
            for pid in _tree(self._root):
                for index, size in enumerate(_memory(pid)):
                    sums[index] += size
            self.memory, self.anonymous = max(self.memory, sums[0]), max(self.anonymous, sums[1])

    def stop(self) -> None:
        self._done.set()
        self.join()


def _tree(root: int) -> Iterator[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:  # it has ended in between
                continue
            # The name in brackets may hold anything, so the fields are counted from behind it.
            children.setdefault(int(stat.rpartition(")")[2].split()[1]), []).append(int(entry.name))
    waiting = [root]
    while waiting:
        pid = waiting.pop()
        yield pid
        waiting += children.get(pid, [])


def _memory(pid: int) -> tuple[int, int]:
    try:
        lines = Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines()[1:]
    except OSError:
        return 0, 0
    sizes = {line.partition(":")[0]: int(line.split()[1]) * 1024 for line in lines}
    return sizes.get("Pss", 0), sizes.get("Pss_Anon", 0)


def _read(pid: int) -> int:
    try:
        return int(Path(f"/proc/{pid}/io").read_text().split()[1])
    except OSError:
        return 0
