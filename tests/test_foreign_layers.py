"""Layers that others made: their ztocs are the real tool's, to the byte, whoever wrote the tar and whatever compressed it."""

from __future__ import annotations

import gzip as stdgzip
import hashlib
import io
import shutil
import subprocess
import sys
import tarfile
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

if sys.version_info >= (3, 14):
    from compression.zstd import CompressionParameter, ZstdCompressor, compress
else:
    from backports.zstd import CompressionParameter, ZstdCompressor, compress
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_soci import LAYERS, SPAN, gzip, many, member, noise, odd_names, packed, peer, prose, tar

from builder.layers.foreign import Scanned, scan
from builder.layers.spans import WINDOW
from builder.layers.stream import LayerError
from builder.layers.untar import TarReader
from builder.soci import read, ztoc
from builder.soci.check import ZtocCheck


def gnu(members: list[tuple[tarfile.TarInfo, bytes]]) -> bytes:
    """A GNU tar, which fills its last record: 10 kB of zeros and not two blocks."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def program(*argv: str, data: bytes) -> bytes:
    """What a compressor makes of it."""
    if shutil.which(argv[0]) is None:
        pytest.skip(f"no {argv[0]}")
    return subprocess.run(argv, input=data, capture_output=True, check=True).stdout


def xattrs() -> list[tuple[tarfile.TarInfo, bytes]]:
    """What files of images have: capabilities are binary, names may be of any encoding, times have fractions."""
    capability = b"\x01\x00\x00\x02\x00\x20\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00\x00".decode("latin-1")
    return [
        member("bin/ping", noise(50_000), pax_headers={"SCHILY.xattr.security.capability": capability}),
        member("later", b"x", mtime=1.5),
        member("exact", b"x", pax_headers={"mtime": "1700000000.123456789"}),
        member("before", b"x", pax_headers={"mtime": "-1.25"}),
        member("round", b"x", pax_headers={"mtime": "1700000000.120000000000"}),
        member("dir/", kind=tarfile.DIRTYPE),
    ]


def latin() -> bytes:
    """A name that is no UTF-8."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.GNU_FORMAT, encoding="latin-1") as archive:
        for info, content in [member("usr/share/Ångström", prose(90_000)), member("ü" * 120, b"long")]:
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def hardlink_with_size() -> bytes:
    """Old archives give links the size of what they link to."""
    data = bytearray(
        tar([member("a", prose(5000)), member("b", kind=tarfile.LNKTYPE, linkname="a"), member("c", b"c")])
    )
    at = data.index(b"b\0", 5632)
    data[at + 124 : at + 136] = b"%011o\0" % 5000
    data[at + 148 : at + 156] = b"        "
    data[at + 148 : at + 156] = b"%06o\0 " % sum(data[at : at + 512])
    return bytes(data)


def members_of(data: bytes, size: int) -> bytes:
    """Many gzip members, as estargz and bgzip write them."""
    return b"".join(stdgzip.compress(data[start : start + size], mtime=0) for start in range(0, len(data), size))


MORE: dict[str, Callable[[], bytes]] = {
    "gnu": lambda: gzip(gnu(odd_names())),
    "gnu-many": lambda: gzip(gnu(many(500)), level=9),
    "xattrs": lambda: gzip(tar(xattrs())),
    "latin": lambda: gzip(latin()),
    "hardlink-size": lambda: gzip(hardlink_with_size()),
    "members": lambda: members_of(tar(odd_names()), 10_000),
    "members-tiny": lambda: members_of(tar(many(60)), 100),
    "members-exact": lambda: members_of(tar([member("a", noise(4 * SPAN))]), SPAN),
    "named": lambda: _named(tar(odd_names())),
    "program-gzip": lambda: program("gzip", "-1", "-n", data=gnu(odd_names())),
    "program-rsyncable": lambda: program("gzip", "--rsyncable", data=tar(many(900))),
    "program-pigz": lambda: program("pigz", "-c", "-p", "2", "-b", "128", data=tar([member("a", prose(3 << 20))])),
    "trailing-zeros": lambda: gzip(tar(odd_names()) + bytes(1 << 20)),
    "no-members": lambda: gzip(bytes(10_240)),
}


def _named(data: bytes) -> bytes:
    out = io.BytesIO()
    with stdgzip.GzipFile("a name.tar", "wb", 6, out, mtime=1) as file:
        file.write(data)
    return out.getvalue()


ALL = {**LAYERS, **MORE}


