"""Reading .debs: what dpkg sees is seen, and every lie has its message."""

from __future__ import annotations

import gzip
import io
import lzma
import subprocess
import sys
import tarfile
from collections.abc import Sequence
from pathlib import Path

import judges
import pytest
from debarchive import COMPRESS, Item, ar, deb, folder, hardlink, stanza, symlink, tar

from builder.errors import HostileInputError
from builder.layers.tar import Entry, Kind
from builder.layers.unpack import chunks
from builder.sources.deb import LIMIT, RATIO, Deb, read

LARGE = bytes(range(256)) * 400


def opened(tmp_path: Path, data: bytes, *, limit: int = LIMIT, ratio: int = RATIO) -> Deb:
    path = tmp_path / "sample.deb"
    path.write_bytes(data)
    return read(path, tmp_path / "spool", limit=limit, ratio=ratio)


def content(entry: Entry) -> bytes:
    return b"".join(chunks(entry.content))


def refused(tmp_path: Path, data: bytes, why: str, *, limit: int = LIMIT, ratio: int = RATIO) -> None:
    with pytest.raises(HostileInputError, match=why) as raised:
        opened(tmp_path, data, limit=limit, ratio=ratio)
    assert str(raised.value).startswith("sample.deb: ")


GOOD = (
    folder("./usr/"),
    folder("./usr/bin/", 0o2750),
    folder("./tmp/", 0o1777),
    folder("./sticky/", 0o1775),
    Item("./usr/bin/tool", b"#!/bin/sh\n", mode=0o700),
    Item("./usr/bin/large", LARGE, mode=0o640),
    Item("./usr/bin/empty"),
    Item("./usr/bin/sudo", b"x", mode=0o4755),
    Item("./usr/bin/write", b"x", mode=0o2755, gid=5),
    Item("./usr/bin/wall", b"x", mode=0o2755),
    hardlink("./usr/bin/copy", "./usr/bin/tool"),
    hardlink("./usr/bin/near", "./usr/bin/large"),
    hardlink("./usr/far", "usr/bin/large"),
    hardlink("./usr/farther", "./usr/far"),
    symlink("./usr/link", "/etc/../x y"),
    Item("./usr/" + "long-" * 30 + "é", b"long"),
    symlink("./usr/long", "target-" * 30),
)


@pytest.mark.parametrize("suffix", ["", ".gz", ".xz"])
def test_good_deb(tmp_path: Path, suffix: str) -> None:
    sums = "0123  usr/bin/tool\n"
    found = opened(tmp_path, deb(GOOD, control_suffix=suffix, data_suffix=suffix, md5sums=sums))
    entries = {entry.path: entry for entry in found.entries}
    assert (found.name, found.version, found.fields["architecture"]) == ("sample", "1.0", "amd64")
    assert (found.control, found.md5sums) == (stanza("sample"), sums)
    assert [entry.path for entry in found.entries] == [item.name.strip("./") for item in GOOD]
    modes = {path: oct(entry.mode) for path, entry in entries.items()}
    assert modes["usr/bin"] == "0o755"
    assert modes["tmp"] == "0o1777"
    assert modes["sticky"] == "0o1755"
    assert modes["usr/bin/tool"] == modes["usr/bin/copy"] == "0o755"
    assert modes["usr/bin/large"] == modes["usr/bin/empty"] == "0o644"
    assert modes["usr/bin/sudo"] == "0o4755"
    assert modes["usr/bin/wall"] == "0o2755"
    assert modes["usr/bin/write"] == "0o755"
    assert content(entries["usr/bin/large"]) == LARGE
    assert content(entries["usr/bin/copy"]) == content(entries["usr/bin/tool"]) == b"#!/bin/sh\n"
    assert (entries["usr/bin/near"].kind, entries["usr/bin/near"].linkname) == (Kind.SYMLINK, "large")
    assert entries["usr/far"].linkname == entries["usr/farther"].linkname == "/usr/bin/large"
    assert entries["usr/link"].linkname == "/etc/../x y"
    assert entries["usr/long"].linkname == "target-" * 30


def test_older_tars_and_extra_members(tmp_path: Path) -> None:
    items = [Item("usr/x", b"x"), Item("usr/" + "d/" * 60 + "y", b"y")]
    members = [
        ("debian-binary", b"2.1\nmore\n"),
        ("_extra", b"odd"),
        ("control.tar/", tar([Item("control", stanza("sample").encode())], tarfile.USTAR_FORMAT)),
        ("_more", b""),
        ("data.tar.gz", gzip.compress(tar(items, tarfile.USTAR_FORMAT)[:512]) + gzip.compress(tar(items)[512:])),
        ("_gpgorigin", b"signature"),
    ]
    found = opened(tmp_path, ar(members))
    assert [content(entry) for entry in found.entries] == [b"x", b"y"]


