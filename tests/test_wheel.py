"""Wheels: installed as the `installer` project installs them; what contradicts itself is refused by name."""

from __future__ import annotations

import csv
import io
import os
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from installer import install as judge_install
from installer.destinations import SchemeDictionaryDestination
from installer.sources import WheelFile
from wheelmaker import WHEEL, Member, Wheel, archive, hashed

from builder.errors import HostileInputError
from builder.layers.merge import CollisionError, Origin, merge
from builder.layers.pack import pack
from builder.layers.tar import Entry, Inline, Kind
from builder.layers.unpack import chunks, unpack
from builder.sources.system import skeleton
from builder.sources.wheel import WheelFiles, install, with_record

PYTHON = "3.11"
SITE = "opt/venv/lib/python3.11/site-packages"


def installed(wheel: Wheel | bytes, tmp_path: Path, name: str = "", version: str = "") -> WheelFiles:
    data = wheel if isinstance(wheel, bytes) else wheel.bytes()
    stem = wheel.stem if isinstance(wheel, Wheel) else "demo-1.0"
    path = tmp_path / "object"
    path.write_bytes(data)
    project, _, release = stem.rpartition("-")
    return install(path, f"{stem}-py3-none-any.whl", name or project, version or release, PYTHON)


def tree(entries: Sequence[Entry]) -> dict[str, tuple[bytes, bool]]:
    """Path -> (content, exec bit) of all files."""
    return {
        entry.path: (b"".join(chunks(entry.content)), bool(entry.mode & 0o111))
        for entry in entries
        if entry.kind is Kind.FILE
    }


def records(files: Mapping[str, tuple[bytes, bool]], stem: str = "demo-1.0") -> dict[str, tuple[str, str]]:
    """RECORD's rows by path in the image."""
    rows = csv.reader(io.StringIO(files[f"{SITE}/{stem}.dist-info/RECORD"][0].decode()))
    return {os.path.normpath(f"{SITE}/{path}"): (hash_, size) for path, hash_, size in rows}


def assert_refused(wheel: Wheel | bytes, message: str, tmp_path: Path, **locked: str) -> None:
    with pytest.raises(HostileInputError) as caught:
        installed(wheel, tmp_path, **locked)
    assert message in str(caught.value)
    assert str(caught.value).split("-")[0] in ("demo", str(getattr(wheel, "stem", "")).split("-")[0])


# The judge.


def judged(wheel: Wheel, tmp_path: Path) -> dict[str, tuple[bytes, bool]]:
    """What installer makes of the same wheel."""
    path = tmp_path / f"{wheel.stem}-py3-none-any.whl"
    path.write_bytes(wheel.bytes())
    root = tmp_path / "judge"
    venv, project = "/opt/venv", wheel.stem.rpartition("-")[0]
    schemes = {
        "purelib": f"/{SITE}",
        "platlib": f"/{SITE}",
        "scripts": f"{venv}/bin",
        "headers": f"{venv}/include/site/python{PYTHON}/{project}",
        "data": venv,
    }
    destination = SchemeDictionaryDestination(schemes, f"{venv}/bin/python", "posix", destdir=str(root))
    with WheelFile.open(path) as source:
        source.validate_record()
        judge_install(source, destination, {"INSTALLER": b"layerwright\n"})
    return {
        str(file.relative_to(root)): (file.read_bytes(), bool(file.stat().st_mode & 0o100))
        for file in root.rglob("*")
        if file.is_file()
    }


