"""Merging: equal files are one, different ones an error, parents come before what is in them."""

from __future__ import annotations

import dataclasses
import zlib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from wheelmaker import deflate

from builder.layers.merge import CollisionError, Origin, merge
from builder.layers.tar import Content, Entry, Inline, Kind, Member, Region

DATA = b"the same bytes"
CRC = zlib.crc32(DATA)
SHA = ("sha256", "aa")
SIZE = len(DATA)


def region(crc32: int | None = CRC, recorded: tuple[str, str] | None = None) -> Region:
    return Region(Path("region"), 0, SIZE, "region", crc32, recorded)


def member(crc32: int = CRC, recorded: tuple[str, str] | None = None) -> Member:
    return Member(Path("member"), 0, len(deflate(DATA)), SIZE, crc32, "member", recorded)


def two(one: Entry, other: Entry) -> list[Origin]:
    return [Origin("one", [one]), Origin("two", [other])]


EQUAL: list[tuple[Content, Content]] = [
    (Inline(DATA), Inline(DATA)),
    (Inline(DATA), region()),
    (Inline(DATA), member()),
    (region(), member()),
    (region(recorded=SHA), member(recorded=SHA)),
    (region(None, SHA), member(1, SHA)),
    (member(), member()),
]
DIFFERENT: list[tuple[Content, Content]] = [
    (Inline(DATA), Inline(DATA[::-1])),
    (Inline(DATA), Inline(DATA + b"!")),
    (Inline(DATA), region(CRC ^ 1)),
    (Inline(DATA), region(None)),
    (region(None), region(None)),
    (Inline(DATA), member(CRC ^ 1)),
    (member(), member(CRC ^ 1)),
    (member(recorded=SHA), member(recorded=("sha256", "bb"))),
    (member(recorded=SHA), region(None)),
    (member(), dataclasses.replace(member(), size=SIZE + 1)),
]


@pytest.mark.parametrize(("one", "other"), EQUAL)
def test_the_same_file_from_two_origins_is_one(one: Content, other: Content) -> None:
    for first, second in ((one, other), (other, one)):
        (found,) = merge(two(Entry("a", content=first), Entry("a", content=second)))
        assert found.content is first


@pytest.mark.parametrize(("one", "other"), DIFFERENT)
def test_different_files_of_one_path(one: Content, other: Content) -> None:
    for first, second in ((one, other), (other, one)):
        with pytest.raises(CollisionError, match=r"one and two both bring /dir/a, with different content") as caught:
            merge(two(Entry("dir/a", content=first), Entry("dir/a", content=second)))
        assert caught.value.hint


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Entry("a"), Entry("a", mode=0o755)),
        (Entry("a"), Entry("a", Kind.DIR)),
        (Entry("a"), Entry("a", Kind.SYMLINK, linkname="b")),
        (Entry("a", Kind.SYMLINK, linkname="b"), Entry("a", Kind.SYMLINK, linkname="c")),
        (Entry("a", Kind.SYMLINK, linkname="b"), Entry("a", Kind.DIR)),
    ],
)
def test_one_path_in_two_ways(one: Entry, other: Entry) -> None:
    with pytest.raises(CollisionError, match="both bring /a"):
        merge(two(one, other))


def test_one_origin_may_not_contradict_itself_either() -> None:
    with pytest.raises(CollisionError, match="one and one both bring /a"):
        merge([Origin("one", [Entry("a"), Entry("a", content=Inline(b"x"))])])


def test_directories_and_links_that_agree() -> None:
    link = Entry("link", Kind.SYMLINK, 0o777, linkname="target")
    assert merge(two(link, dataclasses.replace(link))) == (link,)
    sticky = Entry("tmp", Kind.DIR, 0o1777)
    assert merge(two(sticky, Entry("tmp", Kind.DIR, 0o755))) == (sticky,)


def test_parents_are_added() -> None:
    own = Entry("a/b", Kind.DIR, 0o1777)
    found = merge([Origin("one", [Entry("a/b/c/d"), own, Entry("x/y", Kind.SYMLINK, linkname="z")])])
    assert [(entry.path, entry.kind, entry.mode) for entry in found] == [
        ("a", Kind.DIR, 0o755),
        ("a/b", Kind.DIR, 0o1777),
        ("a/b/c", Kind.DIR, 0o755),
        ("a/b/c/d", Kind.FILE, 0o644),
        ("x", Kind.DIR, 0o755),
        ("x/y", Kind.SYMLINK, 0o644),
    ]


@pytest.mark.parametrize("above", [Entry("a/b"), Entry("a/b", Kind.SYMLINK, linkname="c")])
@pytest.mark.parametrize("turned", [False, True])
def test_what_is_no_directory_has_nothing_below_it(above: Entry, turned: bool) -> None:
    origins = two(above, Entry("a/b/c/d"))
    with pytest.raises(
        CollisionError, match=rf"/a/b is a {above.kind} of one, but two has files below it \(/a/b/c/d\)"
    ):
        merge(reversed(origins) if turned else origins)


NAMES = st.lists(st.sampled_from(["a", "b", "é", "z", "a-", "a.b"]), min_size=1, max_size=3).map("/".join)


@given(names=st.sets(NAMES, max_size=10), split=st.integers(0, 10))
def test_order_and_parents_of_any_directories(names: set[str], split: int) -> None:
    entries = [Entry(name, Kind.DIR, 0o755) for name in sorted(names)]
    found = merge([Origin("two", entries[split:]), Origin("one", entries[:split])])
    assert found == merge([Origin("all", list(reversed(entries)))])
    paths = [entry.path for entry in found]
    assert paths == sorted(paths, key=str.encode)
    assert len(set(paths)) == len(paths)
    for path in paths:
        parent = path.rpartition("/")[0]
        assert not parent or paths.index(parent) < paths.index(path)
    assert set(names) <= set(paths)


def test_nothing() -> None:
    assert merge([]) == merge([Origin("one", [])]) == ()