def test_v7_directories(tmp_path: Path) -> None:
    block = bytearray(tar([Item("usr/", type=tarfile.AREGTYPE)]))
    found = opened(tmp_path, deb_of(bytes(block)))
    assert found.entries[0].kind is Kind.DIR


def test_as_dpkg_sees_it(tmp_path: Path) -> None:
    """The judge: a .deb that dpkg-deb made, and the tar that it reads out of ours."""
    dpkg = judges.require("dpkg-deb")
    root = tmp_path / "root"
    (root / "DEBIAN").mkdir(parents=True)
    (root / "DEBIAN/control").write_text(stanza("sample"))
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/bin/tool").write_bytes(LARGE)
    (root / "usr/bin/tool").chmod(0o755)
    (root / ("long-" * 40)).write_bytes(b"x")
    (root / "link").symlink_to("t" * 150)
    for kind in ("gzip", "xz", "none"):
        path = tmp_path / f"{kind}.deb"
        subprocess.run([dpkg, "-b", f"-Z{kind}", "--root-owner-group", root, path], check=True, capture_output=True)
        agrees(path, tmp_path)
    made = tmp_path / "made.deb"
    made.write_bytes(deb(GOOD))
    agrees(made, tmp_path)


def agrees(path: Path, tmp_path: Path) -> None:
    stream = subprocess.run(["dpkg-deb", "--fsys-tarfile", path], check=True, capture_output=True).stdout
    entries = {entry.path: entry for entry in read(path, tmp_path / "spool").entries}
    with tarfile.open(fileobj=io.BytesIO(stream)) as archive:
        for member in archive:
            name = member.name.removeprefix("./")
            if name in ("", "."):
                continue
            entry = entries.pop(name)
            if member.isdir():
                assert entry.kind is Kind.DIR
            elif member.issym():
                assert (entry.kind, entry.linkname) == (Kind.SYMLINK, member.linkname)
            elif entry.kind is Kind.FILE:
                file = archive.extractfile(member)
                assert file is not None
                assert content(entry) == file.read()
                assert member.islnk() or bool(entry.mode & 0o100) == bool(member.mode & 0o100)
            else:
                assert member.islnk()
    assert entries == {}


def deb_of(data: bytes, name: str = "data.tar") -> bytes:
    """A .deb whose data member has these bytes."""
    control = tar([Item("./control", stanza("sample").encode())])
    return ar([("debian-binary", b"2.0\n"), ("control.tar", control), (name, data)])


MEMBERS = [("debian-binary", b"2.0\n"), ("control.tar", b""), ("data.tar", b"")]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"", "it is no ar archive"),
        (b"PK\3\4", "it is no ar archive"),
        (b"!<arch>\n", "it has no debian-binary"),
        (b"!<arch>\ndebian-binary", "ar header at 8: it is damaged or truncated"),
        (deb()[:-9], r"data\.tar\.xz: it is truncated"),
        (deb().replace(b"`\n", b"``", 1), "ar header at 8: it is damaged"),
        (deb().replace(b"4         `\n", b"-4        `\n", 1), "ar header at 8: it is damaged"),
        (deb().replace(b"4         `\n", b"3         `\n", 1), r"debian-binary: the format is not 2\.x"),
        (ar([("debian-binary", b"2.0\nx")]).replace(b"x\n", b"xx"), "debian-binary: its size is not that of its bytes"),
        (ar(MEMBERS[1:]), r"member 'control\.tar': debian-binary is expected here"),
        (ar([MEMBERS[0], MEMBERS[2], MEMBERS[1]]), r"member 'data\.tar': control\.tar is expected here"),
        (ar(MEMBERS[:2]), r"it has no data\.tar"),
        (ar([*MEMBERS, ("more", b"")]), r"member 'more': nothing more is expected after data\.tar"),
        (ar([*MEMBERS, MEMBERS[2]]), r"member 'data\.tar': nothing more is expected"),
        (ar([("_first", b""), *MEMBERS]), r"member '_first': debian-binary is expected here"),
        (ar([("debian-binary", b"3.0\n"), *MEMBERS[1:]]), r"debian-binary: the format is not 2\.x"),
        (ar([("debian-binary", b"2.0\n" + bytes(99)), *MEMBERS[1:]]), r"debian-binary: the format is not 2\.x"),
        (ar(MEMBERS), r"control\.tar: header at 0: the tar ends without its end marker"),
        (deb_of(b"", "data.tar.bz2"), r"data\.tar\.bz2: compression \.bz2 is not one of \.gz, \.xz, \.zst, or none"),
        (deb_of(b"junk", "data.tar.gz"), r"data\.tar\.gz: it is damaged"),
        (deb_of(b"junk", "data.tar.xz"), r"data\.tar\.xz: it is damaged"),
        (
            deb_of(lzma.compress(tar([]))[:-4], "data.tar.xz"),
            r"data\.tar\.xz: it is damaged: it ends within its stream",
        ),
        (deb_of(gzip.compress(tar([])) + b"junk", "data.tar.gz"), r"data\.tar\.gz: it is damaged"),
        (deb(control="Package: sample\nVersion: 1\n"), "control: it has no field Architecture"),
        (deb(control="nonsense"), "control: not a field: 'nonsense'"),
        (deb(control=stanza("sample") + "Package: other\n"), "control: field Package is there twice"),
        (deb(control=""), "control: it has no field Package"),
        (deb().replace(b"control.tar.xz  ", b"control.tar.zip ", 1), r"control\.tar\.zip: compression \.zip"),
    ],
)
def test_ar_archives_that_lie(tmp_path: Path, data: bytes, why: str) -> None:
    refused(tmp_path, data, why)


