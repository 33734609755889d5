"""Which files a container opens, and when: the kernel tells it (fanotify(7)) of the container's root, whoever is in it.

The root is an overlay that containerd's shim mounts when the task is made; it is watched from that moment on, before anything of
the image runs. To be told of a file opens it once more, so that watching costs the snapshotter a little, on another core.
"""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
import time
from pathlib import Path
from types import TracebackType

_CLOEXEC, _NONBLOCK, _UNLIMITED_QUEUE = 0x1, 0x2, 0x10
_MARK_ADD, _MARK_FILESYSTEM = 0x1, 0x100
_OPEN = 0x20
_EVENT = struct.Struct("@IBBHQii")  # fanotify_event_metadata
_BUFFER = 64 * _EVENT.size
"""Each event that is read is an open file for a moment: few at once, since processes may have few."""
_MOST = 1_000_000
_TABLE = "/proc/self/mountinfo"
_LOOK = 20  # milliseconds, in case the table of mounts has changed before it is watched
_BATCH = 0.002
_PATIENCE = 3.0


class Opened:
    """Watches the root of the container `name` below `folder` for the length of a `with` block, on a thread of its own.

    `times` has when each file was opened first, in seconds of `time.monotonic` (2 ms coarse), by its path; None where the kernel
    does not let us watch. Folders do not count, nor what is opened after a million files.
    """

    def __init__(self, folder: Path, name: str) -> None:
        self._folder, self._name = folder, name
        self._found: dict[str, float] = {}
        self._watched = False
        self._end, self._ended = os.pipe()
        self._thread = threading.Thread(target=self._work, daemon=True)

    def __enter__(self) -> Opened:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        if not self._thread.is_alive():
            os.close(self._ended)
            os.close(self._end)

    def stop(self) -> None:
        """Watches no longer: nothing that could hold a mount is open after. A thread that waits for a file of a snapshotter that
        hangs, for events are open files, is left to itself until that is killed."""
        if self._thread.is_alive():
            os.write(self._ended, b".")
            self._thread.join(_PATIENCE)

    @property
    def times(self) -> dict[str, float] | None:
        """What was opened so far."""
        return dict(self._found) if self._watched else None

    def _work(self) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK
        queue = libc.fanotify_init(_CLOEXEC | _NONBLOCK | _UNLIMITED_QUEUE, flags)
        if queue < 0:  # not root, or a kernel without it
            return
        try:
            root = self._root()
            if root is None:
                return
            marked = libc.fanotify_mark(
                queue, _MARK_ADD | _MARK_FILESYSTEM, ctypes.c_uint64(_OPEN), -1, os.fsencode(root)
            )
            if marked == 0:
                self._watched = True
                self._listen(queue)
        finally:
            os.close(queue)

    def _root(self) -> Path | None:
        """The container's root, once it is mounted; None if watching ends before."""
        with open(_TABLE, encoding="utf-8", errors="surrogateescape") as table:
            changes = select.poll()
            changes.register(table, select.POLLPRI)
            changes.register(self._end, select.POLLIN)
            while True:
                table.seek(0)
                for line in table:
                    place = Path(line.split(" ")[4])
                    if place.parts[-2:] == (self._name, "rootfs") and place.is_relative_to(self._folder):
                        return place
                if any(descriptor == self._end for descriptor, _ in changes.poll(_LOOK)):
                    return None

    def _listen(self, queue: int) -> None:
        events = select.poll()
        events.register(queue, select.POLLIN)
        events.register(self._end, select.POLLIN)
        going = True
        while going:
            going = not any(descriptor == self._end for descriptor, _ in events.poll())
            now = time.monotonic()
            while True:
                try:
                    self._note(os.read(queue, _BUFFER), now)
                except BlockingIOError:
                    break
                except OSError:  # one that cannot be opened once more; those after it can
                    continue
            if going:
                time.sleep(_BATCH)

    def _note(self, data: bytes, now: float) -> None:
        at = 0
        while at + _EVENT.size <= len(data):
            length, _, _, _, _, descriptor, _ = _EVENT.unpack_from(data, at)
            at += max(length, _EVENT.size)
            if descriptor >= 0:
                try:
                    if len(self._found) < _MOST:
                        self._found.setdefault(os.readlink(f"/proc/self/fd/{descriptor}"), now)
                finally:
                    os.close(descriptor)
