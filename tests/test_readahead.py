"""Reading ahead: the launcher by itself, what locks and images hold of it."""

from __future__ import annotations

import _imp
import ast
import contextlib
import json
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import Layout as RawLayout
from world import World, run

from builder import lock as locks
from builder import readahead
from builder.coldstart import trace as traces
from builder.coldstart.trace import Part, Trace, TracedFile, TraceError
from builder.errors import BuilderError
from builder.oci.digest import Digest

ROOT = Path(__file__).resolve().parent.parent
LAUNCHERS = {
    1: "64d8f2c053111deb658ab89d5f594ce65dbc8971425fc0fb06f9fe4a67712a69",
    2: "524a5f063e070ef27d1281908fc4f23e6694c47181688f79e7214e3c680dc871",
}
"""Locks name them by number: they stay as they are, for ever."""

SHOW = """
import json, os, signal, sys
print(json.dumps({
    "pid": os.getpid(), "arguments": sys.argv[1:], "chld": signal.getsignal(signal.SIGCHLD) == signal.SIG_DFL,
    "open": sorted(os.listdir("/proc/self/fd"))[:-1],
}), flush=True)
"""


def test_launchers_stay_as_they_are() -> None:
    found = {
        int(file.stem.rpartition("-")[2]): Digest.of(file.read_bytes()).hex
        for file in (ROOT / "templates/start").glob("launcher-*.py")
    }
    assert found == LAUNCHERS


@pytest.fixture
def launcher(tmp_path: Path) -> Path:
    """The newest launcher with this Python, in a folder of its own, with nothing to read yet."""
    text = (ROOT / f"templates/start/launcher-{max(LAUNCHERS)}.py").read_text()
    place = tmp_path / "launcher"
    place.mkdir()
    (place / "start").write_text(text.replace("/opt/venv/bin/python", sys.executable))
    (place / "start").chmod(0o755)
    (place / "readahead.json").write_text("[]")
    return place / "start"


def launched(launcher: Path, *command: object, **options: Any) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [launcher, *map(str, command)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **options
    )


def test_the_program_keeps_its_process(launcher: Path) -> None:
    """The same id, arguments, files and signals, and its exit status."""
    process = launched(launcher, sys.executable, "-c", SHOW + "sys.exit(7)", "a b", "")
    out, err = process.communicate(timeout=30)
    assert process.returncode == 7, err
    assert json.loads(out) == {"pid": process.pid, "arguments": ["a b", ""], "chld": True, "open": ["0", "1", "2"]}


def test_signals_reach_the_program(launcher: Path) -> None:
    code = "import time; print('there', flush=True); time.sleep(60)"
    with launched(launcher, sys.executable, "-c", code) as process:
        assert process.stdout
        assert process.stdout.readline() == "there\n"
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == -signal.SIGTERM


@pytest.mark.parametrize(
    ("command", "status", "words"),
    [(("/no/such",), 127, "/no/such"), (("/etc/passwd",), 126, "/etc/passwd"), ((), 1, "no program")],
)
def test_what_cannot_be_started(launcher: Path, command: tuple[str, ...], status: int, words: str) -> None:
    process = launched(launcher, *command)
    _, err = process.communicate(timeout=30)
    assert process.returncode == status
    assert words in err
    assert "Traceback" not in err


def test_files_are_read_beside_the_program(launcher: Path, tmp_path: Path) -> None:
    """Those that are not there do not matter; turned off, nothing is read."""
    files = [tmp_path / f"file-{number}" for number in range(3)]
    for file in files:
        file.write_bytes(b"x" * 5000)
    listed = (TracedFile("no/such/file", 10), *(TracedFile(str(file)[1:], 5000) for file in files))
    trace = Trace(traces.VERSION, "linux/amd64", listed)
    launcher.with_name("readahead.json").write_bytes(readahead.ranges(trace, readahead.NUMBER))
    for wanted, switch in ((True, "1"), (False, "0")):
        opened = watched(launcher, tmp_path / "opened", {**os.environ, "LAYERWRIGHT_READAHEAD": switch})
        assert all((str(file) in opened) is wanted for file in files)


def watched(launcher: Path, log: Path, environ: dict[str, str]) -> str:
    """The names of the files that the launcher's reader opens, as its own Python tells."""
    hook = f"""import sys
def told(event, about):
    if event == "open" and about[0] != {str(log)!r}:
        with open({str(log)!r}, "a") as file:
            print(about[0], file=file)
sys.addaudithook(told)
"""
    text = launcher.read_text()
    spied = launcher.with_name("spied")
    spied.write_text(text.replace("import os\n", hook + "import os\n", 1))
    spied.chmod(0o755)
    log.unlink(missing_ok=True)
    process = launched(spied, "sleep", "0.5", env=environ)
    process.communicate(timeout=30)
    time.sleep(0.2)
    return log.read_text() if log.exists() else ""


