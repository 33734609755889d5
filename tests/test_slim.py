"""`slim`: what a profile leaves out of wheels goes whole, and nothing else does."""

from __future__ import annotations

import csv
import io
import json
import tarfile
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import Layout
from wheelmaker import Wheel
from world import PROFILE, World, run, write_project

from builder import lock as locks
from builder.lock import Lock, LockedFile, LockedWheel
from builder.oci.digest import Digest
from builder.plan import LARGE_WHEEL, WheelLayer, plan
from builder.sources import slim, wheel
from builder.sources.slim import Rule, SlimError
from builder.store import Store

SITE = "opt/venv/lib/python3.11/site-packages"
FILES = {
    "demo/__init__.py": b"",
    "demo/tool.py": b"x = 1\n",
    "demo/__pycache__/tool.cpython-311.pyc": b"not really",
    "demo/__pycache__/tool.cpython-311.opt-1.pyc": b"not really",
    "demo/__pycache__/toolbox.cpython-311.pyc": b"not really",
    "demo/tests/test_tool.py": b"",
    "demo/tests/data/big.bin": b"0" * 100,
    "demo/lib/libdemo.a": b"static",
    "demo/lib/libdemo.so.1": b"shared",
    "demo/lib/LICENSE.txt": b"terms",
    "demo/licenses.py": b"",
    "demo-1.0.data/scripts/demo-tool": b"#!python\n",
    "demo-1.0.dist-info/licenses/License.txt": b"terms",
}


@pytest.fixture
def demo(tmp_path: Path) -> tuple[LockedWheel, Store]:
    data = Wheel(files=FILES).bytes()
    store = Store(tmp_path / "store")
    digest = store.put(data)
    return LockedWheel("demo", "1.0", LockedFile("pypi", "demo-1.0-py3-none-any.whl", digest.hex, len(data))), store


def left(demo: tuple[LockedWheel, Store], *patterns: str) -> set[str]:
    """What goes by these patterns, as RECORD spells it, by the wheel's files before and after."""
    locked, store = demo
    files = wheel.install(store.path(locked.file.digest), "demo.whl", "demo", "1.0", "3.11")
    after = {file.entry.path for file in slim.slimmed(files, patterns).files}
    return {wheel.relative(file.entry.path, SITE) for file in files.files if file.entry.path not in after}


@pytest.mark.parametrize(
    ("patterns", "gone"),
    [
        (["*.a"], {"demo/lib/libdemo.a"}),
        (["libdemo.a"], {"demo/lib/libdemo.a"}),
        (["tests"], {"demo/tests/test_tool.py", "demo/tests/data/big.bin"}),
        (["demo/tests/"], {"demo/tests/test_tool.py", "demo/tests/data/big.bin"}),
        (["demo/tests/data"], {"demo/tests/data/big.bin"}),
        (["demo/lib/lib*.so*"], {"demo/lib/libdemo.so.1"}),
        (["*/tests/*.py"], {"demo/tests/test_tool.py"}),
        (["../../../bin/demo-tool"], {"../../../bin/demo-tool"}),
        (["demo-tool"], {"../../../bin/demo-tool"}),
        (
            ["tool.py"],
            {
                "demo/tool.py",
                "demo/__pycache__/tool.cpython-311.pyc",
                "demo/__pycache__/tool.cpython-311.opt-1.pyc",
            },
        ),
        (["demo/licenses.py"], {"demo/licenses.py"}),
        (["*.dist-info", "METADATA", "RECORD", "License.txt", "LICENSE*"], set()),
        (["emo", "demo/test", "dem?/lib/libdemo"], set()),
    ],
)
def test_what_a_pattern_leaves_out(patterns: list[str], gone: set[str], demo: tuple[LockedWheel, Store]) -> None:
    assert left(demo, *patterns) == gone


