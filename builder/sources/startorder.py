"""What a start reads comes first in a layer: decided when a profile is locked, by the names of files in its trace.

A layer of a large wheel is the same in every image; with an order it is only in those whose start reads the same files of
the wheel. The other layers are mixed for an image anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from builder.errors import StaleLockError
from builder.layers.tar import Entry
from builder.lock import Lock, LockedFile, LockedOrder, LockedPlatform, LockedStart, LockedWheel
from builder.oci.digest import Digest
from builder.plan import LARGE_WHEEL, SystemLayer, WheelLayer, is_large
from builder.soci.ranges import by_path
from builder.sources import slim, wheel
from builder.store import Store

_WORTH = 16
"""So many files of a large wheel have to be read for an order: a few libraries lie no better in front than where they are."""
_DEBIAN = ("usr/", "etc/", "var/")


def paths(ranges: bytes) -> frozenset[str]:
    """The files that a start reads, by the ranges of them (`readahead.ranges`); paths in the image without the leading `/`."""
    return frozenset(by_path(ranges))


@dataclass(frozen=True)
class Means:
    """What deciding needs: `ensure` brings wheels into `store`; `before` is a lock of the same profile with the same trace."""

    store: Store
    ensure: Callable[[Iterable[LockedFile]], None]
    before: Lock | None = None


def with_order(
    start: LockedStart,
    rendered: Mapping[str, bytes],
    everywhere: bool,
    platforms: Sequence[LockedPlatform],
    means: Means,
) -> LockedStart:
    """What a lock says of a start, with what comes first: in the layers that are mixed for an image, and `everywhere` also in those
    of large wheels of which enough is read. `rendered` has the ranges. A large wheel that was locked before is not read again."""
    platform = next((item for item in platforms if item.platform == start.platform), None)
    if platform is None:
        return start
    read = paths(rendered[start.files[-1].to])
    found = {
        "debian": _debian(read) if platform.debian else (),
        "wheels": _environment(read) if platform.wheels else (),
    }
    orders = [LockedOrder(name, _digest(names), len(names)) for name, names in found.items() if names]
    if everywhere:
        orders += _of_large(platform, read, means)
    return replace(start, order=tuple(sorted(orders)))


def _of_large(platform: LockedPlatform, read: Collection[str], means: Means) -> Iterator[LockedOrder]:
    python = platform.python.version if platform.python else platform.cuda.python if platform.cuda else ""
    large = [locked for locked in platform.wheels if locked.file.size >= LARGE_WHEEL]
    then = means.before.platforms if means.before else ()
    seen = {locked for item in then if item.platform == platform.platform for locked in item.wheels}
    known = {order.layer: order for order in (means.before.start.order if means.before and means.before.start else ())}
    yield from (known[locked.file.sha256] for locked in large if locked in seen and locked.file.sha256 in known)
    asked = [locked for locked in large if locked not in seen]
    means.ensure(dict.fromkeys(locked.file for locked in asked))
    for locked in asked:
        names = _of(locked, read, python, means.store)
        if len(names) >= _WORTH:
            yield LockedOrder(locked.file.sha256, _digest(names), len(names))


def ordered(
    layer: SystemLayer | WheelLayer, entries: Sequence[Entry], ranges: bytes, store: Store
) -> tuple[Entry, ...]:
    """The entries of a layer, those that its order names first, with the folders that they are in; else as they were. Raises as
    `first` does."""
    names = first(layer, entries, ranges, store)
    return tuple(sorted(entries, key=lambda entry: entry.path not in names))


def first(layer: SystemLayer | WheelLayer, entries: Iterable[Entry], ranges: bytes, store: Store) -> frozenset[str]:
    """The paths that the order of a layer names, as far as they are among the entries, and the folders that they are in.

    Raises `StaleLockError` where the ranges do not have the files that were locked.
    """
    assert layer.order
    read = paths(ranges)
    if isinstance(layer, SystemLayer):
        names = _debian(read)
    elif is_large(layer):
        names = _of(layer.wheels[0], read, layer.python, store)
    else:
        names = _environment(read)
    if _digest(names) != layer.order.locked.files:
        raise StaleLockError(f"{layer.order.reads.source} names other files of {layer.name} than when it was locked")
    there = frozenset(names) & {entry.path for entry in entries}
    return there | {above for path in there for above in _above(path)}


def _debian(read: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(path for path in read if path.startswith(_DEBIAN)))


def _environment(read: Collection[str]) -> tuple[str, ...]:
    return tuple(sorted(path for path in read if path.startswith(f"{wheel.VENV}/")))


def _of(locked: LockedWheel, read: Collection[str], python: str, store: Store) -> tuple[str, ...]:
    """Those that are files of a wheel, or the bytecode of its modules."""
    files = wheel.install(store.path(locked.file.digest), locked.file.path, locked.name, locked.version, python)
    if locked.drop:
        files = slim.slimmed(files, locked.drop)
    names, modules = {file.entry.path for file in files.files}, set(files.sources)
    return tuple(sorted(path for path in read if path in names or slim.bytecode_of(path) in modules))


def _digest(names: Iterable[str]) -> str:
    return Digest.of("".join(f"{name}\n" for name in names).encode()).hex


def _above(path: str) -> Iterator[str]:
    while "/" in path:
        path = path.rpartition("/")[0]
        yield path
