#!/opt/venv/bin/python -IS
"""Starts a program, while a process beside it reads what the program is about to read, from many places at once.

The program keeps this process: its id, its signals, its exit status. The reader ends by itself: when all is read, after
DEADLINE seconds, or at once where reads are so fast (LOCAL seconds) that the files must be here. LAYERWRIGHT_READAHEAD=0
turns it off.
"""

import os
import sys

RANGES = os.path.join(os.path.dirname(os.path.abspath(__file__)), "readahead.json")
THREADS, PIECE = 16, 1 << 20
PROBES, LOCAL = 8, 0.0015
DEADLINE = 60.0


def read_ahead():
    import json
    import threading
    import time

    until = time.monotonic() + DEADLINE
    with open(RANGES, encoding="utf-8") as listed:
        ranges = json.load(listed)
    pieces = [
        (path, at, min(PIECE, end - at))
        for path, start, end in reversed(ranges)
        for at in reversed(range(start, end, PIECE))
    ]
    times = []

    def work():
        buffer = memoryview(bytearray(PIECE))
        while time.monotonic() < until:
            try:
                path, at, size = pieces.pop()
            except IndexError:
                return
            begun = time.monotonic()
            try:
                file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                try:
                    os.preadv(file, [buffer[:size]], at)
                finally:
                    os.close(file)
            except OSError:
                continue
            if len(times) < PROBES:
                times.append(time.monotonic() - begun)
                if len(times) == PROBES and sorted(times)[PROBES // 2] < LOCAL:
                    pieces.clear()

    threads = [threading.Thread(target=work) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


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