SCRIPT = b"#!python\nprint('script')\n"
FULL = Wheel(
    "Demo.Project-1.0+cpu",
    {
        "demo/__init__.py": b"",
        "demo/tool.sh": Member("demo/tool.sh", b"#!/bin/sh\n", mode=0o100755),
        "demo/data.bin": Member("demo/data.bin", bytes(range(256)) * 99, method=0),
        "demo/größe/日本語.py": b"x = 1\n",
        'demo/a,b"c.txt': b"quoted",
        "demo/sub/__init__.py": b"y = 2\n",
        "demo/sub/": Member("demo/sub/", mode=0o40755),
        "top.pth": b"import demo\n",
        "Demo.Project-1.0+cpu.data/purelib/demo/pure.py": b"pure = 1\n",
        "Demo.Project-1.0+cpu.data/platlib/demo/plat.so": b"\x7fELF",
        "Demo.Project-1.0+cpu.data/scripts/run": Member("Demo.Project-1.0+cpu.data/scripts/run", SCRIPT, mode=0o100755),
        "Demo.Project-1.0+cpu.data/scripts/binary": Member(
            "Demo.Project-1.0+cpu.data/scripts/binary", b"\x7fELF\0#!python\n" + bytes(1000), mode=0o100755
        ),
        "Demo.Project-1.0+cpu.data/headers/demo/demo.h": b"#define DEMO 1\n",
        "Demo.Project-1.0+cpu.data/data/share/demo/file": b"shared\n",
        "Demo.Project-1.0+cpu.data/data/bin/not-a-script": b"#!python\nstays\n",
        "Demo.Project-1.0+cpu.dist-info/entry_points.txt": (
            b"[console_scripts]\ndemo = demo.main:run\ndemo-extra = demo.main:Class.method [extra,more]\n\n"
            b"[gui_scripts]\ndemo-gui=demo:gui\n\n[demo.plugins]\nplugin = demo.plugin\n"
        ),
        "Demo.Project-1.0+cpu.dist-info/licenses/LICENSE": b"free\n",
        "Other-2.0.data/scripts/x": b"belongs to nobody\n",
    },
)


def test_a_wheel_with_everything_as_installer_does_it(tmp_path: Path) -> None:
    ours = tree(with_record(installed(FULL, tmp_path, "demo-project", "1.0+cpu"), ()))
    theirs = judged(FULL, tmp_path)
    assert sorted(ours) == sorted(theirs)
    generated = {"opt/venv/bin/demo", "opt/venv/bin/demo-extra", "opt/venv/bin/demo-gui"}
    for path in ours:
        assert ours[path][1] == theirs[path][1], path
        if path not in generated and not path.endswith("/RECORD"):
            assert ours[path][0] == theirs[path][0], path
    our_rows, their_rows = records(ours, FULL.stem), records(theirs, FULL.stem)
    assert sorted(our_rows) == sorted(their_rows) == sorted(ours)
    for path, row in our_rows.items():
        if path.endswith("dist-info/RECORD"):
            assert row == ("", "")
        else:
            assert row == (hashed(ours[path][0]), str(len(ours[path][0])))


