"""The loader's rules, judged by the real one: small trees of ELF files in a root of their own, and ld.so says who is loaded."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import judges
import pytest
from elftrees import Elf
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.binaries.facts import InputFacts
from builder.binaries.inputs import read_binary
from builder.binaries.window import Window
from builder.findings.loader import Loader, Process, Search
from builder.findings.root import Input, Root, compose

LD_SO = Path("/lib64/ld-linux-x86-64.so.2")
SYSTEM = "/lib/x86_64-linux-gnu"
LINE = re.compile(r"\t(?:(\S+) => )?(not found|\S+)(?: \(0x[0-9a-f]+\))?")
LACK = re.compile(r"(\S+): (\S+): version `(\S+)' not found \(required by (\S+)\)")
ENTER = """
import os, sys
environ = {"LD_TRACE_LOADED_OBJECTS": "1"} | ({"LD_LIBRARY_PATH": sys.argv[2]} if sys.argv[2] else {})
os.chroot(sys.argv[1])
os.chdir("/")
os.execve(sys.argv[3], sys.argv[3:], environ)
"""
needs_ld_so = pytest.mark.skipif(not LD_SO.exists(), reason="no loader of glibc for x86_64 on this machine")


@dataclass(frozen=True)
class Link:
    """A symlink of a tree."""

    target: str


Tree = Mapping[str, Elf | Link | bytes]


def facts_of(root: Path) -> InputFacts:
    """The facts of all files below a folder, with absolute paths."""
    files, links, binaries = [], [], []
    for folder, folders, names in os.walk(root):
        for name in sorted([*names, *(each for each in folders if Path(folder, each).is_symlink())]):
            path = Path(folder, name)
            place = f"/{path.relative_to(root)}"
            if path.is_symlink():
                links.append((place, os.readlink(path)))
                continue
            files.append((place, path.stat().st_size, ""))
            if path.read_bytes().startswith(b"\x7fELF"):
                with path.open("rb") as file:
                    binaries.append(read_binary(place, Window(file.fileno(), 0, path.stat().st_size, place)))
    return InputFacts(tuple(binaries), tuple(sorted(links)), tuple(sorted(files)))


def write(tree: Tree, root: Path) -> Root:
    """The tree below a folder, with the real loader in it, and as the model sees it."""
    (root / "lib64").mkdir(parents=True)
    shutil.copy(LD_SO.resolve(), root / "lib64" / LD_SO.name)
    for path, item in {f"{SYSTEM}/libc.so.6": Elf("libc.so.6"), **tree}.items():
        place = root / path.lstrip("/")
        place.parent.mkdir(parents=True, exist_ok=True)
        if isinstance(item, Link):
            place.symlink_to(item.target)
        else:
            place.write_bytes(item if isinstance(item, bytes) else item.bytes())
            place.chmod(0o755)
    return compose([Input("all", "image", facts_of(root))], None)


@dataclass(frozen=True)
class Said:
    """What is loaded, in order: name and path, or None where there is none; and the versions that are not there."""

    loaded: list[tuple[str, str | None]]
    lacks: set[tuple[str, str, str]]
    fatal: bool = False


def real(root: Path, program: str, library_path: Sequence[str], conf: Sequence[str] | None) -> Said:
    """What ld.so says in a chroot."""
    if conf is not None:
        (root / "etc").mkdir(exist_ok=True)
        (root / "etc/ld.so.conf").write_text("".join(f"{folder}\n" for folder in conf))
        ldconfig = shutil.which("ldconfig", path="/sbin:/usr/sbin:/bin:/usr/bin") or judges.require("ldconfig")
        subprocess.run([str(ldconfig), "-r", str(root)], check=True, capture_output=True)
    other_root: list[str] = [] if os.getuid() == 0 else [str(judges.require("unshare")), "-r"]
    argv = [
        *other_root,
        sys.executable,
        "-ISc",
        ENTER,
        str(root),
        ":".join(library_path),
        f"/lib64/{LD_SO.name}",
        program,
    ]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    loaded = []
    for line in done.stdout.splitlines():
        match = LINE.fullmatch(line)
        if match and not match[2].startswith("linux-vdso") and f"/{LD_SO.name}" not in match[2]:
            path = None if match[2] == "not found" else match[2]
            loaded.append((match[1] or match[2], path))
    lacks = {(file, library, version) for _, library, version, file in LACK.findall(done.stderr)}
    return Said(loaded, lacks, done.returncode == 127)


def modelled(root: Root, program: str, library_path: Sequence[str], conf: Sequence[str] | None) -> Said:
    """What the model says."""
    search = Search("x86_64", tuple(library_path), tuple(conf) if conf is not None else None)
    process = Process(Loader(root, search), program)
    loaded: list[tuple[str, str | None]] = [
        (item.name, item.path) for item in process.maps if item.how not in ("the program", "the loader")
    ]
    missing = {name: why for item in process.maps for name, why in item.missing.items()}
    lacks = {
        (lack.file.path, lack.library.path, version)
        for lack in process.lacks(process.maps)
        for version in lack.versions
    }
    fatal = any("is no library" in why for why in missing.values())
    return Said(loaded + [(name, None) for name in missing], lacks, fatal)


def check(
    tree: Tree, program: str = "/bin/prog", library_path: Sequence[str] = (), conf: Sequence[str] | None = None
) -> Said:
    """Both have to say the same; returns it."""
    with tempfile.TemporaryDirectory() as name:
        root = write(tree, Path(name) / "root")
        judged = real(Path(name) / "root", program, library_path, conf)
    said = modelled(root, program, library_path, conf)
    assert said.fatal == judged.fatal
    if not said.fatal:
        assert [item for item in said.loaded if item[1]] == [item for item in judged.loaded if item[1]]
        assert {item for item in said.loaded if not item[1]} == {item for item in judged.loaded if not item[1]}
        assert said.lacks == judged.lacks
    return said


def prog(*needed: str, rpath: str | None = None, runpath: str | None = None) -> Elf:
    return Elf(None, needed, rpath, runpath)


A, B, C = "/opt/a/liba.so", "/opt/b/libb.so", "/opt/c/libc1.so"
TREES: dict[str, tuple[Tree, list[str], list[str] | None, dict[str, str | None]]] = {
    "nothing": ({"/bin/prog": prog("liba.so")}, [], None, {"liba.so": None}),
    "the system's folders": (
        {"/bin/prog": prog("liba.so"), f"{SYSTEM}/liba.so": Elf(), "/usr/lib/liba.so": Elf()},
        [],
        None,
        {"liba.so": f"{SYSTEM}/liba.so"},
    ),
    "RPATH is for all below it": (
        {"/bin/prog": prog("liba.so", rpath="/opt/a:/opt/b"), A: Elf("liba.so", ["libb.so"]), B: Elf()},
        [],
        None,
        {"liba.so": A, "libb.so": B},
    ),
    "RUNPATH is for what asks": (
        {"/bin/prog": prog("liba.so", runpath="/opt/a:/opt/b"), A: Elf("liba.so", ["libb.so"]), B: Elf()},
        [],
        None,
        {"liba.so": A, "libb.so": None},
    ),
    "RPATH of who asks comes first": (
        {
            "/bin/prog": prog("liba.so", rpath="/opt/a:/opt/b"),
            A: Elf("liba.so", ["libb.so"], rpath="$ORIGIN/../c"),
            B: Elf(),
            "/opt/c/libb.so": Elf(),
        },
        ["/opt/b"],
        None,
        {"libb.so": "/opt/a/../c/libb.so"},
    ),
    "RUNPATH turns every RPATH off": (
        {
            "/bin/prog": prog("liba.so", rpath="/opt/a:/opt/b"),
            A: Elf("liba.so", ["libb.so"], runpath="/opt/c"),
            B: Elf(),
            "/opt/c/libb.so": Elf(),
        },
        [],
        None,
        {"libb.so": "/opt/c/libb.so"},
    ),
    "LD_LIBRARY_PATH beats RUNPATH": (
        {"/bin/prog": prog("liba.so", runpath="/opt/a"), A: Elf(), "/opt/b/liba.so": Elf()},
        ["/opt/b"],
        None,
        {"liba.so": "/opt/b/liba.so"},
    ),
    "RPATH beats LD_LIBRARY_PATH": (
        {"/bin/prog": prog("liba.so", rpath="/opt/a"), A: Elf(), "/opt/b/liba.so": Elf()},
        ["/opt/b"],
        None,
        {"liba.so": A},
    ),
    "RPATH beside RUNPATH counts for nothing": (
        {"/bin/prog": prog("liba.so", rpath="/opt/a", runpath="/opt/b"), A: Elf(), "/opt/b/liba.so": Elf()},
        [],
        None,
        {"liba.so": "/opt/b/liba.so"},
    ),
    "the SONAME that is loaded is taken": (
        {
            "/bin/prog": prog("/opt/a/liba.so", "libb.so", runpath="/opt/b"),
            A: Elf("libb.so"),
            B: Elf("libb.so"),
        },
        [],
        None,
        {"/opt/a/liba.so": A},
    ),
    "one file under two names is loaded once": (
        {
            "/bin/prog": prog("liba.so", "libb.so", rpath="/opt/a"),
            A: Elf(None, ["libx.so"]),
            "/opt/a/libb.so": Link("liba.so"),
        },
        [],
        None,
        {"liba.so": A, "libx.so": None},
    ),
    "$ORIGIN is where the link is": (
        {
            "/bin/prog": prog("liba.so", rpath="/opt/l"),
            A: Elf("liba.so", ["libb.so"], runpath="${ORIGIN}:$ORIGIN/lib"),
            "/opt/l/liba.so": Link("../a/liba.so"),
            "/opt/a/libb.so": Elf(),
            "/opt/l/lib/libb.so": Elf(),
        },
        [],
        None,
        {"liba.so": "/opt/l/liba.so", "libb.so": "/opt/l/lib/libb.so"},
    ),
    "a link to a folder": (
        {
            "/bin/prog": prog("liba.so", rpath="/usr/local/cuda/lib64"),
            "/opt/cu/lib/liba.so": Elf("liba.so", ["libb.so"], runpath="$ORIGIN"),
            "/opt/cu/lib/libb.so": Elf(),
            "/opt/cu/lib64": Link("lib"),
            "/usr/local/cuda": Link("../../opt/cu"),
        },
        [],
        None,
        {"libb.so": "/usr/local/cuda/lib64/libb.so"},
    ),
    "other machines are passed over": (
        {
            "/bin/prog": prog("liba.so", rpath="/opt/b:/opt/a"),
            "/opt/b/liba.so": Elf(machine="aarch64"),
            A: Elf(),
        },
        [],
        None,
        {"liba.so": A},
    ),
    "what is no library ends it": (
        {"/bin/prog": prog("liba.so", rpath="/opt/b:/opt/a"), "/opt/b/liba.so": b"INPUT(-la)" * 10, A: Elf()},
        [],
        None,
        {"liba.so": None},
    ),
    "the cache comes before the system": (
        {"/bin/prog": prog("liba.so"), A: Elf("liba.so"), f"{SYSTEM}/liba.so": Elf("liba.so")},
        [],
        ["/opt/a"],
        {"liba.so": A},
    ),
    "the cache comes after RUNPATH": (
        {"/bin/prog": prog("liba.so", runpath="/opt/b"), A: Elf("liba.so"), "/opt/b/liba.so": Elf("liba.so")},
        [],
        ["/opt/a"],
        {"liba.so": "/opt/b/liba.so"},
    ),
    "the cache is of SONAMEs": (
        {"/bin/prog": prog("libs.so.1", "liba.so"), A: Elf("libs.so.1")},
        [],
        ["/opt/a"],
        {"liba.so": None},
    ),
    "the cache keeps to the order of folders": (
        {"/bin/prog": prog("liba.so.1"), "/opt/b/liba.so.1": Elf("liba.so.1"), "/opt/a/liba.so.1": Elf("liba.so.1")},
        [],
        ["/opt/b", "/opt/a"],
        {"liba.so.1": "/opt/b/liba.so.1"},
    ),
    "the cache has no links of other names": (
        {
            "/bin/prog": prog("libx.so.1", "liby.so.1"),
            "/opt/a/liby.so.1": Elf("liby.so.1"),
            "/opt/a/libx.so.1": Link("liby.so.1"),
        },
        [],
        ["/opt/a"],
        {"libx.so.1": None, "liby.so.1": "/opt/a/liby.so.1"},
    ),
    "the linker's name is in the cache": (
        {
            "/bin/prog": prog("liba.so"),
            "/opt/a/liba.so.1": Elf("liba.so.1"),
            A: Link("liba.so.1"),
        },
        [],
        ["/opt/a"],
        {"liba.so": A},
    ),
    "versions that are not there": (
        {
            "/bin/prog": prog("liba.so", "libb.so", rpath="/opt/a:/opt/b"),
            A: Elf("liba.so", ["libb.so"], needs={"libb.so": ["B_1", "B_2", "B_3"]}),
            B: Elf("libb.so", defines=["B_1", "B_2"]),
        },
        [],
        None,
        {},
    ),
    "a library without versions has them all": (
        {
            "/bin/prog": prog("liba.so", "libb.so", rpath="/opt/a:/opt/b"),
            A: Elf("liba.so", ["libb.so"], needs={"libb.so": ["B_1"]}),
            B: Elf("libb.so"),
        },
        [],
        None,
        {},
    ),
}


@needs_ld_so
@pytest.mark.parametrize("name", TREES)
def test_the_model_says_what_the_loader_does(name: str) -> None:
    tree, library_path, conf, expected = TREES[name]
    said = dict(check(tree, library_path=library_path, conf=conf).loaded)
    assert {key: said.get(key) for key in expected} == expected


DLOPEN = """
import ctypes, json, os, sys
root, *paths = sys.argv[1:]
done = []
for path in paths:
    try:
        ctypes.CDLL(path, mode=os.RTLD_NOW)
        done.append(True)
    except OSError:
        done.append(False)
