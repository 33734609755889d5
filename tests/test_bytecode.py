"""Bytecode: what an interpreter that runs from its unpacked packages makes of a wheel's modules."""

from __future__ import annotations

import importlib.util
import io
import marshal
import os
import subprocess
import sys
import types
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from pathlib import Path

import pytest
from wheelmaker import Member, Wheel

from builder.errors import BuilderError, HostileInputError, ToolError
from builder.layers.unpack import chunks
from builder.lock import LockedFile, LockedWheel
from builder.oci.digest import Digest
from builder.plan import WheelLayer
from builder.sources import bytecode, wheels
from builder.sources.bytecode import Compiled, Interpreter, compile_wheel, entries
from builder.sources.wheel import WheelFiles, install
from builder.store import Store

VERSION = "{}.{}".format(*sys.version_info)
TAG = f"cpython-{VERSION.replace('.', '')}"
SITE = f"opt/venv/lib/python{VERSION}/site-packages"
SOURCE = b"'''Doc.'''\n\n\ndef one(x: int) -> int:\n    assert x\n    return x + 1\n"


@pytest.fixture(scope="module")
def interpreter(tmp_path_factory: pytest.TempPathFactory) -> Interpreter:
    """The Python of these tests, laid out as unpacked packages are."""
    root = tmp_path_factory.mktemp("root")
    loaders = {"usr/lib64/ld-linux-x86-64.so.2", "usr/lib/ld-linux-aarch64.so.1"}
    found = [path for path in loaders if Path("/", path.removeprefix("usr/")).exists()]
    if not found:
        pytest.skip("no dynamic loader of glibc on this machine")
    links = {
        **{path: Path("/", path.removeprefix("usr/")) for path in found},
        "usr/bin/python": Path(sys.base_prefix, f"bin/python{VERSION}"),
        f"usr/lib/python{VERSION}": Path(sys.base_prefix, f"lib/python{VERSION}"),
        "usr/lib/own-linux-gnu": Path(sys.base_prefix, "lib"),
        **{f"usr/lib/{path.name}": path for path in Path("/usr/lib").glob("*-linux-gnu")},
    }
    for name, target in links.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).symlink_to(target)
    return Interpreter(root, "/usr/bin/python", VERSION)


def made(files: Mapping[str, bytes | Member], tmp_path: Path) -> WheelFiles:
    path = tmp_path / "object"
    path.write_bytes(Wheel(files=files).bytes())
    return install(path, "demo.whl", "demo", "1.0", VERSION)


def compiled(
    wheel: WheelFiles,
    interpreter: Interpreter,
    tmp_path: Path,
    jobs: int = 2,
    limit: bytecode.Limit = lambda memory: nullcontext(),
) -> dict[str, bytes]:
    """Path in the image -> bytecode, in the order in which it was written."""
    out = io.BytesIO()
    with ThreadPoolExecutor(jobs) as executor:
        found = compile_wheel(wheel, interpreter, out, executor, limit, tmp_path)
    (tmp_path / "pack").write_bytes(out.getvalue())
    return {entry.path: b"".join(chunks(entry.content)) for entry in entries(found, tmp_path / "pack")}


def code(data: bytes) -> types.CodeType:
    loaded = marshal.loads(data[16:])
    assert isinstance(loaded, types.CodeType)
    return loaded


def test_what_is_left_out_of_a_wheel_has_no_bytecode(interpreter: Interpreter, tmp_path: Path) -> None:
    """And that of the other modules is the same as without: it is compiled from the whole wheel."""
    store = Store(tmp_path / "store")
    data = Wheel(files={f"demo/{name}.py": SOURCE for name in ("one", "two", "three")}).bytes()
    file = LockedFile("pypi", "demo-1.0-py3-none-any.whl", store.put(data).hex, len(data))
    with ThreadPoolExecutor(1) as executor:
        compiler = wheels.Compiler(interpreter, Digest.of(b""), executor, lambda memory: nullcontext())
        found = []
        for drop in ((), ("demo/two.py",)):
            layer = WheelLayer("demo", Digest.of(b""), (LockedWheel("demo", "1.0", file, drop),), VERSION, None)
            entries = wheels.entries(layer, store, compiler)
            found.append({entry.path: entry for entry in entries if "dist-info" not in entry.path})
    whole, slim = found
    gone = {f"{SITE}/demo/two.py", f"{SITE}/demo/__pycache__/two.{TAG}.pyc"}
    assert slim == {path: entry for path, entry in whole.items() if path not in gone}
    assert gone < whole.keys()


