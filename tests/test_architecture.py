"""The house holds: imports point down, effects live in their homes, pure modules are pure, the map is true.

Everything is read from the source text, nothing is imported, so a slip shows even in code that no test runs.
"""

from __future__ import annotations

import ast
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "builder"

FLOORS = (
    ("errors", "forks", "interrupts", "start"),
    ("children", "oci"),
    ("layers",),
    ("soci",),
    (
        *("baseimage", "cuda", "documents", "gpu", "image", "parallel", "process", "progress", "render", "settings"),
        *("store", "workers"),
    ),
    ("client",),
    ("transfer",),
    ("profile",),
    ("lock", "reference"),
    ("fetch", "plan", "registry"),
    ("base", "places", "sources"),
    ("binaries", "coldstart", "models"),
    ("adaptive", "findings", "packing", "prefetch", "readahead", "sbom"),
    ("asked", "attach", "layercache", "own", "signing"),
    ("papers",),
    ("assemble", "copying", "differ", "examine", "publish", "resolve", "staleness", "verify"),
    ("nix",),
    ("cli",),
)
"""The modules and packages directly below `builder`, lowest first. A module imports from lower floors and, in a
package, from its neighbours; the rooms of one floor never import one another."""

PURE = (
    "baseimage",
    "documents",
    "findings",
    "gpu",
    "lock",
    "models.cuts",
    "models.values",
    "plan",
    "profile",
    "layers.tar",
    "oci.artifact",
    "oci.digest",
    "oci.spec",
    "sbom.cyclonedx",
    "sbom.inventory",
    "sbom.provenance",
    "sbom.spdx",
    "soci",
)
IMPURE_IMPORTS = {"os", "random", "socket", "subprocess", "time"}

NETWORK = ("client", "fetch", "transfer")
HOMES = {
    "subprocess": ("process",),
    "http.client": NETWORK,
    "requests": NETWORK,
    "socket": NETWORK,
    "urllib.request": NETWORK,
    "urllib3": (*NETWORK, "registry"),
    "builtins.input": ("cli",),
    "builtins.print": ("cli",),
    "datetime.date.today": ("cli",),
    "datetime.datetime.now": ("cli",),
    "datetime.datetime.today": ("cli",),
    "datetime.datetime.utcnow": ("cli",),
    "os.environ": ("cli", "models.ambient", "start"),
    "os.environb": ("cli",),
    "os.getenv": ("cli",),
    "sys.argv": ("cli",),
    "sys.exit": ("cli", "children"),
    "sys.stderr": ("cli",),
    "sys.stdin": ("cli",),
    "sys.stdout": ("cli",),
    "time.time": ("cli",),
    "time.time_ns": ("cli", "start"),
    "os.fork": (),
    "os.popen": (),
    "os.posix_spawn": (),
    "os.system": (),
}
"""Each effect by its qualified name, and the modules that may use it. A worker ends a process of its own."""

MAX_LINES = 400

# Spelled in parts, so that this file does not name what it looks for.
_REGISTRIES = (
    "pypi",
    "pythonhosted",
    "debian",
    "ubuntu",
    "golang",
    "npmjs",
    "maven",
    "crates",
    "docker",
    "quay",
    "ghcr",
)
HOSTS = re.compile(rf"\b({'|'.join(_REGISTRIES)})\.(org|io|com|net)\b", re.IGNORECASE)
MODULE_PATHS = {"go.mod", "go.sum"}
"""Go names its modules by host: there it is a name and no address."""
GO_IMPORT = re.compile(r'^\t(?:\w+ )?"[\w./-]+"$', re.MULTILINE)


@dataclass(frozen=True)
class Module:
    """One source file; `name` is relative to `builder`, such as `oci.digest`, and `oci` for its `__init__.py`."""

    name: str
    path: Path

    @property
    def room(self) -> str:
        return self.name.partition(".")[0]

    @property
    def tree(self) -> ast.Module:
        return _parse(self.path)


@cache
def _parse(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"), str(path))


def _modules() -> dict[str, Module]:
    found = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE).with_suffix("").parts
        if "templates" in parts:
            continue
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        if name:  # builder/__init__.py is the roof over all floors and holds the version only
            found[name] = Module(name, path)
    return found


MODULES = _modules()
RANKS = {room: rank for rank, rooms in enumerate(FLOORS) for room in rooms}
every_module = pytest.mark.parametrize("module", MODULES.values(), ids=MODULES.keys())


def test_every_room_has_its_floor() -> None:
    """A new module gets its place in FLOORS and in the README's map."""
    assert set(RANKS) == {module.room for module in MODULES.values()}


@every_module
def test_imports_point_down(module: Module) -> None:
    wrong = {room for room in _inner_rooms(module) - {module.room} if RANKS.get(room, 0) >= RANKS.get(module.room, 0)}
    assert not wrong, f"builder.{module.name} imports what is beside or above it"


@every_module
def test_effects_stay_at_home(module: Module) -> None:
    wrong = {
        f"{used} in line {line}"
        for used, line in _uses(module)
        for effect, homes in HOMES.items()
        if f"{used}.".startswith(f"{effect}.") and not _within(module, homes)
    }
    assert not wrong, f"builder.{module.name} has effects that live elsewhere"


