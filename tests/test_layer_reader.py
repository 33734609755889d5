"""Foreign layers: read as tarfile reads them, refused where they lie, in bounded memory, and compared member by member."""

from __future__ import annotations

import gzip
import io
import random
import tarfile
import tracemalloc
import zlib
from contextlib import AbstractContextManager, suppress
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from zran import TYPES

from builder.layers.compare import Compared, Difference, compare
from builder.layers.pack import pack
from builder.layers.spans import TocEntry
from builder.layers.stream import LayerError
from builder.layers.tar import Entry, Inline
from builder.layers.untar import TarReader, normal, readable
from builder.soci import read
from builder.soci.ztoc import write


def info(name: str, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for key, value in fields.items():
        setattr(made, key, value)
    return made


def tar(*members: tuple[tarfile.TarInfo, bytes], form: int = tarfile.PAX_FORMAT) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=form) as archive:
        for member, content in members:
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return out.getvalue()


MEMBERS = [
    (info("dir", type=tarfile.DIRTYPE, mode=0o755), b""),
    (info("dir/file", mode=0o4755, uid=1000, gid=7, uname="me", gname="us", mtime=99), b"content" * 1000),
    (info("dir/" + "long" * 60, mtime=1.5), b"x"),
    (info("dir/ünï", uid=3_000_000), b""),
    (info("link", type=tarfile.SYMTYPE, linkname="a" * 150), b""),
    (info("hard", type=tarfile.LNKTYPE, linkname="dir/file"), b""),
    (info("device", type=tarfile.CHRTYPE, devmajor=1, devminor=3), b""),
    (info("fifo", type=tarfile.FIFOTYPE), b""),
    (info("empty"), b""),
    (info("block", type=tarfile.REGTYPE), bytes(512)),
]


def read_all(blob: bytes) -> list[tuple[TocEntry, bytes]]:
    with TarReader(io.BytesIO(blob)) as reader:
        found = []
        while member := reader.next():
            found.append((member.entry, b"".join(map(bytes, reader.content()))))
        figures = reader.figures()
        assert figures.blob_size == len(blob)
        return found


@pytest.mark.parametrize("form", [tarfile.PAX_FORMAT, tarfile.GNU_FORMAT])
@pytest.mark.parametrize("packed", ["gzip", "plain", "members"])
def test_members_are_those_of_tarfile(form: int, packed: str) -> None:
    plain = tar(*MEMBERS, form=form)
    blob = {
        "gzip": gzip.compress(plain),
        "plain": plain,
        "members": b"".join(gzip.compress(plain[start : start + 700]) for start in range(0, len(plain), 700)),
    }[packed]
    found = read_all(blob)
    with tarfile.open(fileobj=io.BytesIO(plain)) as archive:
        expected = archive.getmembers()
    assert len(found) == len(expected)
    for (entry, content), member in zip(found, expected, strict=True):
        assert entry.name.rstrip("/") == member.name
        assert entry.type == TYPES[member.type]
        for key in ("mode", "uid", "gid", "uname", "gname", "linkname", "size", "devmajor", "devminor"):
            assert getattr(entry, key) == getattr(member, key), key
        assert entry.mtime == int(member.mtime)
        assert entry.offset == member.offset_data
        assert content == plain[member.offset_data : member.offset_data + member.size]


def test_gzip_headers_with_everything() -> None:
    plain = tar(*MEMBERS)
    deflated = zlib.compressobj(6, wbits=-15)
    body = deflated.compress(plain) + deflated.flush()
    trailer = zlib.crc32(plain).to_bytes(4, "little") + len(plain).to_bytes(4, "little")
    head = b"\x1f\x8b\x08\x1e" + bytes(6) + b"\x03\x00abc" + b"name\0" + b"comment\0" + b"\x12\x34"
    assert len(read_all(head + body + trailer)) == len(MEMBERS)
    for damaged, words in (
        (head + body + trailer[:-1] + b"\x99", "another size"),
        (head + body + b"\x00" * 8, "another CRC-32"),
        (head + body + trailer + bytes(20), "no gzip member follows"),
        (head[:20], "cut off"),
        (b"\x1f\x8b\x07" + head[3:] + body, "RFC 1952"),
        (b"\x1f\x8b\x08\xff" + head[4:] + body, "RFC 1952"),
        (b"\x1f\x8b\x08\x08" + bytes(6) + b"n" * 70_000, "longer than"),
    ):
        with pytest.raises(LayerError, match=words):
            read_all(damaged)


