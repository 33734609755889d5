"""Layers: any entries, packed, are a gzip tar that others read back, with the spans that a plain second scan finds."""

from __future__ import annotations

import dataclasses
import gzip
import hashlib
import io
import random
import subprocess
import sys
import tarfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import deflate as libdeflate
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judges import require
from wheelmaker import deflate
from zran import scan

from builder.errors import BuilderError, HostileInputError, ToolError
from builder.layers import deflate as engines
from builder.layers import member, tar
from builder.layers.content import read
from builder.layers.deflate import Engine
from builder.layers.pack import PackedLayer, pack
from builder.layers.spans import LayerSpans
from builder.layers.tar import MTIME, Content, Entry, Inline, Kind, Member, Region
from builder.layers.unpack import same_content, unpack
from builder.oci.digest import Digest
from builder.soci import ztoc

KIB, MIB = 1 << 10, 1 << 20
SPAN = 64 * KIB


# Deflate streams of every kind: name -> (raw stream, what it inflates to).


def noise(size: int, seed: int = 0) -> bytes:
    return random.Random(seed).randbytes(size)


WORDS = [noise(4, word).hex().encode() for word in range(300)]


def prose(size: int, seed: int = 0) -> bytes:
    return b" ".join(random.Random(seed).choices(WORDS, k=size // 9 + 1))[:size]


def stored(data: bytes, final: bool = True) -> bytes:
    """Stored blocks alone."""
    pieces = [data[start : start + 65535] for start in range(0, len(data), 65535)] or [b""]
    out = b""
    for index, piece in enumerate(pieces):
        last = final and index == len(pieces) - 1
        out += bytes([last]) + len(piece).to_bytes(2, "little") + (len(piece) ^ 0xFFFF).to_bytes(2, "little") + piece
    return out


class Bits:
    """A stream written bit by bit, the lowest of each byte first."""

    def __init__(self) -> None:
        self.bits: list[int] = []

    def number(self, value: int, count: int) -> Bits:
        self.bits += [value >> bit & 1 for bit in range(count)]
        return self

    def code(self, value: int, count: int) -> Bits:
        self.bits += [value >> bit & 1 for bit in reversed(range(count))]
        return self

    def fixed(self, data: bytes, final: bool) -> Bits:
        """A block of literals with the fixed codes: 8 bits below 144, 9 from there on."""
        self.number(final, 1).number(1, 2)
        for byte in data:
            if byte < 144:
                self.code(0x30 + byte, 8)
            else:
                self.code(0x190 + byte - 144, 9)
        return self.code(0, 7)

    def bytes(self, padding: int = 0) -> bytes:
        """The stream; what is unused of the last byte is filled with `padding`."""
        bits = [*self.bits, *([padding] * (-len(self.bits) % 8))]
        return bytes(
            sum(bit << at for at, bit in enumerate(bits[start : start + 8])) for start in range(0, len(bits), 8)
        )


def flushed(data: bytes, step: int, mode: int, times: int = 1) -> bytes:
    """A stream that is flushed after every `step` bytes, `times` times."""
    compressor, out = zlib.compressobj(6, zlib.DEFLATED, -15), b""
    for start in range(0, len(data), step):
        out += compressor.compress(data[start : start + step])
        out += b"".join(compressor.flush(mode) for _ in range(times))
    return out + compressor.flush()


def streams() -> Iterator[tuple[str, bytes, bytes]]:
    text = prose(700 * KIB)
    for level in range(10):
        yield f"level {level}", deflate(text, level), text
    for name in ("Z_FILTERED", "Z_HUFFMAN_ONLY", "Z_RLE", "Z_FIXED"):
        yield name, deflate(text, 6, getattr(zlib, name)), text
    mixed = prose(100 * KIB, 1) + noise(150 * KIB) + bytes(300 * KIB) + prose(80 * KIB, 2)
    yield "giant blocks", deflate(mixed, 9, mem_level=9), mixed
    yield "tiny blocks", deflate(mixed, 6, mem_level=1), mixed
    for level in (1, 6, 12):
        yield f"libdeflate {level}", bytes(libdeflate.deflate_compress(mixed, level)), mixed
    yield "zeros", deflate(bytes(5 * MIB)), bytes(5 * MIB)
    yield "sync flushes", flushed(mixed, 4 * KIB, zlib.Z_SYNC_FLUSH), mixed
    yield "full flushes", flushed(mixed, 64 * KIB, zlib.Z_FULL_FLUSH), mixed
    yield "partial flushes", flushed(mixed, 999, zlib.Z_PARTIAL_FLUSH), mixed
    yield "empty blocks", stored(b"", False) * 3000 + stored(prose(90_000)), prose(90_000)
    yield "empty stored", stored(b""), b""
    yield "empty fixed", b"\x03\x00", b""
    yield (
        "empty fixed blocks",
        Bits().fixed(b"", False).fixed(b"", False).fixed(b"\xff", False).fixed(b"", True).bytes(),
        b"\xff",
    )
    for size in (65_534, 65_535, 65_536, 131_071, 300_000):
        yield f"stored {size}", stored(noise(size)), noise(size)
    for count in range(8):
        data = b"\xc8" * count
        yield f"{count} nine-bit literals, ones behind", Bits().fixed(data, True).bytes(padding=1), data
        yield (
            f"{count} nine-bit literals, two blocks",
            Bits().fixed(data, False).fixed(b"tail", True).bytes(),
            data + b"tail",
        )
    # A block header at every place around the end of a 256 KiB read.
    for size in range(262_144 - 30, 262_144 - 19):
        data = noise(size)
        yield f"stored {size}, then fixed", stored(data, False) + deflate(b"abcabc"), data + b"abcabc"
        tail = Bits().fixed(b"\xc8" * (size % 8), False).fixed(b"end", True).bytes()
        yield f"stored {size}, then two fixed", stored(data, False) + tail, data + b"\xc8" * (size % 8) + b"end"
    for size in (524_287, 524_288, 524_289, 524_288 + 32_768, 2 * 524_288):
        yield f"inflates to {size}", deflate(prose(size), 1), prose(size)


STREAMS: Mapping[str, tuple[bytes, bytes]] = {name: (raw, data) for name, raw, data in streams()}


class Spool:
    """A file that contents lie in, and the entries made of it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.path.write_bytes(b"")

    def _add(self, data: bytes) -> int:
        with self.path.open("ab") as file:
            file.write(b"between")
            offset = file.tell()
            file.write(data)
        return offset

    def member(self, raw: bytes, data: bytes, label: str = "demo.whl: member") -> Member:
        recorded = ("sha256", hashlib.sha256(data).hexdigest())
        return Member(self.path, self._add(raw), len(raw), len(data), zlib.crc32(data), label, recorded)

    def region(self, data: bytes) -> Region:
        return Region(self.path, self._add(data), len(data), "region", zlib.crc32(data))


@pytest.fixture
def spool(tmp_path: Path) -> Spool:
    return Spool(tmp_path / "spool")


def packed(folder: Path, entries: Sequence[Entry], span: int = SPAN, name: str = "layer") -> tuple[Path, PackedLayer]:
    blob = folder / f"{name}.gz"
    return blob, pack(entries, blob, folder / f"{name}.windows", span)


def data_of(content: Content) -> bytes:
    if isinstance(content, Inline):
        return content.data
    with content.path.open("rb") as file:
        file.seek(content.offset)
        if isinstance(content, Region):
            return file.read(content.size)
        return zlib.decompress(file.read(content.compressed_size), -15)


def assert_read_back(blob: Path, result: PackedLayer, entries: Sequence[Entry]) -> None:
    """Python's gzip and tarfile agree about everything, and so does the plain scan about the spans."""
    raw = blob.read_bytes()
    unzipped = gzip.decompress(raw)
    assert result.digest == Digest.of(raw)
    assert result.size == len(raw)
    assert result.diff_id == Digest.of(unzipped)
    assert result.spans.tar_size == len(unzipped)
    assert unzipped.endswith(bytes(1024))
    types = {Kind.FILE: tarfile.REGTYPE, Kind.DIR: tarfile.DIRTYPE, Kind.SYMLINK: tarfile.SYMTYPE}
    with tarfile.open(fileobj=io.BytesIO(unzipped)) as archive:
        found = archive.getmembers()
        assert [info.name for info in found] == [entry.path for entry in entries]
        for info, entry, crc32 in zip(found, entries, result.crc32s, strict=True):
            assert info.type == types[entry.kind]
            assert (info.mode, info.linkname, info.size) == (entry.mode, entry.linkname, entry.size)
            assert (info.uid, info.gid, info.uname, info.gname, info.mtime) == (0, 0, "", "", MTIME)
            if entry.kind is Kind.FILE:
                file = archive.extractfile(info)
                assert file is not None
                content = file.read()
                assert content == data_of(entry.content)
                assert crc32 == zlib.crc32(content)
    assert_same_spans(blob, result.spans)


def assert_same_spans(blob: Path, spans: LayerSpans) -> None:
    reference = scan(blob, spans.span_size, blob.with_suffix(".reference"))
    assert Digest.of(reference.windows.read_bytes()) == Digest.of(spans.windows.read_bytes())
    assert comparable(reference, spans) == spans


def comparable(reference: LayerSpans, spans: LayerSpans) -> LayerSpans:
    toc = tuple(dataclasses.replace(entry, pax=tuple(sorted(entry.pax))) for entry in reference.toc)
    return dataclasses.replace(reference, windows=spans.windows, toc=toc)


# Streams.


@pytest.mark.parametrize("name", STREAMS)
@pytest.mark.parametrize("before", [0, 700_001], ids=["first", "after noise"])
def test_stream_of_any_kind(name: str, before: int, spool: Spool, tmp_path: Path) -> None:
    raw, data = STREAMS[name]
    entries = [
        Entry("a", content=spool.region(noise(before))),
        Entry("b", content=spool.member(raw, data)),
        Entry("c", content=spool.member(raw, data)),
        Entry("d", content=Inline(b"text" * 100)),
    ]
    blob, result = packed(tmp_path, entries)
    assert_read_back(blob, result, entries)


def test_streams_are_copied_verbatim(spool: Spool, tmp_path: Path) -> None:
    """But for one bit, that of the last block, and what is unused of the last byte."""
    raw, data = STREAMS["giant blocks"]
    blob, _ = packed(tmp_path, [Entry("a", content=spool.member(raw, data))])
    layer = blob.read_bytes()
    start = layer.index(raw[1:1000]) - 1
    changed = [one ^ other for one, other in zip(raw, layer[start:], strict=False) if one != other]
    assert [mask.bit_count() for mask in changed] == [1]


@pytest.fixture(scope="session")
def everything(tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, tuple[Path, PackedLayer]]:
    """A few layers that together hold every stream and every kind of entry."""
    folder = tmp_path_factory.mktemp("layers")
    spool = Spool(folder / "spool")
    zoo = [Entry(f"{number:03}", content=spool.member(*STREAMS[name])) for number, name in enumerate(STREAMS)]
    odd = odd_entries(spool)
    small = [Entry(f"small/{number:05}", content=Inline(b"%d" % number)) for number in range(3000)]
    noisy = [
        Entry(f"{size}", content=spool.region(noise(size))) for size in (1, 65_535, MIB - 1, MIB, MIB + 1, 3 * MIB)
    ]
    sets = {"zoo": zoo, "odd": odd, "small": small, "noisy": noisy, "nothing": []}
    return {name: packed(folder, entries, name=name) for name, entries in sets.items()}


@pytest.fixture(scope="session")
def peers(everything: Mapping[str, tuple[Path, PackedLayer]], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The ztocs that the real module makes of these layers."""
    folder = tmp_path_factory.mktemp("ztocs")
    layers = [blob for blob, _ in everything.values()]
    subprocess.run([require("soci-peer"), "ztocs", "-span-size", str(SPAN), folder, *layers], check=True, timeout=120)
    return folder


@pytest.mark.parametrize("name", ["zoo", "odd", "small", "noisy", "nothing"])
def test_the_ztoc_is_that_of_soci(
    name: str, everything: Mapping[str, tuple[Path, PackedLayer]], peers: Path, tmp_path: Path
) -> None:
    blob, result = everything[name]
    with (tmp_path / "ztoc").open("wb") as out:
        ztoc.write(result.spans, out)
    assert (tmp_path / "ztoc").read_bytes() == (peers / blob.name).read_bytes()
    subprocess.run([require("soci-peer"), "check", tmp_path / "ztoc", blob], check=True, timeout=60)
    subprocess.run(["gzip", "-t", blob], check=True)
    assert_same_spans(blob, result.spans)


# Entries.


def odd_entries(spool: Spool) -> list[Entry]:
    long = "/".join(["a-directory-with-a-name"] * 12)
    return [
        Entry("empty"),
        Entry("dir", Kind.DIR, 0o755),
        Entry("tmp", Kind.DIR, 0o1777),
        Entry("sudo", mode=0o4755, content=Inline(b"su")),
        Entry("staff", mode=0o2755, content=spool.region(prose(70_000))),
        Entry("secret", mode=0o600, content=Inline(b"s")),
        Entry("link", Kind.SYMLINK, 0o777, linkname="dir/../empty"),
        Entry("far", Kind.SYMLINK, 0o777, linkname=long + "/target"),
        Entry("unicode-link", Kind.SYMLINK, 0o777, linkname="größe/日本語"),
        Entry("größe-日本語-🚀", content=spool.member(*STREAMS["level 6"])),
        Entry("grüße", Kind.DIR, 0o755),
        *(Entry("n" * size, content=Inline(b"name")) for size in (98, 99, 100, 101, 255)),
        *(Entry("d" * size, Kind.DIR, 0o755) for size in (98, 99, 100, 101)),
        *(Entry(f"t{size}", Kind.SYMLINK, 0o777, linkname="t" * size) for size in (99, 100, 101)),
        # The 100 bytes of the name field end in the middle of a character, and at a slash.
        Entry("x" * 99 + "é" * 20, content=Inline(b"cut")),
        Entry("y" * 99 + "/file", content=Inline(b"below")),
        Entry(long, Kind.DIR, 0o755),
        Entry(long + "/file", content=spool.member(*STREAMS["zeros"])),
        Entry('quote"s and, commas\tand = signs', content=Inline(b"!")),
    ]


def test_odd_entries(spool: Spool, tmp_path: Path) -> None:
    entries = odd_entries(spool)
    blob, result = packed(tmp_path, entries)
    assert_read_back(blob, result, entries)


@pytest.mark.parametrize(
    "size", [0, 1, 511, 512, 513, 65_535, 65_536, MIB - 512, MIB - 511, MIB - 1, MIB, MIB + 1, 2 * MIB]
)
@pytest.mark.parametrize("make", [noise, prose], ids=["noise", "prose"])
def test_plain_bytes_of_any_length(size: int, make: Callable[[int], bytes], spool: Spool, tmp_path: Path) -> None:
    data = make(size)
    entries = [Entry("inline", content=Inline(data)), Entry("region", content=spool.region(data))]
    blob, result = packed(tmp_path, entries)
    assert_read_back(blob, result, entries)


def test_a_size_that_ustar_cannot_say_takes_a_record() -> None:
    entry = Entry("huge", content=Region(Path("huge"), 0, 8 << 30))
    info = tarfile.TarInfo.frombuf(tar.header(entry)[-512:], "utf-8", "strict")
    assert info.size == 0
    assert b"19 size=8589934592\n" in tar.header(entry)
    below = Entry("large", content=Region(Path("large"), 0, (8 << 30) - 1))
    assert len(tar.header(below)) == 512
    assert tarfile.TarInfo.frombuf(tar.header(below), "utf-8", "strict").size == (8 << 30) - 1


SIZES = st.sampled_from(
    [0, 1, 511, 512, 513, 32_767, 32_768, 32_769, 65_535, 65_536, 262_143, 262_144, 524_287, 524_289, MIB]
)
PARTS = st.text(st.characters(exclude_categories=("Cs", "Cc"), exclude_characters="/"), min_size=1, max_size=60)
NAMES = st.lists(PARTS.filter(lambda part: part not in (".", "..")), min_size=1, max_size=3).map("/".join)


@st.composite
def recipes(draw: st.DrawFn) -> list[tuple[str, str, int, str]]:
    names = sorted(draw(st.sets(NAMES, max_size=7)))
    how = st.sampled_from(["inline", "region", "dir", "link", *STREAMS])
    modes = st.sampled_from([0o644, 0o755, 0o4755, 0o1777, 0o600])
    return [(name, draw(how), draw(SIZES) + draw(st.integers(0, 3)), oct(draw(modes))) for name in names]


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(recipe=recipes(), span=st.sampled_from([1, 4096, 100_000, 4 * MIB]), seed=st.integers(0, 3))
def test_any_entries(recipe: list[tuple[str, str, int, str]], span: int, seed: int, tmp_path: Path) -> None:
    spool = Spool(tmp_path / "spool")
    entries = []
    for name, how, size, mode in recipe:
        data = (noise if seed % 2 else prose)(size, seed)
        content: Content = Inline(data) if how == "inline" else spool.region(data)
        if how in STREAMS:
            content = spool.member(*STREAMS[how])
        if how == "dir":
            entries.append(Entry(name, Kind.DIR, int(mode, 8)))
        elif how == "link":
            entries.append(Entry(name, Kind.SYMLINK, 0o777, linkname=name * (seed + 1)))
        else:
            entries.append(Entry(name, mode=int(mode, 8), content=content))
    blob, result = packed(tmp_path, entries, span)
    assert_read_back(blob, result, entries)


# Engines: which library inflates, or calls libdeflate, never shows.


def both_engines() -> tuple[Engine, Engine]:
    ng, plain = engines.zlib_ng(), engines.libz()
    if ng is None or plain is None:
        pytest.skip("one of zlib-ng and the system's zlib is missing")
    return ng, plain


def test_engines_agree_about_every_stream(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry(f"{number:03}", content=spool.member(*STREAMS[name])) for number, name in enumerate(STREAMS)]
    found = []
    for engine in both_engines():
        monkeypatch.setattr(member, "engine", lambda engine=engine: engine)
        _, result = packed(tmp_path, entries, 4096)
        spans = dataclasses.replace(result.spans, windows=Path())
        windows = Digest.of(result.spans.windows.read_bytes())
        found.append((windows, dataclasses.replace(result, spans=spans)))
    assert found[0] == found[1]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from(["level 6", "Z_FIXED", "partial flushes", "empty fixed blocks", "stored 65536", "level 0"]),
    flips=st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 7)), min_size=1, max_size=3),
    cut=st.none() | st.floats(0, 1),
)
def test_engines_agree_about_damage(
    name: str, flips: list[tuple[float, int]], cut: float | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    raw, data = STREAMS[name]
    damaged = bytearray(raw)
    for place, bit in flips:
        damaged[int(place * len(raw))] ^= 1 << bit
    if cut is not None:
        del damaged[int(cut * len(raw)) :]
    (tmp_path / "damaged").write_bytes(damaged)
    content = Member(tmp_path / "damaged", 0, len(damaged), len(data), zlib.crc32(data), "damaged")
    outcomes: list[Digest | None] = []
    for engine in both_engines():
        monkeypatch.setattr(member, "engine", lambda engine=engine: engine)
        try:
            blob, result = packed(tmp_path, [Entry("a", content=content)])
        except HostileInputError:
            outcomes.append(None)
        else:
            outcomes.append(result.digest)
            assert_read_back(blob, result, [Entry("a", content=Inline(data))])
    assert outcomes[0] == outcomes[1]


def test_libdeflate_by_its_wheel_or_its_library(spool: Spool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [Entry(str(size), content=Inline(prose(size))) for size in (1, 1000, MIB, 3 * MIB)]
    _, native = packed(tmp_path, entries)
    monkeypatch.setattr(engines, "_native_libdeflate", lambda: None)
    assert packed(tmp_path, entries)[1] == native


def test_another_libdeflate_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    engines._check_compressor.cache_clear()
    monkeypatch.setattr(engines, "_SAMPLE", "0" * 64)
    with pytest.raises(ToolError, match="other bytes than the image format") as caught:
        packed(tmp_path, [])
    assert caught.value.hint
    monkeypatch.undo()
    packed(tmp_path, [])


def test_a_machine_without_any_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(engines, "zlib_ng", lambda: None)
    monkeypatch.setattr(engines, "libz", lambda: None)
    with pytest.raises(ToolError, match="no library to inflate with"):
        engines.engine.__wrapped__()


def test_the_bytes_are_those_of_the_format(spool: Spool, tmp_path: Path) -> None:
    """A golden digest: whoever moves a byte of every image sees it here first. No stream is from this machine's zlib."""
    streams = ("stored 65536", "3 nine-bit literals, two blocks", "empty fixed blocks", "empty stored")
    entries = [
        Entry("dir", Kind.DIR, 0o755),
        *(Entry(f"dir/{number}", content=spool.member(*STREAMS[name])) for number, name in enumerate(streams)),
        Entry("größe/" + "n" * 120, mode=0o755, content=Inline(engines.sample() * 5)),
        *(Entry("l" * size, Kind.SYMLINK, 0o777, linkname="t" * size) for size in (99, 100, 101)),
        Entry("noise", mode=0o4755, content=spool.region(noise(MIB + 1))),
    ]
    _, result = packed(tmp_path, entries)
    assert (str(result.digest), str(result.diff_id)) == GOLDEN


GOLDEN = (
    "sha256:1b02d07499882c2d9d810706dab2f9faf4e72f6730aa351e44fdb5a2311fd519",
    "sha256:f65cdd25312d7b8ae0e3ea99d860da49bf1d60020086d27f40c630b63e01fa4a",
)


# Lies.


def refusal(tmp_path: Path, content: Content) -> str:
    with pytest.raises(HostileInputError) as caught:
        packed(tmp_path, [Entry("a", content=Inline(b"before")), Entry("b", content=content), Entry("c")])
    assert caught.value.hint
    return str(caught.value)


TEXT = prose(100_000)
RAW = deflate(TEXT)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"size": len(TEXT) - 1}, f"demo.whl: member: inflates to more than the {len(TEXT) - 1} bytes"),
        ({"size": len(TEXT) + 1}, f"inflates to {len(TEXT)} bytes, not to the {len(TEXT) + 1}"),
        ({"size": 0}, "inflates to more than the 0 bytes"),
        ({"crc32": 7}, "its CRC-32 is .*, not 00000007 as the archive says"),
        ({"recorded": ("sha256", "00")}, "its sha256 is .*, not 00 as was recorded"),
        ({"recorded": ("sha512", "00")}, "its sha512 is .*, not 00 as was recorded"),
        ({"compressed_size": len(RAW) - 1}, "inflates to .* bytes, not to the 100000"),
        ({"compressed_size": 0}, "inflates to 0 bytes"),
        ({"compressed_size": len(RAW) + 3}, "3 bytes follow its compressed data"),
        ({"compressed_size": len(RAW) + 400_000}, "400000 bytes follow its compressed data|the file ends inside"),
    ],
)
def test_a_member_that_lies(change: Mapping[str, object], message: str, spool: Spool, tmp_path: Path) -> None:
    content = spool.member(RAW, TEXT)
    with spool.path.open("ab") as file:
        file.write(bytes(10))
    lying = dataclasses.replace(content, **change)  # type: ignore[arg-type]
    error = refusal(tmp_path, lying)
    assert error.startswith("demo.whl: member: ")
    with pytest.raises(HostileInputError, match=message):
        raise HostileInputError(error)


