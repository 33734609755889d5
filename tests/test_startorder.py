"""What a start reads comes first in layers: which layers that is, and who still shares them."""

from __future__ import annotations

import contextlib
import gzip
import json
import random
import tarfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import indexserver
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import Layout as RawLayout
from world import Done, World, run

from builder.coldstart import trace as traces
from builder.coldstart import values
from builder.coldstart.trace import Trace, TracedFile
from builder.coldstart.values import Measurement, Phase, Start
from builder.errors import BuilderError, HostileInputError, StaleLockError
from builder.layers.tar import Entry, Kind
from builder.lock import LockedOrder, LockedTemplate
from builder.oci.digest import Digest
from builder.plan import SystemLayer
from builder.plan.values import StartOrder
from builder.soci import ranges
from builder.sources import startorder
from builder.store import Store

SITE = "opt/venv/lib/python3.11/site-packages"
HEAVY = tuple(f"{SITE}/omega/m{number:02}.py" for number in range(3, 40, 2))
TEXT = """\
profile: 1
name: small
base: {debian: bookworm, packages: [hello]}
python: {version: "3.11", requirements: [alpha, omega], bytecode: false}
files: [{from: app, to: /app}]
publish: {soci: {span-size: 256KiB, min-layer-size: 1MiB}}
"""


@pytest.fixture(scope="module")
def heavy(world: World) -> World:
    """A world with a wheel that is a layer of its own."""
    modules = {f"omega/m{number:02}.py": f"x = {number}\n".encode() for number in range(40)}
    blob = random.Random(3).randbytes(1 << 20) * 65
    files = {"omega/blob.bin": blob, **modules}
    world.index.publish(indexserver.wheel("omega", "1.0", files=files, method=0))
    return world


def traced(*paths: str) -> str:
    return traces.encode(Trace(traces.VERSION, "linux/amd64", tuple(TracedFile(path, 1) for path in sorted(paths))))


def published(
    heavy: World, root: Path, start: str, *paths: str, code: int = 0
) -> tuple[list[dict[str, Any]], Done, Path]:
    """The layers of an image: name, digest and members."""
    (root / "app").mkdir(parents=True)
    (root / "app/main.py").write_text("print()\n")
    profile = root / "small.yaml"
    profile.write_text(TEXT + start)
    if paths:
        (root / "t.trace.json").write_text(traced(*paths))
    environ = heavy.environment(heavy.root / "cache")
    done = run(["publish", profile, f"oci:{root / 'out'}"], root, environ)
    assert done.code == code, done.err
    raw = RawLayout(root / "out")
    (image,) = (item for item in raw.json(Digest.parse(done.digest))["manifests"] if "artifactType" not in item)
    manifest = raw.json(Digest.parse(image["digest"]))
    config = raw.json(Digest.parse(manifest["config"]["digest"]))
    names = [item["created_by"].removeprefix("layerwright: ") for item in config["history"]]
    found = []
    for name, layer in zip(names, manifest["layers"], strict=True):
        found.append({"name": name, "digest": layer["digest"], "path": raw.path(Digest.parse(layer["digest"]))})
    return found, done, profile


def members(layer: dict[str, Any]) -> list[str]:
    with gzip.open(layer["path"]) as data, tarfile.open(fileobj=data) as tar:
        return [member.name for member in tar]


def digests(layers: Sequence[dict[str, Any]]) -> dict[str, str]:
    return {layer["name"]: layer["digest"] for layer in layers}


READ = ("usr/bin/hello", f"{SITE}/alpha/tool.py", f"{SITE}/omega/m01.py", *HEAVY)


