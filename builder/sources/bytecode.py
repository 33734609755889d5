"""Bytecode by the image's own interpreter: sources go in over a pipe, unchecked hash-based `.pyc` files come out (PEP 552).

The interpreter runs on the building machine out of its unpacked packages, through its own dynamic loader. What it
writes depends on it and on the sources alone: always the same files in one process, a fixed hash seed, paths as in the image.
Nothing of a wheel is executed.
"""

from __future__ import annotations

import os
import struct
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, Future
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

from builder.errors import ToolError
from builder.layers.content import read
from builder.layers.tar import Entry, Region
from builder.process import run
from builder.sources.wheel import WheelFiles

CHUNK_FILES = 256
CHUNK_BYTES = 2 << 20
"""How many files, and bytes of source, one process compiles: a rule of the format."""
MAX_SOURCE = 16 << 20
"""Larger files are data in Python's clothes and stay uncompiled: a rule of the format."""
_IN_FLIGHT = 4
_TIMEOUT = 900.0
_LOADERS = ("usr/lib64/ld-linux-x86-64.so.2", "usr/lib/ld-linux-aarch64.so.1")
_FRAME = struct.Struct("<LL")
_PROGRAM = """
import sys, marshal, warnings
from importlib.util import MAGIC_NUMBER, source_hash
warnings.simplefilter("ignore")
read, write = sys.stdin.buffer.read, sys.stdout.buffer.write
while head := read(8):
    name = read(int.from_bytes(head[:4], "little")).decode()
    source = read(int.from_bytes(head[4:], "little"))
    try:
        code = compile(source, name, "exec", dont_inherit=True, optimize=0)
        data = MAGIC_NUMBER + b"\\1\\0\\0\\0" + source_hash(source) + marshal.dumps(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError, OverflowError):
        data = b""
    write(len(data).to_bytes(4, "little") + data)
"""


@dataclass(frozen=True)
class Interpreter:
    """An unpacked CPython `3.N` that runs on this machine: `root` holds its packages, `executable` is relative to it."""

    root: Path
    executable: str
    version: str

    def compile(self, sources: Sequence[tuple[str, bytes]]) -> list[bytes]:
        """The `.pyc` of each (absolute path in the image, source); empty where it is no Python of this version."""
        frames = [_FRAME.pack(len(name.encode()), len(source)) + name.encode() + source for name, source in sources]
        out = run(self._command(), input=b"".join(frames), env=self._environment(), timeout=_TIMEOUT, hint=_HINT)
        results, at = [], 0
        for _ in sources:
            size = int.from_bytes(out[at : at + 4], "little")
            results.append(out[at + 4 : at + 4 + size])
            at += 4 + size
        if at != len(out):
            raise ToolError(f"{self.executable}: the interpreter answered {len(out)} bytes, not {at}", hint=_HINT)
        return results

    def _command(self) -> list[str]:
        loader = next((self.root / path for path in _LOADERS if os.path.lexists(self.root / path)), None)
        if loader is None:
            raise ToolError(f"{self.executable}: no dynamic loader among its packages", hint=_HINT)
        libraries = sorted(str(path) for path in (self.root / "usr/lib").glob("*-linux-gnu"))
        program = str(self.root / self.executable.lstrip("/"))
        return [str(loader), "--library-path", ":".join(libraries), program, "-S", "-s", "-P", "-B", "-c", _PROGRAM]

    def _environment(self) -> dict[str, str]:
        return {
            "PYTHONHOME": str(self.root / "usr"),
            "PYTHONHASHSEED": "0",
            "LC_ALL": "C.UTF-8",
            "PATH": "/nonexistent",
        }


_HINT = "set `python: {bytecode: false}` in the profile and lock again to build without bytecode"


@dataclass(frozen=True, slots=True)
class Compiled:
    """One `.pyc` in a pack of them: its path in the image, and where its bytes are."""

    path: str
    offset: int
    size: int


def compile_wheel(
    wheel: WheelFiles, interpreter: Interpreter, out: BinaryIO, executor: Executor
) -> tuple[Compiled, ...]:
    """Compiles the modules of a wheel and appends their bytecode to `out`; a `.pyc` that the wheel brings itself stays.

    Processes run side by side in `executor`; what they write comes in the order of the sources.
    """
    present = {file.entry.path for file in wheel.files}
    compiled: list[Compiled] = []
    for name, data in _in_order(_chunks(wheel), interpreter, executor):
        path = _cached(name.lstrip("/"), interpreter.version)
        if data and path not in present:
            compiled.append(Compiled(path, out.tell(), len(data)))
            out.write(data)
    return tuple(compiled)


def entries(compiled: Sequence[Compiled], pack: Path) -> tuple[Entry, ...]:
    """The entries of bytecode that lies in the file `pack`."""
    return tuple(Entry(item.path, content=Region(pack, item.offset, item.size)) for item in compiled)


def _in_order(
    chunks: Iterator[list[tuple[str, bytes]]], interpreter: Interpreter, executor: Executor
) -> Iterator[tuple[str, bytes]]:
    """(path, bytecode) of every source, with a few chunks in flight, so that memory stays bounded."""
    running: deque[tuple[list[str], Future[list[bytes]]]] = deque()
    try:
        for chunk in chunks:
            running.append(([name for name, _ in chunk], executor.submit(interpreter.compile, chunk)))
            if len(running) > _IN_FLIGHT:
                names, future = running.popleft()
                yield from zip(names, future.result(), strict=True)
        while running:
            names, future = running.popleft()
            yield from zip(names, future.result(), strict=True)
    finally:
        for _, future in running:
            future.cancel()


def _chunks(wheel: WheelFiles) -> Iterator[list[tuple[str, bytes]]]:
    """The sources in sorted order, cut by the format's rule."""
    contents = {file.entry.path: file.entry for file in wheel.files}
    chunk: list[tuple[str, bytes]] = []
    total = 0
    for path in wheel.sources:
        entry = contents[path]
        if entry.size > MAX_SOURCE:
            continue
        if chunk and (len(chunk) == CHUNK_FILES or total + entry.size > CHUNK_BYTES):
            yield chunk
            chunk, total = [], 0
        chunk.append((f"/{path}", read(entry.content, MAX_SOURCE)))
        total += entry.size
    if chunk:
        yield chunk


def _cached(path: str, version: str) -> str:
    """Where the bytecode of a module is looked for (PEP 3147)."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/__pycache__/{name.removesuffix('.py')}.cpython-{version.replace('.', '')}.pyc"
