"""Adaptive spans: where they begin, that the real tool reads layers through them, and that nothing but the index changes."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import Any

import judges
import pytest
from hypothesis import given
from hypothesis import strategies as st
from layouts import Layout
from world import Real, World, run

from builder.coldstart import trace as traces
from builder.coldstart.trace import Part, Trace, TracedFile
from builder.layers import cuts
from builder.layers.spans import WINDOW, Checkpoint
from builder.oci.digest import Digest
from builder.soci import adaptive, read

BLOCK = 50_000


def spans(regions: list[tuple[int, int]], size: int) -> list[tuple[int, int]]:
    """The spans of a tar whose deflate blocks end every `BLOCK` bytes."""
    full = adaptive.rule(regions)
    cuts = [0]
    for out in range(BLOCK, size, BLOCK):
        if full(cuts[-1], out):
            cuts.append(out)
    return list(pairwise([*cuts, size]))


@given(
    st.lists(st.tuples(st.integers(0, 300 << 20), st.integers(1, 4 << 20)), max_size=12),
    st.integers(1, 300 << 20),
)
def test_what_is_read_lies_in_small_spans(places: list[tuple[int, int]], size: int) -> None:
    regions = [(start, start + length) for start, length in places]
    found = spans(regions, size)
    assert found[0][0] == 0
    assert found[-1][1] == size
    limit = max(adaptive.COLD, adaptive.HOT) + 2 * BLOCK
    for start, end in found:
        assert end - start <= limit
        if any(first < end and start < last for first, last in regions):
            assert end - start <= adaptive.HOT + 2 * BLOCK + (1 << 20)


def test_little_is_read_with_it() -> None:
    """One place in 1 GiB: one or two small spans at it, the rest in as few as can be."""
    found = spans([(500 << 20, (500 << 20) + 100)], 1 << 30)
    small = [(start, end) for start, end in found if end - start <= adaptive.HOT]
    assert len(found) <= (1 << 30) // adaptive.COLD + 4
    assert small
    assert any(start <= 500 << 20 < end for start, end in small)
    assert len(spans([], 1 << 30)) == (1 << 30) // (adaptive.COLD + BLOCK) + 1


def blocks(size: int, heavy: Sequence[tuple[int, int]]) -> list[Checkpoint]:
    """The ends of deflate blocks of a tar, a hundredth of it in the blob, but all of it in the places that are heavy."""
    found, at = [Checkpoint(10, 0, 0)], 10
    for out in range(BLOCK, size, BLOCK):
        at += BLOCK if any(start < out <= end for start, end in heavy) else BLOCK // 100
        found.append(Checkpoint(at, out, 3))
    return found


def chosen(places: list[Checkpoint], parts: list[tuple[int, int]], size: int) -> list[Checkpoint]:
    """Where spans begin, by what a pass over all of the places finds."""
    witness = cuts._Places(io.BytesIO(), parts, adaptive.NEAR, adaptive.REST)
    for place in places:
        witness.boundary(place.in_offset, place.out_offset, place.bits, lambda: bytes(WINDOW))
    found = witness.found
    numbers = adaptive.choose(found, parts, places[-1].in_offset + BLOCK, size)
    return [found[number] for number in numbers]


@given(
    st.lists(st.tuples(st.integers(0, 150 << 20), st.integers(1, 6 << 20)), max_size=10),
    st.lists(st.tuples(st.integers(0, 150 << 20), st.integers(1, 20 << 20)), max_size=3),
    st.integers(1, 150 << 20),
)
def test_little_comes_beside_what_is_read(
    places: list[tuple[int, int]], heavy: list[tuple[int, int]], size: int
) -> None:
    """What comes is the blocks that are read, and between these what is too small to be left out."""
    regions = [
        adaptive.Region(max(0, start - 512), start, start + length, ((start, start + length),))
        for start, length in places
        if start + length < size
    ]
    parts = adaptive.parts(regions)
    every = blocks(size, [(start, start + length) for start, length in heavy])
    found = chosen(every, parts, size)
    assert found[0] == every[0]
    ends = [*found[1:], Checkpoint(every[-1].in_offset + BLOCK, size, 0)]
    spans = [(first, last, read_of(first, last, parts)) for first, last in zip(found, ends, strict=True)]
    for first, last, is_read in spans:
        length = last.out_offset - first.out_offset
        assert length <= (adaptive.READ + adaptive.NEAR if is_read else adaptive.REST) + 2 * BLOCK + adaptive._LONG
    came = sum(last.in_offset - first.in_offset for first, last, is_read in spans if is_read)
    pairs = pairwise([*every, ends[-1]])
    needed = sum(last.in_offset - first.in_offset for first, last in pairs if read_of(first, last, parts))
    assert came <= needed + len(parts) * adaptive._BRIDGE


def read_of(first: Checkpoint, last: Checkpoint, parts: list[tuple[int, int]]) -> bool:
    """Whether what lies between two places is fetched: a read that ends on the first one counts."""
    return any(start < last.out_offset and first.out_offset <= end for start, end in parts)


def test_a_gap_is_left_out_by_its_weight() -> None:
    """What lies between two parts of a file is fetched if it weighs little, and not if it does not, near as they are."""
    size, mib, gap = 20 << 20, 1 << 20, 400 << 10
    parts = [(8 * mib, 9 * mib), (9 * mib + gap, 10 * mib)]
    for heavy, spanned in (([(0, size)], 3), ([(0, 9 * mib - BLOCK), (9 * mib + gap, size)], 1)):
        every = blocks(size, heavy)
        found = chosen(every, parts, size)
        inside = [place for place in found if 8 * mib - BLOCK < place.out_offset <= 10 * mib]
        assert len(inside) == spanned, heavy
    (before,) = [place for place in chosen(blocks(size, [(0, size)]), parts, size) if place.out_offset > 9 * mib][1:2]
    assert 9 * mib + gap - BLOCK < before.out_offset <= 9 * mib + gap


def test_rules_stay_as_they_are() -> None:
    """Locks name them by number: what they say decides digests."""
    size, mib = 200 << 20, 1 << 20
    first = [start for start, _ in spans([(10 * mib, 11 * mib), (15 * mib, 16 * mib), (90 * mib, 90 * mib + 1)], size)]
    region = adaptive.Region(10 * mib - 512, 10 * mib, 40 * mib, ((12 * mib, 13 * mib), (15 * mib, 15 * mib + 4096)))
    other = adaptive.Region(90 * mib, 90 * mib + 512, 90 * mib + 600, ((90 * mib + 512, 90 * mib + 600),))
    parts = adaptive.parts([region, other])
    places = blocks(size, [(10 * mib, 100 * mib)])
    second = [place.out_offset for place in chosen(places, parts, size)]
    assert Digest.of(json.dumps([first, parts, second]).encode()).short == "927518b7c374"


def test_a_header_is_read_with_its_file() -> None:
    """soci-snapshotter compares it before it gives any of the file."""
    region = adaptive.Region(1000, 2536, 10 << 20, ((5 << 20, 6 << 20),))
    assert adaptive.parts([region]) == [(1000, 2536), ((5 << 20) - (64 << 10), (6 << 20) + (192 << 10))]


def profile(real: Real, folder: Path) -> Path:
    """The real profile with a trace of numpy's extension, some of it, and adaptive spans; its lock is taken over."""
    shutil.copytree(real.profile.parent / "real", folder / "real")
    text = real.profile.read_text().replace("min-layer-size: 5MiB", "min-layer-size: 5MiB, spans: adaptive")
    target = folder / "real.yaml"
    target.write_text(f"{text}\nstart: {{trace: real.trace.json}}\n")
    shutil.copy(real.profile.with_suffix(".lock.json"), folder / "real.lock.json")
    name = next(path for path in files(real) if "_multiarray_umath" in path and path.endswith(".so"))
    size = files(real)[name]
    trace = Trace(traces.VERSION, "linux/amd64", (TracedFile(name, size, (Part(0, 1 << 20), Part(6 << 20, 7 << 20))),))
    (folder / "real.trace.json").write_text(traces.encode(trace))
    return target