def test_what_is_read_most_of_is_read_first() -> None:
    files = (TracedFile("a", 5), TracedFile("ü", 1 << 30, (Part(0, 10), Part(20, 40))), TracedFile("z", 5))
    rows = json.loads(readahead.ranges(Trace(traces.VERSION, "linux/amd64", files)))
    assert rows == [["/ü", 0, 10], ["/ü", 20, 40], ["/a", 0, 5], ["/z", 0, 5]]
    with pytest.raises(TraceError, match="no file"):
        readahead.ranges(Trace(traces.VERSION, "linux/amd64"))


def pieces(data: bytes) -> list[tuple[bytes, int, int]]:
    """What the newest launcher reads of a list, in its order, by its own code."""
    text = (ROOT / f"templates/start/launcher-{max(LAUNCHERS)}.py").read_text()
    names: dict[str, Any] = {"__file__": ""}
    exec(compile(text.removesuffix("main()\n"), "launcher", "exec"), names)
    found: list[tuple[bytes, int, int]] = names["pieces"](data)
    return found[::-1]


@settings(deadline=None)
@given(st.lists(st.tuples(st.text(min_size=1), st.integers(1, 5 << 20)), min_size=1, unique_by=lambda row: row[0]))
def test_lists_are_read_without_a_parser(rows: list[tuple[str, int]]) -> None:
    """Whatever is in a name; one that JSON escapes is left out."""
    files = tuple(TracedFile(name.encode(errors="replace").decode(), size) for name, size in rows)
    data = readahead.ranges(Trace(traces.VERSION, "linux/amd64", files), 2)
    wanted: dict[bytes, int] = {}
    for path, start, end in json.loads(data):
        if "\\" not in json.dumps(path, ensure_ascii=False):
            wanted[path.encode()] = wanted.get(path.encode(), 0) + end - start
    found: dict[bytes, int] = {}
    for name, at, size in pieces(data):
        assert at >= 0
        assert 0 < size <= 1 << 20
        found[name] = found.get(name, 0) + size
    assert found == wanted
    assert json.loads(data) == json.loads(readahead.ranges(Trace(traces.VERSION, "linux/amd64", files), 1))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"[",
        b"\xff" * 100,
        b'["/a",x,1]\n',
        b'["/a",0]\n',
        b'["/a"\n',
        b'["/a",-5,' + b"9" * 40 + b"]\n",
        b'["/",0,9]\n',
        b'["/etc/passwd",' + b"9" * 30 + b"," + b"9" * 31 + b"]\n",
    ],
    ids=range(9),
)
def test_lists_that_lie_do_not_hold_up_the_program(data: bytes, launcher: Path) -> None:
    """Nothing is said, nothing waits, and no list is as long as it says."""
    launcher.with_name("readahead.json").write_bytes(data)
    process = launched(
        launcher,
        sys.executable,
        "-c",
        "print('there')",
        preexec_fn=_little_memory,
        env={**os.environ, "MALLOC_ARENA_MAX": "1"},
    )
    assert process.communicate(timeout=30) == ("there\n", "")
    assert process.returncode == 0
    until = time.monotonic() + 20
    while any(str(launcher).encode() in line for line in _command_lines()):
        assert time.monotonic() < until, "the reader ends, too"
        time.sleep(0.02)
    assert data.startswith(b'["/a",x') or data.endswith(b",0]\n") or len(pieces(data)) <= 1 << 17


def _command_lines() -> Iterator[bytes]:
    for place in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            yield place.read_bytes()


def _little_memory() -> None:
    resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))


def test_the_launcher_needs_no_file_of_python() -> None:
    """What it imports would come over the network before it reads anything."""
    text = (ROOT / f"templates/start/launcher-{max(LAUNCHERS)}.py").read_text()
    imported = {name.name for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Import) for name in node.names}
    assert imported == {"_thread", "os", "sys", "time"}
    assert all(name in sys.builtin_module_names or _imp.is_frozen(name) for name in imported)


def test_an_older_lock_keeps_its_launcher(world: World, tmp_path: Path) -> None:
    """As long as its trace is the same: no lock is stale because there is a newer launcher."""
    profile = world.project(tmp_path / "project")
    environ = world.environment(tmp_path / "cache")
    path = profile.with_name("small.trace.json")
    profile.write_text(profile.read_text() + "start: {trace: small.trace.json}\n")
    path.write_text(traces.encode(Trace(traces.VERSION, "linux/amd64", (TracedFile("app/main.py", 15),))))
    assert run(["lock", profile], tmp_path, environ).code == 0
    lock = profile.with_suffix(".lock.json")
    newest = locks.parse(lock.read_text(), "lock")
    old, _ = readahead.locked(path, path.name, 1)
    lock.write_text(locks.encode(replace(newest, start=old)))
    assert run(["lock", "--check", profile], tmp_path, environ).code == 0
    first = run(["publish", "-q", profile, "oci:out"], tmp_path, environ)
    assert first.code == 0, first.err
    assert run(["lock", profile], tmp_path, environ).code == 0
    assert locks.parse(lock.read_text(), "lock").start == old
    assert newest.start
    assert newest.start.launcher == readahead.NUMBER > old.launcher
    assert run(["verify", "oci:out"], tmp_path, environ).code == 0
    path.write_text(traces.encode(Trace(traces.VERSION, "linux/amd64", (TracedFile("app/main.py", 14),))))
    assert run(["lock", profile], tmp_path, environ).code == 0
    again = locks.parse(lock.read_text(), "lock").start
    assert again
    assert again.launcher == readahead.NUMBER


