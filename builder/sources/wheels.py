"""Wheels of the store become the entries of a layer, with bytecode that is compiled once for each wheel."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.layers.merge import Origin, merge
from builder.layers.tar import Entry
from builder.lock import FORMAT, LockedWheel
from builder.oci import spec
from builder.oci.digest import Digest
from builder.plan import LinksLayer, WheelLayer
from builder.sources import bytecode, shadowed, slim, wheel
from builder.sources.bytecode import Compiled, Interpreter, Limit
from builder.store import Store

_AT_ONCE = 4
"""Wheels of one layer that wait for their bytecode at the same time."""


@dataclass(frozen=True)
class Compiler:
    """What bytecode needs: the interpreter, the digest of all that decides what it writes, threads to run it in, and a
    limit to how many run at once."""

    interpreter: Interpreter
    identity: Digest
    executor: Executor
    limit: Limit


def entries(layer: WheelLayer, store: Store, compiler: Compiler | None) -> tuple[Entry, ...]:
    """All entries of a layer of wheels; the wheels are in the store."""
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        found = list(pool.map(lambda locked: _installed(locked, layer.python, store, compiler), layer.wheels))
    files = shadowed.settled([(locked.name, each) for locked, (each, _) in zip(layer.wheels, found, strict=True)])
    return merge(
        Origin(each.archive, wheel.with_record(each, compiled))
        for each, (_, compiled) in zip(files, found, strict=True)
    )


def links(layer: LinksLayer, store: Store) -> tuple[Entry, ...]:
    """The entries of `/usr/local/cuda`; the wheels are in the store, and only their directories are read."""
    from builder.cuda import links as cuda

    site = wheel.site_packages(layer.python)
    paths = {
        locked.name: [file.entry.path.removeprefix(f"{site}/") for file in _files(locked, layer.python, store).files]
        for locked in layer.wheels
    }
    return merge([Origin(layer.name, cuda.entries(layer.minor, site, paths))])


def _files(locked: LockedWheel, python: str, store: Store) -> wheel.WheelFiles:
    """What a wheel installs, without what the lock leaves out."""
    path = store.path(locked.file.digest)
    files = wheel.install(path, locked.file.path, locked.name, locked.version, python)
    return slim.slimmed(files, locked.drop) if locked.drop else files


def _installed(
    locked: LockedWheel, python: str, store: Store, compiler: Compiler | None
) -> tuple[wheel.WheelFiles, Sequence[Entry]]:
    path = store.path(locked.file.digest)
    files = wheel.install(path, locked.file.path, locked.name, locked.version, python)
    compiled = _bytecode(locked, files, store, compiler) if compiler is not None and files.sources else ()
    if locked.drop:
        files = slim.slimmed(files, locked.drop)
        left = set(files.sources)
        compiled = [entry for entry in compiled if slim.bytecode_of(entry.path) in left]
    return files, compiled


def _bytecode(locked: LockedWheel, files: wheel.WheelFiles, store: Store, compiler: Compiler) -> Sequence[Entry]:
    """The wheel's bytecode, out of a pack in the store that is made if it is not there."""
    identity = {"format": FORMAT, "wheel": locked.file.sha256, "compiler": str(compiler.identity)}
    key = Digest.of(spec.encode(identity)).hex
    with store.locked(f"bytecode-{key}"):
        record = store.record("bytecode", key)
        if record is None or not store.verify(Digest.parse(record["objects"][0])):
            record = _compile(files, store, compiler)
            store.put_record("bytecode", key, record)
    pack = store.path(Digest.parse(record["objects"][0]))
    return bytecode.entries([Compiled(*row) for row in record["files"]], pack)


def _compile(files: wheel.WheelFiles, store: Store, compiler: Compiler) -> dict[str, Any]:
    with store.temporary() as path, store.workspace() as scratch:
        with path.open("wb") as out:
            compiled = bytecode.compile_wheel(
                files, compiler.interpreter, out, compiler.executor, compiler.limit, scratch
            )
        digest = _digest(path)
        store.adopt(path, digest)
    return {"objects": [str(digest)], "files": [[item.path, item.offset, item.size] for item in compiled]}


def _digest(path: Path) -> Digest:
    with path.open("rb") as file:
        return Digest(hashlib.file_digest(file, "sha256").hexdigest())
