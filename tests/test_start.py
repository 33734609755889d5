"""Images start on the real stack: containerd and the snapshotter that mounts layers lazily. Needs root."""

from __future__ import annotations

import contextlib
import email
import io
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import faultregistry
import judges
import pytest
from layouts import Layout as RawLayout
from layouts import plain
from loopback import running
from world import BUILD, Real, run

import builder
from builder.cli.context import Context
from builder.cli.starting import Starter
from builder.coldstart import picture, state, tools, values
from builder.coldstart import trace as traces
from builder.coldstart.gateway import NAME, Gateway
from builder.coldstart.images import Blobs, look
from builder.coldstart.measure import StartError, Wanted
from builder.coldstart.opened import Opened
from builder.coldstart.ready import Ready
from builder.coldstart.trace import Part, Trace, TracedFile, TraceError
from builder.coldstart.values import Measurement, Phase, Spread, Start, Summary
from builder.errors import BuilderError, ToolError, UsageError
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.oci.spec import Descriptor

PROGRAMS = ("containerd", "containerd-shim-runc-v2", "containerd-stargz-grpc", "ctr", "soci-snapshotter-grpc")
MARKS = """
import json, os, time
from pathlib import Path
unread = [path for path in Path("/opt/venv/lib/python3.11/site-packages/numpy/f2py").rglob("*.py")]
time.sleep(0.05)
with open(os.environ["LAYERWRIGHT_START"], "a") as file:
    print(json.dumps({"phase": "imports", "end_ns": time.monotonic_ns()}), file=file)
    print("no mark", file=file)
    print(json.dumps({"phase": "in another", "end_ns": time.monotonic_ns(), "depth": 1}), file=file)
    for path in [*unread, *unread]:
        path.open().close()
    time.sleep(0.05)
    print(json.dumps({"phase": f"{len(unread)} files", "end_ns": time.monotonic_ns()}), file=file)
time.sleep(0.05)
print("it is there", flush=True)
"""


@pytest.fixture(scope="module")
def path() -> str:
    """The PATH on which the stack's programs are."""
    if os.geteuid() != 0:
        judges.missing("containerd", "mounting layers needs root")
    judges.require("runc")
    folders = {str(judges.require(name).parent) for name in PROGRAMS}
    return os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A place for states; sockets in it have short names."""
    return Path(tempfile.mkdtemp(prefix="lw-", dir="/var/tmp"))


@pytest.fixture(autouse=True, scope="module")
def nothing_left(folder: Path) -> Iterator[None]:
    """No start leaves a mount, a process or a file."""
    yield
    assert not state.mounts(folder)
    assert not state.processes(folder)
    assert list(folder.iterdir()) == []
    folder.rmdir()


def started(folder: Path, path: str, *arguments: object, code: int = 0) -> Measurement:
    done = command(folder, path, *arguments)
    assert done.returncode == code, done.stderr
    return values.parse(done.stdout, "stdout")


def command(folder: Path, path: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [BUILD, "start", "--state", folder, "--format", "json", "--timeout", "60", *arguments]
    env = {**os.environ, "PATH": path}
    return subprocess.run(list(map(str, argv)), env=env, capture_output=True, text=True, check=False)


def test_an_image_starts_lazily(real: Real, folder: Path, path: str) -> None:
    """What it does not read does not come; the program's own marks are phases; the second start has everything."""
    layout = f"oci:{real.out}"
    options = ("--entrypoint", "python", "--ready", "log:is there")
    found = started(folder, path, layout, "--again", *options, "--", "-c", MARKS + "time.sleep(60)\n")
    cold, again = found.starts
    names = ["resolve", "pull", "create", "process", "imports", cold.phases[5].name, "program"]
    assert [phase.name for phase in cold.phases] == names
    assert 0 < cold.spans < cold.requests
    assert 0 < cold.bytes < found.size / 2
    assert cold.bytes == sum(phase.bytes for phase in cold.phases)
    assert cold.seconds == pytest.approx(sum(phase.seconds for phase in cold.phases), abs=0.02)
    assert (again.requests, again.again, again.status) == (0, True, None)
    assert [f"{phase.opened} files" for phase in (cold.phases[5], again.phases[3])] == [names[5], names[5]]
    assert sum(phase.opened or 0 for phase in cold.phases) == cold.opened == again.opened
    whole = started(
        folder, path, layout, "--snapshotter", "overlayfs", "--entrypoint", "python", "--", "-c", "print(1)"
    ).starts[0]
    assert whole.bytes > found.size
    assert whole.status == 0
    assert whole.spans == 0


def test_plain_layers_start_lazily_too(real: Real, folder: Path, path: str, tmp_path: Path) -> None:
    shutil.copytree(real.profile.parent / "real", tmp_path / "real")
    shutil.copy(real.profile.with_suffix(".lock.json"), tmp_path)
    (tmp_path / "real.yaml").write_text(f"{real.profile.read_text()}  compression: none\n")
    argv = ["publish", "-q", "--lock", "--no-attach", "real.yaml", "oci:out"]
    assert run(argv, tmp_path, {**os.environ, "XDG_CACHE_HOME": str(real.cache)}).code == 0
    found = started(folder, path, f"oci:{tmp_path / 'out'}", "--entrypoint", "python", "--", "-c", "print(1)")
    (cold,) = found.starts
    assert cold.status == 0
    assert cold.spans > 0
    assert cold.bytes < found.size / 2


def test_several_starts_by_an_address_that_answers(real: Real, folder: Path, path: str, tmp_path: Path) -> None:
    port = judges.free_port()
    serve = ("--ready", f"http://127.0.0.1:{port}/", "--entrypoint", "python", "--svg", tmp_path / "picture.svg")
    found = started(folder, path, f"oci:{real.out}", "-n", "2", *serve, "--", "-m", "http.server", str(port))
    assert len(found.cold()) == 2
    assert [start.status for start in found.starts] == [None, None]
    over = ("--budget", "total=1ms,pull=10m", "--entrypoint", "python", "--", "-c", "print(1)")
    assert command(folder, path, f"oci:{real.out}", *over).returncode == 3
    drawn = (tmp_path / "picture.svg").read_text()
    assert drawn.startswith("<svg ")
    assert all(f">{phase.name}<" in drawn for phase in found.starts[0].phases)


SERVICE = """
import os, sys, urllib.request
from http.server import BaseHTTPRequestHandler, HTTPServer

class Handler(BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200)
        self.end_headers()

    def do_POST(self):
        body = self.rfile.read(int(self.headers["content-length"]))
        host, _, model = os.environ["MODEL"].partition("/")
        name, _, digest = model.partition("@")
        with urllib.request.urlopen(f"http://{host}/v2/{name}/manifests/{digest}") as answer:
            manifest = answer.read()
        good = body == open("/models/small/data.json", "rb").read() and manifest
        self.send_response(200 if good else 418)
        self.end_headers()
        self.wfile.write(b"as it was pulled" if good else b"that is something else")

HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""


def test_a_service_to_its_first_answer(real: Real, folder: Path, path: str, tmp_path: Path) -> None:
    """Its models come through the counted registry: into a folder before it starts, and by itself while it answers."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "data.json").write_bytes(b"[" + b"1," * 500_000 + b"1]")
    done = run(["model", "publish", model, f"oci:{tmp_path / 'models'}:small"], tmp_path, {**os.environ})
    assert done.code == 0, done.err
    port = judges.free_port()
    address = f"http://127.0.0.1:{port}/"
    places = [part for to in ("/models/small", "MODEL") for part in ("--model", to, f"oci:{tmp_path / 'models'}:small")]
    options = (f"oci:{real.out}", "--ready", address, "--entrypoint", "python", *places)
    code = ("--", "-c", SERVICE, str(port))
    found = started(folder, path, *options, "--again", "--post", address, model / "data.json", *code)
    cold, again = found.starts
    assert [phase.name for phase in cold.phases] == [
        "resolve", "pull", "model pull", "create", "process", "program", "answer"
    ]  # fmt: skip
    for start in found.starts:
        by_name = {phase.name: phase for phase in start.phases}
        assert by_name["model pull"].bytes > 1_000_001
        assert by_name["answer"].requests > 0
        assert by_name["model pull"].spans == 0
    assert again.spans == 0
    assert "model pull" in picture.text(found)


def test_an_answer_that_is_none() -> None:
    """What the service says is told; so is that it does not answer."""
    context = Context.from_environment({}, io.StringIO())
    nothing: Any = None
    wanted = Wanted("", "", Ready.parse("exit"), 5.0)
    starter = Starter(context, Path(), "soci", nothing, nothing, nothing, wanted)
    with serving_refusals() as address, pytest.raises(StartError, match="answered 418: no coffee"):
        starter._post(f"{address}/ocr", b"a picture")
    with pytest.raises(StartError, match="no answer to what --post sends"):
        starter._post(f"{address}/ocr", b"a picture")


@contextlib.contextmanager
def serving_refusals() -> Iterator[str]:
    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.rfile.read(int(self.headers["content-length"]))
            self.send_response(418)
            self.end_headers()
            self.wfile.write(b"no coffee")

        def log_message(self, *_: object) -> None:
            return None

    with running(HTTPServer(("127.0.0.1", 0), Handler)) as address:
        yield f"http://{address}"