def test_everything_but_what_a_licence_asks_for(demo: tuple[LockedWheel, Store]) -> None:
    locked, store = demo
    files = wheel.install(store.path(locked.file.digest), "demo.whl", "demo", "1.0", "3.11")
    names = {wheel.relative(file.entry.path, SITE) for file in slim.slimmed(files, ["*"]).files}
    info = {f"demo-1.0.dist-info/{name}" for name in ("METADATA", "WHEEL", "INSTALLER", "licenses/License.txt")}
    assert names == {"demo/lib/LICENSE.txt", *info}


def test_record_lists_what_is_there(demo: tuple[LockedWheel, Store]) -> None:
    locked, store = demo
    files = wheel.install(store.path(locked.file.digest), "demo.whl", "demo", "1.0", "3.11")
    entries = wheel.with_record(slim.slimmed(files, ["tool.py", "*.a"]), ())
    (record,) = (entry for entry in entries if entry.path.endswith("RECORD"))
    assert hasattr(record.content, "data")
    listed = {row[0] for row in csv.reader(io.StringIO(record.content.data.decode()))}
    assert listed == {wheel.relative(entry.path, SITE) for entry in entries}
    assert "demo/tool.py" not in listed


@pytest.mark.parametrize(
    ("rule", "problem"),
    [
        (Rule(("dmeo",), ("*.a",)), "no wheel is named dmeo; did you mean demo"),
        (Rule(("demo",), ("*.lib",)), r"'\*\.lib' leaves out no file of demo"),
        (Rule((), ("*.a", "nothing")), "'nothing' leaves out no file of any wheel"),
        (Rule((), ("*.dist-info",)), "leaves out no file"),
        (Rule((), ("LICENSE.txt",)), "leaves out no file"),
    ],
)
def test_a_rule_that_does_nothing_is_an_error(rule: Rule, problem: str, demo: tuple[LockedWheel, Store]) -> None:
    locked, store = demo
    with pytest.raises(SlimError, match=problem):
        slim.decide([locked], [rule], "3.11", store, lambda files: None)


def test_only_wheels_that_a_pattern_meets_are_other_ones(demo: tuple[LockedWheel, Store], tmp_path: Path) -> None:
    locked, store = demo
    data = Wheel("other-1.0").bytes()
    digest = Digest.of(data)
    other = LockedWheel("other", "1.0", LockedFile("pypi", "other-1.0-py3-none-any.whl", digest.hex, len(data)))
    asked: list[LockedFile] = []

    def ensure(files: Iterable[LockedFile]) -> None:
        asked.extend(files)
        store.put(data)

    rules = [Rule((), ("*.a",)), Rule(("DEMO",), ("tests", "*.a"))]
    first, second = slim.decide([locked, other], rules, "3.11", store, ensure)
    assert first.drop == ("*.a", "tests")
    assert second == other
    assert asked == [locked.file, other.file]
    asked.clear()
    slim.decide([locked, other], [Rule(("demo",), ("*.a",))], "3.11", store, ensure)
    assert asked == [locked.file], "a wheel that no rule is for is not fetched"


@given(st.text(max_size=12), st.text(alphabet="ab*?[]!-./", max_size=12))
def test_no_pattern_is_an_accident(path: str, pattern: str) -> None:
    slim.matches(path, pattern)
    assert slim.matches(path, "*")
    assert not slim.matches(f"x-1.dist-info/{path}", pattern) or slim.is_kept(f"x-1.dist-info/{path}")


SLIM = PROFILE + "slim:\n  - {wheels: [Alpha], drop: [alpha/tool.py]}\n"


def test_an_image_without_what_is_left_out(world: World, small: Path, tmp_path: Path) -> None:
    """From the profile to the published image, and back from its own lock."""
    cache = world.environment(world.root / "cache")
    profile = write_project(tmp_path / "slim", SLIM)
    assert run(["publish", profile, "oci:out"], profile.parent, cache).code == 0
    whole, slimmed = locks_of(small), locks_of(profile)
    changed = {one.name for one, other in zip(layers(whole), layers(slimmed), strict=True) if one.key != other.key}
    assert changed == {"3 wheels"}
    paths = published(profile.parent / "out")
    assert f"{SITE}/alpha/tool.py" not in paths
    assert f"{SITE}/alpha/blob.bin" in paths
    assert f"{SITE}/alpha/tool.py" in published(small.parent / "out")
    done = run(["verify", f"oci:{profile.parent / 'out'}"], profile.parent, cache)
    assert done.code == 0, done.err
    assert "identical" in done.out


