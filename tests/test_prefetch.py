"""Prefetch artifacts: as the real tool makes them, and no good ones. The real snapshotter fetches what they list."""

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
from layouts import Layout, plain
from test_adaptive import environ, files
from test_node_config import folder, path
from test_start import started
from world import Real, World, run

from builder.coldstart import trace as traces
from builder.coldstart.trace import Trace, TracedFile
from builder.layers.spans import Checkpoint
from builder.oci.digest import Digest
from builder.soci import prefetch, read

__all__ = ["folder", "path"]  # fixtures
DIGEST = "com.amazon.soci.image-layer-digest"


@pytest.fixture(scope="module")
def fetched_first(real: Real, tmp_path_factory: pytest.TempPathFactory) -> tuple[Layout, str, list[str]]:
    """The real image with what reads some files of it, in two layers; its digest, and the files."""
    folder = tmp_path_factory.mktemp("prefetch")
    shutil.copytree(real.profile.parent / "real", folder / "real")
    text = real.profile.read_text().replace("min-layer-size: 5MiB", "min-layer-size: 5MiB, prefetch: true")
    (folder / "real.yaml").write_text(f"{text}\nstart: {{trace: real.trace.json, readahead: false}}\n")
    shutil.copy(real.profile.with_suffix(".lock.json"), folder / "real.lock.json")
    sizes = files(real)
    wanted = [name for name in sizes if "_multiarray_umath" in name and name.endswith(".so")]
    wanted += [name for name in sizes if name.endswith(("/numpy/__init__.py", "usr/bin/python3.11"))]
    assert len(wanted) == 3
    trace = Trace(traces.VERSION, "linux/amd64", tuple(TracedFile(name, sizes[name]) for name in sorted(wanted)))
    (folder / "real.trace.json").write_text(traces.encode(trace))
    done = run(["publish", "-q", "--lock", folder / "real.yaml", f"oci:{folder / 'out'}"], folder, environ(real))
    assert done.code == 0, done.err
    return Layout(folder / "out"), done.digest, wanted


def listed(layout: Layout, digest: str) -> list[dict[str, Any]]:
    """What the SOCI index of an image lists."""
    (bound,) = (entry for entry in layout.json(Digest.parse(digest))["manifests"] if "artifactType" in entry)
    found: list[dict[str, Any]] = layout.json(Digest.parse(bound["digest"]))["layers"]
    return found


def artifacts(layout: Layout, digest: str) -> dict[str, tuple[tuple[int, int], ...]]:
    """The spans of the prefetch artifacts of an image, by its layers."""
    return {
        entry["annotations"][DIGEST]: prefetch.decode(layout.path(Digest.parse(entry["digest"])).read_bytes())
        for entry in listed(layout, digest)
        if entry["mediaType"] == prefetch.MEDIA_TYPE
    }