@pytest.mark.parametrize(
    ("options", "status", "words"),
    [
        (("--model", "/models/../etc", "oci:{out}"), 2, "neither a folder"),
        (("--model", "/a,dst=/etc", "oci:{out}"), 2, "neither a folder"),
        (("--model", "MODEL", "oci:{out}/none"), 1, "none"),
        (("--model", "/models/x", "oci:{out}"), 1, "model"),
        (("--post", "127.0.0.1:80", "{profile}"), 2, "no address"),
        (("--node-config", "{profile}", "--snapshotter", "overlayfs"), 2, "lazy snapshotters"),
        (("--node-config", "{profile}"), 1, "no TOML"),
        (("--node-config", "{profile}.none"), 2, "does not exist"),
    ],
)
def test_options_that_make_no_sense(
    options: tuple[str, ...], status: int, words: str, real: Real, folder: Path, path: str
) -> None:
    written = [option.format(out=real.out, profile=real.profile) for option in options]
    done = command(folder, path, f"oci:{real.out}", *written)
    assert done.returncode == status
    assert words in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--entrypoint", "/no/such"), "/no/such"),
        (("--entrypoint", "python", "--ready", "log:never", "--", "-c", "print('last words')"), "last words"),
        (("--entrypoint", "python", "--timeout", "4", "--ready", "log:never", "--", "-c", "while 1: pass"), "4 s"),
        (("--platform", "linux/arm64"), "linux/arm64"),
    ],
)
def test_what_does_not_start(options: tuple[str, ...], words: str, real: Real, folder: Path, path: str) -> None:
    done = command(folder, path, f"oci:{real.out}", *options)
    assert done.returncode == 1
    assert words in done.stderr
    assert "Traceback" not in done.stderr


def test_a_place_that_stops_answering(real: Real, folder: Path, path: str, tmp_path: Path) -> None:
    """The layers are gone when they are needed: it is said which."""
    shutil.copytree(real.out, tmp_path / "out")
    layout = Layout(tmp_path / "out")
    gone = look(layout, None, "linux/amd64").layers[0].digest
    layout.path(gone).unlink()
    done = command(folder, path, f"oci:{tmp_path / 'out'}")
    assert done.returncode == 1
    assert gone.hex in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGINT])