def test_no_control_file(tmp_path: Path) -> None:
    for items in ([folder("./control/")], [symlink("./control", "/etc/passwd")], [Item("./other", b"")]):
        data = ar([MEMBERS[0], ("control.tar", tar(items)), ("data.tar", tar([]))])
        refused(tmp_path, data, r"control\.tar: it has no file control")


@pytest.mark.skipif(sys.version_info >= (3, 14), reason="this Python reads zstd")
def test_zstd(tmp_path: Path) -> None:
    refused(
        tmp_path, deb_of(b"\x28\xb5\x2f\xfd", "data.tar.zst"), r"data\.tar\.zst: zstd is not supported by this Python"
    )


def device(name: str, kind: bytes) -> Item:
    return Item(name, type=kind)


@pytest.mark.parametrize(
    ("items", "why"),
    [
        ([Item("/etc/passwd")], "/etc/passwd: its name is absolute"),
        ([Item("./../x")], r"\./\.\./x: its name leaves the package"),
        ([Item("./a/../../x")], "its name leaves the package"),
        ([Item("./a//x")], "its name leaves the package, or is not normal"),
        ([Item("././x")], "its name leaves the package, or is not normal"),
        ([Item("./a/.")], "its name leaves the package, or is not normal"),
        ([Item("./")], r": \.: it has no name|not normal"),
        ([Item("./" + "x" * 256)], "its name is too long"),
        ([Item("./" + "x/" * 2048 + "x")], "its name is too long|long name is not one"),
        ([Item("./caf\udce9")], "caf.*: its name is not UTF-8"),
        ([symlink("./x", "caf\udce9")], r"\./x: its target is not UTF-8"),
        ([symlink("./x", "")], r"\./x: it is a symlink to no name"),
        ([device("./x", tarfile.CHRTYPE)], r"\./x: it is a character device"),
        ([device("./x", tarfile.BLKTYPE)], r"\./x: it is a block device"),
        ([device("./x", tarfile.FIFOTYPE)], r"\./x: it is a fifo"),
        ([device("./x", tarfile.CONTTYPE)], r"\./x: it is a contiguous file"),
        ([device("./x", tarfile.GNUTYPE_SPARSE)], r"\./x: it is a sparse file"),
        ([device("./x", b"M")], r"\./x: it is of the unknown type b'M'"),
        ([hardlink("./x", "./y")], "x: it is a hard link to 'y', which is no file before it"),
        ([hardlink("./x", "./y"), Item("./y")], "x: it is a hard link to 'y', which is no file before it"),
        ([folder("./y"), hardlink("./x", "./y")], "which is no file before it"),
        ([symlink("./y", "/etc/passwd"), hardlink("./x", "./y")], "which is no file before it"),
        ([hardlink("./x", "/etc/passwd")], "its name is absolute"),
        ([hardlink("./x", "../../etc/passwd")], "its name leaves the package"),
        ([hardlink("./x", "./x")], "which is no file before it"),
        ([Item("./x", b"1"), Item("./x", b"2")], "x: it comes twice, and differs"),
        ([Item("./x", LARGE), Item("x", LARGE[::-1])], "x: it comes twice, and differs"),
        ([Item("./x"), folder("./x")], "x: it comes twice, and differs"),
        ([Item("./x", mode=0o755), Item("./x")], "x: it comes twice, and differs"),
        ([symlink("./x", "a"), symlink("./x", "b")], "x: it comes twice, and differs"),
        ([symlink("./a", "/etc"), Item("./a/passwd")], "a/passwd: it lies below a, which is no directory"),
        ([Item("./a/b/c"), Item("./a")], "a/b/c: it lies below a, which is no directory"),
    ],
)
def test_tars_that_lie(tmp_path: Path, items: Sequence[Item], why: str) -> None:
    refused(tmp_path, deb(items), why)


