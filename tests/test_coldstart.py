"""The monitor for services, what is said of measurements, and budgets: without the real stack."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
from world import World, run

from builder import profile as profiles
from builder.cli.start import _limits
from builder.coldstart import analysis, phases, values
from builder.coldstart.trace import Trace, TracedFile
from builder.coldstart.values import Measurement, Phase, Start, Summary
from builder.errors import UsageError
from builder.profile.forms import Duration
from builder.start import VARIABLE, ColdStartMonitor


class Clock:
    """Nanoseconds that pass by a second whenever somebody looks."""

    def __init__(self) -> None:
        self.now = 10**18

    def __call__(self) -> int:
        self.now += 10**9
        return self.now


def monitor(path: Path | None = None) -> ColdStartMonitor:
    return ColdStartMonitor({VARIABLE: str(path)} if path else {}, Clock())


def test_phases_of_a_service(tmp_path: Path) -> None:
    """Told to the file line by line, as `build start` reads them; nested ones are known as such."""
    marks = tmp_path / "marks"
    start = monitor(marks)
    with start.phase("imports"), start.phase("numpy"):
        pass
    with pytest.raises(RuntimeError), start.phase("model load"):
        raise RuntimeError
    start.mark("warm up")
    start.ready()
    start.ready()
    assert [(phase.name, phase.seconds, phase.depth) for phase in start.phases] == [
        ("numpy", 1.0, 1),
        ("imports", 3.0, 0),
        ("model load", 1.0, 0),
        ("warm up", 1.0, 0),
    ]
    lines = [json.loads(line) for line in marks.read_text().splitlines()]
    assert [line.get("phase", "ready") for line in lines] == ["numpy", "imports", "model load", "warm up", "ready"]
    assert [mark.name for mark in phases.marks(marks)] == ["imports", "model load", "warm up"]
    assert phases.says_ready(marks)
    document = json.loads(start.json())
    assert [phase["phase"] for phase in document["phases"]] == ["numpy", "imports", "model load", "warm up"]
    assert document["ready"] == start.ready_seconds


def test_a_place_for_marks_that_is_none(tmp_path: Path) -> None:
    """A service starts whatever becomes of its marks."""
    start = monitor(tmp_path / "no/such/folder")
    with start.phase("imports"):
        pass
    start.ready()
    assert len(start.phases) == 1


def test_phases_on_many_threads() -> None:
    start = ColdStartMonitor({})

    def work(number: int) -> None:
        for _ in range(100):
            with start.phase(f"{number}"), start.phase("inner"):
                pass

    threads = [threading.Thread(target=work, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(start.phases) == 1600
    assert {phase.depth for phase in start.phases if phase.name == "inner"} == {1}


def test_what_dashboards_read() -> None:
    start = monitor()
    with start.phase('a "quoted"\nname \\'):
        pass
    start.ready()
    text = start.prometheus()
    assert 'cold_start_phase_seconds{phase="a \\"quoted\\"\\nname \\\\"} 1.000000' in text.splitlines()
    assert text.endswith("\n")
    assert len([line for line in text.splitlines() if line.startswith("# TYPE")]) == 2
    (resource,) = json.loads(start.opentelemetry("ocr"))["resourceSpans"]
    spans = resource["scopeSpans"][0]["spans"]
    assert resource["resource"]["attributes"] == [{"key": "service.name", "value": {"stringValue": "ocr"}}]
    assert [len(span["traceId"]) for span in spans] == [32, 32]
    assert spans[1]["parentSpanId"] == spans[0]["spanId"]
    assert all(int(span["endTimeUnixNano"]) >= int(span["startTimeUnixNano"]) for span in spans)


DRIVER = """
int cuInit(unsigned flags) { return 0; }
int cuDeviceGet(int *device, int ordinal) { *device = ordinal; return ordinal > 1 ? 101 : 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { *context = &cuInit; return device; }
"""


def test_the_context_of_a_gpu(tmp_path: Path) -> None:
    """A phase where there is a driver that makes one, nothing where there is none; advice is to make it beside the imports."""
    source, library = tmp_path / "driver.c", tmp_path / "driver.so"
    source.write_text(DRIVER)
    subprocess.run(["gcc", "-fPIC", "-shared", "-o", library, source], check=True)
    start = monitor(tmp_path / "marks")
    assert not start.gpu_context(library=str(tmp_path / "none.so"))
    assert not start.gpu_context(library="libc.so.6")  # a library, and no driver
    assert not start.gpu_context(1, str(library))
    assert not start.gpu_context(2, str(library))
    assert start.gpu_context(library=str(library))
    assert [found.name for found in start.phases] == ["gpu context"]
    assert [mark.name for mark in phases.marks(tmp_path / "marks")] == ["gpu context"]
    made = starts(Phase("pull", 0, 1.0), Phase("imports", 1, 0.5), Phase("gpu context", 1.5, 2.0))
    advice = {item.key: item.gain for item in analysis.advise([Measurement(**{**vars(LAZY), "starts": (made,)})])}
    assert advice["gpu-context"] == 0.5


def test_the_monitor_knows_when_its_process_began() -> None:
    """And brings nothing along that takes time to import."""
    code = (
        "import sys, time\n"
        "time.sleep(0.3)\n"
        "before = set(sys.modules)\n"
        "from builder.start import ColdStartMonitor\n"
        "start = ColdStartMonitor()\n"
        "start.ready()\n"
        "print(start.ready_seconds, sorted(name for name in set(sys.modules) - before if name.startswith('builder')))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    seconds, _, modules = done.stdout.partition(" ")
    assert 0.25 < float(seconds) < 60
    assert modules.strip() == "['builder', 'builder.start']"


# What is said of measurements.


def starts(*phases: Phase, again: bool = False) -> Start:
    total = sum(phase.seconds for phase in phases)
    return Start(
        phases,
        total,
        sum(phase.bytes for phase in phases),
        sum(phase.requests for phase in phases),
        sum(phase.spans for phase in phases),
        again,
    )


LAZY = Measurement(
    values.VERSION, "oci:x", "sha256:x", "linux/amd64", "soci", 4_000_000_000, "exit", (),
    (
        starts(Phase("pull", 0, 2.0, 200_000_000, 20), Phase("program", 2, 18.0, 400_000_000, 300, 290)),
        starts(Phase("program", 0, 5.0), again=True),
    ),
)  # fmt: skip
WHOLE = Measurement(
    values.VERSION, "oci:x", "sha256:x", "linux/amd64", "overlayfs", 4_000_000_000, "exit", (),
    (starts(Phase("pull", 0, 80.0, 4_000_000_000, 30), Phase("program", 80, 6.0)),),
)  # fmt: skip


def test_the_largest_gain_comes_first() -> None:
    advice = analysis.advise([LAZY, WHOLE])
    assert [(item.key, item.gain and round(item.gain, 1)) for item in advice] == [
        ("lazy", 66.0),
        ("warm-replicas", 20.0),
        ("pre-pull", 15.0),
        ("readahead", 9.0),  # 13 s of waiting less 4 s that 400 MB take at 100 MB/s
        ("mount-parallel", None),
        ("parallel-pull", None),
        ("slimmer", None),
    ]
    assert "100 MB of layers take 2.0 s" in advice[-1].why
    alone = {item.key: item.gain for item in analysis.advise([WHOLE])}
    assert alone == {"lazy": None, "pre-pull": None, "slimmer": None, "parallel-pull": None}


def test_an_image_that_is_read_whole_is_pulled_whole() -> None:
    phases = (Phase("pull", 0, 2.0, 100, 2), Phase("program", 2, 90.0, 3_000_000_000, 900, 890))
    lazily = Measurement(**{**vars(LAZY), "starts": (starts(*phases),)})
    advice = {item.key: item for item in analysis.advise([lazily, WHOLE])}
    assert advice["full-pull"].gain == pytest.approx(6.0)
    assert "75%" in next(item.why for item in analysis.advise([lazily]) if item.key == "full-pull")


def test_what_comes_and_is_not_read() -> None:
    """Bytes that adaptive spans would save are known if more come than are read even before compression."""
    little = Trace(1, "linux/amd64", (TracedFile("usr/lib/a.so", 100_000_000),))
    advice = {item.key: item for item in analysis.advise([LAZY], little)}
    assert advice["adaptive-spans"].gain == pytest.approx(3.0)  # 300 MB at 100 MB/s
    assert "order" not in advice
    much = Trace(1, "linux/amd64", tuple(TracedFile(f"usr/lib/{number:03}", 999_999) for number in range(500)))
    advice = {item.key: item for item in analysis.advise([LAZY], much)}
    assert advice["adaptive-spans"].gain is None
    assert "500 small files" in advice["order"].why


def test_what_reads_ahead_is_not_for_estargz() -> None:
    """Its snapshotter would fetch the same several times: what is read stands in front instead."""
    advice = {
        item.key: item for item in analysis.advise([Measurement(**{**vars(LAZY), "snapshotter": "stargz"}), WHOLE])
    }
    assert not {"readahead", "mount-parallel", "adaptive-spans"} & set(advice)
    assert advice["order"].gain is None
    assert "290 requests" in advice["order"].why


def test_models_and_modules() -> None:
    phases = (Phase("pull", 0, 1.0), Phase("model pull", 1, 10.0, 1000, 5), Phase("model load", 11, 2.0))
    lazily = Measurement(**{**vars(LAZY), "starts": (starts(*phases),)})
    site = "opt/venv/lib/python3.11/site-packages"
    modules = [TracedFile(f"{site}/{name}", 10) for name in ("a.py", "b.py", "b.pyc")]
    trace = Trace(1, "linux/amd64", tuple(modules))
    plain = Trace(1, "linux/amd64", (TracedFile("usr/lib/python3.11/os.py", 10),))
    assert "bytecode" not in {item.key for item in analysis.advise([lazily], plain)}
    advice = {item.key: item.gain for item in analysis.advise([lazily], trace)}
    assert advice["fp16"] == 5.0
    assert advice["int8"] == 7.0
    assert advice["bytecode"] is None


def test_what_is_over_a_budget() -> None:
    summary = Summary.of(LAZY.cold())
    assert analysis.unknown(summary, {"total": 1, "model": 1, "program": 1, "progam": 1}) == ("progam",)
    assert analysis.over(summary, {"total": 20.0, "pull": 2.0, "program": 18.0}) == ()
    limits = {"total": 19.0, "pull": 1.5, "program": 17.0, "model": 1.0}
    assert analysis.over(summary, limits) == (("total", 20.0, 19.0), ("pull", 2.0, 1.5), ("program", 18.0, 17.0))
    assert analysis.shares(summary)[0].name == "program"


def test_budgets_change_no_image(tmp_path: Path) -> None:
    path = tmp_path / "p.yaml"
    text = "profile: 1\nname: p\nbase: {debian: bookworm}\n"
    path.write_text(text)
    plain = profiles.read(path).profile
    path.write_text(text + "budget: {total: 20s, pull: 1500ms}\n")
    limited = profiles.read(path).profile
    assert limited.digest == plain.digest
    assert limited.budget
    assert limited.budget.limits == {"total": 20.0, "pull": 1.5}


@pytest.mark.parametrize(
    ("text", "seconds"), [("20s", 20.0), ("1.5s", 1.5), ("500ms", 0.5), ("2m", 120.0), ("0s", 0.0)]
)
def test_times(text: str, seconds: float) -> None:
    assert float(Duration.parse(text)) == seconds
    assert Duration.parse(str(Duration.parse(text))) == Duration.parse(text)


@pytest.mark.parametrize("text", ["", "20", "s", "-1s", "1h", "1e3s", "\u0661s"])
def test_what_is_no_time(text: str) -> None:
    with pytest.raises(ValueError, match="such as 20s"):
        Duration.parse(text)


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    lazy, whole = tmp_path / "lazy.json", tmp_path / "whole.json"
    lazy.write_text(values.encode(LAZY))
    whole.write_text(values.encode(WHOLE))
    return lazy, whole


def test_advice_on_the_command_line(files: tuple[Path, Path], world: World, tmp_path: Path) -> None:
    environ = world.environment(tmp_path / "cache")
    profile = world.project(tmp_path / "project")
    profile.write_text(profile.read_text() + "budget: {total: 10s}  # a comment")
    said = run(["advise", *files, "--profile", profile], tmp_path, environ)
    assert said.code == 0, said.err
    assert "over budget: total took 20.00 s of 10 s" in said.out
    assert said.out.index("lazy:") < said.out.index("readahead:")
    document: Any = json.loads(run(["advise", *files, "--profile", profile, "--format", "json"], tmp_path, environ).out)
    assert document["measurements"][0]["over"] == [{"name": "total", "seconds": 20.0, "limit": 10.0}]
    keys = {item["key"] for item in document["advice"]}
    assert keys == {"lazy", "warm-replicas", "pre-pull", "readahead", "mount-parallel", "parallel-pull", "slimmer"}


def test_advice_is_applied(files: tuple[Path, Path], world: World, tmp_path: Path) -> None:
    """Comments stay; what is there is left alone; what would break the profile is taken back."""
    environ = world.environment(tmp_path / "cache")
    profile = world.project(tmp_path / "project")
    trace = profile.with_name("small.trace.json")
    trace.write_text('{"files": [{"path": "app/main.py", "size": 15}], "platform": "linux/amd64", "version": 1}')
    before = profile.read_text() + "# the last words\n"
    profile.write_text(before)
    command = ["advise", *files, "--profile", profile, "--trace", trace, "--apply"]
    done = run(command, tmp_path, environ)
    assert done.code == 0, done.err
    added = ("soci: {span-size: 256KiB, min-layer-size: 1MiB", ", spans: adaptive, mount: parallel")
    assert profile.read_text() == before.replace(added[0], "".join(added)) + '\nstart: {trace: "small.trace.json"}\n'
    read = profiles.read(profile).profile
    assert read.start
    assert (read.start.trace, read.publish.soci.spans) == ("small.trace.json", "adaptive")
    assert "nothing to apply" in run(command, tmp_path, environ).err
    assert run(["lock", profile], tmp_path, environ).code == 0
    profile.write_text(before.replace("soci: {span-size: 256KiB, min-layer-size: 1MiB}", "soci: true"))
    odd = run(command, tmp_path, environ)
    assert "publish.soci.spans cannot be added" in odd.err
    assert profiles.read(profile).profile.start
    elsewhere = tmp_path / "elsewhere.json"
    elsewhere.write_text(trace.read_text())
    profile.write_text(before)
    refused = run(["advise", *files, "--profile", profile, "--trace", elsewhere, "--apply"], tmp_path, environ)
    assert refused.code == 1
    assert "beside" in refused.err
    assert profile.read_text() == before


def test_measurements_that_do_not_belong_together(files: tuple[Path, Path], world: World, tmp_path: Path) -> None:
    environ = world.environment(tmp_path / "cache")
    other = Measurement(**{**vars(LAZY), "digest": "sha256:y"})
    files[1].write_text(values.encode(other))
    done = run(["advise", *files], tmp_path, environ)
    assert done.code == 2
    assert "several images" in done.err


@pytest.mark.parametrize("text", ["total=fast", "total=20", "total=20s,pull", "total=20s,"])
def test_budgets_that_are_none(text: str) -> None:
    with pytest.raises(UsageError, match="--budget"):
        _limits(text)
