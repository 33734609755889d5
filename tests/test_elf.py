"""ELF files: read as the loader reads them, judged by pyelftools; every lie is refused by name."""

from __future__ import annotations

import os
import re
import struct
import sys
import tempfile
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from elfmaker import BASE, Library, Made, window
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.binaries import elf, inputs
from builder.binaries.facts import BinaryFacts
from builder.binaries.scan import scan
from builder.binaries.window import BinaryError, Window

FULL = Library(
    needed=("libcudart.so.13", "libc.so.6"),
    rpath="$ORIGIN/../lib:/opt/lib",
    runpath="$ORIGIN",
    needs=(("libstdc++.so.6", ("GLIBCXX_3.4", "CXXABI_1.3")), ("libc.so.6", ("GLIBC_2.34",))),
    defines=("MADE_1.0", "MADE_2.0"),
    rodata=b"libcudnn.so.9\0/opt/lib/libother.so\0cannot open libnot.so.1: error\0libno.so.1 \0",
    sections={".nv_fatbin": b""},
)


def facts(data: bytes, folder: Path) -> BinaryFacts:
    with window(data, folder) as file:
        return inputs.read_binary("/lib/made.so", file)


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize("wide", [True, False])
def test_what_a_library_says(wide: bool, order: str, tmp_path: Path) -> None:
    made = Library(**{**vars(FULL), "wide": wide, "order": order}).made()
    assert facts(made.data, tmp_path) == BinaryFacts(
        path="/lib/made.so",
        size=len(made.data),
        machine="x86_64",
        soname="libmade.so.1",
        needed=("libcudart.so.13", "libc.so.6"),
        rpath=("$ORIGIN/../lib", "/opt/lib"),
        runpath=("$ORIGIN",),
        needs=(("libc.so.6", ("GLIBC_2.34",)), ("libstdc++.so.6", ("CXXABI_1.3", "GLIBCXX_3.4"))),
        defines=("MADE_1.0", "MADE_2.0"),
        opens=("/opt/lib/libother.so", "libcudnn.so.9"),
    )


def test_what_is_not_said(tmp_path: Path) -> None:
    assert facts(Library(soname=None).made().data, tmp_path) == BinaryFacts(
        path="/lib/made.so", size=len(Library(soname=None).made().data), machine="x86_64"
    )


def test_machines(tmp_path: Path) -> None:
    names = {183: "aarch64", 243: "riscv", 4711: "machine-4711"}
    assert {number: facts(Library(machine=number).made().data, tmp_path).machine for number in names} == names


def test_without_section_headers(tmp_path: Path) -> None:
    """The loader needs none."""
    assert facts(FULL.made().patched("header", "<Q", 0, 0x28), tmp_path).needed == FULL.needed


