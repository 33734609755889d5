"""What may happen to a build: it is killed, interrupted, not alone, without room, on damaged files."""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import judges
import pytest
from layouts import Layout
from world import BUILD, Done, World, everybodys_folder, locked_files, other_user, run

from builder import __version__
from builder import lock as locks
from builder.oci.digest import Digest
from builder.store import Store

INTERRUPTED = "interrupted; the same command goes on where this one stopped"

KILLS = 50
PATIENCE = 60.0


@pytest.fixture
def fresh(world: World, tmp_path: Path) -> dict[str, str]:
    """An environment with a store that is empty, and its inputs nearby."""
    return world.environment(tmp_path / "cache", LAYERWRIGHT_MIRRORS=str(world.root / "cache/layerwright"))


@pytest.fixture
def warm(world: World, small: Path, tmp_path: Path) -> dict[str, str]:
    """An environment with a store of its own that has every input and every layer."""
    shutil.copytree(world.root / "cache", tmp_path / "cache")
    return world.environment(tmp_path / "cache")


def expected(small: Path) -> tuple[str, dict[str, bytes]]:
    """Digest and blobs of the undisturbed build."""
    index = json.loads((small.parent / "out/index.json").read_bytes())
    return index["manifests"][0]["digest"], Layout(small.parent / "out").blobs()


def damaged_objects(root: Path) -> list[str]:
    """Objects of a store whose bytes are not those of their name."""
    store = Store(root)
    names = [path.name for path in root.glob("sha256/*/*")]
    return [name for name in names if not store.verify(Digest(name))]


def leftovers(root: Path) -> list[Path]:
    return [*root.glob("tmp/*"), *root.glob("partial/*"), *root.glob("interpreters/.*")]


def publish(small: Path, out: Path, environment: dict[str, str]) -> Done:
    return run(["publish", "-q", small, f"oci:{out}"], out.parent, environment)


def assert_published(small: Path, out: Path, environment: dict[str, str]) -> None:
    """A run that nobody disturbs gives the very same image, and leaves nothing beside it."""
    digest, blobs = expected(small)
    assert publish(small, out, environment).digest == digest
    assert Layout(out).blobs() == blobs
    assert {path.name for path in out.iterdir()} == {"blobs", "index.json", "oci-layout"}
    root = Path(environment["XDG_CACHE_HOME"]) / "layerwright"
    assert damaged_objects(root) == []


