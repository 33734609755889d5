"""Layers as plain tar and in frames of zstd: the same tar as ever, by the same inputs, which clients read."""

from __future__ import annotations

import hashlib
import io
import json
import random
import shutil
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import judges
import pytest
from cacheworld import Builder
from containernode import container_node
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import Layout
from nixmachines import Machine
from wheelmaker import deflate
from world import PROFILE, World, run, write_project

from builder import profile as profiles
from builder.cli.advise import _fits
from builder.errors import HostileInputError, ToolError
from builder.layercache.keys import SecretKey
from builder.layers import zstd
from builder.layers.pack import Open, PackedLayer, pack
from builder.layers.plain import FRAME, TarBlob
from builder.layers.stream import LayerStream
from builder.layers.tar import Entry, Inline, Kind, Member, Region
from builder.oci import lazy, spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.soci import ztoc

CI = SecretKey.generate("ci-1", bytes)
SPAN = 1 << 18
ZSTD: Open = partial(TarBlob, compress=zstd.encoder(zstd.VERSION, zstd.LEVEL))


def noise(size: int) -> bytes:
    """What can be compressed to about a half."""
    chance = random.Random(7)
    return b"".join(chance.randbytes(512) + bytes(512) for _ in range(size >> 10))


DATA = noise(3 << 20)


def entries(folder: Path, raw: bytes | None = None, **lies: Any) -> tuple[Entry, ...]:
    """A folder, a link, and files from everywhere; that of a wheel is `raw`, said to be other than it is by `lies`."""
    spool, stream = folder / "spool", raw if raw is not None else deflate(DATA)
    spool.write_bytes(b"before" + stream + DATA)
    recorded = ("sha256", hashlib.sha256(DATA).hexdigest())
    true: dict[str, Any] = {
        "size": len(DATA),
        "crc32": zlib.crc32(DATA),
        "recorded": recorded,
        "label": "demo.whl: member",
    }
    wheel: Any = Member(spool, 6, **{"compressed_size": len(stream), **true, **lies})
    region = Region(spool, 6 + len(stream), len(DATA), "region", zlib.crc32(DATA))
    return (
        Entry("a", Kind.DIR),
        Entry("a/empty", content=Inline(b"")),
        Entry("a/inline", content=Inline(b"text")),
        Entry("a/link", Kind.SYMLINK, linkname="inline"),
        Entry("a/region", content=region),
        Entry("a/wheel", content=wheel),
    )


def packed(folder: Path, sink: Open | None, name: str) -> tuple[bytes, PackedLayer]:
    more = {"sink": sink} if sink else {}
    found = pack(entries(folder), folder / name, folder / f"{name}-windows", SPAN, **more)  # type: ignore[arg-type]
    blob = (folder / name).read_bytes()
    assert (found.digest, found.size) == (Digest.of(blob), len(blob))
    return blob, found


def test_the_tar_is_the_same_however_it_is_packed(tmp_path: Path) -> None:
    """And the ztoc of a plain one is what the real tool makes of it; of zstd there is none."""
    gzip, spliced = packed(tmp_path, None, "gzip")
    tar, plain = packed(tmp_path, TarBlob, "plain")
    frames, compressed = packed(tmp_path, ZSTD, "zstd")
    assert tar == zlib.decompress(gzip, 31)
    assert plain.digest == plain.diff_id == spliced.diff_id == compressed.diff_id
    assert plain.crc32s == spliced.crc32s == compressed.crc32s
    assert plain.spans.toc == spliced.spans.toc
    assert not compressed.spans.checkpoints
    with LayerStream(io.BytesIO(frames)) as stream:
        assert b"".join(bytes(piece) for piece in iter(stream.piece, b"")) == tar
    out = io.BytesIO()
    ztoc.write(plain.spans, out)
    options = ["ztocs", "-span-size", str(SPAN), "-compression", "uncompressed", tmp_path, tmp_path / "plain"]
    shutil.copy(tmp_path / "plain", tmp_path / "layer")
    (tmp_path / "theirs").mkdir()
    options = [*options[:5], tmp_path / "theirs", tmp_path / "layer"]
    subprocess.run([str(judges.require("soci-peer")), *map(str, options)], check=True)
    assert (tmp_path / "theirs/layer").read_bytes() == out.getvalue()


