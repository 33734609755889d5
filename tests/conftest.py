"""What tests share: registries, and the second Python that must make the same bytes as this one."""

from __future__ import annotations

import os
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faultregistry
import judges
import newnix
import nixmachines
import pytest
import world as worlds
from faultregistry import FaultRegistry
from world import Real, World

# Whoever runs the tests in the background may have had signals ignored, which programs inherit; some tests send them.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)
# Products of small matrices take longer on many threads than on one, much longer where others use the cores.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module", params=["docker-registry", "olareg"])
def registry(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The address of a registry: one without a referrers API, one with it. Modules with other needs have a fixture of their own."""
    with judges.registry(request.param, tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def way(registry: str) -> Iterator[FaultRegistry]:
    """A proxy before the registry that can be told to misbehave, and that counts."""
    with faultregistry.before(registry) as state:
        yield state


@pytest.fixture(scope="session")
def other_build(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The command `build` of this checkout, installed under another minor version of CPython than this one.

    A machine without one skips, or fails where judges are required; LAYERWRIGHT_OTHER_PYTHON names one.
    """
    python = next(_other_pythons(), None)
    if python is None:
        judges.missing("python-other", f"no CPython >= 3.11 but {platform.python_version()} on PATH or in pyenv")
    venv = tmp_path_factory.mktemp("other-python")
    for command in (
        [str(python), "-m", "venv", str(venv)],
        [str(venv / "bin/python"), "-m", "pip", "install", "-q", "--disable-pip-version-check", "-e", str(ROOT)],
    ):
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            judges.missing("python-other", f"{' '.join(command)} failed:\n{done.stderr[-2000:]}")
    return venv / "bin" / "build"


def _other_pythons() -> Iterator[Path]:
    """Interpreters of another minor version than ours, the named one first, then the newest."""
    named = os.environ.get("LAYERWRIGHT_OTHER_PYTHON")
    pyenv = Path(os.environ.get("PYENV_ROOT") or Path.home() / ".pyenv") / "versions"
    siblings = (pyenv, Path(sys.base_prefix).parent)
    candidates = [named] if named else []
    for minor in (13, 14, 12, 11):
        candidates += [str(path) for folder in siblings for path in sorted(folder.glob(f"3.{minor}.*/bin/python"))]
        candidates += filter(None, [shutil.which(f"python3.{minor}")])
    for candidate in candidates:
        asked = subprocess.run(
            [candidate, "-c", "import sys, venv, ensurepip; print(sys.implementation.name, *sys.version_info[:2])"],
            capture_output=True,
            text=True,
            check=False,
        )
        # A pyenv shim is there for versions that are not switched on; it fails when it is run.
        if asked.returncode == 0:
            name, major, minor_text = asked.stdout.split()
            version = (int(major), int(minor_text))
            if name == "cpython" and version >= (3, 11) and version != sys.version_info[:2]:
                yield Path(candidate)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """The small world of whole builds, one for the session."""
    with worlds.world(tmp_path_factory.mktemp("world")) as running:
        yield running


@pytest.fixture(scope="session")
def small(world: World) -> Path:
    """The profile of the small world, with its lock, whose inputs are in the store `world.root / "cache"`."""
    path = world.project(world.root / "small")
    done = worlds.run(["publish", path, "oci:out"], path.parent, world.environment(world.root / "cache"))
    assert done.code == 0, done.err
    return path


@pytest.fixture(scope="session")
def real(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """tests/data/real.yaml, built from its lock: Debian's own interpreter, numpy and its bytecode."""
    return Real.publish(ROOT / "tests/data/real.yaml", tmp_path_factory.mktemp("real"))


@pytest.fixture(scope="session")
def both(tmp_path_factory: pytest.TempPathFactory) -> Real:
    """tests/data/both.yaml, built from its lock for two architectures."""
    return Real.publish(ROOT / "tests/data/both.yaml", tmp_path_factory.mktemp("both"))


@pytest.fixture(scope="session")
def nix_machines(tmp_path_factory: pytest.TempPathFactory) -> Iterator[nixmachines.Machines]:
    """Machines with Nix, in a world of their own."""
    judges.require("nix")
    with nixmachines.machines(tmp_path_factory.mktemp("nix")) as made:
        yield made


@pytest.fixture(scope="session")
def newer_nix(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The programs of a Nix newer than the one that is installed: a folder to be put before PATH."""
    judges.require("nix")
    return newnix.install(tmp_path_factory.mktemp("newer") / "nix")
