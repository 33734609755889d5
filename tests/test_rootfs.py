"""The operating system's layer: packages of the tests' own, and, where there are any, Debian's."""

from __future__ import annotations

import hashlib
import os
import stat
import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest
from debarchive import Item, Made, folder, hardlink, made, symlink

from builder.errors import BuilderError, HostileInputError, StoreError
from builder.layers.tar import Entry, Inline, Kind, Member, Region
from builder.layers.unpack import chunks, same_content, unpack
from builder.sources.rootfs import PackageConflictError, entries

BIG = bytes(range(256)) * 500


def composed(tmp_path: Path, debs: Sequence[Made], executable: str | None = None) -> dict[str, Entry]:
    places = {each.locked: each.path for each in debs}
    found = entries(list(places), places.__getitem__, tmp_path / "spool", executable=executable)
    assert [entry.path for entry in found] == sorted((entry.path for entry in found), key=str.encode)
    assert len({entry.path for entry in found}) == len(found)
    return {entry.path: entry for entry in found}


def text(entry: Entry) -> str:
    return b"".join(chunks(entry.content)).decode()


def test_nothing_becomes_a_root(tmp_path: Path) -> None:
    tree = composed(tmp_path, [])
    assert (tree["bin"].linkname, tree["lib"].linkname, tree["sbin"].linkname) == ("usr/bin", "usr/lib", "usr/sbin")
    assert "lib64" not in tree
    modes = {path: tree[path].mode for path in ("tmp", "var/tmp", "run/lock", "root", "proc", "etc", "usr/bin")}
    assert modes == {
        **dict.fromkeys(("tmp", "var/tmp", "run/lock"), 0o1777),
        **dict.fromkeys(("proc", "etc", "usr/bin"), 0o755),
        "root": 0o700,
    }
    assert text(tree["etc/passwd"]).splitlines()[0] == "root:*:0:0:root:/root:/bin/sh"
    assert "nonroot:*:65532:65532:" in text(tree["etc/passwd"])
    assert text(tree["etc/group"]) == "root:*:0:\nnogroup:*:65534:\nnonroot:*:65532:\n"
    assert text(tree["etc/ld.so.conf"]) == "include /etc/ld.so.conf.d/*.conf\n"
    assert (tree["var/run"].linkname, tree["var/lock"].linkname) == ("/run", "/run/lock")
    assert "etc/nsswitch.conf" not in tree


def test_merged_usr(tmp_path: Path) -> None:
    one = [
        folder("./bin/"),
        Item("./bin/sh", b"sh", mode=0o755),
        Item("./lib/x86_64-linux-gnu/libc.so.6", BIG, mode=0o755),
        symlink("./lib64/ld.so", "/lib/x86_64-linux-gnu/ld.so"),
        Item("./library/kept", b""),
    ]
    other = [symlink("./bin", "usr/bin"), symlink("./lib64", "/usr/lib64"), Item("./usr/bin/tool", b"")]
    tree = composed(tmp_path, [made(tmp_path, one), made(tmp_path, other, "other")])
    assert text(tree["usr/bin/sh"]) == "sh"
    assert tree["usr/lib/x86_64-linux-gnu/libc.so.6"].size == len(BIG)
    assert tree["usr/lib64/ld.so"].linkname == "/lib/x86_64-linux-gnu/ld.so"
    assert (tree["lib64"].kind, tree["lib64"].linkname) == (Kind.SYMLINK, "usr/lib64")
    assert "library/kept" in tree
    assert not any(path.startswith(("bin/", "lib/", "lib64/", "sbin/")) for path in tree)