NAMES = st.sampled_from(["a", "b.py", "lib", "größe", "x,y", "with space", "UPPER"])
PATHS = st.lists(NAMES, min_size=1, max_size=3).map("/".join)
PLACES = st.sampled_from(
    ["", *(f"demo-1.0.data/{scheme}/" for scheme in ("purelib", "platlib", "headers", "data", "scripts"))]
)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    files=st.dictionaries(
        st.tuples(PLACES, PATHS).map("".join),
        st.tuples(st.sampled_from([b"", b"#!python\nx", b"data"]), st.booleans()),
        max_size=6,
    )
)
def test_any_wheel_as_installer_does_it(
    files: dict[str, tuple[bytes, bool]], tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Both make the same tree, or both refuse because two files want one place."""
    tmp_path = tmp_path_factory.mktemp("wheel")
    made = {
        name: Member(name, data, mode=0o100755 if executable or "/scripts/" in name else 0o100644)
        for name, (data, executable) in files.items()
    }
    wheel = Wheel(files=made)
    try:
        theirs = judged(wheel, tmp_path)
    except (FileExistsError, NotADirectoryError, IsADirectoryError):
        with pytest.raises((HostileInputError, CollisionError)):
            merge([Origin("demo", with_record(installed(wheel, tmp_path), ()))])
        return
    ours = tree(with_record(installed(wheel, tmp_path), ()))
    strip = f"{SITE}/demo-1.0.dist-info/RECORD"
    assert {path: file for path, file in ours.items() if path != strip} == {
        path: file for path, file in theirs.items() if path != strip
    }
    assert records(ours) == records(theirs)


# What wheels may be.


@pytest.mark.parametrize(
    ("stem", "name", "version"),
    [
        ("demo-1.0", "demo", "1.0"),
        ("Demo_Project-1.0", "demo-project", "1.0"),
        ("zope.interface-5.4", "zope-interface", "5.4"),
        ("torch-2.1.0+cpu", "torch", "2.1.0+cpu"),
        ("torch-2.1.0_cpu", "torch", "2.1.0+cpu"),
        ("pytz-2024.01", "pytz", "2024.1"),
        ("demo-1.0rc1", "demo", "1.0rc1"),
        ("demo-1.0.RC1", "demo", "1.0rc1"),
        ("demo-1!2.0", "demo", "1!2.0"),
        ("demo-1.0.post1", "demo", "1.0.post1"),
    ],
)
def test_spellings_of_a_project(stem: str, name: str, version: str, tmp_path: Path) -> None:
    wheel = Wheel(stem, {"demo.py": b"x = 1\n", f"{stem}.data/scripts/run": SCRIPT})
    files = installed(wheel, tmp_path, name, version)
    assert files.dist_info == f"{SITE}/{stem}.dist-info"
    assert "opt/venv/bin/run" in tree(with_record(files, ()))


@pytest.mark.parametrize("name", ["INSTALLER", "RECORD.jws", "RECORD.p7s"])
def test_what_an_installer_writes_or_drops(name: str, tmp_path: Path) -> None:
    """Signatures are no longer true; another installer's mark is replaced."""
    member = f"demo-1.0.dist-info/{name}"
    files = installed(
        Wheel(files={member: b"of the wheel"}, rows={member: None} if name != "INSTALLER" else {}), tmp_path
    )
    found = tree(with_record(files, ()))
    assert found[f"{SITE}/demo-1.0.dist-info/INSTALLER"][0] == b"layerwright\n"
    assert (f"{SITE}/{member}" in found) == (name == "INSTALLER")


@pytest.mark.parametrize("algorithm", ["sha256", "sha384", "sha512"])
def test_hashes_that_are_good_enough(algorithm: str, tmp_path: Path) -> None:
    data = b"version = '1.0'\n"
    wheel = Wheel(rows={"demo/__init__.py": f"demo/__init__.py,{hashed(data, algorithm)},"})
    files = installed(wheel, tmp_path)
    assert records(tree(with_record(files, ())))[f"{SITE}/demo/__init__.py"] == (
        hashed(data, algorithm),
        str(len(data)),
    )


def test_record_with_other_line_ends(tmp_path: Path) -> None:
    rows = Wheel().members()[-1].data.replace(b"\n", b"\r\n")
    assert len(installed(Wheel(record=rows), tmp_path).files) == 4
    assert len(installed(Wheel(record=rows.rstrip()), tmp_path).files) == 4


@pytest.mark.parametrize(
    "text", [WHEEL, WHEEL.replace(b"1.0", b"1.9"), WHEEL.replace(b"\n", b"\r\n"), b"Generator: x\nWheel-Version: 1.0"]
)
def test_wheel_versions(text: bytes, tmp_path: Path) -> None:
    assert installed(Wheel(wheel=text), tmp_path).files


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (b"#!python\nx\n", b"#!/opt/venv/bin/python\nx\n"),
        (b"#!python", b"#!/opt/venv/bin/python"),
        (b"#!pythonw\nx\n", b"#!/opt/venv/bin/python\nx\n"),
        (b"#!python3\nx\n", b"#!/opt/venv/bin/python\nx\n"),
        (b"#!python3.11 -E\nx\n", b"#!/opt/venv/bin/python -E\nx\n"),
        (b"#!python -u -E\nx\n", b"#!/opt/venv/bin/python -u -E\nx\n"),
        (b"#!python   \nx\n", b"#!/opt/venv/bin/python\nx\n"),
        (b"#!python\r\nx\r\n", b"#!/opt/venv/bin/python\nx\r\n"),
        (b"#!python -u\r\nx\r\n", b"#!/opt/venv/bin/python -u\nx\r\n"),
        (b"#!python\n\x00\xff\n", b"#!/opt/venv/bin/python\n\x00\xff\n"),
        (b"#!/usr/bin/python\nx\n", None),
        (b"#!/usr/bin/env python\nx\n", None),
        (b"#!pythonic\nx\n", None),
        (b"#! python\nx\n", None),
        (b"\x7fELF#!python\n", None),
        (b"", None),
        (b"x" * 100_000, None),
    ],
)
def test_shebangs(script: bytes, expected: bytes | None, tmp_path: Path) -> None:
    files = installed(Wheel(files={"demo-1.0.data/scripts/run": script}), tmp_path)
    found = tree(with_record(files, ()))
    assert found["opt/venv/bin/run"] == (script if expected is None else expected, True)
    assert records(found)["opt/venv/bin/run"] == (
        hashed(found["opt/venv/bin/run"][0]),
        str(len(found["opt/venv/bin/run"][0])),
    )


