"""The upload of a file that begins before its digest is known: what has arrived gets its name later, or is thrown away."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from builder.errors import BuilderError, FetchError
from builder.parallel import Stop, StoppedError
from builder.registry.outgoing import PIECE
from builder.registry.session import Session
from builder.registry.upload import reached

_POLL = 0.05
_GRACE = 2.0
_TIMEOUT = 600.0


class Ahead:
    """The bytes of one file on their way into an upload without a name, by `POST` and one `PATCH`, as docker pushes: in chunks of
    HTTP, so that it can end early in good order. Registries forget only uploads of whose length they are told the truth.

    One thread calls `run`, and another one `taken` or `drop`, once. Nothing that goes wrong is an error: the blob is then sent
    as if nothing had been tried. Whether the bytes are the right ones is for the registry to say, which hashes them.
    """

    def __init__(self, session: Session, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.since = time.monotonic()
        self._session = session
        self._stop = Stop()
        self._guard = threading.Lock()
        self._done = threading.Event()
        self._location: str | None = None
        self._complete = False
        self._dropped = False
        self._over = False
        self._sent = 0

    def run(self, wanted: Callable[[], bool]) -> None:
        """Sends the file, if it is still `wanted`, which is asked first."""
        try:
            if wanted() and not self._stop.is_set():
                self._send()
        except (BuilderError, OSError):
            pass
        finally:
            with self._guard:
                self._over = True
                dropped = self._dropped
            if dropped:
                self._throw_away()
            self._done.set()

    def taken(self, advance: Callable[[int], None], stop: Stop) -> tuple[str, bool] | None:
        """Waits for the end: where the upload goes on, and whether all bytes have arrived; None if it never began.

        `advance` is told of the bytes, and takes them back unless all of them have arrived. Raises `StoppedError`, also if it is
        dropped meanwhile.
        """
        told = 0
        try:
            while not self._done.wait(_POLL):
                stop.check()
                told, before = self._sent, told
                advance(told - before)
        finally:
            advance((self.size if self._complete else 0) - told)
        with self._guard:
            if self._dropped:
                raise StoppedError
            location, self._location = self._location, None
        return None if location is None else (location, self._complete)

    def drop(self) -> None:
        """Ends the sending, and has the registry forget what has arrived; a silent one is not waited for."""
        with self._guard:
            self._dropped = True
            self._stop.set()
            over = self._over
        if over:
            self._throw_away()
        else:
            self._done.wait(_GRACE)

    def _send(self) -> None:
        url = self._session.url("blobs/uploads/")
        with self._session.send("POST", url, {"content-length": "0"}, b"", accept=(202,)) as answer:
            self._location = self._session.location(answer)
        headers = {"content-type": "application/octet-stream"}
        with self._session.send(
            "PATCH", self._location, headers, self._pieces, accept=(201, 202, 204), read_timeout=_TIMEOUT
        ) as answer:
            self._location = self._session.location(answer)
            self._complete = self._sent == self.size and reached(answer) in (None, self.size)

    def _pieces(self) -> Iterator[memoryview]:
        """The bytes, as many as there are until it is to end; a file that becomes shorter is noticed by whoever hashes it."""
        buffer = memoryview(bytearray(PIECE))
        self._sent = 0
        with self.path.open("rb", buffering=0) as file:
            while (left := self.size - self._sent) and not self._stop.is_set():
                count = file.readinto(buffer[: min(left, PIECE)])
                if not count:
                    return
                yield buffer[:count]
                self._sent += count

    def _throw_away(self) -> None:
        location, self._location = self._location, None
        if location is not None:
            with suppress(FetchError), self._session.send("DELETE", location, accept=(204, 200, 202)):
                pass