def test_a_start_that_is_killed_leaves_nothing_for_long(
    sent: signal.Signals, real: Real, folder: Path, path: str
) -> None:
    """Interrupted, it clears up; killed, the next start does, while another one goes on undisturbed."""
    argv = [BUILD, "start", "--state", folder, "--ready", "log:never", "--entrypoint", "python", f"oci:{real.out}"]
    code = ["--", "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(list(map(str, [*argv, *code])), env={**os.environ, "PATH": path}) as process:
        (place,) = until(lambda: [item for item in folder.iterdir() if item.is_dir()])
        until(lambda: any("time.sleep" in words for words in lines(place)))
        process.send_signal(sent)
        process.wait(30)
    if sent == signal.SIGINT:
        assert list(folder.iterdir()) == []
        return
    assert state.processes(place)
    with state.state(folder) as other:
        assert state.sweep(folder) == [place]
        assert other.is_dir()
    assert not state.processes(place)
    assert not state.mounts(place)


@pytest.mark.parametrize("victim", ["soci-snapshotter-grpc", "containerd"])
def test_a_daemon_that_dies_is_named(victim: str, real: Real, folder: Path, path: str) -> None:
    """In mid-start: no hang, and nothing is left."""
    argv = [BUILD, "start", "--state", folder, "--ready", "log:never", "--entrypoint", "python", f"oci:{real.out}"]
    code = ["--", "-c", "import time; time.sleep(600)"]
    with subprocess.Popen(
        list(map(str, [*argv, *code])), env={**os.environ, "PATH": path}, stderr=subprocess.PIPE, text=True
    ) as process:
        (place,) = until(lambda: [item for item in folder.iterdir() if item.is_dir()])
        until(lambda: any("time.sleep" in words for words in lines(place)))
        for pid in state.processes(place):
            if Path(line(pid).split("\0")[0]).name == victim:
                os.kill(pid, signal.SIGKILL)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 1
    assert victim in err
    assert "Traceback" not in err
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize(
    ("sent", "words"), [(signal.SIGSTOP, "not ready after 3 s"), (signal.SIGKILL, "soci-snapshotter-grpc")]
)
def test_a_snapshotter_that_fails_while_the_program_reads(
    sent: signal.Signals, words: str, real: Real, folder: Path, path: str
) -> None:
    """One that hangs keeps the program waiting, and the report does not: all of it is ended and unmounted."""
    argv = [BUILD, "start", "--state", folder, "--timeout", "3", "--entrypoint", "python", f"oci:{real.out}"]
    code = ["--", "-c", "import time; time.sleep(0.5); import numpy; time.sleep(60)"]
    env = {**os.environ, "PATH": path}
    with subprocess.Popen(list(map(str, [*argv, *code])), env=env, stderr=subprocess.PIPE, text=True) as process:
        (place,) = until(lambda: [item for item in folder.iterdir() if item.is_dir()])
        until(lambda: any(words.startswith("python\0-c\0import time") for words in lines(place)))
        for pid in state.processes(place):
            if Path(line(pid).split("\0")[0]).name == "soci-snapshotter-grpc":
                os.kill(pid, sent)
        _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert words in err
    assert "Traceback" not in err
    assert list(folder.iterdir()) == []


@pytest.fixture(scope="module")
def served(real: Real, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry that has the image as `real`."""
    root = tmp_path_factory.mktemp("registry")
    with judges.registry("docker-registry", root) as address:
        done = run(["copy", "-q", "--plain-http", f"oci:{real.out}", f"{address}/real:1"], root, {**os.environ})
        assert done.code == 0, done.err
        yield address


def stalled(handler: faultregistry.Handler, _: bytes) -> bool:
    """Says nothing for longer than anybody waits."""
    handler.server.state.injected["stalled"] += 1
    time.sleep(20)
    handler.hang_up()
    return True


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (faultregistry.cut, "has not given a byte of|: the connection "),  # whether it is asked again in time or not
        (stalled, "has not given a byte of"),
        (faultregistry.damaged_answer, "do not match"),
    ],
    ids=["dies", "stalls", "lies"],
)
def test_a_registry_that_fails_in_mid_start(
    fault: faultregistry.Fault, words: str, served: str, folder: Path, path: str, tmp_path: Path
) -> None:
    """The program waits for what it reads of a lazy layer; the report says why that does not come, and nothing is left."""
    failing: list[faultregistry.Fault] = []

    def decide(request: faultregistry.Request) -> faultregistry.Fault | None:
        return failing[0] if failing and request.what == "GET blobs" else None

    with faultregistry.before(served, decide=decide) as proxy:
        argv = [BUILD, "start", "--plain-http", "--state", folder, "--timeout", "12", "--entrypoint", "python"]
        argv += [f"{proxy.address}/real:1", "--", "-c", "import time; time.sleep(0.2); import numpy"]
        env = {**os.environ, "PATH": path}
        with subprocess.Popen(list(map(str, argv)), env=env, stderr=subprocess.PIPE, text=True) as process:
            (place,) = until(lambda: [item for item in folder.iterdir() if item.is_dir()])
            until(lambda: any(words.startswith("python\0-c\0import time") for words in lines(place)))
            failing.append(fault)
            _, err = process.communicate(timeout=90)
    assert process.returncode == 1
    assert re.search(words, err)
    assert "Traceback" not in err
    assert list(folder.iterdir()) == []


def lines(place: Path) -> list[str]:
    return [line(pid) for pid in state.processes(place)]


def line(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/cmdline").read_text()
    except (FileNotFoundError, ProcessLookupError):  # it has just ended
        return ""


def until(there: Any) -> Any:
    for _ in range(3000):
        with contextlib.suppress(FileNotFoundError, ValueError):
            if found := there():
                return found
        time.sleep(0.01)
    raise AssertionError("it did not happen")


def test_two_at_once(real: Real, folder: Path, path: str) -> None:
    argv = [BUILD, "start", "--state", folder, "--format", "json", "--entrypoint", "python", f"oci:{real.out}"]
    command = list(map(str, [*argv, "--", "-c", "print(1)"]))
    env = {**os.environ, "PATH": path}
    both = [subprocess.Popen(command, env=env, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert values.parse(out, "stdout").starts[0].spans > 0


def test_the_index_is_fetched_once_and_layers_are_mounted_at_once(
    real: Real, folder: Path, path: str, tmp_path: Path
) -> None:
    """An entry of no platform is left alone by what pulls all of one; of no layer the size has to be asked for. The image starts
    lazily as before: the same parts of all its layers come."""
    shutil.copytree(real.profile.parent / "real", tmp_path / "real")
    profile = tmp_path / "real.yaml"
    profile.write_text(
        real.profile.read_text().replace(
            "min-layer-size: 5MiB", "min-layer-size: 5MiB, platform: unknown, mount: parallel"
        )
    )
    shutil.copy(real.profile.with_suffix(".lock.json"), tmp_path / "real.lock.json")
    environ = {**os.environ, "XDG_CACHE_HOME": str(real.cache)}
    done = run(["publish", "-q", "--lock", profile, "oci:out"], tmp_path, environ)
    assert done.code == 0, done.err
    assert run(["verify", "oci:out"], tmp_path, environ).code == 0
    options = ("--entrypoint", "python", "--", "-c", "import numpy")
    twice, once = (started(folder, path, f"oci:{out}", *options).cold()[0] for out in (real.out, tmp_path / "out"))
    assert once.spans == twice.spans > 0
    assert twice.bytes - once.bytes > 1_000_000
    (soci,) = (
        entry for entry in RawLayout(real.out).json(Digest.parse(real.digest))["manifests"] if "artifactType" in entry
    )
    mounted = RawLayout(real.out).json(Digest.parse(soci["digest"]))["layers"]
    assert twice.requests - once.requests == 1 + 2 * len(mounted)  # the index and its ztocs, and the sizes


def traced(folder: Path, path: str, file: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    argv = [BUILD, "trace", "--state", folder, "-o", file, *arguments]
    env = {**os.environ, "PATH": path}
    return subprocess.run(list(map(str, argv)), env=env, capture_output=True, text=True, check=False)


FORGETTING = """
import numpy, os, time
time.sleep(2)
os.posix_fadvise(os.open(numpy.__spec__.cached, os.O_RDONLY), 0, 0, os.POSIX_FADV_DONTNEED)
"""
"""What the kernel does where memory is short: pages that were read are gone before the start has ended."""


def test_what_a_start_reads(real: Real, folder: Path, path: str, tmp_path: Path) -> None:
    """The same for the same start; what is imported is in it, what is not is not."""
    python = ("--entrypoint", "python", f"oci:{real.out}", "--", "-c")
    files = [tmp_path / "one.trace.json", tmp_path / "two.trace.json"]
    link = Path(os.path.relpath(tmp_path / "link"))  # the kernel tells where it leads
    (tmp_path / "link").symlink_to(folder)
    for file in files:
        place = link if file is files[1] else folder
        done = traced(place, path, file, *python, "import numpy" if place is folder else FORGETTING)
        assert done.returncode == 0, done.stderr
    assert files[0].read_bytes() == files[1].read_bytes()
    trace = traces.parse(files[0].read_bytes(), "one")
    found = trace.by_path()
    site = "opt/venv/lib/python3.11/site-packages"
    assert f"{site}/numpy/__pycache__/__init__.cpython-311.pyc" in found
    assert f"{site}/numpy/f2py/__pycache__/__init__.cpython-311.pyc" not in found
    (core,) = (file for name, file in found.items() if name.startswith(f"{site}/numpy/_core/_multiarray_umath"))
    assert 0 < core.read < core.size
    assert core.parts[0].start == 0
    done = traced(folder, path, files[1], "--add", *python, "import numpy.f2py")
    assert done.returncode == 0, done.stderr
    more = traces.parse(files[1].read_bytes(), "two").by_path()
    assert f"{site}/numpy/f2py/__pycache__/__init__.cpython-311.pyc" in more
    assert set(found) < set(more)


@pytest.mark.parametrize("fault", ["none", "no spans", "a ztoc that is none"])
def test_whether_it_is_lazy(fault: str, real: Real, folder: Path, path: str, tmp_path: Path) -> None:
    """The snapshotter falls back without a word where a ztoc is of no use; this says so."""
    layout = RawLayout(tmp_path / "out")
    shutil.copytree(real.out, layout.root) if fault != "no spans" else layout.root.mkdir()
    if fault == "no spans":
        plain(RawLayout(real.out), Digest.parse(real.digest), layout)
    if fault == "a ztoc that is none":
        layout.rebind(Digest.parse(real.digest), _one_ztoc)
    argv = [BUILD, "verify", "--lazy", "--state", folder, "--format", "json", f"oci:{layout.root}"]
    env = {**os.environ, "PATH": path}
    done = subprocess.run(list(map(str, argv)), env=env, capture_output=True, text=True, check=False)
    assert done.returncode == (0 if fault == "none" else 3), done.stderr
    found = json.loads(done.stdout)
    assert found["lazy"] is (fault == "none")
    spanned = [layer for layer in found["layers"] if layer["spans"]]
    assert bool(spanned) is (fault != "no spans")
    assert all(layer["lazy"] is (fault == "none") for layer in spanned)


@pytest.fixture(scope="module")
def tabled(real: Real, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same image as eStargz: its layout."""
    root = tmp_path_factory.mktemp("estargz")
    shutil.copytree(real.profile.parent / "real", root / "real")
    profile = root / "real.yaml"
    profile.write_text(real.profile.read_text().replace("soci: {min-layer-size: 5MiB}", "lazy: estargz"))
    shutil.copy(real.profile.with_suffix(".lock.json"), root / "real.lock.json")
    environ = {**os.environ, "XDG_CACHE_HOME": str(real.cache)}
    done = run(["publish", "-q", "--lock", profile, f"oci:{root / 'out'}"], root, environ)
    assert done.code == 0, done.err
    return root / "out"


def test_estargz_starts_lazily(tabled: Path, folder: Path, path: str) -> None:
    """By stargz-snapshotter, which verifies every chunk; and as any image by what knows nothing of it."""
    use = ("--entrypoint", "python", "--", "-c", "import numpy; print(numpy.arange(9).sum())")
    found = started(folder, path, f"oci:{tabled}", "--snapshotter", "stargz", "--again", *use)
    cold, again = found.starts
    assert 0 < cold.spans < cold.requests
    assert 0 < cold.bytes < found.size * 0.7
    assert (again.bytes, again.again, again.status) == (0, True, 0)
    whole = started(folder, path, f"oci:{tabled}", "--snapshotter", "overlayfs", *use).starts[0]
    assert whole.bytes > found.size
    assert whole.status == 0


@pytest.mark.parametrize("fault", ["none", "another digest", "a damaged chunk"])
def test_what_estargz_says_is_verified(fault: str, tabled: Path, folder: Path, path: str, tmp_path: Path) -> None:
    """A table of another digest is not believed, and all is pulled; of a chunk that is damaged nothing is read."""
    layout = RawLayout(tmp_path / "out")
    shutil.copytree(tabled, layout.root)
    (entry,) = layout.json(_top(layout))["manifests"]
    manifest = layout.json(Digest.parse(entry["digest"]))
    layer = manifest["layers"][1]
    if fault == "another digest":
        layer["annotations"]["containerd.io/snapshot/stargz/toc.digest"] = str(Digest.of(b""))
        top = layout.add(spec.encode(manifest), spec.MANIFEST)
        layout.point_to(layout.add(_index_of(top, entry["platform"]), spec.INDEX))
    if fault == "a damaged chunk":
        blob = layout.path(Digest.parse(layer["digest"]))
        data = bytearray(blob.read_bytes())
        for place in range(100_000, len(data) - 400_000, 10_000):  # the table stands behind
            data[place] ^= 1
        blob.write_bytes(data)
        use = ("--snapshotter", "stargz", "--entrypoint", "python", "--", "-c", "import numpy")
        done = command(folder, path, f"oci:{layout.root}", *use)
        assert done.returncode == 1
        assert "Input/output error" in done.stderr
        return
    argv = [BUILD, "verify", "--lazy", "--state", folder, "--format", "json", f"oci:{layout.root}"]
    env = {**os.environ, "PATH": path}
    told = subprocess.run(list(map(str, argv)), env=env, capture_output=True, text=True, check=False)
    assert told.returncode == (0 if fault == "none" else 3), told.stderr
    mounts = json.loads(told.stdout)["layers"]
    assert [mount["spans"] for mount in mounts] == [True, True, False]
    assert mounts[1]["lazy"] is (fault == "none")


def _top(layout: RawLayout) -> Digest:
    return Digest.parse(json.loads((layout.root / "index.json").read_text())["manifests"][0]["digest"])


def _index_of(manifest: Descriptor, platform: dict[str, str]) -> bytes:
    entry = manifest.document() | {"platform": platform}
    return spec.encode({"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": [entry]})


def _one_ztoc(soci: dict[str, Any]) -> None:
    """Every ztoc becomes that of the first layer: well-formed, with right digests everywhere, and of another layer."""
    for layer in soci["layers"]:
        layer |= {key: soci["layers"][-1][key] for key in ("digest", "size")}
    soci["layers"] = soci["layers"][:1]


def test_what_was_not_lazy_has_no_trace(real: Real, folder: Path, path: str, tmp_path: Path) -> None:
    layout = tmp_path / "plain"
    plain(RawLayout(real.out), Digest.parse(real.digest), RawLayout(layout))
    done = traced(folder, path, tmp_path / "t.json", f"oci:{layout}")
    assert done.returncode == 1
    assert "not started lazily" in done.stderr
    assert not (tmp_path / "t.json").exists()


# Without the stack.


def test_many_files_at_once_are_all_counted(tmp_path: Path) -> None:
    """More than a process may have open; folders do not count, nor what lies outside of the container's root."""
    if os.geteuid() != 0:
        judges.missing("containerd", "mounting layers needs root")
    root, lower = tmp_path / "it/rootfs", tmp_path / "lower"
    for place in (root, lower / "folder", tmp_path / "upper", tmp_path / "work"):
        place.mkdir(parents=True)
    for number in range(3000):
        (lower / f"folder/{number}").touch()
    options = f"lowerdir={lower},upperdir={tmp_path / 'upper'},workdir={tmp_path / 'work'}"
    code = "import os, pathlib, sys\nfor path in [*os.scandir(sys.argv[1])] * 2:\n    open(path).close()"
    with Opened(tmp_path, "it") as watching:
        subprocess.run(["mount", "-t", "overlay", "overlay", "-o", options, root], check=True)
        try:
            until(lambda: watching.times is not None)
            subprocess.run([sys.executable, "-c", code, lower / "folder"], check=True)
            before = resource.getrlimit(resource.RLIMIT_NOFILE)
            most = max(map(int, os.listdir("/proc/self/fd"))) + 130  # as many as this process has, and some more
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, before[1]))
            try:
                subprocess.run([sys.executable, "-c", code, root / "folder"], check=True)
                watching.stop()
            finally:
                resource.setrlimit(resource.RLIMIT_NOFILE, before)
        finally:
            subprocess.run(["umount", root], check=True)
    assert watching.times is not None
    assert len(watching.times) == 3000