def test_entry_points_become_scripts(tmp_path: Path) -> None:
    text = b"[console_scripts]\nrun = demo.main : App.start [extra]\n[gui_scripts]\nwin = demo:gui\n[other]\nx = not a reference\n"
    found = tree(with_record(installed(Wheel(files={"demo-1.0.dist-info/entry_points.txt": text}), tmp_path), ()))
    script, executable = found["opt/venv/bin/run"]
    assert script.startswith(b"#!/opt/venv/bin/python\n")
    assert b"from demo.main import App\n" in script
    assert b"sys.exit(App.start())" in script
    assert executable
    assert b"from demo import gui\n" in found["opt/venv/bin/win"][0]
    assert "opt/venv/bin/x" not in found


def test_the_sources_to_compile(tmp_path: Path) -> None:
    files = {
        "demo/b.py": b"b",
        "demo/a.py": b"a",
        "demo/empty.py": b"",
        "demo/data.txt": b"d",
        "demo-1.0.data/purelib/demo/c.py": b"c",
        "demo-1.0.data/scripts/s.py": b"s",
        "demo-1.0.data/data/share/x.py": b"x",
        "demo-1.0.data/data/lib/python3.11/site-packages/y.py": b"y",
    }
    sources = installed(Wheel(files=files), tmp_path).sources
    assert sources == tuple(f"{SITE}/{name}" for name in ("demo/a.py", "demo/b.py", "demo/c.py", "y.py"))


def test_bytecode_is_recorded_without_a_hash(tmp_path: Path) -> None:
    cached = Entry(f"{SITE}/demo/__pycache__/__init__.cpython-311.pyc", content=Inline(b"code"))
    entries = with_record(installed(Wheel(), tmp_path), [cached])
    assert cached in entries
    assert records(tree(entries))[cached.path] == ("", "")


def test_a_real_environment(tmp_path: Path) -> None:
    """What is unpacked runs: an entry point, through the interpreter that the skeleton points at."""
    version = "{}.{}".format(*sys.version_info)
    wheel = Wheel(
        files={
            "demo/__init__.py": b"import sys\n\ndef main():\n    print('demo', sys.argv[1:], __file__)\n    return 7\n",
            "demo-1.0.dist-info/entry_points.txt": b"[console_scripts]\ndemo = demo:main\n",
        }
    )
    path = tmp_path / "object"
    path.write_bytes(wheel.bytes())
    entries = with_record(install(path, "demo.whl", "demo", "1.0", version), ())
    unpack(
        merge([Origin("wheel", entries), Origin("environment", skeleton("/usr/bin/python3", version))]),
        tmp_path / "root",
    )
    venv = tmp_path / "root/opt/venv"
    for link in ("python", "python3", f"python{version}"):
        assert (venv / "bin" / link).is_symlink()
    (venv / "bin/python").unlink()
    (venv / "bin/python").symlink_to(sys.executable)
    config = (venv / "pyvenv.cfg").read_text().replace("/usr/bin", str(Path(sys.base_prefix) / "bin"))
    (venv / "pyvenv.cfg").write_text(config)
    script = venv / "bin/demo"
    assert os.access(script, os.X_OK)
    code = "import importlib.metadata as m; print(m.version('demo'), all(f.locate().exists() for f in m.files('demo')))"
    runs: list[tuple[list[str | Path], int, str]] = [
        (
            [venv / "bin/python", script, "a"],
            7,
            f"demo ['a'] {venv}/lib/python{version}/site-packages/demo/__init__.py",
        ),
        ([venv / "bin/python", "-c", code], 0, "1.0 True"),
    ]
    for command, status, expected in runs:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env={"PATH": ""})
        assert (done.returncode, done.stdout.strip()) == (status, expected), done.stderr


