"""A folder with the files of a model: made beside its place, and put there in one step.

The files are reflinks of those in the store where the file system knows them, else hard links, else copies. `.build/model.json`
in the folder says what it holds. Whoever has files of the old folder open keeps them.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import shutil
import stat
import tempfile
from collections.abc import Container, Iterator, Sequence
from contextlib import contextmanager, suppress
from enum import StrEnum
from pathlib import Path
from typing import Any

from builder.errors import BuilderError
from builder.models.values import INDEX_PATH, ModelFile
from builder.oci.digest import Digest
from builder.progress import human_size
from builder.store import Store, free_bytes
from builder.store.locks import hold_where_possible

MARKER = str(Path(INDEX_PATH).with_name("model.json"))
"""Where a folder says which model it holds."""

_CHANGING = str(Path(MARKER).with_name("changing"))
"""What is in a folder that cannot be replaced while its files change one by one: they are a model's, whoever is interrupted."""

_FICLONE = 0x40049409  # linux/fs.h
_RENAME_EXCHANGE = 2  # linux/fs.h
_AT_FDCWD = -100
_NO_LINKS = frozenset({errno.EXDEV, errno.EPERM, errno.EMLINK, errno.ENOTSUP, errno.EACCES, errno.ENOSYS})
_NO_EXCHANGE = frozenset({errno.EINVAL, errno.ENOSYS, errno.ENOTSUP, errno.EPERM})
_STAGED = ".pull-"
_OURS = frozenset({".build", "lost+found"})
_NEW_FOLDER = 0o755


class FolderError(BuilderError):
    """The folder for a model cannot be made, or is something else."""


class How(StrEnum):
    """How files get from the store into a folder."""

    AUTO = "auto"
    REFLINK = "reflink"
    HARD = "hard"
    COPY = "copy"


def held(folder: Path) -> dict[str, Any] | None:
    """What the folder says that it holds; None if it does not say."""
    try:
        document = json.loads((folder / MARKER).read_bytes())
        files = {str(path): (int(size), str(digest)) for path, size, digest in document["files"]}
        return {"digest": str(document["digest"]), "files": files}
    except (OSError, ValueError, TypeError, KeyError, RecursionError):
        return None


def is_whole(folder: Path, digest: Digest, files: Sequence[ModelFile], *, read: bool = False) -> bool:
    """Whether the folder holds just these files of that model: by names and sizes, and by digests if `read` says so."""
    found = held(folder)
    if found is None or found["digest"] != str(digest):
        return False
    if found["files"] != {file.path: (file.size, file.sha256) for file in files}:
        return False
    return all(_is_file(folder / file.path, file, read) for file in files)


def check(folder: Path, force: bool, *, replaced: bool = False) -> None:
    """Raises `FolderError` where a model must not go: what is there is no folder, or somebody's other files, if `replaced` says
    that they would be gone also those beside a pulled model."""
    try:
        info = folder.lstat()
    except FileNotFoundError:
        return
    except OSError as error:
        raise FolderError(f"{folder}: cannot be used: {error.strerror}", hint="name another folder") from error
    if not stat.S_ISDIR(info.st_mode):
        raise FolderError(f"{folder}: is there, and is no folder", hint="name another one, or remove it")
    if force or (folder / _CHANGING).exists():
        return
    now = held(folder)
    if now is None and set(os.listdir(folder)) - _OURS:
        raise FolderError(
            f"{folder}: holds files that are of no pulled model",
            hint="name another folder, or add --force, which replaces it",
        )
    if now is not None and replaced and (other := next(_others(folder, now["files"]), None)):
        raise FolderError(
            f"{folder}: another model would replace it, and {other} is of none",
            hint="move it away, or name another folder, or add --force, which removes it",
        )


def place(store: Store, digest: Digest, files: Sequence[ModelFile], folder: Path, how: How, *, force: bool) -> How:
    """The folder holds these files of the model `digest` afterwards, and nothing else; returns how most bytes came there.

    Readers see the old folder or the new one. Where it is a mount point, or the file system cannot exchange folders, files
    change one by one, and the marker, which is gone meanwhile, is there again last. Raises `FolderError`.
    """
    folder = Path(os.path.abspath(folder))
    with _explained(folder):
        folder.parent.mkdir(parents=True, exist_ok=True)
        inside = folder.is_mount()
        with _staging(folder, inside) as staged:
            ways = _fill(store, digest, files, staged, how)
            with _alone(folder.parent):
                check(folder, force, replaced=True)
                if inside:
                    _pour(staged, folder)
                else:
                    _swap(staged, folder)
    return max(ways, key=lambda way: ways[way])


def _others(folder: Path, known: Container[str]) -> Iterator[str]:
    """The files in a folder that are not known; NFS keeps files that are open under names of its own."""
    for parent, folders, names in os.walk(folder):
        inner = Path(parent).relative_to(folder)
        if inner == Path():
            folders[:] = sorted(set(folders) - _OURS)
        links = [name for name in folders if os.path.islink(os.path.join(parent, name))]
        for name in sorted([*names, *links]):
            if (inner / name).as_posix() not in known and not name.startswith(".nfs"):
                yield (inner / name).as_posix()


def _is_file(path: Path, file: ModelFile, read: bool) -> bool:
    try:
        info = path.lstat()
        if not stat.S_ISREG(info.st_mode) or info.st_size != file.size:
            return False
        if not read:
            return True
        from builder.store import hash_of

        with path.open("rb") as opened:
            return hash_of(opened.fileno()).hex == file.sha256
    except OSError:
        return False


