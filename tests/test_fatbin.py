"""GPU code in binaries: judged by NVIDIA's own cuobjdump; containers that lie are refused by name."""

from __future__ import annotations

import gzip
import re
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import judges
import pytest
from elfmaker import Library, Module, fatbin, window
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.binaries import elf, inputs
from builder.binaries import fatbin as fatbins
from builder.binaries.facts import BinaryFacts
from builder.binaries.fatbin import GpuCode
from builder.binaries.window import BinaryError, Window

DATA = Path(__file__).parent / "data" / "gpu"
"""Small libraries of ours, see make.sh there: all suffixes, no kernel at all, relocatable code only."""


def facts(data: bytes, folder: Path) -> BinaryFacts:
    with window(data, folder) as file:
        return inputs.read_binary("made.so", file)


def library(section: bytes = b"", name: str = ".nv_fatbin", rodata: bytes = b"") -> bytes:
    return Library(sections={name: section} if section else {}, rodata=rodata).made().data


def shipped(name: str) -> Path:
    """A library of an NVIDIA wheel that is a test dependency."""
    found = [Path(folder) / "nvidia" / name for folder in sys.path if (Path(folder) / "nvidia" / name).is_file()]
    return found[0] if found else judges.missing(name, "the wheel is not installed")


def unpacked(name: str, folder: Path) -> Path:
    path = folder / name
    path.write_bytes(gzip.decompress((DATA / f"{name}.gz").read_bytes()))
    return path


LIBRARIES: dict[str, Callable[[Path], Path]] = {
    "CUDA 13.3, zstd": lambda _: shipped("cu13/lib/libnvjpeg.so.13"),
    "CUDA 12.1, LZ4": lambda _: shipped("nvjpeg/lib/libnvjpeg.so.12"),
    **{name: lambda folder, name=name: unpacked(name, folder) for name in ("gpu.so", "none.so", "rdc.so")},  # type: ignore[misc]
}


@pytest.mark.parametrize("name", LIBRARIES)
def test_cuobjdump_says_the_same(name: str, tmp_path: Path) -> None:
    path = LIBRARIES[name](tmp_path)
    with path.open("rb") as file:
        whole = Window(file.fileno(), 0, path.stat().st_size, path.name)
        found = fatbins.read(whole, elf.read(whole).gpu)
    assert (found.sass, found.ptx) == judged(path)