# What contradicts itself.

INIT = "demo/__init__.py"
DATA = b"version = '1.0'\n"


def row(hash_: str, size: str = "") -> dict[str, str | None]:
    return {INIT: f"{INIT},{hash_},{size}"}


RECORDS: Mapping[str, tuple[Wheel, str]] = {
    "not there": (Wheel(has_record=False), "it has no demo-1.0.dist-info/RECORD"),
    "empty": (Wheel(record=b""), "RECORD does not list demo-1.0.dist-info/METADATA, which is in the wheel"),
    "not UTF-8": (Wheel(record=b"\xff\xfe"), "demo-1.0.dist-info/RECORD is not UTF-8"),
    "not itself": (Wheel(rows={"demo-1.0.dist-info/RECORD": None}), "RECORD does not list demo-1.0.dist-info/RECORD"),
    "missing": (Wheel(rows={INIT: None}), f"RECORD does not list {INIT}, which is in the wheel"),
    "absent file": (
        Wheel(extra_rows="demo/gone.py,sha256=AA,1\n"),
        "RECORD lists 'demo/gone.py', which is not in the wheel",
    ),
    "escaping file": (Wheel(extra_rows="../../x,sha256=AA,1\n"), "RECORD lists '../../x', which is not in the wheel"),
    "twice": (Wheel(extra_rows=f"{INIT},{hashed(DATA)},\n"), f"RECORD lists {INIT} twice"),
    "wrong size": (Wheel(rows=row(hashed(DATA), "5")), f"RECORD says that {INIT} has '5' bytes, it has {len(DATA)}"),
    "size in words": (Wheel(rows=row(hashed(DATA), "ten")), f"RECORD says that {INIT} has 'ten' bytes"),
    "no hash": (Wheel(rows=row("")), f"RECORD has no hash for {INIT}"),
    "md5": (Wheel(rows=row(hashed(DATA, "md5"))), f"RECORD hashes {INIT} with 'md5', not with sha256 or better"),
    "sha1": (Wheel(rows=row(hashed(DATA, "sha1"))), f"RECORD hashes {INIT} with 'sha1'"),
    "unknown hash": (Wheel(rows=row("crc32=AAAA")), f"RECORD hashes {INIT} with 'crc32'"),
    "hash without algorithm": (Wheel(rows=row("=AAAA")), f"RECORD hashes {INIT} with ''"),
    "hash that is not base64": (
        Wheel(rows=row("sha256=!!!!")),
        f"RECORD has a hash of {INIT} that is not base64: '!!!!'",
    ),
    "hash in hexadecimal length": (Wheel(rows=row("sha256=" + "a" * 65)), "that is not base64"),
    "hash that is not ASCII": (Wheel(rows=row("sha256=é")), "that is not base64"),
    "two columns": (Wheel(extra_rows="a,b\n"), "RECORD has the row ['a', 'b'], which is not path, hash, size"),
    "four columns": (Wheel(extra_rows="a,b,c,d\n"), "RECORD has the row ['a', 'b', 'c', 'd']"),
    "an empty line": (Wheel(extra_rows="\n"), "RECORD has the row []"),
    "a lone carriage return": (Wheel(extra_rows="a\rb,c,d\n"), "RECORD cannot be read"),
    "an endless field": (Wheel(extra_rows='"' + "x" * 200_000), "RECORD cannot be read"),
    "a signature elsewhere": (
        Wheel(files={"demo/RECORD.jws": b"x"}, rows={"demo/RECORD.jws": None}),
        "RECORD does not list demo/RECORD.jws",
    ),
    "a signature elsewhere, no hash": (
        Wheel(files={"demo/RECORD.jws": b"x"}, rows={"demo/RECORD.jws": "demo/RECORD.jws,,"}),
        "RECORD has no hash for demo/RECORD.jws",
    ),
}


