"""Any bytes: the .deb reader gives entries that can be written, or a HostileInputError, and nothing else."""

from __future__ import annotations

import lzma
import tempfile
from pathlib import Path

from debarchive import Item, ar, deb, folder, hardlink, stanza, symlink, tar
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.errors import HostileInputError
from builder.layers.tar import Kind
from builder.layers.unpack import chunks, unpack
from builder.sources.deb import Deb, read

ITEMS = (
    folder("./usr/"),
    Item("./usr/tool", b"#!/bin/sh\n", mode=0o4755),
    Item("./usr/large", bytes(range(256)) * 40),
    hardlink("./usr/copy", "./usr/tool"),
    symlink("./usr/link", "tool"),
    Item("./" + "long-" * 30, b"x"),
)
PLAIN = deb(ITEMS, control_suffix="", data_suffix="")
PACKED = (deb(ITEMS), deb(ITEMS, control_suffix=".gz", data_suffix=".gz"))
TAR = tar(ITEMS)

EDITS = st.lists(st.tuples(st.integers(0, 1 << 20), st.binary(max_size=12), st.integers(0, 12)), min_size=1, max_size=6)


def outcome(path: Path, spool: Path) -> Deb | HostileInputError:
    try:
        return read(path, spool, limit=4 << 20)
    except HostileInputError as refusal:
        return refusal


def check(data: bytes) -> None:
    with tempfile.TemporaryDirectory() as name:
        directory = Path(name)
        (directory / "x.deb").write_bytes(data)
        found = outcome(directory / "x.deb", directory / "spool")
        if isinstance(found, HostileInputError):
            assert str(found).startswith("x.deb: ")
            return
        unpack(found.entries, directory / "root")
        for entry in found.entries:
            assert (directory / "root" / entry.path).parent.resolve().is_relative_to(directory.resolve())
            if entry.kind is Kind.FILE:
                assert sum(map(len, chunks(entry.content))) == entry.size


def edited(data: bytes, edits: list[tuple[int, bytes, int]]) -> bytes:
    """Replaces a few bytes by others at some places."""
    for place, new, count in edits:
        at = place % (len(data) + 1)
        data = data[:at] + new + data[at + count :]
    return data


def with_sums(data: bytes) -> bytes:
    """Makes the checksums of the tar's headers true, where something still looks like one."""
    blocks = [bytearray(data[at : at + 512]) for at in range(0, len(data), 512)]
    for block in blocks:
        if len(block) == 512 and block[257:262] == b"ustar":
            block[148:156] = b" " * 8
            block[148:156] = b"%06o\0 " % sum(block)
    return b"".join(blocks)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=400))
def test_anything(data: bytes) -> None:
    check(data)
    check(b"!<arch>\n" + data)


@settings(max_examples=150, deadline=None)
@given(EDITS)
def test_a_changed_deb(edits: list[tuple[int, bytes, int]]) -> None:
    check(edited(PLAIN, edits))
    for packed in PACKED:
        check(edited(packed, edits))


@settings(max_examples=150, deadline=None)
@given(st.lists(st.tuples(st.integers(0, len(TAR) - 1), st.binary(min_size=1, max_size=12)), min_size=1, max_size=6))
def test_a_changed_tar_whose_sums_are_true(edits: list[tuple[int, bytes]]) -> None:
    data = bytearray(TAR)
    for at, new in edits:
        data[at : at + len(new)] = new[: len(data) - at]
    changed = with_sums(bytes(data))
    control = tar([Item("./control", stanza("sample").encode())])
    check(ar([("debian-binary", b"2.0\n"), ("control.tar", control), ("data.tar.xz", lzma.compress(changed))]))


@settings(max_examples=100, deadline=None)
@given(st.text(st.characters(codec="utf-8"), max_size=80))
def test_any_control_file(text: str) -> None:
    check(deb(control=text))
    check(deb(control=stanza("sample") + text))
