"""Nix as the engine, on stores of its own: the digests are those of packing here, wherever it builds."""

from __future__ import annotations

import ast
import json
import os
import re
import shutil
import subprocess
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from nixmachines import CONFIG, SYSTEM, Machine, Machines
from world import run

from builder import lock as locks
from builder import plan as plans
from builder.errors import BuilderError, HostileInputError
from builder.nix import inside, program, runtime
from builder.nix.document import name_of, safe
from builder.nix.engine import take
from builder.nix.program import NixError
from builder.oci.digest import Digest
from builder.store import Store


@pytest.fixture(scope="module")
def built(nix_machines: Machines) -> Machine:
    """A machine that has built all with Nix."""
    machine = nix_machines.new("built", bare=True)
    done = machine("assemble", "--engine", "nix", "--nix-floor", "0")
    assert done.digest == nix_machines.digest
    assert "3 wheels: built here" in done.err
    assert "debian bookworm: built here" in done.err
    return machine


def test_digests_are_those_of_packing_here(nix_machines: Machines, built: Machine) -> None:
    again = built("assemble", "--engine", "nix", "--nix-floor", "0")
    assert again.digest == nix_machines.digest
    assert "nix:" not in again.err  # nothing is missing, so that nobody asks


def test_small_layers_are_packed_here(nix_machines: Machines) -> None:
    done = nix_machines.new("floor")("assemble", "--engine", "nix")
    assert done.digest == nix_machines.digest
    assert "3 wheels: built here" in done.err
    assert "debian" not in "".join(line for line in done.err.splitlines() if line.startswith("nix:"))


def test_another_store_of_ours_takes_what_nix_has(nix_machines: Machines, built: Machine) -> None:
    """Neither is anything built, nor is a wheel fetched."""
    shutil.rmtree(built.root / "cache")
    done = built("assemble", "--offline", "--engine", "nix", "--nix-floor", "0", "--no-attach")
    assert done.code == 0, done.err
    assert "nix:" not in done.err
    assert "fetch" not in done.err


def test_layers_of_another_form(nix_machines: Machines, tmp_path: Path) -> None:
    """Those that have no ztoc, too."""
    project = tmp_path / "project"
    shutil.copytree(nix_machines.project, project, symlinks=True)
    profile = project / "small.yaml"
    profile.write_text(re.sub(r"(?ms)^publish:.*", "publish: {lazy: estargz}\n", profile.read_text()))
    here = Machine(nix_machines.world, project, tmp_path / "here")
    assert here("lock").code == 0
    expected = here("assemble").digest
    assert expected != nix_machines.digest
    done = nix_machines.at(tmp_path / "there", project)("assemble", "--engine", "nix")
    assert done.digest == expected
    assert "3 wheels: built here" in done.err
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=False)


def test_a_remote_builder_gives_the_same(nix_machines: Machines) -> None:
    machine = nix_machines.new("near")
    far = machine.root / "far"
    done = machine("assemble", "--engine", "nix", "--max-jobs", "0", "--builders", machine.builder("far"))
    assert done.digest == nix_machines.digest
    assert f"3 wheels: built on ssh-ng://localhost?remote-store={far}" in done.err
    assert "here" not in done.err
    assert any(path.name.endswith("3-wheels") or "3-wheels-" in path.name for path in (far / "nix/store").iterdir())


def test_a_newer_nix(nix_machines: Machines, newer_nix: Path, tmp_path: Path) -> None:
    """It has an older one build, and builds itself; what it warns of is neither told nor a remedy."""
    machine = nix_machines.new("newer")
    path = f"{newer_nix}:{os.environ['PATH']}"
    daemon = shutil.which("nix-daemon")
    builder = f"ssh-ng://localhost?remote-store={machine.root / 'far'}&remote-program={daemon} {SYSTEM} - 2 1"
    done = machine("assemble", "--engine", "nix", "--max-jobs", "0", "--builders", builder, PATH=path)
    assert done.digest == nix_machines.digest
    told = [line for line in done.err.splitlines() if line.startswith("nix: ")]
    assert len(told) == 1
    assert told[0].startswith("nix: 3 wheels: built on ssh-ng://localhost")
    shutil.rmtree(machine.root / "cache")
    done = machine("assemble", "--engine", "nix", "--nix-floor", "0", PATH=path)
    assert done.digest == nix_machines.digest
    told = [line for line in done.err.splitlines() if line.startswith("nix: ")]
    assert told == ["nix: debian bookworm: built here"]
    (tmp_path / "file").write_text("")
    done = machine(
        "assemble", "--engine", "nix", PATH=path, XDG_CACHE_HOME=str(tmp_path), NIX_REMOTE=str(tmp_path / "file")
    )
    assert done.code == 1
    assert "hint: name a store that you may write to: NIX_REMOTE=/absolute/folder" in done.err


