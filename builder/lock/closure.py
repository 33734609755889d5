"""The closure of Nix paths as layers: what many others need first. Pure, and a rule of the format."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

FLOOR = 16 << 20
"""Bytes of archives that are worth a layer of their own."""
MOST_LAYERS = 48


@dataclass(frozen=True, order=True)
class LockedNixPath:
    """One path of a Nix store: `name` is what it has after `/nix/store/`; `sha256` and `size` are of its archive, as Nix's
    narHash and narSize; `references` are the names of the paths that it needs, sorted, without itself."""

    name: str
    sha256: str
    size: int
    references: tuple[str, ...] = ()


class CircleError(ValueError):
    """Paths that need one another: no store has such."""


def named(name: str) -> tuple[str, str]:
    """The package and version in the name of a path, parted as Nix does: before the first hyphen that no letter follows."""
    plain = name[33:]
    match = re.search(r"-(?![A-Za-z])", plain)
    return (plain[: match.start()], plain[match.end() :]) if match else (plain, "")


def layers(paths: Sequence[LockedNixPath], most: int = MOST_LAYERS) -> tuple[tuple[LockedNixPath, ...], ...]:
    """The paths of each layer, bottom first; every path is in exactly one.

    In the order of how many other paths of the closure need it, those of equal number by name: a path of `FLOOR` bytes is a
    layer alone, smaller ones come together until they are as large; the last of `most` layers takes what is left.
    """
    count = popularity(paths)
    groups: list[list[LockedNixPath]] = []
    small: list[LockedNixPath] = []
    size = FLOOR
    for path in sorted(paths, key=lambda path: (-count[path.name], path.name)):
        if path.size >= FLOOR:
            groups.append([path])
            continue
        if size >= FLOOR:
            small, size = [], 0
            groups.append(small)
        small.append(path)
        size += path.size
    if len(groups) > most:
        groups[most - 1 :] = [[path for group in groups[most - 1 :] for path in group]]
    return tuple(tuple(group) for group in groups)


def popularity(paths: Sequence[LockedNixPath]) -> Mapping[str, int]:
    """How many other paths need each path, directly or by way of others."""
    needed_by: dict[str, int] = {path.name: 0 for path in paths}
    number = {path.name: 1 << place for place, path in enumerate(paths)}
    for path in ordered(paths):
        above = needed_by[path.name] | number[path.name]
        for name in path.references:
            needed_by[name] |= above
    return {name: bits.bit_count() for name, bits in needed_by.items()}


def ordered(paths: Sequence[LockedNixPath]) -> Iterator[LockedNixPath]:
    """The paths, each before those that it needs. Raises `CircleError`."""
    by_name = {path.name: path for path in paths}
    waiting = dict.fromkeys(by_name, 0)
    for path in paths:
        for name in path.references:
            waiting[name] += 1
    ready = sorted((name for name, count in waiting.items() if not count), reverse=True)
    done = 0
    while ready:
        path = by_name[ready.pop()]
        done += 1
        yield path
        for name in path.references:
            waiting[name] -= 1
            if not waiting[name]:
                ready.append(name)
    if done != len(by_name):
        circle = min(name for name, count in waiting.items() if count)
        raise CircleError(f"{circle} needs itself, by way of others")
