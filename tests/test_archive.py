"""The zip reader: what is good is read as zipfile reads it, every lie is refused by name."""

from __future__ import annotations

import dataclasses
import io
import random
import stat
import struct
import zipfile
import zlib
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wheelmaker import FULL, UTF8, Member, archive, deflate, end_record, zip64_extra

from builder.errors import HostileInputError
from builder.layers import tar
from builder.layers.content import read
from builder.sources.archive import ZipMember, read_members

TEXT = b"some text of a module\n" * 40
ONE, TWO = Member("pkg/one.py", TEXT), Member("pkg/two.bin", bytes(range(256)), method=0)
GOOD = archive([ONE, TWO])


def members(data: bytes, tmp_path: Path) -> tuple[ZipMember, ...]:
    path = tmp_path / "demo.whl"
    path.write_bytes(data)
    with path.open("rb") as file:
        return read_members(file, "demo.whl")


def contents(data: bytes, tmp_path: Path) -> dict[str, bytes]:
    found = members(data, tmp_path)
    return {member.name: read(member.content(tmp_path / "demo.whl", "demo.whl"), 1 << 30) for member in found}


def assert_refused(data: bytes, message: str, tmp_path: Path) -> None:
    with pytest.raises(HostileInputError) as caught:
        members(data, tmp_path)
    assert str(caught.value).startswith("demo.whl: ")
    assert message in str(caught.value)
    assert caught.value.hint


# What is good.


def assert_read_as_zipfile_does(data: bytes, tmp_path: Path) -> None:
    with zipfile.ZipFile(io.BytesIO(data)) as expected:
        files = {info.filename: expected.read(info) for info in expected.infolist() if not info.is_dir()}
    assert contents(data, tmp_path) == files


@pytest.mark.parametrize("method", [zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED])
def test_what_zipfile_writes(method: int, tmp_path: Path) -> None:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", method) as file:
        file.writestr("pkg/", "")
        file.writestr("pkg/text", TEXT)
        file.writestr("pkg/empty", b"")
        file.writestr("pkg/größe", b"name")
        with file.open("pkg/streamed", "w", force_zip64=True) as member:
            member.write(TEXT)
        file.comment = b"a comment"
    assert_read_as_zipfile_does(out.getvalue(), tmp_path)


class Pipe(io.RawIOBase):
    """What cannot be sought: zipfile then writes data descriptors."""

    def __init__(self) -> None:
        self.data = bytearray()

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        view = memoryview(data)  # type: ignore[arg-type]
        self.data += view
        return len(view)


@pytest.mark.parametrize("large", [False, True])
def test_what_zipfile_writes_into_a_pipe(large: bool, tmp_path: Path) -> None:
    pipe = Pipe()
    with zipfile.ZipFile(pipe, "w", zipfile.ZIP_DEFLATED) as file:
        for name in ("one", "two"):
            with file.open(name, "w", force_zip64=large) as member:
                member.write(TEXT)
    assert_read_as_zipfile_does(bytes(pipe.data), tmp_path)


ONES = {"compressed": FULL, "size": FULL}
PACKED = len(ONE.packed())
ZIP64 = dataclasses.replace(
    ONE,
    central={**ONES, "offset": FULL, "extra": zip64_extra(len(TEXT), PACKED, 0)},
    local={**ONES, "extra": zip64_extra(len(TEXT), PACKED)},
)
HONEST: Mapping[str, bytes] = {
    "plain": GOOD,
    "no members": archive([]),
    "a comment": archive([ONE], comment=b"built by hand"),
    "zip64 member": archive([ZIP64, TWO]),
    "zip64 records": archive([ONE, TWO], zip64={}, needs_zip64=True),
    "zip64 records before they are needed": archive([ONE, TWO], zip64={}),
    "zip64 everywhere": archive([ZIP64, TWO], zip64={}, needs_zip64=True),
    **{
        f"descriptor {form}": archive(
            [dataclasses.replace(ONE, descriptor=form), dataclasses.replace(TWO, descriptor=form)]
        )
        for form in ("32", "32 bare", "64", "64 bare")
    },
    "directories": archive([Member("pkg/", mode=0o40755), Member("pkg/sub/", method=0, mode=0), ONE]),
    "extra fields": archive(
        [dataclasses.replace(ONE, local={"extra": b"UT\5\0" + bytes(5)}, central={"extra": b"ux\0\0"})]
    ),
    "case": archive([Member("pkg/a.py", b"1"), Member("pkg/A.py", b"2"), Member("PKG/a.py", b"3")]),
    "names": archive([Member("ünï/日本語-🚀.py", b"1"), Member("a b.py"), Member("...", b"2"), Member("..a", b"3")]),
    "every level": archive([Member(str(level), TEXT, level=level) for level in range(10)]),
}


