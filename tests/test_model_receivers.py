"""Large models come by processes of their own: all of it, once, whatever becomes of them, and none outlives its parent."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from itertools import count
from pathlib import Path

import faultregistry
import modelworld
import pytest
from faultregistry import Fault, FaultRegistry, Request
from modelregistry import found, serving

FILES = modelworld.small_files(seed=21, megabytes=48)
SIZE = sum(map(len, FILES.values()))
TWO = len(os.sched_getaffinity(0)) > 1
_RUN = """
import os, sys
if "FORKS" in os.environ:  # a container's limit of pids
    forks = iter(range(int(os.environ["FORKS"])))
    def limit(event, arguments):
        if event == "os.fork" and next(forks, None) is None:
            raise BlockingIOError(11, "Resource temporarily unavailable")
    sys.addaudithook(limit)
from builder.cli.main import main
from builder.models import receivers
receivers.MUCH = 1 << 20
sys.exit(main())
"""

pytestmark = pytest.mark.skipif(not TWO, reason="one processor does all by itself")


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("registry"), FILES) as address:
        yield address


class Pull:
    """`build model pull`, to which any model is a large one, and the processes that work for it."""

    def __init__(self, way: FaultRegistry, folder: Path, *options: str, **environ: str) -> None:
        command = ["model", "pull", f"{way.address}/some/image:v1", "model", "--cache", "cache", "--format", "json"]
        self.process = subprocess.Popen(
            [sys.executable, "-c", _RUN, *command, *options],
            cwd=folder,
            env={"HOME": str(folder), "XDG_CACHE_HOME": str(folder / "xdg"), "PATH": os.environ["PATH"], **environ},
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )
        self.seen: set[int] = set()

    def look(self) -> set[int]:
        """The processes that it has now."""
        with suppress(OSError):
            name = f"/proc/{self.process.pid}/task/{self.process.pid}/children"
            now = set(map(int, Path(name).read_text().split()))
            self.seen |= now
            return now
        return set()

    def end(self) -> tuple[str, str]:
        try:
            return self.process.communicate(timeout=60)
        finally:
            with suppress(OSError):
                os.killpg(self.process.pid, signal.SIGKILL)


def watched(
    way: FaultRegistry, folder: Path, fault: Callable[[int, Pull], Fault | None], *options: str, **environ: str
) -> Pull:
    """A pull that has begun; `fault` is asked at each request for a blob, with its number."""
    numbers = count()
    begun: list[Pull] = []

    def decide(request: Request) -> Fault | None:
        if request.what != "GET blobs" or "range" not in request.headers:
            return None
        while not begun:
            time.sleep(0.001)
        begun[0].look()
        return fault(next(numbers), begun[0])

    way.decide = decide
    begun.append(Pull(way, folder, *options, **environ))
    return begun[0]


def asked(way: FaultRegistry) -> int:
    """The bytes of parts of blobs that were asked for."""
    ranges = (re.fullmatch(r"bytes=(\d+)-(\d+)", request.headers.get("range", "")) for request in way.seen)
    return sum(int(match[2]) + 1 - int(match[1]) for match in ranges if match)


def slow(number: int, pull: Pull) -> Fault:
    return faultregistry.slow


def assert_gone(processes: Sequence[int] | set[int]) -> None:
    until = time.monotonic() + 10
    while any(Path(f"/proc/{each}").exists() and _state(each) != "Z" for each in processes):
        assert time.monotonic() < until, "processes outlive the pull that they work for"
        time.sleep(0.01)


def _state(process: int) -> str:
    with suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0]
    return "Z"


def test_two_processes_bring_it(way: FaultRegistry, tmp_path: Path) -> None:
    """Each byte is asked for once; tokens are asked for by those who need one."""
    way.users = {"reader": "secret"}
    (tmp_path / ".docker").mkdir()
    login = {"auths": {way.address: {"username": "reader", "password": "secret"}}}
    (tmp_path / ".docker/config.json").write_text(json.dumps(login))
    pull = watched(way, tmp_path, slow)
    out, err = pull.end()
    assert pull.process.returncode == 0, err
    assert found(tmp_path / "model") == FILES
    assert len(pull.seen) == 2
    assert json.loads(out)["moved"] == {"fetched": SIZE, "reused": 0, "resumed": 0, "present": 0}
    assert asked(way) <= SIZE
    assert len(way.requests("GET token")) == 1, "they have the token that was there"
    assert_gone(pull.seen)
    assert "\n" not in err.strip(), err


@pytest.mark.parametrize(
    "fault",
    [
        faultregistry.truncated,
        faultregistry.busy(503),
        faultregistry.wrong_length(-1),
        faultregistry.damaged_answer,
        faultregistry.no_ranges,
    ],
    ids=["truncated", "busy", "length", "damaged", "ranges"],
)
def test_what_goes_wrong_is_done_again_here(fault: Fault, way: FaultRegistry, tmp_path: Path) -> None:
    pull = watched(way, tmp_path, lambda number, pull: fault if number % 4 == 1 else None)
    _, err = pull.end()
    assert pull.process.returncode == 0, err
    assert len(pull.seen) == 2
    assert found(tmp_path / "model") == FILES


def test_processes_may_die(way: FaultRegistry, tmp_path: Path) -> None:
    """As one does for which there is no memory; threads go on."""

    def kill(number: int, pull: Pull) -> Fault:
        if number in (2, 4):
            for each in sorted(pull.look())[:1]:
                os.kill(each, signal.SIGKILL)
        return faultregistry.slow

    pull = watched(way, tmp_path, kill)
    _, err = pull.end()
    assert pull.process.returncode == 0, err
    assert len(pull.seen) == 2
    assert found(tmp_path / "model") == FILES


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_they_end_with_it(how: signal.Signals, way: FaultRegistry, tmp_path: Path) -> None:
    """The next pull goes on with what is there, and waits for nobody."""
    journals = tmp_path / "cache/partial"
    stopped = threading.Event()

    def stop(number: int, pull: Pull) -> Fault:
        if number == 4:
            while not any(map(_has_begun, journals.glob("*.chunks"))):
                time.sleep(0.001)
            os.kill(pull.process.pid, how) if how is signal.SIGKILL else os.killpg(pull.process.pid, how)
        if number >= 4:
            stopped.wait(30)
        return faultregistry.slow

    pull = watched(way, tmp_path, stop)
    try:
        assert pull.process.wait(30) == (-9 if how is signal.SIGKILL else 130)
    finally:
        stopped.set()
    assert_gone(pull.seen)
    assert len(pull.seen) == 2
    assert not (tmp_path / "model").exists()
    pull.end()
    again = watched(way, tmp_path, slow)
    out, err = again.end()
    assert again.process.returncode == 0, err
    moved = json.loads(out)["moved"]
    assert 0 < moved["fetched"] < SIZE
    assert sum(moved.values()) == SIZE
    assert found(tmp_path / "model") == FILES
    assert not list(journals.iterdir())


def test_none_where_there_are_threads(way: FaultRegistry, tmp_path: Path) -> None:
    """One that is served by HTTP meanwhile, of which a fork would have a part."""
    port = _free_port()
    pull = watched(way, tmp_path, slow, "--serve", str(port))
    assert pull.process.stdout is not None
    lines = iter(pull.process.stdout.readline, "")
    assert any(line.startswith("}") for line in lines)
    pull.process.send_signal(signal.SIGTERM)
    pull.end()
    assert not pull.seen
    assert found(tmp_path / "model") == FILES


_STEPS = """
import os, time
from builder.models import receivers
from builder.parallel import Stop
receivers.MUCH = 0
ENDS = (10, 20, 30)