def _fill(store: Store, digest: Digest, files: Sequence[ModelFile], staged: Path, how: How) -> dict[How, int]:
    ways = dict.fromkeys((How.COPY, How.HARD, How.REFLINK), 0)
    for file in files:
        target = staged / file.path
        target.parent.mkdir(parents=True, exist_ok=True)
        ways[_bring(store.path(Digest(file.sha256)), target, how)] += file.size + 1
    marker = staged / MARKER
    marker.parent.mkdir(exist_ok=True)
    listed = [[file.path, file.size, file.sha256] for file in files]
    document = {"digest": str(digest), "files": listed, "version": 1}
    with marker.open("w", encoding="utf-8") as opened:
        json.dump(document, opened, ensure_ascii=False, indent=1)
        opened.flush()
        os.fsync(opened.fileno())
    for parent, _, _ in os.walk(staged):
        Path(parent).chmod(_NEW_FOLDER)
        _sync(Path(parent))
    return ways


def _bring(source: Path, target: Path, how: How) -> How:
    """One file."""
    if how in (How.AUTO, How.REFLINK) and _reflinked(source, target, must=how is How.REFLINK):
        return How.REFLINK
    if how in (How.AUTO, How.HARD):
        try:
            os.link(source, target)
            return How.HARD
        except OSError as error:
            if how is How.HARD or error.errno not in _NO_LINKS:
                raise
    needed = source.stat().st_size
    if (free := free_bytes(target.parent)) < needed:
        said = f"no space is left: {human_size(needed)} are needed for {target.name} and {human_size(free)} are free"
        raise OSError(errno.ENOSPC, said, str(target))
    with source.open("rb") as read, target.open("xb") as write:
        shutil.copyfileobj(read, write, 1 << 20)
        write.flush()
        os.fchmod(write.fileno(), 0o644)
        os.fsync(write.fileno())
    return How.COPY


def _reflinked(source: Path, target: Path, *, must: bool) -> bool:
    with source.open("rb") as read, target.open("xb") as write:
        try:
            fcntl.ioctl(write.fileno(), _FICLONE, read.fileno())
            os.fchmod(write.fileno(), 0o644)
            os.fsync(write.fileno())
            return True
        except OSError:
            if must:
                raise
    target.unlink()
    return False


@contextmanager
def _staging(folder: Path, inside: bool) -> Iterator[Path]:
    """A new folder on the file system where it will be needed; what killed processes left of such is removed."""
    parent, prefix = (folder / ".build", _STAGED) if inside else (folder.parent, f".{folder.name}{_STAGED}")
    parent.mkdir(exist_ok=True)
    with _alone(parent):  # nobody sweeps it away before it is locked
        _sweep(parent, prefix)
        staged = Path(tempfile.mkdtemp(dir=parent, prefix=prefix))
        descriptor = os.open(staged, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        hold_where_possible(descriptor, fcntl.LOCK_SH)
    try:
        made = staged / "new"
        made.mkdir()
        yield made
    finally:
        _remove(staged)
        os.close(descriptor)


def _sweep(parent: Path, prefix: str) -> None:
    for left in parent.glob(f"{prefix}*"):
        with suppress(OSError):
            descriptor = os.open(left, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(left)
            finally:
                os.close(descriptor)


def _swap(staged: Path, folder: Path) -> None:
    """The new folder gets its name; an old one is where the new one was then."""
    if folder.exists():
        if not _exchange(staged, folder):
            folder.rename(staged.with_name("old"))
            staged.rename(folder)
    else:
        staged.rename(folder)
    _sync(folder.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Two folders swap their names in one step; false where the system cannot do that."""
    import ctypes  # takes long to import, and only a model that changes needs it

    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        return False
    if not libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE):
        return True
    number = ctypes.get_errno()
    if number not in _NO_EXCHANGE:
        raise OSError(number, os.strerror(number), str(other))
    return False


def _pour(staged: Path, folder: Path) -> None:
    """File by file into a folder that cannot be replaced, the marker last."""
    marker = folder / MARKER
    (folder / _CHANGING).touch()
    marker.unlink(missing_ok=True)
    new = {path.relative_to(staged) for path in staged.rglob("*") if not path.is_dir()}
    for path in sorted(new - {Path(MARKER)}):
        target = folder / path
        if target.is_dir() and not target.is_symlink():
            shutil.rmtree(target)
        for parent in reversed(target.parents):
            if parent.is_relative_to(folder) and parent != folder and (parent.is_symlink() or parent.is_file()):
                parent.unlink()
        target.parent.mkdir(parents=True, exist_ok=True)
        (staged / path).replace(target)
    ours = {staged.parent.relative_to(folder), Path(".build"), Path(_CHANGING)}
    kept = new | {parent for path in new for parent in path.parents} | ours
    for found in sorted(folder.rglob("*"), reverse=True):
        path = found.relative_to(folder)
        if path in kept or found.is_relative_to(staged.parent) or path.parts[0] == "lost+found":
            continue
        if found.is_dir() and not found.is_symlink():
            with suppress(OSError):
                found.rmdir()
        else:
            found.unlink()
    (staged / MARKER).replace(marker)
    (folder / _CHANGING).unlink()
    _sync(folder)


def _remove(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Keeps others out while something in the folder changes its name."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        hold_where_possible(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def _explained(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        hint = "choose a folder that can be written, or another --link"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            hint = "free some space there, or let cache and folder be on one file system, so that no copy is needed"
        raise FolderError(f"{folder}: cannot be written: {error.strerror or error}", hint=hint) from error