def test_unchecked_and_hash_based(interpreter: Interpreter, tmp_path: Path) -> None:
    """PEP 552: magic, flags, hash of the source, code; no time and no path of this machine."""
    found = compiled(made({"demo/__init__.py": SOURCE}, tmp_path), interpreter, tmp_path)
    path = f"{SITE}/demo/__pycache__/__init__.{TAG}.pyc"
    assert list(found) == [path]
    data = found[path]
    assert data[:4] == importlib.util.MAGIC_NUMBER
    assert int.from_bytes(data[4:8], "little") == 0b01
    assert data[8:16] == importlib.util.source_hash(SOURCE)
    assert code(data).co_filename == f"/{SITE}/demo/__init__.py"
    assert "Doc." in code(data).co_consts
    assert str(tmp_path).encode() not in data


def test_it_is_what_compileall_makes(interpreter: Interpreter, tmp_path: Path) -> None:
    found = compiled(made({"demo/größe.py": SOURCE}, tmp_path), interpreter, tmp_path)
    source = tmp_path / "größe.py"
    source.write_bytes(SOURCE)
    script = (
        "import py_compile, sys; py_compile.compile(*sys.argv[1:4], doraise=True, optimize=0,"
        " invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
    )
    place = f"/{SITE}/demo/größe.py"
    subprocess.run([sys.executable, "-I", "-c", script, source, tmp_path / "pyc", place], check=True)
    assert found[f"{SITE}/demo/__pycache__/größe.{TAG}.pyc"] == (tmp_path / "pyc").read_bytes()


def test_python_takes_it_without_the_source(interpreter: Interpreter, tmp_path: Path) -> None:
    """Unchecked: the source may have changed, and is not looked at."""
    found = compiled(made({"demo/__init__.py": b"print('compiled')\n"}, tmp_path), interpreter, tmp_path)
    for name, data in found.items():
        (tmp_path / name).parent.mkdir(parents=True)
        (tmp_path / name).write_bytes(data)
    (tmp_path / SITE / "demo/__init__.py").write_text("print('source')\n")
    command = [sys.executable, "-I", "-c", "import sys; sys.path.insert(0, sys.argv[1]); import demo", tmp_path / SITE]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    assert done.stdout == "compiled\n"


SOURCES: Mapping[str, bytes] = {
    "good.py": b"x = 1\n",
    "latin.py": b"# coding: latin-1\nx = '\xe9'\n",
    "bom.py": b"\xef\xbb\xbfx = 1\n",
    "crlf.py": b"x = 1\r\ny = 2\r\n",
    "warns.py": b"x = 'a' is 'a'\ny = '\\d'\n",
    "future.py": b"from __future__ import annotations\nx: Undefined = 1\n",
    "sets.py": b"x = 1\ny = x in {None, 'a', 'b', 2.0, (1, 2)}\nz = x in {'q', 'w', 'e', 'r', 't'}\n",
}
BAD: Mapping[str, bytes] = {
    "print2.py": b"print 'hello'\n",
    "template.py": b"{{ name }} = 1\n",
    "encoding.py": b"# coding: no-such-encoding\nx = 1\n",
    "latin_unmarked.py": b"x = '\xe9'\n",
    "zero.py": b"x = 1\0\n",
    "deep.py": b"x = " + b"(" * 5000 + b")" * 5000 + b"\n",
    "deeper.py": b"x = " + b"-" * 100_000 + b"1\n",
    "indent.py": b" x = 1\n\ty = 2\n",
}


