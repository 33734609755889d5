"""Debian: a verified archive gives an index, and the packages asked for become a locked set."""

from __future__ import annotations

import hashlib
import lzma
import zlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from builder.errors import BuilderError
from builder.lock import LockedDebian, LockedRelease
from builder.oci.digest import Digest
from builder.oci.spec import encode
from builder.sources import release
from builder.sources.apt import MAIN, SECURITY, Mirror
from builder.sources.packages import Index, PackagesFile
from builder.sources.release import ArchiveError, Release
from builder.sources.solve import SKIP, Solution, solve

_T = TypeVar("_T")
_ROLLING = ("sid", "experimental")
_MAX_INDEX = 1 << 30


def request(
    suite: str, architecture: str, packages: Collection[str], skip: Mapping[str, Collection[str]] = SKIP
) -> str:
    """The digest of what is asked for, as `LockedDebian.request` has it: a lock with another one is stale."""
    asked = {
        "architecture": architecture,
        "packages": sorted(set(packages)),
        "skip": {name: sorted(skipped) for name, skipped in skip.items()},
        "suite": suite,
    }
    return str(Digest.of(encode(asked)))


@dataclass(frozen=True)
class Resolution:
    """A locked set, and who needs whom in it."""

    locked: LockedDebian
    solution: Solution

    def closure(self, names: Collection[str]) -> tuple[str, ...]:
        """The packages that the named ones need to run, themselves included, sorted."""
        return self.solution.closure(names)


def resolve(
    suite: str,
    architecture: str,
    packages: Collection[str],
    archive: Archive,
    *,
    previous: LockedDebian | None = None,
    upgrade: Collection[str] = (),
    skip: Mapping[str, Collection[str]] = SKIP,
) -> Resolution:
    """Locks the packages (`name` or `name=version`) and all that they need to run.

    A version that `previous` locked is kept while the archive lists it and the rest allows it, except for the names in
    `upgrade`; without `previous` everything is as new as it can be. Raises `ResolutionError` if no set satisfies all.
    """
    index = archive.index(suite, architecture)
    keep = {deb.name: deb.version for deb in previous.packages if deb.name not in upgrade} if previous else {}
    solution = solve(index, packages, prefer=keep, skip=skip)
    locked = LockedDebian(
        suite=suite,
        request=request(suite, architecture, packages, skip),
        releases=index.releases,
        packages=tuple(package.locked() for package in solution.packages),
    )
    return Resolution(locked, solution)


