"""eStargz layers: what every client reads as any layer, and stargz-snapshotter file by file, verified by the table in it."""

from __future__ import annotations

import contextlib
import gzip
import io
import json
import shutil
import subprocess
import tarfile
import tracemalloc
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import deflate as libdeflate
import judges
import pytest
from cacheworld import Entry as CacheEntry
from hypothesis import given, settings
from hypothesis import strategies as st
from layouts import Layout
from test_fuzz_wheel import EDITS, SLOW, edited
from test_layer_cache_hostile import Notes, Side
from test_layers import STREAMS, Spool, both_engines, data_of, flushed, noise, prose, stored
from wheelmaker import deflate as deflated
from world import PROFILE, World, run, write_project

from builder import lock as locks
from builder import plan as plans
from builder.errors import HostileInputError
from builder.layercache.cache import Trust
from builder.layers import chunked, estargz, tablecheck, tar
from builder.layers.estargz import pack
from builder.layers.pack import PackedLayer
from builder.layers.tablecheck import TableFault
from builder.layers.tar import Entry, Inline, Kind, Region
from builder.lock import LockedCompression, SociSettings, checks
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.lazy import TOC_DIGEST
from builder.packing import Folder, Packer
from builder.store import Store

KIB, MIB = 1 << 10, 1 << 20
CHUNK = 64 * KIB
"""Smaller than that of images, so that streams are cut in many places."""
MEGABYTE = prose(MIB)


def rows(blob: bytes) -> tuple[list[dict[str, Any]], Digest]:
    """The table of a layer, found as the format says: by the last 51 bytes."""
    footer = blob[-51:]
    assert gzip.decompress(footer) == b""
    assert footer[12:16] == b"SG" + (22).to_bytes(2, "little")
    assert footer[32:38] == b"STARGZ"
    inflate = zlib.decompressobj(31)
    with tarfile.open(fileobj=io.BytesIO(inflate.decompress(blob[int(footer[16:32], 16) :]))) as tar:
        (member,) = tar.getmembers()
        assert member.name == "stargz.index.json"
        file = tar.extractfile(member)
        assert file
        data = file.read()
    return json.loads(data)["entries"], Digest.of(data)