def test_the_real_tool_makes_the_same(real: Real, fetched_first: tuple[Layout, str, list[str]], tmp_path: Path) -> None:
    """Byte for byte, of the same image and the same files."""
    layout, digest, wanted = fetched_first
    plain(layout, Digest.parse(digest), Layout(tmp_path / "plain"))
    flags = [word for name in wanted for word in ("-prefetch", f"/{name}")]
    command = [str(judges.require("soci-peer")), "convert", "-min-layer-size", str(5 << 20), *flags]
    done = subprocess.run([*command, tmp_path / "plain", tmp_path / "out"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == digest
    assert len(artifacts(layout, digest)) == 2


def test_it_comes_before_the_container(fetched_first: tuple[Layout, str, list[str]], folder: Path, path: str) -> None:
    """The real snapshotter fetches the spans that the index lists while it mounts the layers."""
    layout, digest, _ = fetched_first
    spans = sum(last - first + 1 for found in artifacts(layout, digest).values() for first, last in found)
    python = ("--entrypoint", "python", "--", "-c", "import numpy")
    (start,) = started(folder, path, f"oci:{layout.root}", *python).cold()
    pulled = next(phase for phase in start.phases if phase.name == "pull")
    assert pulled.spans >= spans > 3


def test_the_rest_of_the_image_is_the_same(real: Real, fetched_first: tuple[Layout, str, list[str]]) -> None:
    layout, digest, _ = fetched_first
    before, after = (listed(Layout(real.out), real.digest), listed(layout, digest))
    assert before == after[: len(before)]
    for options in (["--quick"], []):
        done = run(["verify", *options, f"oci:{layout.root}"], layout.root.parent, environ(real))
        assert done.code == 0, done.out + done.err
    shown: Any = json.loads(run(["inspect", "--format", "json", f"oci:{layout.root}"], layout.root, environ(real)).out)
    assert len(shown["images" if "images" in shown else "platforms"]) == 1


BAD = {
    "no JSON": b"{",
    "a list": b"[]",
    "another version": b'{"version":"2.0","prefetch_spans":[{"start_span":0,"end_span":0}]}',
    "no spans": b'{"version":"1.0","prefetch_spans":[]}',
    "backwards": b'{"version":"1.0","prefetch_spans":[{"start_span":3,"end_span":2}]}',
    "a truth": b'{"version":"1.0","prefetch_spans":[{"start_span":true,"end_span":2}]}',
    "deep": b'{"version":"1.0","prefetch_spans":' + b"[" * 100_000 + b"}",
}


@pytest.mark.parametrize("name", BAD)
def test_no_artifacts(name: str) -> None:
    with pytest.raises(ValueError, match=r"span|list|version|Expecting|depth"):
        prefetch.decode(BAD[name])


@pytest.mark.parametrize("fault", ["no JSON", "a span that is none", "of another layer", "two"])
def test_artifacts_that_lie(
    fault: str, real: Real, fetched_first: tuple[Layout, str, list[str]], tmp_path: Path
) -> None:
    """They are told by `verify`, with the layer that they are of."""
    source, digest, _ = fetched_first
    layout = Layout(tmp_path / "out")
    shutil.copytree(source.root, layout.root, copy_function=os.link)

    def broken(soci: dict[str, Any]) -> None:
        artifact = soci["layers"][-1]
        if fault in ("no JSON", "a span that is none"):
            data = BAD[fault] if fault in BAD else prefetch.encode([(0, 1), (5, 99999)])
            made = layout.add(data, prefetch.MEDIA_TYPE)
            artifact |= {"digest": str(made.digest), "size": made.size}
        elif fault == "two":
            soci["layers"].append(artifact)
        else:
            artifact["annotations"] = {DIGEST: str(Digest.of(b"another"))}

    (layout.root / "index.json").unlink()  # a link into the other layout
    layout.rebind(Digest.parse(digest), broken)
    done = run(["verify", "--quick", f"oci:{layout.root}"], tmp_path, environ(real))
    assert done.code == 3, done.out + done.err
    assert "prefetch artifact" in done.out
    assert "Traceback" not in done.err


def test_a_trace_is_needed(world: World, tmp_path: Path) -> None:
    target = world.project(tmp_path / "project")
    target.write_text(target.read_text().replace("soci: {", "soci: {prefetch: true, "))
    done = run(["lock", target], tmp_path, world.environment(tmp_path / "cache"))
    assert done.code == 1
    assert "start: {trace" in done.err


def ztoc(cuts: list[int]) -> read.Ztoc:
    """A ztoc whose spans begin at these places of the tar."""
    checkpoints = tuple(Checkpoint(number, at, 0) for number, at in enumerate(cuts))
    return read.Ztoc("", "", len(cuts), cuts[-1] + 1, 1, checkpoints, (), 0, b"", 0, 0)


@given(
    st.lists(st.integers(1, 1000), max_size=20, unique=True),
    st.lists(st.tuples(st.integers(0, 1000), st.integers(1, 100)), min_size=1, max_size=10),
)
def test_every_byte_lies_in_a_span_that_is_listed(cuts: list[int], regions: list[tuple[int, int]]) -> None:
    starts = [0, *sorted(cuts)]
    found = prefetch.spans_of(ztoc(starts), [(at, at + size) for at, size in regions])
    listed = {number for first, last in found for number in range(first, last + 1)}
    needed = {
        max(number for number, start in enumerate(starts) if start <= at)
        for begin, size in regions
        for at in range(begin, begin + size + 1)
    }
    assert listed == needed
    assert all(last + 1 < first for (_, last), (first, _) in pairwise(found))
    assert prefetch.decode(prefetch.encode(found)) == found


@given(st.binary(max_size=200) | st.builds(lambda value: json.dumps(value).encode(), st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just("1.0"),
    lambda inner: st.lists(inner, max_size=3)
    | st.dictionaries(st.sampled_from(["version", "prefetch_spans", "start_span", "end_span"]), inner, max_size=4),
    max_leaves=10,
)))  # fmt: skip
def test_what_is_no_artifact(data: bytes) -> None:
    """Whatever it is, it is read, or it is told that it is none."""
    try:
        found = prefetch.decode(data)
    except ValueError:
        return
    assert all(0 <= first <= last for first, last in found)