class Source:
    def once(self, descriptor, start, end):
        yield bytes(range(start, 25))
        if descriptor == "short":
            raise OSError
        yield bytes(range(25, end))

def at_rest(file):
    time.sleep(0.2)
    return os.pread(file, 100, 0)

with receivers.receivers(Source(), 1, 1) as (one,):
    file = os.open("file", os.O_RDWR | os.O_CREAT | os.O_TRUNC)
    steps = one.receive("all", 0, ENDS, file, Stop())
    assert next(steps) == 10 and at_rest(file) == bytes(range(10))
    assert next(steps) == 10 and at_rest(file) == bytes(range(20))
    steps.close()  # somebody else brings the rest
    assert at_rest(file) == bytes(range(20))
    assert sum(one.receive("short", 0, ENDS, file, Stop())) == 20 and len(at_rest(file)) == 25  # as far as it is told
    assert [*one.receive("all", 5, ENDS, file, Stop())] == [5, 10, 10] and at_rest(file) == bytes(range(30))
    os.truncate("file", 0)
    steps = one.receive("all", 0, ENDS, file, Stop())
    assert next(steps) == 10
    steps.close()
    assert [*one.receive("all", 0, ENDS[:1], file, Stop())] == [10]
print("right")
"""


def test_nothing_is_written_that_others_may_bring(tmp_path: Path) -> None:
    """Of a part that a thread of its own brings to its end, because this one is slow."""
    done = subprocess.run(
        [sys.executable, "-c", _STEPS], cwd=tmp_path, capture_output=True, text=True, timeout=60, check=False
    )
    assert (done.stdout, done.stderr) == ("right\n", "")


@pytest.mark.parametrize("forks", ["0", "1"])
def test_none_where_none_can_be_had(forks: str, way: FaultRegistry, tmp_path: Path) -> None:
    pull = watched(way, tmp_path, slow, FORKS=forks)
    _, err = pull.end()
    assert (pull.process.returncode, "\n" in err.strip()) == (0, False), err
    assert found(tmp_path / "model") == FILES


def _has_begun(journal: Path) -> bool:
    """Whether a part of a large file is there."""
    with suppress(OSError):
        head, *chunks = journal.read_text().splitlines() or ["{}"]
        return bool(chunks) and json.loads(head)["size"] > 1 << 20
    return False


def _free_port() -> int:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        return int(server.getsockname()[1])
