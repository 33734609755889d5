"""Ztocs and SOCI indexes are the bytes that the real soci-snapshotter module writes."""

from __future__ import annotations

import base64
import dataclasses
import io
import json
import random
import subprocess
import tarfile
import time
import zlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judges import require
from layouts import Layout, plain
from zran import scan

from builder.errors import BuilderError, StoreError
from builder.layers.spans import WINDOW, Checkpoint, LayerSpans, TocEntry
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor, Platform
from builder.soci import index, mounting, ztoc

MTIME = 315532800
AMD64, ARM64 = Platform("linux", "amd64"), Platform("linux", "arm64")


def peer(*arguments: object, stdin: bytes | None = None) -> str:
    """What soci-peer says; its complaint is the failure."""
    result = subprocess.run(
        [require("soci-peer"), *map(str, arguments)], input=stdin, capture_output=True, check=False, timeout=300
    )
    assert result.returncode == 0, result.stderr.decode()
    return result.stdout.decode().strip()


# Layers, made without any code of ours.


def member(
    name: str, content: bytes = b"", kind: bytes = tarfile.REGTYPE, **more: object
) -> tuple[tarfile.TarInfo, bytes]:
    info = tarfile.TarInfo(name)
    info.type, info.size, info.mtime, info.mode = kind, len(content), MTIME, 0o644
    for key, value in more.items():
        setattr(info, key, value)
    return info, content


def tar(members: Sequence[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A PAX tar that ends with two zero blocks and nothing after them."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
        end = archive.offset
    return buffer.getvalue()[:end] + bytes(1024)


def gzip(data: bytes, level: int = 6, strategy: int = zlib.Z_DEFAULT_STRATEGY, flush: int | None = None) -> bytes:
    """One gzip member; `flush` asks for a byte-aligned join (an empty stored block) after so many bytes."""
    compressor = zlib.compressobj(level, zlib.DEFLATED, -15, 9, strategy)
    step = flush or len(data)
    pieces = [
        compressor.compress(data[start : start + step]) + (compressor.flush(zlib.Z_SYNC_FLUSH) if flush else b"")
        for start in range(0, len(data), step)
    ]
    trailer = zlib.crc32(data).to_bytes(4, "little") + (len(data) & 0xFFFFFFFF).to_bytes(4, "little")
    return b"\x1f\x8b\x08\0\0\0\0\0\0\xff" + b"".join(pieces) + compressor.flush() + trailer


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


WORDS = [noise(5, word).hex().encode() for word in range(400)]


def prose(size: int, seed: int = 0) -> bytes:
    return b" ".join(random.Random(seed).choices(WORDS, k=size // 11 + 1))[:size]


def odd_names() -> list[tuple[tarfile.TarInfo, bytes]]:
    long = "/".join(["directory-with-a-name"] * 14)
    return [
        member("usr", kind=tarfile.DIRTYPE, mode=0o755),
        member("usr/bin", kind=tarfile.DIRTYPE, mode=0o1777),
        member("usr/bin/empty"),
        member("usr/bin/sudo", prose(70_000), mode=0o4755),
        member("usr/bin/one", b"1", mode=0o2711, uname="root", gname="ström"),
        member("usr/bin/link", kind=tarfile.SYMTYPE, linkname="../lib/ünï", mode=0o777),
        member("usr/bin/hard", kind=tarfile.LNKTYPE, linkname="usr/bin/one"),
        member("usr/bin/far", kind=tarfile.SYMTYPE, linkname=long, mode=0o777),
        member("usr/lib/ünïcødé-日本語-🚀", noise(512)),
        member("usr/lib/naïve", kind=tarfile.DIRTYPE, mode=0o755),
        member(long, kind=tarfile.DIRTYPE, mode=0o755),
        member(long + "/file", prose(100_000, 1)),
        member(long + "/link", kind=tarfile.SYMTYPE, linkname=long + "/file"),
        member("x" * 100, noise(511)),
        member("x" * 101, noise(513)),
        member("p" * 155 + "/" + "q" * 100, b"prefix"),
        member("owned", b"!", uid=70_000, gid=3_000_000, uname="nobody"),
        member("old", b"!", mtime=-86_400),
        member(
            "attributed", b"!", pax_headers={"SCHILY.xattr.user.a": "b", "comment": "c", "SCHILY.xattr.user.Z": "é"}
        ),
        member("dev/null", kind=tarfile.CHRTYPE, devmajor=1, devminor=3, mode=0o666),
        member("dev/pipe", kind=tarfile.FIFOTYPE),
        member("tail", prose(300_000, 2)),
    ]


def many(count: int) -> list[tuple[tarfile.TarInfo, bytes]]:
    return [
        member(
            f"site-packages/package{number % 97}/module_{number}{'é' * (number % 5 == 0)}.py",
            prose(number % 700, number),
        )
        for number in range(count)
    ]


SPAN = 64 << 10
LAYERS: dict[str, Callable[[], bytes]] = {
    "nothing": lambda: gzip(bytes(1024)),
    "one-empty-file": lambda: gzip(tar([member("a")])),
    "odd-names": lambda: gzip(tar(odd_names())),
    "odd-names-joined": lambda: gzip(tar(odd_names()), flush=1000),
    "stored": lambda: gzip(tar(odd_names()), level=0),
    "fixed-codes": lambda: gzip(tar(odd_names()), strategy=zlib.Z_FIXED),
    "entries-5000": lambda: gzip(tar(many(5000)), level=1),
    # The first checkpoint may come only when *more* than a span was written: joins one byte around it.
    "boundary-below": lambda: gzip(tar([member("a", noise(4 * SPAN))]), level=0, flush=SPAN - 1),
    "boundary-exact": lambda: gzip(tar([member("a", noise(4 * SPAN))]), level=0, flush=SPAN),
    "boundary-above": lambda: gzip(tar([member("a", noise(4 * SPAN))]), level=0, flush=SPAN + 1),
    "one-large-file": lambda: gzip(tar([member("a", prose(6 << 20)), member("b", noise(3 << 20))])),
    "zeros": lambda: gzip(tar([member("sparse", bytes(8 << 20))])),
}


@pytest.fixture(scope="session")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("layers")
    for name, make in LAYERS.items():
        (folder / name).write_bytes(make())
    return folder


@pytest.fixture(scope="session", params=[SPAN, 4 << 20, 1], ids=["64KiB", "4MiB", "every-block"])
def expected(
    request: pytest.FixtureRequest, layers: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    """A span size, and the folder with the real tool's ztoc of each layer."""
    folder = tmp_path_factory.mktemp("ztocs")
    peer("ztocs", "-span-size", request.param, folder, *(layers / name for name in LAYERS))
    return request.param, folder


def packed(spans: LayerSpans) -> bytes:
    out = io.BytesIO()
    described = ztoc.write(spans, out)
    assert described == Descriptor(ztoc.MEDIA_TYPE, Digest.of(out.getvalue()), len(out.getvalue()))
    return out.getvalue()


@pytest.mark.parametrize("name", LAYERS)
def test_ztoc_is_the_real_one(name: str, layers: Path, expected: tuple[int, Path], tmp_path: Path) -> None:
    span_size, folder = expected
    spans = scan(layers / name, span_size, tmp_path / "windows")
    assert packed(spans) == (folder / name).read_bytes()


@pytest.mark.parametrize("name", ["nothing", "odd-names-joined", "boundary-exact", "entries-5000"])
def test_real_tool_reads_the_layer_through_it(name: str, layers: Path, tmp_path: Path) -> None:
    with (tmp_path / "ztoc").open("wb") as out:
        ztoc.write(scan(layers / name, SPAN, tmp_path / "windows"), out)
    assert "spans" in peer("check", tmp_path / "ztoc", layers / name)


def test_single_layer_to_stdout(layers: Path, tmp_path: Path) -> None:
    result = subprocess.run(
        [require("soci-peer"), "ztoc", layers / "odd-names", str(SPAN)], capture_output=True, check=True
    )
    assert result.stdout == packed(scan(layers / "odd-names", SPAN, tmp_path / "windows"))


def test_wrong_window_is_noticed_by_the_judge(layers: Path, tmp_path: Path) -> None:
    spans = scan(layers / "entries-5000", SPAN, tmp_path / "windows")
    assert len(spans.checkpoints) > 2
    windows = bytearray(spans.windows.read_bytes())
    windows[WINDOW : 2 * WINDOW] = bytes(WINDOW)
    spans.windows.write_bytes(windows)
    (tmp_path / "ztoc").write_bytes(packed(spans))
    result = subprocess.run(
        [require("soci-peer"), "check", tmp_path / "ztoc", layers / "entries-5000"], capture_output=True, check=False
    )
    assert result.returncode == 1
    assert b"span 1" in result.stderr


def test_short_windows_are_an_error(layers: Path, tmp_path: Path) -> None:
    spans = scan(layers / "entries-5000", SPAN, tmp_path / "windows")
    spans.windows.write_bytes(spans.windows.read_bytes()[:-1])
    with pytest.raises(StoreError, match=r"cut short: the window at byte \d+"):
        ztoc.write(spans, io.BytesIO())


def test_ztoc_that_nobody_could_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "windows").touch()
    checkpoints = (Checkpoint(10, 0, 0),) * 33_000
    spans = LayerSpans(1, 10, 10, checkpoints, (), tmp_path / "windows", ())
    with pytest.raises(BuilderError, match="33000 checkpoints") as caught:
        ztoc.write(spans, io.BytesIO())
    assert caught.value.hint == "raise `publish.soci.span-size` in the profile"


def test_thirty_thousand_entries_take_no_time(tmp_path: Path) -> None:
    entries = tuple(
        TocEntry(
            f"opt/venv/lib/python3.11/site-packages/p/{n}.py", "reg", 512 * n, n % 9, "", 0o644, 0, 0, "", "", MTIME
        )
        for n in range(1, 30_001)
    )
    (tmp_path / "windows").write_bytes(bytes(WINDOW))
    spans = LayerSpans(1, 10, 10, (Checkpoint(10, 0, 0),), (Digest.of(b""),), tmp_path / "windows", entries)
    begin = time.process_time()
    packed(spans)
    assert time.process_time() - begin < 1.5  # 0.12 s where nothing else runs


# Any values at all, packed by both.

unicode = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
numbers = st.sampled_from([0, 1, 0o755, 2**31, 2**32 - 1]) | st.integers(0, 2**32 - 1)
offsets = st.sampled_from([0, 1, 512]) | st.integers(0, 2**62)
entries = st.builds(
    TocEntry,
    name=unicode,
    type=st.sampled_from(["reg", "dir", "symlink", "hardlink", "char", "block", "fifo"]),
    offset=offsets,
    size=offsets,
    linkname=st.just("") | unicode,
    mode=numbers,
    uid=numbers,
    gid=numbers,
    uname=st.just("") | unicode,
    gname=st.just("") | unicode,
    mtime=st.just(MTIME) | st.integers(-62_135_596_800, 253_402_300_799),
    devmajor=st.just(0) | numbers,
    devminor=st.just(0) | numbers,
    pax=st.just(()) | st.dictionaries(unicode, unicode, max_size=4).map(lambda records: tuple(records.items())),
)
places = st.builds(Checkpoint, in_offset=offsets, out_offset=offsets, bits=st.integers(0, 7))


@st.composite
def descriptions(draw: st.DrawFn) -> LayerSpans:
    checkpoints = draw(st.lists(places, min_size=1, max_size=3))
    return LayerSpans(
        span_size=draw(st.integers(1, 2**40)),
        blob_size=draw(st.integers(1, 2**50)),
        tar_size=draw(st.integers(1, 2**50)),
        checkpoints=tuple(checkpoints),
        digests=tuple(Digest.of(bytes([number])) for number in range(len(checkpoints))),
        windows=Path("/dev/zero"),
        toc=tuple(draw(st.lists(entries, max_size=12))),
    )


def as_json(spans: LayerSpans) -> dict[str, object]:
    def blob() -> Iterator[bytes]:
        yield len(spans.checkpoints).to_bytes(4, "little") + spans.span_size.to_bytes(8, "little")
        for place in spans.checkpoints:
            yield place.in_offset.to_bytes(8, "little") + place.out_offset.to_bytes(8, "little")
            yield bytes([place.bits]) + bytes(WINDOW)

    return {
        "BlobSize": spans.blob_size,
        "TarSize": spans.tar_size,
        "Checkpoints": base64.b64encode(b"".join(blob())).decode(),
        "Digests": [str(digest) for digest in spans.digests],
        "Toc": [dataclasses.asdict(entry) | {"pax": dict(entry.pax)} for entry in spans.toc],
    }


@settings(
    max_examples=20, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(st.lists(descriptions(), min_size=1, max_size=6))
def test_any_values_are_packed_alike(tmp_path: Path, described: list[LayerSpans]) -> None:
    peer("marshal", tmp_path, stdin=json.dumps([as_json(spans) for spans in described]).encode())
    for number, spans in enumerate(described):
        assert packed(spans) == (tmp_path / str(number)).read_bytes()


# The index: a plain layout, converted by the real tool.


class Images:
    """Images with the layers of `LAYERS`; a layer of at least `MINIMUM` bytes has its ztoc in the layout `ours`."""

    MINIMUM = 20_000

    def __init__(self, layers: Path, scratch: Path) -> None:
        self.layers, self.scratch = layers, scratch
        self.plain, self.ours = Layout(scratch / "plain"), Layout(scratch / "ours")

    def image(self, platform: Platform, names: Sequence[str], **annotations: str) -> index.PlainImage:
        diff_ids = [str(Digest.of(zlib.decompress((self.layers / name).read_bytes(), 31))) for name in names]
        config = {
            **platform.document(),
            "config": {},
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": [],
        }
        return index.PlainImage(
            platform,
            self.both(spec.encode(config), spec.CONFIG),
            tuple(self.layer(name) for name in names),
            SPAN,
            {key.replace("_", "."): value for key, value in annotations.items()},
        )

    def both(self, data: bytes, media_type: str) -> Descriptor:
        self.plain.add(data, media_type)
        return self.ours.add(data, media_type)

    def layer(self, name: str) -> index.Layer:
        blob = self.both((self.layers / name).read_bytes(), spec.LAYER_GZIP)
        if not index.wants_ztoc(blob, self.MINIMUM):
            return index.Layer(blob)
        described = self.ours.add(packed(scan(self.layers / name, SPAN, self.scratch / "windows")), ztoc.MEDIA_TYPE)
        return index.Layer(blob, described)

    def converted(self, *images: index.PlainImage) -> index.Converted:
        """Our conversion, written to `ours`; the plain images lie in `plain`."""
        write(self.plain, index.convert([without_ztocs(image) for image in images]))
        converted = index.convert(images)
        write(self.ours, converted)
        return converted

    def by_the_peer(self, layout: Layout, *options: str) -> tuple[str, dict[str, bytes]]:
        out = self.scratch / "theirs" / layout.root.name
        out.parent.mkdir(exist_ok=True)
        top = peer("convert", "-span-size", SPAN, "-min-layer-size", self.MINIMUM, *options, layout.root, out)
        return top, Layout(out).blobs()


def write(layout: Layout, converted: index.Converted) -> None:
    for described, data in converted.blobs:
        assert layout.add(data, described.media_type).digest == described.digest
    layout.point_to(converted.top)


def without_ztocs(image: index.PlainImage) -> index.PlainImage:
    return dataclasses.replace(image, layers=tuple(index.Layer(layer.blob) for layer in image.layers))


@pytest.fixture
def images(layers: Path, tmp_path: Path) -> Images:
    return Images(layers, tmp_path)


def one_platform(images: Images) -> list[index.PlainImage]:
    return [images.image(AMD64, ["odd-names", "one-empty-file", "entries-5000"])]


def two_platforms(images: Images) -> list[index.PlainImage]:
    return [
        images.image(AMD64, ["one-empty-file", "odd-names", "entries-5000"]),
        images.image(ARM64, ["odd-names-joined", "entries-5000"]),
    ]


def shared_index(images: Images) -> list[index.PlainImage]:
    return [images.image(AMD64, ["entries-5000"]), images.image(ARM64, ["entries-5000", "nothing"])]


def one_of_two_too_small(images: Images) -> list[index.PlainImage]:
    return [images.image(ARM64, ["one-empty-file"]), images.image(AMD64, ["entries-5000"])]


def layer_twice(images: Images) -> list[index.PlainImage]:
    return [images.image(AMD64, ["entries-5000", "one-empty-file", "entries-5000"])]


def annotated(images: Images) -> list[index.PlainImage]:
    return [
        images.image(AMD64, ["odd-names", "stored"], z_last="<é & ü>", a_first='"\\\u2028\t\x7f', com_amazon_tv="x")
    ]


def variant(images: Images) -> list[index.PlainImage]:
    return [
        images.image(Platform("linux", "arm", "v7"), ["stored"]),
        images.image(Platform("linux", "arm64", "v8"), ["entries-5000"]),
    ]


@pytest.mark.parametrize(
    "make", [one_platform, two_platforms, shared_index, one_of_two_too_small, layer_twice, annotated, variant]
)
def test_conversion_is_the_real_one(make: Callable[[Images], list[index.PlainImage]], images: Images) -> None:
    converted = images.converted(*make(images))
    top, theirs = images.by_the_peer(images.plain)
    assert top == str(converted.top.digest)
    assert images.ours.blobs().items() <= theirs.items()


@pytest.mark.parametrize("make", [one_platform, two_platforms, shared_index])
def test_converted_again_it_stays_the_same(make: Callable[[Images], list[index.PlainImage]], images: Images) -> None:
    converted = images.converted(*make(images))
    assert images.by_the_peer(images.ours)[0] == str(converted.top.digest)


@pytest.mark.parametrize("make", [two_platforms, one_of_two_too_small, annotated])
def test_plain_image_can_be_taken_out_of_the_indexed_one(
    make: Callable[[Images], list[index.PlainImage]], images: Images
) -> None:
    converted = images.converted(*make(images))
    out = Layout(images.scratch / "taken-out")
    plain(images.ours, converted.top.digest, out)
    assert images.by_the_peer(out)[0] == str(converted.top.digest)


def test_what_mounts_need_is_told_as_the_real_tool_tells_it(images: Images) -> None:
    """The sizes of layers lie in the plain image, too; which have no extended attributes is the real tool's own finding."""
    (image,) = one_platform(images)
    blobs = images.ours.blobs()
    layers = tuple(
        dataclasses.replace(layer, bare=mounting.without_xattrs(blobs[layer.ztoc.digest.hex])) if layer.ztoc else layer
        for layer in image.layers
    )
    assert {layer.bare for layer in layers} == {True, False}
    converted = index.convert([dataclasses.replace(image, layers=layers, announced=True)])
    write(images.ours, converted)
    told = mounting.announced([layer.blob for layer in image.layers])
    plain_layers = tuple(index.Layer(blob) for blob in told)
    write(images.plain, index.convert([dataclasses.replace(image, layers=plain_layers)]))
    top, theirs = images.by_the_peer(images.plain, "-optimize-xattrs")
    assert top == str(converted.top.digest)
    assert images.ours.blobs().items() <= theirs.items()


@pytest.mark.parametrize("count", [1, 56, 57, 130])
def test_sizes_are_as_many_as_clients_list_digests(count: int) -> None:
    """A label has at most 4,096 bytes with its key: 56 digests; of more the snapshotter gets no more sizes either."""
    layers = [Descriptor(spec.LAYER_GZIP, Digest.of(bytes([n])), n, {"kept": "x"}) for n in range(count)]
    for number, layer in enumerate(mounting.announced(layers)):
        above = [str(n) for n in range(number, count)][:56]
        wanted = {"kept": "x", mounting.SIZE: str(number), mounting.SIZES: ",".join(above)}
        assert layer == dataclasses.replace(layers[number], annotations=wanted)


def test_bare_manifest_gives_the_same(images: Images) -> None:
    """A layout whose index.json names the manifest itself, without a platform, as most tools write it."""
    converted = images.converted(*one_platform(images))
    (manifest,) = index.convert([without_ztocs(image) for image in one_platform(images)]).manifests
    images.plain.point_to(dataclasses.replace(manifest, platform=None))
    assert images.by_the_peer(images.plain)[0] == str(converted.top.digest)


def test_no_ztoc_no_index(images: Images) -> None:
    """The real tool refuses such an image; ours is the plain one, in an OCI index, and says so."""
    image = images.image(AMD64, ["nothing", "one-empty-file"])
    converted = images.converted(image)
    assert converted.unindexed == (AMD64,)
    assert [entry.artifact_type for entry in converted.manifests] == [None]
    assert images.ours.blobs() == images.plain.blobs()
    assert b"soci" not in b"".join(data for _, data in converted.blobs)
    result = subprocess.run(
        [require("soci-peer"), "convert", images.plain.root, images.scratch / "theirs"],
        capture_output=True,
        check=False,
    )
    assert result.returncode == 1
    assert b"no layer is large enough" in result.stderr


def test_what_is_referred_to_comes_first(images: Images) -> None:
    converted = images.converted(*two_platforms(images))
    digests = [described.digest for described, _ in converted.blobs]
    assert len(set(digests)) == len(digests)
    assert converted.blobs[-1][0] == converted.top
    assert {entry.digest for entry in converted.manifests} <= set(digests[:-1])
    assert converted.unindexed == ()


@pytest.mark.parametrize(
    ("media_type", "size", "wanted"),
    [
        (spec.LAYER_GZIP, 10 << 20, True),
        (spec.LAYER_GZIP, (10 << 20) - 1, False),
        ("application/vnd.docker.image.rootfs.diff.tar.gzip", 10 << 20, True),
        ("application/vnd.oci.image.layer.v1.tar+zstd", 1 << 30, False),
        ("application/vnd.oci.image.layer.v1.tar", 1 << 30, True),
    ],
)
def test_which_layers_want_a_ztoc(media_type: str, size: int, wanted: bool) -> None:
    assert index.wants_ztoc(Descriptor(media_type, Digest.of(b""), size), 10 << 20) is wanted


def test_skopeo_reads_the_indexed_image(images: Images) -> None:
    skopeo = require("skopeo")
    converted = images.converted(*two_platforms(images))
    for architecture, count in (("amd64", 3), ("arm64", 2)):
        shown = subprocess.run(
            [skopeo, f"--override-arch={architecture}", "--override-os=linux", "inspect", f"oci:{images.ours.root}"],
            capture_output=True,
            check=True,
        )
        document = json.loads(shown.stdout)
        assert (document["Architecture"], len(document["Layers"])) == (architecture, count)
    assert len(converted.manifests) == 4


def test_umoci_unpacks_the_indexed_image(images: Images) -> None:
    umoci = require("umoci")
    images.converted(images.image(AMD64, ["entries-5000"]))
    (manifest, _) = images.converted(images.image(AMD64, ["entries-5000"])).manifests
    images.ours.point_to(dataclasses.replace(manifest, annotations={"org.opencontainers.image.ref.name": "latest"}))
    bundle = images.scratch / "bundle"
    subprocess.run(
        [umoci, "raw", "unpack", "--rootless", "--image", f"{images.ours.root}:latest", str(bundle)],
        capture_output=True,
        check=True,
    )
    assert len(list(bundle.rglob("*.py"))) == 5000


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_missing_judge(required: str, outcome: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LAYERWRIGHT_REQUIRE_JUDGES", required)
    with pytest.raises(outcome, match="no-such-judge"):
        require("no-such-judge")