def _real_files() -> list[Path]:
    """This Python, and libraries of the system and of this environment."""
    folders = [Path("/usr/lib/x86_64-linux-gnu"), Path("/usr/lib/aarch64-linux-gnu"), *map(Path, sys.path)]
    found = [
        path for folder in folders for path in sorted(folder.glob("**/*.so*" if "site" in str(folder) else "*.so*"))
    ]
    libraries = [path for path in found if not path.is_symlink() and path.is_file() and _is_elf(path)]
    return [Path(sys.executable).resolve(), *libraries[:: max(1, len(libraries) // 60)]]


def _is_elf(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(4) == elf.MAGIC and path.stat().st_size < 40 << 20


@pytest.mark.parametrize("path", _real_files(), ids=lambda path: path.name)
def test_pyelftools_reads_the_same(path: Path) -> None:
    said = _judged(path)
    with path.open("rb") as file:
        found = elf.read(Window(file.fileno(), 0, path.stat().st_size, path.name))
    assert {name: getattr(found, name) for name in said} == said


def _judged(path: Path) -> dict[str, Any]:
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerDefSection, GNUVerNeedSection

    with path.open("rb") as file:
        judge = ELFFile(file)
        segments: Any = judge.iter_segments("PT_DYNAMIC")
        tags = [tag for segment in segments for tag in segment.iter_tags()]
        needs: dict[str, set[str]] = {}
        defines: set[str] = set()
        for section in judge.iter_sections():
            if isinstance(section, GNUVerNeedSection):
                for library, versions in section.iter_versions():
                    needs.setdefault(str(library.name), set()).update(str(version.name) for version in versions)
            elif isinstance(section, GNUVerDefSection):
                for version, names in section.iter_versions():
                    if not version["vd_flags"] & 1:
                        defines.add(str(next(iter(names)).name))

        def path_of(tag: str, attribute: str) -> tuple[str, ...]:
            return tuple(
                part for item in tags if item.entry.d_tag == tag for part in getattr(item, attribute).split(":")
            )

        return {
            "needed": tuple(item.needed for item in tags if item.entry.d_tag == "DT_NEEDED"),
            "soname": next((item.soname for item in tags if item.entry.d_tag == "DT_SONAME"), None),
            "rpath": path_of("DT_RPATH", "rpath"),
            "runpath": path_of("DT_RUNPATH", "runpath"),
            "needs": tuple((library, tuple(sorted(found))) for library, found in sorted(needs.items())),
            "defines": tuple(sorted(defines)),
        }


MADE = FULL.made()
CUT = [len(MADE.data) * part // 10 for part in range(10)]


def _dynamic(number: int, value: int, field: int = 8) -> bytes:
    """The tag with this number has another value."""
    tags = struct.iter_unpack("<qQ", MADE.data[MADE.at["dynamic"] : MADE.at["rodata"]])
    index = next(index for index, (tag, _) in enumerate(tags) if tag == number)
    return MADE.patched("dynamic", "<Q", value, 16 * index + field)


def _library(**changes: Any) -> bytes:
    return Library(**{**vars(FULL), **changes}).made().data


LIES: dict[str, tuple[Callable[[], bytes], str]] = {
    "another class": (lambda: MADE.patched("header", "B", 3, 4), "its ELF header is none"),
    "another byte order": (lambda: MADE.patched("header", "B", 0, 5), "its ELF header is none"),
    "another version": (lambda: MADE.patched("header", "B", 2, 6), "its ELF header is none"),
    "a header alone": (lambda: MADE.data[:40], "the ELF header reaches beyond the end"),
    "program headers beyond the end": (
        lambda: MADE.patched("header", "<Q", 1 << 40, 0x20),
        "the table of program headers reaches beyond the end",
    ),
    "program headers at the last byte there is": (
        lambda: MADE.patched("header", "<Q", (1 << 64) - 1, 0x20),
        "the table of program headers reaches beyond the end",
    ),
    "program headers of another size": (
        lambda: MADE.patched("header", "<H", 55, 0x36),
        "program headers have the size 55",
    ),
    "too many program headers": (lambda: MADE.patched("header", "<H", 0xFFFF, 0x38), "the number 65535"),
    "a segment beyond the end": (lambda: MADE.patched("programs", "<Q", 1 << 50, 32), "a segment reaches to byte"),
    "a dynamic section beyond the end": (
        lambda: MADE.patched("programs", "<Q", 1 << 50, 56 + 8),
        "a segment reaches to byte",
    ),
    "section headers beyond the end": (
        lambda: MADE.patched("header", "<Q", 1 << 40, 0x28),
        "the table of section headers reaches beyond the end",
    ),
    "section headers of another size": (
        lambda: MADE.patched("header", "<H", 63, 0x3A),
        "section headers have the size 63",
    ),
    "names in no section": (lambda: MADE.patched("header", "<H", 9, 0x3E), "their names in number 9"),
    "a section beyond the end": (lambda: MADE.patched("sections", "<Q", 1 << 40, 64 * 2 + 32), "beyond its end"),
    "a name of a section beyond all names": (
        lambda: MADE.patched("sections", "<I", 1 << 20, 64 * 2),
        "the name of a section lies beyond the end",
    ),
    "a million sections": (
        lambda: _patched(MADE.patched("header", "<H", 0, 0x3C), "sections", "<Q", 1_000_000, 32),
        "it has 1000000 sections",
    ),
    "strings at no address": (
        lambda: _dynamic(5, 17),
        "the table of strings is at the address 0x11, which is in no segment",
    ),
    "strings beyond the end": (lambda: _dynamic(10, 1 << 40), "its table of strings reaches beyond its end"),
    "a name beyond the strings": (lambda: _dynamic(1, 1 << 30), "a name lies beyond the end"),
    "a name without an end": (
        lambda: _library(needed=("x" * 5000,)),
        "a name has no end",
    ),
    "a search path without an end": (lambda: _library(runpath="x:" * 40_000), "a search path has no end"),
    "too many libraries": (lambda: _library(more=[(1, 0)] * 5000), "it needs 5002 libraries"),
    "a dynamic section of megabytes": (lambda: _library(more=[(99, 0)] * 70_000), "its dynamic section has"),
    "versions at no address": (lambda: _dynamic(0x6FFFFFFE, 17), "the table of versions is at the address 0x11"),
    "versions that are none": (
        lambda: _dynamic(0x6FFFFFFE, BASE + MADE.at["rodata"] + 40),
        "a name lies beyond the end",
    ),
    "billions of versions": (lambda: _dynamic(0x6FFFFFFF, 1 << 32), "it has a list of 4294967296 versions"),
    "a list of versions that ends early": (
        lambda: MADE.patched("needs", "<I", 0, 12),
        "a list of 2 versions ends after 1",
    ),
    "a version beyond the end": (lambda: MADE.patched("needs", "<I", 1 << 31, 8), "reaches beyond the end"),
    "versions of one library that end early": (
        lambda: MADE.patched("needs", "<I", 0, 16 + 12),
        "a list of 2 versions ends after 1",
    ),
    "a defined version beyond the end": (
        lambda: MADE.patched("defines", "<I", 1 << 31, 28 + 12),
        "reaches beyond the end",
    ),
    "more versions than there can be": (
        lambda: _library(needs=[(f"lib{number}.so", [f"V_{n}" for n in range(200)]) for number in range(90)]),
        "it has more than 16384 versions",
    ),
    "more libraries to open than there can be": (
        lambda: _library(rodata=b"".join(b"lib%d.so\0" % number for number in range(5000))),
        "names of libraries",
    ),
    **{f"{size} bytes of it": (lambda size=size: MADE.data[:size], "") for size in CUT},  # type: ignore[misc]
}


def _patched(data: bytes, place: str, form: str, value: int, offset: int) -> bytes:
    return Made(data, MADE.at).patched(place, form, value, offset)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(lie: str, tmp_path: Path) -> None:
    make, why = LIES[lie]
    with pytest.raises(BinaryError, match=rf"^made\.so: .*{re.escape(why)}") as caught:
        facts(make(), tmp_path)
    assert caught.value.hint


def test_a_loop_of_versions_ends(tmp_path: Path) -> None:
    """A list that leads back is bounded by its own count, which is bounded."""
    data = MADE.patched("needs", "<I", (1 << 32) - 48, 12)
    with pytest.raises(BinaryError, match="reaches beyond the end"):
        facts(data, tmp_path)


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    """A file of 256 MiB, most of which is a hole."""
    library = FULL.made()
    path = tmp_path / "large.so"
    path.write_bytes(library.patched("programs", "<Q", 1 << 28, 32))
    os.truncate(path, 1 << 28)
    with path.open("rb") as file:
        tracemalloc.start()
        found = inputs.read_binary("large.so", Window(file.fileno(), 0, 1 << 28, "large.so"))
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert found.opens == ("/opt/lib/libother.so", "libcudnn.so.9")
    assert peak < 16 << 20


def test_names_across_the_pieces_of_a_file(tmp_path: Path) -> None:
    name = b"\0libacross.so.7\0"
    for shift in range(-len(name), 2):
        data = bytearray(3 << 20)
        data[(1 << 20) + shift : (1 << 20) + shift + len(name)] = name
        with window(bytes(data), tmp_path) as file:
            assert scan(file, [(0, len(data))]).libraries == ("libacross.so.7",)


def test_where_a_name_may_begin(tmp_path: Path) -> None:
    """After a NUL or with the part of the file, and not in the midst of one."""
    with window(b"libfirst.so\0x libno.so\0libsecond.so.2\0", tmp_path) as file:
        assert scan(file, [(0, file.size)]).libraries == ("libfirst.so", "libsecond.so.2")
    text = b"x" * ((1 << 20) - 510) + b"libno.so.1\0" + bytes(600)
    with window(text, tmp_path) as file:
        assert scan(file, [(0, file.size)]).libraries == ()


def test_the_last_of_two_counts(tmp_path: Path) -> None:
    """As for ld.so."""
    assert facts(Library(soname="libone.so", more=[(14, 4)]).made().data, tmp_path).soname == "one.so"


EDITS = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=9), st.integers(0, 9)), min_size=1, max_size=5)
PLACES = st.sampled_from(sorted(MADE.at.values()))
NUMBERS = st.lists(st.tuples(PLACES, st.integers(0, 120), st.integers(0, (1 << 64) - 1)), max_size=3)


@settings(max_examples=300, deadline=None)
@given(edits=EDITS, numbers=NUMBERS)
def test_any_bytes(edits: list[tuple[int, bytes, int]], numbers: list[tuple[int, int, int]]) -> None:
    """Facts, or an error that names the file, and nothing else."""
    data = bytearray(MADE.data)
    for place, offset, value in numbers:
        if place + offset + 8 <= len(data):
            struct.pack_into("<Q", data, place + offset, value)
    for place, new, count in edits:
        at = place % (len(data) + 1)
        data[at : at + count] = new
    with tempfile.TemporaryDirectory() as folder:
        refusal = refused(bytes(data), Path(folder))
    assert refusal is None or refusal.startswith("made.so: ")


def refused(data: bytes, folder: Path) -> str | None:
    try:
        facts(data, folder)
    except BinaryError as error:
        return str(error)
    return None