@pytest.mark.parametrize("name", RECORDS)
def test_records_that_lie(name: str, tmp_path: Path) -> None:
    wheel, message = RECORDS[name]
    assert_refused(wheel, message, tmp_path)


def test_a_wrong_hash_is_found_when_the_file_is_packed(tmp_path: Path) -> None:
    entries = with_record(installed(Wheel(rows=row(hashed(b"other"))), tmp_path), ())
    with pytest.raises(HostileInputError, match=f"{INIT}: its sha256 is .* as was recorded"):
        pack(entries, tmp_path / "blob", tmp_path / "windows", 4 << 20)


def test_a_wrong_hash_of_a_script_is_found_at_once(tmp_path: Path) -> None:
    script = "demo-1.0.data/scripts/run"
    wheel = Wheel(files={script: SCRIPT}, rows={script: f"{script},sha256=AAAA,"})
    assert_refused(wheel, f"{script}: it has another sha256 than RECORD says", tmp_path)


def files_with(extra: Mapping[str, bytes | Member]) -> Wheel:
    return Wheel(files={INIT: DATA, **extra})


def scripts(text: str) -> Wheel:
    return files_with({"demo-1.0.dist-info/entry_points.txt": text.encode()})


OTHERS: Mapping[str, tuple[Wheel, str]] = {
    "no METADATA of a wheel at all": (Wheel(wheel=None), "it has no demo-1.0.dist-info/WHEEL"),
    "wheel version 2": (Wheel(wheel=WHEEL.replace(b"1.0", b"2.0")), "another version of the wheel format than 1.x"),
    "wheel version 10": (Wheel(wheel=WHEEL.replace(b"1.0", b"10.0")), "another version of the wheel format than 1.x"),
    "no wheel version": (Wheel(wheel=b"Generator: x\n"), "another version of the wheel format than 1.x"),
    "WHEEL is not UTF-8": (Wheel(wheel=b"\xff"), "demo-1.0.dist-info/WHEEL is not UTF-8"),
    "two dist-infos": (files_with({"other-1.0.dist-info/METADATA": b"x"}), "one .dist-info directory, this one has 2"),
    "dist-info twice by case": (
        files_with({"Demo-1.0.dist-info/METADATA": b"x"}),
        "one .dist-info directory, this one has 2",
    ),
    "unknown scheme": (
        files_with({"demo-1.0.data/etc/passwd": b"x"}),
        "demo-1.0.data/etc/passwd belongs to no known scheme (purelib, platlib, scripts, headers, data)",
    ),
    "no scheme": (files_with({"demo-1.0.data/file": b"x"}), "demo-1.0.data/file belongs to no known scheme"),
    "a place twice": (
        files_with({"demo-1.0.data/purelib/demo/__init__.py": b"x"}),
        f"it installs /{SITE}/{INIT} twice",
    ),
    "a place twice by schemes": (
        files_with({"demo-1.0.data/purelib/x": b"x", "demo-1.0.data/platlib/x": b"x"}),
        f"it installs /{SITE}/x twice",
    ),
    "RECORD from another place": (
        files_with({"demo-1.0.data/purelib/demo-1.0.dist-info/RECORD": b"x"}),
        f"it installs /{SITE}/demo-1.0.dist-info/RECORD twice",
    ),
    "INSTALLER from another place": (
        files_with({"demo-1.0.data/purelib/demo-1.0.dist-info/INSTALLER": b"x"}),
        f"it installs /{SITE}/demo-1.0.dist-info/INSTALLER twice",
    ),
    "script and entry point": (
        files_with(
            {
                "demo-1.0.dist-info/entry_points.txt": b"[console_scripts]\nrun = demo:run\n",
                "demo-1.0.data/scripts/run": SCRIPT,
            }
        ),
        "it installs /opt/venv/bin/run twice",
    ),
    "entry point twice": (
        scripts("[console_scripts]\nrun = demo:a\nrun = demo:b\n"),
        "entry_points.txt cannot be read",
    ),
    "entry point, both sections": (
        scripts("[console_scripts]\nrun = demo:a\n[gui_scripts]\nrun = demo:a\n"),
        "it installs /opt/venv/bin/run twice",
    ),
    "no section": (scripts("run = demo:a\n"), "entry_points.txt cannot be read"),
    "no value": (scripts("[console_scripts]\nrun\n"), "entry_points.txt cannot be read"),
    "section twice": (scripts("[console_scripts]\n[console_scripts]\n"), "entry_points.txt cannot be read"),
    "entry points not UTF-8": (
        files_with({"demo-1.0.dist-info/entry_points.txt": b"\xff"}),
        "demo-1.0.dist-info/entry_points.txt is not UTF-8",
    ),
    **{
        f"script name {name!r}": (scripts(f"[console_scripts]\n{name} = demo:run\n"), "cannot be a script")
        for name in ("../x", "/etc/cron", "a/b", "..", ".", "a\\b", "a\x01b", "a\tb", "a\x7fb", "a\x9bb", "x" * 256)
    },
    **{
        f"reference {reference!r}": (scripts(f"[console_scripts]\nrun = {reference}\n"), "cannot be a script")
        for reference in (
            "",
            "demo",
            "demo:",
            ":run",
            "demo:run()",
            "demo:run; import os",
            "os:system('x')",
            "demo-x:run",
            "demo:run [extra] more",
            "demo:run\n  import os",
            "demo:a b",
        )
    },
}