def test_what_is_no_python_is_left_out(interpreter: Interpreter, tmp_path: Path) -> None:
    found = compiled(
        made({f"demo/{name}": data for name, data in {**SOURCES, **BAD}.items()}, tmp_path), interpreter, tmp_path
    )
    names = [Path(path).name.removesuffix(f".{TAG}.pyc") + ".py" for path in found]
    assert names == sorted(SOURCES)
    assert all(code(data) for data in found.values())


def test_one_bad_module_does_not_change_the_others(interpreter: Interpreter, tmp_path: Path) -> None:
    good = {f"demo/{name}": data for name, data in SOURCES.items()}
    assert compiled(made({**good, "demo/zzz.py": b"("}, tmp_path), interpreter, tmp_path) == compiled(
        made(good, tmp_path), interpreter, tmp_path
    )


def test_any_number_of_jobs_writes_the_same(
    interpreter: Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bytecode, "CHUNK_FILES", 3)
    files = {f"demo/m{number:02}.py": SOURCE + b"# %d\nx = 'shared'\n" % number for number in range(40)}
    wheel = made({**files, **{f"demo/{name}": data for name, data in SOURCES.items()}}, tmp_path)
    one = compiled(wheel, interpreter, tmp_path, jobs=1)
    assert list(one) == sorted(one)
    assert len(one) == 40 + len(SOURCES)
    for jobs in (2, 5):
        assert compiled(wheel, interpreter, tmp_path, jobs=jobs) == one


def test_the_environment_does_not_matter(
    interpreter: Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheel = made({f"demo/{name}": data for name, data in SOURCES.items()}, tmp_path)
    before = compiled(wheel, interpreter, tmp_path)
    hostile = tmp_path / "hostile"
    hostile.mkdir()
    (hostile / "marshal.py").write_text("raise SystemExit(3)")
    (hostile / "sitecustomize.py").write_text("raise SystemExit(4)")
    for name, value in {
        "PYTHONPATH": str(hostile),
        "PYTHONHASHSEED": "7",
        "PYTHONOPTIMIZE": "2",
        "PYTHONDONTWRITEBYTECODE": "",
        "PYTHONWARNINGS": "error",
        "LC_ALL": "tr_TR.ISO-8859-9",
        "TZ": "Asia/Tokyo",
    }.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(hostile)
    assert compiled(wheel, interpreter, tmp_path) == before


def test_bytecode_of_the_wheel_stays(interpreter: Interpreter, tmp_path: Path) -> None:
    own = f"demo/__pycache__/__init__.{TAG}.pyc"
    other = "demo/__pycache__/other.cpython-27.pyc"
    wheel = made({"demo/__init__.py": SOURCE, "demo/other.py": SOURCE, own: b"own", other: b"old"}, tmp_path)
    assert list(compiled(wheel, interpreter, tmp_path)) == [f"{SITE}/demo/__pycache__/other.{TAG}.pyc"]


def test_what_is_not_compiled(interpreter: Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = {
        "demo/empty.py": b"",
        "demo/text.txt": b"x = 1",
        "demo/stub.pyi": b"x: int",
        "demo-1.0.data/scripts/run.py": b"x = 1",
        "demo-1.0.data/data/share/x.py": b"x = 1",
    }
    assert compiled(made(files, tmp_path), interpreter, tmp_path) == {}
    assert compiled(made({"demo.txt": b""}, tmp_path), interpreter, tmp_path) == {}
    monkeypatch.setattr(bytecode, "MAX_SOURCE", 100)
    wheel = made({"a.py": b"x = 1\n", "b.py": b"x = 1\n" * 17}, tmp_path)
    assert list(compiled(wheel, interpreter, tmp_path)) == [f"{SITE}/__pycache__/a.{TAG}.pyc"]


def test_a_module_at_the_top(interpreter: Interpreter, tmp_path: Path) -> None:
    assert list(compiled(made({"demo.py": SOURCE}, tmp_path), interpreter, tmp_path)) == [
        f"{SITE}/__pycache__/demo.{TAG}.pyc"
    ]


def test_the_limit_is_asked_and_left(interpreter: Interpreter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bytecode, "CHUNK_FILES", 2)
    asked: list[int] = []
    inside: list[int] = []

    @contextmanager
    def limit(memory: int) -> Iterator[None]:
        asked.append(memory)
        inside.append(1)
        yield
        inside.pop()

    files = {f"demo/m{number}.py": b"x = 1\n" * (1 + 1000 * (number == 4)) for number in range(6)}
    compiled(made(files, tmp_path), interpreter, tmp_path, jobs=1, limit=limit)
    assert len(asked) == 3
    assert inside == []
    assert min(asked) > 0
    assert max(asked) == asked[2]


# Interpreters that fail.


def broken(tmp_path: Path, script: str) -> Interpreter:
    """Its dynamic loader, which runs first, is a shell script."""
    loader = tmp_path / "root/usr/lib64/ld-linux-x86-64.so.2"
    loader.parent.mkdir(parents=True)
    loader.write_text(f"#!/bin/sh\n{script}\n")
    loader.chmod(0o755)
    return Interpreter(tmp_path / "root", "/usr/bin/python3.11", VERSION)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'no memory' >&2; exit 3", "failed with status 3: no memory"),
        ("kill -SEGV $$", "failed with status -11: it printed nothing"),
        ("exit 0", "ended too early, without saying why"),
        ("printf '\\5\\0\\0\\0abc'", "ended too early, without saying why"),
        ("printf '\\0\\0\\0\\0\\0\\0\\0\\0and more'", "answered more than it was asked"),
    ],
)
def test_an_interpreter_that_crashes(script: str, message: str, tmp_path: Path) -> None:
    wheel = made({"a.py": b"x = 1\n", "b.py": b"x = 2\n"}, tmp_path)
    with pytest.raises(ToolError) as caught:
        compiled(wheel, broken(tmp_path, script), tmp_path)
    assert message in str(caught.value)
    assert "bytecode: false" in (caught.value.hint or "")