def test_what_is_read_comes_first(heavy: World, tmp_path: Path) -> None:
    """In the layers of this image's own mix, or in all; large wheels stay everybody's, or those of whoever reads the same."""
    plain, _, _ = published(heavy, tmp_path / "plain", "")
    own, _, _ = published(
        heavy, tmp_path / "own", "start: {trace: t.trace.json, readahead: false, order: own}\n", *READ
    )
    line = "start: {trace: t.trace.json, order: all}\n"
    every, done, profile = published(heavy, tmp_path / "all", line, *READ)
    other, _, _ = published(heavy, tmp_path / "other", line, "usr/bin/python3.11", f"{SITE}/omega/m01.py", *HEAVY)
    unlike, _, _ = published(heavy, tmp_path / "unlike", line, *HEAVY)
    one, two, three, four, five = map(digests, (plain, own, every, other, unlike))
    assert one["omega 1.0"] == two["omega 1.0"] != three["omega 1.0"] == four["omega 1.0"] != five["omega 1.0"]
    for name in ("debian bookworm", "alpha 1.0"):
        assert one[name] != two[name] == three[name] != four[name]
    assert one["files"] == two["files"] == three["files"]
    for before, after in zip(plain, every, strict=False):
        names = members(after)
        assert sorted(names) == members(before)
        assert all(names.index(name) > names.index(name.rpartition("/")[0]) for name in names if "/" in name)
        first = [name for name in names if name in READ]
        folders = {name.rpartition("/")[0] for name in first}
        if before["name"] != "files":
            assert first == sorted(first)
            there = [name for name in names if any(f"{folder}/".startswith(f"{name}/") for folder in folders)]
            assert set(names[: len(first) + len(there)]) == {*first, *there}
    environ = heavy.environment(heavy.root / "cache")
    assert run(["verify", f"oci:{tmp_path / 'all/out'}"], tmp_path, environ).code == 0
    assert run(["lock", "--check", profile], tmp_path, environ).code == 0
    locked = json.loads(profile.with_suffix(".lock.json").read_text())["start"]["order"]
    assert sorted(item["count"] for item in locked) == [1, 1 + len(HEAVY), 2 + len(HEAVY)]
    shown = run(["plan", profile], tmp_path, environ)
    assert "omega 1.0: 20 files first" in shown.out
    assert one["omega 1.0"].removeprefix("sha256:")[:12] in shown.out
    rows = run(["plan", "--format", "json", profile], tmp_path, environ).json["platforms"]["linux/amd64"]["layers"]
    assert [row.get("first") for row in rows] == [1, 20, 21, None, None]
    assert done.digest


def test_few_files_of_a_large_wheel_are_left_where_they_are(heavy: World, tmp_path: Path) -> None:
    plain, _, _ = published(heavy, tmp_path / "plain", "")
    few, _, profile = published(
        heavy, tmp_path / "few", "start: {trace: t.trace.json, order: all}\n", f"{SITE}/omega/blob.bin"
    )
    assert digests(plain)["omega 1.0"] == digests(few)["omega 1.0"]
    profile.with_name("t.trace.json").write_text(traced(*HEAVY))
    environ = heavy.environment(heavy.root / "cache")
    assert run(["lock", "--check", profile], tmp_path, environ).code == 3
    assert run(["lock", profile], tmp_path, environ).code == 0
    before = profile.with_suffix(".lock.json").read_bytes()
    empty = heavy.environment(tmp_path / "empty", LAYERWRIGHT_MIRRORS=str(tmp_path))
    assert run(["lock", profile], tmp_path, empty).code == 0, "nothing is fetched where nothing has changed"
    assert profile.with_suffix(".lock.json").read_bytes() == before


def test_a_trace_of_another_image_is_said_to_be_one(heavy: World, tmp_path: Path) -> None:
    """Layers are those that nobody ordered; of a trace whose files are gone in part, what is left counts."""
    plain, _, _ = published(heavy, tmp_path / "plain", "")
    line = "start: {trace: t.trace.json, order: all}\n"
    other, done, profile = published(heavy, tmp_path / "other", line, "srv/one", "srv/two")
    assert [layer["digest"] for layer in other[:-1]] == [layer["digest"] for layer in plain]
    assert "t.trace.json" in done.err
    assert "another image" in done.err
    profile.with_name("t.trace.json").write_text(traced("app/main.py", "srv/two"))
    environ = heavy.environment(heavy.root / "cache")
    for _ in range(2):  # said once more, although nothing is built
        done = run(["publish", "--lock", profile, f"oci:{tmp_path / 'again'}"], tmp_path, environ)
        assert done.code == 0
        assert "1 of 2 files" in done.err


