"""Copies of whole images between layouts, archives and registries: complete, unchanged, or an error."""

from __future__ import annotations

import gzip
import io
import itertools
import json
import os
import random
import subprocess
import sys
import tarfile
import time
from pathlib import Path
from typing import Any

import judges
import pytest
from layouts import Layout as RawLayout
from world import BUILD, World, run

from builder.client import Client
from builder.copying import closure, copy
from builder.errors import HostileInputError
from builder.oci import spec
from builder.oci.content import Outcome
from builder.oci.digest import Digest
from builder.oci.layout import Layout, LayoutError
from builder.oci.spec import Descriptor
from builder.places.archive import Archive, NewArchive
from builder.places.delivery import Sink
from builder.places.remote import Remote
from builder.progress import Silent
from builder.registry import Keychain, Reference

REF_NAME = "org.opencontainers.image.ref.name"
LAYER = spec.LAYER_GZIP


def judge(name: str, *arguments: object) -> str:
    argv = [str(judges.require(name)), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


@pytest.fixture
def environment(world: World) -> dict[str, str]:
    return world.environment(world.root / "cache")


def document(**content: Any) -> bytes:
    return json.dumps({"schemaVersion": 2, **content}).encode()


def added(layout: RawLayout, media_type: str, **content: Any) -> Descriptor:
    return layout.add(document(mediaType=media_type, **content), media_type)


def image(layout: RawLayout, text: str, subject: Descriptor | None = None, **more: Any) -> Descriptor:
    """A manifest with a configuration and two layers."""
    config = layout.add(json.dumps({"of": text}).encode(), spec.CONFIG)
    layers = [layout.add(f"{text} {number}".encode() * 1000, LAYER) for number in range(2)]
    if subject:
        more["subject"] = subject.document()
    return added(layout, spec.MANIFEST, config=config.document(), layers=[layer.document() for layer in layers], **more)


def family(root: Path) -> tuple[RawLayout, Descriptor]:
    """An index in an index, two images, one that refers to an image, and one that refers to that one."""
    layout = RawLayout(root)
    one, two = image(layout, "one"), image(layout, "two")
    inner = added(layout, spec.INDEX, manifests=[two.document()])
    top = added(layout, spec.INDEX, manifests=[one.document(), inner.document()])
    note = image(layout, "note", one, artifactType="application/vnd.example.note")
    seal = image(layout, "seal", note, artifactType="application/vnd.example.seal")
    tagged = Descriptor(top.media_type, top.digest, top.size, {REF_NAME: "v1"})
    layout.point_to(tagged, note, seal)
    return layout, tagged


def test_everything_that_belongs_to_an_image_is_found(tmp_path: Path) -> None:
    raw, top = family(tmp_path)
    found = closure(Layout(tmp_path), Layout(tmp_path).resolve("v1"))
    order = [document.descriptor.digest for document in found.documents]
    assert {digest.hex for digest in order} | {blob.digest.hex for blob in found.blobs} == set(raw.blobs())
    place = {str(digest): number for number, digest in enumerate(order)}
    for item in found.documents:
        content = json.loads(item.data)
        below = [*content.get("manifests", ()), *([content["subject"]] if "subject" in content else [])]
        assert all(place[entry["digest"]] < place[str(item.descriptor.digest)] for entry in below)
    without = closure(Layout(tmp_path), Layout(tmp_path).resolve("v1"), referrers=False)
    assert len(without.documents) == 4
    assert found.top.descriptor.digest == top.digest


def test_a_copy_of_a_layout_is_the_same(tmp_path: Path) -> None:
    raw, _ = family(tmp_path / "one")
    source, target = Layout(tmp_path / "one"), Layout(tmp_path / "two")
    sink = Sink("two", target, ("v1",))
    done = copy(source, source.resolve("v1"), sink, Silent())
    assert done.count(Outcome.MOVED) == len(done.blobs) == 12  # four manifests have three each
    assert RawLayout(tmp_path / "two").blobs() == raw.blobs()
    again = copy(source, source.resolve(None), sink, Silent())
    assert again.count(Outcome.PRESENT) == 12
    assert again.size(Outcome.MOVED) == 0
    assert target.resolve("v1").digest == source.resolve("v1").digest


@pytest.mark.parametrize("back", ["layout", "archive"])
def test_what_belongs_to_an_image_by_its_tag(back: str, registry: str, tmp_path: Path) -> None:
    """Signatures as cosign tags them: of the index and of a platform, one for two; once more, nothing moves."""
    raw, top = family(tmp_path / "one")
    inner = raw.json(top.digest)["manifests"][0]["digest"].partition(":")[2]
    source = Layout(tmp_path / "one")
    signature, attestation = image(raw, "signature"), image(raw, "attestation")
    tags = {f"sha256-{top.digest.hex}.sig", f"sha256-{inner}.sig", f"sha256-{inner}.att"}
    for tag in tags:
        source.tag(tag, attestation if tag.endswith(".att") else signature)
    source.tag(f"sha256-{'0' * 64}.sig", image(raw, "of another"))
    name = Reference.parse(f"{registry}/signed/{back}")
    repository = Remote(name, Client(), Keychain(), writing=True)
    for moved in (18, 0):
        done = copy(source, source.resolve(None), Sink("there", repository, ("v1",)), Silent())
        assert done.count(Outcome.MOVED) == moved
    assert {tag for tag in tags if repository.find(tag)} == tags
    assert repository.find(f"sha256-{'0' * 64}.sig") is None
    target: Layout | NewArchive = Layout(tmp_path / "two") if back == "layout" else NewArchive(tmp_path / "two")
    copy(repository, repository.resolve("v1"), Sink("back", target, ("v1",)), Silent())
    found = Layout(tmp_path / "two") if back == "layout" else Archive(tmp_path / "two")
    assert found.resolve(None).digest == top.digest  # the tags of signatures name no image
    assert {tag for tag in tags if found.find(tag)} == tags
    alone = Layout(tmp_path / "alone")
    copy(source, source.resolve("v1"), Sink("alone", alone, ("v1",)), Silent(), referrers=False)
    assert not [tag for tag in tags if alone.find(tag)]


def test_an_archive_depends_on_its_content_alone(tmp_path: Path) -> None:
    """Not on the way it was made, the order of arrival or the archive that was there; unchanged, it is not touched."""
    family(tmp_path / "one")
    source = Layout(tmp_path / "one")

    def archived(name: str, connections: int, origin: Layout | Archive = source) -> Path:
        path = tmp_path / name
        copy(origin, origin.resolve("v1"), Sink(name, NewArchive(path), ("v1",)), Silent(), connections)
        return path

    first = archived("first.tar", 1)
    assert archived("second.tar", 8).read_bytes() == first.read_bytes()
    assert archived("third.tar", 3, Archive(first)).read_bytes() == first.read_bytes()
    before = first.stat()
    archived("first.tar", 4)
    assert (before.st_ino, before.st_mtime_ns) == (first.stat().st_ino, first.stat().st_mtime_ns)
    with tarfile.open(first) as archive:
        assert [member.name for member in archive][:2] == ["oci-layout", "index.json"]
        assert {(member.uid, member.gid, member.mtime, member.mode) for member in archive} == {(0, 0, 315532800, 0o644)}
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_there_and_back_again(
    registry: str, small: Path, world: World, environment: dict[str, str], tmp_path: Path
) -> None:
    """Through a registry, an archive and a second repository, everything arrives as it was: papers, SOCI index and all."""
    digest = run(["publish", "-q", small, "oci:start:v1"], tmp_path, environment).digest
    way = ["oci:start:v1", f"{registry}/one/way:v1", "oci-archive:air-gap.tar", f"{registry}/another:v2", "oci:end"]
    for source, target in itertools.pairwise(way):
        done = run(["copy", source, target], tmp_path, environment)
        assert done.digest == digest, done.err
    start, end = RawLayout(tmp_path / "start"), RawLayout(tmp_path / "end")
    assert start.blobs() == end.blobs()
    entries = [json.loads((layout.root / "index.json").read_bytes())["manifests"] for layout in (start, end)]
    assert [{entry["digest"] for entry in listed} for listed in entries] == [{e["digest"] for e in entries[0]}] * 2
    assert [entry["annotations"][REF_NAME] for listed in entries for entry in listed[:1]] == ["v1", "v2"]
    attached = [
        run(["inspect", place, "--format", "json"], tmp_path, environment).json["attached"]
        for place in (way[0], way[1], way[2], way[3])
    ]
    assert len(attached[0]) >= 5
    assert attached == [attached[0]] * 4
    again = run(["copy", way[0], way[1], "--format", "json"], tmp_path, environment).json
    assert again["moved"] == again["mounted"] == {"blobs": 0, "bytes": 0}
    beside = run(["copy", way[1], f"{registry}/third", "--format", "json"], tmp_path, environment).json
    assert beside["destination"] == f"{registry}/third:v1"
    assert beside["moved"]["bytes"] == 0


def test_judges_read_what_is_copied(registry: str, small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    name = f"{registry}/judged/small:v1"
    digest = run(["publish", "-q", small, name, "oci:out:v1", "oci-archive:out.tar:v1"], tmp_path, environment).digest
    assert judge("crane", "digest", "--insecure", name).strip() == digest
    judge("crane", "validate", "--insecure", "--platform", "linux/amd64", "--remote", name)
    options = ("--insecure-policy", "--all")
    judge("skopeo", "copy", *options, "--src-tls-verify=false", f"docker://{name}", f"oci:{tmp_path / 'theirs'}:v1")
    judge("skopeo", "copy", *options, f"oci-archive:{tmp_path / 'out.tar'}:v1", f"oci:{tmp_path / 'archived'}:v1")
    for copied in ("theirs", "archived"):
        mine, theirs = RawLayout(tmp_path / "out").blobs(), RawLayout(tmp_path / copied).blobs()
        new = {name: data for name, data in theirs.items() if name not in mine}
        assert len(new) <= 1, "this skopeo drops what it does not know from the index"
    assert "sha256:" in judge("umoci", "stat", "--json", "--image", f"{_only_image(tmp_path / 'theirs')}:v1")
    config = json.loads(judge("skopeo", "inspect", "--config", f"oci-archive:{tmp_path / 'out.tar'}:v1"))
    assert config["config"]["Entrypoint"] == ["python", "/app/main.py"]


def _only_image(root: Path) -> Path:
    """Points the tag at the image of the index: umoci chooses none by itself."""
    layout = RawLayout(root)
    (entry,) = json.loads((root / "index.json").read_bytes())["manifests"]
    found = layout.json(Digest.parse(entry["digest"]))["manifests"][0]
    named = {**found, "annotations": {REF_NAME: "v1"}}
    (root / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [named]}))
    return root


