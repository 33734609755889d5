"""The client by itself: one file with which any Python from 3.11 on pulls models and reads them, and nothing is installed.

It is a zip file that Python runs and imports from: `FILE.pyz REF DIR` is `build model pull`; with the file on `sys.path`,
`builder.models` can be imported. Its bytes depend on this version of Layerwright and on those of its dependencies, which are
taken from where this process has them, and on nothing else.
"""

from __future__ import annotations

import ast
import importlib.util
import io
import re
import zipfile
from collections.abc import Container, Iterator, Mapping, Sequence
from importlib import metadata
from pathlib import Path

from builder.errors import BuilderError

ENTRY = "builder.cli.entry"
_ROOTS = (
    ENTRY,
    "builder.models",
    "builder.models.lazy",
    "builder.models.opening",
    "builder.models.ready",
    "builder.start",
)
_NEVER = frozenset({"builder.fetch"})
"""What a verb that the client does not have would import."""

_LIBRARIES: Mapping[str, re.Pattern[str]] = {
    "click": re.compile(r"(?!testing\.py|_winconsole\.py).*\.py"),
    "urllib3": re.compile(r"(?!contrib/|http2/(?!__init__|probe)).*\.py"),
    "oras": re.compile(r"(__init__|version|defaults)\.py"),
}
"""The pure libraries that the client needs, and which of their files."""

_MAIN = b"""import sys

if sys.version_info < (3, 11):
    sys.exit("error: build-model-pull needs Python 3.11 or newer, and this is %d.%d" % sys.version_info[:2])
from builder.cli.entry import pull

pull()
"""
_SHEBANG = b"#!/usr/bin/env python3\n"
_TIME = (1980, 1, 1, 0, 0, 0)


class ClientError(BuilderError):
    """The client cannot be made here."""

    hint = "install Layerwright with pip or uv, as its sources or a wheel of it"


def client() -> bytes:
    """The file. Raises `ClientError` where the sources of a part are not at hand."""
    files = {"__main__.py": _MAIN, **_ours(), **dict(_libraries())}
    out = io.BytesIO(_SHEBANG)
    out.seek(0, io.SEEK_END)
    with zipfile.ZipFile(out, "w", zipfile.ZIP_STORED) as archive:
        for name in sorted(files):
            info = zipfile.ZipInfo(name, _TIME)
            info.create_system = 3
            info.external_attr = 0o100644 << 16
            archive.writestr(info, files[name])
    return out.getvalue()


def modules(roots: Sequence[str] = _ROOTS, never: Container[str] = _NEVER) -> frozenset[str]:
    """The modules of ours that the client, or what else begins with `roots`, has: all that they import, wherever they do so, but
    for those that are `never` reached."""
    found: set[str] = set()
    waiting = list(roots)
    while waiting:
        name = waiting.pop()
        if name in found or name in never:
            continue
        found.add(name)
        waiting += _imports(_source(name), name)
        waiting.append(name.rpartition(".")[0] or name)
    return frozenset(found)


def _ours() -> dict[str, bytes]:
    files = {}
    for name in modules():
        path = _path(name)
        folder = name.replace(".", "/")
        files[f"{folder}/__init__.py" if path.name == "__init__.py" else f"{folder}.py"] = path.read_bytes()
    return files


def _imports(source: bytes, name: str) -> Iterator[str]:
    """The modules of ours that a source imports, but for types alone."""
    waiting: list[ast.AST] = [ast.parse(source, name)]
    while waiting:
        node = waiting.pop()
        match node:
            case ast.If(test=ast.Name(id="TYPE_CHECKING")):
                waiting += node.orelse
                continue
            case ast.Import():
                yield from (alias.name for alias in node.names if alias.name.partition(".")[0] == "builder")
            case ast.ImportFrom(module=str(module)) if module.partition(".")[0] == "builder":
                yield module
                for alias in node.names:
                    inner = f"{module}.{alias.name}"
                    if _exists(inner):
                        yield inner
        waiting += ast.iter_child_nodes(node)


def _exists(name: str) -> bool:
    parent, _, last = name.rpartition(".")
    folder = _path(parent)
    if folder.name != "__init__.py":
        return False
    return (folder.with_name(f"{last}.py")).is_file() or (folder.with_name(last) / "__init__.py").is_file()


def _source(name: str) -> bytes:
    return _path(name).read_bytes()


def _path(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    if spec is None or spec.origin is None or not Path(spec.origin).is_file():
        raise ClientError(f"{name}: its source is not at hand")
    return Path(spec.origin)


def _libraries() -> Iterator[tuple[str, bytes]]:
    """The files of libraries, and their licences."""
    for library, wanted in _LIBRARIES.items():
        folder = _path(library).parent
        for path in sorted(folder.rglob("*.py")):
            inner = path.relative_to(folder).as_posix()
            if wanted.fullmatch(inner):
                yield f"{library}/{inner}", path.read_bytes()
        for file in metadata.files(library) or ():
            if ".dist-info" in str(file.parent) and re.match(r"(LICEN[CS]E|NOTICE|COPYING)", file.name, re.IGNORECASE):
                yield f"licenses/{library}/{file.name}", Path(str(file.locate())).read_bytes()