def test_documentation_stays_out(tmp_path: Path) -> None:
    kept = [
        Item("./usr/share/doc/a/copyright", b"c"),
        symlink("./usr/share/doc/b", "a"),
        Item("./usr/share/locale/C/LC_MESSAGES/a.mo", b""),
        Item("./usr/share/locale/locale.alias", b""),
        Item("./usr/share/documents/x", b""),
    ]
    dropped = [
        Item("./usr/share/doc/a/changelog.gz", b""),
        folder("./usr/share/doc/c/"),
        Item("./usr/share/man/man1/a.1.gz", b""),
        Item("./usr/share/info/a.info", b""),
        Item("./usr/share/lintian/overrides/a", b""),
        Item("./usr/share/locale/de/LC_MESSAGES/a.mo", b""),
        folder("./usr/share/man/"),
    ]
    sums = "".join(f"{'0' * 32}  {item.name[2:]}\n" for item in kept[:1] + dropped[:1])
    tree = composed(tmp_path, [made(tmp_path, [*kept, *dropped], md5sums=sums)])
    assert {item.name[2:] for item in kept} <= set(tree)
    assert not {item.name[2:].rstrip("/") for item in dropped} & set(tree)
    status = tree["var/lib/dpkg/status.d/sample"]
    assert text(status).startswith("Package: sample\nVersion: 1.0\nArchitecture: amd64\n")
    assert text(tree["var/lib/dpkg/status.d/sample.md5sums"]) == f"{'0' * 32}  usr/share/doc/a/copyright\n"


def test_accounts_from_base_passwd(tmp_path: Path) -> None:
    masters = [
        Item("./usr/share/base-passwd/passwd.master", b"root::0:0:root:/root:/bin/bash\n"),
        Item("./usr/share/base-passwd/group.master", b"root::0:"),
    ]
    tree = composed(tmp_path, [made(tmp_path, masters, "base-passwd")])
    assert text(tree["etc/passwd"]).splitlines()[0] == "root::0:0:root:/root:/bin/bash"
    assert text(tree["etc/group"]) == "root::0:\nnonroot:*:65532:\n"


def test_certificates(tmp_path: Path) -> None:
    certificates = [
        Item("./usr/share/ca-certificates/mozilla/b.crt", b"B"),
        Item("./usr/share/ca-certificates/mozilla/a.crt", b"A\n"),
        Item("./usr/share/ca-certificates/mozilla/notes", b"no"),
    ]
    tree = composed(tmp_path, [made(tmp_path, certificates, "ca-certificates", architecture="all")])
    assert text(tree["etc/ssl/certs/ca-certificates.crt"]) == "A\nB\n"
    assert tree["usr/lib/ssl/cert.pem"].linkname == "/etc/ssl/certs/ca-certificates.crt"
    assert tree["usr/lib/ssl/certs"].linkname == "/etc/ssl/certs"


def test_what_a_package_has_is_not_made(tmp_path: Path) -> None:
    own = [
        Item("./etc/ld.so.conf", b"own\n"),
        Item("./usr/bin/python3", b"own"),
        Item("./usr/bin/python3.11", b""),
        symlink("./var/run", "../run"),
        Item("./usr/share/libc-bin/nsswitch.conf", b"hosts: files dns\n"),
    ]
    tree = composed(tmp_path, [made(tmp_path, own, "libc6")], "/usr/bin/python3.11")
    assert text(tree["etc/ld.so.conf"]) == "own\n"
    assert text(tree["usr/bin/python3"]) == "own"
    assert tree["var/run"].linkname == "../run"
    assert text(tree["etc/nsswitch.conf"]) == "hosts: files dns\n"


def test_interpreter(tmp_path: Path) -> None:
    package = made(tmp_path, [Item("./usr/bin/python3.11", b"", mode=0o755)])
    assert composed(tmp_path, [package], "/usr/bin/python3.11")["usr/bin/python3"].linkname == "python3.11"
    assert "usr/bin/python3" not in composed(tmp_path, [package])
    with pytest.raises(BuilderError, match=r"none of the Debian packages has the interpreter /usr/bin/python3\.12"):
        composed(tmp_path, [package], "/usr/bin/python3.12")