@pytest.mark.parametrize("name", HONEST)
def test_what_is_honest_is_read(name: str, tmp_path: Path) -> None:
    assert_read_as_zipfile_does(HONEST[name], tmp_path)


@pytest.mark.parametrize(
    ("mode", "executable"),
    [
        (0, False),
        (0o100644, False),
        (0o100755, True),
        (0o100744, True),
        (0o100611, True),
        (0o104755, True),
        (0o755, False),  # no kind: as for pip and installer, no exec bit either
    ],
)
@pytest.mark.parametrize("system", [0, 3, 19])
def test_the_exec_bit(mode: int, executable: bool, system: int, tmp_path: Path) -> None:
    (member,) = members(archive([Member("tool", b"x", mode=mode, central={"system": system})]), tmp_path)
    assert member.executable == executable


def test_contents_as_layers_take_them(tmp_path: Path) -> None:
    one, two, empty = members(archive([ONE, TWO, Member("empty")]), tmp_path)
    path = tmp_path / "demo.whl"
    content = one.content(path, "demo.whl", ("sha256", "00"))
    assert isinstance(content, tar.Member)
    assert (content.label, content.recorded) == ("demo.whl: pkg/one.py", ("sha256", "00"))
    stored = two.content(path, "demo.whl")
    assert isinstance(stored, tar.Region)
    assert stored.crc32 == zlib.crc32(TWO.data)
    assert isinstance(empty.content(path, "demo.whl"), tar.Region)
    assert empty.content(path, "demo.whl").size == 0


# What lies.


def lying(**central: int | bytes) -> bytes:
    """A good archive but for some fields of one record of its directory."""
    return archive([dataclasses.replace(ONE, central=central), TWO])


def beside(**local: int | bytes) -> bytes:
    """The same for the local header."""
    return archive([dataclasses.replace(ONE, local=local), TWO])


def alone(**both: int | bytes) -> bytes:
    """One member whose two descriptions agree and are false."""
    local = {key: value for key, value in both.items() if key != "offset"}
    return archive([dataclasses.replace(ONE, central=both, local=local)])


def named(name: str | bytes, **more: int) -> bytes:
    return archive([Member(name, b"x", **more)])  # type: ignore[arg-type]


def same_data(*names: str) -> bytes:
    """Several records of one member: the bomb that needs no recursion."""
    whole = [Member(name, TEXT, central={"offset": 0}, local={"name": names[0].encode()}) for name in names]
    first = archive(whole[:1])
    start = len(archive([whole[0]])) - 22 - 46 - len(names[0])
    directory = archive(whole)
    skip = len(directory) - 22 - sum(46 + len(name) for name in names)
    records = directory[skip:-22]
    count = len(names)
    end = {"disk": 0, "first_disk": 0, "here": count, "count": count, "size": len(records), "offset": start}
    return first[:start] + records + end_record(end)


def nested() -> bytes:
    """One member lies inside of another, which is stored."""
    inner = archive([Member("inner", TEXT)])
    inner = inner[: inner.index(b"PK\1\2")]
    outer = Member("outer", inner, method=0)
    hidden = Member("inner", TEXT, central={"offset": 30 + len("outer")})
    whole = archive([outer, hidden])
    cut = whole.index(b"PK\3\4", 30 + 5 + len(inner))
    directory = whole.index(b"PK\1\2", cut)
    fixed = bytearray(whole[:cut] + whole[directory:])
    fixed[-6:-2] = cut.to_bytes(4, "little")
    return bytes(fixed)


def hidden_end() -> bytes:
    """A whole second archive ends inside of the comment of the first, and at its end."""
    other = archive([Member("other", b"other")])
    return archive([ONE], comment=other)


def comment_with_end() -> bytes:
    """The comment ends in an end-of-directory record that fits, too."""
    inner = {"disk": 0, "first_disk": 0, "here": 0, "count": 0, "size": 0, "offset": 0}
    return archive([ONE], comment=end_record(inner))


