"""The local store: bytes under their digest and small records, shared by concurrent processes and threads.

    ROOT/sha256/ab/<hex>       objects, mode 0444; the modification time is the time of the last use
    ROOT/records/<kind>/<key>  small JSON documents
    ROOT/partial/<hex>         downloads that were interrupted and can be resumed, with their journals
    ROOT/tmp/                  files being written; each is locked by the process that writes it
    ROOT/locks/                one empty file per lock

Nothing appears under its name before its bytes are complete and on the disk.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import os
import re
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import StoreError
from builder.oci.digest import Digest

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM})
_READ = 4 << 20
_POLL = 0.1
_IN_USE = "in-use"
_DAY = 86400.0


@dataclass(frozen=True)
class Usage:
    """What lies in a store, in numbers; `layers` are the objects that records name, `inputs` all others."""

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
    """What `Store.gc` removed, or would remove."""

    objects: int
    records: int
    leftovers: int
    bytes: int


class Store:
    """Content-addressed files below `root`; creates nothing until something is written.

    A record may hold a list `objects` of digests (as text): the objects that it speaks about. When one of them is
    gone the record counts as absent.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._used: set[str] = set()

    def path(self, digest: Digest) -> Path:
        """Where the bytes of `digest` are, or would be."""
        return self.root / "sha256" / digest.hex[:2] / digest.hex

    def has(self, digest: Digest, size: int | None = None) -> bool:
        """Whether the object is there, with that size if one is given; counts as a use of it."""
        path = self.path(digest)
        with _explained(self.root):
            try:
                found = path.stat()
            except (FileNotFoundError, NotADirectoryError):
                return False
        if not stat.S_ISREG(found.st_mode) or (size is not None and found.st_size != size):
            return False
        self._use(path)
        return True

    def read(self, digest: Digest) -> bytes:
        """The bytes of a small object, checked. Raises `StoreError` if it is absent or damaged."""
        path = self.path(digest)
        again = "run the same command again: what is missing is made or fetched anew"
        with _explained(self.root):
            try:
                data = path.read_bytes()
            except FileNotFoundError as error:
                raise StoreError(f"{path}: not in the store", hint=again) from error
        if Digest.of(data) != digest:
            self.discard(digest)
            raise StoreError(f"{path}: the bytes are damaged; the file was removed", hint=again)
        self._use(path)
        return data

    def verify(self, digest: Digest) -> bool:
        """Whether the object is there and its bytes are right; a damaged one is removed."""
        try:
            with _explained(self.root), self.path(digest).open("rb") as file:
                right = hash_of(file.fileno()) == digest
        except FileNotFoundError:
            return False
        if not right:
            self.discard(digest)
        return right

    def discard(self, digest: Digest) -> None:
        """Removes an object, if it is there."""
        with _explained(self.root):
            self.path(digest).unlink(missing_ok=True)

    @contextmanager
    def temporary(self) -> Iterator[Path]:
        """A new, empty file in the store's `tmp`; removed at the end if it is still there.

        Running out of space and the like inside the block become `StoreError`.
        """
        with _explained(self.root):
            path, descriptor = self._new_temporary()
            try:
                yield path
            finally:
                with suppress(OSError):
                    path.unlink(missing_ok=True)
                os.close(descriptor)

    def adopt(self, path: Path, digest: Digest) -> None:
        """A finished file of this store's file system appears under its digest, and no longer under `path`.

        The caller has hashed it. It is fine if others adopt the same bytes at the same time.
        """
        target = self.path(digest)
        with _explained(self.root):
            target.parent.mkdir(parents=True, exist_ok=True)
            with path.open("rb") as file:
                os.fchmod(file.fileno(), 0o444)
                os.fsync(file.fileno())
                os.utime(file.fileno())
            path.rename(target)
            _sync_directory(target.parent)
        self._used.add(str(target))

    def put(self, data: bytes) -> Digest:
        """Stores small bytes and returns their digest."""
        digest = Digest.of(data)
        if not self.has(digest, len(data)):
            with self.temporary() as path:
                path.write_bytes(data)
                self.adopt(path, digest)
        return digest

    def record(self, kind: str, key: str) -> dict[str, Any] | None:
        """The record of that name; None if there is none, it is damaged, or one of its `objects` is gone."""
        path = self._record_path(kind, key)
        with _explained(self.root):
            document = _read_record(path)
        if document is None or not all(self.has(digest) for digest in _objects(document)):
            return None
        self._use(path)
        return document

    def put_record(self, kind: str, key: str, document: Mapping[str, object]) -> None:
        """Writes a record, in one step for whoever reads it."""
        target = self._record_path(kind, key)
        data = json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False).encode()
        with self.temporary() as path:
            with path.open("wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            _sync_directory(target.parent)

    def partial(self, digest: Digest) -> Path:
        """Where a download may keep what it has between runs; whoever writes it holds `locked(partial_lock(digest))`.

        Files beside it with the same name and a suffix belong to it.
        """
        with _explained(self.root):
            (self.root / "partial").mkdir(parents=True, exist_ok=True)
        return self.root / "partial" / digest.hex

    @contextmanager
    def locked(self, name: str, check: Callable[[], None] | None = None) -> Iterator[None]:
        """Excludes every other holder of `name`, in this process and others, for the length of the block.

        `check` is called now and then while waiting, and may raise to give up.
        """
        descriptor = self._lock(name, fcntl.LOCK_EX, check)
        try:
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While the block runs, `gc` of other processes spares what was used in the last day."""
        try:
            descriptor = self._lock(_IN_USE, fcntl.LOCK_SH, None)
        except StoreError:  # a read-only store: whoever can collect it cannot be excluded, and nothing is lost
            yield
            return
        try:
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def explained(self) -> Iterator[None]:
        """While the block runs, a full or read-only disk under the store raises `StoreError` with its remedy."""
        with _explained(self.root):
            yield

    def usage(self) -> Usage:
        """What lies in the store."""
        with _explained(self.root):
            objects = {path.name: info.st_size for path, info in _files(self.root / "sha256")}
            records = [path for path, _ in _files(self.root / "records")]
            named = {digest.hex for path in records for digest in _objects(_read_record(path) or {})}
            partial = [info.st_size for _, info in _files(self.root / "partial")]
            temporary = [info.st_size for _, info in _files(self.root / "tmp")]
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
            free_bytes=free_bytes(self.root),
        )

    def gc(
        self,
        now: float,
        *,
        max_age: float | None = None,
        max_size: int | None = None,
        keep: Collection[Digest] = (),
        dry_run: bool = False,
    ) -> Collected:
        """Removes what killed processes left, then objects unused for `max_age` seconds, then the least recently used
        ones until at most `max_size` bytes are left, then records whose objects are gone.

        `now` is the time in seconds since 1970. `keep` is never removed; nor is what was used in the last day while
        another process is at work in the store.
        """
        with _explained(self.root):
            if not self.root.is_dir():
                return Collected(0, 0, 0, 0)
            idle = self._claim_idle()
            try:
                spared_after = None if idle is not None else now - _DAY
                leftovers = self._leftovers(now, max_age)
                victims = self._victims(now, max_age, max_size, keep, spared_after)
                gone = {path.name for path, _ in victims}
                records = [
                    (path, info)
                    for path, info in _files(self.root / "records")
                    if _is_dead(path, self, gone) or (max_age is not None and info.st_mtime < now - max_age)
                ]
                removed = [*leftovers, *victims, *records]
                if not dry_run:
                    for path, _ in removed:
                        path.unlink(missing_ok=True)
                    self._remove_idle_locks()
                return Collected(
                    objects=len(victims),
                    records=len(records),
                    leftovers=len(leftovers),
                    bytes=sum(info.st_size for _, info in removed),
                )
            finally:
                if idle is not None:
                    os.close(idle)

    def _victims(
        self,
        now: float,
        max_age: float | None,
        max_size: int | None,
        keep: Collection[Digest],
        spared_after: float | None,
    ) -> list[tuple[Path, os.stat_result]]:
        kept = {digest.hex for digest in keep}
        objects = sorted(_files(self.root / "sha256"), key=lambda item: (item[1].st_mtime, item[0].name))
        left = sum(info.st_size for _, info in objects)
        victims = []
        for path, info in objects:
            too_old = max_age is not None and info.st_mtime < now - max_age
            too_much = max_size is not None and left > max_size
            spared = path.name in kept or (spared_after is not None and info.st_mtime > spared_after)
            if (too_old or too_much) and not spared:
                victims.append((path, info))
                left -= info.st_size
        return victims

    def _leftovers(self, now: float, max_age: float | None) -> list[tuple[Path, os.stat_result]]:
        """Temporary files that no living process holds, and partial downloads that nobody came back for."""
        temporary = [item for item in _files(self.root / "tmp") if not _is_locked(item[0])]
        patience = 7 * _DAY if max_age is None else min(max_age, 7 * _DAY)
        partial = [
            (path, info)
            for path, info in _files(self.root / "partial")
            if info.st_mtime < now - patience and not _is_locked(self._lock_path(_partial_lock_of(path.name[:64])))
        ]
        return temporary + partial

    def _remove_idle_locks(self) -> None:
        for path, _ in list(_files(self.root / "locks")):
            with suppress(OSError):
                descriptor = os.open(path, os.O_RDWR | os.O_CLOEXEC)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    path.unlink(missing_ok=True)  # whoever waits for it sees that its file is gone, and starts over
                finally:
                    os.close(descriptor)

    def _claim_idle(self) -> int | None:
        """A lock that says nobody else is at work here; None if somebody is."""
        try:
            return self._lock(_IN_USE, fcntl.LOCK_EX | fcntl.LOCK_NB, None)
        except BlockingIOError:
            return None

    def _use(self, path: Path) -> None:
        """Notes the use of a file, once per process."""
        name = str(path)
        if name not in self._used:
            self._used.add(name)
            with suppress(OSError):  # a store that may only be read is fine
                os.utime(path)

    def _new_temporary(self) -> tuple[Path, int]:
        directory = self.root / "tmp"
        directory.mkdir(parents=True, exist_ok=True)
        while True:
            descriptor, name = tempfile.mkstemp(dir=directory)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if _is_same_file(descriptor, Path(name)):  # else gc removed it before it was locked
                    return Path(name), descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _lock(self, name: str, operation: int, check: Callable[[], None] | None) -> int:
        """A descriptor that holds the lock `name` until it is closed."""
        path = self._lock_path(name)
        waiting = operation if check is None else operation | fcntl.LOCK_NB
        with _explained(self.root):
            path.parent.mkdir(parents=True, exist_ok=True)
            while True:
                descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
                try:
                    fcntl.flock(descriptor, waiting)
                    if _is_same_file(descriptor, path):
                        return descriptor
                except BlockingIOError:
                    os.close(descriptor)
                    if check is None:
                        raise
                    check()
                    time.sleep(_POLL)
                    continue
                except BaseException:
                    os.close(descriptor)
                    raise
                os.close(descriptor)

    def _lock_path(self, name: str) -> Path:
        return self.root / "locks" / _file_name(name)

    def _record_path(self, kind: str, key: str) -> Path:
        return self.root / "records" / _file_name(kind) / _file_name(key)


def partial_lock(digest: Digest) -> str:
    """The name of the lock that whoever downloads `digest` holds."""
    return _partial_lock_of(digest.hex)


def hash_of(descriptor: int) -> Digest:
    """The digest of an open file, from its beginning."""
    sha256 = hashlib.sha256()
    offset = 0
    while block := os.pread(descriptor, _READ, offset):
        sha256.update(block)
        offset += len(block)
    return Digest(sha256.hexdigest())


def free_bytes(path: Path) -> int:
    """Free space, for this user, of the disk that `path` is on or would be on."""
    while not path.exists() and path != path.parent:
        path = path.parent
    return shutil.disk_usage(path).free


def _partial_lock_of(name: str) -> str:
    return f"fetch-{name}"


def _file_name(name: str) -> str:
    """`name` itself where that is a harmless file name, else its digest."""
    return name if _PLAIN_NAME.fullmatch(name) else Digest.of(name.encode()).hex


def _read_record(path: Path) -> dict[str, Any] | None:
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def _objects(document: Mapping[str, Any]) -> list[Digest]:
    listed = document.get("objects", ())
    if not isinstance(listed, list):
        return []
    found = []
    for text in listed:
        with suppress(ValueError, TypeError):
            found.append(Digest.parse(text))
    return found


def _is_dead(record: Path, store: Store, gone: Collection[str]) -> bool:
    """Whether a record is damaged or speaks about an object that is not, or will not be, there."""
    document = _read_record(record)
    return document is None or any(
        digest.hex in gone or not store.path(digest).is_file() for digest in _objects(document)
    )


def _files(directory: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Every regular file below `directory`; what vanishes meanwhile is left out."""
    for parent, _, names in os.walk(directory):
        for name in names:
            path = Path(parent, name)
            with suppress(FileNotFoundError):
                info = path.lstat()
                if stat.S_ISREG(info.st_mode):
                    yield path, info


def _is_locked(path: Path) -> bool:
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def _is_same_file(descriptor: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def _sync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(root: Path) -> Iterator[None]:
    """Turns a full or forbidden store into `StoreError`; other files' errors pass through."""
    try:
        yield
    except OSError as error:
        if isinstance(error.filename, (str, os.PathLike)) and not Path(error.filename).is_relative_to(root):
            raise
        if error.errno in _FULL:
            raise StoreError(
                f"{root}: the store is full: {error.strerror}",
                hint="free some space, `build cache gc --max-size 10GB` removes what was not used lately, "
                "or name another place with XDG_CACHE_HOME",
            ) from error
        if error.errno in _FORBIDDEN:
            raise StoreError(
                f"{error.filename or root}: the store cannot be used: {error.strerror}",
                hint=f"make {root} writable for you, or name another place with XDG_CACHE_HOME",
            ) from error
        raise
