#!/opt/venv/bin/python -IS
"""Starts a program, while a process beside it reads what the program is about to read, from many places at once.

The program keeps this process: its id, its signals, its exit status. The reader ends by itself: when all is read, after
DEADLINE seconds, or at once if none of the first PROBES reads takes LOCAL seconds, since then the files must be here.
LAYERWRIGHT_READAHEAD=0 turns it off.

A module that is imported here comes over the network, too, before anything is read: so these are modules that Python has
in itself, and the list, which is JSON with a row on each line, is read without a parser. A path with a backslash is left out.
"""

import _thread
import os
import sys
import time

THREADS, PIECE, MOST = 32, 1 << 20, 1 << 17
PROBES, LOCAL = 16, 0.0015
DEADLINE = 60.0


def pieces(data):
    """What is read, as (path, offset, length), the last first; no more than MOST pieces."""
    found = []
    for row in data.splitlines():
        path, _, rest = row.rstrip(b"],").rpartition(b'",')
        if path.startswith(b'["/') and b"\\" not in path:
            start, _, end = rest.partition(b",")
            at, end = int(start), int(end)
            while at < end and len(found) < MOST:
                found.append((path[2:], at, min(PIECE, end - at)))
                at += PIECE
    return found[::-1]


def read_ahead():
    until = time.monotonic() + DEADLINE
    file = os.open(os.path.join(os.path.dirname(__file__), "readahead.json"), os.O_RDONLY)
    data = b""
    while piece := os.read(file, 1 << 20):
        data += piece
    waiting = pieces(data)
    times = []

    def work(working):
        try:
            read()
        finally:
            working.release()

    def read():
        buffer = memoryview(bytearray(PIECE))
        while waiting and time.monotonic() < until:
            begun = time.monotonic()
            try:
                path, at, size = waiting.pop()
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.preadv(file, [buffer[:size]], at)
                finally:
                    os.close(file)
            except (OSError, OverflowError, IndexError):
                continue
            if len(times) < PROBES:
                times.append(time.monotonic() - begun)
                if len(times) == PROBES and max(times) < LOCAL:
                    waiting.clear()

    threads = []
    for _ in range(min(THREADS, len(waiting))):
        working = _thread.allocate_lock()
        working.acquire()
        try:
            _thread.start_new_thread(work, (working,))
        except RuntimeError:
            break  # there may be no more threads: those that there are read all
        threads.append(working)
    for working in threads:
        working.acquire(timeout=max(0.0, until - time.monotonic()))


def begin():
    """A process of its own reads; it keeps nothing open that is the program's."""
    if os.environ.get("LAYERWRIGHT_READAHEAD", "1") == "0":
        return
    try:
        if os.fork():
            return
    except OSError:
        return  # there may be no more processes: nothing is read ahead, then
    try:
        os.setsid()
        os.closerange(0, 1024)
        for _ in range(3):
            os.open(os.devnull, os.O_RDWR)
        read_ahead()
    finally:
        os._exit(0)


def main():
    command = sys.argv[1:]
    if not command:
        sys.exit("start: no program is named")
    begin()
    try:
        os.execvp(command[0], command)
    except OSError as error:
        sys.stderr.write(f"start: {command[0]}: {error.strerror}\n")
        sys.exit(127 if isinstance(error, FileNotFoundError) else 126)


main()
