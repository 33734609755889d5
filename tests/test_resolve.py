"""`build lock`: what makes a lock stale, what stays when it is made again, and what moves."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import indexserver
import pytest
import world as worlds
from debarchive import Item
from world import PROFILE, Done, World, run, write_project

from builder import lock as locks
from builder import profile as profiles
from builder.errors import OfflineError
from builder.lock import Lock
from builder.own import read_local
from builder.progress import Silent
from builder.resolve import Places, resolve
from builder.sources.indexes import Indexes
from builder.sources.simple import Catalogue
from builder.staleness import staleness
from builder.store import Store

MOVING = PROFILE.replace("alpha", "moving-one, moving-two").replace("[hello]", "[hello, tool]")
NOWHERE = "http://127.0.0.1:9"
"""The port of `discard`: nobody answers."""


def lock_of(profile: Path) -> Lock:
    path = profile.with_suffix(".lock.json")
    return locks.parse(path.read_text(), str(path))


def versions(lock: Lock) -> dict[str, str]:
    """Every package and its version; a wheel and a Debian package of one name do not meet here."""
    found: dict[str, str] = {}
    for platform in lock.platforms:
        found |= {deb.name: deb.version for deb in platform.debian.packages} if platform.debian else {}
        found |= {wheel.name: wheel.version for wheel in platform.python.wheels} if platform.python else {}
    return found


@pytest.fixture
def project(small: Path, tmp_path: Path) -> Path:
    """A copy of the small project with its lock, free to be changed."""
    for path in small.parent.iterdir():
        if path.name != "out":
            if path.is_dir():
                shutil.copytree(path, tmp_path / path.name, symlinks=True)
            else:
                shutil.copy(path, tmp_path / path.name)
    return tmp_path / small.name


@pytest.fixture
def unplugged(world: World, tmp_path: Path) -> dict[str, str]:
    """An environment in which every connection is refused, and no store has anything."""
    config = tmp_path / "unplugged.toml"
    config.write_text(f'[origins]\ndebian = "{NOWHERE}"\ndebian-security = "{NOWHERE}"\npypi = "{NOWHERE}/simple"\n')
    proxies = {f"{name}_proxy": NOWHERE for name in ("http", "https", "all")}
    return world.environment(tmp_path / "cache", LAYERWRIGHT_CONFIG=str(config), **proxies)


def check(profile: Path, environment: dict[str, str]) -> Done:
    return run(["lock", "--check", profile], profile.parent, environment)


def rewritten(path: Path, old: str, new: str) -> None:
    assert old in path.read_text()
    path.write_text(path.read_text().replace(old, new))


def replaced(path: Path) -> Path:
    path.unlink()
    return path


CHANGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a value of the profile": (lambda p: rewritten(p, "8080", "8081"), "the profile has changed"),
    "a requirement": (lambda p: rewritten(p, "beta>=1", "beta>=1.1"), "the profile has changed"),
    "its name": (lambda p: rewritten(p, "name: small", "name: tiny"), "it is the lock of small, not of tiny"),
    "a file": (lambda p: (p.parent / "app/main.py").write_text("new"), "file app/main.py has changed"),
    "its exec bit": (lambda p: (p.parent / "app/main.py").chmod(0o755), "file app/main.py has changed"),
    "one file more": (lambda p: (p.parent / "app/deep/new").write_text(""), "file app/deep/new is new"),
    "one file less": (lambda p: (p.parent / "app/Alpha").unlink(), "file app/Alpha is gone"),
    "a link": (lambda p: replaced(p.parent / "app/note").symlink_to("zeta"), "file app/note has changed"),
    "a link that is a file": (lambda p: replaced(p.parent / "app/note").write_text(""), "file app/note has changed"),
    "a template": (lambda p: (p.parent / "settings.json.j2").write_text("{}"), "template settings.json.j2 has changed"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_lock_is_stale_after_a_change_of(name: str, project: Path, unplugged: dict[str, str]) -> None:
    change, reason = CHANGES[name]
    assert check(project, unplugged).code == 0
    change(project)
    done = check(project, unplugged)
    assert done.code == 3
    assert reason in done.err
    assert f"hint: run `build lock {project}`" in done.err


def test_nothing_is_made_of_a_stale_lock(
    world: World, project: Path, unplugged: dict[str, str], tmp_path: Path
) -> None:
    (project.parent / "app/main.py").write_text("new")
    for verb in ("plan", "assemble", "publish"):
        refused = run([verb, project], tmp_path, unplugged)
        assert (refused.code, refused.out) == (3, "")
        assert "file app/main.py has changed" in refused.err
        assert "--lock" in refused.err
    assert not (tmp_path / "out").exists()
    assert run(["lock", project], tmp_path, world.environment(world.root / "cache")).code == 0
    assert check(project, unplugged).code == 0


def test_all_reasons_are_told_at_once(project: Path, unplugged: dict[str, str]) -> None:
    rewritten(project, "8080", "8081")
    (project.parent / "app/main.py").write_text("new")
    (project.parent / "app/Alpha").unlink()
    told = check(project, unplugged).err
    for reason in ("the profile has changed", "file app/main.py has changed", "file app/Alpha is gone"):
        assert reason in told


def test_what_no_byte_depends_on_stales_no_lock(project: Path, unplugged: dict[str, str]) -> None:
    text = project.read_text()
    project.write_text(
        "# a comment\n"
        + text.replace("values: {port: 8080, names: [x, y]}", "values:\n  port: 8080\n  names: [x, y]")
        + "  to: oci:elsewhere\n"
    )
    os.utime(project.parent / "app/main.py", (1, 1))
    (project.parent / "app/deep/empty").mkdir()
    (project.parent / "app/__pycache__").mkdir()
    (project.parent / "app/__pycache__/main.pyc").write_bytes(b"x")
    (project.parent / "README").write_text("not in the image")
    assert check(project, unplugged).code == 0


def test_a_profile_that_is_extended_stales_the_lock(world: World, tmp_path: Path, unplugged: dict[str, str]) -> None:
    profile = write_project(tmp_path / "p", PROFILE.replace("name: small\n", "name: small\nextends: [base.yaml]\n"))
    base = profile.with_name("base.yaml")
    base.write_text("profile: 1\nname: base\nimage: {labels: {a: b}}\n")
    assert run(["lock", profile], tmp_path, world.environment(tmp_path / "c")).code == 0
    assert lock_of(profile).includes[0].source == "base.yaml"
    base.write_text("# said differently\nprofile: 1\nname: base\nimage: {labels: {a: b}}\n")
    assert "base.yaml that it extends has changed" in check(profile, unplugged).err
    base.write_text("profile: 1\nname: base\nimage: {labels: {a: c}}\n")
    assert "the profile has changed, by base.yaml that it extends" in check(profile, unplugged).err


def test_a_requirements_file_stales_the_lock(world: World, tmp_path: Path, unplugged: dict[str, str]) -> None:
    text = PROFILE.replace('[alpha, "beta>=1"]', "requirements.txt")
    profile = write_project(tmp_path / "p", text)
    asked = profile.with_name("requirements.txt")
    asked.write_text("beta\n-r more.txt\n")
    (tmp_path / "p/more.txt").write_text("gamma\n")
    assert run(["lock", profile], tmp_path, world.environment(tmp_path / "c")).code == 0
    assert {"beta", "gamma"} <= versions(lock_of(profile)).keys()
    (tmp_path / "p/more.txt").write_text("gamma<4\n")
    assert "the requirements of linux/amd64 have changed" in check(profile, unplugged).err


def test_another_lock_beside_the_profile(project: Path, unplugged: dict[str, str]) -> None:
    """Its name and digest were made to fit by hand; what it says is not what the profile says."""
    path = project.with_suffix(".lock.json")
    document = json.loads(path.read_text())
    document["image"]["entrypoint"] = ["sh"]
    path.write_text(json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n")
    done = check(project, unplugged)
    assert (done.code, "its settings are not those of the profile" in done.err) == (3, True)


def test_a_lock_of_an_older_format_is_stale(project: Path) -> None:
    loaded = profiles.read(project)
    reasons = staleness(loaded, read_local(loaded), replace(lock_of(project), format=0))
    assert reasons == ["it was made for format 0 of images, this version builds format 1"]


def test_without_a_lock(world: World, project: Path, unplugged: dict[str, str], tmp_path: Path) -> None:
    """Publishing makes one; what only looks, or promises a lock, does not."""
    path = project.with_suffix(".lock.json")
    path.unlink()
    for arguments in (["lock", "--check"], ["plan"], ["assemble"]):
        done = run([*arguments, project], tmp_path, unplugged)
        assert (done.code, done.out) == (3, ""), arguments
        assert "there is no lock" in done.err
        assert f"build lock {project}" in done.err
    assert not path.exists()
    done = run(["publish", project], tmp_path, world.environment(world.root / "cache"))
    assert done.code == 0
    assert f"wrote {path}" in done.err


def test_an_unchanged_profile_asks_nobody(project: Path, unplugged: dict[str, str]) -> None:
    """Not even with another time: `created` is when something last changed."""
    before = project.with_suffix(".lock.json").read_bytes()
    done = run(["lock", project], project.parent, unplugged | {"SOURCE_DATE_EPOCH": "1800000000"})
    assert (done.code, done.out) == (0, f"{project.with_suffix('.lock.json')}\n"), done.err
    assert "unchanged:" in done.err
    assert project.with_suffix(".lock.json").read_bytes() == before


def test_a_change_of_own_files_asks_nobody_but_moves_the_time(project: Path, unplugged: dict[str, str]) -> None:
    before = lock_of(project)
    (project.parent / "app/main.py").write_text("new")
    rewritten(project, "8080", "8081")
    done = run(["lock", project], project.parent, unplugged | {"SOURCE_DATE_EPOCH": "1800000000"})
    assert done.code == 0, done.err
    after = lock_of(project)
    assert after.platforms == before.platforms
    assert after.created == "2027-01-15T08:00:00Z"


def test_a_requirement_more_keeps_the_versions_of_the_others(world: World, tmp_path: Path) -> None:
    environment = world.environment(world.root / "cache")
    profile = world.project(tmp_path, MOVING)
    before = versions(lock_of(profile))
    assert (before["moving-one"], before["moving-two"], before["tool"]) == ("1.0", "1.0", "1.0")
    world.index.publish(indexserver.wheel("moving-one", "2.0"), indexserver.wheel("moving-two", "2.0"))
    world.release(worlds.package("tool", "2.0", [Item("./usr/bin/tool", b"#!/bin/false\n", mode=0o755)]))
    rewritten(profile, "moving-one,", "moving-one, gamma,")
    rewritten(profile, "packages: [hello,", "packages: [libc6, hello,")
    assert run(["lock", profile], tmp_path, environment).code == 0
    assert versions(lock_of(profile)) == before | {"gamma": "3.0"}

    moved = run(["lock", profile, "--upgrade", "Moving_One"], tmp_path, environment)
    assert moved.code == 0, moved.err
    assert versions(lock_of(profile)) == before | {"gamma": "3.0", "moving-one": "2.0"}
    assert "~ moving-one 1.0 → 2.0 (linux/amd64)" in moved.err

    moved = run(["lock", profile, "--upgrade", "tool"], tmp_path, environment)
    assert moved.code == 0, moved.err
    assert versions(lock_of(profile)) == before | {"gamma": "3.0", "moving-one": "2.0", "tool": "2.0"}

    assert run(["lock", profile, "--upgrade"], tmp_path, environment).code == 0
    assert versions(lock_of(profile))["moving-two"] == "2.0"
    again = profile.with_suffix(".lock.json").read_bytes()
    assert "unchanged" in run(["lock", profile, "--upgrade"], tmp_path, environment).err
    assert profile.with_suffix(".lock.json").read_bytes() == again


def test_a_requirement_less_goes_with_what_only_it_needed(world: World, project: Path) -> None:
    rewritten(project, '[alpha, "beta>=1"]', "[alpha]")
    done = run(["lock", project], project.parent, world.environment(world.root / "cache"))
    assert {"beta", "gamma"}.isdisjoint(versions(lock_of(project)))
    assert "- beta 1.1 (linux/amd64)" in done.err
    assert "- gamma 3.0 (linux/amd64)" in done.err


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["--upgrade", "numpy"], 1, "nothing named numpy is in the lock"),
        (["alpha"], 2, "add --upgrade"),
        (["--check", "--upgrade"], 2, "--check changes nothing"),
        (["--upgrade", "", "alpha"], 2, "'' is no name of a package"),
        (["--upgrade", "beta==1.0"], 2, "versions belong into the profile"),
    ],
)
def test_names_that_cannot_be_meant(arguments: list[str], code: int, message: str, world: World, project: Path) -> None:
    before = project.with_suffix(".lock.json").read_bytes()
    done = run(["lock", project, *arguments], project.parent, world.environment(world.root / "cache"))
    assert (done.code, done.out) == (code, ""), done.err
    assert message in done.err
    assert project.with_suffix(".lock.json").read_bytes() == before


@pytest.mark.parametrize("epoch", ["tomorrow", "-1", "1e3", "99999999999999999999", "1.5"])
def test_a_source_date_epoch_that_is_none(epoch: str, world: World, project: Path) -> None:
    (project.parent / "app/main.py").write_text("new")
    environment = world.environment(world.root / "cache", SOURCE_DATE_EPOCH=epoch)
    done = run(["lock", project], project.parent, environment)
    assert done.code == 2
    assert "SOURCE_DATE_EPOCH" in done.err


def test_the_clock_is_asked_once_and_without_an_epoch(world: World, tmp_path: Path) -> None:
    environment = world.environment(world.root / "cache", SOURCE_DATE_EPOCH="")
    profile = write_project(tmp_path)
    assert run(["lock", profile], tmp_path, environment).code == 0
    assert lock_of(profile).created > "2025"


def test_offline_says_what_would_have_to_be_asked(world: World, tmp_path: Path) -> None:
    profile = write_project(tmp_path)
    done = run(["lock", profile, "--offline"], tmp_path, world.environment(world.root / "cache"))
    assert done.code == 1
    assert "--offline forbids it" in done.err
    assert not profile.with_suffix(".lock.json").exists()


def test_a_folder_that_cannot_be_written(world: World, tmp_path: Path) -> None:
    profile = write_project(tmp_path)
    profile.with_suffix(".lock.json").mkdir()
    done = run(["lock", profile], tmp_path, world.environment(world.root / "cache"))
    assert done.code == 1
    assert f"{profile.with_suffix('.lock.json')}: cannot be read" in done.err
    assert "Traceback" not in done.err


def nowhere() -> Catalogue:
    """A package index that nobody may ask."""

    def refuse(*_: object, **__: object) -> Any:
        raise OfflineError("this test has no network")

    def configure() -> Indexes:
        raise OfflineError("this test has no network")

    return Catalogue(configure, refuse, measure=refuse)


@pytest.mark.parametrize("asked", ["auto", "true", "false"])
@pytest.mark.parametrize("was", [True, False])
@pytest.mark.parametrize("architecture", ["amd64", "arm64", "riscv64"])
def test_whether_there_is_bytecode_is_decided_once(asked: str, was: bool, architecture: str, project: Path) -> None:
    """A relock on a machine of another kind changes no image; only the profile's own word does."""
    rewritten(project, "bytecode: false", f"bytecode: {asked}")
    before = lock_of(project)
    (platform,) = before.platforms
    assert platform.python
    previous = replace(before, platforms=(replace(platform, python=replace(platform.python, bytecode=was)),))
    loaded = profiles.read(project)
    store = Store(project.parent / "nowhere")
    places = Places({}, nowhere(), architecture, store, lambda files: None)
    after = resolve(
        loaded, read_local(loaded), places, created="2026-01-01T00:00:00Z", previous=previous, progress=Silent()
    )
    assert after.platforms[0].python
    assert after.platforms[0].python.bytecode is (was if asked == "auto" else asked == "true")


def test_bytecode_is_for_the_machine_that_locks_first(world: World, tmp_path: Path) -> None:
    profile = write_project(tmp_path, PROFILE.replace(", bytecode: false", ""))
    assert run(["lock", profile], tmp_path, world.environment(world.root / "cache")).code == 0
    (platform,) = lock_of(profile).platforms
    assert platform.python
    assert platform.python.bytecode is (os.uname().machine == "x86_64")
    assert "python3.11-minimal" in platform.python.interpreter
    assert "hello" not in platform.python.interpreter


def test_no_lock_of_this_world_names_it(small: Path, world: World) -> None:
    text = small.with_suffix(".lock.json").read_text()
    assert "127.0.0.1" not in text
    assert str(world.index.port) not in text
    assert str(world.root) not in text
