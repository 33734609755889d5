"""Damaged and hostile wheels: a layer that others read, or an error that names the wheel; never anything else."""

from __future__ import annotations

import gzip
import io
import subprocess
import tarfile
import unicodedata
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from wheelmaker import WHEEL, Member, Wheel, archive

from builder.errors import BuilderError, HostileInputError
from builder.layers.merge import CollisionError, Origin, merge
from builder.layers.pack import pack
from builder.layers.unpack import unpack
from builder.sources.wheel import install, with_record

ENTRY_POINTS = b"[console_scripts]\ndemo = demo:main\n[gui_scripts]\nwin = demo.gui:App.run [extra]\n"
WHEELS: Mapping[str, Wheel] = {
    "small": Wheel(),
    "everything": Wheel(
        files={
            "demo/__init__.py": b"x = 1\n" * 50,
            "demo/stored.bin": Member("demo/stored.bin", bytes(range(200)), method=0),
            "demo/empty.py": b"",
            "demo/sub/": Member("demo/sub/", mode=0o40755),
            "demo/größe.py": b"y = 2\n",
            "demo-1.0.data/scripts/run": b"#!python -u\nprint(1)\n",
            "demo-1.0.data/data/share/file": Member("demo-1.0.data/data/share/file", b"d" * 99, descriptor="32"),
            "demo-1.0.data/headers/demo.h": Member("demo-1.0.data/headers/demo.h", b"h", descriptor="64 bare"),
            "demo-1.0.dist-info/entry_points.txt": ENTRY_POINTS,
        }
    ),
}
GOOD: Mapping[str, bytes] = {
    **{name: wheel.bytes() for name, wheel in WHEELS.items()},
    "zip64": archive(WHEELS["everything"].members(), zip64={}, needs_zip64=True),
    "stored": archive([replace(member, method=0, descriptor="") for member in WHEELS["everything"].members()]),
    "commented": archive(WHEELS["small"].members(), comment=b"made by hand"),
}
REFUSALS = (HostileInputError, CollisionError)


def layer_of(data: bytes, folder: Path) -> Path | None:
    """The layer of a wheel; None if it was refused with words of our own."""
    path, blob = folder / "object", folder / "layer.gz"
    path.write_bytes(data)
    try:
        files = install(path, "demo-1.0-py3-none-any.whl", "demo", "1.0", "3.11")
        entries = merge([Origin("demo-1.0-py3-none-any.whl", with_record(files, ()))])
        pack(entries, blob, folder / "windows", 4096)
    except REFUSALS as refusal:
        assert_for_users(refusal)
        return None
    return blob


def assert_for_users(error: BuilderError) -> None:
    """It names the wheel, says what to do, and takes nothing out of it that a terminal would obey."""
    assert "demo-1.0-py3-none-any.whl" in str(error)
    assert error.hint
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in str(error))


def assert_sound(data: bytes, folder: Path, judge: bool = False) -> None:
    blob = layer_of(data, folder)
    if blob is None:
        return
    with tarfile.open(fileobj=io.BytesIO(gzip.decompress(blob.read_bytes()))) as layer:
        for member in layer:
            assert member.name.startswith("opt")
            assert not {"", ".", ".."} & set(member.name.split("/"))
            if member.isfile():
                file = layer.extractfile(member)
                assert file is not None
                assert len(file.read()) == member.size
    if judge:
        subprocess.run(["gzip", "-t", blob], check=True)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


@pytest.mark.parametrize("name", GOOD)
def test_the_seeds_are_good(name: str, folder: Path) -> None:
    assert layer_of(GOOD[name], folder)
    assert_sound(GOOD[name], folder, judge=True)


PLACE = st.floats(0, 1, exclude_max=True)
EDITS = st.one_of(
    st.tuples(st.just("flip"), PLACE, st.integers(0, 7)),
    st.tuples(st.just("set"), PLACE, st.sampled_from([0, 1, 0x7F, 0x80, 0xFF])),
    st.tuples(st.just("cut"), PLACE, st.integers(1, 64)),
    st.tuples(st.just("insert"), PLACE, st.binary(min_size=1, max_size=16)),
    st.tuples(st.just("move"), PLACE, PLACE),
    st.tuples(st.just("word"), PLACE, st.sampled_from([0, 1, 0xFFFF, 0xFFFFFFFF, 0x7FFFFFFF])),
)
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


def edited(data: bytes, edits: list[tuple[str, float, object]]) -> bytes:
    out = bytearray(data)
    for kind, place, value in edits:
        at = int(place * len(out))
        match kind, value:
            case "flip", int(bit) if out:
                out[at] ^= 1 << bit
            case "set", int(byte) if out:
                out[at] = byte
            case "cut", int(size):
                del out[at : at + size]
            case "insert", bytes(more):
                out[at:at] = more
            case "move", float(other):
                source = int(other * len(out))
                out[at : at + 46] = out[source : source + 46]
            case "word", int(word):
                out[at : at + 4] = word.to_bytes(4, "little")
    return bytes(out)


@settings(max_examples=600, deadline=20_000, suppress_health_check=SLOW)
@given(name=st.sampled_from(sorted(GOOD)), edits=st.lists(EDITS, min_size=1, max_size=4))
def test_damaged_wheels(name: str, edits: list[tuple[str, float, object]], folder: Path) -> None:
    assert_sound(edited(GOOD[name], edits), folder)