ROW = [["/usr/a", 0, 1]]


@pytest.mark.parametrize(
    "data",
    [b"", b"{}", b"[" * 100_000, b"[1]", b'[["a", 0, 1]]', b'[["/a", 2, 1]]', b'[["/a", -1, 1]]', b'[["/a", 0, 1e9]]',
     b'[["/a", 0, 99999999999999999999]]', b'[["/a", "0", 1]]', b'[[1, 0, 1]]', b'[["/a", 0]]', b"\xff"],
)  # fmt: skip
def test_ranges_of_others_that_are_none(data: bytes) -> None:
    with pytest.raises(HostileInputError, match="start reads"):
        ranges.parse(data)


@given(st.data())
def test_whatever_is_read_is_refused_or_right(data: st.DataObject) -> None:
    """Traces, measurements and ranges with something else in some place: an error of ours, or nothing."""
    trace = json.loads(traced("usr/a", "usr/b"))
    start = Start((Phase("pull", 0.0, 1.5, 10, 2, 1),), 2.0, 10, 2, 1)
    measured = json.loads(
        values.encode(Measurement(1, "oci:x", "sha256:y", "linux/amd64", "soci", 1, "exit", (), (start,)))
    )
    odd: st.SearchStrategy[Any] = (
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.just([]) | st.just({})
    )
    for document, parse in (
        (trace, lambda text: traces.parse(text, "f")),
        (measured, lambda text: values.parse(text, "f")),
        (ROW, lambda text: ranges.parse(text.encode("utf-8", "surrogatepass"))),
    ):
        changed = json.loads(json.dumps(document))
        places = list(_places(changed))
        holder, key = data.draw(st.sampled_from(places))
        holder[key] = data.draw(odd)
        with contextlib.suppress(BuilderError):
            parse(json.dumps(changed))


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    """Every place in a document."""
    for key in list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ():
        yield node, key
        yield from _places(node[key])


PATHS = st.lists(st.sampled_from(["usr", "etc", "x", "ü", "usr/b"]), min_size=1, max_size=3).map("/".join)


@given(st.sets(PATHS, max_size=12), st.sets(PATHS, max_size=6))
def test_nothing_is_lost_or_before_its_folder(there: set[str], read: set[str]) -> None:
    """Traces order; they never delete, and they may name what is not there."""
    every = {path[:end] for path in there for end in range(len(path) + 1) if path[end : end + 1] in ("", "/")}
    entries = [
        Entry(path, Kind.DIR if any(item.startswith(f"{path}/") for item in every) else Kind.FILE, 0o755)
        for path in sorted(every, key=str.encode)
    ]
    rows = json.dumps([[f"/{path}", 0, 1] for path in sorted(read)]).encode()
    names = startorder._debian(read)
    template = LockedTemplate("/r", "t.trace.json", "0644", "", "", 0)
    order = StartOrder(LockedOrder("debian", startorder._digest(names), max(1, len(names))), template)
    layer = SystemLayer("debian", Digest.of(b""), (), None, None, order=order)
    found = [entry.path for entry in startorder.ordered(layer, entries, rows, Store(Path("/nowhere")))]
    assert sorted(found, key=str.encode) == [entry.path for entry in entries]
    for number, path in enumerate(found):
        assert "/" not in path or path.rpartition("/")[0] in found[:number]
    with pytest.raises(StaleLockError, match=r"t\.trace\.json"):
        startorder.ordered(layer, entries, b'[["/usr/another", 0, 1]]', Store(Path("/nowhere")))
