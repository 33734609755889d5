"""What no build can beat here: hashing the inputs, inflating them with the fastest engine, hashing the tar.

All three use every core and keep nothing.
"""

from __future__ import annotations

import hashlib
import os
import time
import zipfile
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from bench.engines import Engine, members
from bench.watch import Cost

T = TypeVar("T")
_BLOCK = 4 << 20


@dataclass(frozen=True)
class Floor:
    """The three costs, and how many bytes each is about."""

    hash_inputs: Cost
    input_bytes: int
    inflate: Cost
    inflated_bytes: int
    hash_tar: Cost
    tar_bytes: int


def measure(files: Sequence[Path], engine: Engine) -> Floor:
    """The floor of these inputs; those that are zips (the wheels) are inflated."""
    wheels = [path for path in files if zipfile.is_zipfile(path)]
    found = [member for wheel in wheels for member in members(wheel)]
    inflated = sum(member.size for member in found)
    # A header and padding to 512 bytes for each member.
    tar = sum(512 + -(-member.size // 512) * 512 for member in found)
    cores = len(os.sched_getaffinity(0))
    shares = [tar // cores] * cores

    # The largest first, so that no core is left alone with one at the end.
    hash_inputs = _on_all_cores(_hash_file, sorted(files, key=lambda path: -path.stat().st_size))
    inflate = _on_all_cores(engine.inflate, sorted(found, key=lambda member: -member.compressed_size))
    hash_tar = _on_all_cores(_hash_zeros, shares)
    input_bytes = sum(path.stat().st_size for path in files)
    return Floor(hash_inputs, input_bytes, inflate, inflated, hash_tar, tar)


def _on_all_cores(function: Callable[[T], object], items: Iterable[T]) -> Cost:
    """The cost of a function over many items; it is one that lets other threads run."""
    cpu, wall = time.process_time(), time.perf_counter()
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        for _ in pool.map(function, items):
            pass
    return Cost(time.perf_counter() - wall, time.process_time() - cpu)


def _hash_file(path: Path) -> None:
    sha256 = hashlib.sha256()
    buffer = bytearray(_BLOCK)
    view = memoryview(buffer)
    with path.open("rb", buffering=0) as file:
        while size := file.readinto(buffer):
            sha256.update(view[:size])


def _hash_zeros(size: int) -> None:
    sha256 = hashlib.sha256()
    zeros = bytes(_BLOCK)
    while size > 0:
        sha256.update(zeros if size >= _BLOCK else zeros[:size])
        size -= _BLOCK
