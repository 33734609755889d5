"""The profile's own files: what a folder holds when it is locked, and the entries that it becomes."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.errors import BuilderError
from builder.layers.merge import Origin
from builder.layers.tar import Entry, Kind, Region
from builder.lock import LockedLocal

ALWAYS_EXCLUDED = (".git", "__pycache__", ".DS_Store")
"""Names that are never copied: they differ between two checkouts of the same source."""
_SPECIAL = "copy the file it stands for, or exclude it"


@dataclass(frozen=True)
class Copy:
    """One item of a profile's `files`: `source` relative to the profile's folder, `to` absolute in the image (ending in `/`:
    into that directory), `mode` as octal text for every file or None for 0755 or 0644 by the exec bit, `exclude` globs
    over names and over paths relative to `source`."""

    source: str
    to: str
    mode: str | None = None
    exclude: tuple[str, ...] = ()


def scan(root: Path, copies: Iterable[Copy]) -> tuple[LockedLocal, ...]:
    """What the copies hold now, sorted by place in the image; every file is read and hashed.

    Directories are walked; a symlink inside one stays a symlink if it leads to a place inside of it, and is an error if not.
    Empty directories are not copied, as in git.
    """
    found: dict[str, LockedLocal] = {}
    for copy in copies:
        for local in _scan(root, copy):
            if local.to in found and found[local.to] != local:
                raise BuilderError(
                    f"{found[local.to].source} and {local.source} both become {local.to}",
                    hint="drop one, or give it another `to`",
                )
            found[local.to] = local
    return tuple(sorted(found.values(), key=lambda local: local.to.encode()))


def origins(root: Path, files: Sequence[LockedLocal]) -> tuple[Origin, ...]:
    """The entries of locked files; their content is checked against the lock while it is packed."""
    return tuple(Origin(file.source, (_entry(root, file),)) for file in files)


def image_path(to: str) -> str:
    """Where an absolute path of a profile lies in an image whose /bin, /sbin and /lib are links into /usr."""
    path = to.strip("/")
    top = path.partition("/")[0]
    return f"usr/{path}" if top in ("bin", "sbin", "lib", "lib64") and path != top else path


def _entry(root: Path, file: LockedLocal) -> Entry:
    path = image_path(file.to)
    if file.target is not None:
        return Entry(path, Kind.SYMLINK, 0o777, linkname=file.target)
    assert file.sha256 is not None
    assert file.size is not None
    content = Region(root / file.source, 0, file.size, file.source, recorded=("sha256", file.sha256))
    return Entry(path, mode=int(file.mode, 8), content=content)


def _scan(root: Path, copy: Copy) -> Iterator[LockedLocal]:
    top = root / copy.source
    try:
        _check_inside(root, top, copy.source)
        if top.is_dir():
            for relative in _walk(top, "", copy.exclude):
                to = f"{copy.to.rstrip('/')}/{relative}"
                yield _local(top / relative, f"{copy.source.rstrip('/')}/{relative}", to, copy.mode, top)
        else:
            to = copy.to + top.name if copy.to.endswith("/") else copy.to
            yield _local(Path(os.path.realpath(top, strict=True)), copy.source, to, copy.mode, top)
    except OSError as error:
        where = os.path.relpath(error.filename, root) if isinstance(error.filename, str) else copy.source
        raise BuilderError(
            f"files: {where}: {error.strerror or error}", hint="correct `from` in the profile"
        ) from error


def _check_inside(root: Path, top: Path, source: str) -> None:
    """A path that is written without `..` may not leave the profile's folder by a symlink."""
    if ".." not in Path(source).parts and not _real(top).is_relative_to(_real(root)):
        raise BuilderError(
            f"files: {source} leads out of the profile's folder by a symlink, to {_real(top)}",
            hint="write the real path, with ../, if that is meant",
        )


def _walk(top: Path, below: str, exclude: Sequence[str]) -> Iterator[str]:
    """Relative paths of all that is not a directory."""
    with os.scandir(top / below) as listed:
        items = sorted(listed, key=lambda item: os.fsencode(item.name))
    for item in items:
        relative = f"{below}/{item.name}" if below else item.name
        if item.name in ALWAYS_EXCLUDED or _matches(relative, item.name, exclude):
            continue
        if item.is_dir(follow_symlinks=False):
            yield from _walk(top, relative, exclude)
        else:
            yield relative


def _matches(relative: str, name: str, exclude: Sequence[str]) -> bool:
    return any(
        fnmatch.fnmatchcase(name, pattern.rstrip("/")) or fnmatch.fnmatchcase(relative, pattern.strip("/"))
        for pattern in exclude
    )


def _local(path: Path, source: str, to: str, mode: str | None, top: Path) -> LockedLocal:
    _check_encodable(to, source)
    status = path.lstat()
    if stat.S_ISLNK(status.st_mode):
        return LockedLocal(to, source, "0777", target=_target(path, source, top))
    if not stat.S_ISREG(status.st_mode):
        raise BuilderError(f"files: {source} is neither a file, a directory nor a symlink", hint=_SPECIAL)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        size = os.fstat(file.fileno()).st_size
    return LockedLocal(to, source, mode or ("0755" if status.st_mode & 0o100 else "0644"), digest, size)


def _target(path: Path, source: str, top: Path) -> str:
    target = os.readlink(path)
    climbs = os.path.isabs(target) or _climbs(target, len(path.relative_to(top).parts) - 1)
    if climbs or not _real(path).is_relative_to(_real(top)):
        raise BuilderError(f"files: {source} is a symlink that leads out of {top.name}, to {target!r}", hint=_SPECIAL)
    _check_encodable(target, f"{source}: the target of this symlink")
    return target


def _climbs(target: str, depth: int) -> bool:
    """Whether a target that is read `depth` folders below the top leads above it, even if only to come back by name: in the
    image the top has another name."""
    for part in target.split("/"):
        depth += -1 if part == ".." else part not in ("", ".")
        if depth < 0:
            return True
    return False


def _real(path: Path) -> Path:
    """Where a path leads; a chain of symlinks without an end leads to itself, where Path.resolve would raise."""
    return Path(os.path.realpath(path))


def _check_encodable(text: str, what: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise BuilderError(f"files: {what!r} is not UTF-8", hint="rename it, or exclude it") from error