def patched(plain: bytes, at: int, data: bytes) -> bytes:
    """Other bytes in a header, with its checksum made right."""
    block = bytearray(plain)
    block[at : at + len(data)] = data
    start = at // 512 * 512
    block[start + 148 : start + 156] = b"        "
    block[start + 148 : start + 156] = b"%06o\0 " % sum(block[start : start + 512])
    return bytes(block)


def pax(records: bytes) -> bytes:
    """A file whose pax header says this."""
    plain = tar((info("x", pax_headers={"comment": "a" * (len(records) - 12)}), b"content"))
    at = plain.index(b"comment=") - 3
    assert plain[at : at + 1].isdigit()
    size = len(records)
    body = records + bytes(-size % 512)
    head = patched(plain[:512], 124, b"%011o\0" % size)
    return head + body + plain[1024:]


@pytest.mark.parametrize(
    ("blob", "words"),
    [
        (b"", "empty"),
        (b"x" * 2000, "holds"),
        (tar(*MEMBERS)[:600], "cut off"),
        (tar(*MEMBERS)[:1500], "cut off"),
        (tar(*MEMBERS).rstrip(b"\0"), "cut off"),
        (tar((info("x"), b"abc")) + b"more" + bytes(508), "follow the end"),
        (tar((info("x"), b"abc"))[:1024], "does not end"),
        (patched(tar((info("x"), b"abc")), 124, b"77777777777\0"), "cut off"),
        (patched(tar((info("x"), b"abc")), 124, b"\xff" * 12), "the size -1"),
        (patched(tar((info("x"), b"abc")), 124, b"\x80" + b"\xff" * 11), "the size"),
        (patched(tar((info("x"), b"abc")), 124, b"00000000abc\0"), "holds"),
        (patched(tar((info("x"), b"abc")), 156, b"S"), "sparse"),
        (patched(tar((info("x"), b"abc")), 156, b"V"), "the type b'V'"),
        (patched(tar((info("x"), b"abc")), 0, b"x\0")[:140] + b"9" + tar((info("x"), b"abc"))[141:], "checksum"),
        (tar((info("x"), b"abc"))[:515] + b"\1" + tar((info("x"), b"abc"))[516:], "fill a block"),
        (pax(b"99 path=/etc/x\n"), "pax records"),
        (pax(b"15 path=/etc/x"), "pax records"),
        (pax(b"path=/etc/x\n"), "pax records"),
        (pax(b"0 path=/etc/xy\n"), "pax records"),
        (pax(b"-5 path=/etc/x\n"), "pax records"),
        (pax(b"14 size=-1000\n"), "size .* no number"),
        (pax(b"14 size=1e100\n"), "size .* no number"),
        (pax(b"26 size=9999999999999999\n\n"), "size .* no number"),
        (pax(b"25 size=9999999999999999\n"), "cut off"),
        (pax(b"28 size=9999999999999999999\n"), "the size"),
        (pax(b"13 uid=hello\n"), "uid .* no number"),
        (pax(b"13 mtime=nan\n"), "mtime .* no time"),
        (pax(b"22 GNU.sparse.major=1\n"), "sparse"),
        (patched(pax(b"13 uid=hello\n"), 124, b"%011o\0" % (2 << 20)), "more than"),
    ],
)
def test_lies_are_refused(blob: bytes, words: str) -> None:
    for form in (blob, gzip.compress(blob)) if blob else (blob,):
        with pytest.raises(LayerError, match=words):
            read_all(form)


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_whatever_is_changed_it_is_read_or_refused(data: st.DataObject) -> None:
    plain = bytearray(tar(*MEMBERS))
    packed = data.draw(st.booleans())
    blob = bytearray(gzip.compress(bytes(plain))) if packed else plain
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(blob) - 1))
        blob[at] = data.draw(st.integers(0, 255))
    del blob[data.draw(st.integers(0, len(blob))) :]
    with suppress(LayerError):
        read_all(bytes(blob))


def test_bombs_take_no_memory() -> None:
    """A gigabyte of zeros in a megabyte: one large file, and then behind the end of the archive."""
    zeros = 1 << 28
    head = tar((info("x"), b""))[:512]
    for start, wrong in ((patched(head, 124, b"%011o\0" % zeros), False), (bytes(1024), False)):
        packer = zlib.compressobj(9, wbits=31)
        blob = packer.compress(start)
        for _ in range(zeros >> 20):
            blob += packer.compress(bytes(1 << 20))
        blob += packer.compress(bytes(1024)) + packer.flush()
        assert len(blob) < 1 << 20
        tracemalloc.start()
        with TarReader(io.BytesIO(blob)) as reader:
            while reader.next():
                pass
            assert reader.figures().tar_size > zeros
        assert tracemalloc.get_traced_memory()[1] < 8 << 20
        tracemalloc.stop()
        assert not wrong