@pytest.mark.parametrize("name", OTHERS)
def test_wheels_that_lie(name: str, tmp_path: Path) -> None:
    wheel, message = OTHERS[name]
    assert_refused(wheel, message, tmp_path)


def test_no_dist_info(tmp_path: Path) -> None:
    assert_refused(archive([Member(INIT, DATA)]), "one .dist-info directory, this one has 0", tmp_path)


@pytest.mark.parametrize(
    ("stem", "name", "version"),
    [
        ("other-1.0", "demo", "1.0"),
        ("demo-1.1", "demo", "1.0"),
        ("demo-1.0+cpu", "demo", "1.0"),
        ("demo-1.0.0.1", "demo", "1.0"),
        ("demo-1.0-1", "demo", "1.0"),
        ("demo", "demo", "1.0"),
        ("-1.0", "demo", "1.0"),
        ("demo!-1.0", "demo", "1.0"),
        ("demo-", "demo", "1.0"),
        ("", "demo", "1.0"),
    ],
)
def test_another_project_than_locked(stem: str, name: str, version: str, tmp_path: Path) -> None:
    assert_refused(Wheel(stem), f"but the lock says {name} {version}", tmp_path, name=name, version=version)


def test_files_where_others_need_a_directory(tmp_path: Path) -> None:
    wheel = files_with({"demo-1.0.data/purelib/demo/__init__.py/x": b"x"})
    with pytest.raises(
        CollisionError, match=r"/opt/venv/lib/python3.11/site-packages/demo/__init__.py is a file of demo"
    ):
        merge([Origin("demo", with_record(installed(wheel, tmp_path), ()))])


def test_a_wheel_that_zipfile_wrote(tmp_path: Path) -> None:
    import installer

    root = Path(installer.__file__).parent
    files = {f"demo/{path.relative_to(root)}": path.read_bytes() for path in root.rglob("*.py")}
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as file:
        for member in replace(Wheel(), files=files).members():
            file.writestr(str(member.name), member.data)
    found = tree(with_record(installed(out.getvalue(), tmp_path), ()))
    assert {name: found[f"{SITE}/{name}"][0] for name in files} == files