@pytest.fixture(scope="module")
def layers(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("foreign")
    for name, make in ALL.items():
        try:
            (folder / name).write_bytes(make())
        except pytest.skip.Exception:
            continue
    return folder


@pytest.fixture(scope="module", params=[SPAN, 4 << 20, 1], ids=["64KiB", "4MiB", "every-block"])
def expected(
    request: pytest.FixtureRequest, layers: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path]:
    folder = tmp_path_factory.mktemp("ztocs")
    peer("ztocs", "-span-size", request.param, folder, *sorted(layers.iterdir()))
    return request.param, folder


def scanned(blob: bytes, compression: str, windows: Path, span_size: int = SPAN) -> Scanned:
    return scan(io.BytesIO(blob), compression, windows, span_size)


@pytest.mark.parametrize("name", ALL)
def test_ztoc_is_the_real_one(name: str, layers: Path, expected: tuple[int, Path], tmp_path: Path) -> None:
    span_size, folder = expected
    if not (layers / name).exists():
        pytest.skip("its compressor is missing")
    blob = (layers / name).read_bytes()
    found = scanned(blob, "gzip", tmp_path / "windows", span_size)
    assert found.spans, found.why_whole
    assert packed(found.spans) == (folder / name).read_bytes()
    assert (found.figures.blob_size, found.figures.diff_id.hex) == (len(blob), _sha256(_inflated(blob)))


def _inflated(blob: bytes) -> bytes:
    return stdgzip.decompress(blob)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("span_size", [SPAN, 1000, 4 << 20])
def test_layers_without_compression(span_size: int, tmp_path: Path) -> None:
    tars = {"odd": tar(odd_names()), "gnu": gnu(many(300)), "exact": tar([member("a", noise(4 * SPAN - 1536))])}
    for name, data in tars.items():
        (tmp_path / name).write_bytes(data)
    (tmp_path / "out").mkdir()
    peer(
        "ztocs",
        "-compression",
        "uncompressed",
        "-span-size",
        span_size,
        tmp_path / "out",
        *map(tmp_path.joinpath, tars),
    )
    for name, data in tars.items():
        found = scanned(data, "", tmp_path / "windows", span_size)
        assert found.spans
        assert packed(found.spans) == (tmp_path / "out" / name).read_bytes()
        decoded = read.decode(packed(found.spans))
        assert (decoded.plain, len(decoded.checkpoints)) == (True, -(-len(data) // span_size))


@pytest.mark.parametrize("name", [*MORE])
def test_our_own_check_agrees(name: str, layers: Path, tmp_path: Path) -> None:
    if not (layers / name).exists():
        pytest.skip("its compressor is missing")
    spans = scanned((layers / name).read_bytes(), "gzip", tmp_path / "windows").spans
    assert spans
    check = ZtocCheck(read.decode(packed(spans)))
    with (layers / name).open("rb") as blob, TarReader(blob, check) as reader:
        while found := reader.next():
            check.member(found.entry)
        check.finish(reader.figures())
    assert check.faults == []
    assert list(read.decode(packed(spans)).toc()) == list(spans.toc)


def test_zstd_is_read_and_never_lazy(tmp_path: Path) -> None:
    data = tar(odd_names())
    skippable = b"\x50\x2a\x4d\x18" + (7).to_bytes(4, "little") + bytes(7)
    for blob in (
        compress(data),
        skippable + compress(data[:5000]) + skippable + compress(data[5000:]),
    ):
        found = scanned(blob, "zstd", tmp_path / "windows")
        assert found.spans is None
        assert "zstd" in found.why_whole
        assert found.figures.diff_id.hex == _sha256(data)
        assert [entry.name for entry in found.entries] == [
            entry.name for entry in scanned(data, "", tmp_path / "windows").entries
        ]


def test_what_no_ztoc_can_say(tmp_path: Path) -> None:
    """The real tool refuses the first two; nobody could mount what it makes of the third."""
    with_global = io.BytesIO()
    with tarfile.open(
        fileobj=with_global, mode="w", format=tarfile.PAX_FORMAT, pax_headers={"comment": "x"}
    ) as archive:
        archive.addfile(member("a")[0])
    late = tar([member("a", pax_headers={"mtime": "999999999999"})])
    compressor = zlib.compressobj(6, zlib.DEFLATED, 31)
    empty_first = (
        compressor.flush(zlib.Z_FULL_FLUSH) + compressor.compress(tar([member("a", b"x")])) + compressor.flush()
    )
    for blob, words in (
        (gzip(with_global.getvalue()), "global"),
        (gzip(late), "calendars"),
        (empty_first, "empty blocks"),
    ):
        found = scanned(blob, "gzip", tmp_path / "windows")
        assert found.spans is None
        assert words in found.why_whole


def test_compression_is_what_the_media_type_says(tmp_path: Path) -> None:
    data = tar(odd_names())
    blobs = {"": data, "gzip": gzip(data), "zstd": compress(data)}
    for says in blobs:
        for is_, blob in blobs.items():
            if says == is_:
                assert scanned(blob, says, tmp_path / "windows").entries
            else:
                with pytest.raises(LayerError, match="media type says"):
                    scanned(blob, says, tmp_path / "windows")


def test_a_zstd_window_beyond_reason_is_refused(tmp_path: Path) -> None:
    options = {int(CompressionParameter.window_log): 30}
    stream = ZstdCompressor(options=options)
    blob = stream.compress(tar([member("a", prose(100_000))])) + stream.flush()
    with pytest.raises(LayerError, match="damaged"):
        scanned(blob, "zstd", tmp_path / "windows")


def test_memory_does_not_grow_with_content(tmp_path: Path) -> None:
    data = tar([member("zeros", bytes(1 << 26))])
    blobs = {"gzip": gzip(data), "zstd": compress(data)}
    del data
    for compression, blob in blobs.items():
        tracemalloc.start()
        scanned(blob, compression, tmp_path / "windows", 4 << 20)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 8 << 20, compression
    assert (tmp_path / "windows").stat().st_size % WINDOW == 0


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_changed_it_is_read_or_refused(tmp_path: Path, data: st.DataObject) -> None:
    compression = data.draw(st.sampled_from(["gzip", "zstd", ""]))
    plain = tar(odd_names()[:8])
    packed_as = {"gzip": gzip(plain), "zstd": compress(plain), "": plain}
    blob = bytearray(packed_as[compression])
    for _ in range(data.draw(st.integers(1, 4))):
        blob[data.draw(st.integers(0, len(blob) - 1))] = data.draw(st.integers(0, 255))
    del blob[data.draw(st.integers(0, len(blob))) :]
    try:
        found = scanned(bytes(blob), compression, tmp_path / "windows")
    except LayerError:
        return
    if found.spans:
        ztoc.write(found.spans, io.BytesIO())