def test_frames_are_those_of_another_library(tmp_path: Path) -> None:
    """Each holds 4 MiB of tar and says so: whoever has that version of zstd makes the same."""
    import zstandard

    blob, _ = packed(tmp_path, ZSTD, "zstd")
    tar, _ = packed(tmp_path, TarBlob, "plain")
    pieces = [tar[start : start + FRAME] for start in range(0, len(tar), FRAME)]
    assert len(pieces) == 2
    theirs = [zstandard.ZstdCompressor(level=zstd.LEVEL).compress(piece) for piece in pieces]
    assert b"".join(theirs) == blob
    assert zstandard.get_frame_parameters(blob).content_size == FRAME


LIES: dict[str, tuple[Callable[[bytes], bytes], dict[str, Any], str]] = {
    "cut off": (lambda raw: raw[:-9], {}, "inflates to"),
    "damaged": (lambda raw: b"\xff" + raw[1:], {}, "its compressed data is damaged"),
    "more inside": (lambda raw: raw, {"size": len(DATA) - 1}, "inflates to more than the"),
    "less inside": (lambda raw: raw, {"size": len(DATA) + 1}, "inflates to 3145728 bytes, not to the 3145729"),
    "more behind": (lambda raw: raw + b"xy", {}, "2 bytes follow its compressed data"),
    "beyond its end": (lambda raw: raw, {"compressed_size": 1 << 40}, "bytes follow its compressed data"),
    "another sum": (lambda raw: raw, {"crc32": 1}, "its CRC-32 is"),
    "another digest": (lambda raw: raw, {"recorded": ("sha256", "00")}, "its sha256 is"),
}


def test_wheels_that_lie_are_refused_as_ever(tmp_path: Path) -> None:
    raw = deflate(DATA)
    for change, lies, message in LIES.values():
        for sink in (TarBlob, ZSTD):
            with pytest.raises(HostileInputError, match=f"demo.whl: member: .*{message}"):
                pack(entries(tmp_path, change(raw), **lies), tmp_path / "x", tmp_path / "w", SPAN, sink=sink)
    bomb = deflate(bytes(64 << 20))
    with pytest.raises(HostileInputError, match="inflates to more than"):
        pack(entries(tmp_path, bomb, size=1 << 10), tmp_path / "x", tmp_path / "w", SPAN, sink=TarBlob)
    (tmp_path / "short").write_bytes(raw)
    short = Member(tmp_path / "short", 5, len(raw), len(DATA), zlib.crc32(DATA), "demo.whl: member")
    with pytest.raises(HostileInputError, match="member: "):
        pack([Entry("a", content=short)], tmp_path / "x", tmp_path / "w", SPAN, sink=TarBlob)


@given(st.binary(max_size=200), st.integers(0, 400), st.integers(0, 60))
@settings(deadline=None, max_examples=150)
def test_any_bytes_for_a_stream(tmp_path_factory: pytest.TempPathFactory, data: bytes, size: int, cut: int) -> None:
    """They are what zlib says that they are, or refused."""
    folder = tmp_path_factory.getbasetemp()
    for raw in (data, deflate(data)[: len(data) + 60 - cut]):
        (folder / "any").write_bytes(raw)
        member = Member(folder / "any", 0, len(raw), size, zlib.crc32(data), "any")
        found = zlib.decompressobj(-15)
        try:
            expected = found.decompress(raw)
        except zlib.error:
            expected = b""
        right = found.eof and not found.unused_data and len(expected) == size and expected == data
        try:
            pack([Entry("a", content=member)], folder / "tar", folder / "windows", SPAN, sink=TarBlob)
        except HostileInputError:
            assert not right
        else:
            assert right
            assert (folder / "tar").read_bytes()[512 : 512 + size] == expected