@contextmanager
def running(small: Path, out: Path, environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """A publication that is under way, with its workers in a process group of their own."""
    argv = [str(BUILD), "publish", "-q", str(small), f"oci:{out}"]
    child = subprocess.Popen(
        argv, cwd=out.parent, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True
    )
    try:
        yield child
    finally:
        with suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.communicate()


def all_ended(group: int) -> None:
    """Workers end by themselves when their parent does."""
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return
        time.sleep(0.01)
    raise AssertionError("workers outlive the process that they work for")


def assert_whole(out: Path) -> None:
    """All that a layout's index leads to is there, to the byte."""
    todo = json.loads((out / "index.json").read_bytes())["manifests"]
    while todo:
        entry = todo.pop()
        data = Layout(out).path(Digest.parse(entry["digest"])).read_bytes()
        assert (str(Digest.of(data)), len(data)) == (entry["digest"], entry["size"])
        if entry["mediaType"].endswith(("index.v1+json", "manifest.v1+json")):
            document = json.loads(data)
            todo += [*document.get("manifests", ()), *document.get("layers", ())]
            todo += [document["config"]] if "config" in document else []


def test_killed_at_any_moment(small: Path, fresh: dict[str, str], tmp_path: Path) -> None:
    """Nothing half ever stands under a name, workers die with their parent, and the next run finishes."""
    chance = random.Random(50)
    out, root = tmp_path / "out", tmp_path / "cache/layerwright"
    finished = began = 0
    for number in range(KILLS):
        with running(small, out, fresh) as child:
            with suppress(subprocess.TimeoutExpired):
                child.wait(chance.uniform(0.1, 0.5))
            with suppress(ProcessLookupError):  # it may have finished
                (os.kill if number % 2 else os.killpg)(child.pid, signal.SIGKILL)
            child.wait()
            all_ended(child.pid)
        began += bool(list(root.glob("tmp/*")))
        assert damaged_objects(root) == []
        if (out / "index.json").exists():
            assert_whole(out)
            finished += 1
            shutil.rmtree(out)
            shutil.rmtree(root)
    assert_published(small, out, fresh)
    assert run(["cache", "gc"], tmp_path, fresh).code == 0
    assert leftovers(root) == []
    assert began, "no kill met a build at work"
    assert finished < KILLS


@pytest.mark.parametrize("asked", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_interrupted(asked: signal.Signals, small: Path, fresh: dict[str, str], tmp_path: Path) -> None:
    """Exit status 130 and one line; nothing is left behind, and the next run goes on."""
    chance = random.Random(130)
    out, root = tmp_path / "out", tmp_path / "cache/layerwright"
    codes = []
    for number in range(12):
        (root / "locks/in-use").unlink(missing_ok=True)
        with running(small, out, fresh) as child:
            while not (root / "locks/in-use").exists() and child.poll() is None:
                time.sleep(0.005)
            time.sleep(chance.uniform(0, 0.25))
            with suppress(ProcessLookupError):
                (os.kill if number % 2 else os.killpg)(child.pid, asked)
            printed, err = child.communicate(timeout=PATIENCE)
            all_ended(child.pid)
        codes.append(child.returncode)
        if child.returncode == -asked:  # it had finished, and Python was about to end
            assert printed.decode().strip() == expected(small)[0]
        elif child.returncode == 130:
            assert err.strip().decode() == INTERRUPTED
        else:
            assert (child.returncode, err.decode()) == (0, "")
        assert list(root.glob("tmp/*")) == []
        if number % 4 == 3:
            shutil.rmtree(root)
            shutil.rmtree(out, ignore_errors=True)
    assert 130 in codes, "no interrupt met a build at work"
    assert_published(small, out, fresh)


@pytest.mark.parametrize("count", [2, 4])
def test_several_runs_in_one_store_and_one_layout(
    count: int, small: Path, fresh: dict[str, str], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    children = []
    for number in range(count):
        argv = [str(BUILD), "publish", "--format", "json", str(small), f"oci:{out}", f"oci:{out}:tag{number}"]
        children.append(
            subprocess.Popen(argv, cwd=tmp_path, env=fresh, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        )
    done = [(child.communicate(timeout=PATIENCE), child.returncode) for child in children]
    assert [code for _, code in done] == [0] * count, done
    documents = [json.loads(out) for (out, _), _ in done]
    assert {document["digest"] for document in documents} == {expected(small)[0]}
    packed = [
        layer["name"] for document in documents for layer in document["platforms"]["linux/amd64"] if layer["packed"]
    ]
    assert sorted(packed) == ["3 wheels", "debian bookworm", "files"], "each layer is packed by one of them"
    names = {
        entry["annotations"]["org.opencontainers.image.ref.name"]
        for entry in json.loads((out / "index.json").read_bytes())["manifests"]
        if "org.opencontainers.image.ref.name" in entry.get("annotations", {})  # what is attached has no tag
    }
    assert names == {"latest", *(f"tag{number}" for number in range(count))}
    assert_published(small, out, fresh)


def test_collecting_while_others_build(small: Path, fresh: dict[str, str], tmp_path: Path) -> None:
    """`cache gc` takes away nothing that a build at work needs."""
    for number in range(3):
        with running(small, tmp_path / f"out{number}", fresh) as child:
            collected = 0
            while child.poll() is None:
                done = run(["cache", "gc", "--max-size", "0"], tmp_path, fresh)
                assert done.code == 0, done.err
                collected += 1
            out, err = child.communicate()
        assert (child.returncode, out.decode().strip()) == (0, expected(small)[0]), err
        assert collected
    assert_published(small, tmp_path / "out", fresh)


@contextmanager
def mounted(folder: Path, *arguments: str) -> Iterator[None]:
    """Something mounted at a folder; skips where that is not allowed."""
    judges.require("mount")
    folder.mkdir(exist_ok=True)
    done = subprocess.run(["mount", *arguments, str(folder)], capture_output=True, text=True, check=False)
    if done.returncode:
        pytest.skip(f"mounting is not allowed: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def resize(folder: Path, size: str) -> None:
    subprocess.run(["mount", "-o", f"remount,size={size}", str(folder)], check=True)


@pytest.mark.parametrize("size", ["256k", "2400k", "3m", "4m"])
def test_a_store_on_a_full_disk(size: str, small: Path, fresh: dict[str, str], tmp_path: Path) -> None:
    """There may be no room for the inputs, or none for the layers; once there is, the same command succeeds."""
    cache = tmp_path / "cache"
    with mounted(cache, "-t", "tmpfs", "-o", f"size={size}", "none"):
        done = publish(small, tmp_path / "out", fresh)
        assert (done.code, done.out) == (1, ""), done
        assert "hint: free some space" in done.err
        assert "Traceback" not in done.err
        assert damaged_objects(cache / "layerwright") == []
        assert leftovers(cache / "layerwright") == []
        resize(cache, "64m")
        assert_published(small, tmp_path / "out", fresh)


@pytest.mark.parametrize("size", ["8k", "1m", "2m"])
def test_a_layout_on_a_full_disk(size: str, small: Path, warm: dict[str, str], tmp_path: Path) -> None:
    full = tmp_path / "full"
    with mounted(full, "-t", "tmpfs", "-o", f"size={size}", "none"):
        done = publish(small, full / "out", warm)
        assert (done.code, done.out) == (1, "")
        assert f"error: {full}/out: cannot be written: No space left on device\nhint: free disk space\n" == done.err
        assert not (full / "out/index.json").exists()
        resize(full, "64m")
        assert_published(small, full / "out", warm)


def test_a_store_that_may_only_be_read(world: World, small: Path, warm: dict[str, str], tmp_path: Path) -> None:
    """What is there is enough; what is not is an error that says so."""
    cache = tmp_path / "cache"
    with mounted(cache, "--bind", str(cache)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(cache)], check=True)
        assert_published(small, tmp_path / "out", warm)
        assert run(["plan", small], tmp_path, warm).code == 0
        assert run(["cache", "info"], tmp_path, warm).code == 0
        (tmp_path / "p").mkdir()
        changed = world.project(tmp_path / "p", small.read_text().replace("8080", "1"))
        done = publish(changed, tmp_path / "other", warm)
        assert (done.code, done.out) == (1, "")
        assert "the store cannot be used: Read-only file system" in done.err
        assert "XDG_CACHE_HOME" in done.err


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_the_store_of_somebody_else(world: World, small: Path) -> None:
    with everybodys_folder() as parent:
        prefix = other_user(parent)
        shutil.copytree(small.parent, parent / "project", symlinks=True, ignore=shutil.ignore_patterns("out"))
        shutil.copytree(world.root / "cache", parent / "cache")
        work = parent / "work"
        work.mkdir()
        work.chmod(0o777)
        environment = world.environment(parent / "cache", HOME=str(work), LAYERWRIGHT_CONFIG=os.devnull)
        done = run(["publish", "-q", parent / "project" / small.name, "oci:out"], work, environment, prefix=prefix)
        assert done.digest == expected(small)[0]
        assert Layout(work / "out").blobs() == expected(small)[1]


def objects_by_size(root: Path, size: int) -> list[Path]:
    return [path for path in root.glob("sha256/*/*") if path.stat().st_size == size]


def blob_of(small: Path, environment: dict[str, str], name: str) -> Path:
    """The blob of a layer in the store."""
    (planned,) = run(["plan", "--format", "json", small], small.parent, environment).json["platforms"].values()
    (digest,) = [layer["blob"]["digest"] for layer in planned["layers"] if layer["name"] == name]
    return Store(Path(environment["XDG_CACHE_HOME"]) / "layerwright").path(Digest.parse(digest))


def rewrite(path: Path, data: bytes) -> None:
    path.unlink()
    path.write_bytes(data)


@pytest.mark.parametrize(
    "damage",
    [lambda path: path.unlink(), lambda path: rewrite(path, path.read_bytes()[:-1]), lambda path: rewrite(path, b"")],
    ids=["gone", "truncated", "empty"],
)
@pytest.mark.parametrize("name", ["debian bookworm", "3 wheels", "files"])
def test_a_layer_in_the_store_is(
    damage: Callable[[Path], object], name: str, small: Path, warm: dict[str, str], tmp_path: Path
) -> None:
    """It is packed again, whatever the record says."""
    damage(blob_of(small, warm, name))
    assert_published(small, tmp_path / "out", warm)


def records(root: Path) -> list[Path]:
    return [path for path in root.glob("records/*/*") if path.is_file()]


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "{}", '{"objects": []}', '{"objects": ["x"], "size": "y"}'])
def test_damaged_records_count_as_absent(text: str, small: Path, warm: dict[str, str], tmp_path: Path) -> None:
    found = records(tmp_path / "cache/layerwright")
    assert len(found) >= 5
    for path in found:
        rewrite(path, text.encode())
    assert_published(small, tmp_path / "out", warm)


@pytest.mark.parametrize("kind", ["layer", "ztoc", "combination"])
def test_damaged_small_objects_are_made_again(kind: str, small: Path, warm: dict[str, str], tmp_path: Path) -> None:
    """Ztocs, lists of files: everything that records name, and is no layer, loses its last byte."""
    root = tmp_path / "cache/layerwright"
    for path in (root / "records").glob(f"{kind}/*"):
        for text in json.loads(path.read_bytes()).get("objects", ())[kind == "layer" :]:
            target = Store(root).path(Digest.parse(text))
            if target.exists():
                rewrite(target, target.read_bytes()[:-1])
    shutil.rmtree(root / "records/combination")
    done = publish(small, tmp_path / "out", warm)
    for _ in range(3):  # one for each layer, at most
        if done.code:
            assert "hint: run the same command again" in done.err
            done = publish(small, tmp_path / "out", warm)
    assert done.digest == expected(small)[0]
    assert Layout(tmp_path / "out").blobs() == expected(small)[1]


def inputs_of(small: Path, root: Path) -> list[Path]:
    lock = locks.parse(small.with_suffix(".lock.json").read_text(), "lock")
    return [Store(root).path(file.digest) for file in locked_files(lock)]


@pytest.mark.parametrize("damage", ["gone", "truncated"])
def test_inputs_in_the_store_of_a_wrong_size_are_fetched_again(
    damage: str, world: World, small: Path, warm: dict[str, str], tmp_path: Path
) -> None:
    root = tmp_path / "cache/layerwright"
    shutil.rmtree(root / "records")
    for path in inputs_of(small, root):
        rewrite(path, path.read_bytes()[:-1]) if damage == "truncated" else path.unlink()
    assert_published(small, tmp_path / "out", warm)


def test_inputs_in_the_store_with_a_wrong_byte_are_found_and_fetched_by_the_next_run(
    small: Path, warm: dict[str, str], tmp_path: Path
) -> None:
    """That is no fault of the package, and the message does not say so."""
    root = tmp_path / "cache/layerwright"
    shutil.rmtree(root / "records")
    paths = inputs_of(small, root)
    for path in paths:
        data = bytearray(path.read_bytes())
        data[len(data) // 2] ^= 1
        rewrite(path, bytes(data))
    messages = []
    for _ in paths:
        done = publish(small, tmp_path / "out", warm)
        if done.code == 0:
            break
        assert "damaged in the store" in done.err
        assert "hint: run the same command again" in done.err
        messages.append(done.err)
    assert 1 <= len(messages) <= 2, "layers are packed side by side, and the first error is told"
    assert_published(small, tmp_path / "out", warm)


def test_damaged_layouts(small: Path, warm: dict[str, str], tmp_path: Path) -> None:
    """Blobs of a wrong size are replaced; an index that cannot be read is nobody's to throw away."""
    out = tmp_path / "out"
    assert_published(small, out, warm)
    for number, path in enumerate(sorted((out / "blobs/sha256").iterdir())):
        if number % 2:
            path.unlink()
        else:
            rewrite(path, path.read_bytes()[:-1])
    (out / "oci-layout").unlink()
    assert_published(small, out, warm)
    for text in ("", "{", "[]", '{"manifests": 1}', '{"manifests": ["x"]}'):
        (out / "index.json").write_text(text)
        done = publish(small, out, warm)
        assert (done.code, done.out) == (1, "")
        assert f"{out}/index.json: not an OCI index" in done.err
        assert (out / "index.json").read_text() == text
    (out / "index.json").unlink()
    assert_published(small, out, warm)


def test_what_killed_writers_left_in_a_layout_is_swept_away(small: Path, warm: dict[str, str], tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert_published(small, out, warm)
    (out / "blobs/sha256" / f".{'a' * 64}.{'0' * 12}").write_bytes(b"half")
    (out / f".index.json.{'0' * 12}").write_bytes(b"half")
    (out / ".gitignore").write_text("mine")
    assert publish(small, out, warm).code == 0
    assert (out / ".gitignore").read_text() == "mine"
    (out / ".gitignore").unlink()
    assert_published(small, out, warm)


def test_a_file_that_changes_while_it_is_packed(world: World, tmp_path: Path) -> None:
    """The lock was right when it was read: what differs then is named."""
    profile = world.project(tmp_path / "p")
    big = profile.parent / "app/big.bin"
    big.write_bytes(random.Random(1).randbytes(64 << 20))
    environment = world.environment(world.root / "cache")
    assert run(["lock", profile], tmp_path, environment).code == 0
    root = tmp_path / "cache"
    shutil.copytree(world.root / "cache", root)
    environment = world.environment(root)
    with running(profile, tmp_path / "out", environment) as child:
        while not list(root.glob("layerwright/tmp/*")) and child.poll() is None:
            time.sleep(0.001)
        with big.open("r+b") as file:
            file.seek(-1, os.SEEK_END)
            file.write(b"?")
        out, err = child.communicate(timeout=PATIENCE)
    assert (child.returncode, out) == (3, b""), err
    assert b"app/big.bin" in err


def test_what_comes_of_an_interrupt_is_one(tmp_path: Path) -> None:
    """Such as that of a pool whose thread had just begun to start."""
    code = """
import sys
import click
from builder.cli.main import run
from builder.cli.options import common

@click.command()
@common
def verb(context):
    try:
        raise KeyboardInterrupt
    finally:
        raise RuntimeError("cannot join thread before it is started")

@click.group()
@click.pass_context
def cli(context):
    import os
    from builder.cli.context import Context
    context.obj = Context.from_environment(os.environ, sys.stderr)

cli.add_command(verb)
sys.exit(run(["verb"], cli, "x"))
"""
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], env=environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (130, INTERRUPTED)


_INTERRUPTED_AT = """
import os, sys
moment = sys.argv.pop(1)

def at_import(event, arguments):
    if event == "import" and arguments[0] == moment:
        os.kill(os.getpid(), 2)

sys.addaudithook(at_import)
from builder.cli.entry import main
main()
"""


@pytest.mark.parametrize(
    ("moment", "begun"),
    [
        ("builder.cli.main", False),
        ("click.core", False),
        ("builder.errors", False),
        ("builder.interrupts", False),
        ("builder.cli.context", True),
        ("builder.profile.model", True),
    ],
)
def test_an_interrupt_before_anything_is_begun(moment: str, begun: bool, tmp_path: Path) -> None:
    """Its signal ends the program, as it ends any other; from when on something may be half done, it is told."""
    argv = [sys.executable, "-c", _INTERRUPTED_AT, moment, "schema"]
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run(argv, cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    expected = (130, INTERRUPTED) if begun else (-signal.SIGINT, "")
    assert (done.returncode, done.stdout, done.stderr.strip()) == (expected[0], "", expected[1])


@pytest.mark.parametrize(("number", "begun"), [(2, False), (15, False), (2, True), (15, True)])
def test_the_first_process_of_a_container_ends_when_it_is_asked(number: int, begun: bool, tmp_path: Path) -> None:
    """The kernel keeps from it what it does not handle."""
    if subprocess.run(["unshare", "--pid", "--fork", "true"], capture_output=True, check=False).returncode:
        pytest.skip("needs root, and a kernel that lets it make namespaces")
    moment = "builder.cli.context" if begun else "click.core"
    argv = ["unshare", "--pid", "--fork", sys.executable, "-c", _INTERRUPTED_AT.replace(" 2)", f" {number})"), moment]
    environ = {**os.environ, "XDG_CACHE_HOME": str(tmp_path)}
    done = subprocess.run([*argv, "schema"], cwd=tmp_path, env=environ, capture_output=True, text=True, check=False)
    expected = (130, INTERRUPTED) if begun else (128 + number, "")
    assert (done.returncode, done.stdout, done.stderr.strip()) == (expected[0], "", expected[1])


def test_who_ignores_interrupts_goes_on_ignoring_them(tmp_path: Path) -> None:
    """As shells have it for what runs in the background."""
    argv = ["env", "--ignore-signal=INT", sys.executable, "-c", _INTERRUPTED_AT, "click.core", "--version"]
    done = subprocess.run(argv, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, f"layerwright, version {__version__}\n")


def test_programs_begin_where_interrupts_are_heeded() -> None:
    project = tomllib.loads((Path(__file__).parent.parent / "pyproject.toml").read_text())["project"]
    assert set(project["scripts"].values()) == {"builder.cli.entry:main"}


def test_nothing_is_ended_after_the_end() -> None:
    """A timer that was to repeat what was lost does not end a program that is about to end by itself."""
    code = """
import signal, sys, time
from builder.interrupts import ended_by

class Cleared:
    def __del__(self, sleep=time.sleep):
        sleep(0.3)

ended_by((signal.SIGTERM,), lambda *_: sys.exit(1))
kept = Cleared()
signal.setitimer(signal.ITIMER_REAL, 0.1)
sys.exit(7)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (7, "")


def test_an_interrupt_while_something_is_cleared_away(tmp_path: Path) -> None:
    """What a handler raises in a finalizer is dropped by the interpreter: the signal is not."""
    code = """
import os, signal, sys, time
import click
from builder.cli.main import main

class Cleared:
    def __del__(self):
        os.kill(os.getpid(), signal.SIGTERM)
        for _ in range(1000):
            pass

@click.command()
def verb():
    Cleared()
    time.sleep(60)

main(verb, "x")
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.strip()) == (130, INTERRUPTED)
