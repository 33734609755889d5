"""Locks between processes and between threads: files under the store's `locks`, held as long as they are open."""

from __future__ import annotations

import errno
import fcntl
import os
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from builder.oci.digest import Digest

IN_USE = "in-use"
"""Shared by all who work in the store; whoever removes things asks for it alone."""

_PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,199}")
_POLL = 0.1
LOCKLESS = frozenset({errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP})
"""What locking says on a file system that has no locks, such as Lustre as it is usually mounted."""


def acquire(root: Path, name: str, *, shared: bool = False, check: Callable[[], None] | None = None) -> int:
    """A descriptor that holds the lock until it is closed; waits for it.

    `check` is called now and then while waiting, and may raise to give up.
    """
    if check is None:
        return _hold(root, name, fcntl.LOCK_SH if shared else fcntl.LOCK_EX)
    while (descriptor := attempt(root, name)) is None:
        check()
        time.sleep(_POLL)
    return descriptor


def attempt(root: Path, name: str) -> int | None:
    """Like `acquire`, but None if somebody else holds the lock."""
    try:
        return _hold(root, name, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return None


def is_held(path: Path) -> bool:
    """Whether somebody holds a lock on that very file."""
    try:
        descriptor = _opened(path)
    except FileNotFoundError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    finally:
        os.close(descriptor)
    return False


def remove_idle(root: Path) -> None:
    """Removes the files of locks that nobody holds."""
    with suppress(FileNotFoundError):
        for path in list((root / "locks").iterdir()):
            if (descriptor := attempt(root, path.name)) is not None:
                path.unlink(missing_ok=True)  # whoever waits for it sees that its file is gone, and starts over
                os.close(descriptor)


def is_same_file(descriptor: int, path: Path) -> bool:
    """Whether `path` still names the open file."""
    try:
        return os.path.samestat(os.fstat(descriptor), path.stat())
    except FileNotFoundError:
        return False


def hold_where_possible(descriptor: int, operation: int) -> None:
    """Locks an open file or folder; where its file system has no locks, nobody is kept out."""
    try:
        fcntl.flock(descriptor, operation)
    except OSError as error:
        if error.errno not in LOCKLESS:
            raise


def file_name(name: str) -> str:
    """`name` itself where that is a harmless file name, else its digest."""
    return name if _PLAIN_NAME.fullmatch(name) else Digest.of(name.encode()).hex


def _opened(path: Path) -> int:
    try:
        return os.open(path, os.O_RDWR | os.O_CLOEXEC)  # NFS locks nothing that is open to be read only
    except PermissionError:
        return os.open(path, os.O_RDONLY | os.O_CLOEXEC)


def _hold(root: Path, name: str, operation: int) -> int:
    path = root / "locks" / file_name(name)
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        try:
            fcntl.flock(descriptor, operation)
            if is_same_file(descriptor, path):
                return descriptor
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)  # it was removed between opening and locking