def test_a_profile_with_a_trace(world: World, tmp_path: Path) -> None:
    """The entrypoint is started by the launcher; no layer below changes; another trace makes the lock stale."""
    profile = world.project(tmp_path / "project")
    environ = world.environment(tmp_path / "cache")
    plain = run(["publish", "-q", profile, "oci:plain"], tmp_path, environ)
    text = profile.read_text()
    profile.write_text(text + "start: {trace: small.trace.json}\n")
    failed = run(["lock", profile], tmp_path, environ)
    assert failed.code == 1
    assert "small.trace.json" in failed.err
    assert "build trace" in failed.err
    trace = Trace(traces.VERSION, "linux/amd64", (TracedFile("app/main.py", 15),))
    profile.with_name("small.trace.json").write_text(traces.encode(trace))
    done = run(["publish", "-q", "--lock", profile, "oci:ahead"], tmp_path, environ)
    below, above = (image(tmp_path / name, each.digest) for name, each in (("plain", plain), ("ahead", done)))
    assert above["layers"][:-1] == below["layers"]
    assert above["config"]["Entrypoint"] == [readahead.LAUNCHER, *below["config"]["Entrypoint"]]
    assert run(["verify", "oci:ahead"], tmp_path, environ).code == 0
    assert run(["lock", "--check", profile], tmp_path, environ).code == 0
    more = Trace(traces.VERSION, "linux/amd64", (TracedFile("app/main.py", 15), TracedFile("app/zeta", 1)))
    profile.with_name("small.trace.json").write_text(traces.encode(more))
    stale = run(["lock", "--check", profile], tmp_path, environ)
    assert stale.code == 3
    assert "trace" in stale.err
    profile.write_text(text + "start: {trace: small.trace.json, readahead: false}\n")
    off = run(["publish", "-q", "--lock", profile, "oci:off"], tmp_path, environ)
    assert image(tmp_path / "off", off.digest)["layers"] == below["layers"]


def image(layout: Path, digest: str) -> dict[str, Any]:
    """Layers and settings of the one image of an index."""
    raw = RawLayout(layout)
    for entry in raw.json(Digest.parse(digest))["manifests"]:
        if "artifactType" not in entry:
            manifest = raw.json(Digest.parse(entry["digest"]))
            config = raw.json(Digest.parse(manifest["config"]["digest"]))
            return {"layers": [layer["digest"] for layer in manifest["layers"]], "config": config["config"]}
    raise AssertionError("no image")


def test_a_trace_of_another_platform_changes_nothing(world: World, tmp_path: Path) -> None:
    profile = world.project(tmp_path / "project")
    environ = world.environment(tmp_path / "cache")
    trace = Trace(traces.VERSION, "linux/arm64", (TracedFile("app/main.py", 15),))
    profile.with_name("small.trace.json").write_text(traces.encode(trace))
    profile.write_text(profile.read_text() + "start: {trace: small.trace.json}\n")
    done = run(["publish", "-q", "--lock", profile, "oci:out"], tmp_path, environ)
    assert image(tmp_path / "out", done.digest)["config"]["Entrypoint"][0] == "python"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (None, "No such file"),
        (b"", "no trace"),
        (b'{"files": [], "platform": "linux/amd64", "version": 1}', "no file"),
        (257 << 20, "larger than any trace"),
    ],
    ids=["missing", "no bytes", "empty", "huge"],
)
def test_traces_that_are_of_no_use(data: bytes | int | None, words: str, tmp_path: Path) -> None:
    """Each is named, and a remedy; no more of one is read than any has."""
    path = tmp_path / "t.json"
    if isinstance(data, int):
        with path.open("wb") as file:
            file.truncate(data)
    elif data is not None:
        path.write_bytes(data)
    with pytest.raises(BuilderError, match=words) as caught:
        readahead.locked(path, "t.json")
    assert caught.value.hint


def test_a_launcher_that_is_not_there(tmp_path: Path) -> None:
    trace = Trace(traces.VERSION, "linux/amd64", (TracedFile("a", 1),))
    (tmp_path / "t.json").write_text(traces.encode(trace))
    with pytest.raises(BuilderError, match="launcher 99"):
        readahead.locked(tmp_path / "t.json", "t.json", 99)