def hidden_zip64() -> bytes:
    """A zip64 record in the comment of the last record, where the small record does not ask for one."""
    plain = archive([ONE])
    start = plain.index(b"PK\1\2")
    record = struct.pack("<4sQ2H2L4Q", b"PK\6\6", 44, 45, 45, 0, 0, 0, 0, 0, 0)
    at = len(plain) - 22
    return archive([ONE], last_comment=record + struct.pack("<4sLQL", b"PK\6\7", 0, at, 1)) if start else b""


GIB = 1 << 30
LIES: Mapping[str, tuple[bytes, str]] = {
    "nothing": (b"", "not a zip archive, or cut off"),
    "text": (b"not a wheel" * 100, "not a zip archive, or cut off"),
    "only magic": (b"PK\5\6", "bytes follow its end-of-directory record"),
    "bytes behind": (GOOD + b"\n", "bytes follow its end-of-directory record"),
    "a whole archive behind": (GOOD + GOOD, "its directory is not where"),
    "bytes in front": (b"#!/bin/sh\n" + GOOD, "its directory is not where"),
    "bytes in front, offsets true": (
        archive([ONE], prefix=b"#!/bin/sh\n"),
        "between the start and pkg/one.py are 10 bytes",
    ),
    "bytes between": (
        archive([ONE, TWO], between=b"hidden"),
        "between pkg/one.py and pkg/two.bin are 6 bytes of no member",
    ),
    "a member that is not listed": (
        archive([ONE, TWO], between=archive([Member("hidden")])[:38]),
        "between pkg/one.py and pkg/two.bin are 38 bytes of no member",
    ),
    "bytes before the directory": (
        archive([ONE], before_directory=b"!"),
        "between pkg/one.py and the directory are 1 bytes",
    ),
    "two ends": (comment_with_end(), "it has two end-of-directory records"),
    "a comment that looks like an end": (
        archive([ONE], comment=b"PK\5\6 is how an archive ends" + bytes(20)),
        "it has two end-of-directory records",
    ),
    "an archive in the comment": (hidden_end(), "it has two end-of-directory records"),
    "zip64 in a comment": (hidden_zip64(), "contradict one another"),
    "zip64 says another count": (archive([ONE], zip64={"here": 2, "count": 2}), "contradict one another"),
    "zip64 says another place": (archive([ONE], zip64={"offset": 1}), "contradict one another"),
    "zip64 lies": (archive([ONE], zip64={"offset": 1}, needs_zip64=True), "its directory is not where"),
    "zip64 is elsewhere": (archive([ONE], zip64={"at": 1}, needs_zip64=True), "not where its locator says"),
    "zip64 is far away": (archive([ONE], zip64={"at": 1 << 63}, needs_zip64=True), "not where its locator says"),
    "zip64 of another size": (
        archive([ONE], zip64={"record_size": 45}, needs_zip64=True),
        "not where its locator says",
    ),
    "zip64 on disks": (archive([ONE], zip64={"disks": 2}, needs_zip64=True), "not where its locator says"),
    "zip64 on another disk": (archive([ONE], zip64={"disk": 1}, needs_zip64=True), "contradict one another"),
    "zip64 is needed": (archive([ONE], needs_zip64=True), "needs a zip64 record and has none"),
    "65,535 entries": (archive([ONE], end={"here": 0xFFFF, "count": 0xFFFF}), "needs a zip64 record and has none"),
    "65,536 entries": (archive([ONE], zip64={"here": 65_536, "count": 65_536}, needs_zip64=True), "cut off"),
    "10^12 entries": (
        archive([ONE], zip64={"here": 10**12, "count": 10**12}, needs_zip64=True),
        "no wheel has a directory of",
    ),
    "a huge directory": (
        archive([ONE], zip64={"size": 1 << 62}, needs_zip64=True),
        "no wheel has a directory of 4611686018427387904 bytes",
    ),
    "disk 1": (archive([ONE], end={"disk": 1}), "it is one part of an archive of several files"),
    "directory on disk 1": (archive([ONE], end={"first_disk": 1}), "it is one part of an archive of several files"),
    "half of the entries here": (archive([ONE, TWO], end={"here": 1}), "it is one part of an archive of several files"),
    "fewer records": (archive([ONE, TWO], end={"here": 1, "count": 1}), "holds more records than it says"),
    "more records": (archive([ONE], end={"here": 2, "count": 2}), "cut off"),
    "directory elsewhere": (archive([ONE], end={"offset": 0}), "its directory is not where"),
    "directory of another size": (archive([ONE], end={"size": 1}), "its directory is not where"),
    "no record where the directory starts": (
        archive([ONE], end={"offset": 20, "size": 1}),
        "its directory is not where",
    ),
    "record without magic": (GOOD.replace(b"PK\1\2", b"PK\1\3"), "holds fewer records than it says"),
    "local header without magic": (beside(magic=b"PK\3\5"), "pkg/one.py is described in two ways"),
    "encrypted": (archive([dataclasses.replace(ONE, flags=1)]), "pkg/one.py is encrypted"),
    "strongly encrypted": (archive([dataclasses.replace(ONE, flags=1 << 6)]), "pkg/one.py is encrypted"),
    "masked": (archive([dataclasses.replace(ONE, flags=1 << 13)]), "pkg/one.py is encrypted"),
    "encrypted beside its data": (beside(flags=1), "pkg/one.py is described in two ways"),
    "patch data": (archive([dataclasses.replace(ONE, flags=1 << 5)]), "pkg/one.py is compressed by method 8"),
    **{
        f"method {method}": (
            archive([Member("a", b"x", method=method)]),
            f"a is compressed by method {method}; wheels use",
        )
        for method in (1, 6, 9, 12, 14, 93, 95, 99)
    },
    "stored, two sizes": (
        archive([dataclasses.replace(TWO, central={"size": 255})]),
        "is stored, but its two sizes differ",
    ),
    "larger than deflate can": (lying(size=len(TEXT) * 10**6), "cannot be as large as it says"),
    "something from nothing": (archive([Member("a", b"x", raw=b"")]), "a cannot be as large as it says (1 bytes)"),
    "empty, but is not": (archive([Member("a", b"", raw=deflate(b"hidden"))]), "a is said to be empty, but"),
    "empty, with slack": (archive([Member("a", b"", raw=b"\3\0slack")]), "a is said to be empty, but"),
    "empty, cut off": (archive([Member("a", b"", raw=b"\0")]), "a is said to be empty, but"),
    "empty, no stream": (archive([Member("a", b"", raw=b"\xff\xff")]), "a is said to be empty, but"),
    "empty, at length": (archive([Member("a", b"", raw=bytes(5) * 20 + b"\3\0")]), "a is said to be empty, but"),
    "a directory with data": (archive([Member("a/", b"x", mode=0o40755)]), "a/ is a directory with data"),
    "too large in all": (
        archive(
            [
                Member(
                    f"a{number}",
                    b"",
                    raw=bytes(5 << 20),
                    central={"size": FULL, "extra": zip64_extra(5 * GIB)},
                )
                for number in range(13)
            ]
        ),
        "it is a zip bomb",
    ),
    "bomb by its ratio": (
        archive([Member("a", b"", raw=bytes(5 << 20), central={"size": FULL, "extra": zip64_extra(5 * GIB)})]),
        f"it is a zip bomb: {5 << 20} bytes become {5 * GIB}",
    ),
    "bomb of one member": (same_data("a", "b", "c"), "overlap"),
    "a member in a member": (nested(), "outer and inner overlap"),
    "reaches into the directory": (alone(compressed=len(GOOD)), "reaches into the directory of the archive"),
    "last reaches into the directory": (
        archive(
            [dataclasses.replace(TWO, central={"size": 300, "compressed": 300}, local={"size": 300, "compressed": 300})]
        ),
        "reaches into the directory of the archive",
    ),
    "local header in the directory": (
        alone(offset=len(archive([ONE])) - 60),
        "reaches into the directory of the archive",
    ),
    "local header behind the file": (alone(offset=10**9), "reaches into the directory of the archive"),
    "local header at 2^64": (
        archive([dataclasses.replace(ONE, central={"offset": FULL, "extra": zip64_extra((1 << 64) - 1)})]),
        "reaches into the directory of the archive",
    ),
    "compressed size 2^63": (
        alone(compressed=FULL, extra=zip64_extra(1 << 63)),
        "reaches into the directory of the archive",
    ),
    "zip64 sizes, none there": (lying(size=FULL), "needs zip64 sizes and has none"),
    "zip64 sizes, too few": (lying(size=FULL, compressed=FULL, extra=zip64_extra(5)), "needs zip64 sizes and has none"),
    "zip64 sizes, cut off": (lying(size=FULL, extra=b"\1\0\x08\0abc"), "needs zip64 sizes and has none"),
    "zip64 sizes beside its data, none there": (beside(size=FULL, compressed=FULL), "needs zip64 sizes and has none"),
    "zip64 sizes beside its data, others": (
        beside(size=FULL, compressed=FULL, extra=zip64_extra(len(TEXT) + 1, PACKED)),
        "pkg/one.py is described in two ways",
    ),
    "another name": (beside(name=b"pkg/eno.py"), "pkg/one.py is described in two ways"),
    "a longer name": (beside(name=b"pkg/one.pyc"), "pkg/one.py is described in two ways"),
    "another method": (beside(method=0), "pkg/one.py is described in two ways"),
    "another CRC": (beside(crc=1), "pkg/one.py is described in two ways"),
    "no CRC": (beside(crc=0), "pkg/one.py is described in two ways"),
    "another size": (beside(size=len(TEXT) + 1), "pkg/one.py is described in two ways"),
    "another compressed size": (beside(compressed=1), "pkg/one.py is described in two ways"),
    "descriptor that is not there": (alone(flags=8), "the data descriptor of pkg/one.py is not what"),
    "descriptor on one side": (lying(flags=8), "pkg/one.py is described in two ways"),
    "descriptor on the other side": (beside(flags=8), "pkg/one.py is described in two ways"),
    "UTF-8 on one side": (
        archive([Member("é", b"x", local={"flags": 0})]),
        "é is described in two ways",
    ),
    "descriptor that lies": (
        archive([dataclasses.replace(ONE, descriptor=b"PK\7\x08" + struct.pack("<3L", 1, PACKED, len(TEXT)))]),
        "the data descriptor of pkg/one.py is not what",
    ),
    "descriptor of another size": (
        archive([dataclasses.replace(ONE, descriptor=struct.pack("<3L", zlib.crc32(TEXT), PACKED, 1)), TWO]),
        "the data descriptor of pkg/one.py is not what",
    ),
    "descriptor with more": (
        archive([dataclasses.replace(ONE, descriptor=struct.pack("<3L", zlib.crc32(TEXT), PACKED, len(TEXT)) + b"x")]),
        "the data descriptor of pkg/one.py is not what",
    ),
    "descriptor, but sizes beside its data": (
        archive([dataclasses.replace(ONE, descriptor="32", local={"size": 7})]),
        "pkg/one.py is described in two ways",
    ),
    "a second name": (
        lying(extra=struct.pack("<2HBL", 0x7075, 5 + 7, 1, 0) + b"evil.py"),
        "'pkg/one.py' has a second name, b'evil.py'",
    ),
    "symlink": (archive([Member("link", b"/etc/passwd", mode=stat.S_IFLNK | 0o777)]), "link is a symlink"),
    "symlink made on DOS": (
        archive([Member("link", b"/etc/passwd", mode=stat.S_IFLNK | 0o777, central={"system": 0})]),
        "link is a symlink",
    ),
    **{
        f"special file {kind:o}": (archive([Member("a", mode=kind | 0o644)]), "a is a special file")
        for kind in (stat.S_IFCHR, stat.S_IFBLK, stat.S_IFIFO, stat.S_IFSOCK, 0o170000)
    },
    "directory by its mode": (
        archive([Member("a", mode=0o40755)]),
        "is a directory by its mode and a file by its name",
    ),
    "file by its mode": (archive([Member("a/", mode=0o100644)]), "is a directory by its mode and a file by its name"),
    **{
        f"the name {name!r}": (named(name), "cannot be a file of a wheel")
        for name in (
            "",
            "/",
            "/etc/passwd",
            "//etc/passwd",
            "../evil",
            "a/../../evil",
            "a/..",
            "..",
            ".",
            "./a",
            "a/./b",
            "a//b",
            "a/b//",
            "..\\evil",
            "C:\\evil",
            "a\0b",
            "a\nb",
            "a\rb",
            "a\x1b[2Jb",
            "a\x7fb",
            "a\x9b2Jb",
            "x" * 256,
            "é" * 128,
            "/".join(["x" * 200] * 21),
            "/".join(["x"] * 101),
        )
    },
    "a name that is not UTF-8": (archive([Member(b"\xff\xfe", b"x")]), "is not UTF-8, or not marked as UTF-8"),
    "a name with a surrogate": (archive([Member(b"\xed\xa0\x80", b"x")]), "is not UTF-8, or not marked as UTF-8"),
    "an overlong name": (archive([Member(b"\xc0\xae\xc0\xae/evil", b"x")]), "is not UTF-8, or not marked as UTF-8"),
    "a name in CP437": (
        archive([Member("é", b"x", central={"name": b"\x82", "flags": 0}, local={"name": b"\x82", "flags": 0})]),
        "is not UTF-8, or not marked as UTF-8",
    ),
    "UTF-8 that is not marked": (
        archive([Member("é", b"x", central={"flags": 0}, local={"flags": 0})]),
        "is not UTF-8, or not marked as UTF-8",
    ),
    "a name twice": (archive([ONE, ONE]), "pkg/one.py is in it twice"),
    "a directory twice": (archive([Member("a/", mode=0o40755), Member("a/", mode=0o40755)]), "a/ is in it twice"),
    "file and directory": (archive([Member("a", b"x"), Member("a/", mode=0o40755)]), "a is a file and a directory"),
    "file and parent": (archive([Member("a/b/c", b"x"), Member("a", b"x")]), "a is a file, and the directory of a/b/c"),
    "file and directory below": (
        archive([Member("a", b"x"), Member("a/b/", mode=0o40755)]),
        "a is a file, and the directory",
    ),
}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(name: str, tmp_path: Path) -> None:
    data, message = LIES[name]
    assert_refused(data, message, tmp_path)


