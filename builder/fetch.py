"""Brings the files of a lock into the store: from mirrors, then from their origin, several at once, all verified."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

from builder.client import Client, NotFoundError, Patience, TransientError, file_of, is_local, origin, redact
from builder.errors import BuilderError, FetchError, OfflineError, StoreError
from builder.lock import LockedFile
from builder.oci.digest import Digest
from builder.parallel import Stop, for_each
from builder.progress import Progress, Task, human_size
from builder.store import MAKE_ROOM, Store, free_bytes, hash_of, partial_lock
from builder.transfer import Lane, Opener, download, forget, settle

__all__ = ["Client", "Fetcher", "NotFoundError", "Origins", "TransientError", "redact"]

_COPY = 4 << 20


class Origins(Protocol):
    """Knows where the user's configuration says that an origin is."""

    def urls(self, file: LockedFile) -> Iterable[str]:
        """Addresses (`http`, `https` or `file`) of a file, the best first; asked for one by one, when needed.

        May raise `FetchError`. Several threads call it at once, for different files.
        """


Download = Callable[[LockedFile, Path, Callable[[int], None]], None]
"""Brings a file to a path, where an interrupted call may have left a part of it, and tells how many bytes have come."""


@runtime_checkable
class Expecting(Protocol):
    """A `Download` that is told beforehand of all files that it may be asked for, because it brings many as fast as one."""

    def expect(self, files: Sequence[LockedFile]) -> None: ...


class Fetcher:
    """Fetches locked files into a store.

    `mirrors` are folders, or addresses of folders, that hold `sha256/<hex>`; another store is one, too. At most
    `jobs` requests run at once. `others` bring the files of origins that have no addresses.
    """

    def __init__(
        self,
        store: Store,
        origins: Origins,
        client: Opener,
        progress: Progress,
        *,
        offline: bool = False,
        jobs: int = 8,
        mirrors: Sequence[str] = (),
        others: Mapping[str, Download] | None = None,
    ) -> None:
        self._store = store
        self._origins = origins
        self._client = client
        self._progress = progress
        self._offline = offline
        self._jobs = jobs
        self._mirrors = tuple(mirrors)
        self._others = others or {}
        self._silent: dict[object, TransientError] = {}
        self._told: set[object] = set()

    def ensure(self, files: Iterable[LockedFile]) -> None:
        """All `files` are in the store afterwards, checked by digest and size.

        Raises `OfflineError` that names every missing file, `FetchError` that names a file, the places tried and what
        each said, or `StoreError`. An interrupt leaves what was fetched so far for the next run to go on with.
        """
        wanted = {(file.sha256, file.size): file for file in files}
        missing = [file for file in wanted.values() if not self._store.has(file.digest, file.size)]
        if not missing:
            return
        if self._offline:
            missing = [file for file in missing if not self._from_folders(file)]
            if missing:
                raise OfflineError(_offline_message(missing))
            return
        self._check_space(missing)
        for name, bring in self._others.items():
            if isinstance(bring, Expecting):
                bring.expect([file for file in missing if file.origin == name])
        missing.sort(key=lambda file: (-file.size, file.sha256))
        total = sum(file.size for file in missing)
        noun = "file" if len(missing) == 1 else "files"
        with self._progress.task(f"fetch {len(missing)} {noun}", total) as task:
            self._fetch_all(missing, task)

    def _fetch_all(self, files: Sequence[LockedFile], task: Task) -> None:
        stop = Stop()
        lane = Lane(self._client, threading.BoundedSemaphore(self._jobs), self._jobs, task.advance, stop)
        failures = for_each(lambda file: self._fetch(file, lane), files, self._jobs, stop)
        bugs = [failure for failure in failures if not isinstance(failure, BuilderError)]
        for failure in (*bugs, *failures):
            raise failure

    def _fetch(self, file: LockedFile, lane: Lane) -> None:
        """Fetches one file; where another process does so already, waits for it."""
        with self._store.locked(partial_lock(file.digest), lane.stop.check):
            if self._store.has(file.digest, file.size):
                lane.advance(file.size)
                return
            tried: list[FetchError] = []
            for place in self._in_order(self._places(file, tried)):
                try:
                    with self._store.explained():
                        self._fetch_from(place, file, lane)
                    return
                except FetchError as error:
                    tried.append(error)
                    if isinstance(error, TransientError):
                        self._silent[_server(place)] = error
            if file.origin in self._others:
                self._fetch_otherwise(self._others[file.origin], file, lane)
                return
            raise _failure(file, tried)

    def _in_order(self, places: Iterable[str]) -> Iterator[str]:
        """Those that answer first: one that was waited for in vain is not waited for again while there are others."""
        put_off = []
        for place in places:
            if _server(place) in self._silent:
                put_off.append(place)
                continue
            if put_off and _server(put_off[0]) not in self._told:
                self._told.add(_server(put_off[0]))
                self._progress.note(f"{self._silent[_server(put_off[0])]}; others are asked first from here on")
            yield place
        yield from put_off

    def _places(self, file: LockedFile, tried: list[FetchError]) -> Iterator[str]:
        for mirror in self._mirrors:
            yield from _in_mirror(mirror, file.digest)
        if file.origin in self._others:
            return
        try:
            yield from self._origins.urls(file)
        except FetchError as error:
            tried.append(error)

    def _fetch_from(self, place: str, file: LockedFile, lane: Lane) -> None:
        if is_local(place):
            self._copy(file_of(place), file, lane)
            return
        if any(place.startswith(mirror) for mirror in self._mirrors):
            lane = replace(lane, client=_Hurried(lane.client))
        path = self._store.partial(file.digest)
        only_this = download(lane, place, path, file.size)
        found = _hash(path)
        if found != file.digest and not only_this:
            # parts of an earlier run, or of another place, do not fit: this place gets the chance to give all of them
            forget(path)
            lane.advance(-file.size)
            download(lane, place, path, file.size)
            found = _hash(path)
        if found != file.digest:
            forget(path)
            lane.advance(-file.size)
            raise _mismatch(redact(place), file, found)
        self._store.adopt(path, file.digest)
        settle(path)

    def _fetch_otherwise(self, bring: Download, file: LockedFile, lane: Lane) -> None:
        path = self._store.partial(file.digest)
        with self._store.explained():
            bring(file, path, lane.advance)
            found = _hash(path)
            if found != file.digest:
                forget(path)
                lane.advance(-file.size)
                raise _mismatch(file.path, file, found)
            self._store.adopt(path, file.digest)
            settle(path)

    def _copy(self, source: Path, file: LockedFile, lane: Lane) -> None:
        """Takes a local file; bytes are hashed as they are copied, since the source may change meanwhile."""
        with self._store.temporary() as path:
            copied = 0
            try:
                with path.open("wb") as target:
                    for block in _blocks(source, file.size):
                        lane.stop.check()
                        target.write(block)
                        copied += len(block)
                        lane.advance(len(block))
                if copied != file.size:
                    raise FetchError(f"{source}: the file has {copied} bytes, the lock says {file.size}")
                found = _hash(path)
                if found != file.digest:
                    raise _mismatch(str(source), file, found)
            except BaseException:
                lane.advance(-copied)
                raise
            self._store.adopt(path, file.digest)

    def _from_folders(self, file: LockedFile) -> bool:
        """Whether a mirror on this machine gave the file: that is no use of the network."""
        lane = Lane(self._client, threading.BoundedSemaphore(1), 1, lambda _: None, Stop())
        for mirror in self._mirrors:
            for place in _in_mirror(mirror, file.digest):
                if is_local(place):
                    try:
                        self._copy(file_of(place), file, lane)
                        return True
                    except FetchError:
                        continue
        return False

    def _check_space(self, missing: Sequence[LockedFile]) -> None:
        needed = sum(file.size - self._already_here(file) for file in missing)
        free = free_bytes(self._store.root)
        if needed > free:
            raise StoreError(
                f"{self._store.root}: {human_size(needed)} are to be fetched, but only {human_size(free)} are free",
                hint=MAKE_ROOM,
            )

    def _already_here(self, file: LockedFile) -> int:
        try:
            return min(self._store.partial(file.digest).stat().st_blocks * 512, file.size)
        except OSError:
            return 0