def test_files_are_not_counted_where_the_kernel_does_not_tell(tmp_path: Path) -> None:
    """Who is not root is told nothing; what is never mounted is not waited for."""
    code = (
        f"from builder.coldstart.opened import Opened\nwith Opened({str(tmp_path)!r}, 'x') as it: pass\nprint(it.times)"
    )
    nobody = ["setpriv", "--reuid=65534", "--clear-groups"] if os.geteuid() == 0 else []
    done = subprocess.run(
        [*nobody, sys.executable, "-c", code], cwd=Path(builder.__file__).parent.parent, capture_output=True, text=True
    )
    assert done.stdout == "None\n", done.stderr
    with Opened(tmp_path, "x") as watching:
        pass
    assert watching.times is None


@pytest.mark.parametrize("snapshotter", ["soci", "stargz", "overlayfs"])
def test_programs_that_are_missing_are_all_named(snapshotter: tools.Snapshotter) -> None:
    with pytest.raises(ToolError) as caught:
        tools.find({"PATH": "/nowhere"}, snapshotter)
    named = {name for name in tools.PROGRAMS if f"  {name}: " in str(caught.value)}
    other = set(tools.LAZY.values()) - {tools.LAZY.get(snapshotter)}
    assert named == set(tools.PROGRAMS) - other