def test_alternatives(tmp_path: Path) -> None:
    folder_of = "usr/lib/x86_64-linux-gnu"
    slow = made(tmp_path, [Item(f"./{folder_of}/blas/libblas.so.3", b""), Item("./usr/bin/mawk", b"")], "slow")
    fast = made(tmp_path, [Item(f"./{folder_of}/openblas-pthread/libblas.so.3", b"")], "fast")
    assert composed(tmp_path, [slow])[f"{folder_of}/libblas.so.3"].linkname == "blas/libblas.so.3"
    tree = composed(tmp_path, [slow, fast])
    assert tree[f"{folder_of}/libblas.so.3"].linkname == "openblas-pthread/libblas.so.3"
    assert tree["usr/bin/awk"].linkname == "mawk"


def test_equal_files_are_one(tmp_path: Path) -> None:
    shared = [Item("./usr/x", BIG), folder("./srv/", 0o1777), symlink("./usr/y", "x")]
    debs = [made(tmp_path, shared, "a"), made(tmp_path, [*shared[:1], folder("./srv/"), *shared[2:]], "b")]
    tree = composed(tmp_path, debs)
    assert tree["usr/x"].size == len(BIG)
    assert "srv" in tree


@pytest.mark.parametrize(
    ("one", "other", "why"),
    [
        ([Item("./x", b"1")], [Item("./x", b"2")], "a and b both have /x, and they differ"),
        ([Item("./x", BIG)], [Item("./x", BIG[::-1])], "a and b both have /x, and they differ"),
        ([Item("./x")], [Item("./x", mode=0o755)], "a and b both have /x, and they differ"),
        ([Item("./lib/x", b"1")], [Item("./usr/lib/x", b"2")], "a and b both have /usr/lib/x, and they differ"),
        ([folder("./x")], [Item("./x")], "a and b both have /x, and they differ"),
        ([symlink("./x", "etc")], [Item("./x/passwd")], "b has /x/passwd, but /x is a symlink of a"),
        ([Item("./usr/lib")], [], "/usr/lib of a is not what the layout of the root needs there"),
        ([Item("./usr")], [], "but /usr is a file of a"),
    ],
)
def test_packages_that_do_not_go_together(tmp_path: Path, one: list[Item], other: list[Item], why: str) -> None:
    with pytest.raises(PackageConflictError, match=why):
        composed(tmp_path, [made(tmp_path, one, "a"), made(tmp_path, other, "b")])


def test_replaces_orders_packages(tmp_path: Path) -> None:
    old = made(tmp_path, [Item("./x", b"old")], "old", "1.0")
    new = made(tmp_path, [Item("./x", b"new")], "new", replaces="other, old (<< 2)")
    aged = made(tmp_path, [Item("./x", b"aged")], "old", "2.0")
    both = made(tmp_path, [Item("./x", b"both")], "both", replaces="mutual")
    mutual = made(tmp_path, [Item("./x", b"mutual")], "mutual", replaces="both")
    assert text(composed(tmp_path, [old, new])["x"]) == text(composed(tmp_path, [new, old])["x"]) == "new"
    for pair in ([aged, new], [both, mutual]):
        with pytest.raises(PackageConflictError, match="and they differ"):
            composed(tmp_path, pair)


def test_merged_folders_cannot_be_something_else(tmp_path: Path) -> None:
    with pytest.raises(HostileInputError, match="bin: it links to '/tmp', not to usr/bin"):
        composed(tmp_path, [made(tmp_path, [symlink("./bin", "/tmp")])])


def test_a_deb_that_is_not_what_the_lock_names(tmp_path: Path) -> None:
    package, other = made(tmp_path, [], "package"), made(tmp_path, [], "other")
    with pytest.raises(StoreError, match="has other bytes than the lock names"):
        entries([package.locked], lambda locked: other.path, tmp_path / "spool")
    with pytest.raises(StoreError, match="No such file"):
        entries([package.locked], lambda locked: tmp_path / "nowhere", tmp_path / "spool")
    renamed = type(package.locked)("renamed", "1.0", "amd64", package.locked.file)
    with pytest.raises(HostileInputError, match=r"it says that it is package 1\.0 amd64, unlike the lock"):
        entries([renamed], lambda locked: package.path, tmp_path / "spool")