def opener(blob: bytes) -> AbstractContextManager[BinaryIO]:
    return io.BytesIO(blob)


def compared(one: bytes, other: bytes) -> Compared:
    return compare(lambda: opener(one), lambda: opener(other))


def test_the_first_difference() -> None:
    chance = random.Random(3)
    big = chance.randbytes(3 << 20)
    names = [f"f{number}" for number in range(5)]
    members = [(info(name), big if name == "f2" else name.encode()) for name in names]
    one = tar(*members)
    assert compared(one, one).difference is Difference.NONE
    packed = gzip.compress(one, 1, mtime=0)
    assert compared(packed, gzip.compress(one, 9, mtime=0)).difference is Difference.COMPRESSION
    for place in (0, 1, 511, 1 << 20, (3 << 20) - 1, *(chance.randrange(3 << 20) for _ in range(5))):
        changed = bytearray(big)
        changed[place] ^= 255
        other = tar(*((member, bytes(changed) if member.name == "f2" else data) for member, data in members))
        found = compared(packed, gzip.compress(other, 1))
        assert (found.difference, found.path, found.byte) == (Difference.CONTENT, "f2", place)
        assert (found.expected, found.found) == (f"0x{big[place]:02x}", f"0x{changed[place]:02x}")
    shorter = tar(*((member, data[:-5] if member.name == "f2" else data) for member, data in members))
    found = compared(one, shorter)
    assert (found.difference, found.path, found.byte) == (Difference.CONTENT, "f2", (3 << 20) - 5)
    assert found.found == "its end"
    for gone in names:
        fewer = tar(*(pair for pair in members if pair[0].name != gone))
        assert compared(one, fewer).difference is Difference.MISSING
        assert compared(one, fewer).path == gone
        assert compared(fewer, one).difference is Difference.EXTRA
        assert compared(fewer, one).path == gone
    turned = compared(one, tar(*members[::-1]))
    assert (turned.difference, turned.expected, turned.found) == (Difference.ORDER, "f0", "f4")
    with pytest.raises(LayerError):
        compared(one, packed[:-20])


@pytest.fixture(scope="module")
def ztoc(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The ztoc of a small layer, with many spans."""
    root = tmp_path_factory.mktemp("ztoc")
    entries = [Entry(f"f{number}", content=Inline(bytes([number]) * 70_000)) for number in range(4)]
    packed = pack(entries, root / "blob", root / "windows", 1 << 16)
    out = io.BytesIO()
    write(packed.spans, out)
    decoded = read.decode(out.getvalue())
    assert decoded.checkpoints == packed.spans.checkpoints
    assert decoded.digests == packed.spans.digests
    assert tuple(decoded.toc()) == packed.spans.toc
    windows = packed.spans.iter_windows()
    assert all(decoded.window(number) == window for number, window in enumerate(windows))
    return out.getvalue()


@given(st.data())
@settings(max_examples=500, deadline=None)
def test_a_ztoc_is_read_or_refused(ztoc: bytes, data: st.DataObject) -> None:
    windows = len(read.decode(ztoc).checkpoints) * 32768
    changed = bytearray(ztoc)
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(ztoc) - windows))  # what lies before and behind the windows
        at = at if at < 200 else at + windows
        word = data.draw(st.sampled_from((1, 4)))
        changed[at : at + word] = data.draw(st.binary(min_size=word, max_size=word))
    del changed[data.draw(st.integers(0, len(changed)) | st.just(len(changed))) :]
    with suppress(ValueError):
        decoded = read.decode(bytes(changed))
        for number in range(len(decoded.checkpoints)):
            assert len(decoded.window(number)) == 32768
        for _ in decoded.toc():
            pass


@given(st.binary(max_size=2000))
@settings(max_examples=200, deadline=None)
def test_no_bytes_make_the_ztoc_reader_fail_otherwise(data: bytes) -> None:
    with suppress(ValueError):
        list(read.decode(data).toc())


def test_names_for_people() -> None:
    assert readable("a\x1b[2Jb\n\udcff") == "a\\x1b[2Jb\\x0a\\xdcff"
    assert normal("./a//b/./c/") == "a/b/c"