def test_what_judges_write_is_read(registry: str, small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    """crane and skopeo push, `build copy` takes it from there; and an archive of skopeo's."""
    assert run(["publish", "-q", "--no-attach", small, "oci:out:v1"], tmp_path, environment).code == 0
    name = f"{registry}/theirs:v1"
    judge("crane", "push", "--insecure", "--index", tmp_path / "out", name)
    done = run(["copy", name, "oci:back"], tmp_path, environment)
    top = run(["inspect", name, "--format", "json"], tmp_path, environment).json
    assert done.digest == top["digest"]
    judge(
        "skopeo",
        "copy",
        "--all",
        "--insecure-policy",
        f"oci:{tmp_path / 'out'}:v1",
        f"oci-archive:{tmp_path / 't.tar'}:v1",
    )
    copied = run(["copy", "oci-archive:t.tar", "oci:again"], tmp_path, environment)
    assert copied.code == 0, copied.err
    found = run(["inspect", "oci:again:v1", "--format", "json"], tmp_path, environment).json
    ours = run(["inspect", "oci:out:v1", "--format", "json"], tmp_path, environment).json
    assert layers_of(found)[0] == layers_of(ours)[0]


def layers_of(shown: Any) -> list[list[str]]:
    return [[layer["digest"] for layer in image["layers"]] for image in shown["platforms"].values()]


def test_what_is_incomplete_or_damaged_is_no_copy(tmp_path: Path) -> None:
    for number, harm in enumerate(("missing", "damaged", "longer", "shorter")):
        root = tmp_path / str(number)
        raw, _ = family(root)
        blob = next(blob for blob in closure(Layout(root), Layout(root).resolve("v1")).blobs if blob.size > 1000)
        path = raw.path(blob.digest)
        data = path.read_bytes()
        path.unlink()
        if harm != "missing":
            wrong = {"damaged": b"x" + data[1:], "longer": data + b"x", "shorter": data[:-1]}[harm]
            path.write_bytes(wrong)
        for target in (Layout(tmp_path / f"{harm}-out"), NewArchive(tmp_path / f"{harm}.tar")):
            with pytest.raises(LayoutError, match=blob.digest.hex):
                copy(Layout(root), Layout(root).resolve("v1"), Sink("x", target, ("v1",)), Silent())
        assert not (tmp_path / f"{harm}.tar").exists()
        assert not (tmp_path / f"{harm}-out/index.json").exists()
        assert not RawLayout(tmp_path / f"{harm}-out").path(blob.digest).exists()


@pytest.mark.parametrize("harm", ["missing", "damaged", "longer", "shorter"])
def test_no_registry_gets_a_damaged_file_of_a_layout(harm: str, registry: str, tmp_path: Path) -> None:
    raw, _ = family(tmp_path / "layout")
    layout = Layout(tmp_path / "layout")
    blob = next(blob for blob in closure(layout, layout.resolve("v1")).blobs if blob.size > 1000)
    path = raw.path(blob.digest)
    data = path.read_bytes()
    path.unlink()
    if harm != "missing":
        path.write_bytes({"damaged": b"x" + data[1:], "longer": data + b"x", "shorter": data[:-1]}[harm])
    name = Reference.parse(f"{registry}/harmed-{harm}")
    remote = Remote(name, Client(), Keychain(), writing=True)
    with pytest.raises(LayoutError, match=blob.digest.hex):
        copy(layout, layout.resolve("v1"), Sink("x", remote, ("v1",)), Silent())
    assert not remote.has(blob)
    assert remote.tagged("v1") is None


@pytest.mark.parametrize(
    "content",
    [
        b"[]",
        b"{}",
        b"not json",
        b'{"manifests": 7}',
        b'{"manifests": [{"digest": "sha256:x"}]}',
        b'{"layers": [{"mediaType": "a", "digest": "md5:00", "size": 1}]}',
        b'{"config": [], "layers": []}',
        b"[" * 100_000,
    ],
)
def test_a_manifest_that_is_none_is_refused(content: bytes, tmp_path: Path) -> None:
    raw = RawLayout(tmp_path)
    top = raw.add(content, spec.MANIFEST)
    raw.point_to(Descriptor(top.media_type, top.digest, top.size, {REF_NAME: "v1"}))
    with pytest.raises(HostileInputError, match="not a manifest that can be copied"):
        closure(Layout(tmp_path), Layout(tmp_path).resolve("v1"))


def tar(path: Path, members: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w") as archive:
        for name, data in members.items():
            member = tarfile.TarInfo(name)
            member.size = len(data)
            archive.addfile(member, io.BytesIO(data))
    return path


def test_archives_that_lie(tmp_path: Path) -> None:
    with pytest.raises(LayoutError, match="cannot be read"):
        Archive(tmp_path / "none.tar")
    with pytest.raises(LayoutError, match="no OCI archive"):
        Archive(tar(tmp_path / "empty.tar", {"other": b""}))
    (tmp_path / "text").write_text("no tar at all " * 100)
    with pytest.raises(LayoutError, match="no tar file"):
        Archive(tmp_path / "text")
    with pytest.raises(LayoutError, match="text"):
        NewArchive(tmp_path / "text")  # somebody's file is not replaced
    assert (tmp_path / "text").stat().st_size == 1400
    with pytest.raises(LayoutError, match="not an OCI index"):
        Archive(tar(tmp_path / "bad.tar", {"index.json": b"{}"}))
    family(tmp_path / "one")
    source = Layout(tmp_path / "one")
    good = tmp_path / "good.tar"
    copy(source, source.resolve("v1"), Sink("good", NewArchive(good), ("v1",)), Silent())
    data = good.read_bytes()
    cut = tmp_path / "cut.tar"
    cut.write_bytes(data[: len(data) // 2])
    with pytest.raises(LayoutError, match=r"cut off|no tar file") as caught:
        Archive(cut)
    assert "bring the archive here again" in str(caught.value.hint)
    cut.write_bytes(gzip.compress(data))
    with pytest.raises(LayoutError, match="it is compressed") as caught:
        Archive(cut)
    assert caught.value.hint == "unpack it first"
    layer = closure(source, source.resolve("v1")).blobs[0]
    content = RawLayout(tmp_path / "one").path(layer.digest).read_bytes()
    (tmp_path / "flipped.tar").write_bytes(data.replace(content, b"y" + content[1:]))
    flipped = Archive(tmp_path / "flipped.tar")
    with pytest.raises(LayoutError, match="another digest"):
        copy(flipped, flipped.resolve(None), Sink("x", Layout(tmp_path / "x"), ("v1",)), Silent())


def test_names_of_places(registry: str, small: Path, environment: dict[str, str], tmp_path: Path) -> None:
    digest = run(["publish", "-q", small, f"{registry}/name:v1", "oci:a:v1", "oci:a:v2"], tmp_path, environment).digest
    by_digest = run(["copy", f"{registry}/name@{digest}", "oci:b"], tmp_path, environment)
    assert by_digest.digest == digest
    assert json.loads((tmp_path / "b/index.json").read_bytes())["manifests"][0]["annotations"] == {REF_NAME: "latest"}
    untagged = run(["copy", f"oci:b@{digest}", f"{registry}/untagged"], tmp_path, environment)
    assert f"{registry}/untagged@{digest}" in untagged.err
    assert run(["inspect", f"{registry}/untagged"], tmp_path, environment).code == 1
    assert run(["inspect", f"{registry}/untagged@{digest}"], tmp_path, environment).code == 0
    for arguments, message, code in (
        (["oci:a", "oci:c"], "it holds v1, v2", 1),
        (["oci:a:v1", "elsewhere"], "write oci:DIR", 2),
        (["oci:a:v1", "oci-archive:"], "names no file", 2),
        (["oci:a:v1", f"oci:c@sha256:{'0' * 64}"], "has the digest of the original", 2),
        (["oci:a@sha256:00", "oci:c"], "not a sha256 digest", 2),
        ([f"{registry}/none:v1", "oci:c"], "none", 1),
        (["--offline", f"{registry}/name:v1", "oci:c"], "--offline forbids it", 1),
        (["oci:a:v1", "oci:/proc/nowhere"], "cannot be written", 1),
        (["oci:a:v1", "oci-archive:/proc/nowhere.tar"], "cannot be written", 1),
    ):
        refused = run(["copy", *arguments], tmp_path, environment)
        assert (refused.code, message in refused.err) == (code, True), refused.err
        assert "Traceback" not in refused.err
    assert not (tmp_path / "c").exists()
    assert os.listdir(tmp_path / "a") != []


def large(root: Path, size: int, count: int) -> Descriptor:
    """A layout with an image whose layers cannot be compressed."""
    layout, chance = RawLayout(root), random.Random(5)
    layers = [layout.add(chance.randbytes(size), LAYER) for _ in range(count)]
    config = layout.add(b'{"os": "linux", "architecture": "amd64"}', spec.CONFIG)
    top = added(layout, spec.MANIFEST, config=config.document(), layers=[layer.document() for layer in layers])
    layout.point_to(Descriptor(top.media_type, top.digest, top.size, {REF_NAME: "v1"}))
    return top


def test_an_interrupted_pull_goes_on(environment: dict[str, str], tmp_path: Path) -> None:
    """Killed while blobs come in: no tag, no blob under its name that is not whole; then all of it arrives."""
    top = large(tmp_path / "big", 48 << 20, 3)
    with judges.registry("docker-registry", tmp_path / "registry") as address:
        name = f"{address}/big:v1"
        assert run(["copy", "-q", "oci:big", name], tmp_path, environment).digest == str(top.digest)
        for _ in range(3):
            child = subprocess.Popen([BUILD, "copy", "-q", name, "oci:pulled"], cwd=tmp_path, env=environment)
            folder = tmp_path / "pulled/blobs/sha256"
            until = time.monotonic() + 30
            while time.monotonic() < until and child.poll() is None and not list(folder.glob(".*.part")):
                time.sleep(0.005)
            child.kill()
            child.wait()
            found = RawLayout(tmp_path / "pulled").blobs()
            whole = {key: data for key, data in found.items() if not key.startswith(".")}
            assert {key: Digest.of(data).hex for key, data in whole.items()} == {key: key for key in whole}
        done = run(["copy", name, "oci:pulled"], tmp_path, environment)
        assert done.digest == str(top.digest), done.err
    assert RawLayout(tmp_path / "pulled").blobs() == RawLayout(tmp_path / "big").blobs()


def test_memory_does_not_grow_with_the_image(environment: dict[str, str], tmp_path: Path) -> None:
    large(tmp_path / "big", 64 << 20, 6)
    with judges.registry("docker-registry", tmp_path / "registry") as address:
        ways = [("oci:big", f"{address}/a:v1"), (f"{address}/a:v1", "oci:b"), (f"{address}/a:v1", "oci-archive:c.tar")]
        for way in ways:
            code = "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True)\n"
            code += "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss >> 10)"
            argv = [sys.executable, "-c", code, str(BUILD), "copy", "-q", *way]
            done = subprocess.run(argv, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
            assert int(done.stdout.split()[-1]) < 130, way
