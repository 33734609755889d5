"""What the binaries of large closures say, recorded: `python tests/closures.py LOCK...` writes tests/data/closures/NAME.json.xz.

The inputs of the locks have to be in the store; what findings do not read of an input is left out: all files but libraries
and one module of each folder, the code of GPUs, and names of libraries that are no libraries of CUDA.
"""

from __future__ import annotations

import json
import lzma
import os
import posixpath
import re
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from builder import lock as locks
from builder.binaries.facts import InputFacts, dump, load
from builder.binaries.gather import gather
from builder.findings.root import Input
from builder.lock import LockedDeb, LockedWheel
from builder.progress import Silent
from builder.store import Store

DATA = Path(__file__).parent / "data/closures"
_TOLD = re.compile(r"lib(cu|nv|nccl)[^/]*\.so\.\d[\d.]*")


def read(name: str) -> tuple[list[Input], str]:
    """The inputs of a recorded closure, bottom first, and its version of Python."""
    document = json.loads(lzma.decompress((DATA / f"{name}.json.xz").read_bytes()))
    inputs = [Input(row["name"], row["kind"], load(row["facts"])) for row in document["inputs"]]
    return inputs, document["python"]


def record(path: Path, store: Store) -> None:
    """Records the inputs of the first platform of a lock."""
    lock = locks.parse(path.read_text(), str(path))
    locked = lock.platforms[0]
    assert locked.debian
    assert locked.python
    items: tuple[LockedDeb | LockedWheel, ...] = (*locked.debian.packages, *locked.wheels)
    facts = gather(items, store, lambda files: None, Silent())
    rows: list[dict[str, Any]] = [
        {
            "name": f"{item.name} {item.version}",
            "kind": "deb" if item in locked.debian.packages else "wheel",
            "facts": dump(_reduced(facts[item.file.sha256])),
        }
        for item in items
    ]
    document = json.dumps({"python": locked.python.version, "inputs": rows}, separators=(",", ":"), sort_keys=True)
    DATA.mkdir(parents=True, exist_ok=True)
    (DATA / f"{lock.name}.json.xz").write_bytes(lzma.compress(document.encode(), preset=9 | lzma.PRESET_EXTREME))


def _reduced(facts: InputFacts) -> InputFacts:
    binaries = [
        replace(binary, opens=tuple(name for name in binary.opens if _TOLD.fullmatch(name)), code=())
        for binary in facts.binaries
        if binary.machine != "cuda"
    ]
    return InputFacts(tuple(binaries), facts.links, tuple(_files(facts)))


def _files(facts: InputFacts) -> Iterator[tuple[str, int, str]]:
    kept = {binary.path for binary in facts.binaries if binary.machine != "cuda"}
    folders = {posixpath.dirname(path) for path in kept}
    for path, size, checksum in facts.files:
        folder = posixpath.dirname(path)
        is_first_module = path.endswith(".py") and folder in folders
        if path in kept or is_first_module:
            folders -= {folder} if is_first_module else set()
            yield path, size, checksum[:8]


if __name__ == "__main__":
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for argument in sys.argv[1:]:
        record(Path(argument), Store(cache / "layerwright"))