def test_the_gateway_serves_and_counts(real: Real) -> None:
    layout = Layout(real.out)
    image = look(layout, None, "linux/amd64")
    blob = image.layers[0]
    whole = layout.path(blob.digest).read_bytes()
    with Gateway(layout, Blobs(layout, image.sizes)) as gateway:
        base = f"http://{gateway.address}/v2/{NAME}"

        def get(path: str, **headers: str) -> tuple[int, bytes]:
            try:
                with urllib.request.urlopen(urllib.request.Request(base + path, headers=headers)) as answer:
                    return answer.status, answer.read()
            except urllib.error.HTTPError as error:
                return error.code, error.read()

        top = str(image.top.digest)
        assert get(f"/manifests/{top}") == (200, layout.path(image.top.digest).read_bytes())
        assert get(f"/blobs/{blob.digest}") == (200, whole)
        assert get(f"/blobs/{blob.digest}", Range="bytes=10-19") == (206, whole[10:20])
        assert get(f"/blobs/{blob.digest}", Range="bytes=10-") == (206, whole[10:])
        assert get(f"/blobs/{blob.digest}", Range=f"bytes={len(whole)}-")[0] == 416
        assert get(f"/blobs/sha256:{'0' * 64}")[0] == 404
        assert get("/blobs/..%2f..%2fetc")[0] == 404
        status, parts = get(f"/blobs/{blob.digest}", Range=f"bytes=30-39,5-9,{len(whole) - 2}-{len(whole) + 9}")
        message: Any = email.message_from_bytes(
            b"content-type: multipart/byteranges; boundary=" + parts[4:20] + b"\r\n" + parts
        )
        told = [(part["content-range"], part.get_payload(decode=True)) for part in message.get_payload()]
        size = len(whole)
        assert (status, told) == (
            206,
            [
                (f"bytes 30-39/{size}", whole[30:40]),
                (f"bytes 5-9/{size}", whole[5:10]),
                (f"bytes {size - 2}-{size - 1}/{size}", whole[-2:]),
            ],
        )
        assert get(f"/blobs/{blob.digest}", Range=f"bytes=1-2,{size}-{size}")[0] == 416
        found = until(lambda: len(gateway.requests) == 9 and gateway.requests)  # an answer is noted when it was sent
    asked = [(request.kind, request.start, request.end, request.sent, request.status) for request in found]
    size, document = len(whole), layout.path(image.top.digest).stat().st_size
    assert asked == [
        ("manifest", 0, document, document, 200),
        ("blob", 0, size, size, 200),
        ("blob", 10, 20, 10, 206),
        ("blob", 10, size, size - 10, 206),
        ("blob", 0, 0, 0, 416),
        ("blob", 0, 0, 0, 404),
        ("blob", 0, 0, 0, 404),
        ("blob", 5, size, 17, 206),
        ("blob", 0, 0, 0, 416),
    ]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{}",
        b"[]",
        b"nothing",
        b'{"version": 2}',
        b'{"version": 1}',
        b'{"version": 1, "starts": [{"seconds": "x"}]}',
    ],
)
def test_what_is_no_measurement(data: bytes) -> None:
    with pytest.raises(BuilderError, match="file"):
        values.parse(data, "file")


