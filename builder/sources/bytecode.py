"""Bytecode by the image's own interpreter: sources go in over a pipe, unchecked hash-based `.pyc` files come out (PEP 552).

The interpreter runs on the building machine out of its unpacked packages, through its own dynamic loader. What it
writes depends on it and on the sources alone: always the same files in one process, a fixed hash seed, paths as in the image.
Nothing of a wheel is executed.
"""

from __future__ import annotations

import os
import struct
import tempfile
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future
from contextlib import AbstractContextManager, closing
from dataclasses import dataclass, field
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
Limit = Callable[[int], AbstractContextManager[object]]
"""Holds back an interpreter until there is room for the bytes of memory that it may need."""
_BASE_MEMORY, _MEMORY_PER_TOKEN = 10 << 20, 680
_PUNCTUATION = b",()[]{}:=.+-*/<>\n"
_NO_PUNCTUATION = bytes(set(range(256)) - set(_PUNCTUATION))
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

    def compile(self, sources: BinaryIO, out: BinaryIO) -> None:
        """Compiles what `frame` wrote to the file `sources`, which is read from where it stands. The file `out` gets the
        `.pyc` of each source, after its size in 4 bytes; a size of 0 where the source is no Python of this version."""
        run(self._command(), stdin=sources, stdout=out, env=self._environment(), timeout=_TIMEOUT, hint=_HINT)

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
            "PYTHONCOERCECLOCALE": "0",
            "LC_ALL": "C",
            "PATH": "/nonexistent",
        }


def frame(name: str, source: bytes) -> bytes:
    """One source as an interpreter takes it; `name` is the absolute path that it has in the image."""
    encoded = name.encode()
    return _FRAME.pack(len(encoded), len(source)) + encoded + source


_HINT = "set `python: {bytecode: false}` in the profile and lock again to build without bytecode"


@dataclass(frozen=True, slots=True)
class Compiled:
    """One `.pyc` in a pack of them: its path in the image, and where its bytes are."""

    path: str
    offset: int
    size: int


def compile_wheel(
    wheel: WheelFiles, interpreter: Interpreter, out: BinaryIO, executor: Executor, limit: Limit, scratch: Path
) -> tuple[Compiled, ...]:
    """Compiles the modules of a wheel and appends their bytecode to `out`; a `.pyc` that the wheel brings itself stays.

    Processes run side by side in `executor`, each of them inside of `limit`; what they write waits in the folder `scratch`
    and comes in the order of the sources.
    """
    present = {file.entry.path for file in wheel.files}
    compiled: list[Compiled] = []
    with closing(
        _in_order(_chunks(wheel, scratch), lambda chunk: _compile(interpreter, chunk, limit, scratch), executor)
    ) as finished:
        for chunk, results in finished:
            with results:
                for name in chunk.names:
                    data = _frame(results)
                    path = _cached(name, interpreter.version)
                    if data and path not in present:
                        compiled.append(Compiled(path, out.tell(), len(data)))
                        out.write(data)
                if results.read(1):
                    raise ToolError(
                        "the interpreter that compiles bytecode answered more than it was asked", hint=_HINT
                    )
    return tuple(compiled)


def entries(compiled: Sequence[Compiled], pack: Path) -> tuple[Entry, ...]:
    """The entries of bytecode that lies in the file `pack`."""
    return tuple(Entry(item.path, content=Region(pack, item.offset, item.size)) for item in compiled)


def _compile(interpreter: Interpreter, chunk: _Chunk, limit: Limit, scratch: Path) -> BinaryIO:
    out = _scratch_file(scratch)
    try:
        with chunk.frames, limit(chunk.memory):
            chunk.frames.seek(0)
            interpreter.compile(chunk.frames, out)
        out.seek(0)
        return out
    except BaseException:
        out.close()
        raise


def _scratch_file(folder: Path) -> BinaryIO:
    """A file without a name; whoever reads it closes it."""
    return tempfile.TemporaryFile(dir=folder)


def _frame(results: BinaryIO) -> bytes:
    head = results.read(4)
    size = int.from_bytes(head, "little")
    data = results.read(size)
    if len(head) != 4 or len(data) != size:
        raise ToolError("the interpreter that compiles bytecode ended too early, without saying why", hint=_HINT)
    return data


def _in_order(
    chunks: Iterable[_Chunk], work: Callable[[_Chunk], BinaryIO], executor: Executor
) -> Generator[tuple[_Chunk, BinaryIO], None, None]:
    """Every chunk and its results, with a few chunks in flight."""
    running: deque[tuple[_Chunk, Future[BinaryIO]]] = deque()
    try:
        for chunk in chunks:
            running.append((chunk, executor.submit(work, chunk)))
            if len(running) > _IN_FLIGHT:
                first, future = running.popleft()
                yield first, future.result()
        while running:
            first, future = running.popleft()
            yield first, future.result()
    finally:
        for chunk, future in running:
            if future.cancel():
                chunk.frames.close()
            elif future.exception() is None:
                future.result().close()


@dataclass
class _Chunk:
    """What one process compiles: the frames of its sources in a file, and their paths in the image."""

    frames: BinaryIO
    names: list[str] = field(default_factory=list)
    size: int = 0
    tokens: int = 0

    def add(self, name: str, source: bytes) -> None:
        self.frames.write(frame(f"/{name}", source))
        self.names.append(name)
        self.size += len(source)
        self.tokens = max(self.tokens, len(source.translate(None, _NO_PUNCTUATION)))

    @property
    def memory(self) -> int:
        """About what compiling takes, in bytes: the tree of the largest source, which grows with its punctuation (measured
        on torch, numpy and sympy: 500 to 630 bytes for each)."""
        return _BASE_MEMORY + _MEMORY_PER_TOKEN * self.tokens


def _chunks(wheel: WheelFiles, scratch: Path) -> Iterator[_Chunk]:
    """The sources in sorted order, cut by the format's rule."""
    contents = {file.entry.path: file.entry for file in wheel.files}
    chunk: _Chunk | None = None
    try:
        for path in wheel.sources:
            entry = contents[path]
            if entry.size > MAX_SOURCE:
                continue
            if chunk and (len(chunk.names) == CHUNK_FILES or chunk.size + entry.size > CHUNK_BYTES):
                full, chunk = chunk, None
                yield full
            if chunk is None:
                chunk = _Chunk(_scratch_file(scratch))
            chunk.add(path, read(entry.content, MAX_SOURCE))
        if chunk:
            full, chunk = chunk, None
            yield full
    finally:
        if chunk:
            chunk.frames.close()


def _cached(path: str, version: str) -> str:
    """Where the bytecode of a module is looked for (PEP 3147)."""
    folder, _, name = path.rpartition("/")
    return f"{folder}/__pycache__/{name.removesuffix('.py')}.cpython-{version.replace('.', '')}.pyc"
