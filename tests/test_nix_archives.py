"""Archives of Nix are read as Nix writes them and refused for every lie; closures become layers by a rule."""

from __future__ import annotations

import io
import os
import random
from collections.abc import Callable
from pathlib import Path

import judges
import nixworld
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.errors import HostileInputError
from builder.layers.tar import Kind
from builder.lock import closure
from builder.lock.closure import CircleError, LockedNixPath
from builder.sources import nar, nixtool


def word(*texts: bytes) -> bytes:
    return b"".join(len(text).to_bytes(8, "little") + text + bytes(-len(text) % 8) for text in texts)


def file(data: bytes = b"x") -> bytes:
    return word(b"(", b"type", b"regular", b"contents", data, b")")


def folder(*entries: tuple[bytes, bytes]) -> bytes:
    inner = b"".join(word(b"entry", b"(", b"name", name, b"node") + node + word(b")") for name, node in entries)
    return word(b"(", b"type", b"directory") + inner + word(b")")


def archive(node: bytes) -> bytes:
    return word(nar.MAGIC) + node


def deep(depth: int) -> bytes:
    node = file()
    for _ in range(depth):
        node = folder((b"a", node))
    return node


GOOD = archive(
    folder(
        (b"bin", folder((b"tool", word(b"(", b"type", b"regular", b"executable", b"", b"contents", b"#!", b")")))),
        (b"empty", word(b"(", b"type", b"regular", b")")),
        (b"link", word(b"(", b"type", b"symlink", b"target", b"bin/tool", b")")),
        (b"text", file(b"content")),
    )
)
LIES: dict[str, tuple[bytes, str]] = {
    "nothing": (b"", "ends too early"),
    "another magic": (word(b"nix-archive-2") + file(), "expected nix-archive-1"),
    "more after its end": (GOOD + b"\0", "after its end"),
    "a device": (archive(word(b"(", b"type", b"device", b")")), "it is a b'device'"),
    "a folder above": (archive(folder((b"..", file()))), "'..' is no name"),
    "this folder": (archive(folder((b".", file()))), "'.' is no name"),
    "no name": (archive(folder((b"", file()))), "'' is no name"),
    "a path as a name": (archive(folder((b"a/../../b", file()))), "is no name"),
    "a zero byte": (archive(folder((b"a\0b", file()))), "a zero byte"),
    "a name twice": (archive(folder((b"a", file()), (b"a", file()))), "'a' stands after 'a'"),
    "another order": (archive(folder((b"b", file()), (b"a", file()))), "'a' stands after 'b'"),
    "a name that is no text": (archive(folder((b"\xff", file()))), "is not UTF-8"),
    "a long name": (archive(folder((b"a" * 256, file()))), "a text of 256 bytes"),
    "a symlink to nothing": (archive(word(b"(", b"type", b"symlink", b"target", b"", b")")), "a symlink to nothing"),
    "a file larger than all": (
        archive(word(b"(", b"type", b"regular", b"contents") + (1 << 62).to_bytes(8, "little")),
        "ends inside of its data",
    ),
    "a text larger than memory": (word(nar.MAGIC) + b"\xff" * 8, "a text of 18446744073709551615 bytes"),
    "other padding": (GOOD.replace(b"content\0", b"content\1"), "no zeros as padding"),
    "folders without an end": (archive(deep(300)), "more than 256 folders"),
    "no end of a folder": (archive(word(b"(", b"type", b"directory", b"next")), "expected an entry"),
    "no contents": (archive(word(b"(", b"type", b"regular", b"content", b"x", b")")), "expected contents"),
}


def read(data: bytes, folder: Path) -> tuple[nar.Node, ...]:
    path = folder / "nar"
    path.write_bytes(data)
    return nar.read(path, "thing-1.0")