def test_a_builder_that_is_lost_in_mid_build(nix_machines: Machines) -> None:
    """It is named, and another one takes its place."""
    machine = nix_machines.new("lost")
    dying = machine.builder("dying", 2, dies=True)
    builders = f"{dying} ; {machine.builder('other')}"
    done = machine("assemble", "--engine", "nix", "--max-jobs", "0", "--builders", builders)
    assert done.digest == nix_machines.digest
    assert re.search(r"nix: ssh-ng://localhost\?\S*dying-daemon\S* was lost while it built 3 wheels: ", done.err)
    assert "; that is built again\n" in done.err
    assert f"3 wheels: built on ssh-ng://localhost?remote-store={machine.root / 'other'}" in done.err


def test_a_builder_that_is_lost_for_good() -> None:
    """The error names it where Nix only speaks of the derivation; where nothing broke off, it is the packer's fault."""
    drv = f"/nix/store/{'0' * 32}-3-wheels.drv"
    begun = {"action": "start", "type": 105, "id": 1, "fields": [drv, "ssh-ng://far", 1, 1]}
    failed = f"error: builder for '{drv}' failed with exit code 1"
    for told, expected in (
        ("error: unexpected end-of-file", "ssh-ng://far was lost while it built 3-wheels: unexpected end-of-file"),
        ("error: cannot read", "nix build failed: error: cannot read"),
    ):
        log = program._Log(lambda name, place, *, cached: None, lambda text: None, {})
        for event in (begun, *({"action": "msg", "level": 0, "msg": text} for text in (told, failed))):
            log(f"@nix {json.dumps(event)}")
        assert str(log.failure()).startswith(expected)
        assert isinstance(log.failure(), program.LostError) == ("lost" in expected)


@given(
    st.lists(
        st.one_of(
            st.text(),
            st.sampled_from(["@nix {", "@nix " + "[" * 100_000, "@nix null", "@nix {}", "error: x"]),
            st.fixed_dictionaries(
                {
                    "action": st.sampled_from(["start", "stop", "result", "msg", "x"]),
                    "type": st.sampled_from([101, 105, 108, "105", None]),
                    "id": st.one_of(st.integers(), st.none()),
                    "level": st.one_of(st.integers(0, 3), st.text(max_size=2)),
                    "msg": st.one_of(st.text(), st.integers()),
                    "fields": st.lists(
                        st.one_of(
                            st.text(),
                            st.integers(),
                            st.sampled_from(["5", "[1]", "[[], {}]", "{", "[" * 100_000]).map(inside.MARK.__add__),
                        ),
                        max_size=4,
                    ),
                }
            ).map(lambda event: f"@nix {json.dumps(event)}"),
        ),
        max_size=8,
    )
)
def test_logs_that_lie(lines: list[str]) -> None:
    """Programs that build, and machines, say what they like; it ends as an error of ours in any case."""
    log = program._Log(lambda name, place, *, cached: None, lambda text: None, {})
    for line in lines:
        log(line)
    assert isinstance(log.failure(), BuilderError)


def test_packing_outside_of_a_sandbox_is_refused(nix_machines: Machines, built: Machine, tmp_path: Path) -> None:
    """Even where a machine that builds does not do as it is told: the packer sees it by itself."""
    packer = tmp_path / runtime.NAME
    runtime.write(packer)
    lock = locks.parse((nix_machines.project / "small.lock.json").read_text(), "lock")
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


def test_a_machine_without_a_sandbox(nix_machines: Machines) -> None:
    argv = (sys.executable, str(Path(__file__).parent / "nosandbox.py"))
    done = nix_machines.new("open")("assemble", "--engine", "nix", prefix=argv)
    assert done.code == 1
    assert "hint: the sandbox " in done.err
    assert "allow user namespaces" in done.err


def test_verify_builds_again(nix_machines: Machines, built: Machine) -> None:
    known = {"NIX_REMOTE": str(built.root / "nix"), "NIX_CONFIG": CONFIG}
    where = nix_machines.world.environment(built.root / "cache", **known)
    done = run(["verify", f"oci:{built.root / 'out'}", "--engine", "nix"], built.root, where)
    assert done.code == 0, done.err
    assert "identical" in done.out


def test_no_nix(nix_machines: Machines) -> None:
    done = nix_machines.new("none")("assemble", "--engine", "nix", PATH="/nonexistent")
    assert done.code == 1
    assert "nix: not found" in done.err
    assert "install Nix" in done.err