def test_a_file_that_ends_inside_of_a_member(spool: Spool, tmp_path: Path) -> None:
    content = spool.member(stored(noise(600_000)), noise(600_000))
    with spool.path.open("r+b") as file:
        file.truncate(content.offset + 300_000)
    assert "the file ends inside of its data" in refusal(tmp_path, content)


def test_a_region_that_lies(spool: Spool, tmp_path: Path) -> None:
    content = spool.region(TEXT)
    assert "its CRC-32 is" in refusal(tmp_path, dataclasses.replace(content, crc32=0))
    assert "the file ends inside" in refusal(tmp_path, dataclasses.replace(content, size=content.size + 1))
    recorded = dataclasses.replace(content, crc32=None, recorded=("sha256", "00"))
    assert "region: its sha256 is" in refusal(tmp_path, recorded)


def test_a_stream_may_not_use_what_lies_before_it(spool: Spool, tmp_path: Path) -> None:
    """In a layer there are bytes before the stream that it was not made for."""
    dictionary = prose(20_000)
    compressor = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=dictionary)
    raw = compressor.compress(dictionary) + compressor.flush()
    assert "its compressed data is damaged" in refusal(tmp_path, spool.member(raw, dictionary))
    entries = [
        Entry("a", content=spool.member(deflate(dictionary), dictionary)),
        Entry("b", content=spool.member(raw, dictionary)),
    ]
    with pytest.raises(HostileInputError, match="its compressed data is damaged"):
        packed(tmp_path, entries)