@pytest.mark.parametrize(
    "lie",
    [
        Member("a", TEXT, central={"crc": 1}, local={"crc": 1}),
        Member("a", TEXT, central={"size": 5}, local={"size": 5}),
        Member("a", TEXT, central={"size": len(TEXT) + 5}, local={"size": len(TEXT) + 5}),
        Member("a", TEXT, raw=deflate(TEXT) + b"slack"),
        Member("a", TEXT, raw=deflate(TEXT)[:-3]),
        Member("a", TEXT, raw=b"\xff" * 100),
        Member("a", TEXT, method=0, central={"crc": 1}, local={"crc": 1}),
    ],
)
def test_lies_about_the_data_are_found_when_it_is_read(lie: Member, tmp_path: Path) -> None:
    data = archive([lie])
    assert len(members(data, tmp_path)) == 1
    with pytest.raises(HostileInputError, match=r"demo\.whl: a: "):
        contents(data, tmp_path)


@pytest.mark.parametrize("name", ["plain", "zip64 everywhere", "descriptor 32", "directories", "a comment"])
def test_an_archive_cut_off_anywhere(name: str, tmp_path: Path) -> None:
    whole = HONEST[name]
    for size in range(len(whole)):
        with pytest.raises(HostileInputError):
            members(whole[:size], tmp_path)


@pytest.mark.parametrize("name", ["plain", "zip64 everywhere", "descriptor 32"])
def test_any_flipped_bit_is_refused_or_harmless(name: str, tmp_path: Path) -> None:
    """What is accepted still has the same names and the same contents."""
    whole = HONEST[name]
    true = contents(whole, tmp_path)
    flips = [(place, bit) for place in range(len(whole)) for bit in range(8)]
    for place, bit in random.Random(name).sample(flips, 1500):
        damaged = bytearray(whole)
        damaged[place] ^= 1 << bit
        try:
            found = contents(bytes(damaged), tmp_path)
        except HostileInputError:
            continue
        assert found == true


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.binary(max_size=200), front=st.booleans())
def test_noise_is_no_archive(data: bytes, front: bool, tmp_path: Path) -> None:
    whole = (
        data + end_record(dict.fromkeys(("disk", "first_disk", "here", "count", "size", "offset"), 0))
        if front
        else data
    )
    with suppress(HostileInputError):
        assert members(whole, tmp_path) == ()


def test_utf8_is_marked_by_the_makers_of_these_tests() -> None:
    assert Member("é").truth()["flags"] == UTF8