def test_the_same_member_twice_is_one(tmp_path: Path) -> None:
    items = [folder("./d"), Item("./d/x", LARGE), folder("./d"), Item("./d/x", LARGE), hardlink("./y", "./d/x")]
    assert [entry.path for entry in opened(tmp_path, deb(items)).entries] == ["d", "d/x", "y"]


def changed(at: int, new: bytes, *, fix: bool = True) -> bytes:
    """A tar of one file `./file` of 5 bytes with some bytes of its header changed, and the checksum made true."""
    block = bytearray(tar([Item("./file", b"12345")]))
    block[at : at + len(new)] = new
    if fix:
        block[148:156] = b" " * 8
        block[148:156] = b"%06o\0 " % sum(block[:512])
    return bytes(block)


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (changed(0, b"./"), None),
        (changed(3, b"\0"), "header at 0: a name with a NUL|a name with a NUL"),
        (changed(100, b"08"), "not a number"),
        (changed(100, b"junk", fix=False), "header at 0: its checksum is wrong"),
        (changed(124, b"7" * 11), "header at 0: the tar ends within its content"),
        (changed(124, b"\xff" * 12), "header at 0: not a number"),
        (changed(124, b"\x80" + bytes(3) + b"\xff" * 8), "header at 0: the tar ends within its content"),
        (changed(124, b"-0000000005"), "not a number"),
        (changed(156, b"5"), r"\./file: it has content, which only a file may have"),
        (changed(156, b"2"), r"\./file: it has content"),
        (changed(156, b"x"), r"\./file: it is a pax header"),
        (changed(156, b"g"), r"\./file: it is a global pax header"),
        (changed(156, b"L"), "a long name without a member"),
        (changed(257, b"junk\0\0"), "not a tar header that a .deb may have"),
        (tar([Item("./file", LARGE)])[:2048], "header at 0: the tar ends within its content"),
        (tar([Item("./file", b"1")])[:1024], "header at 1024: the tar ends without its end marker"),
        (tar([Item("./file", b"1")])[:700], "header at 0: the tar ends within its content"),
        (tar([Item("./file", b"1")]) + b"more", "there is data after the end marker"),
        (tar([])[:1024] + tar([Item("./hidden", b"1")]), "header at 0: there is data after the end marker"),
    ],
)
def test_tar_headers_that_lie(tmp_path: Path, data: bytes, why: str | None) -> None:
    if why is None:
        assert [entry.path for entry in opened(tmp_path, deb_of(data)).entries] == ["file"]
    else:
        refused(tmp_path, deb_of(data), why)


def test_pax_archives_are_none_that_dpkg_reads(tmp_path: Path) -> None:
    refused(tmp_path, deb_of(tar([Item("./é" * 60, b"")], tarfile.PAX_FORMAT)), "it is a pax header")


@pytest.mark.parametrize("suffix", [".gz", ".xz", ""])
def test_bombs(tmp_path: Path, suffix: str) -> None:
    bomb = COMPRESS[suffix](tar([Item("./zeros", bytes(20 << 20))]))
    refused(tmp_path, deb_of(bomb, f"data.tar{suffix}"), "it unpacks to more than 1048576 bytes", limit=1 << 20)


def test_bomb_by_ratio(tmp_path: Path) -> None:
    bomb = lzma.compress(tar([Item("./zeros", bytes(80 << 20))]))
    refused(tmp_path, deb_of(bomb, "data.tar.xz"), "it unpacks to more than 67108864 bytes", ratio=100)


def test_bomb_in_control(tmp_path: Path) -> None:
    control = lzma.compress(tar([Item("./control", bytes(20 << 20))]))
    data = ar([MEMBERS[0], ("control.tar.xz", control), ("data.tar", tar([]))])
    refused(tmp_path, data, r"control\.tar\.xz: it unpacks to more than 16777216 bytes")


def test_bomb_of_hard_links(tmp_path: Path) -> None:
    items = [Item("./x", bytes(60 << 10)), *(hardlink(f"./{number}", "./x") for number in range(99))]
    refused(tmp_path, deb(items), "its hard links make the package larger than 2097152 bytes", limit=2 << 20)


def test_memory_that_xz_asks_for_is_bounded(tmp_path: Path) -> None:
    filters = [{"id": lzma.FILTER_LZMA2, "preset": 0, "dict_size": 512 << 20}]
    greedy = lzma.compress(tar([]), filters=filters)
    refused(tmp_path, deb_of(greedy, "data.tar.xz"), r"data\.tar\.xz: it is damaged: Memory usage limit")