def test_a_good_one(tmp_path: Path) -> None:
    nodes = read(GOOD, tmp_path)
    assert [(node.path, node.kind, node.size, node.executable, node.target) for node in nodes] == [
        ("", Kind.DIR, 0, False, ""),
        ("bin", Kind.DIR, 0, False, ""),
        ("bin/tool", Kind.FILE, 2, True, ""),
        ("empty", Kind.FILE, 0, False, ""),
        ("link", Kind.SYMLINK, 0, False, "bin/tool"),
        ("text", Kind.FILE, 7, False, ""),
    ]
    assert GOOD[nodes[-1].offset :][:7] == b"content"
    assert [node.path for node in read(archive(file()), tmp_path)] == [""]
    assert len(read(archive(deep(200)), tmp_path)) == 201


@pytest.mark.parametrize("lie", LIES)
def test_lies(lie: str, tmp_path: Path) -> None:
    data, message = LIES[lie]
    with pytest.raises(HostileInputError) as caught:
        read(data, tmp_path)
    assert str(caught.value).startswith("thing-1.0: no archive of Nix: ")
    assert message in str(caught.value)


def test_every_beginning_is_refused(tmp_path: Path) -> None:
    for end in range(len(GOOD)):
        with pytest.raises(HostileInputError):
            read(GOOD[:end], tmp_path)