def judged(path: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """What cuobjdump lists. Only where it unpacks the code does it tell `sm_100f` from `sm_100`."""
    judge = judges.require("cuobjdump")
    texts = [
        subprocess.run([judge, option, path], capture_output=True, text=True, check=False).stdout
        for option in ("-symbols", "--list-ptx")
    ]
    sass = set(re.findall(r"Fatbin elf code:\n=+\narch = (sm_\w+)", texts[0]))
    ptx = {name.replace("sm", "compute") for name in re.findall(r"\.(sm_\w+)\.ptx", texts[1])}
    return ordered(sass), ordered(ptx)


def ordered(names: set[str]) -> tuple[str, ...]:
    return tuple(sorted(names, key=lambda name: (int(re.findall(r"\d+", name)[0]), name)))


def test_all_that_nvcc_writes(tmp_path: Path) -> None:
    """Also without the judge; link-time code (LTO) runs nowhere."""
    found = facts(unpacked("gpu.so", tmp_path).read_bytes(), tmp_path)
    assert found.sass == ("sm_75", "sm_80", "sm_90a", "sm_100f", "sm_103a", "sm_120")
    assert found.ptx == ("compute_80", "compute_90a", "compute_100f", "compute_120")
    assert found.isa == "9.5"
    assert [name for name, _ in found.code] == [*found.sass, *found.ptx]
    assert sum(size for _, size in found.code) < found.size


def test_a_module_without_a_kernel_does_not_count(tmp_path: Path) -> None:
    found = facts(unpacked("none.so", tmp_path).read_bytes(), tmp_path)
    assert (found.sass, found.code) == (("sm_75",), ())


def test_relocatable_code_counts_where_there_is_no_other(tmp_path: Path) -> None:
    code = fatbin("sm_90")
    assert facts(library(code, "__nv_relfatbin"), tmp_path).sass == ("sm_90",)
    both = Library(sections={"__nv_relfatbin": code, ".nv_fatbin": fatbin("sm_80")}).made().data
    assert facts(both, tmp_path).sass == ("sm_80",)


def test_many_containers_and_the_zeros_between_them(tmp_path: Path) -> None:
    section = fatbin("sm_80", "compute_80") + bytes(40) + fatbin("sm_86", "sm_90a") + bytes(9000) + fatbin("sm_120")
    found = facts(library(section), tmp_path)
    assert (found.sass, found.ptx) == (("sm_80", "sm_86", "sm_90a", "sm_120"), ("compute_80",))
    assert found.code[0] == ("sm_80", 4096)


def test_headers_may_be_longer_and_kinds_unknown(tmp_path: Path) -> None:
    section = fatbin(Module("sm_100f", header=120), Module("sm_90", kind=8), Module("sm_75", kind=64), "sm_120")
    assert facts(library(section), tmp_path).sass == ("sm_100f", "sm_120")


def test_what_a_library_keeps_for_itself(tmp_path: Path) -> None:
    """As cuFFT: its `.nv_fatbin` has a module without a kernel, its data all others; cuobjdump does not see them."""
    data = b"x" * 13 + fatbin("sm_90", Module("compute_90", isa=(7, 8))) + b"y" * 5 + b"\x50\xed\x55\xba\x01\0\x10\0 no"
    found = facts(library(fatbin(Module("sm_75", bytes(100))), rodata=data), tmp_path)
    assert (found.sass, found.ptx, found.isa) == (("sm_75", "sm_90"), ("compute_90",), "7.8")
    assert found.code == (("sm_90", 4096), ("compute_90", 4096))


@pytest.mark.parametrize(
    ("flags", "abi", "architecture"),
    [
        (0x00550555, (0x33, 7), "sm_85"),
        (0x005A0D5A, (0x33, 7), "sm_90a"),
        (0x06004B04, (0x41, 8), "sm_75"),
        (0x06006402, (0x41, 8), "sm_100"),
    ],
)
def test_cubins(flags: int, abi: tuple[int, int], architecture: str) -> None:
    """The flags of cubins of nvcc 13.5, and of their form before (LLVM's ELF.h)."""
    assert fatbins.of_cubin(5000, flags, abi) == GpuCode(sass=(architecture,), code=((architecture, 5000),))


GOOD = fatbin("sm_80", "compute_80")
LIES: dict[str, tuple[bytes, str]] = {
    "no container": (b"x" * 64, "its GPU code at byte"),
    "another magic": (GOOD + b"\x01" + GOOD[1:], "is in no known form"),
    "another version": (GOOD[:4] + b"\x02" + GOOD[5:], "is in no known form"),
    "a header shorter than itself": (GOOD[:6] + b"\x08" + GOOD[7:], "is in no known form"),
    "a container beyond its section": (GOOD[:8] + struct.pack("<Q", 1 << 40) + GOOD[16:], "reaches beyond its section"),
    "a container cut off": (GOOD[:-8], "reaches beyond its section"),
    "an entry without room": (struct.pack("<4s2HQ", GOOD[:4], 1, 16, 8) + bytes(8), "is damaged"),
    "an entry's header shorter than itself": (GOOD[:20] + struct.pack("<I", 0) + GOOD[24:], "header of its GPU code"),
    "an entry beyond its container": (GOOD[:24] + struct.pack("<Q", 1 << 40) + GOOD[32:], "header of its GPU code"),
    "an architecture that cannot be": (GOOD[:44] + struct.pack("<I", 1 << 31) + GOOD[48:], "header of its GPU code"),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_is_refused(lie: str, tmp_path: Path) -> None:
    section, why = LIES[lie]
    with pytest.raises(BinaryError, match=rf"^made\.so: .*{re.escape(why)}"):
        facts(library(section), tmp_path)


def test_more_entries_than_there_can_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fatbins, "_MAX_ENTRIES", 3)
    with pytest.raises(BinaryError, match="more than can be"):
        facts(library(fatbin(*["sm_80"] * 4)), tmp_path)


@pytest.mark.parametrize("lie", LIES)
def test_a_lie_in_data_counts_for_nothing(lie: str, tmp_path: Path) -> None:
    assert facts(library(fatbin("sm_75"), rodata=LIES[lie][0]), tmp_path).sass[:1] == ("sm_75",)


EDITS = st.lists(st.tuples(st.integers(0, 1 << 14), st.binary(max_size=9), st.integers(0, 9)), min_size=1, max_size=4)


@settings(max_examples=200, deadline=None)
@given(edits=EDITS, in_data=st.booleans())
def test_any_bytes(edits: list[tuple[int, bytes, int]], in_data: bool) -> None:
    data = bytearray(fatbin("sm_80", "compute_80") + bytes(8) + fatbin("sm_90a"))
    for place, new, count in edits:
        at = place % (len(data) + 1)
        data[at : at + count] = new
    made = library(rodata=bytes(data)) if in_data else library(bytes(data))
    with tempfile.TemporaryDirectory() as folder:
        refusal = refused(made, Path(folder))
    assert refusal is None or (refusal.startswith("made.so: ") and not in_data)


def refused(data: bytes, folder: Path) -> str | None:
    try:
        facts(data, folder)
    except BinaryError as error:
        return str(error)
    return None