def test_the_order_of_packages_does_not_matter(tmp_path: Path) -> None:
    debs = [made(tmp_path, [Item(f"./usr/{name}", BIG), Item("./usr/shared", b"")], name) for name in "abcdef"]
    assert composed(tmp_path, debs) == composed(tmp_path, debs[::-1])


def test_unpack(tmp_path: Path) -> None:
    items = [
        Item("./usr/bin/tool", b"tool", mode=0o4755),
        Item("./usr/bin/big", BIG),
        hardlink("./usr/bin/copy", "./usr/bin/tool"),
        symlink("./lib64/ld.so", "/lib/real/ld.so"),
        symlink("./etc/out", "../../../../etc/passwd"),
        symlink("./etc/near", "./there"),
        symlink("./etc/root", "/"),
    ]
    tree = composed(tmp_path, [made(tmp_path, items)])
    os.umask(0o077)
    try:
        unpack(tree.values(), tmp_path / "root")
    finally:
        os.umask(0o022)
    root = tmp_path / "root"
    assert (root / "bin/big").read_bytes() == BIG
    assert stat.S_IMODE((root / "usr/bin/tool").stat().st_mode) == 0o755
    assert stat.S_IMODE((root / "tmp").stat().st_mode) == 0o1777
    links = {path: os.readlink(root / path) for path in ("usr/lib64/ld.so", "etc/out", "etc/near", "etc/root", "bin")}
    assert links == {
        "usr/lib64/ld.so": "../../lib/real/ld.so",
        "etc/out": "../etc/passwd",
        "etc/near": "./there",
        "etc/root": "..",
        "bin": "usr/bin",
    }
    with pytest.raises(ValueError, match="not empty"):
        unpack([], root)


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([Entry("a", Kind.SYMLINK, linkname="/tmp"), Entry("a/b")], "a/b: it lies below a, which is no directory"),
        ([Entry("a"), Entry("a/b/c")], "a/b/c: it lies below a, which is no directory|a/b: it lies below a"),
        ([Entry("a"), Entry("a")], "a: it comes twice"),
        ([Entry("a"), Entry("a", Kind.DIR)], "a: it comes twice"),
    ],
)
def test_unpack_writes_through_nothing(tmp_path: Path, members: Iterable[Entry], why: str) -> None:
    with pytest.raises(HostileInputError, match=why):
        unpack(members, tmp_path / "root")


def test_contents(tmp_path: Path) -> None:
    data = BIG * 20
    squeezed = zlib.compressobj(1, zlib.DEFLATED, -15)
    stream = squeezed.compress(data) + squeezed.flush()
    path = tmp_path / "file"
    path.write_bytes(b"xx" + stream + data)
    member = Member(path, 2, len(stream), len(data), zlib.crc32(data), "file")
    region = Region(path, 2 + len(stream), len(data))
    for content in (Inline(data), member, region):
        assert hashlib.sha256(b"".join(chunks(content))).digest() == hashlib.sha256(data).digest()
        assert same_content(content, Inline(data))
        assert not same_content(content, Inline(data[:-1] + b"x"))
        assert not same_content(content, Inline(b""))
    for lie, why in (
        (Member(path, 2, len(stream), len(data), 0, "file"), "its content is not what the archive says"),
        (Member(path, 2, len(stream), len(data) - 1, zlib.crc32(data), "file"), "its content is not what"),
        (Member(path, 2, len(stream) - 1, len(data), zlib.crc32(data), "file"), "its content is not what"),
        (Member(path, 3, len(stream), len(data), zlib.crc32(data), "file"), "file: "),
        (Region(path, 3 + len(stream), len(data)), "it ends 1 bytes too early"),
    ):
        with pytest.raises(HostileInputError, match=why):
            list(chunks(lie))
