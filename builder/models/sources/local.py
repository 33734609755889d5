"""Models that lie in the profile's folder: read where they are, and not again while nothing touches them."""

from __future__ import annotations

import os
import stat
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from builder.errors import BuilderError, StoreError
from builder.lock import LockedModel, LockedModelFile
from builder.models import scanning
from builder.models.sources import Collected, Means, Wanted
from builder.models.sources.selection import ALWAYS_EXCLUDED, select
from builder.models.values import MAX_FILES, MAX_PATH, LocalModelFile, ModelFile
from builder.oci.digest import Digest
from builder.parallel import Stop, for_each
from builder.progress import Progress
from builder.store import Store

_KIND = "model-place"
_SETTLED = 2_000_000_000
"""A file that was written less than this many nanoseconds before it was read may be written again without a trace."""
_PULLED, _MARKER = ".build", "model.json"
"""What `build model pull` leaves in a folder, so that a pulled model can be a source again."""
_COPY = "copy the file it stands for, or exclude it"


def collect(text: str, wanted: Wanted, means: Means) -> Collected:
    """The files of a folder, or the one file; they stay where they are."""
    found = scan(means.root, text, wanted, means.store, means.progress, means.early)
    return Collected(text.rstrip("/") or ".", found)


def bring(text: str, locked: LockedModel, files: Sequence[LockedModelFile], means: Means) -> tuple[LocalModelFile, ...]:
    """Where the files lie; whoever sends them checks them."""
    top = means.root / text
    return tuple(
        LocalModelFile(ModelFile(file.path, file.size, file.sha256), top if top.is_file() else top / file.path)
        for file in files
    )


def scan(
    root: Path,
    text: str,
    wanted: Wanted,
    store: Store | None,
    progress: Progress,
    early: Callable[[Path], None] = lambda _: None,
) -> tuple[LocalModelFile, ...]:
    """What the source `text` below `root` holds now, sorted by path. What the store remembers of a file by its place, size and
    times is not read again; of others `early` is told first.

    Symlinks to files of the same folder are followed; others, devices and unreadable files are errors.
    """
    top = root / text
    try:
        _check_inside(root, top, text)
        places = dict(_walk(top, "", wanted)) if top.is_dir() else {top.name: Path(os.path.realpath(top, strict=True))}
        paths = select(places, wanted, f"models: {text}")
        return _hashed({path: places[path] for path in paths}, store, progress, early)
    except OSError as error:
        where = os.path.relpath(error.filename, root) if isinstance(error.filename, str) else text
        raise BuilderError(f"models: {where}: {error.strerror or error}", hint=missing_hint(text)) from error


def missing_hint(text: str) -> str:
    """What to do where the source `text` is not there."""
    if text.startswith(("oci:", "oci-archive:")):
        return f"`build model pull {text} DIR` makes a folder of a model in a layout; name that"
    return "name a file or folder that is there (`from` of the model, if a profile says it)"


def _check_inside(root: Path, top: Path, text: str) -> None:
    """A path that is written without `..` may not leave the profile's folder by a symlink."""
    real = Path(os.path.realpath(top))
    if ".." not in Path(text).parts and not real.is_relative_to(os.path.realpath(root)):
        raise BuilderError(
            f"models: {text} leads out of the profile's folder by a symlink, to {real}",
            hint="write the real path, with ../, if that is meant",
        )


def _walk(top: Path, below: str, wanted: Wanted) -> Iterator[tuple[str, Path]]:
    """The files below a folder: their paths in the model, and where their bytes are."""
    with os.scandir(top / below) as entries:
        found = sorted(entries, key=lambda entry: os.fsencode(entry.name))
    if len(found) > MAX_FILES:
        raise BuilderError(
            f"models: {top / below}: {len(found)} files, {MAX_FILES} are allowed", hint="name a smaller folder"
        )
    for entry in found:
        if entry.name in ALWAYS_EXCLUDED:
            continue
        relative = f"{below}/{entry.name}" if below else entry.name
        if relative == _PULLED and entry.is_dir(follow_symlinks=False) and os.listdir(entry.path) == [_MARKER]:
            continue
        if len(os.fsencode(relative)) > MAX_PATH:
            raise BuilderError(f"models: {relative[:80]}…: a path of more than {MAX_PATH} bytes", hint="exclude it")
        if entry.is_dir(follow_symlinks=False):
            yield from _walk(top, relative, wanted)
        elif entry.is_symlink():
            yield relative, _followed(top, relative)
        else:
            yield relative, top / relative


def _followed(top: Path, relative: str) -> Path:
    real = Path(os.path.realpath(top / relative))
    if not real.is_relative_to(os.path.realpath(top)):
        raise BuilderError(
            f"models: {relative!r} is a symlink that leads out of {top.name}, to {os.readlink(top / relative)!r}",
            hint=f"{_COPY}; `cp -RL` copies a folder with all that its symlinks stand for",
        )
    if real.is_dir():
        raise BuilderError(f"models: {relative!r} is a symlink to a folder", hint=_COPY)
    return real


def _hashed(
    places: dict[str, Path], store: Store | None, progress: Progress, early: Callable[[Path], None]
) -> tuple[LocalModelFile, ...]:
    for path, place in places.items():
        if not stat.S_ISREG(place.stat().st_mode):
            raise BuilderError(f"models: {path!r} is neither a file, a folder nor a symlink", hint=_COPY)
    found = {path: _remembered(place, path, store) for path, place in places.items()}
    missing = [path for path, file in found.items() if file is None]
    stop = Stop()
    if missing:
        with progress.task("read models", sum(places[path].stat().st_size for path in missing)) as task:

            def read(path: str) -> None:
                early(places[path])
                found[path] = _read(places[path], path, store, task.advance, stop)

            for error in for_each(read, missing, scanning.readers(), stop):
                raise error
    return tuple(LocalModelFile(file, places[path]) for path, file in sorted(found.items()) if file)


def _read(place: Path, path: str, store: Store | None, advance: Callable[[int], None], stop: Stop) -> ModelFile:
    scanned = scanning.scan(place, path, advance, stop)
    scanning.remember(store, scanned)
    state = _state(place)
    if store is not None and state[0] == scanned.file.size:
        try:
            if _now(store) - max(state[1], state[2]) > _SETTLED:
                store.put_record(_KIND, _key(place), {"state": state, "sha256": scanned.file.sha256})
        except StoreError:
            pass  # it is read again next time
    return scanned.file


def _remembered(place: Path, path: str, store: Store | None) -> ModelFile | None:
    record = store.record(_KIND, _key(place)) if store else None
    if not record or record.get("state") != _state(place) or not isinstance(record.get("sha256"), str):
        return None
    return ModelFile(path, place.stat().st_size, record["sha256"])


def _key(place: Path) -> str:
    return Digest.of(os.fsencode(place.absolute())).hex


def _state(place: Path) -> list[int]:
    found = place.stat()
    return [found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino]


def _now(store: Store) -> int:
    """The time as the file system has it, in nanoseconds."""
    with store.temporary() as path:
        path.write_bytes(b"")
        return path.stat().st_mtime_ns