@pytest.mark.parametrize("pure", PURE)
def test_pure_modules_are_pure(pure: str) -> None:
    modules = [module for module in MODULES.values() if _within(module, (pure,))]
    assert modules, f"there is no builder.{pure}"
    for module in modules:
        impure = {name.qualified for name in _imports(module)} & IMPURE_IMPORTS
        assert not impure, f"builder.{module.name} is to be pure"


@every_module
def test_modules_are_small(module: Module) -> None:
    assert len(module.path.read_text(encoding="utf-8").splitlines()) <= MAX_LINES


@every_module
def test_public_things_have_docstrings(module: Module) -> None:
    things = [
        node
        for node in module.tree.body
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef) and not node.name.startswith("_")
    ]
    assert ast.get_docstring(module.tree), f"builder.{module.name} does not say what its one job is"
    assert [node.name for node in things if not ast.get_docstring(node)] == []


@pytest.mark.parametrize(
    "slip",
    [
        "def f():\n    import subprocess",
        "import os as harmless\nharmless.environ['HOME']",
        "from os import environ",
        "from time import time as now",
        "import datetime as d\nd.datetime.now()",
        "from datetime import datetime\ndatetime.now()",
        "def f():\n    print(1)",
        "import urllib.request as u",
        "from http import client",
        "import sys\nsys.stdout.write('')",
    ],
)
def test_a_slip_is_seen(slip: str, tmp_path: Path) -> None:
    source = tmp_path / "slip.py"
    source.write_text(slip)
    with pytest.raises(AssertionError, match="effects that live elsewhere"):
        test_effects_stay_at_home(Module("slip", source))


def test_readme_map_names_every_room() -> None:
    """The map is a fenced block `map`; what it says of `builder/` stands below that line, a room or several a line."""
    block = re.search(
        r"^```map\n(.*?)^```$", (ROOT / "README.md").read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE
    )
    assert block, "README.md has no fenced block `map`"
    lines = block[1].partition("builder/\n")[2].splitlines()
    named = {
        word.removesuffix(".py").rstrip("/") for line in lines for word in re.findall(r"\b[a-z_]+(?:\.py|/)", line)
    }
    rooms = {module.room for module in MODULES.values()}
    assert rooms <= named, "rooms that the map does not show"
    assert not (set(RANKS) - rooms) & named, "rooms of the map that do not exist"


def test_no_registry_is_named() -> None:
    """Addresses come from the user's configuration: a host name in a file would bypass mirrors, silently."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listed.returncode:
        pytest.skip("not a git checkout")
    found = []
    for name in filter(None, listed.stdout.decode().split("\0")):
        path = ROOT / name
        if path.name in MODULE_PATHS or path.is_symlink() or not path.is_file():
            continue
        text = path.read_bytes().decode("utf-8", errors="ignore")
        if path.suffix == ".go":
            text = GO_IMPORT.sub("", text)
        found += [f"{name}: {match[0]}" for match in HOSTS.finditer(text)]
    assert found == []


def _within(module: Module, names: tuple[str, ...]) -> bool:
    return any(module.name == name or module.name.startswith(f"{name}.") for name in names)


@dataclass(frozen=True)
class Name:
    """An imported name: what it is bound to, `qualified`, and under which name, `local`; `line` tells where."""

    qualified: str
    local: str
    line: int


def _imports(module: Module) -> Iterator[Name]:
    """What a module imports, inside functions too; `import a.b` yields `a.b` as well as the `a` that it binds."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                top = alias.name.partition(".")[0]
                yield Name(alias.name, alias.asname or "", node.lineno)
                yield Name(top, "" if alias.asname else top, node.lineno)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"builder.{module.name}: imports here are absolute"
            yield Name(node.module or "", "", node.lineno)
            yield Name((node.module or "").partition(".")[0], "", node.lineno)
            for alias in node.names:
                yield Name(f"{node.module}.{alias.name}", alias.asname or alias.name, node.lineno)


def _inner_rooms(module: Module) -> set[str]:
    """The rooms of builder that a module imports from."""
    inner = (name.qualified.split(".") for name in _imports(module))
    return {parts[1] for parts in inner if parts[0] == "builder" and len(parts) > 1 and not parts[1].startswith("__")}


def _uses(module: Module) -> Iterator[tuple[str, int]]:
    """The qualified names of what is imported, of what is reached through an import, and of builtins called."""
    bound = {}
    for name in _imports(module):
        if "." in name.qualified or name.qualified in HOMES:
            yield name.qualified, name.line
        if name.local:
            bound[name.local] = name.qualified
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute) and (dotted := _dotted(node)):
            first, _, rest = dotted.partition(".")
            if first in bound:
                yield f"{bound[first]}.{rest}", node.lineno
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in ("print", "input"):
            yield f"builtins.{node.func.id}", node.lineno


def _dotted(node: ast.expr) -> str | None:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute) and (base := _dotted(node.value)):
        return f"{base}.{node.attr}"
    return None
