"""Nix as the engine, on stores of its own: the digests are those of packing here, wherever it builds."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import judges
import pytest
from world import Done, World, run, world

from builder import lock as locks
from builder import plan as plans
from builder.models.client import modules
from builder.nix import inside, runtime
from builder.nix.engine import name_of, safe

CONFIG = "build-users-group =\nsubstitute = false\nflake-registry =\n"
SYSTEM = f"{os.uname().machine}-linux"


@dataclass(frozen=True)
class Machine:
    """One machine: its own store of Layerwright, and its own of Nix."""

    world: World
    project: Path
    root: Path

    def __call__(self, verb: str, *arguments: object, prefix: tuple[str, ...] = (), **environment: str) -> Done:
        """Runs a verb on the profile of the world, or `assemble` where that is the verb, into `out`."""
        known = {"NIX_REMOTE": str(self.root / "nix"), "NIX_CONFIG": CONFIG, "USER": "root"}
        where = self.world.environment(self.root / "cache", **{**known, **environment})
        output = ["-o", f"oci:{self.root / 'out'}"] if verb == "assemble" else []
        (self.root).mkdir(exist_ok=True, parents=True)
        return run([*verb.split(), self.project / "small.yaml", *output, *arguments], self.root, where)

    def nix(self, *arguments: str) -> str:
        """Runs a program of Nix on the machine's store."""
        where = {**os.environ, "NIX_REMOTE": str(self.root / "nix"), "NIX_CONFIG": CONFIG}
        return subprocess.run(arguments, env=where, check=True, capture_output=True, text=True).stdout

    def path(self, name: str) -> Path:
        """The one path of the store whose name begins so."""
        (found,) = (
            path
            for path in (self.root / "nix/nix/store").iterdir()
            if path.name[33:].startswith(name) and not path.name.endswith((".drv", ".lock", ".chroot"))
        )
        return found


@dataclass(frozen=True)
class Machines:
    """Machines of one world, and the digest that packing without Nix gives."""

    world: World
    project: Path
    root: Path
    digest: str

    def new(self, name: str) -> Machine:
        return Machine(self.world, self.project, self.root / name)


@pytest.fixture(scope="module")
def machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Machines]:
    judges.require("nix")
    root = tmp_path_factory.mktemp("nix")
    with world(root / "world") as made:
        project = made.project(root / "project").parent
        machine = Machine(made, project, root / "plain")
        done = machine("assemble")
        yield Machines(made, project, root, done.digest)
        subprocess.run(["chmod", "-R", "u+w", str(root)], check=False)
        shutil.rmtree(root, ignore_errors=True)


@pytest.fixture(scope="module")
def built(machines: Machines) -> Machine:
    """A machine that has built all with Nix."""
    machine = machines.new("built")
    done = machine("assemble", "--engine", "nix", "--nix-floor", "0")
    assert done.digest == machines.digest
    assert "3 wheels: built here" in done.err
    assert "debian bookworm: built here" in done.err
    return machine


def test_digests_are_those_of_packing_here(machines: Machines, built: Machine) -> None:
    again = built("assemble", "--engine", "nix", "--nix-floor", "0")
    assert again.digest == machines.digest
    assert "nix:" not in again.err  # nothing is missing, so that nobody asks


def test_small_layers_are_packed_here(machines: Machines) -> None:
    done = machines.new("floor")("assemble", "--engine", "nix")
    assert done.digest == machines.digest
    assert "3 wheels: built here" in done.err
    assert "debian" not in "".join(line for line in done.err.splitlines() if line.startswith("nix:"))


def test_another_store_of_ours_takes_what_nix_has(machines: Machines, built: Machine) -> None:
    """Neither is anything built, nor is a wheel fetched."""
    shutil.rmtree(built.root / "cache")
    done = built("assemble", "--offline", "--engine", "nix", "--nix-floor", "0", "--no-attach")
    assert done.code == 0, done.err
    assert "nix:" not in done.err
    assert "fetch" not in done.err


def test_a_remote_builder_gives_the_same(machines: Machines) -> None:
    machine = machines.new("near")
    far = machine.root / "far"
    builder = f"ssh-ng://localhost?remote-store={far} {SYSTEM} - 2 1"
    done = machine("assemble", "--engine", "nix", "--max-jobs", "0", "--builders", builder)
    assert done.digest == machines.digest
    assert f"3 wheels: built on ssh-ng://localhost?remote-store={far}" in done.err
    assert any(path.name.endswith("3-wheels") or "3-wheels-" in path.name for path in (far / "nix/store").iterdir())


def test_packing_outside_of_a_sandbox_is_refused(machines: Machines, built: Machine, tmp_path: Path) -> None:
    """Even where a machine that builds does not do as it is told: the packer sees it by itself."""
    packer = built.path(runtime.NAME)
    lock = locks.parse((machines.project / "small.lock.json").read_text(), "lock")
    layer = next(layer for layer in plans.plan(lock).platforms[0].layers if layer.name == "3 wheels")
    attributes = {"outputs": {"out": str(tmp_path / "out")}, "spec": inside.encode(layer, 1 << 20), "inputs": []}
    (tmp_path / ".attrs.json").write_text(json.dumps(attributes))
    argv = [packer / "lib/ld.so", "--library-path", packer / "lib", packer / "bin/python", "-I", "-B", "-S"]
    argv.append(packer / "site/builder/nix/inside.py")
    done = subprocess.run(list(map(str, argv)), cwd=tmp_path, env={}, check=False, capture_output=True, text=True)
    assert done.returncode == 1
    message, hint = json.loads(done.stderr.removeprefix(inside.MARK))
    assert "without a sandbox" in message
    assert "sandbox = true" in hint


