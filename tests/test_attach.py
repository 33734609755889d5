"""What travels with an image: attached once, found again by us and by ORAS, and nothing hostile gets through."""

from __future__ import annotations

import hashlib
import json
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import judges
import papers
import pytest
from layouts import Layout as RawLayout
from test_sbom import TOLD, spdx_problems
from world import World, locked_files, run

from builder import attach
from builder import lock as locks
from builder import papers as builder_papers
from builder import profile as profiles
from builder.attach import AttachmentError
from builder.documents import DocumentError
from builder.errors import BuilderError, StaleLockError
from builder.image import Assembled
from builder.lock import Lock, LockError
from builder.oci import spec
from builder.oci.artifact import TITLE, Artifact, encode, stored
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.oci.spec import Descriptor
from builder.store import Store

PROFILES = {"demo.yaml": b"profile: 1\n", "../base/python.yaml": b"profile: 1 # base\n"}
EVERY_TYPE = [
    "application/spdx+json",
    "application/vnd.cyclonedx+json",
    "application/vnd.in-toto+json",
    "application/vnd.layerwright.lock.v1+json",
    "application/vnd.layerwright.profile.v1+yaml",
]


def made(lock: Lock) -> tuple[Assembled, tuple[Artifact, ...]]:
    image = papers.image(lock)
    return image, builder_papers.documents(lock, image, PROFILES, TOLD)


def published(root: Path, image: Assembled) -> Layout:
    """A layout with the documents of an image, without its layers."""
    layout = Layout(root)
    for descriptor, data in image.documents.blobs[:-1]:
        layout.put_manifest(descriptor, data)
    top, data = image.documents.blobs[-1]
    layout.put_manifest(top, data, "latest")
    return layout


def test_artifacts_are_as_the_specification_says() -> None:
    image, artifacts = made(papers.lock())
    for artifact in artifacts:
        encoded = encode(artifact)
        document = json.loads(encoded.data)
        assert document["schemaVersion"] == 2
        assert document["mediaType"] == "application/vnd.oci.image.manifest.v1+json"
        assert document["artifactType"] == artifact.artifact_type
        assert document["config"] == {
            "mediaType": "application/vnd.oci.empty.v1+json",
            "digest": f"sha256:{hashlib.sha256(b'{}').hexdigest()}",
            "size": 2,
            "data": "e30=",
        }
        assert document["subject"]["digest"] == str(artifact.subject.digest)
        assert document["annotations"]["org.opencontainers.image.created"] == papers.CREATED
        assert set(document["subject"]) == {"mediaType", "digest", "size"}
        named = [document["config"]["digest"], *(layer["digest"] for layer in document["layers"])]
        assert named == [str(Digest.of(data)) for _, data in encoded.blobs]
        assert all(descriptor.size == len(data) for descriptor, data in encoded.blobs)
    about_index = [item.artifact_type for item in artifacts if item.subject == image.documents.top]
    about_platform = [item.artifact_type for item in artifacts if item.subject == image.documents.manifests[0]]
    assert sorted(about_index) == EVERY_TYPE
    assert sorted(about_platform) == EVERY_TYPE[:2]


def test_everything_is_stored_once_and_what_is_named_comes_first() -> None:
    artifacts = made(papers.lock(platforms=(papers.AMD64, papers.ARM64)))[1]
    items = stored(artifacts)
    order = [str(descriptor.digest) for descriptor, _ in items]
    assert len(set(order)) == len(order) == 11 + 1 + 3 + 1 + 4  # manifests, config, documents of the lock and platforms
    for index, (descriptor, data) in enumerate(items):
        assert (descriptor.digest, descriptor.size) == (Digest.of(data), len(data))
        if descriptor.media_type == spec.MANIFEST:
            document = json.loads(data)
            assert {item["digest"] for item in (document["config"], *document["layers"])} <= set(order[:index])