def test_no_other_zstd_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ToolError, match=r"zstd 1\.9\.9 at level 3 are made by another version of Layerwright"):
        zstd.encoder("1.9.9", 3)
    with pytest.raises(ToolError, match="level 19"):
        zstd.encoder("1.5.7", 19)
    monkeypatch.setitem(zstd._PROOFS, ("1.5.7", 3), "0" * 64)
    with pytest.raises(
        ToolError, match=r"by zstd 1\.5\.7, and no library here does as that one \(.* has 1\.5\.7"
    ) as caught:
        zstd.encoder("1.5.7", 3)
    assert "zstandard==0.25.0" in str(caught.value.hint)


def test_another_library_helps_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """A Python whose own zstd is another one uses a wheel that has the right one."""
    own = next(iter(zstd._libraries()))[0]
    expected = zstd.encoder(zstd.VERSION, zstd.LEVEL)(DATA)
    monkeypatch.setattr(sys.modules[own], "zstd_version", "1.6.0")
    zstd._proven.cache_clear()
    assert zstd.encoder(zstd.VERSION, zstd.LEVEL)(DATA) == expected
    monkeypatch.setitem(sys.modules, "zstandard", None)
    zstd._proven.cache_clear()
    with pytest.raises(ToolError, match=r"no library here does as that one \(.* has 1\.6\.0\)"):
        zstd.encoder(zstd.VERSION, zstd.LEVEL)
    zstd._proven.cache_clear()


# Whole images.


@dataclass(frozen=True)
class Variant:
    """A published image whose layers are compressed otherwise."""

    profile: Path
    digest: str

    @property
    def out(self) -> Layout:
        return Layout(self.profile.parent / "out")

    @property
    def name(self) -> str:
        return f"oci:{self.profile.parent / 'out'}"

    @property
    def manifest(self) -> Any:
        return self.out.json(Digest.parse(self.out.json(Digest.parse(self.digest))["manifests"][0]["digest"]))


@pytest.fixture(scope="module")
def variants(world: World, small: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Variant]:
    """The small image as it is, plain, and with zstd."""
    found = {}
    for kind in ("gzip", "none", "zstd"):
        text = PROFILE + (f"  compression: {kind}\n" if kind != "gzip" else "")
        profile = write_project(tmp_path_factory.mktemp(kind), text)
        shutil.copy(small.with_suffix(".lock.json"), profile.parent)
        argv = ["publish", "-q", "--lock", profile, f"oci:{profile.parent / 'out'}"]
        found[kind] = Variant(profile, run(argv, profile.parent, environ(world)).digest)
    assert (
        found["gzip"].digest
        == run(["inspect", "--format=json", f"oci:{small.parent / 'out'}"], small.parent, environ(world)).json["digest"]
    )
    return found


def environ(world: World) -> dict[str, str]:
    return world.environment(world.root / "cache")


def test_only_blobs_differ(variants: Mapping[str, Variant], world: World, tmp_path: Path) -> None:
    """The tars are the same, so that the configuration is; the lock says what was done, and nothing for gzip."""
    told = {"gzip": None, "none": {"kind": "none"}, "zstd": {"kind": "zstd", "level": 3, "version": "1.5.7"}}
    types = {"gzip": "tar+gzip", "none": "tar", "zstd": "tar+zstd"}
    for kind, variant in variants.items():
        lock = json.loads(variant.profile.with_suffix(".lock.json").read_text())
        assert lock.get("compression") == told[kind]
        assert {item["mediaType"] for item in variant.manifest["layers"]} == {
            f"application/vnd.oci.image.layer.v1.{types[kind]}"
        }
        assert variant.manifest["config"] == variants["gzip"].manifest["config"]
        if kind == "gzip":
            continue
        mirror = {"LAYERWRIGHT_MIRRORS": str(world.root / "cache/layerwright")}
        for options in ([], ["--quick"]):
            done = run(["verify", *options, variant.name], tmp_path, world.environment(tmp_path / kind, **mirror))
            assert done.code == 0, done.out + done.err
        found = run(["diff", variants["gzip"].name, variant.name, "--format=json"], tmp_path, environ(world)).json
        assert [item["files"] for item in found["platforms"].values()] == [[]]
    sbom = {kind: {item["kind"] for item in shown(variant, world)["attached"]} for kind, variant in variants.items()}
    assert sbom["gzip"] == sbom["none"] == sbom["zstd"] > {"lock", "SBOM (SPDX)"}