class _Hurried:
    """Requests to a place that others can stand in for: they are soon given up."""

    def __init__(self, client: Opener) -> None:
        self._client = client
        self.open = client.open

    def patience(self, stop: Stop) -> Patience:
        return self._client.patience(stop).hurried()


def _server(place: str) -> object:
    """Whom an address is asked of."""
    try:
        return origin(place)
    except FetchError:
        return place


def _in_mirror(mirror: str, digest: Digest) -> tuple[str, ...]:
    """Addresses of an object in a mirror; a folder may also be a store, which spreads objects over subfolders."""
    if mirror.startswith(("http://", "https://")):
        return (f"{mirror.rstrip('/')}/sha256/{digest.hex}",)
    folder = file_of(mirror) if is_local(mirror) else Path(mirror).absolute()
    flat, spread = folder / "sha256" / digest.hex, folder / "sha256" / digest.hex[:2] / digest.hex
    return flat.as_uri(), spread.as_uri()


def _blocks(source: Path, size: int) -> Iterator[bytes]:
    """The bytes of a file, at most one block more than `size`."""
    try:
        with source.open("rb") as file:
            read = 0
            while read <= size and (block := file.read(_COPY)):
                read += len(block)
                yield block
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFoundError(f"{source}: there is no such file") from error
    except OSError as error:
        raise FetchError(f"{source}: {error.strerror}") from error


def _hash(path: Path) -> Digest:
    descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return hash_of(descriptor)
    finally:
        os.close(descriptor)


def _mismatch(place: str, file: LockedFile, found: Digest) -> FetchError:
    return FetchError(f"{place}: the bytes are not those of the lock: expected {file.digest}, got {found}")


def _failure(file: LockedFile, tried: Sequence[FetchError]) -> FetchError:
    name = f"{file.path} (of {file.origin}, {human_size(file.size)})"
    if not tried:
        return FetchError(
            f"{name}: no place is configured that could have it",
            hint=f"say where {file.origin} is: `build doctor` shows what is configured",
        )
    lines = "".join(f"\n  {error}" for error in tried)
    hints = [error.hint for error in tried if error.hint]
    return FetchError(f"{name}: no place gave it:{lines}", hint=hints[-1] if hints else _hint(tried))


def _hint(tried: Sequence[FetchError]) -> str:
    if all(isinstance(error, NotFoundError) for error in tried):
        return "it may be gone from there: add a mirror that keeps old files, or run `build lock --upgrade`"
    if any(isinstance(error, TransientError) for error in tried):
        return "run the same command again: it goes on where it stopped; `build doctor --online` asks every place"
    return "a place serves other bytes than the lock names: remove that place, or review the change with `build lock`"


def _offline_message(missing: Sequence[LockedFile]) -> str:
    total = human_size(sum(file.size for file in missing))
    lines = "".join(f"\n  {file.origin}: {file.path} ({human_size(file.size)})" for file in sorted(missing))
    if len(missing) == 1:
        return f"1 file ({total}) is not in the store, and --offline forbids fetching it:{lines}"
    return f"{len(missing)} files ({total}) are not in the store, and --offline forbids fetching them:{lines}"
