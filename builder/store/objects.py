"""Objects and records of a store: written under a temporary name, complete and on the disk before they appear."""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import mmap
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from builder.errors import StoreError
from builder.oci.digest import Digest
from builder.store import locks

_FULL = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG})
_FORBIDDEN = frozenset({errno.EROFS, errno.EACCES, errno.EPERM, errno.ENOTDIR, errno.EEXIST, errno.ELOOP})
MAKE_ROOM = (
    "free some space, `build cache gc --max-size 10GB` removes what was not used lately, "
    "or name another place with XDG_CACHE_HOME"
)
"""What to do about a store whose disk is full."""
_READ = 4 << 20
_ROUNDS, _ROUND = 20, 0.02
"""How often what an interrupted process leaves is looked for, and how many seconds lie between."""
_OURS = f"{os.urandom(4).hex()}-"
"""How the names of temporary files of this process, and of those that it forks, begin."""
WORKSPACE = ".d"
"""What the name of a workspace has after that of the file that holds its lock."""


class Store:
    """Content-addressed files below `root`; creates nothing until something is written or locked.

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
            with suppress(StoreError):  # a store that may only be read keeps it
                self.discard(digest)
            raise StoreError(f"{path}: the bytes are damaged", hint=again)
        self._use(path)
        return data

    def verify(self, digest: Digest) -> bool:
        """Whether the object is there and its bytes are right; a damaged one is removed if that is allowed."""
        try:
            with _explained(self.root), self.path(digest).open("rb") as file:
                right = hash_of(file.fileno()) == digest
        except FileNotFoundError:
            return False
        if not right:
            with suppress(StoreError):
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

    @contextmanager
    def workspace(self) -> Iterator[Path]:
        """A new, empty folder in the store's `tmp`, removed with all that is in it at the end."""
        with self.temporary() as owner:
            folder = owner.with_name(owner.name + WORKSPACE)
            folder.mkdir()
            try:
                yield folder
            finally:
                shutil.rmtree(folder, ignore_errors=True)

    @contextmanager
    def mapped(self, digest: Digest) -> Iterator[mmap.mmap]:
        """An object in memory, as far as it is looked at. Raises `OSError` where it is not there, `ValueError` if it is empty."""
        with self.path(digest).open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data

    def abandon(self) -> None:
        """Removes all temporary files of this process: it was interrupted, maybe between making one and knowing of it."""
        for _ in range(_ROUNDS):  # a program that we started may be ending, and still write
            with suppress(OSError):
                paths = list((self.root / "tmp").glob(f"{_OURS}*"))
                if not paths:
                    return
                for path in paths:
                    shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            time.sleep(_ROUND)

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
            document = read_record(path)
        if document is None or not all(self.has(digest) for digest in objects_of(document)):
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
                os.fchmod(file.fileno(), 0o444)  # like an object: others may share the store
                os.fsync(file.fileno())
            target.parent.mkdir(parents=True, exist_ok=True)
            path.rename(target)
            _sync_directory(target.parent)

    def records(self, kind: str) -> Iterator[tuple[float, dict[str, Any]]]:
        """All records of a kind that can be read, each with the time of its last use in seconds since 1970."""
        folder = self.root / "records" / locks.file_name(kind)
        with _explained(self.root):
            names = sorted(os.listdir(folder)) if folder.is_dir() else []
        for name in names:
            with suppress(OSError):
                used = (folder / name).stat().st_mtime
                if (document := read_record(folder / name)) is not None:
                    yield used, document

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
        with _explained(self.root):
            descriptor = locks.acquire(self.root, name, check=check)
        try:
            yield
        finally:
            os.close(descriptor)

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """While the block runs, `collect.gc` of other processes spares what was used in the last day."""
        try:
            descriptor = locks.acquire(self.root, locks.IN_USE, shared=True)
        except OSError:  # a read-only store: whoever can collect it cannot be excluded, and nothing is lost
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
            descriptor, name = tempfile.mkstemp(dir=directory, prefix=_OURS)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                if locks.is_same_file(descriptor, Path(name)):  # else gc removed it before it was locked
                    return Path(name), descriptor
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _record_path(self, kind: str, key: str) -> Path:
        return self.root / "records" / locks.file_name(kind) / locks.file_name(key)


def partial_lock(digest: Digest) -> str:
    """The name of the lock that whoever downloads `digest` holds."""
    return f"fetch-{digest.hex}"


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


def read_record(path: Path) -> dict[str, Any] | None:
    """The document in a file; None if there is none, or it is damaged."""
    try:
        document = json.loads(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, ValueError, RecursionError):
        return None
    return document if isinstance(document, dict) else None


def objects_of(document: Mapping[str, Any]) -> list[Digest]:
    """The objects that a record speaks about."""
    listed = document.get("objects", ())
    if not isinstance(listed, list):
        return []
    found = []
    for text in listed:
        with suppress(ValueError, TypeError):
            found.append(Digest.parse(text))
    return found


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
        if isinstance(error.filename, (str, os.PathLike)) and not _is_of(root, Path(error.filename)):
            raise
        if error.errno in _FULL:
            raise StoreError(
                f"{root}: the store is full: {error.strerror}",
                hint=MAKE_ROOM,
            ) from error
        if error.errno in locks.LOCKLESS:
            raise StoreError(
                f"{root}: the store cannot be used: its file system has no locks ({error.strerror})",
                hint="name a place on a local disk with XDG_CACHE_HOME or --cache, or mount it with locks (Lustre: -o flock)",
            ) from error
        if error.errno in _FORBIDDEN:
            raise StoreError(
                f"{error.filename or root}: the store cannot be used: {error.strerror}",
                hint=f"make {root} writable for you, or name another place with XDG_CACHE_HOME",
            ) from error
        raise


def _is_of(root: Path, path: Path) -> bool:
    """Whether it is the store, in it, or a folder that it is in."""
    return path.is_relative_to(root) or root.is_relative_to(path)