def test_measurements_are_read_as_they_were_written() -> None:
    phases = (Phase("pull", 0.0, 1.5, 10, 2, 1), Phase("ready", 1.5, 0.5))
    starts = (Start(phases, 2.0, 10, 2, 1), Start(phases[1:], 0.5, 0, 0, 0, again=True, status=0, opened=3))
    measurement = Measurement(1, "oci:x", "sha256:y", "linux/amd64", "soci", 100, "exit", ("a",), starts)
    assert values.parse(values.encode(measurement), "file") == measurement
    shown = picture.text(measurement)
    assert "cold: ready after 2.00 s" in shown
    assert "again: ready after 0.50 s" in shown


def test_figures_of_several_starts() -> None:
    starts = tuple(Start((Phase("pull", 0.0, seconds),), seconds, 0, 0, 0) for seconds in (3.0, 1.0, 2.0))
    summary = Summary.of(starts)
    assert summary.seconds == Spread(2.0, 1.0, 3.0)
    assert summary.phases == {"pull": Spread(2.0, 1.0, 3.0)}
    assert picture.typical(starts).seconds == 2.0
    with pytest.raises(ValueError, match="nothing"):
        Summary.of(())


@pytest.mark.parametrize("text", ["", "log:(", "soon", "ftp://x/", "http://"])
def test_what_is_not_waited_for(text: str) -> None:
    with pytest.raises(UsageError, match="--ready"):
        Ready.parse(text)


