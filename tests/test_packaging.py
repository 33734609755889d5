"""The wheel is complete: what `pip install .` brings works from any folder, away from this checkout."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout."""
    folder = tmp_path_factory.mktemp("wheel")
    _pip("wheel", "--no-deps", "--wheel-dir", str(folder), str(ROOT))
    return next(folder.glob("*.whl"))


def test_the_wheel_holds_the_sources_and_the_templates(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    expected = {
        f"{prefix}{path.relative_to(ROOT)}"
        for prefix, folder in (("", "builder"), ("builder/", "templates"))
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and path.suffix != ".pyc"
    }
    expected.add("builder/nix/engine.nix")  # it lies beside `builder/`
    assert {name for name in names if ".dist-info/" not in name} == expected
    assert "builder/py.typed" in expected
    assert any(name.endswith(".dist-info/licenses/LICENSE") for name in names)


def test_the_installed_commands_work_anywhere(wheel: Path, tmp_path: Path) -> None:
    """`init` needs the templates and `schema` the types. Dependencies are this environment's own."""
    installed, elsewhere = tmp_path / "installed", tmp_path / "else where"
    elsewhere.mkdir()
    _pip("install", "--no-deps", "--target", str(installed), str(wheel))
    env = {**os.environ, "PYTHONPATH": str(installed), "XDG_CACHE_HOME": str(tmp_path / "cache")}
    for command in ("build", "layerwright"):
        assert _run([installed / "bin" / command, "--version"], elsewhere, env).split()
        assert _run([installed / "bin" / command, "schema"], elsewhere, env).startswith("{")
    _run([installed / "bin" / "build", "init", "app"], elsewhere, env)
    assert list(elsewhere.rglob("*.yaml"))
    found = _run([sys.executable, "-c", "import builder; print(builder.__file__)"], elsewhere, env)
    assert Path(found.strip()).is_relative_to(installed)


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


def _run(command: list[str | Path], cwd: Path, env: dict[str, str]) -> str:
    done = subprocess.run(command, cwd=cwd, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout
