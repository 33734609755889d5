"""One layer into the store: what goes wrong with the profile's own files, and how much interpreters may take."""

from __future__ import annotations

import threading
from hashlib import sha256
from pathlib import Path

import pytest

from builder.errors import StaleLockError
from builder.lock import LockedLocal, SociSettings
from builder.oci.digest import Digest
from builder.packing import COMPILERS_MEMORY, UNITS, Folder, MemoryLimit, Packer
from builder.plan import FilesLayer
from builder.store import Store


def packer_and_layer(tmp_path: Path) -> tuple[Packer, FilesLayer]:
    (tmp_path / "app.py").write_bytes(b"print()\n")
    local = LockedLocal("/app/app.py", "app.py", "0644", sha256(b"print()\n").hexdigest(), 8)
    packer = Packer(tmp_path / "store", Folder(tmp_path), SociSettings())
    return packer, FilesLayer("files", Digest.of(b"key"), (local,), ())


def test_a_layer_is_packed_once(tmp_path: Path) -> None:
    packer, layer = packer_and_layer(tmp_path)
    first = packer(layer, lambda amount: None)
    assert first.packed
    (tmp_path / "app.py").unlink()
    second = packer(layer, lambda amount: None)
    assert not second.packed
    assert second.blob == first.blob


@pytest.mark.parametrize(("change", "message"), [("gone", "app.py is gone"), ("other", "as was recorded")])
def test_a_file_that_is_not_what_was_locked_makes_the_lock_stale(tmp_path: Path, change: str, message: str) -> None:
    packer, layer = packer_and_layer(tmp_path)
    if change == "gone":
        (tmp_path / "app.py").unlink()
    else:
        (tmp_path / "app.py").write_bytes(b"input()\n")
    with pytest.raises(StaleLockError, match=message):
        packer(layer, lambda amount: None)
    assert Store(tmp_path / "store").record("layer", layer.key.hex) is None
    assert not list((tmp_path / "store" / "tmp").iterdir())


def test_progress_counts_bytes_of_input(tmp_path: Path) -> None:
    packer, layer = packer_and_layer(tmp_path)
    told: list[int] = []
    packer(layer, told.append)
    assert 0 < sum(told) <= 8


def test_interpreters_share_their_memory_and_a_large_one_runs_alone() -> None:
    units = threading.BoundedSemaphore(UNITS)
    limit = MemoryLimit(units, threading.BoundedSemaphore(1))
    with limit(COMPILERS_MEMORY // 2), limit(COMPILERS_MEMORY // 2):
        assert not units.acquire(blocking=False)
    with limit(100 * COMPILERS_MEMORY):
        assert not units.acquire(blocking=False)
    for _ in range(UNITS):
        assert units.acquire(blocking=False)