def test_what_is_attached_is_found_again(tmp_path: Path) -> None:
    lock = papers.lock(platforms=(papers.AMD64, papers.ARM64))
    image, artifacts = made(lock)
    layout = published(tmp_path / "layout", image)
    described = attach.attach(layout, artifacts)
    assert [item.artifact_type for item in described] == [item.artifact_type for item in artifacts]
    found = attach.list(layout, image.documents.top.digest)
    assert {item.manifest.digest for item in found} == {item.digest for item in described}
    top, *platforms = image.documents.top, *image.documents.manifests[:2]
    by_subject = {
        digest.digest: [item for item in found if item.subject == digest.digest] for digest in (top, *platforms)
    }
    assert [item.artifact_type for item in by_subject[top.digest]] == sorted([*EVERY_TYPE, *EVERY_TYPE[:2]])
    for descriptor in platforms:
        assert [item.artifact_type for item in by_subject[descriptor.digest]] == EVERY_TYPE[:2]
        assert {item.platform for item in by_subject[descriptor.digest]} == {str(descriptor.platform)}
    texts = {
        file.annotations[TITLE]: attach.read(layout, file) for item in by_subject[top.digest] for file in item.files
    }
    assert sorted(texts) == [
        "_/base/python.yaml",
        "demo.intoto.json",
        "demo.linux-amd64.cdx.json",
        "demo.linux-amd64.spdx.json",
        "demo.linux-arm64.cdx.json",
        "demo.linux-arm64.spdx.json",
        "demo.lock.json",
        "demo.yaml",
    ]
    assert texts["demo.yaml"] == PROFILES["demo.yaml"]
    assert {item.kind for item in found} == {"lock", "profile", "provenance", "SBOM (SPDX)", "SBOM (CycloneDX)"}
    assert attach.list(layout, platforms[0].digest) == tuple(
        replace(item, platform=None) for item in by_subject[platforms[0].digest]
    )


def test_the_lock_is_found_from_the_image_alone(tmp_path: Path) -> None:
    lock = papers.lock()
    image, artifacts = made(lock)
    layout = published(tmp_path / "layout", image)
    assert attach.locks_of(layout, image.documents.top.digest) == ()
    attach.attach(layout, artifacts)
    assert attach.locks_of(layout, image.documents.top.digest) == (lock,)
    assert layout.resolve(None).digest == image.documents.top.digest


def test_locks_of_two_profiles_that_lead_to_one_image(tmp_path: Path) -> None:
    one = papers.lock()
    two = replace(one, profile=f"sha256:{papers.sha('other profile')}")
    image, artifacts = made(one)
    layout = published(tmp_path / "layout", image)
    attach.attach(layout, artifacts)
    attach.attach(layout, made(two)[1])
    found = attach.locks_of(layout, image.documents.top.digest)
    assert sorted(found, key=lambda lock: lock.profile) == sorted((one, two), key=lambda lock: lock.profile)


def test_attaching_again_changes_nothing(tmp_path: Path) -> None:
    image, artifacts = made(papers.lock())
    layout = published(tmp_path / "layout", image)
    described = attach.attach(layout, artifacts)

    def state() -> dict[str, tuple[int, bytes]]:
        files = [path for path in layout.root.rglob("*") if path.is_file()]
        return {str(path): (path.stat().st_mtime_ns, path.read_bytes()) for path in files}

    before = state()
    assert attach.attach(layout, artifacts) == described
    assert state() == before


def test_attaching_goes_on_where_it_was_interrupted(tmp_path: Path) -> None:
    image, artifacts = made(papers.lock())
    layout = published(tmp_path / "layout", image)
    attach.attach(layout, artifacts[:2])
    (layout.root / "blobs/sha256" / encode(artifacts[3]).blobs[1][0].digest.hex).write_bytes(b"half")
    attach.attach(layout, artifacts)
    found = attach.list(layout, image.documents.top.digest)
    assert len(found) == len(artifacts)
    assert all(attach.read(layout, file) for item in found for file in item.files)


