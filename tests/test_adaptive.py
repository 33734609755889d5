"""Adaptive spans: where they begin, that the real tool reads layers through them, and that nothing but the index changes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
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