def test_an_interpreter_that_crashes_in_the_middle(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is left open, and nothing goes on."""
    monkeypatch.setattr(bytecode, "CHUNK_FILES", 1)
    files = {f"m{number}.py": b"x = %d\n" % number for number in range(30)}
    script = "read -r line; case $line in *m5.py*) exit 9;; esac; printf '\\0\\0\\0\\0'"
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    with pytest.raises(ToolError, match="failed with status 9"):
        compiled(made(files, tmp_path), broken(tmp_path, script), scratch)
    assert list(scratch.iterdir()) == []


def test_a_wheel_that_lies_while_it_is_compiled(interpreter: Interpreter, tmp_path: Path) -> None:
    lie: Mapping[str, int | bytes] = {"crc": 1}
    wheel = made({"a.py": b"x = 1\n", "b.py": Member("b.py", b"x = 1\n", central=lie, local=lie)}, tmp_path)
    with pytest.raises(HostileInputError, match=r"demo\.whl: b\.py: its data has another size or CRC-32"):
        compiled(wheel, interpreter, tmp_path)


def test_no_loader_among_the_packages(tmp_path: Path) -> None:
    wheel = made({"a.py": b"x = 1\n"}, tmp_path)
    with pytest.raises(ToolError, match="no dynamic loader among its packages") as caught:
        compiled(wheel, Interpreter(tmp_path, "/usr/bin/python3", VERSION), tmp_path)
    assert caught.value.hint
    assert isinstance(caught.value, BuilderError)


def test_places_in_a_pack(tmp_path: Path) -> None:
    (tmp_path / "pack").write_bytes(b"onetwo")
    one, two = entries([Compiled("a", 0, 3), Compiled("b", 3, 3)], tmp_path / "pack")
    assert (b"".join(chunks(one.content)), b"".join(chunks(two.content))) == (b"one", b"two")
    assert os.path.basename(two.path) == "b"
    assert one.mode == 0o644