class Archive:
    """Debian's archive behind the mirrors of its origins. `get` gives the bytes at an address or raises BuilderError;
    `now` is the time that `Valid-Until` is compared with."""

    def __init__(
        self,
        mirrors: Mapping[str, Mirror],
        get: Callable[[str], bytes],
        now: datetime,
        components: Sequence[str] = ("main",),
    ) -> None:
        self._mirrors = mirrors
        self._get = get
        self._now = now
        self._components = tuple(components)
        self._releases: dict[tuple[str, str], Release] = {}

    def index(self, suite: str, architecture: str) -> Index:
        """The packages of a suite, its updates and its security updates; Debian's keys vouch for every byte."""
        files, releases = [], []
        for origin, name in self._suites(suite):
            found = self._release(origin, name)
            files += [PackagesFile(origin, data) for data in self._packages(found, architecture)]
            releases.append(LockedRelease(origin, name, found.sha256))
        return Index(files, architecture, releases)

    def _suites(self, suite: str) -> Iterator[tuple[str, str]]:
        """An origin that nobody configured is an error, lest an image silently misses security updates;
        a mirror without addresses says that this is meant."""
        wanted = [(MAIN, suite)]
        if suite not in _ROLLING:
            wanted += [(MAIN, f"{suite}-updates"), (SECURITY, f"{suite}-security")]
        for origin, name in wanted:
            if origin not in self._mirrors:
                raise ArchiveError(
                    f"no apt source of this machine is of the origin {origin!r}, which suite {name} needs",
                    hint=f"name a mirror of {origin} in Layerwright's configuration (`build doctor` shows where)",
                )
            if self._mirrors[origin].uris or origin == MAIN:
                yield origin, name

    def _release(self, origin: str, suite: str) -> Release:
        if (origin, suite) not in self._releases:

            def read(data: bytes) -> Release:
                return release.read(data, origin, suite, self._mirrors[origin].keyrings, self._now)

            self._releases[origin, suite] = self._first(origin, [f"dists/{suite}/InRelease"], read)
        return self._releases[origin, suite]

    def _packages(self, found: Release, architecture: str) -> Iterator[bytes]:
        """The Packages files of the architecture; those of `all` are in it unless the release keeps them apart."""
        architectures = found.fields.get("architectures", "").split()
        if architecture not in architectures:
            raise ArchiveError(
                f"suite {found.suite} ({found.origin}) has no packages for {architecture}",
                hint=f"its architectures are: {', '.join(architectures)}",
            )
        apart = (
            "all" in architectures and "packages" not in found.fields.get("no-support-for-architecture-all", "").lower()
        )
        for component in self._components:
            for part in (architecture, "all") if apart else (architecture,):
                yield self._packages_file(found, f"{component}/binary-{part}/Packages")

    def _packages_file(self, found: Release, name: str) -> bytes:
        for suffix in _DECOMPRESS:
            if name + suffix in found.files:
                sha256, size = found.files[name + suffix]
                break
        else:
            raise ArchiveError(f"suite {found.suite} ({found.origin}) has no {name}")
        limit = found.files[name][1] if name in found.files else _MAX_INDEX
        label = f"{name}{suffix} of {found.suite} ({found.origin})"

        def read(data: bytes) -> bytes:
            if len(data) != size or hashlib.sha256(data).hexdigest() != sha256:
                raise ArchiveError(f"{label}: its bytes are not those that the signed InRelease names")
            try:
                return b"\n" + _DECOMPRESS[suffix](data, limit)
            except (lzma.LZMAError, zlib.error, OSError, EOFError, ValueError) as error:
                raise ArchiveError(f"{label}: {error}") from error

        directory = f"dists/{found.suite}/{name.rpartition('/')[0]}"
        by_hash = [f"{directory}/by-hash/SHA256/{sha256}"] if found.by_hash else []
        return self._first(found.origin, [*by_hash, f"dists/{found.suite}/{name}{suffix}"], read)

    def _first(self, origin: str, paths: Sequence[str], read: Callable[[bytes], _T]) -> _T:
        """What the first place gives that has the file and is to be believed; else why not, which is worth more to know
        than that another place does not have it."""
        failure: BuilderError | None = None
        for path in paths:
            for url in self._mirrors[origin].urls(path):
                try:
                    return read(self._get(url))
                except BuilderError as error:
                    if failure is None or isinstance(error, ArchiveError):
                        failure = error
        if failure is None:
            raise ArchiveError(f"origin {origin!r} has no mirror")
        raise failure


def _unxz(data: bytes, limit: int) -> bytes:
    decompressor = lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=1 << 28)
    result = decompressor.decompress(data, max_length=limit)
    if not decompressor.eof and decompressor.decompress(b"", max_length=1):
        raise ValueError(f"it unpacks to more than the {limit} bytes that InRelease names")
    if not decompressor.eof:
        raise ValueError("it is truncated")
    return result


def _gunzip(data: bytes, limit: int) -> bytes:
    decompressor = zlib.decompressobj(31)
    result = decompressor.decompress(data, limit)
    if decompressor.unconsumed_tail and decompressor.decompress(decompressor.unconsumed_tail, 1):
        raise ValueError(f"it unpacks to more than the {limit} bytes that InRelease names")
    if not decompressor.eof:
        raise ValueError("it is truncated")
    return result


def _plain(data: bytes, limit: int) -> bytes:
    return data


_DECOMPRESS: Mapping[str, Callable[[bytes, int], bytes]] = {".xz": _unxz, ".gz": _gunzip, "": _plain}