def test_only_the_layers_of_slimmed_wheels_are_other_ones(small: Path) -> None:
    """Every wheel large enough for a layer of its own."""
    lock = locks_of(small)
    (platform,) = lock.platforms
    assert platform.python
    wheels = tuple(replace(item, file=replace(item.file, size=LARGE_WHEEL)) for item in platform.python.wheels)
    dropped = tuple(replace(item, drop=("tests",)) if item.name == "alpha" else item for item in wheels)
    keys = [
        {
            layer.name: layer.key
            for layer in layers(
                replace(lock, platforms=(replace(platform, python=replace(platform.python, wheels=each)),))
            )
        }
        for each in (wheels, dropped)
    ]
    assert {name for name in keys[0] if keys[0][name] != keys[1][name]} == {"alpha 1.0"}


def test_the_lock_keeps_its_word(world: World, tmp_path: Path) -> None:
    cache = world.environment(world.root / "cache")
    profile = write_project(tmp_path / "slim", SLIM)
    assert run(["lock", profile], profile.parent, cache).code == 0
    text = profile.with_suffix(".lock.json").read_text()
    again = run(["lock", profile], profile.parent, cache)
    assert "unchanged" in again.err
    before = profile.with_name("before.lock.json")
    before.write_text(text)
    profile.write_text(PROFILE)
    stale = run(["publish", profile, "oci:out"], profile.parent, cache)
    assert stale.code == 3
    done = run(["lock", profile], profile.parent, cache)
    assert "~ alpha 1.0 without alpha/tool.py → 1.0 (linux/amd64)" in done.err
    assert '"drop"' in text
    assert '"drop"' not in profile.with_suffix(".lock.json").read_text()
    differ = run(["diff", before, profile.with_suffix(".lock.json")], profile.parent, cache)
    assert "left out of wheels" in differ.out
    assert "alpha/tool.py" in differ.out


def test_a_rule_that_does_nothing_is_told_when_locking(world: World, tmp_path: Path) -> None:
    profile = write_project(tmp_path / "slim", SLIM.replace("tool.py", "tol.py"))
    done = run(["lock", profile], profile.parent, world.environment(world.root / "cache"))
    assert done.code == 1
    assert "slim: 'alpha/tol.py' leaves out no file of Alpha" in done.err


@pytest.mark.parametrize(
    ("rules", "problem"),
    [
        ("[{drop: []}]", "slim[0].drop: there is no pattern"),
        ("[{wheels: [alpha]}]", "drop"),
        ("[{drop: [/etc]}]", "relative paths"),
        ("[{drop: ['*.a'], wheel: alpha}]", "did you mean wheels"),
        ("[{drop: ['*.a'], wheels: ['alpha>=1']}]", "name of a Python package"),
    ],
)
def test_rules_that_cannot_be(rules: str, problem: str, world: World, tmp_path: Path) -> None:
    profile = write_project(tmp_path / "slim", PROFILE + f"slim: {rules}\n")
    done = run(["lock", profile], profile.parent, world.environment(world.root / "cache"))
    assert done.code == 1
    assert problem in done.err


def locks_of(profile: Path) -> Lock:
    path = profile.with_suffix(".lock.json")
    return locks.parse(path.read_text(), str(path))


def layers(lock: Lock) -> tuple[WheelLayer, ...]:
    (platform,) = plan(lock).platforms
    return tuple(layer for layer in platform.layers if isinstance(layer, WheelLayer))


def published(out: Path) -> set[str]:
    """All paths of the image in a layout."""
    paths = set()
    for data in Layout(out).blobs().values():
        if data[:2] == b"\x1f\x8b":
            with tarfile.open(fileobj=io.BytesIO(data)) as tar:
                paths |= set(tar.getnames())
    assert json.loads((out / "index.json").read_bytes())
    return paths