def test_oras_finds_what_is_attached(tmp_path: Path) -> None:
    oras = judges.require("oras")
    image, artifacts = made(papers.lock())
    layout = published(tmp_path / "layout", image)
    attach.attach(layout, artifacts)
    done = subprocess.run(
        [oras, "discover", "--format", "json", "--oci-layout", f"{layout.root}:latest"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    entries = document.get("referrers") or document["manifests"]
    assert sorted(entry["artifactType"] for entry in entries) == EVERY_TYPE
    digest = next(entry["digest"] for entry in entries if entry["artifactType"] == attach.LOCK)
    pulled = tmp_path / "pulled"
    done = subprocess.run(
        [oras, "pull", "--oci-layout", f"{layout.root}@{digest}", "-o", pulled],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert locks.parse((pulled / "demo.lock.json").read_text(), "pulled") == papers.lock()


def test_oras_attaches_and_we_find_it(tmp_path: Path) -> None:
    oras = judges.require("oras")
    image, _ = made(papers.lock())
    layout = published(tmp_path / "layout", image)
    (tmp_path / "note.txt").write_text("a note")
    done = subprocess.run(
        [oras, "attach", "--oci-layout", f"{layout.root}:latest", "--artifact-type", "text/x-note", "note.txt"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (found,) = attach.list(layout, image.documents.top.digest)
    assert (found.kind, found.files[0].annotations[TITLE]) == ("text/x-note", "note.txt")
    assert attach.read(layout, found.files[0]) == b"a note"


# The texts of profiles.


def test_the_texts_of_a_profile_and_what_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base").mkdir()
    (tmp_path / "project").mkdir()
    base, main = tmp_path / "base/base.yaml", tmp_path / "project/demo.yaml"
    base.write_text("profile: 1\nname: base\nbase: {debian: bookworm}\n")
    main.write_text("# ü\nprofile: 1\nname: demo\nextends: [../base/base.yaml]\n")
    loaded = profiles.read(main)
    texts = builder_papers.profile_texts(loaded)
    assert texts == {"demo.yaml": main.read_bytes(), "../base/base.yaml": base.read_bytes()}
    base.write_text("profile: 1\nname: base\nbase: {debian: trixie}\n")
    with pytest.raises(StaleLockError, match="has changed"):
        builder_papers.profile_texts(loaded)
    base.unlink()
    with pytest.raises(BuilderError, match="cannot be read"):
        builder_papers.profile_texts(loaded)


def test_papers_of_one_edition_are_the_same_for_ever() -> None:
    """Stores remember papers: where this fails on purpose, `papers.EDITION` is raised with the new digest."""
    found = stored(made(papers.lock())[1])
    whole = Digest.of(spec.encode({"papers": [str(descriptor.digest) for descriptor, _ in found]}))
    assert (builder_papers.EDITION, whole.hex) == (
        1,
        "ff85e6a2ebd50061dfb190014e4bf7ce0a3a6497d5db84790218244b320618c5",
    )


@pytest.mark.parametrize("loss", ["nothing", "an object", "a byte", "the record's form"])
def test_papers_are_made_once(loss: str, world: World, small: Path, tmp_path: Path) -> None:
    """What the store remembers is taken, if it is whole; else they are made again, the same."""
    environ = world.environment(tmp_path / "cache")
    first = run(["publish", small, "oci:first"], tmp_path, environ)
    (record,) = (tmp_path / "cache/layerwright/records/papers").iterdir()
    told = json.loads(record.read_text())
    digests = [Digest.parse(text) for text in told["objects"]]
    store = Store(tmp_path / "cache/layerwright")
    match loss:
        case "an object":
            store.discard(digests[0])
        case "a byte":
            path = store.path(digests[0])
            path.chmod(0o644)
            path.write_bytes(path.read_bytes()[:-1] + b"?")
        case "the record's form":
            record.write_text(json.dumps({"objects": told["objects"], "papers": [{"digest": 7}]}))
    again = run(["publish", small, "oci:again"], tmp_path, environ)
    assert again.digest == first.digest
    assert blobs(tmp_path / "again") == blobs(tmp_path / "first")
    assert set(map(str, digests)) <= {f"sha256:{name}" for name in blobs(tmp_path / "again")}


def blobs(layout: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in (layout / "blobs/sha256").iterdir()}


# What others attach.


def hostile(root: Path, change: Callable[[dict[str, Any]], object]) -> tuple[RawLayout, Digest]:
    """A layout with an image and one attached manifest that was changed."""
    image, artifacts = made(papers.lock())
    raw = RawLayout(root)
    for _, data in image.documents.blobs:
        raw.add(data, "")
    encoded = encode(artifacts[0])
    for _, data in encoded.blobs:
        raw.add(data, "")
    document = json.loads(encoded.data)
    change(document)
    raw.point_to(image.documents.top, raw.add(json.dumps(document).encode(), spec.MANIFEST))
    return raw, image.documents.top.digest


CHANGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "layers are no list": lambda document: document.update(layers=7),
    "a layer is no descriptor": lambda document: document.update(layers=[{"digest": "x"}]),
    "a layer is text": lambda document: document.update(layers=["x"]),
    "the type is no text": lambda document: document.update(artifactType=["x"]),
    "the config is no mapping": lambda document: document.update(config="x", artifactType=None),
    "a negative size": lambda document: document["layers"][0].update(size=-1),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_manifest_that_is_none_is_named(name: str, tmp_path: Path) -> None:
    raw, top = hostile(tmp_path, CHANGES[name])
    with pytest.raises(BuilderError, match=r"sha256:|no manifest|layout"):
        attach.list(Layout(raw.root), top)


def test_what_others_attach_in_their_way_does_no_harm(tmp_path: Path) -> None:
    image, artifacts = made(papers.lock())
    layout = published(tmp_path, image)
    attach.attach(layout, artifacts)
    document = json.loads(encode(artifacts[0]).data)
    document |= {"artifactType": "text/x-other", "layers": [{"digest": "sha512:00", "size": 1, "mediaType": "x"}]}
    data = json.dumps(document).encode()
    layout.put_manifest(Descriptor(spec.MANIFEST, Digest.of(data), len(data)), data)
    assert attach.locks_of(layout, image.documents.top.digest) == (papers.lock(),)
    (found,) = (item for item in attach.list(layout, image.documents.top.digest) if item.kind == "text/x-other")
    assert found.files == ()


def test_a_type_for_terminals_is_not_shown(tmp_path: Path) -> None:
    def change(document: dict[str, Any]) -> None:
        document["artifactType"] = "a/\x1b[31m"
        document["layers"] += [dict(document["layers"][0], annotations={TITLE: "x\x1b[31m\r"})]
        document["layers"] += [dict(document["layers"][0], annotations={})]

    raw, top = hostile(tmp_path, change)
    (found,) = attach.list(Layout(raw.root), top)
    assert found.kind == "of an unknown type"
    assert found.names == ("demo.lock.json", "x?[31m?", found.files[0].digest.short)


def test_a_file_without_end_is_not_read(tmp_path: Path) -> None:
    raw, top = hostile(tmp_path, lambda document: document["layers"][0].update(size=1 << 40))
    with pytest.raises(AttachmentError, match="too many"):
        attach.locks_of(Layout(raw.root), top)


def test_a_file_that_is_not_what_its_manifest_says(tmp_path: Path) -> None:
    raw, top = hostile(tmp_path, lambda document: document["layers"][0].update(size=5))
    with pytest.raises(BuilderError, match="damaged"):
        attach.locks_of(Layout(raw.root), top)


@pytest.mark.parametrize("data", [b"{}", b"\xff", b"[", b"null", b'{"format": 99}'])
def test_a_lock_that_is_none(data: bytes, tmp_path: Path) -> None:
    raw = RawLayout(tmp_path / "other")
    added = raw.add(data, attach.LOCK)
    raw, top = hostile(tmp_path, lambda document: document.update(layers=[added.document()]))
    raw.add(data, attach.LOCK)
    with pytest.raises((AttachmentError, LockError, DocumentError)):
        attach.locks_of(Layout(raw.root), top)


def test_what_is_no_index_has_no_platforms(tmp_path: Path) -> None:
    raw = RawLayout(tmp_path)
    added = raw.add(b'{"manifests": 7, "mediaType": "application/vnd.oci.image.index.v1+json"}', spec.INDEX)
    raw.point_to(added)
    with pytest.raises(AttachmentError, match="no index"):
        attach.list(Layout(raw.root), added.digest)


def test_too_many_are_an_error(tmp_path: Path) -> None:
    image, artifacts = made(papers.lock())
    raw = RawLayout(tmp_path)
    top = raw.add(image.documents.blobs[-1][1], spec.INDEX)
    entries: list[Descriptor] = []
    for number in range(1001):
        encoded = encode(replace(artifacts[0], annotations={"number": str(number)}))
        entries.append(raw.add(encoded.data, spec.MANIFEST))
    raw.point_to(top, *entries)
    with pytest.raises(AttachmentError, match="more than 1000"):
        attach.list(Layout(raw.root), top.digest)


# The whole way.


@pytest.mark.parametrize("kind", ["docker-registry", "olareg"])
def test_a_published_image_has_its_papers_with_it(kind: str, world: World, small: Path, tmp_path: Path) -> None:
    """With the referrers API, and without it; everybody's second publication is the same and sends nothing."""
    oras = judges.require("oras")
    with judges.registry(kind, tmp_path / "registry") as address:
        reference = f"{address}/team/small:v1"
        environ = world.environment(world.root / "cache")
        digest = run(["publish", small, reference], tmp_path, environ).digest
        entries = discovered(oras, reference)
        assert sorted(entry["artifactType"] for entry in entries) == EVERY_TYPE
        assert len(discovered(oras, reference, "--platform", "linux/amd64")) == 2
        pulled = {entry["artifactType"]: pull(oras, address, entry["digest"], tmp_path) for entry in entries}
        assert pulled[attach.LOCK] == {"small.lock.json": small.with_suffix(".lock.json").read_bytes()}
        assert pulled[attach.PROFILE] == {"small.yaml": small.read_bytes()}
        (sbom,) = pulled["application/spdx+json"].values()
        assert spdx_problems(sbom) == []
        lock = locks.parse(small.with_suffix(".lock.json").read_text(), "lock")
        for file in locked_files(lock):
            assert file.sha256.encode() in sbom
        (statement,) = pulled["application/vnd.in-toto+json"].values()
        assert {"name": "small", "digest": {"sha256": digest.partition(":")[2]}} in json.loads(statement)["subject"]
        # Another machine that has none of the inputs: it fetches those that it has to read.
        again = run(["publish", "--format", "json", small, reference], tmp_path, world.environment(tmp_path / "other"))
        assert again.json["digest"] == digest
        assert discovered(oras, reference) == entries


def test_without_papers_if_so_asked(world: World, small: Path, tmp_path: Path) -> None:
    environ = world.environment(world.root / "cache")
    bare = run(["publish", "--no-attach", small, "oci:bare"], tmp_path, environ)
    full = run(["publish", small, "oci:full"], tmp_path, environ)
    assert bare.digest == full.digest
    digest = Digest.parse(bare.digest)
    assert attach.list(Layout(tmp_path / "bare"), digest) == ()
    assert len(attach.list(Layout(tmp_path / "full"), digest)) == 7


def discovered(oras: Path, reference: str, *options: str) -> list[dict[str, Any]]:
    """What ORAS finds attached, in an order of its own making."""
    argv = [str(oras), "discover", "--plain-http", "--format", "json", *options, reference]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    entries: list[dict[str, Any]] = document.get("referrers") or document["manifests"]
    return sorted(entries, key=lambda entry: str(entry["digest"]))


def pull(oras: Path, address: str, digest: str, tmp_path: Path) -> dict[str, bytes]:
    """The files of an artifact by their names."""
    folder = tmp_path / "pulled" / digest.replace(":", "-")
    argv = [str(oras), "pull", "--plain-http", f"{address}/team/small@{digest}", "-o", str(folder)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
