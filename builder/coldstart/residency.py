"""Which parts of which files of lazily mounted layers the kernel has fetched: its page cache is asked, file by file.

The snapshotter logs the path of every read (its option `log_fuse_operations`); mincore(2) then tells which pages of such a
file are in memory. Asking fetches nothing. It is asked again and again while a start goes on: a machine that is short of memory
drops pages that were read.
"""

from __future__ import annotations

import ctypes
import json
import mmap
import os
import stat
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from builder.coldstart.trace import VERSION, Trace, TracedFile, merged, traced

_READS = frozenset({"file.Read", "node.Open"})
_PAGE = mmap.PAGESIZE
_WINDOW = 256 << 20
_EVERY = 0.3
_SHARE = 4  # of the time that looking takes, at least so much passes before the next look


@contextmanager
def watching(folder: Path, log: Path, platform: str) -> Iterator[Callable[[], Trace]]:
    """For the length of the block it is noted what is read of the layers below `folder`, by a thread; what is yielded looks a
    last time and tells all of it. Raises what looking raised."""
    found = Trace(VERSION, platform)
    guard = threading.Lock()
    ended = threading.Event()
    failures: list[Exception] = []

    def look() -> Trace:
        nonlocal found
        with guard:
            seen = resident(layers(folder), reads(log)) if log.exists() else ()
            found = merged([found, Trace(VERSION, platform, tuple(seen))])
            return found

    def work() -> None:
        pause = _EVERY
        while not ended.wait(pause):
            begun = time.monotonic()
            try:
                look()
            except OSError:  # a mount that has just gone
                pass
            except Exception as error:
                failures.append(error)
                return
            pause = max(_EVERY, _SHARE * (time.monotonic() - begun))

    def last() -> Trace:
        for failure in failures:
            raise failure
        return look()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        yield last
    finally:
        ended.set()
        thread.join()


def reads(log: Path) -> tuple[str, ...]:
    """The paths that the snapshotter's log says were opened or read, in the order of the first time, each once."""
    found: dict[str, None] = {}
    with log.open("rb") as lines:
        for line in lines:
            if b"FUSE operation" in line:
                try:
                    entry = json.loads(line)
                except ValueError:  # a line that was cut off
                    continue
                if entry.get("operation") in _READS and isinstance(entry.get("path"), str):
                    found.setdefault(entry["path"].strip("/"))
    return tuple(found)


def layers(folder: Path) -> tuple[Path, ...]:
    """Where the layers are mounted lazily below a snapshotter's folder (proc(5), /proc/self/mountinfo)."""
    found = []
    with open("/proc/self/mountinfo", encoding="utf-8", errors="surrogateescape") as table:
        for line in table:
            fields, _, kind = line.partition(" - ")
            place = Path(fields.split(" ")[4])
            if kind.startswith("fuse") and place.is_relative_to(folder):
                found.append(place)
    return tuple(sorted(found))


def without_readahead(mounts: Sequence[Path]) -> bool:
    """Has the kernel fetch from these mounts what programs read, and nothing around it (sysfs-class-bdi). False where it
    cannot be told: sysfs is read-only in many containers."""
    for place in mounts:
        device = place.stat().st_dev
        try:
            Path(f"/sys/class/bdi/{os.major(device)}:{os.minor(device)}/read_ahead_kb").write_text("0")
        except OSError:
            return False
    return True


def resident(mounts: Sequence[Path], paths: Sequence[str]) -> Iterator[TracedFile]:
    """The files of these paths of which something is in memory, with the parts that are."""
    libc = ctypes.CDLL(None, use_errno=True)
    for path in paths:
        for place in mounts:
            try:
                descriptor = os.open(place / path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
            except OSError:
                continue
            try:
                found = os.fstat(descriptor)
                if stat.S_ISREG(found.st_mode) and found.st_size:
                    pages = list(_pages(libc, descriptor, found.st_size))
                    if pages:
                        yield traced(path, found.st_size, pages)
            finally:
                os.close(descriptor)


def _pages(libc: ctypes.CDLL, descriptor: int, size: int) -> Iterator[tuple[int, int]]:
    """The parts of a file that are in memory, in bytes."""
    begun = None
    for offset in range(0, size, _WINDOW):
        length = min(_WINDOW, size - offset)
        table = (ctypes.c_ubyte * (-(-length // _PAGE)))()
        with mmap.mmap(descriptor, length, access=mmap.ACCESS_COPY, offset=offset) as mapped:
            view = (ctypes.c_char * length).from_buffer(mapped)
            failed = libc.mincore(ctypes.c_void_p(ctypes.addressof(view)), ctypes.c_size_t(length), table)
            del view  # a map that is referred to cannot be closed
        if failed:
            raise OSError(ctypes.get_errno(), "mincore")
        for number, flags in enumerate(bytes(table)):
            at = offset + number * _PAGE
            if flags & 1 and begun is None:
                begun = at
            elif not flags & 1 and begun is not None:
                yield begun, at
                begun = None
    if begun is not None:
        yield begun, size
