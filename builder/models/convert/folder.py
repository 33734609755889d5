"""A converted model as a folder of its own, which appears when it is complete."""

from __future__ import annotations

import fcntl
import glob
import hashlib
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path

from builder.errors import UsageError
from builder.models.convert.converting import Overflow, conversion
from builder.models.convert.report import Conversion, Precision, moved
from builder.models.values import BadModelError, LocalModelFile

_BLOCK = 4 << 20


def convert_into(
    files: Sequence[LocalModelFile],
    precision: Precision,
    target: Path,
    *,
    overflow: Overflow = "error",
    tables: bool | None = None,
    hashed: bool = True,
    advance: Callable[[int], None] = lambda _: None,
) -> Conversion:
    """The model in another precision as the new folder `target`, with copies of the files that are not converted.

    Raises what `conversion` raises, and `UsageError` where there is something called `target` already.
    """
    _check_free(target)
    target.parent.mkdir(parents=True, exist_ok=True)
    _sweep(target)
    with _workplace(target) as workplace:
        done = conversion(files, precision, workplace, overflow=overflow, tables=tables, hashed=hashed, advance=advance)
        kept = tuple(_inside(file, workplace) for file in done.files)
        workplace.chmod(0o755)
        _check_free(target)
        os.rename(workplace, target)
    return moved(replace(done, files=kept), workplace, target)


@contextmanager
def _workplace(target: Path) -> Iterator[Path]:
    """A folder beside `target`, locked as long as somebody works in it; what is left in the end is removed."""
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        descriptor = os.open(folder, os.O_RDONLY)
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        if folder.exists():  # else it was swept away before it was locked
            break
        os.close(descriptor)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(descriptor)


def _sweep(target: Path) -> None:
    """Removes what killed conversions to `target` left beside it."""
    for folder in target.parent.glob(f".{glob.escape(target.name)}.????????"):
        with suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                shutil.rmtree(folder, ignore_errors=True)
            finally:
                os.close(descriptor)


def _check_free(target: Path) -> None:
    if target.is_symlink() or (target.exists() and not (target.is_dir() and not any(target.iterdir()))):
        raise UsageError(
            f"{target}: there is something already", hint="name a folder that does not exist yet, or is empty"
        )


def _inside(file: LocalModelFile, folder: Path) -> LocalModelFile:
    """The file as it is in the folder; copied, and checked, if it is not there yet."""
    place = folder / file.file.path
    if file.location == place:
        return file
    place.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256()
    with file.location.open("rb") as source, place.open("xb") as copy:
        while block := source.read(_BLOCK):
            digest.update(block)
            copy.write(block)
    if digest.hexdigest() != file.file.sha256:
        raise BadModelError(f"{file.file.path}: it has changed", hint="run the command again")
    return replace(file, location=place)