def test_verify_builds_again(machines: Machines, built: Machine) -> None:
    known = {"NIX_REMOTE": str(built.root / "nix"), "NIX_CONFIG": CONFIG}
    where = machines.world.environment(built.root / "cache", **known)
    done = run(["verify", f"oci:{built.root / 'out'}", "--engine", "nix"], built.root, where)
    assert done.code == 0, done.err
    assert "identical" in done.out


def test_no_nix(machines: Machines) -> None:
    done = machines.new("none")("assemble", "--engine", "nix", PATH="/nonexistent")
    assert done.code == 1
    assert "nix: not found" in done.err
    assert "install Nix" in done.err


def test_an_old_nix(machines: Machines, tmp_path: Path) -> None:
    old = tmp_path / "nix"
    old.write_text("#!/bin/sh\necho 'nix (Nix) 2.3.16'\n")
    old.chmod(0o755)
    done = machines.new("old")("assemble", "--engine", "nix", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.code == 1
    assert "2.3.16: too old" in done.err


def test_nobody_may_build(machines: Machines) -> None:
    done = machines.new("nobody")("assemble", "--engine", "nix", "--max-jobs", "0")
    assert done.code == 1
    assert "--max-jobs" in done.err


def test_a_store_that_cannot_be_written(machines: Machines, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = machines.new("full")("assemble", "--engine", "nix", NIX_REMOTE=str(tmp_path / "file/store"))
    assert done.code == 1
    assert "NIX_REMOTE" in done.err


def test_a_store_elsewhere(machines: Machines) -> None:
    done = machines.new("away")("assemble", "--engine", "nix", NIX_REMOTE="ssh-ng://somewhere")
    assert done.code == 1
    assert "not on this machine" in done.err


def test_settings_of_nix_want_the_engine(machines: Machines) -> None:
    done = machines.new("usage")("assemble", "--max-jobs", "2")
    assert done.code == 2
    assert "add --engine nix" in done.err


def test_what_is_wrong_inside_is_told_as_it_is_here(machines: Machines, tmp_path: Path) -> None:
    """A wheel that changed in the store is refused by the same words."""
    lock = json.loads((machines.project / "small.lock.json").read_text())
    (python,) = (platform["python"] for platform in lock["platforms"])
    python["wheels"][0]["version"] = "9.9"
    project = tmp_path / "project"
    shutil.copytree(machines.project, project, symlinks=True)
    (project / "small.lock.json").write_text(json.dumps(lock, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    here = Machine(machines.world, project, tmp_path / "here")("assemble")
    there = Machine(machines.world, project, tmp_path / "there")("assemble", "--engine", "nix")
    assert here.code == there.code == 1
    (words,) = (line.removeprefix("error: ") for line in here.err.splitlines() if line.startswith("error: "))
    assert words in there.err
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=False)


def test_specifications_are_read_as_written() -> None:
    data = Path(__file__).parent / "data"
    for name in ("real", "both", "cuda", "cuda12"):
        lock = locks.parse((data / f"{name}.lock.json").read_text(), name)
        layers = [layer for platform in plans.plan(lock).platforms for layer in platform.layers]
        mine = [layer for layer in layers if type(layer) in inside.KINDS.values()]
        assert mine
        for layer in mine:
            assert inside.decode(inside.encode(layer, 1 << 20)) == (layer, 1 << 20)
            assert re.fullmatch(r"[0-9A-Za-z+\-_?=][0-9A-Za-z+\-_?=.]*", name_of(layer))


@pytest.mark.parametrize(
    ("name", "expected"),
    [("torch 2.15.0+cu132", "torch-2.15.0+cu132"), ("..a!1~b", "a-1-b"), ("ä/ö", "layer"), ("x" * 300, "x" * 120)],
)
def test_names(name: str, expected: str) -> None:
    assert safe(name) == expected


def test_the_packer_has_what_it_imports(tmp_path: Path) -> None:
    """All of it comes out of its own folder, and the same is written twice."""
    imported = {
        name.partition(".")[0]
        for module in modules((runtime.ENTRY,))
        for node in ast.walk(ast.parse(runtime._path(module).read_text()))
        for name in (
            [alias.name for alias in node.names]
            if isinstance(node, ast.Import)
            else [node.module or ""]
            if isinstance(node, ast.ImportFrom)
            else []
        )
    }
    assert imported - sys.stdlib_module_names - {"builder", "compression"} == set(runtime._LIBRARIES)
    folder = tmp_path / "packer"
    runtime.write(folder)
    names = sorted(modules((runtime.ENTRY,)))
    program = (
        "import sys, importlib; sys.path.append(sys.argv[1] + '/site')\n"
        f"for name in {names!r}: importlib.import_module(name)\n"
        "print(*(m.__file__ for m in sys.modules.values() if getattr(m, '__file__', None)), sep='\\n')\n"
    )
    argv = [folder / "lib/ld.so", "--library-path", folder / "lib", folder / "bin/python", "-I", "-B", "-S", "-c"]
    done = subprocess.run(
        [*map(str, argv), program, str(folder)], cwd="/", env={}, check=True, capture_output=True, text=True
    )
    assert [name for name in done.stdout.split() if not Path(name).is_relative_to(folder)] == []
    files = {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    runtime.write(tmp_path / "again")
    assert all((tmp_path / "again" / name).read_bytes() == data for name, data in files.items())