def shown(variant: Variant, world: World) -> Any:
    return run(["inspect", variant.name, "--format=json"], variant.profile.parent, environ(world)).json


def test_inspect_says_who_starts_it_lazily(variants: Mapping[str, Variant], world: World) -> None:
    for kind, variant in variants.items():
        image = shown(variant, world)["platforms"]["linux/amd64"]
        *_, wheels, files = image["layers"]
        assert [layer["type"] for layer in image["layers"]] == [{"none": "tar"}.get(kind, kind)] * len(image["layers"])
        text = run(["inspect", variant.name], variant.profile.parent, environ(world)).out
        if kind == "zstd":
            assert (image["lazy"], image["soci"], wheels["lazy"]) == ({}, None, [])
            assert (
                "All clients pull it whole\n  layers 1 to 3: compressed with zstd, for which there are no ztocs\n"
                in text
            )
        else:
            assert image["lazy"] == {"soci-snapshotter": {"layers": 1, "size": wheels["size"]}}
            assert (wheels["why"], files["lazy"], files["why"]) == ("a ztoc", [], "no ztoc in the SOCI index")
            assert "Starts lazily with soci-snapshotter 0.10 or newer: 1 of 3 layers" in text
            assert "Other clients pull it whole\n  layers 1 and 3: no ztoc in the SOCI index\n" in text


def test_a_manifest_alone_leads_to_its_index(variants: Mapping[str, Variant], world: World) -> None:
    """As it does for snapshotters; what is an artifact is no image."""
    variant = variants["gzip"]
    image, index = variant.out.json(Digest.parse(variant.digest))["manifests"]
    shown = run(
        ["inspect", f"{variant.name}@{image['digest']}", "--format=json"], variant.profile.parent, environ(world)
    )
    assert shown.json["platforms"]["linux/amd64"]["soci"] == index["digest"]
    done = run(["inspect", f"{variant.name}@{index['digest']}"], variant.profile.parent, environ(world))
    assert done.code == 1
    assert "is an artifact of the type application/vnd.amazon.soci.index.v2+json, and no image" in done.err


def test_which_clients_start_what() -> None:
    """By the words of a manifest alone; above a layer that stargz-snapshotter leaves to it, containerd fetches all."""

    def layer(number: int, media_type: str, *names: str) -> Descriptor:
        return Descriptor(media_type, Digest(f"{number:064}"), 1, annotations=dict.fromkeys(names, "sha256:x"))

    layers = [
        layer(1, spec.LAYER_GZIP, lazy.TOC_DIGEST),
        layer(2, spec.LAYER_ZSTD, lazy.TOC_DIGEST, "io.github.containers.zstd-chunked.manifest-checksum"),
        layer(3, spec.LAYER_GZIP),
        layer(4, spec.LAYER_GZIP, lazy.TOC_DIGEST),
        layer(5, "application/x-other"),
    ]
    found = lazy.starts(layers, {layers[2].digest, layers[3].digest}, index=True)
    assert [(start.kind, *start.clients) for start in found] == [
        ("eStargz", lazy.STARGZ),
        ("zstd:chunked", lazy.STARGZ),
        ("gzip", lazy.SOCI),
        ("eStargz", lazy.SOCI),
        ("application/x-other",),
    ]
    assert found[3].why == "a ztoc; a table of contents, but layer 3 has none, and containerd fetches all from there on"
    assert found[4].why == "nothing is known of layers of this type"
    assert [start.why for start in lazy.starts(layers[2:3], (), index=False)] == ["no SOCI index"]


