"""The packer with its interpreter, as one folder that runs wherever the kernel and the architecture fit: what derivations start.

    bin/python  lib/ld.so  lib/*.so…  lib/python3.N/…  site/builder/…  site/LIBRARIES

It is copied from where this process has it: the modules of ours that packing needs, the libraries they import, the standard
library, and the shared libraries that all of them are linked with. No configuration and no time is in it, so the
same installation gives the same folder.
"""

from __future__ import annotations

import json
import re
import shutil
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from importlib.util import find_spec
from pathlib import Path

from builder.errors import ToolError
from builder.models.client import modules
from builder.oci.digest import Digest
from builder.process import run

ENTRY = "builder.nix.inside"
NAME = "layerwright-packer"
_LIBRARIES = ("backports", "debian", "deflate", "packaging", "yaml", "zlib_ng", "zstandard")
"""What the modules import; a test reads their sources."""
_LEFT_OUT = re.compile(
    r"(__pycache__|config-.*|dist-packages|ensurepip|idlelib|lib2to3|pydoc_data|site-packages|test|tests|tkinter|turtledemo)$"
    r"|.*\.(a|pyc)$|(_test|_xxtest|_tkinter|_curses|_dbm|_gdbm|_sqlite3|_ctypes_test|readline|nis|ossaudiodev|xx).*\.so$"
)
_FOUND = re.compile(r"^\s*(?:(\S+) => )?(/\S+) \(0x[0-9a-f]+\)$", re.MULTILINE)
_LOADER = re.compile(r"ld-linux.*\.so\.\d+|ld64\.so\.\d+")


class RuntimeMissingError(ToolError):
    """The packer cannot be copied from here."""

    hint = "build without --engine nix, or use a Python that is linked with the GNU C library"


def write(folder: Path) -> None:
    """Makes the folder."""
    site, library = folder / "site", folder / "lib"
    standard = library / _version()
    for place in (site, library, folder / "bin"):
        place.mkdir(parents=True)
    python = folder / "bin/python"
    _copy(Path(sys.executable).resolve(), python, executable=True)
    for name in sorted(parts()):
        origin = _path(name)
        inner = Path(*name.split("."))
        _copy(origin, site / (inner / "__init__.py" if origin.name == "__init__.py" else inner.with_suffix(".py")))
    for name in _libraries():
        _tree(_folder(name), site / name)
    _tree(Path(sysconfig.get_path("stdlib")), standard)
    binaries = [python, *sorted(folder.rglob("*.so"))]
    found = dict(_linked(binaries))
    loaders = [name for name in found if _LOADER.fullmatch(name)]
    if not loaders:
        raise RuntimeMissingError(f"{sys.executable}: it is not known which dynamic loader it has")
    _copy(found.pop(loaders[0]), library / "ld.so", executable=True)
    for name, path in sorted(found.items()):
        _copy(path, library / name, executable=True)


def fingerprint() -> str:
    """Another one whenever `write` would make another folder; no content is read but that of our own modules."""
    ours = {name: Digest.of(_path(name).read_bytes()).hex for name in sorted(parts())}
    folders = [_folder(name) for name in _libraries()]
    stats = [_stat(Path(sys.executable).resolve()), *(_stat(path) for folder in folders for path in _files(folder))]
    return Digest.of(json.dumps([sys.version, ours, stats], sort_keys=True).encode()).hex


def parts() -> frozenset[str]:
    """The modules of ours that packing needs."""
    return modules((ENTRY,), ())


def _libraries() -> Iterator[str]:
    """Newer versions of Python bring what `backports` has, and few need `zstandard` beside it."""
    return (name for name in _LIBRARIES if name not in ("backports", "zstandard") or find_spec(name))


def _stat(path: Path) -> tuple[str, int, int]:
    found = path.stat()
    return str(path), found.st_size, found.st_mtime_ns


def _version() -> str:
    return f"python{sys.version_info.major}.{sys.version_info.minor}"


def _linked(binaries: Iterable[Path]) -> Iterator[tuple[str, Path]]:
    """The shared libraries of some binaries, by the names that they are asked for."""
    # What is put before all programs of this machine is no part of it.
    plain = ["env", "-u", "LD_PRELOAD", "-u", "LD_AUDIT"]
    text = run([*plain, "ldd", *map(str, binaries)], accept=(0, 1), hint="install libc-bin").decode(errors="replace")
    for name, path in _FOUND.findall(text):
        yield name if name and "/" not in name else Path(path).name, Path(path)


def _tree(source: Path, target: Path) -> None:
    for path in _files(source):
        _copy(path, target / path.relative_to(source))


def _files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if _LEFT_OUT.fullmatch(path.name):
            continue
        if path.is_dir():
            yield from _files(path)
        elif path.is_file():
            yield path


def _copy(source: Path, target: Path, *, executable: bool = False) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(source, target)
    target.chmod(0o755 if executable else 0o644)


def _path(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise RuntimeMissingError(f"{name}: its source is not at hand")
    return Path(spec.origin)


def _folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise RuntimeMissingError(f"{name}: the library is not at hand")
    return Path(next(iter(spec.submodule_search_locations)))