def content(blob: bytes, toc: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    """The files, each chunk read by itself from where the table says that it starts; digests are compared."""
    found: dict[str, bytearray] = {}
    sizes = {row["name"]: row.get("size", 0) for row in toc if row["type"] == "reg"}
    for row in toc:
        if row["type"] not in ("reg", "chunk") or not sizes[row["name"]]:
            continue
        start = row.get("chunkOffset", 0)
        size = row.get("chunkSize", sizes[row["name"]] - start)
        data = zlib.decompressobj(31).decompress(blob[row["offset"] :], size)
        assert len(data) == size
        assert row["chunkDigest"] == str(Digest.of(data))
        assert len(found.setdefault(row["name"], bytearray())) == start
        found[row["name"]] += data
    for row in toc:
        if row["type"] == "reg" and row.get("size"):
            assert row["digest"] == str(Digest.of(bytes(found[row["name"]])))
    return {name: bytes(found.get(name, b"")) for name in sizes}


def assert_sound(blob: Path, result: PackedLayer, entries: Sequence[Entry]) -> list[dict[str, Any]]:
    """It is what others read as a gzip tar, with what its table says."""
    raw = blob.read_bytes()
    unzipped = gzip.decompress(raw)
    assert (result.digest, result.size) == (Digest.of(raw), len(raw))
    assert (result.diff_id, result.spans.tar_size) == (Digest.of(unzipped), len(unzipped))
    toc, digest = rows(raw)
    assert digest == result.table
    files = content(raw, toc)
    with tarfile.open(fileobj=io.BytesIO(unzipped)) as tar:
        members = tar.getmembers()
        names = [entry.path for entry in entries]
        assert [member.name for member in members] == [estargz.NO_PREFETCH, *names, estargz.TOC]
        kinds = {"dir": tarfile.DIRTYPE, "reg": tarfile.REGTYPE, "symlink": tarfile.SYMTYPE}
        told = [row for row in toc if row["type"] != "chunk"]
        for member, row in zip(members[:-1], told, strict=True):
            assert row["name"].rstrip("/") == member.name
            assert kinds[row["type"]] == member.type
            assert (row["mode"], row.get("size", 0)) == (member.mode, member.size)
            assert (row.get("uid", 0), row.get("gid", 0)) == (member.uid, member.gid)
            assert row.get("linkName", "") == member.linkname
            if row["type"] == "reg":
                file = tar.extractfile(member)
                assert file
                assert files[row["name"]] == file.read()
    for entry, crc32 in zip(entries, result.crc32s, strict=True):
        if entry.kind is Kind.FILE:
            assert crc32 == zlib.crc32(files[entry.path])
            assert files[entry.path] == data_of(entry.content)
    return toc


def judged(blob: Path, toc: Digest | None) -> dict[str, Any]:
    """What the eStargz library finds in a layer after it has verified table, chunks and files."""
    judge = judges.require("containerd-stargz-grpc")
    done = subprocess.run([judge, "check", blob, str(toc)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def entries_of(spool: Spool) -> Iterator[Entry]:
    """Every kind of entry, and every kind of stream."""
    yield Entry("d", Kind.DIR, 0o755)
    for number, (raw, data) in enumerate(STREAMS.values()):
        yield Entry(f"d/{number:03}", content=spool.member(raw, data))
    yield Entry("d/inline", mode=0o4755, content=Inline(prose(3 * CHUNK + 5)))
    yield Entry("d/link", Kind.SYMLINK, 0o777, linkname="../x" * 60)
    yield Entry("d/region", uid=7, gid=8, content=spool.region(noise(2 * CHUNK)))
    yield Entry("d/" + "ü" * 120, content=Inline(b"long"))


def test_every_stream_is_cut_where_others_can_read_it(spool: Spool, tmp_path: Path) -> None:
    entries = list(entries_of(spool))
    blob = tmp_path / "layer.gz"
    result = pack(entries, blob, chunk_size=CHUNK)
    toc = assert_sound(blob, result, entries)
    sizes = [row["chunkSize"] for row in toc if "chunkSize" in row]
    assert max(sizes) <= 2 * CHUNK
    assert min(sizes) >= 32 * KIB
    assert len(set(sizes)) > 50
    found = judged(blob, result.table)
    assert len(found) == len(entries) + 2  # the root and a landmark
    for entry in entries:
        if entry.kind is Kind.FILE and entry.size:
            assert found[f"/{entry.path}"]["digest"] == str(Digest.of(data_of(entry.content)))
    for command in (["pigz", "-dc"], ["gzip", "-dc"]):
        unzipped = subprocess.run([judges.require(command[0]), *command[1:], blob], capture_output=True, check=True)
        assert Digest.of(unzipped.stdout) == result.diff_id
    raw = blob.read_bytes()  # libdeflate is the strictest about what streams may look like
    offsets = sorted({row["offset"] for row in toc if row.get("offset")})
    for row in toc:
        if "chunkSize" in row and row["name"] < "d/inline":
            after = next((offset for offset in offsets if offset > row["offset"]), len(raw))
            data = libdeflate.gzip_decompress(raw[row["offset"] : after])
            assert Digest.of(bytes(data)) == Digest.parse(row["chunkDigest"])


@pytest.mark.parametrize("chunk", [33 * KIB, 100_001])
def test_the_engine_does_not_matter(chunk: int, spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where to cut is a matter of the stream, and not of who inflates it."""
    entries = list(entries_of(spool))
    found = set()
    for engine in both_engines():
        monkeypatch.setattr(chunked, "engine", lambda engine=engine: engine)
        found.add(pack(entries, tmp_path / "layer.gz", chunk_size=chunk))
    assert len(found) == 1


def test_layers_are_the_same_for_ever(spool: Spool, tmp_path: Path) -> None:
    """Of streams that no library of this machine made."""
    names = [name for name in STREAMS if name.startswith(("libdeflate", "empty", "inflates")) or "nine-bit" in name]
    made = {name: bytes(libdeflate.deflate_compress(STREAMS[name][1], 12)) for name in names if "inflates" in name}
    entries = [Entry(name, content=spool.member(made.get(name, STREAMS[name][0]), STREAMS[name][1])) for name in names]
    small = pack(entries, tmp_path / "small.gz", chunk_size=CHUNK)
    usual = pack([Entry("x", content=Inline(MEGABYTE * 9)), *entries], tmp_path / "usual.gz")
    assert [layer.digest.short for layer in (small, usual)] == ["80d1b218441b", "4d2a017a347a"]


def test_what_is_verbatim(spool: Spool, tmp_path: Path) -> None:
    """A stream of one chunk is there as it is; of larger ones, little is compressed anew."""
    small, large = deflated(prose(50 * KIB), 9), deflated(MEGABYTE * 12, 9)
    entries = [
        Entry("small", content=spool.member(small, prose(50 * KIB))),
        Entry("large", content=spool.member(large, MEGABYTE * 12)),
    ]
    blob = tmp_path / "layer.gz"
    toc = assert_sound(blob, pack(entries, blob), entries)
    raw = blob.read_bytes()
    assert small in raw
    offsets = [row["offset"] for row in toc if row["name"] == "large"]
    assert len(offsets) == 3
    assert large[: 256 * KIB] in raw
    copied = sum(large[at : at + 256] in raw for at in range(0, len(large) - 256, 8192))  # not where bits are shifted
    assert copied > 0.97 * len(range(0, len(large) - 256, 8192))
    assert len(raw) < 1.01 * len(large) + len(small)


def test_blocks_without_end(spool: Spool, tmp_path: Path) -> None:
    """Where no block ends, chunks are compressed anew; where blocks hold nothing, they are left out. Memory stays bounded."""
    tail = prose(300 * KIB)
    giant = deflated(noise(40) * 40_000, 9, mem_level=9)
    flood = stored(b"", False) * 60_000
    streams = {
        "giant": (giant, noise(40) * 40_000),
        "flood": (flood + deflated(tail), tail),
        "flood inside": (stored(tail[:100_000], False) + flood + deflated(tail), tail[:100_000] + tail),
        "flood soon": (stored(tail[:1000], False) + flood + deflated(tail), tail[:1000] + tail),
        "only flood behind": (stored(tail[:CHUNK], False) + flood + b"\x03\x00", tail[:CHUNK]),
        "flushed": (flushed(tail, 999, zlib.Z_FULL_FLUSH, times=3), tail),
    }
    entries = [Entry(name, content=spool.member(*stream)) for name, stream in sorted(streams.items())]
    blob = tmp_path / "layer.gz"
    result = pack(entries, blob, chunk_size=CHUNK)
    toc = assert_sound(blob, result, entries)
    assert max(row["chunkSize"] for row in toc if "chunkSize" in row) <= 2 * CHUNK
    assert judged(blob, result.table)


def test_memory_is_bounded(tmp_path: Path) -> None:
    """By one block of 40 MB, which never ends."""
    data = MEGABYTE * 40
    codes = bytes(int(f"{0x30 + min(byte, 143):08b}"[::-1], 2) for byte in range(256))  # the fixed codes of literals
    block = int.from_bytes(data.translate(codes), "little") << 3 | 0b011
    raw = block.to_bytes(len(data) + 2, "little")
    del block
    spool = Spool(tmp_path / "spool")
    entries = [Entry("x", content=spool.member(raw, data))]
    tracemalloc.start()
    try:
        pack(entries, tmp_path / "layer.gz")
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 30 * MIB
    assert Digest.of(
        content((tmp_path / "layer.gz").read_bytes(), rows((tmp_path / "layer.gz").read_bytes())[0])["x"]
    ) == (Digest.of(data))


@pytest.mark.parametrize("bits", range(8))
def test_what_stands_before_a_block_that_begins_inside_of_a_byte(bits: int) -> None:
    """Blocks without content, which every inflater has to accept, end on the bit."""
    filler = chunked._FILLERS[bits]
    end = int.from_bytes(filler, "little") | 0b011 << (8 * (len(filler) - 1) + bits)  # an empty block that is the last
    raw = end.to_bytes(len(filler) + 2, "little")
    whole = zlib.decompressobj(-15)
    assert whole.decompress(raw) == b""
    assert whole.eof
    assert bytes(libdeflate.deflate_decompress(raw, 1)) == b""


@pytest.mark.parametrize("name", sorted(estargz.RESERVED))
def test_names_that_the_format_has_for_itself(name: str, tmp_path: Path) -> None:
    with pytest.raises(HostileInputError, match=name) as told:
        pack([Entry(name, content=Inline(b"x"))], tmp_path / "layer.gz")
    assert told.value.hint


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda raw, data: (raw[:-9], data), "cut off|inflates to|ends inside"),
        (lambda raw, data: (raw + b"x", data), "follow its compressed data"),
        (lambda raw, data: (raw, data[:-1]), "more than"),
        (lambda raw, data: (raw, data + b"x"), "not to the"),
        (lambda raw, data: (b"\x07" + raw, data), "damaged"),
        (lambda raw, data: (raw, data[::-1]), "CRC-32"),
    ],
)
def test_streams_that_lie(change: Any, words: str, spool: Spool, tmp_path: Path) -> None:
    data = prose(5 * CHUNK)
    lie = change(deflated(data), data)
    with pytest.raises(HostileInputError, match=words):
        pack([Entry("x", content=spool.member(*lie))], tmp_path / "layer.gz", chunk_size=CHUNK)


def test_a_region_that_ends_too_soon(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"abc")
    with pytest.raises(HostileInputError, match="ends inside"):
        pack([Entry("x", content=Region(tmp_path / "short", 1, 3, "short"))], tmp_path / "layer.gz")


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(st.sampled_from(sorted(STREAMS)), st.lists(EDITS, max_size=3), st.integers(33, 200))
def test_damaged_streams(tmp_path_factory: pytest.TempPathFactory, name: str, edits: Any, chunk: int) -> None:
    """A layer that holds what it should, or an error."""
    folder = tmp_path_factory.mktemp("fuzz")
    raw, data = STREAMS[name]
    entries = [Entry("x", content=Spool(folder / "spool").member(edited(raw, edits), data))]
    blob = folder / "layer.gz"
    try:
        result = pack(entries, blob, chunk_size=chunk * KIB)
    except HostileInputError:
        assert edits
        return
    files = content(blob.read_bytes(), rows(blob.read_bytes())[0])
    assert files["x"] == data
    assert Digest.of(gzip.decompress(blob.read_bytes())) == result.diff_id


# What checks a table against its layer.


def checked(blob: Path, toc: Digest) -> list[TableFault]:
    with blob.open("rb") as file:
        return tablecheck.faults(file, toc)


@pytest.mark.parametrize(("chunk", "least"), [(0, 0), (50_000, 0), (50_000, 200_000), (0, 10_000_000)])
def test_layers_of_others_are_right(chunk: int, least: int, tmp_path: Path) -> None:
    """Those that the library itself makes."""
    with tarfile.open(tmp_path / "tar", "w", format=tarfile.PAX_FORMAT) as tar:
        for number, (_, data) in enumerate(list(STREAMS.values())[::5]):
            info = tarfile.TarInfo(f"./d/{number:03}")
            info.size, info.mtime, info.mode, info.uid = len(data), 1.7 if number % 2 else 0, 0o640, number
            info.pax_headers = {"SCHILY.xattr.user.x": "ü"} if number == 4 else {}
            tar.addfile(info, io.BytesIO(data))
        for name, kind, link in (
            ("d/l", tarfile.SYMTYPE, "x"),
            ("d/h", tarfile.LNKTYPE, "./d/000"),
            ("d/e", tarfile.DIRTYPE, ""),
        ):
            info = tarfile.TarInfo(name)
            info.type, info.linkname = kind, link
            tar.addfile(info)
    judge = judges.require("containerd-stargz-grpc")
    command = (judge, "make", tmp_path / "tar", tmp_path / "blob", str(chunk), str(least))
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert checked(tmp_path / "blob", Digest.parse(done.stdout.strip())) == []


@pytest.fixture(scope="module")
def layer(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A layer of a few files, and its table."""
    folder = tmp_path_factory.mktemp("table")
    spool = Spool(folder / "spool")
    entries = [
        Entry("d", Kind.DIR, 0o755),
        Entry("d/large", content=spool.member(deflated(prose(4 * CHUNK)), prose(4 * CHUNK))),
        Entry("d/link", Kind.SYMLINK, 0o777, linkname="large"),
        Entry("d/small", uid=3, content=Inline(b"small" * 9)),
    ]
    result = pack(entries, folder / "layer.gz", chunk_size=CHUNK)
    assert result.table
    assert checked(folder / "layer.gz", result.table) == []
    raw = (folder / "layer.gz").read_bytes()
    return folder / "layer.gz", {"version": 1, "entries": rows(raw)[0]}


def retold(raw: bytes, table: bytes, name: str = estargz.TOC) -> bytes:
    """The same layer with another table."""
    at = int(raw[-35:-19], 16)
    head = tar.header(Entry(name, content=Inline(table)))
    member = gzip.compress(head + table + tar.padding(len(table)) + tar.END, mtime=0)
    return raw[:at] + member + raw[-51:]


def rowwise(number: int, **changes: Any) -> Any:
    def change(table: dict[str, Any]) -> None:
        table["entries"][number] = {**table["entries"][number], **changes}

    return change


@pytest.mark.parametrize(
    ("change", "path"),
    [
        (rowwise(1, mode=0o700), "d/"),
        (rowwise(1, name="e"), "e"),
        (rowwise(2, size=5), "d/large"),
        (rowwise(2, digest=str(Digest.of(b""))), "d/large"),
        (rowwise(2, offset=77), "d/large"),
        (rowwise(3, chunkDigest=str(Digest.of(b""))), "d/large"),
        (rowwise(3, chunkOffset=1), "d/large"),
        (rowwise(3, chunkSize=1), "d/large"),
        (rowwise(-2, linkName="/etc/passwd"), "d/link"),
        (rowwise(-1, uid=0), "d/small"),
        (rowwise(-1, type="dir"), "d/small"),
        (rowwise(-1, xattrs={"security.capability": "AQAAAg=="}), "d/small"),
        (rowwise(-1, modtime="2001-01-01T00:00:00Z"), "d/small"),
        (lambda table: table["entries"].append(table["entries"][-1]), "d/small"),
        (lambda table: table["entries"].pop(), None),
        (lambda table: table["entries"].pop(1), "d/large"),
    ],
)
def test_tables_that_lie(change: Any, path: str | None, layer: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """The manifest may name such a table: what it says is compared all the same."""
    raw, table = layer[0].read_bytes(), layer[1]
    lie = json.loads(json.dumps(table))
    change(lie)
    data = json.dumps(lie).encode()
    (tmp_path / "blob").write_bytes(retold(raw, data))
    (fault,) = checked(tmp_path / "blob", Digest.of(data))
    assert fault.path == path
    assert "table" in fault.message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "cannot be read"),
        (b"{}", "cannot be read"),
        (b'{"version":2,"entries":[]}', "cannot be read"),
        (b'{"version":1,"entries":[', "cannot be read"),
        (b'{"version":1,"entries":[3]}', "cannot be read"),
        (b'{"version":1,"entries":[' + b"[" * 100_000, "cannot be read"),
        (b'{"version":1,"entries":[{"type":"chunk","name":"x"}]}', "cannot be read"),
        (b'{"version":1,"entries":[{"type":"reg","name":"x","size":"y"}]}', "cannot be read"),
        (b'{"version":1,"entries":[{"type":"dir","name":"x","modtime":"soon"}]}', "cannot be read"),
        (b'{"version":1,"entries":[{"type":"dir","name":"x","Mode":511}]}', "'Mode'"),
        (
            b'{"version":1,"entries":[{"type":"dir","name":"x","modtime":"9999-12-31T23:59:59-14:00"}]}',
            "cannot be read",
        ),
        (b'{"version":1,"entries":[]}', "ends before"),
        (b"\xff", "cannot be read"),
        (bytes(tablecheck.MAX_TABLE + 1), "more than"),
    ],
)
def test_what_is_no_table(data: bytes, words: str, layer: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    (tmp_path / "blob").write_bytes(retold(layer[0].read_bytes(), data))
    (fault,) = checked(tmp_path / "blob", Digest.of(data))
    assert words in fault.message


def test_tables_that_are_not_where_they_should_be(layer: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    raw, table = layer[0].read_bytes(), layer[1]
    data = json.dumps(table).encode()
    blob = tmp_path / "blob"
    blob.write_bytes(retold(raw, data, "index.json"))
    assert "there is no table" in checked(blob, Digest.of(data))[0].message
    blob.write_bytes(retold(raw, data))
    assert "has the digest" in checked(blob, Digest.of(b""))[0].message
    for footer in (estargz._footer(5), gzip.compress(b""), b""):
        blob.write_bytes(retold(raw, data)[:-51] + footer)
        assert "do not tell" in checked(blob, Digest.of(data))[0].message
    flood = gzip.compress(b"", mtime=0) * 20_000  # members that hold nothing
    blob.write_bytes(flood + raw)
    assert len(checked(blob, Digest.of(json.dumps(table, separators=(",", ":")).encode()))) == 2


@settings(max_examples=60, deadline=None, suppress_health_check=SLOW)
@given(edits=st.lists(EDITS, min_size=1, max_size=3))
def test_damaged_tables(edits: Any, layer: tuple[Path, dict[str, Any]], tmp_path: Path) -> None:
    """Whatever stands there is told as a fault; a table that says the same in other bytes is right."""
    raw, table = layer[0].read_bytes(), layer[1]
    data = edited(json.dumps(table).encode(), edits)
    (tmp_path / "blob").write_bytes(retold(raw, data))
    faults = checked(tmp_path / "blob", Digest.of(data))
    with contextlib.suppress(ValueError):
        assert not faults or json.loads(data) != table or data != json.dumps(table).encode()
    assert all(isinstance(fault.message, str) for fault in faults)


# Images of such layers.

SMALL = PROFILE.replace("  soci: {span-size: 256KiB, min-layer-size: 1MiB}", "  lazy: estargz")
BIG = noise(5 * MIB) + MEGABYTE * 9


@pytest.fixture(scope="module")
def image(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Layout, dict[str, Any]]:
    """The small profile published as eStargz, with a large file of its own: its profile, its layout and its manifest."""
    folder = tmp_path_factory.mktemp("estargz")
    write_project(folder, SMALL)
    (folder / "app/big.bin").write_bytes(BIG)
    profile = folder / "small.yaml"
    done = run(["publish", "-q", profile, "oci:out"], folder, world.environment(world.root / "cache"))
    layout = Layout(folder / "out")
    (entry,) = layout.json(Digest.parse(done.digest))["manifests"]
    return profile, layout, layout.json(Digest.parse(entry["digest"]))


def test_an_image(image: tuple[Path, Layout, dict[str, Any]], world: World, small: Path, tmp_path: Path) -> None:
    """Every layer is one that the library verifies by what the manifest says; there is no SOCI index."""
    profile, layout, manifest = image
    assert "annotations" not in manifest
    files: dict[str, Any] = {}
    for layer in manifest["layers"]:
        assert layer["mediaType"].endswith("tar+gzip")
        blob = layout.path(Digest.parse(layer["digest"]))
        files |= judged(blob, Digest.parse(layer["annotations"][TOC_DIGEST]))
        assert int(layer["annotations"][estargz.UNCOMPRESSED_SIZE]) == len(gzip.decompress(blob.read_bytes()))
    assert files["/app/big.bin"]["digest"] == str(Digest.of(BIG))
    assert files["/app/big.bin"]["chunks"] == 4
    before, now = (json.loads(path.with_suffix(".lock.json").read_text()) for path in (small, profile))
    assert now["compression"] == {"kind": "estargz", "version": "1"}
    assert "compression" not in before
    ordinary = {path.name for path in (small.parent / "out/blobs/sha256").iterdir()}
    assert not ordinary & {layer["digest"].removeprefix("sha256:") for layer in manifest["layers"]}
    environ = world.environment(world.root / "cache")
    again = run(["publish", profile, f"oci:{tmp_path / 'again'}", "--offline"], tmp_path, environ)
    assert "0 of them packed now" in again.err
    assert Layout(tmp_path / "again").blobs().keys() == layout.blobs().keys()
    assert run(["verify", f"oci:{layout.root}"], tmp_path, environ).code == 0


def test_what_a_start_reads_is_fetched_first(
    image: tuple[Path, Layout, dict[str, Any]], world: World, tmp_path: Path
) -> None:
    """It stands before a landmark, with its folders, where the profile has a trace and an order; other layers stay as they are."""
    site = "opt/venv/lib/python3.11/site-packages"
    paths = (f"{site}/alpha/tool.py", f"{site}/gamma/__init__.py", "usr/bin/hello")
    read = [{"path": path, "size": 10} for path in sorted(paths)]
    more = "start: {trace: small.trace.json, readahead: false, order: all}\n"
    write_project(tmp_path, SMALL + more)
    (tmp_path / "small.trace.json").write_text(json.dumps({"files": read, "platform": "linux/amd64", "version": 1}))
    environ = world.environment(world.root / "cache")
    done = run(["publish", tmp_path / "small.yaml", f"oci:{tmp_path / 'out'}"], tmp_path, environ)
    assert "start.readahead" not in done.err
    layout = Layout(tmp_path / "out")
    (entry,) = layout.json(Digest.parse(done.digest))["manifests"]
    system, wheels, files, _ = layout.json(Digest.parse(entry["digest"]))["layers"]
    before: dict[str, list[str]] = {}
    for layer in (system, wheels, files):
        blob = layout.path(Digest.parse(layer["digest"]))
        assert judged(blob, Digest.parse(layer["annotations"][TOC_DIGEST]))
        names = [row["name"] for row in rows(blob.read_bytes())[0]]
        landmark = next(name for name in (estargz.PREFETCH, estargz.NO_PREFETCH) if name in names)
        before[layer["digest"]] = names[: names.index(landmark)]
        assert bool(before[layer["digest"]]) is (landmark == estargz.PREFETCH)
    assert before[system["digest"]] == ["usr/", "usr/bin/", "usr/bin/hello"]
    assert before[wheels["digest"]][-1] == f"{site}/gamma/__init__.py"
    assert [name for name in before[wheels["digest"]] if not name.endswith("/")] == [
        f"{site}/alpha/tool.py",
        f"{site}/gamma/__init__.py",
    ]
    assert before[files["digest"]] == []
    assert run(["verify", "--quick", f"oci:{layout.root}"], tmp_path, environ).code == 0
    (tmp_path / "small.yaml").write_text(SMALL + more.replace("readahead: false, ", ""))
    ahead = run(["publish", "--lock", tmp_path / "small.yaml", f"oci:{tmp_path / 'out'}"], tmp_path, environ)
    assert "write start.readahead: false" in ahead.err
    large = Entry("large", content=Inline(bytes(chunked.CHUNK + 1)))
    assert estargz.prefetching([large, Entry("x")], {"large"}) == ((large, Entry("x")), 0)
    assert estargz.prefetching([large, Entry("x")], {"large", "x"}) == ((Entry("x"), large), 1)


def test_a_manifest_that_names_another_table(
    image: tuple[Path, Layout, dict[str, Any]], world: World, tmp_path: Path
) -> None:
    """verify reads tables, and says no."""
    layout, manifest = Layout(tmp_path / "out"), json.loads(json.dumps(image[2]))
    shutil.copytree(image[1].root, layout.root)
    manifest["layers"][1]["annotations"][TOC_DIGEST] = str(Digest.of(b""))
    layout.point_to(layout.add(json.dumps(manifest).encode(), spec.MANIFEST))
    done = run(["verify", "--quick", f"oci:{layout.root}"], tmp_path, world.environment(world.root / "cache"))
    assert done.code == 3
    assert "table: the table has the digest" in done.out


def test_a_layer_cache(image: tuple[Path, Layout, dict[str, Any]], world: World, tmp_path: Path) -> None:
    """It has the digest of the table; who believes all that can write to it reads the table, too."""
    plan = plans.plan(locks.parse(image[0].with_suffix(".lock.json").read_text(), "lock"))
    with judges.registry("docker-registry", tmp_path / "registry") as at:
        filled = Side(Store(world.root / "cache/layerwright"), at, "e/stargz", plan, Trust((), unsigned=True))
        assert filled.cache().push(filled.layers, plan.soci) == 2
        mate = replace(filled, store=Store(tmp_path / "mate"), notes=Notes())
        mate.pull()
        assert mate.there() == [True, True]
        packer = Packer(mate.store.root, Folder(Path()), plan.soci)
        taken = [packer.known(layer, mate.store) for layer in mate.layers]
        assert [layer.blob.annotations for layer in taken if layer] == [
            layer["annotations"] for layer in image[2]["layers"][:2]
        ]
        for found in CacheEntry.all_at(at, "e/stargz"):
            assert found.record["layer"].pop("table")
            found.put()
        without = replace(filled, store=Store(tmp_path / "without"), notes=Notes())
        assert "has no table" in without.pull()
        for found in CacheEntry.all_at(at, "e/stargz"):
            found.record["layer"]["table"] = str(Digest.of(b""))
            found.put()
        other = replace(filled, store=Store(tmp_path / "other"), notes=Notes())
        assert "the table has the digest" in other.pull()
        assert other.there() == without.there() == [False, False]


def test_a_base_image_of_such_layers(image: tuple[Path, Layout, dict[str, Any]], world: World, tmp_path: Path) -> None:
    """Its tables are told again, after they were read; other images on it do not need them."""
    environ = world.environment(world.root / "cache")
    text = f"profile: 1\nname: upon\nbase: {{image: oci:{image[1].root}}}\nfiles: [{{from: app, to: /more}}]\n"

    def built(name: str, more: str) -> list[dict[str, Any]]:
        profile = write_project(tmp_path / name, text + more)
        done = run(["publish", "-q", profile, f"oci:{tmp_path / name}-out"], tmp_path, environ)
        layout = Layout(Path(f"{tmp_path / name}-out"))
        manifests = layout.json(Digest.parse(done.digest))["manifests"]
        layers: list[dict[str, Any]] = layout.json(Digest.parse(manifests[0]["digest"]))["layers"]
        return layers

    layers = built("estargz", "publish: {lazy: estargz}\n")
    assert layers[:3] == image[2]["layers"]
    assert TOC_DIGEST in layers[3]["annotations"]
    layers = built("ordinary", "")
    assert [layer["digest"] for layer in layers[:3]] == [layer["digest"] for layer in image[2]["layers"]]
    assert not any(TOC_DIGEST in layer.get("annotations", {}) for layer in layers)
    upon = (tmp_path / "estargz/small.yaml").read_text().replace(str(image[1].root), f"{tmp_path / 'ordinary'}-out")
    (tmp_path / "estargz/small.yaml").write_text(upon)
    told = run(["publish", "--lock", tmp_path / "estargz/small.yaml", f"oci:{tmp_path / 'upon'}"], tmp_path, environ)
    assert "linux/amd64: base 1 of 4 has no table, so that containerd pulls it" in told.err
    manifest = json.loads(json.dumps(image[2]))
    manifest["layers"][2]["annotations"][TOC_DIGEST] = str(Digest.of(b""))
    lying = Layout(tmp_path / "lying")
    shutil.copytree(image[1].root, lying.root)
    lying.point_to(lying.add(json.dumps(manifest).encode(), spec.MANIFEST))
    profile = write_project(
        tmp_path / "lied", text.replace(str(image[1].root), str(lying.root)) + "publish: {lazy: estargz}\n"
    )
    done = run(["publish", "-q", profile, f"oci:{tmp_path / 'no'}"], tmp_path, environ)
    assert done.code == 1
    assert "the table has the digest" in done.err
    assert "base image is damaged or hostile" in done.err


def test_ordinary_clients_read_it(image: tuple[Path, Layout, dict[str, Any]], tmp_path: Path) -> None:
    _, layout, manifest = image
    copied = f"dir:{tmp_path / 'copied'}"
    subprocess.run([judges.require("skopeo"), "copy", "-q", f"oci:{layout.root}:latest", copied], check=True)
    for layer in manifest["layers"]:
        assert (tmp_path / "copied" / layer["digest"].removeprefix("sha256:")).stat().st_size == layer["size"]
    unpack = (judges.require("umoci"), "unpack", "--rootless", "--image", f"{layout.root}:latest", tmp_path / "bundle")
    subprocess.run(unpack, check=True, capture_output=True)
    root = tmp_path / "bundle/rootfs"
    assert (root / "app/big.bin").read_bytes() == BIG
    assert json.loads((root / "app/settings.json").read_text())["port"] == 8080
    assert {path.name for path in root.iterdir()} >= {"app", "opt", estargz.TOC, estargz.NO_PREFETCH}


def test_locks_that_cannot_be_built(image: tuple[Path, Layout, dict[str, Any]], world: World, tmp_path: Path) -> None:
    """Rules of another version are refused; so is a profile that asks for what eStargz has not."""
    profile, environ = image[0], world.environment(world.root / "cache")
    lock = locks.parse(profile.with_suffix(".lock.json").read_text(), "lock")
    for version in ("", "one", "-1"):
        (problem,) = checks.problems(replace(lock, compression=LockedCompression("estargz", version)))
        assert problem.startswith("$.compression")
    assert list(checks.problems(replace(lock, soci=SociSettings()))) == ["$.soci: eStargz layers have no SOCI index"]
    (problem,) = checks.problems(replace(lock, soci=SociSettings(enabled=False, mount="sideways")))
    assert problem.startswith("$.soci.mount: 'sideways'")
    shutil.copytree(profile.parent, tmp_path / "newer", symlinks=True, ignore=shutil.ignore_patterns("out"))
    newer = replace(lock, compression=LockedCompression("estargz", "99"))
    (tmp_path / "newer/small.lock.json").write_text(locks.encode(newer))
    done = run(["publish", tmp_path / "newer/small.yaml"], tmp_path, environ)
    assert done.code == 1
    assert "rules 99" in done.err
    assert "hint: install" in done.err
    write_project(tmp_path, SMALL + "  soci: {mount: parallel}\n  compression: zstd\n")
    done = run(["plan", tmp_path / "small.yaml"], tmp_path, environ)
    assert done.code == 1
    assert "no SOCI index: remove mount" in done.err
    assert "eStargz layers are gzip" in done.err