@pytest.mark.parametrize(
    "raw", [b"", b"\x07", b"\xff" * 20, b"\x00", b"\x01\x00\x00\x00\x00", bytes(1000), RAW[:-10], RAW[1:]]
)
def test_no_stream_at_all(raw: bytes, spool: Spool, tmp_path: Path) -> None:
    assert "demo.whl: member: " in refusal(tmp_path, spool.member(raw, TEXT))


def test_small_contents_are_checked_when_they_are_read(spool: Spool) -> None:
    good = spool.member(RAW, TEXT)
    assert read(good, MIB) == TEXT
    assert read(Inline(b"x"), 1) == b"x"
    for change, message in (
        ({"size": len(TEXT) - 1}, "another size or CRC-32"),
        ({"size": len(TEXT) + 1}, "another size or CRC-32"),
        ({"crc32": 0}, "another size or CRC-32"),
        ({"compressed_size": len(RAW) - 1}, "cut off|another size"),
        ({"compressed_size": len(RAW) + 1}, "follow its compressed data|cut off|damaged"),
        ({"offset": good.offset - 3}, "damaged|cut off|another size|follow"),
        ({"compressed_size": 2 * MIB}, "larger than any file of its kind"),
        ({"size": 2 * MIB}, "larger than any file of its kind"),
    ):
        with spool.path.open("ab") as file:
            file.write(b"more")
        with pytest.raises(HostileInputError, match=message):
            read(dataclasses.replace(good, **change), MIB)  # type: ignore[arg-type]
    region = spool.region(TEXT)
    assert read(region, MIB) == TEXT
    with pytest.raises(HostileInputError, match="another size or CRC-32"):
        read(dataclasses.replace(region, size=region.size + 1), MIB)


# Memory.

HUNGRY = """
import sys
from pathlib import Path
from builder.layers.pack import pack
from builder.layers.tar import Entry, Member, Region
folder, packed_size, size, crc32 = Path(sys.argv[1]), *map(int, sys.argv[2:])
def most():  # getrusage would count the process that this one was forked from
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmHWM:")[1].split()[0])

before = most()
entries = [
    Entry("region", content=Region(folder / "sparse", 0, size)),
    Entry("member", content=Member(folder / "raw", 0, packed_size, size, crc32, "member")),
]
pack(entries, folder / "blob", folder / "windows", 4 << 20)
print(before, most())
"""


def test_memory_does_not_grow_with_content(tmp_path: Path) -> None:
    size = 300 * MIB
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(size)
    compressor, crc32, piece = zlib.compressobj(1, zlib.DEFLATED, -15), 0, bytes(MIB)
    with (tmp_path / "raw").open("wb") as file:
        for _ in range(size // MIB):
            file.write(compressor.compress(piece))
            crc32 = zlib.crc32(piece, crc32)
        file.write(compressor.flush())
    packed_size = (tmp_path / "raw").stat().st_size
    command = [sys.executable, "-c", HUNGRY, str(tmp_path), str(packed_size), str(size), str(crc32)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    before, after = (int(word) / 1024 for word in done.stdout.split())
    assert after < 120
    assert after - before < 40
    (tmp_path / "sparse").unlink()


# Unpacking, which the interpreter of the image needs.


def test_unpacked_entries_are_files(spool: Spool, tmp_path: Path) -> None:
    entries = [
        Entry("usr", Kind.DIR, 0o755),
        Entry("usr/bin/tool", mode=0o4755, content=spool.member(*STREAMS["sync flushes"])),
        Entry("usr/bin/link", Kind.SYMLINK, 0o777, linkname="/etc/passwd"),
        Entry("usr/lib/up", Kind.SYMLINK, 0o777, linkname="../../../../etc"),
        Entry("usr/lib/near", Kind.SYMLINK, 0o777, linkname="../bin/tool"),
        Entry("tmp", Kind.DIR, 0o1777),
        Entry("tmp/region", mode=0o600, content=spool.region(prose(3 * MIB))),
    ]
    unpack(entries, tmp_path / "root")
    root = tmp_path / "root"
    assert (root / "usr/bin/tool").read_bytes() == STREAMS["sync flushes"][1]
    assert (root / "usr/bin/tool").stat().st_mode & 0o7777 == 0o755
    assert (root / "tmp").stat().st_mode & 0o7777 == 0o1777
    assert (root / "usr/bin/link").readlink() == Path("../../etc/passwd")
    assert (root / "usr/lib/up").readlink() == Path("../../etc")
    assert (root / "usr/lib/near").readlink() == Path("../bin/tool")
    assert (root / "tmp/region").read_bytes() == prose(3 * MIB)
    with pytest.raises(ValueError, match="not empty"):
        unpack(entries, root)


@pytest.mark.parametrize(
    ("entries", "message"),
    [
        ([Entry("a", Kind.SYMLINK, linkname="/etc"), Entry("a/passwd")], "lies below a, which is no directory"),
        ([Entry("a"), Entry("a/b/c")], "which is no directory"),
        ([Entry("a"), Entry("a")], "comes twice"),
        ([Entry("a", Kind.SYMLINK, linkname="b"), Entry("a")], "comes twice"),
        ([Entry("a/b"), Entry("a")], "comes twice"),
    ],
)
def test_nothing_is_written_through_a_link(entries: list[Entry], message: str, tmp_path: Path) -> None:
    with pytest.raises(HostileInputError, match=message):
        unpack(entries, tmp_path / "root")


def test_unpacking_checks_content(spool: Spool, tmp_path: Path) -> None:
    content = spool.member(RAW, TEXT)
    lies: list[Content] = [
        dataclasses.replace(content, size=5),
        dataclasses.replace(content, size=len(TEXT) + 5),
        dataclasses.replace(content, crc32=5),
        dataclasses.replace(content, compressed_size=len(RAW) - 5),
        dataclasses.replace(content, compressed_size=len(RAW) + 5),
        dataclasses.replace(content, offset=content.offset + 5),
        Region(spool.path, 0, 10 * MIB),
    ]
    for number, lie in enumerate(lies):
        with pytest.raises(HostileInputError):
            unpack([Entry("a", content=lie)], tmp_path / f"root{number}")


def test_contents_compare_by_their_bytes(spool: Spool) -> None:
    contents: list[Content] = [
        Inline(TEXT),
        spool.region(TEXT),
        spool.member(RAW, TEXT),
        spool.member(deflate(TEXT, 1), TEXT),
    ]
    assert all(same_content(one, other) for one in contents for other in contents)
    other = TEXT[:-1] + b"!"
    assert not any(same_content(one, Inline(other)) for one in contents)
    assert not any(same_content(one, spool.member(deflate(other), other)) for one in contents)
    assert not same_content(Inline(TEXT), Inline(TEXT[:-1]))


def test_errors_are_for_users() -> None:
    assert issubclass(HostileInputError, BuilderError)