def test_parts_of_files() -> None:
    """Whole pages, small gaps closed, all of a file by itself."""
    page = traces.GRAIN
    assert traces.traced("a", 10, [(0, 4)]) == TracedFile("a", 10)
    assert traces.traced("a", 99 * page, [(1, 2), (17 * page, 17 * page + 1)]).parts == (Part(0, 18 * page),)
    found = traces.traced("a", 99 * page, [(18 * page, 19 * page), (1, 2)])
    assert found.parts == (Part(0, page), Part(18 * page, 19 * page))
    assert found.read == 2 * page


def test_traces_are_read_as_they_were_written() -> None:
    files = (TracedFile("a/b", 10), TracedFile("ü", 1 << 40, (Part(0, 1 << 17), Part(1 << 18, 1 << 19))))
    trace = Trace(traces.VERSION, "linux/amd64", files)
    text = traces.encode(trace)
    assert traces.parse(text, "file") == trace
    assert len(text.splitlines()) == len(files) + 6
    assert traces.merged([trace, trace]) == trace
    other = Trace(traces.VERSION, "linux/amd64", (TracedFile("a/b", 11),))
    with pytest.raises(TraceError, match="11"):
        traces.merged([trace, other])
    with pytest.raises(TraceError, match="no trace of one image"):
        traces.merged([trace, Trace(traces.VERSION, "linux/arm64")])


@pytest.mark.parametrize(
    "files",
    [
        '[{"path": "/etc/passwd", "size": 1}]',
        '[{"path": "a/../b", "size": 1}]',
        '[{"path": "", "size": 1}]',
        '[{"path": "b", "size": 1}, {"path": "a", "size": 1}]',
        '[{"path": "a", "size": 1}, {"path": "a", "size": 1}]',
        '[{"path": "a", "size": 10, "parts": ["0-11"]}]',
        '[{"path": "a", "size": 10, "parts": ["5-4"]}]',
        '[{"path": "a", "size": 10, "parts": ["0-5", "4-6"]}]',
        '[{"path": "a", "size": 10, "parts": ["0-5x"]}]',
        '[{"path": "a", "size": "ten"}]',
        "{}",
    ],
)
def test_traces_that_lie(files: str) -> None:
    with pytest.raises(BuilderError, match="file"):
        traces.parse(f'{{"files": {files}, "platform": "linux/amd64", "version": 1}}', "file")


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"version": 2}', "[" * 100_000])
def test_what_is_no_trace(text: str) -> None:
    with pytest.raises(BuilderError, match="file"):
        traces.parse(text, "file")
