"""The lock file: one text for one lock, and every way in which a text is no lock of ours."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import golden
import pytest
from world import run

from builder import lock as locks
from builder.cli.lockfile import LockFile
from builder.documents import DocumentError
from builder.errors import BuilderError
from builder.lock import (
    FORMAT,
    Lock,
    LockedDeb,
    LockedDebian,
    LockedFile,
    LockedInclude,
    LockedLocal,
    LockedPlatform,
    LockedPython,
    LockedRelease,
    LockedTemplate,
    LockedWheel,
    LockError,
    SociSettings,
)
from builder.oci.config import Execution
from builder.oci.spec import Platform
from builder.sources import apt

A, B = "a" * 64, "b" * 64
FULL = Lock(
    name="full",
    profile=f"sha256:{A}",
    created="2026-01-31T12:00:00Z",
    platforms=(
        LockedPlatform(
            Platform("linux", "amd64"),
            LockedDebian(
                "bookworm",
                f"sha256:{B}",
                (LockedRelease("debian", "bookworm", A),),
                (LockedDeb("libé", "1:2.0-3", "amd64", LockedFile("debian", "pool/main/l/libé.deb", A, 7)),),
            ),
            LockedPython(
                "3.11",
                "/usr/bin/python3.11",
                True,
                ("libé",),
                f"sha256:{A}",
                (LockedWheel("numpy", "2.0", LockedFile("pypi", "numpy-2.0-py3-none-any.whl", B, 1 << 40)),),
            ),
        ),
        LockedPlatform(Platform("linux", "arm64")),
    ),
    includes=(LockedInclude("base/python.yaml", B),),
    files=(
        LockedLocal("/app/link", "app/link", "0777", target="deep/er"),
        LockedLocal("/app/main.py", "app/main.py", "0755", A, 0),
    ),
    templates=(LockedTemplate("/app/settings", "settings.j2", "0644", A, B, 9),),
    image=Execution(
        ("python", 'ünïcode\u2028 "quoted"'),
        ("x",),
        (("A", "1"), ("B", "")),
        "1:2",
        "/app",
        ("80/tcp",),
        (("l", "v"),),
        "SIGINT",
    ),
    soci=SociSettings(False, 1 << 16, 0),
)


def parse(text: str) -> Lock:
    return locks.parse(text, "it.lock.json")


@pytest.mark.parametrize(
    "lock", [FULL, replace(FULL, platforms=(), files=(), image=Execution(), soci=SociSettings())], ids=["full", "bare"]
)
def test_a_lock_that_is_written_is_read_again(lock: Lock) -> None:
    assert parse(locks.encode(lock)) == lock


@pytest.mark.parametrize("name", golden.PROFILES)
def test_shipped_locks_are_locks_that_belong_to_their_profiles(name: str, tmp_path: Path) -> None:
    profile = golden.PROFILES[name]
    text = profile.with_suffix(".lock.json").read_text()
    assert locks.encode(parse(text)) == text
    environment = {"PATH": "/nonexistent", "HOME": str(tmp_path), "LAYERWRIGHT_OFFLINE": "1"}
    done = run(["lock", "--check", profile], tmp_path, environment)
    assert done.code == 0, done.err


def test_the_text_is_canonical_and_made_for_diffs() -> None:
    text = locks.encode(FULL)
    assert text.endswith("}\n")
    assert text == json.dumps(json.loads(text), indent=2, sort_keys=True, ensure_ascii=False) + "\n"
    assert "ünïcode" in text
    assert json.loads(text)["format"] == FORMAT
    assert "null" not in text


def strings(value: Any) -> list[str]:
    if isinstance(value, dict):
        return [*value, *(text for item in value.values() for text in strings(item))]
    if isinstance(value, list):
        return [text for item in value for text in strings(item)]
    return [value] if isinstance(value, str) else []


@pytest.mark.parametrize("path", sorted(golden.ROOT.glob("**/*.lock.json")), ids=lambda path: path.name)
def test_no_lock_names_a_host(path: Path) -> None:
    if {".venv", "out"} & set(path.parts):
        pytest.skip("not ours")
    document = json.loads(path.read_text())
    document.pop("image", None)  # the profile's own words
    found = strings(document)
    addresses = [text.removeprefix("pypi://") for text in found]  # a project of whatever index is configured
    assert not [text for text in addresses if "://" in text or text.startswith("//") or "localhost" in text]
    assert not [text for text in found if re.search(r"\.(org|com|net|io|dev|invalid|internal|local)(:\d+)?(/|$)", text)]
    hosts = {urlsplit(uri).hostname for mirror in apt.mirrors().values() for uri in mirror.uris} - {None}
    assert not [text for text in found for host in hosts if str(host) in text]


def edited(change: Callable[[dict[str, Any]], object]) -> str:
    """FULL with a change, in the form in which locks are written."""
    document = json.loads(locks.encode(FULL))
    change(document)
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def python(document: dict[str, Any]) -> Any:
    return document["platforms"][0]["python"]


def debian(document: dict[str, Any]) -> Any:
    return document["platforms"][0]["debian"]


def cuda(document: dict[str, Any], place: int = 0, **change: object) -> None:
    """Gives a platform a CUDA: the first has a Python, the second has none."""
    found = {"version": "13.2.2", "flavour": "base", "request": f"sha256:{A}", **change}
    document["platforms"][place]["cuda"] = found


WRONG: dict[str, tuple[Callable[[dict[str, Any]], object], str]] = {
    "format 0": (lambda d: d.update(format=0), r"\$\.format: 0 is no format"),
    "negative format": (lambda d: d.update(format=-1), r"\$\.format: -1 is no format"),
    "text for the format": (lambda d: d.update(format="1"), r"\$\.format: expected a whole number"),
    "truth for the format": (lambda d: d.update(format=True), r"\$\.format: expected a whole number"),
    "a compression of nobody": (lambda d: d.update(compression={"kind": "lz4"}), "'lz4' is no compression"),
    "none of a version": (
        lambda d: d.update(compression={"kind": "none", "version": "1"}),
        "no version or level of none",
    ),
    "zstd without a level": (lambda d: d.update(compression={"kind": "zstd", "version": "1.5.7"}), "is no zstd"),
    "zstd of a level beyond": (
        lambda d: d.update(compression={"kind": "zstd", "version": "1.5.7", "level": 99}),
        "'1.5.7' at level 99 is no zstd",
    ),
    "zstd of a strange version": (
        lambda d: d.update(compression={"kind": "zstd", "version": "1.5;x", "level": 3}),
        "'1.5;x' at level 3 is no zstd",
    ),
    "no time": (lambda d: d.update(created="yesterday"), "'yesterday' is no time"),
    "a zone": (lambda d: d.update(created="2026-01-31T12:00:00+01:00"), "is no time"),
    "no profile": (lambda d: d.pop("profile"), r"\$\.profile: .*missing"),
    "a short digest": (lambda d: d.update(profile="sha256:abc"), "is no sha256 digest"),
    "an unknown key": (lambda d: d.update(platfroms=[]), r"platfroms.*did you mean platforms"),
    "a wrong type": (lambda d: d.update(platforms={}), r"\$\.platforms: expected a list"),
    "text for a size": (lambda d: d["files"][1].update(size="0"), r"\$\.files\[1\]\.size"),
    "a negative size": (lambda d: debian(d)["packages"][0]["file"].update(size=-1), "no sha256, or no size"),
    "capital letters": (lambda d: debian(d)["packages"][0]["file"].update(sha256="A" * 64), "no sha256"),
    "a path upwards": (lambda d: debian(d)["packages"][0]["file"].update(path="../x.deb"), "is no path of an origin"),
    "an absolute path": (lambda d: debian(d)["packages"][0]["file"].update(path="/etc/x"), "is no path of an origin"),
    "a folder for a wheel": (
        lambda d: python(d)["wheels"][0]["file"].update(path="x/numpy.whl"),
        "is no name of a wheel",
    ),
    "no wheel": (lambda d: python(d)["wheels"][0]["file"].update(path="numpy.tar.gz"), "is no name of a wheel"),
    "a package twice": (lambda d: debian(d)["packages"].extend(debian(d)["packages"]), "libé is there twice"),
    "a wheel twice": (lambda d: python(d)["wheels"].extend(python(d)["wheels"]), "numpy is there twice"),
    "a Python that stands on nothing": (
        lambda d: d["platforms"][0].pop("debian"),
        "a Python without anything to stand on",
    ),
    "an interpreter of nothing": (lambda d: python(d).update(interpreter=["libx"]), "packages that are not locked"),
    "a place upwards": (lambda d: d["files"][0].update(to="/app/../etc/passwd"), "is no absolute path in an image"),
    "a relative place": (lambda d: d["files"][0].update(to="app/link"), "is no absolute path in an image"),
    "the root": (lambda d: d["files"][0].update(to="/"), "is no absolute path in an image"),
    "a place twice": (lambda d: d["files"][0].update(to="/app/settings"), "/app/settings is locked twice"),
    "no mode": (lambda d: d["files"][1].update(mode="rwx"), "'rwx' is no mode"),
    "a link with a size": (lambda d: d["files"][0].update(size=1), "neither a file nor a symlink"),
    "a file without a digest": (lambda d: d["files"][1].pop("sha256"), "neither a file nor a symlink"),
    "no release of CUDA": (lambda d: cuda(d, version="13.2"), "'13.2' is no release of CUDA"),
    "a release that leads elsewhere": (lambda d: cuda(d, version="13.2/../x.1"), "is no release of CUDA"),
    "no flavour": (lambda d: cuda(d, flavour="auto"), "'auto' is no flavour"),
    "CUDA beside Python": (lambda d: cuda(d, python="3.11"), "wheels that are not those of Python"),
    "CUDA's wheels beside Python": (
        lambda d: cuda(d, wheels=python(d)["wheels"]),
        "wheels that are not those of Python",
    ),
    "CUDA in no folder": (lambda d: cuda(d, 1), "'' is no version like 3.11"),
    "CUDA elsewhere": (lambda d: cuda(d, 1, python="3.11/.."), "is no version like 3.11"),
    "CUDA's wheels twice": (
        lambda d: cuda(d, 1, python="3.11", wheels=[*python(d)["wheels"], *python(d)["wheels"]]),
        "numpy is there twice",
    ),
    "a platform": (lambda d: d["platforms"][0].update(platform="amd64"), r"\$\.platforms\[0\]\.platform"),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_no_lock_of_ours_says(name: str) -> None:
    change, message = WRONG[name]
    with pytest.raises((LockError, DocumentError), match=message) as caught:
        parse(edited(change))
    assert "it.lock.json" in str(caught.value)


def test_every_problem_is_told_at_once() -> None:
    def change(document: dict[str, Any]) -> None:
        document.update(created="now", profile="none")
        document["files"][1].update(mode="7")

    with pytest.raises(LockError) as caught:
        parse(edited(change))
    assert len(str(caught.value).splitlines()) == 4


def test_a_lock_of_a_newer_version_is_no_mistake_of_the_user() -> None:
    text = edited(lambda d: d.update(format=FORMAT + 1, unheard="of", platforms="?"))
    with pytest.raises(LockError, match=rf"newer Layerwright, for format {FORMAT + 1}") as caught:
        parse(text)
    assert "upgrade" in str(caught.value.hint)


def test_a_lock_that_was_merged_by_hand_names_the_key_that_is_there_twice() -> None:
    text = locks.encode(FULL).replace('"created"', '"name": "other",\n  "created"', 1)
    with pytest.raises(DocumentError, match=r"name.*twice"):
        parse(text)


@pytest.mark.parametrize(
    "change",
    [
        lambda text: text.replace("\n", "\r\n"),
        lambda text: text.rstrip("\n"),
        lambda text: text + "\n",
        lambda text: text.replace("  ", "\t"),
        lambda text: json.dumps(json.loads(text), sort_keys=True),
        lambda text: json.dumps(dict(reversed(json.loads(text).items())), indent=2, ensure_ascii=False) + "\n",
        lambda text: json.dumps(json.loads(text), sort_keys=True, indent=2) + "\n",
        lambda text: text.replace(f'  "format": {FORMAT},\n', ""),
        lambda text: text + " ",
    ],
    ids=["crlf", "no end", "two ends", "tabs", "one line", "order", "escapes", "no format", "space"],
)
def test_another_form_of_the_same_was_edited_by_hand(change: Callable[[str], str]) -> None:
    with pytest.raises(LockError, match="edited by hand") as caught:
        parse(change(locks.encode(FULL)))
    assert "version control" in str(caught.value.hint)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "null",
        "[]",
        "1",
        '"lock"',
        "{}",
        '{"format": 1e999}',
        '{"format": NaN}',
        "[" * 100_000,
        '{"a": "\\u0000"}',
    ],
    ids=["empty", "cut off", "null", "list", "number", "text", "nothing", "infinite", "nan", "deep", "nul"],
)
def test_what_is_no_lock_at_all(text: str) -> None:
    with pytest.raises(BuilderError, match=r"it\.lock\.json"):
        parse(text)


def test_conflict_markers_of_git_are_no_json() -> None:
    text = locks.encode(FULL).replace('  "name"', '<<<<<<< HEAD\n  "name"', 1)
    with pytest.raises(DocumentError, match=r"it\.lock\.json:\d+:\d+: .*not JSON") as caught:
        parse(text)
    assert "a merge was not finished" in str(caught.value.hint)


def test_a_key_of_tomorrow_may_be_that_of_a_newer_version() -> None:
    with pytest.raises(DocumentError, match="unknown key") as caught:
        parse(edited(lambda document: document.update(tomorrow={})))
    assert "upgrade Layerwright" in str(caught.value.hint)


def test_what_is_no_lock_says_what_to_do() -> None:
    for text in ("{}", "[]", "nonsense", ""):
        with pytest.raises(DocumentError, match=r"it\.lock\.json") as caught:
            parse(text)
        assert "version control" in str(caught.value.hint)


def test_a_lock_file_is_parsed_again_only_when_it_says_something_else(tmp_path: Path) -> None:
    file = LockFile(tmp_path / "it.lock.json")
    assert file.read() is None
    assert file.start() is None
    file.write(FULL)
    first = file.read()
    assert first == FULL
    assert file.read() is first
    newer = replace(FULL, name="newer")
    LockFile(file.path).write(newer)
    assert file.read() == newer
    file.path.write_bytes(b"\xff")
    assert file.start() is None
    with pytest.raises(LockError, match="cannot be read"):
        file.read()
    file.path.write_text("{}")
    with pytest.raises(DocumentError):
        file.read()
    file.write(FULL)
    assert file.read() == FULL