@settings(max_examples=150, deadline=20_000, suppress_health_check=SLOW)
@given(one=st.sampled_from(sorted(GOOD)), other=st.sampled_from(sorted(GOOD)), here=PLACE, there=PLACE)
def test_wheels_spliced_from_two(one: str, other: str, here: float, there: float, folder: Path) -> None:
    first, second = GOOD[one], GOOD[other]
    assert_sound(first[: int(here * len(first))] + second[int(there * len(second)) :], folder)


def test_wheels_cut_off(folder: Path) -> None:
    whole = GOOD["small"]
    for size in range(len(whole)):
        assert layer_of(whole[:size], folder) is None


# Deeper than checksums let damage come: the zip is sound, what is in it is not.

NAMES = st.one_of(
    st.sampled_from(
        [
            "demo/a.py",
            "a",
            "a/b",
            "demo-1.0.data/scripts/demo",
            "demo-1.0.data/purelib/a",
            "demo-1.0.data/data/lib/python3.11/site-packages/a",
            "demo-1.0.data/data/bin/demo",
            "demo-1.0.data/data/pyvenv.cfg",
            "demo-1.0.data/purelib/demo-1.0.dist-info/METADATA",
            "demo-1.0.dist-info/INSTALLER",
            "demo-1.0.dist-info/RECORD.jws",
            "demo/RECORD.jws",
            "Demo-1.0.dist-info/x",
            "../a",
            "/a",
        ]
    ),
    st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12),
)
MODES = st.sampled_from([0o100644, 0o100755, 0o104755, 0, 0o755, 0o120777, 0o40755])
FILES = st.lists(st.tuples(NAMES, st.binary(max_size=40), MODES, st.sampled_from([0, 8])), max_size=4)


@settings(max_examples=300, deadline=20_000, suppress_health_check=SLOW)
@given(files=FILES)
def test_wheels_of_any_files(files: list[tuple[str, bytes, int, int]], folder: Path) -> None:
    made = {name: Member(name, data, mode=mode, method=method) for name, data, mode, method in files}
    assert_sound(Wheel(files=made).bytes(), folder)


def words(text: str, *more: str) -> st.SearchStrategy[str]:
    """Texts made of the pieces of one, and of some that have a meaning."""
    pieces = [
        *text.splitlines(keepends=True),
        *more,
        ",",
        '"',
        "\n",
        "\r",
        "\r\n",
        "=",
        " ",
        ":",
        "[",
        "]",
        "\0",
        "é",
        "../",
    ]
    return st.lists(st.sampled_from(pieces) | st.text(max_size=5), max_size=14).map("".join)


RECORD = next(member.data for member in WHEELS["small"].members() if str(member.name).endswith("/RECORD")).decode()


def encoded(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


@settings(max_examples=250, deadline=20_000, suppress_health_check=SLOW)
@given(text=words(RECORD, "sha256=", "sha512=", "md5=AA", "demo/__init__.py", "RECORD"))
def test_any_record(text: str, folder: Path) -> None:
    assert_sound(Wheel(record=encoded(text)).bytes(), folder)


@settings(max_examples=250, deadline=20_000, suppress_health_check=SLOW)
@given(text=words(ENTRY_POINTS.decode(), "[DEFAULT]\n", "[console_scripts]\n", "a = b:c\n", "%(x)s", "#", ";", "  "))
def test_any_entry_points(text: str, folder: Path) -> None:
    files = {"demo.py": b"", "demo-1.0.dist-info/entry_points.txt": encoded(text)}
    assert_sound(Wheel(files=files).bytes(), folder)


@settings(max_examples=100, deadline=20_000, suppress_health_check=SLOW)
@given(
    stem=words("demo\n-\n1.0", "-", "+", "_", "1.0", "Demo", ".dist-info", ".data", "!").map(
        lambda text: text.replace("\n", "")
    )
)
def test_any_name_of_the_metadata(stem: str, folder: Path) -> None:
    files = {f"{stem}.data/scripts/run": b"#!python\n", "demo.py": b""}
    assert_sound(Wheel(stem, files).bytes(), folder)


@settings(max_examples=60, deadline=20_000, suppress_health_check=SLOW)
@given(text=words(WHEEL.decode(), "Wheel-Version: 1.0\n", "Wheel-Version:"))
def test_any_wheel_file(text: str, folder: Path) -> None:
    assert_sound(Wheel(wheel=encoded(text)).bytes(), folder)


@settings(max_examples=100, deadline=20_000, suppress_health_check=SLOW)
@given(raw=st.binary(max_size=60), size=st.integers(0, 300), crc=st.sampled_from([0, 1, None]))
def test_any_deflate_stream(raw: bytes, size: int, crc: int | None, folder: Path) -> None:
    lies: dict[str, int | bytes] = {"size": size}
    if crc is not None:
        lies["crc"] = crc
    member = Member("demo.py", b"", raw=raw, central=lies, local=lies)
    assert_sound(Wheel(files={"demo.py": member}, rows={"demo.py": f"demo.py,sha256=AAAA,{size}"}).bytes(), folder)


def test_a_wheel_that_is_accepted_can_be_unpacked(folder: Path, tmp_path: Path) -> None:
    path = folder / "object"
    for number, data in enumerate(GOOD.values()):
        path.write_bytes(data)
        entries = merge([Origin("demo", with_record(install(path, "demo", "demo", "1.0", "3.11"), ()))])
        unpack(entries, tmp_path / str(number))
        assert (tmp_path / str(number) / "opt/venv/lib/python3.11/site-packages/demo/__init__.py").is_file()
