"""A way to a server on this machine that is as slow and as far as a real one, for each connection, and that counts bytes."""

from __future__ import annotations

import fcntl
import os
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

_SO_MAX_PACING_RATE = 47
_PIPE = 1 << 20
_F_SETPIPE_SZ = 1031


class Way:
    """What listens at `address` and passes on to `server`.

    Answers flow at most at `rate` bytes a second on each connection, held back by the kernel; 0 is unlimited. A request comes
    `latency` seconds late, and the first of a connection another `latency`, which it takes to connect. `sent` counts what
    went to the server so far, `received` what came from there, `connections` how many there were.
    """

    def __init__(self, server: str, rate: int = 0, latency: float = 0) -> None:
        self._host, _, port = server.rpartition(":")
        self._port = int(port)
        self._rate = rate
        self._latency = latency
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self._guard = threading.Lock()
        self._open: set[socket.socket] = set()
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        self.sent = 0
        self.received = 0
        self.connections = 0

    def serve(self) -> None:
        """Takes connections until it is closed."""
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self._rate:
                near.setsockopt(socket.SOL_SOCKET, _SO_MAX_PACING_RATE, self._rate)
            far = socket.create_connection((self._host, self._port))
            for each in (near, far):
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            with self._guard:
                self.connections += 1
                self._open |= {near, far}
            for pair in ((near, far), (far, near)):
                pass_on = self._delay if self._latency and pair[0] is near else self._pass_on
                threading.Thread(target=pass_on, args=(*pair, pair[0] is near), daemon=True).start()

    def close(self) -> None:
        """Ends all connections."""
        with suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._guard:
            for each in self._open:
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
                each.close()
            self._open.clear()

    def _delay(self, origin: socket.socket, target: socket.socket, counted: bool) -> None:
        """Requests go to `target`, later."""
        try:
            time.sleep(self._latency)
            while data := origin.recv(_PIPE):
                time.sleep(self._latency)
                target.sendall(data)
                with self._guard:
                    self.sent += len(data)
            target.shutdown(socket.SHUT_WR)
        except OSError:
            for each in (origin, target):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, origin: socket.socket, target: socket.socket, counted: bool) -> None:
        """What `origin` sends goes to `target`, through a pipe of the kernel: no byte comes here."""
        out, into = os.pipe()
        try:
            fcntl.fcntl(into, _F_SETPIPE_SZ, _PIPE)
            while count := os.splice(origin.fileno(), into, _PIPE):
                with self._guard:
                    if counted:
                        self.sent += count
                    else:
                        self.received += count
                while count:
                    count -= os.splice(out, target.fileno(), count)
            target.shutdown(socket.SHUT_WR)
        except OSError:  # one side hung up: the other shall know
            for each in (origin, target):
                with suppress(OSError):
                    each.shutdown(socket.SHUT_RDWR)
        finally:
            os.close(out)
            os.close(into)


@contextmanager
def way(server: str, rate: int = 0, latency: float = 0) -> Iterator[Way]:
    """A `Way` to a server that is there for the length of a `with` block."""
    passing = Way(server, rate, latency)
    thread = threading.Thread(target=passing.serve, daemon=True)
    thread.start()
    try:
        yield passing
    finally:
        passing.close()
        thread.join()