@settings(deadline=None, max_examples=300)
@given(st.data())
def test_damage_is_refused_or_harmless(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Whatever bytes say, no path leads out and no content lies outside of the archive."""
    damaged = bytearray(GOOD)
    for _ in range(data.draw(st.integers(1, 4))):
        damaged[data.draw(st.integers(0, len(GOOD) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path_factory.getbasetemp() / "damaged"
    path.write_bytes(damaged)
    try:
        nodes = nar.read(path, "x")
    except HostileInputError:
        return
    for node in nodes:
        assert not {"", ".", ".."} & set(node.path.split("/")) or node.path == ""
        assert 0 <= node.offset <= node.offset + node.size <= len(damaged)


def test_archives_are_written_as_nix_writes_them(tmp_path: Path) -> None:
    judges.require("nix")
    top = tmp_path / "thing"
    (top / "b/ü").mkdir(parents=True)
    (top / "b-").write_bytes(b"")
    (top / "b/program").write_bytes(random.Random(1).randbytes(100_001))
    (top / "b/program").chmod(0o700)
    (top / "a").symlink_to("b/program")
    os.mkdir(os.fsencode(top) + b"/B")
    out = io.BytesIO()
    nar.write(top, out)
    assert out.getvalue() == nixworld.nix(tmp_path, "nix-store", "--dump", str(top))
    assert [node.path for node in read(out.getvalue(), tmp_path)] == [*("", "B", "a", "b", "b/program", "b/ü", "b-")]


def path(number: int, size: int, *references: int) -> LockedNixPath:
    return LockedNixPath(_name(number), f"{number:064x}", size, tuple(sorted(map(_name, references))))


def _name(number: int) -> str:
    return f"{number:032d}-p{number}"


def test_layers_begin_with_what_many_need() -> None:
    """1 needs 2 and 3, 2 needs 4, 4 and 3 need 5; 6 stands alone. Names go the other way."""
    big = closure.FLOOR
    paths = [path(5, big), path(4, 5, 5), path(3, big + 1, 5), path(2, 7, 4), path(1, 9, 3, 2), path(6, 11)]
    assert closure.popularity(paths) == {_name(5): 4, _name(4): 2, _name(2): 1, _name(3): 1, _name(1): 0, _name(6): 0}
    groups = [[int(item.name[:32]) for item in group] for group in closure.layers(paths)]
    assert groups == [[5], [4, 2, 1, 6], [3]]
    assert [[int(item.name[:32]) for item in group] for group in closure.layers(paths, 2)] == [[5], [4, 2, 1, 6, 3]]
    assert [len(group) for group in closure.layers(paths, 1)] == [6]
    assert closure.layers([]) == ()


@settings(deadline=None, max_examples=30)
@given(st.integers(0, 150), st.integers(1, 60), st.randoms(use_true_random=False))
def test_every_path_is_in_one_layer(count: int, most: int, chance: random.Random) -> None:
    paths = [
        path(
            number,
            chance.choice((1, 1000, closure.FLOOR // 3, closure.FLOOR * 2)),
            *chance.sample(range(number), min(number, 3)),
        )
        for number in range(count)
    ]
    groups = closure.layers(paths, most)
    assert len(groups) <= most
    assert sorted(item for group in groups for item in group) == sorted(paths)
    chance.shuffle(paths)
    assert closure.layers(paths, most) == groups
    small = [group for group in groups[:-1] if sum(item.size for item in group) < closure.FLOOR]
    assert len(small) <= 1  # the one that was gathered last


def test_three_thousand_paths_that_all_need_one_another() -> None:
    paths = [path(number, 1, *range(max(0, number - 30), number)) for number in range(3000)]
    assert closure.popularity(paths)[_name(0)] == 2999


def test_a_circle() -> None:
    with pytest.raises(CircleError, match="p1 needs itself"):
        closure.layers([path(1, 1, 2), path(2, 1, 1), path(3, 1, 1)])


HASH = "227bd22547989c11fba211be046aa9b1209c04ec2a721eff8ab0be995c3abb3a"
NAME = "nbqnh49zmyfki09lclaczyiv2c12spnn-t"
INFO = {"narHash": "sha256-InvSJUeYnBH7ohG+BGqpsSCcBOwqch7/irC+mVw6uzo=", "narSize": 680, "references": []}


@pytest.mark.parametrize(
    "text",
    [
        "sha256-InvSJUeYnBH7ohG+BGqpsSCcBOwqch7/irC+mVw6uzo=",
        f"sha256:{HASH}",
        "sha256:0fmv79f9kgmhibziwwiaxh29q85im5m09ghilbxi374q8wjx4yr2"[:7] + "BASE32",
        {"algorithm": "sha256", "format": "base64", "hash": "InvSJUeYnBH7ohG+BGqpsSCcBOwqch7/irC+mVw6uzo="},
    ],
)
def test_hashes(text: object, tmp_path: Path) -> None:
    if isinstance(text, str) and text.endswith("BASE32"):
        judges.require("nix")
        text = "sha256:" + nixworld.nix(tmp_path, "hash", "to-base32", f"sha256:{HASH}").decode().strip()
    assert nixtool.sha256_of(text) == HASH


@pytest.mark.parametrize("text", ["", "md5-xx", "sha256-xx", "sha256:zz", "sha256-" + "A" * 12, None, 7, "sha512:00"])
def test_what_is_no_hash(text: object) -> None:
    with pytest.raises(ValueError, match=r"no|Invalid|Incorrect|padding"):
        nixtool.sha256_of(text)


@pytest.mark.parametrize(
    "form",
    [
        lambda item: [{"path": f"/nix/store/{NAME}", **item}],
        lambda item: {f"/nix/store/{NAME}": item},
        lambda item: {NAME: item},
        lambda item: {"version": 2, "storeDir": "/nix/store", "info": {NAME: item}},
    ],
)
def test_what_nix_says_in_any_version(form: Callable[[object], object]) -> None:
    assert list(nixtool.described(form({**INFO, "references": [f"/nix/store/{NAME}"]}))) == [
        LockedNixPath(NAME, HASH, 680)
    ]


@pytest.mark.parametrize(
    "document",
    [
        [{**INFO, "path": "/nix/store/../../etc/passwd"}],
        [{**INFO, "path": f"/elsewhere/{NAME}"}],
        [{**INFO, "path": f"/nix/store/{NAME}/bin"}],
        [{**INFO, "path": f"/nix/store/{NAME}", "references": ["/etc"]}],
        [{**INFO}],
        [{"path": f"/nix/store/{NAME}", "valid": False}],
        {f"/nix/store/{NAME}": None},
        [7],
    ],
)
def test_what_nix_cannot_mean(document: object) -> None:
    with pytest.raises(HostileInputError):
        list(nixtool.described(document))