def test_a_lock_of_one_kind_is_stale_for_another(variants: Mapping[str, Variant], world: World, tmp_path: Path) -> None:
    """And what was said of zstd stays said, whatever new locks would say."""
    project = variants["zstd"].profile.parent
    shutil.copytree(project, tmp_path / "p", symlinks=True, ignore=shutil.ignore_patterns("out"))
    lock = tmp_path / "p/small.lock.json"
    older = lock.read_text().replace('"version": "1.5.7"\n', '"version": "1.5.6"\n')
    lock.write_text(older)
    assert run(["lock", "small.yaml"], lock.parent, environ(world)).code == 0
    assert lock.read_text() == older
    for text in (PROFILE, PROFILE + "  compression: none\n"):
        (tmp_path / "p/small.yaml").write_text(text)
        assert run(["lock", "--check", "small.yaml"], lock.parent, environ(world)).code == 3


def test_what_layers_of_zstd_cannot_have(world: World, tmp_path: Path) -> None:
    """It is refused where the profile says it, not passed over in silence."""
    soci = "soci: {spans: adaptive, prefetch: true}"
    text = f"profile: 1\nname: x\nstart: {{trace: x.trace.json}}\npublish: {{compression: zstd, {soci}}}\n"
    (tmp_path / "x.yaml").write_text(text)
    done = run(["lock", "x.yaml"], tmp_path, environ(world))
    assert done.code == 1
    for key in ("spans", "prefetch"):
        assert f"$.publish.soci.{key}: layers of zstd have no spans: remove {key}, or compression: zstd" in done.err


def test_advice_fits_the_layers(tmp_path: Path) -> None:
    """Nothing is written into a profile that would be refused there, or do nothing."""
    fits = {"": "am", "compression: none": "m", "compression: zstd": "", "lazy: estargz": "", "soci: false": ""}
    for text, expected in fits.items():
        (tmp_path / "x.yaml").write_text(f"profile: 1\nname: x\nbase: {{debian: bookworm}}\npublish: {{{text}}}\n")
        profile = profiles.read(tmp_path / "x.yaml").profile
        found = [key[0] for key in ("adaptive-spans", "mount-parallel") if _fits(key, profile)]
        assert "".join(found) == expected, text


def test_a_layer_cache_has_them(variants: Mapping[str, Variant], world: World, tmp_path: Path) -> None:
    """Each kind under a key of its own; whoever believes no signature reads them to their end."""
    unsigned = {"LAYERWRIGHT_CACHE_UNSIGNED": "1"}
    with judges.registry("docker-registry", tmp_path / "registry") as address:
        for kind in ("zstd", "none"):
            variant = variants[kind]
            first = Builder(world, tmp_path / f"first-{kind}", address, secret=CI, more=dict(unsigned))
            first.more |= {"XDG_CACHE_HOME": str(world.root / "cache")}
            assert "2 of 2 layers sent" in first.build("cache", "fill", variant.profile).err
            trust, more = ((CI,), {}) if kind == "zstd" else ((), unsigned)
            taken = Builder(world, tmp_path / kind, address, trust=trust, more=dict(more)).publish(variant.profile)
            assert taken["digest"] == variant.digest
            assert "2 of 2 missing layers taken" in taken["notes"][0]


def test_nix_makes_them(variants: Mapping[str, Variant], world: World, tmp_path: Path) -> None:
    judges.require("nix")
    machine = Machine(world, variants["zstd"].profile.parent, tmp_path / "machine")
    done = machine("assemble", "--engine", "nix")
    assert done.digest == variants["zstd"].digest
    assert "nix: 3 wheels: built here" in done.err
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=False)


