"""A folder that a measured start has for itself, and what is left of starts that were killed: found, ended, unmounted, removed.

A start holds a lock on its folder while it lives. A folder that nobody holds is what is left of one that does not.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from builder import process
from builder.errors import BuilderError

_LOCK = ".lock"
_PATIENCE = 5.0


class StateError(BuilderError):
    """The folder of a start cannot be made, or what a killed start left cannot be cleared away."""

    hint = "choose another folder with --state, on a file system of this machine"


@contextmanager
def state(parent: Path) -> Iterator[Path]:
    """A new folder below `parent` for the length of a `with` block; nothing of it is left after, neither processes nor mounts.

    Its name is that of containerd's namespace, too, by which the cgroups of its containers are known.
    """
    parent = parent.resolve()  # containerd takes no relative path, and the kernel tells no other
    folder = parent / f"layerwright-{os.getpid()}-{time.monotonic_ns():x}"
    try:
        parent.mkdir(parents=True, exist_ok=True)
        lock = (parent / f"{folder.name}{_LOCK}").open("w")
        fcntl.flock(lock, fcntl.LOCK_EX)
        folder.mkdir(mode=0o711)
    except OSError as error:
        raise StateError(f"{parent}: {error.strerror}") from error
    with lock:
        try:
            yield folder
        finally:
            clear(folder)
            Path(lock.name).unlink(missing_ok=True)


def sweep(parent: Path) -> list[Path]:
    """Clears away what killed starts left below `parent`; the folders that were."""
    cleared = []
    for path in sorted(parent.resolve().glob(f"layerwright-*{_LOCK}")):
        folder = path.with_name(path.name.removesuffix(_LOCK))
        with path.open() as lock, suppress(BlockingIOError):
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            clear(folder)
            path.unlink(missing_ok=True)
            cleared.append(folder)
    return cleared


def clear(folder: Path) -> None:
    """Ends all processes that speak of the folder, unmounts all that is mounted in it, and removes it."""
    _end(folder)
    for _ in range(3):  # what was mounted over may show up only then
        for place in mounts(folder):
            process.run(["umount", "--lazy", str(place)], accept=range(256))
        if not mounts(folder):
            break
    if left := mounts(folder):
        raise StateError(f"{folder}: still mounted: {', '.join(map(str, left))}", hint="unmount it: umount --lazy")
    shutil.rmtree(folder, ignore_errors=True)
    if folder.exists():
        raise StateError(f"{folder}: cannot be removed", hint="remove it by hand")


def mounts(folder: Path) -> list[Path]:
    """What is mounted below a folder, the deepest first (proc(5), /proc/self/mountinfo)."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            place = Path(_unescaped(line.split(" ")[4]))
            if place.is_relative_to(folder):
                found.append(place)
    return sorted(found, key=lambda place: len(place.parts), reverse=True)


def processes(folder: Path) -> list[int]:
    """The processes, other than this one, whose command line has the folder's path or whose cgroup has its name."""
    found = []
    path, name = os.fsencode(folder), f"/{folder.name}/"
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if path in (entry / "cmdline").read_bytes() or name in (entry / "cgroup").read_text():
                    found.append(int(entry.name))
    return found


def _end(folder: Path) -> None:
    until = time.monotonic() + _PATIENCE
    for sent in (signal.SIGTERM, signal.SIGKILL):
        for pid in processes(folder):
            with suppress(ProcessLookupError, PermissionError):
                os.kill(pid, sent)
        while processes(folder) and time.monotonic() < until:
            time.sleep(0.02)
        until += _PATIENCE


def _unescaped(text: str) -> str:
    """A path as the kernel writes it: space, tab, newline and backslash in octal."""
    for code, character in (("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")):
        text = text.replace(code, character)
    return text