def test_an_old_nix(nix_machines: Machines, tmp_path: Path) -> None:
    old = tmp_path / "nix"
    old.write_text("#!/bin/sh\necho 'nix (Nix) 2.3.16'\n")
    old.chmod(0o755)
    done = nix_machines.new("old")("assemble", "--engine", "nix", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert done.code == 1
    assert "2.3.16: too old" in done.err


def test_nobody_may_build(nix_machines: Machines) -> None:
    done = nix_machines.new("nobody")("assemble", "--engine", "nix", "--max-jobs", "0")
    assert done.code == 1
    assert "--max-jobs" in done.err


def test_a_store_that_cannot_be_written(nix_machines: Machines, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    done = nix_machines.new("full")("assemble", "--engine", "nix", NIX_REMOTE=str(tmp_path / "file/store"))
    assert done.code == 1
    assert "NIX_REMOTE" in done.err


def test_a_store_elsewhere(nix_machines: Machines) -> None:
    done = nix_machines.new("away")("assemble", "--engine", "nix", NIX_REMOTE="ssh-ng://somewhere")
    assert done.code == 1
    assert "not on this machine" in done.err


def test_settings_of_nix_want_the_engine(nix_machines: Machines) -> None:
    done = nix_machines.new("usage")("assemble", "--max-jobs", "2")
    assert done.code == 2
    assert "add --engine nix" in done.err


def test_what_is_wrong_inside_is_told_as_it_is_here(nix_machines: Machines, tmp_path: Path) -> None:
    """A wheel that changed in the store is refused by the same words."""
    lock = json.loads((nix_machines.project / "small.lock.json").read_text())
    (python,) = (platform["python"] for platform in lock["platforms"])
    python["wheels"][0]["version"] = "9.9"
    project = tmp_path / "project"
    shutil.copytree(nix_machines.project, project, symlinks=True)
    (project / "small.lock.json").write_text(json.dumps(lock, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    here = Machine(nix_machines.world, project, tmp_path / "here")("assemble")
    there = nix_machines.at(tmp_path / "there", project)("assemble", "--engine", "nix")
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
        heavy = [plans.weight(layer) for layer in sorted(mine, key=name_of)]  # the order in which Nix builds
        assert all(before * 5 >= after * 4 for before, after in pairwise(heavy))
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
        for module in runtime.parts()
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
    names = sorted(runtime.parts())
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


@pytest.mark.parametrize(
    ("program", "words"),
    [
        ("import uuid; (out / 'noise').write_text(str(uuid.uuid4()))", "may not be deterministic"),
        ("import os; os._exit(77)", "exit code 77"),
    ],
)
def test_a_packer_that_is_no_good(
    nix_machines: Machines, built: Machine, tmp_path: Path, program: str, words: str
) -> None:
    """One that makes another thing each time is found by building again, one that ends in the middle leaves nothing behind."""
    packer = tmp_path / runtime.NAME
    runtime.write(packer)
    inner = packer / "site/builder/nix/inside.py"
    text = inner.read_text()
    changed = text.replace("    target = Store(out)\n", f"    target = Store(out)\n    out.mkdir()\n    {program}\n")
    assert changed != text
    inner.write_text(changed)
    path = built.nix("nix-store", "--add", str(packer)).strip()
    known = {"NIX_REMOTE": str(built.root / "nix"), "NIX_CONFIG": CONFIG}
    where = nix_machines.world.environment(built.root / "cache", **known)
    done = run(["verify", f"oci:{built.root / 'out'}", "--engine", "nix", "--nix-packer", path], built.root, where)
    assert done.code == 1
    assert words in done.err
    assert "3-wheels" in done.err
    assert built("assemble", "--engine", "nix", "--nix-floor", "0").digest == nix_machines.digest


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        ("", "there is no layer in it"),
        ('{"objects": []}', "cannot be read"),
        ('{"objects": 5}', "cannot be read"),
        ('{"objects": [{}]}', "cannot be read"),
        (json.dumps({"objects": [f"sha256:{0:064}"]}), "there is no layer in it"),
        (json.dumps({"objects": [str(Digest.of(b"a layer"))]}), "not complete"),
        ("[" * 100_000, "there is no layer in it"),
        ("\xff", "there is no layer in it"),
    ],
)
def test_outputs_that_lie(tmp_path: Path, lie: str, words: str) -> None:
    layer = _layer()
    theirs = Store(tmp_path / "theirs")
    theirs.put(b"a layer")
    place = theirs.root / "records/layer" / layer.key.hex
    place.parent.mkdir(parents=True)
    place.write_bytes(lie.encode("latin-1"))
    store = Store(tmp_path / "ours")
    with pytest.raises(NixError, match=words) as caught:
        take(theirs.root, [layer], 1 << 20, store)
    assert "nix-store --verify" in str(caught.value.hint)
    assert store.record("layer", layer.key.hex) is None


def test_objects_that_are_not_what_their_names_say(tmp_path: Path) -> None:
    layer = _layer()
    theirs, blob = Store(tmp_path / "theirs"), Digest.of(b"a layer")
    theirs.put(b"a layer")
    for kind, key in inside.records(layer, blob, 1 << 20):
        theirs.put_record(kind, key, {"objects": [str(blob)], "size": 7})
    theirs.path(blob).chmod(0o644)
    theirs.path(blob).write_bytes(b"another")
    with pytest.raises(HostileInputError, match="the bytes are those of"):
        take(theirs.root, [layer], 1 << 20, Store(tmp_path / "ours"))
    assert not Store(tmp_path / "ours").has(blob)


def _layer() -> plans.Layer:
    data = Path(__file__).parent / "data/real.lock.json"
    return plans.plan(locks.parse(data.read_text(), "real")).platforms[0].layers[0]