def test_clients_read_them(variants: Mapping[str, Variant], world: World, tmp_path: Path) -> None:
    """containerd, buildah and crane see the same files; the image travels through registries and archives."""
    expected: dict[str, bytes] = {}
    buildah = ["buildah", f"--root={tmp_path / 'root'}", f"--runroot={tmp_path / 'run'}", "--storage-driver=vfs"]
    with judges.registry("docker-registry", tmp_path / "registry") as address, container_node() as node:
        for kind, variant in variants.items():
            name, file = f"{address}/{kind}:v1", f"oci-archive:{tmp_path / kind}.tar:v1"
            assert run(["copy", variant.name, name], tmp_path, environ(world)).digest == variant.digest
            mounted = node.mounted(name)
            expected = expected or mounted
            assert mounted == expected
            image, *_ = variant.out.json(Digest.parse(variant.digest))["manifests"]  # a SOCI index is no image to crane
            judge("crane", "export", "--insecure", f"{address}/{kind}@{image['digest']}", tmp_path / "export.tar")
            with tarfile.open(tmp_path / "export.tar") as archive:
                files = {item.name for item in archive if item.isreg()}
            assert {"app/zeta", "usr/bin/hello"} < files <= set(expected)
            judge("skopeo", "copy", "--insecure-policy", f"{variant.name}:latest", file)
            assert run(["verify", "--quick", file], tmp_path, environ(world)).code == 0
            container = judge(*buildah, "from", "--tls-verify=false", f"docker://{name}").strip()
            place = Path(judge(*buildah, "mount", container).strip())
            assert all((place / path).read_bytes() == expected[path] for path in files)
            judge(*buildah, "rm", container)
        chunked, place = judge(*buildah, "pull", "-q", f"{variants['none'].name}:latest").strip(), tmp_path / "chunked"
        judge(*buildah, "push", "-q", "--compression-format=zstd:chunked", chunked, f"oci:{place}:v1")
        shown = run(["inspect", f"oci:{place}", "--format=json"], tmp_path, environ(world)).json["platforms"][
            "linux/amd64"
        ]
        assert {(layer["type"], *layer["lazy"]) for layer in shown["layers"]} == {("zstd:chunked",)}
        assert "Podman and CRI-O can do without" in shown["layers"][0]["why"]
        said = run(["inspect", f"oci:{place}"], tmp_path, environ(world)).out
        assert "is not there, though the manifest names it: copy the image with all that is its\nAll clients" in said
    judge("skopeo", "copy", "--insecure-policy", f"{variants['none'].name}:latest", f"oci:{tmp_path / 'one'}:v1")
    judge("umoci", "unpack", "--rootless", "--image", f"{tmp_path / 'one'}:v1", tmp_path / "bundle")
    assert (tmp_path / "bundle/rootfs/app/zeta").read_bytes() == b"z"


def judge(name: str, *arguments: object) -> str:
    argv = [str(judges.require(name)), *map(str, arguments)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, f"{' '.join(argv)}\n{done.stdout[-2000:]}{done.stderr[-2000:]}"
    return done.stdout


def test_a_version_that_is_not_there_is_asked_for(
    variants: Mapping[str, Variant], world: World, tmp_path: Path
) -> None:
    """Of the lock, which is read as it is; nothing is compressed by another version."""
    shutil.copytree(variants["zstd"].profile.parent, tmp_path / "p", symlinks=True)
    lock = tmp_path / "p/small.lock.json"
    for there, now, message in (
        ("1.5.7", "1.4.0", "compressed by zstd 1.4.0 at level 3 are made by another version of Layerwright"),
        ("1.5.7", "new", "'new' at level 3 is no zstd"),
    ):
        text = lock.read_text()
        lock.write_text(text.replace(f'"version": "{there}"\n', f'"version": "{now}"\n'))
        assert lock.read_text() != text
        done = run(["publish", "-q", "small.yaml", "oci:other"], tmp_path / "p", environ(world))
        assert done.code == 1
        assert message in done.err
        lock.write_text(text)