def files(real: Real) -> dict[str, int]:
    """The sizes of all files of the real image that lie in layers with a ztoc."""
    found: dict[str, int] = {}
    for _, ztoc in ztocs(Layout(real.out), real.digest):
        found |= {entry.name: entry.size for entry in ztoc.toc()}
    return found


def ztocs(layout: Layout, digest: str) -> list[tuple[Digest, read.Ztoc]]:
    """Layers and their ztocs."""
    found = []
    for entry in layout.json(Digest.parse(digest))["manifests"]:
        if "artifactType" in entry:
            for item in layout.json(Digest.parse(entry["digest"]))["layers"]:
                layer = Digest.parse(item["annotations"]["com.amazon.soci.image-layer-digest"])
                found.append((layer, read.decode(layout.path(Digest.parse(item["digest"])).read_bytes())))
    return found


@pytest.fixture(scope="module")
def adapted(real: Real, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A layout with the image, and its digest."""
    folder = tmp_path_factory.mktemp("adapted")
    done = run(["publish", "-q", "--lock", profile(real, folder), f"oci:{folder / 'out'}"], folder, environ(real))
    return folder / "out", done.digest


def environ(real: Real) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(real.cache)}


def layers(layout: Layout, digest: str) -> list[str]:
    entries: list[dict[str, Any]] = layout.json(Digest.parse(digest))["manifests"]
    (image,) = (entry for entry in entries if "artifactType" not in entry)
    return [layer["digest"] for layer in layout.json(Digest.parse(image["digest"]))["layers"]]


def test_only_the_index_changes(real: Real, adapted: tuple[Path, str]) -> None:
    layout = Layout(adapted[0])
    assert layers(layout, adapted[1])[:-1] == layers(Layout(real.out), real.digest)
    uniform = {layer: len(ztoc.checkpoints) for layer, ztoc in ztocs(Layout(real.out), real.digest)}
    own = {layer: len(ztoc.checkpoints) for layer, ztoc in ztocs(layout, adapted[1])}
    assert set(own) == set(uniform)
    assert sum(own.values()) < sum(uniform.values())


def test_the_real_tool_reads_layers_through_them(adapted: tuple[Path, str], tmp_path: Path) -> None:
    peer = judges.require("soci-peer")
    layout = Layout(adapted[0])
    for entry in layout.json(Digest.parse(adapted[1]))["manifests"]:
        for item in layout.json(Digest.parse(entry["digest"]))["layers"] if "artifactType" in entry else ():
            layer = item["annotations"]["com.amazon.soci.image-layer-digest"]
            paths = [layout.path(Digest.parse(item["digest"])), layout.path(Digest.parse(layer))]
            done = subprocess.run([peer, "check", *map(str, paths)], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr


def test_it_is_verified(real: Real, adapted: tuple[Path, str], tmp_path: Path) -> None:
    """Against itself, and rebuilt from its lock alone, which finds in the image what its start reads."""
    for options in (["--quick"], []):
        done = run(["verify", *options, f"oci:{adapted[0]}"], tmp_path, environ(real))
        assert done.code == 0, done.out + done.err


def test_the_same_from_another_store(real: Real, adapted: tuple[Path, str], tmp_path: Path) -> None:
    target = profile(real, tmp_path)
    shutil.copy(adapted[0].parent / "real.lock.json", tmp_path / "real.lock.json")
    mirrors = f"{environ(real).get('LAYERWRIGHT_MIRRORS', '')} {real.cache / 'layerwright'}"
    other = {**environ(real), "XDG_CACHE_HOME": str(tmp_path / "cache"), "LAYERWRIGHT_MIRRORS": mirrors}
    assert run(["publish", "-q", target, f"oci:{tmp_path / 'out'}"], tmp_path, other).digest == adapted[1]


def test_an_older_lock_keeps_its_rule(real: Real, adapted: tuple[Path, str], tmp_path: Path) -> None:
    """Nothing is stale, and what is locked anew stays by it, until the trace is another one or all is upgraded."""
    target = profile(real, tmp_path)
    text = (adapted[0].parent / "real.lock.json").read_text()
    lock = tmp_path / "real.lock.json"
    lock.write_text(text.replace('"adaptive-2"', '"adaptive"'))
    before = lock.read_bytes()
    assert run(["lock", "--check", target], tmp_path, environ(real)).code == 0
    done = run(["publish", "-q", "--lock", target, f"oci:{tmp_path / 'out'}"], tmp_path, environ(real))
    assert done.code == 0, done.err
    assert lock.read_bytes() == before
    assert layers(Layout(tmp_path / "out"), done.digest) == layers(Layout(adapted[0]), adapted[1])
    assert ztocs(Layout(tmp_path / "out"), done.digest)[0] != ztocs(Layout(adapted[0]), adapted[1])[0]
    trace = tmp_path / "real.trace.json"
    trace.write_text(trace.read_text().replace("1048576", "1044480"))
    assert run(["lock", target], tmp_path, environ(real)).code == 0
    assert '"adaptive-2"' in lock.read_text()
    lock.write_text(text.replace('"adaptive-2"', '"adaptive-99"'))
    newer = run(["lock", "--check", target], tmp_path, environ(real))
    assert newer.code == 1
    assert "adaptive-99" in newer.err


def test_a_trace_is_needed(world: World, tmp_path: Path) -> None:
    target = world.project(tmp_path / "project")
    target.write_text(target.read_text().replace("soci: {", "soci: {spans: adaptive, "))
    done = run(["lock", target], tmp_path, world.environment(tmp_path / "cache"))
    assert done.code == 1
    assert "start: {trace" in done.err


def test_without_reading_ahead(world: World, tmp_path: Path) -> None:
    """What the start reads is in the image all the same, so that it can be verified; the entrypoint stays."""
    target = world.project(tmp_path / "project")
    text = target.read_text().replace("soci: {", "soci: {spans: adaptive, ")
    target.write_text(text + "start: {trace: small.trace.json, readahead: false}\n")
    trace = Trace(traces.VERSION, "linux/amd64", (TracedFile("app/main.py", 15),))
    target.with_name("small.trace.json").write_text(traces.encode(trace))
    environment = world.environment(tmp_path / "cache")
    done = run(["publish", "-q", "--lock", target, "oci:out"], tmp_path, environment)
    layout = Layout(tmp_path / "out")
    (image,) = (entry for entry in layout.json(Digest.parse(done.digest))["manifests"] if "artifactType" not in entry)
    manifest = layout.json(Digest.parse(image["digest"]))
    config = layout.json(Digest.parse(manifest["config"]["digest"]))
    assert config["config"]["Entrypoint"][0] == "python"
    assert config["history"][-1]["created_by"] == "layerwright: start"
    assert run(["verify", "oci:out"], tmp_path, environment).code == 0
    assert json.loads(target.with_suffix(".lock.json").read_text())["start"]["launcher"] == 0
