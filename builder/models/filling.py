"""A file of a model while it fills up, in any order, chunk by chunk; shared by threads and by processes.

A journal beside it tells which chunks are there: its first line is a JSON object, each further line the number of a chunk.
A chunk is written before its line is, so that whoever reads a line may read the chunk; whether it was checked before, those
who share the file agree upon. After a crash of the machine lines may be on the disk whose bytes are not: the first line
names the boot, and what is from another one does not count.
"""

from __future__ import annotations

import errno
import fcntl
import json
import mmap
import os
import struct
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from builder.oci.digest import Digest
from builder.store import hash_of, locks

_BOOT = Path("/proc/sys/kernel/random/boot_id")
_READ = 1 << 20
_FLOCK = "@hhqqi0q"  # struct flock, linux/fcntl.h
_FLAGS = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW


class Filling:
    """The file at `path`, with room for all its bytes, and the chunks of it that are there. Close it.

    `cuts` are the offsets of its chunks, and its size at the end.
    """

    def __init__(self, path: Path, cuts: Sequence[int]) -> None:
        self.path = path
        self.cuts = cuts
        self._guard = threading.Lock()
        self._have = bytearray(len(cuts) - 1)
        self._left = len(self._have)
        self._read = 0
        self._file, self._journal = self._open()

    def __enter__(self) -> Filling:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Lets go of the file; what is there stays there."""
        with self._guard:
            for descriptor in (self._file, self._journal):
                if descriptor >= 0:
                    os.close(descriptor)
            self._file = self._journal = -1

    def renew(self) -> None:
        """Lets go of the file in a forked process, whatever other threads of its parent are doing with it."""
        self._guard = threading.Lock()
        self.close()

    @property
    def size(self) -> int:
        """The bytes of the file when it is complete."""
        return self.cuts[-1]

    @property
    def complete(self) -> bool:
        """Whether every chunk is there."""
        return not self._left

    def span(self, chunk: int) -> tuple[int, int]:
        """Where the bytes of a chunk begin and end."""
        return self.cuts[chunk], self.cuts[chunk + 1]

    def missing(self, chunks: Iterable[int] | None = None) -> list[int]:
        """Those of the chunks, or of all, that are not there, as far as this process knows."""
        with self._guard:
            return [chunk for chunk in (range(len(self._have)) if chunks is None else chunks) if not self._have[chunk]]

    def refresh(self) -> None:
        """Takes note of the chunks that other processes have brought since."""
        with self._guard:
            if self._left and self._journal >= 0:
                self._take(self._journal)

    def put(self, chunk: int, *data: bytes | memoryview) -> None:
        """The bytes of a chunk, in one piece or in several that follow one another."""
        offset = self.cuts[chunk]
        for piece in data:
            self.write(offset, piece)
            offset += len(piece)
        self.mark(chunk)

    def write(self, offset: int, data: bytes | memoryview) -> None:
        """Some bytes of a chunk of which `mark` will tell."""
        write(self._file, offset, data)

    def fileno(self) -> int:
        """The file, open for others to write what `mark` will tell of."""
        return self._file

    def mark(self, chunk: int) -> None:
        """All bytes of the chunk were written."""
        with self._guard:
            os.write(self._journal, b"%d\n" % chunk)
            self._mark(chunk)

    def claim(self, chunks: Sequence[int]) -> list[int]:
        """Those of the chunks that no other process has claimed; they are this one's until `release`, or its end."""
        return [chunk for chunk in chunks if self._lock(chunk, fcntl.F_WRLCK)]

    def release(self, chunks: Sequence[int]) -> None:
        """Others may claim these chunks."""
        for chunk in chunks:
            self._lock(chunk, fcntl.F_UNLCK)

    def read(self, chunk: int, buffer: memoryview) -> int:
        """The bytes of a chunk, as they are on the disk, into `buffer`; how many there are."""
        start, end = self.span(chunk)
        reached = 0
        while reached < end - start and (
            count := os.preadv(self._file, [buffer[reached : end - start]], start + reached)
        ):
            reached += count
        return reached

    def pieces(self, start: int, end: int, buffer: memoryview) -> Iterator[memoryview]:
        """The bytes from `start` to `end`, as they are on the disk, each piece good until the next one. Raises `OSError`."""
        while start < end:
            count = os.preadv(self._file, [buffer[: end - start]], start)
            if not count:
                raise OSError(errno.EIO, "it became shorter", str(self.path))
            yield buffer[:count]
            start += count

    def digest(self) -> Digest:
        """The digest of the whole file, as it is on the disk."""
        return hash_of(self._file)

    def forget(self, chunks: Sequence[int]) -> None:
        """These chunks are not there after all. Nobody else may fill the file meanwhile."""
        with self._guard:
            for chunk in chunks:
                self._left += self._have[chunk]
                self._have[chunk] = 0
            os.ftruncate(self._journal, 0)
            self._begin(self._journal)
            kept = [chunk for chunk, there in enumerate(self._have) if there]
            os.write(self._journal, b"".join(b"%d\n" % chunk for chunk in kept))
            self._read = os.fstat(self._journal).st_size

    def map(self) -> mmap.mmap:
        """The file in memory, to read what is there; it stays readable after `close`."""
        return mmap.mmap(self._file, self.size, mmap.MAP_SHARED, mmap.PROT_READ)

    def is_current(self) -> bool:
        """Whether `path` still names this file: it may have been finished, or cleared away, by others."""
        return self._file >= 0 and locks.is_same_file(self._file, self.path)

    def settle(self) -> None:
        """Removes the journal: the file is complete and has moved on."""
        journal_of(self.path).unlink(missing_ok=True)

    def discard(self) -> None:
        """Removes the file and its journal."""
        self.settle()
        self.path.unlink(missing_ok=True)

    def _open(self) -> tuple[int, int]:
        while True:
            file = os.open(self.path, _FLAGS, 0o666)
            journal = -1
            try:
                fcntl.flock(file, fcntl.LOCK_EX)
                if locks.is_same_file(file, self.path):
                    journal = os.open(journal_of(self.path), _FLAGS | os.O_APPEND, 0o666)
                    if self._resume(file, journal):
                        fcntl.flock(file, fcntl.LOCK_UN)
                        return file, journal
                    # others may have it in memory: it is not changed, but another one takes its place
                    self.discard()
                    os.close(journal)
            except BaseException:
                os.close(file)
                if journal >= 0:
                    os.close(journal)
                raise
            os.close(file)  # else it was finished between opening and locking

    def _resume(self, file: int, journal: int) -> bool:
        """Takes what is there; false if that is of another size, of other chunks or of another boot."""
        head = os.pread(journal, _READ, 0).partition(b"\n")[0] + b"\n"
        size = os.fstat(file).st_size
        if head == self._head() and size == self.size:
            self._read = len(head)
            self._take(journal)
            return True
        if head == b"\n" and not size:
            os.ftruncate(file, self.size)
            self._begin(journal)
            return True
        return False

    def _begin(self, journal: int) -> None:
        os.write(journal, self._head())
        self._read = len(self._head())

    def _head(self) -> bytes:
        boot = ""
        with suppress(OSError):
            boot = _BOOT.read_text().strip()
        return json.dumps({"boot": boot, "chunks": len(self._have), "size": self.size}).encode() + b"\n"

    def _take(self, journal: int) -> None:
        """Reads the lines that are new. One that is not finished does not count yet."""
        while data := os.pread(journal, _READ, self._read):
            lines, newline, _ = data.rpartition(b"\n")
            if not newline:
                return
            self._read += len(lines) + 1
            for line in lines.split(b"\n"):
                if line.isdigit() and len(line) < 12 and int(line) < len(self._have):
                    self._mark(int(line))

    def _lock(self, chunk: int, kind: int) -> bool:
        """Locks one byte of the journal for a chunk; where the file system knows no such locks, nobody is kept out."""
        try:
            fcntl.fcntl(self._journal, fcntl.F_OFD_SETLK, struct.pack(_FLOCK, kind, os.SEEK_SET, chunk, 1, 0))
        except OSError as error:
            return error.errno not in (errno.EAGAIN, errno.EACCES)
        return True

    def _mark(self, chunk: int) -> None:
        if not self._have[chunk]:
            self._have[chunk] = 1
            self._left -= 1


def write(file: int, offset: int, data: bytes | memoryview) -> None:
    """All of `data` at this place of an open file. Raises `OSError`."""
    count = os.pwrite(file, data, offset)
    while count < len(data):
        data = memoryview(data)[count:]
        offset += count
        count = os.pwrite(file, data, offset)


def journal_of(path: Path) -> Path:
    """The journal beside a file that fills up."""
    return path.with_name(path.name + ".chunks")
