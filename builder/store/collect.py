"""What lies in a store, and the removal of what is no longer worth its room."""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from builder.oci.digest import Digest
from builder.store import locks
from builder.store.objects import WORKSPACE, Store, free_bytes, objects_of, partial_lock, read_record

_DAY = 86400.0
_PATIENCE = 7 * _DAY
_Found = tuple[Path, os.stat_result]


@dataclass(frozen=True)
class Usage:
    """A store in numbers; `layers` are the objects that records name, `inputs` all others."""

    objects: int
    bytes: int
    inputs: int
    input_bytes: int
    layers: int
    layer_bytes: int
    records: int
    partial: int
    partial_bytes: int
    temporary: int
    temporary_bytes: int
    free_bytes: int


@dataclass(frozen=True)
class Collected:
    """What `gc` removed, or would remove."""

    objects: int
    records: int
    leftovers: int
    bytes: int


def usage(store: Store) -> Usage:
    """What lies in the store."""
    with store.explained():
        objects = {path.name: info.st_size for path, info in _files(store.root / "sha256")}
        records = [path for path, _ in _files(store.root / "records")]
        named = {digest.hex for path in records for digest in objects_of(read_record(path) or {})}
        partial = [info.st_blocks * 512 for _, info in _files(store.root / "partial")]
        temporary = [info.st_size for _, info in _files(store.root / "tmp")]
        free = free_bytes(store.root)
    layers = [size for name, size in objects.items() if name in named]
    total = sum(objects.values())
    return Usage(
        objects=len(objects),
        bytes=total,
        inputs=len(objects) - len(layers),
        input_bytes=total - sum(layers),
        layers=len(layers),
        layer_bytes=sum(layers),
        records=len(records),
        partial=len(partial),
        partial_bytes=sum(partial),
        temporary=len(temporary),
        temporary_bytes=sum(temporary),
        free_bytes=free,
    )


def gc(
    store: Store,
    now: float,
    *,
    max_age: float | None = None,
    max_size: int | None = None,
    keep: Collection[Digest] = (),
    dry_run: bool = False,
) -> Collected:
    """Removes what killed processes left, then objects unused for `max_age` seconds, then the least recently used ones
    until at most `max_size` bytes are left, then records whose objects are gone.

    `now` is the time in seconds since 1970. `keep` is never removed; nor is what was used in the last day while
    another process is at work in the store, as far as it says so with `Store.in_use`.
    """
    if not store.root.is_dir():
        return Collected(0, 0, 0, 0)
    with store.explained():
        alone = locks.attempt(store.root, locks.IN_USE)
        try:
            spared = {digest.hex for digest in keep}
            objects = _victims(store, now, max_age, max_size, spared, busy=alone is None)
            gone = {path.name for path, _ in objects}
            records = _dead_records(store, now, max_age, gone)
            leftovers = [*_temporary(store), *_partial(store, now, max_age)]
            removed = [*leftovers, *objects, *records]
            if not dry_run:
                for path, _ in removed:
                    _remove(store, path)
                _remove_empty(store)
                locks.remove_idle(store.root)
        finally:
            if alone is not None:
                os.close(alone)
    return Collected(
        objects=len(objects),
        records=len(records),
        leftovers=len(leftovers),
        bytes=sum(min(info.st_size, info.st_blocks * 512) for _, info in removed),
    )


def sweep(store: Store) -> None:
    """Removes what no living process is writing any more: after workers that were ended in the middle of clearing up."""
    with suppress(OSError):
        for path, _ in _temporary(store):
            path.unlink(missing_ok=True)
        _remove_empty(store)


def _victims(
    store: Store, now: float, max_age: float | None, max_size: int | None, keep: set[str], *, busy: bool
) -> list[_Found]:
    objects = sorted(_files(store.root / "sha256"), key=lambda found: (found[1].st_mtime, found[0].name))
    left = sum(info.st_size for _, info in objects)
    victims = []
    for path, info in objects:
        too_old = max_age is not None and info.st_mtime < now - max_age
        too_much = max_size is not None and left > max_size
        needed = path.name in keep or (busy and info.st_mtime > now - _DAY)
        if (too_old or too_much) and not needed:
            victims.append((path, info))
            left -= info.st_size
    return victims


def _dead_records(store: Store, now: float, max_age: float | None, gone: Collection[str]) -> list[_Found]:
    """Records that are damaged, unused for too long, or about objects that are not, or will not be, there."""
    dead = []
    for path, info in _files(store.root / "records"):
        document = read_record(path)
        if (
            document is None
            or (max_age is not None and info.st_mtime < now - max_age)
            or any(digest.hex in gone or not store.path(digest).is_file() for digest in objects_of(document))
        ):
            dead.append((path, info))
    return dead


def _temporary(store: Store) -> list[_Found]:
    """Files that no living process is writing; a workspace is as alive as the file that it is named after."""
    top = store.root / "tmp"
    found = []
    for path, info in _files(top):
        owner = top / path.relative_to(top).parts[0].removesuffix(WORKSPACE)
        if not locks.is_held(owner):
            found.append((path, info))
    return found


def _partial(store: Store, now: float, max_age: float | None) -> list[_Found]:
    """Downloads that nobody came back for."""
    oldest = now - (_PATIENCE if max_age is None else min(max_age, _PATIENCE))
    return [found for found in _files(store.root / "partial") if found[1].st_mtime < oldest]


def _remove(store: Store, path: Path) -> None:
    if path.parent != store.root / "partial":
        path.unlink(missing_ok=True)
    elif (lock := locks.attempt(store.root, partial_lock(Digest(path.name[:64])))) is not None:
        path.unlink(missing_ok=True)  # else somebody just came back for it
        os.close(lock)


def _remove_empty(store: Store) -> None:
    """Workspaces of killed processes, once their files are gone."""
    for path in (store.root / "tmp").glob(f"*{WORKSPACE}"):
        if not locks.is_held(path.with_name(path.name.removesuffix(WORKSPACE))):
            shutil.rmtree(path, ignore_errors=True)


def _files(directory: Path) -> Iterator[_Found]:
    """Every regular file below `directory`; what vanishes meanwhile is left out."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                info = path.lstat()
                if stat.S_ISREG(info.st_mode):
                    yield path, info