mapped = {line.split(None, 5)[5].strip() for line in open("/proc/self/maps") if root in line}
print(json.dumps([done, sorted(os.path.realpath(path) for path in mapped)]))
"""


@needs_ld_so
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_a_process_that_opens_one_after_the_other(data: st.DataObject) -> None:
    """What is loaded is taken; what fails leaves nothing; versions are looked at."""
    folders = ["/a", "/b"]
    own = st.sampled_from([f"libown{letter}.so" for letter in "wxyz"])  # this machine has none of these
    near = st.none() | st.sampled_from(["$ORIGIN", "$ORIGIN/../b", "$ORIGIN/../a"])
    items = st.builds(
        Elf,
        soname=st.none() | own,
        needed=st.lists(own, max_size=3, unique=True),
        rpath=near,
        runpath=st.none() | near,
    )
    drawn = data.draw(st.dictionaries(st.tuples(st.sampled_from(folders), own).map("/".join), items, min_size=1))
    with tempfile.TemporaryDirectory() as name:
        top = Path(name).resolve()
        for path, elf in drawn.items():
            (top / path[1:]).parent.mkdir(exist_ok=True)
            (top / path[1:]).write_bytes(elf.bytes())
        facts = facts_of(top)
        paths = data.draw(st.lists(st.sampled_from(sorted(drawn)), min_size=1, max_size=4))
        argv = [sys.executable, "-ISc", DLOPEN, str(top), *(f"{top}{path}" for path in paths)]
        answer = subprocess.run(argv, check=True, capture_output=True, text=True).stdout
    real_done, real_mapped = json.loads(answer)
    moved = [replace(binary, path=f"{top}{binary.path}") for binary in facts.binaries]
    rows = tuple((f"{top}{path}", size, checksum) for path, size, checksum in facts.files)
    root = compose([Input("all", "image", InputFacts(tuple(moved), (), rows))], None)
    process = Process(Loader(root, Search("x86_64")))
    done = [process.load(f"{top}{path}") for path in paths]
    assert done == real_done
    assert sorted(item.file.path for item in process.maps) == real_mapped


FOLDERS = [SYSTEM, "/usr/lib", "/opt/a", "/opt/b", "/opt/c/deep"]
PLACES = [
    *FOLDERS,
    "/opt/l",
    "/opt/m",
    "/none",
    "$ORIGIN",
    "${ORIGIN}/../b",
    "$ORIGIN/../c/deep/",
    "/opt/c/deep/../../a",
    "",
]
NAMES = [f"lib{letter}.so{suffix}" for letter in "xyz" for suffix in (".1", "")]
names = st.sampled_from(NAMES)
paths = st.none() | st.lists(st.sampled_from(PLACES), max_size=3).map(":".join)
needed = st.lists(names | st.sampled_from(["/opt/a/libx.so.1", "/opt/m/libz.so"]), max_size=4, unique=True)
elves = st.builds(
    Elf,
    soname=st.none() | names,
    needed=needed,
    rpath=paths,
    runpath=st.none() | paths.filter(bool),
    needs=st.dictionaries(names, st.lists(st.sampled_from(["V1", "V2"]), min_size=1, unique=True), max_size=1),
    defines=st.sampled_from([(), ("V1",), ("V1", "V2")]),
    machine=st.sampled_from(["x86_64"] * 8 + ["aarch64"]),
).map(lambda elf: replace(elf, needs={name: elf.needs[name] for name in elf.needs if name in elf.needed}))
trees = st.dictionaries(
    st.tuples(st.sampled_from(FOLDERS), names).map("/".join), elves | elves | names.map(Link), max_size=9
)
programs = st.builds(
    Elf, soname=st.none(), needed=needed.filter(bool), rpath=paths, runpath=st.none() | paths.filter(bool)
)


@needs_ld_so
@settings(max_examples=80, deadline=None)
@given(
    tree=trees,
    program=programs,
    library_path=st.lists(st.sampled_from(["/opt/a", "/opt/b", "/opt/l", "/opt/m"]), max_size=2),
    conf=st.none() | st.lists(st.sampled_from(["/opt/a", "/opt/b", "/opt/c/deep"]), max_size=2, unique=True),
)
def test_any_tree(tree: Tree, program: Elf, library_path: list[str], conf: list[str] | None) -> None:
    # Left out of the model: links that lead round in circles end every search, and those that lead nowhere may lead
    # somewhere once ldconfig has made its own.
    def is_kept(path: str, item: Elf | Link | bytes) -> bool:
        return not isinstance(item, Link) or (
            Path(path).name < item.target and f"{Path(path).parent}/{item.target}" in tree
        )

    tree = {path: item for path, item in tree.items() if is_kept(path, item)}
    whole: Tree = {"/opt/l": Link("a"), "/opt/m": Link("/opt/c/deep"), **tree, "/bin/prog": program}
    check(whole, library_path=library_path, conf=conf)
