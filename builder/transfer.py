"""The download of one file of known size from one address: in ranges, resumed, never more than was promised.

A big file is fetched in parts, several at once, each written to its place. A journal beside the file says which parts
are complete; a process that dies leaves both, and the next one goes on from there. The first line of the journal is a
JSON object, each further line the number of a part; it is removed before anything that it says stops being true.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from urllib3.response import BaseHTTPResponse

from builder.client import ForbiddenThereError, Patience, TransientError, redact
from builder.client.reading import blocks
from builder.errors import FetchError
from builder.parallel import Stop, for_each

IN_PARTS_FROM = 32 << 20
PART = 16 << 20
_MAX_RESTARTS = 3
_TRIES = 3
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class _RestartError(Exception):
    """What was received so far does not belong together: begin again, with one request."""


class Opener(Protocol):
    """Sends the requests of a download: a `Client`, or what adds credentials to one."""

    def open(self, url: str, headers: Mapping[str, str] | None = None) -> AbstractContextManager[BaseHTTPResponse]: ...

    def patience(self, stop: Stop) -> Patience: ...


class Watcher(Protocol):
    """Is told what becomes of a file that is being filled; by several threads."""

    def landed(self, start: int, end: int) -> None:
        """These bytes are in the file, complete."""

    def cleared(self) -> None:
        """None of them is any longer."""


@dataclass(frozen=True)
class Lane:
    """What downloads share: the client, the number of requests at once, progress, and the request to stop."""

    client: Opener
    connections: threading.Semaphore
    threads: int
    advance: Callable[[int], None]
    stop: Stop
    teller: str = "the lock"
    """Who says how large a file is, for messages."""


def download(lane: Lane, url: str, path: Path, size: int, watcher: Watcher | None = None) -> bool:
    """Brings `size` bytes from `url` to `path`, resuming what an interrupted download left there.

    Returns whether all bytes come from this call and this address; otherwise some are older, and only a digest can
    tell whether they fit. Raises `FetchError` if the address does not give that many bytes.
    """
    with _Target.open(path, size, lane.advance, watcher) as target:
        in_parts = size >= IN_PARTS_FROM
        for _ in range(_MAX_RESTARTS):
            attempt = _Attempt(lane, url, target)
            try:
                if in_parts:
                    attempt.fetch_parts()
                else:
                    attempt.fetch_whole()
                return not target.resumed
            except _RestartError as error:
                reason = error
                target.clear()
                in_parts = False
        raise FetchError(f"{redact(url)}: {reason}, again and again")


def forget(path: Path) -> None:
    """Removes what `download` left at `path`."""
    _journal(path).unlink(missing_ok=True)
    path.unlink(missing_ok=True)


def settle(path: Path) -> None:
    """Removes the journal of a file that is complete and has moved on."""
    _journal(path).unlink(missing_ok=True)


class _Target:
    """The file being filled, and its journal."""

    def __init__(
        self, path: Path, size: int, descriptor: int, advance: Callable[[int], None], watcher: Watcher | None
    ) -> None:
        self.size = size
        self.done: set[int] = set()
        self.resumed = False
        self._path = path
        self._descriptor = descriptor
        self._advance = advance
        self._watcher = watcher
        self._counted = 0
        self._guard = threading.Lock()

    @classmethod
    @contextlib.contextmanager
    def open(cls, path: Path, size: int, advance: Callable[[int], None], watcher: Watcher | None) -> Iterator[_Target]:
        descriptor = _open(path)
        try:
            target = cls(path, size, descriptor, advance, watcher)
            try:
                target._resume()
                yield target
            except BaseException:
                advance(-target._counted)
                if size < IN_PARTS_FROM:
                    forget(path)
                raise
        finally:
            os.close(descriptor)

    def write(self, data: bytes, offset: int) -> None:
        view = memoryview(data)
        while view:
            count = os.pwrite(self._descriptor, view, offset)
            view = view[count:]
            offset += count
            self._count(count)

    def take_back(self, count: int) -> None:
        """So many bytes that were written do not count."""
        self._count(-count)

    def finish(self, part: int) -> None:
        """A part is complete: the next process need not fetch it."""
        with self._guard:
            self.done.add(part)
            with _journal(self._path).open("ab") as journal:
                journal.write(b"%d\n" % part)
        self.landed(*self.span(part))

    def landed(self, start: int, end: int) -> None:
        """Tells the watcher."""
        if self._watcher is not None:
            self._watcher.landed(start, end)

    def clear(self) -> None:
        """Forgets every byte."""
        self._start_over()
        self._count(-self._counted)

    def span(self, part: int) -> tuple[int, int]:
        return part * PART, min((part + 1) * PART, self.size)

    def missing(self) -> list[int]:
        return [part for part in range(-(-self.size // PART)) if part not in self.done]

    def _resume(self) -> None:
        header, parts = _read_journal(_journal(self._path))
        if header == self._header() and os.fstat(self._descriptor).st_size == self.size:
            self.done = {part for part in parts if part * PART < self.size}
            self.resumed = bool(self.done)
            self._count(sum(end - start for start, end in map(self.span, self.done)))
            for part in sorted(self.done):
                self.landed(*self.span(part))
        else:
            self._start_over()

    def _start_over(self) -> None:
        _journal(self._path).unlink(missing_ok=True)
        self.done.clear()
        self.resumed = False
        if self._watcher is not None:
            self._watcher.cleared()
        os.ftruncate(self._descriptor, 0)
        if self.size >= IN_PARTS_FROM:
            os.ftruncate(self._descriptor, self.size)
            _journal(self._path).write_text(json.dumps(self._header()) + "\n")

    def _header(self) -> dict[str, int]:
        return {"part": PART, "size": self.size}

    def _count(self, count: int) -> None:
        with self._guard:
            self._counted += count
        self._advance(count)


@dataclass
class _Stretch:
    """A stretch of the file that one connection after the other fills, up to `reached` so far."""

    reached: int
    end: int
    whole: bool


class _Attempt:
    """One try at the file; all answers of it must be of the same version of it."""

    def __init__(self, lane: Lane, url: str, target: _Target) -> None:
        self._lane = lane
        self._url = url
        self._target = target
        self._stop = Stop(lane.stop)
        self._tag: str | None = None
        self._guard = threading.Lock()

    def fetch_whole(self) -> None:
        self._fetch(0, self._target.size)
        self._target.landed(0, self._target.size)

    def fetch_parts(self) -> None:
        """The first part alone, since it shows whether the server knows ranges; then the rest at once."""
        missing = self._target.missing()
        if not missing:
            return
        self._fetch_part(missing[0])
        failures = for_each(self._fetch_part, missing[1:], self._lane.threads, self._stop)
        self._lane.stop.check()
        for failure in sorted(failures, key=lambda failure: isinstance(failure, _RestartError)):
            raise failure

    def _fetch_part(self, part: int) -> None:
        if part not in self._target.done:
            self._fetch(*self._target.span(part))
            self._target.finish(part)

    def _fetch(self, start: int, end: int) -> None:
        """Fills one stretch of the file, going on where a connection broke."""
        patience = self._lane.client.patience(self._stop)
        stretch = _Stretch(start, end, whole=start == 0 and end == self._target.size)
        sent_on = 0
        while True:
            before = stretch.reached
            try:
                with self._lane.connections:
                    self._stop.check()
                    self._receive(stretch)
                return
            except TransientError as error:
                patience.failed(error, progressed=stretch.reached > before)
            except ForbiddenThereError:
                sent_on += 1  # an address that was signed for a short time, perhaps: there is a fresh one each time
                if sent_on == _TRIES:
                    raise

    def _receive(self, stretch: _Stretch) -> None:
        """Writes what one request gives for the rest of a stretch."""
        from_start = stretch.whole and stretch.reached == 0
        headers = {} if from_start else {"range": f"bytes={stretch.reached}-{stretch.end - 1}"}
        with self._lane.client.open(self._url, headers) as response:
            self._check_version(response)
            if response.status == 206:
                stop_at = self._check_range(response, stretch)
            elif stretch.whole:  # a server that cannot go on where the connection broke begins again
                self._target.take_back(stretch.reached)
                stretch.reached, stop_at = 0, stretch.end
            else:
                raise _RestartError("it does not send parts")
            self._check_length(response, stop_at - stretch.reached)
            for block in blocks(response):
                if stretch.reached + len(block) > stop_at:
                    raise self._too_long(stop_at == self._target.size)
                self._target.write(block, stretch.reached)
                stretch.reached += len(block)
                self._stop.check()
        if stretch.reached < stretch.end:
            left = stretch.end - stretch.reached
            raise TransientError(f"{redact(self._url)}: the answer ended {left} bytes too early")

    def _check_version(self, response: BaseHTTPResponse) -> None:
        tag = response.headers.get("etag")
        with self._guard:
            if self._tag is None:
                self._tag = tag
            elif tag is not None and tag != self._tag:
                raise _RestartError("the file changed during the download")

    def _check_range(self, response: BaseHTTPResponse, stretch: _Stretch) -> int:
        """Where the part that the server sends ends; it may be less than was asked for."""
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
        if not match or not int(match[1]) == stretch.reached <= int(match[2]) < stretch.end:
            raise _RestartError("it sent another part than was asked for")
        if match[3] != "*" and int(match[3]) != self._target.size:
            raise FetchError(
                f"{redact(self._url)}: the file has {int(match[3])} bytes, {self._lane.teller} says {self._target.size}"
            )
        return int(match[2]) + 1

    def _check_length(self, response: BaseHTTPResponse, expected: int) -> None:
        length = response.headers.get("content-length", "").strip()
        if length.isascii() and length.isdigit() and int(length) != expected:
            if response.status == 206:
                raise _RestartError("it sent a part of another length than it says")
            raise FetchError(
                f"{redact(self._url)}: the file has {int(length)} bytes, {self._lane.teller} says {self._target.size}"
            )

    def _too_long(self, at_end: bool) -> Exception:
        if at_end:
            return FetchError(
                f"{redact(self._url)}: the file is larger than the {self._target.size} bytes of {self._lane.teller}"
            )
        return _RestartError("it sent more than was asked for")


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC
    try:
        return os.open(path, flags, 0o666)
    except PermissionError:  # a process died between making it read-only and giving it its name
        forget(path)
        return os.open(path, flags, 0o666)


def _journal(path: Path) -> Path:
    return path.with_name(path.name + ".journal")


def _read_journal(path: Path) -> tuple[object, set[int]]:
    """The header and the complete parts; a line that was not finished does not count."""
    try:
        lines = path.read_bytes().split(b"\n")[:-1]
        return json.loads(lines[0]), {int(line) for line in lines[1:]}
    except (OSError, ValueError, IndexError):
        return None, set()
