"""A blob of a registry as a stream: parts of a big one are fetched ahead, all of it is checked as it is read."""

from __future__ import annotations

import hashlib
import io
import re
from collections import deque
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from typing import BinaryIO

from urllib3.response import BaseHTTPResponse

from builder.client import READ, TransientError, redact
from builder.client.reading import blocks
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.parallel import Stop
from builder.registry.session import RegistryError, Session

AHEAD_FROM = 32 << 20
PART = 2 << 20
AHEAD = 12
Bytes = bytes | memoryview
_NO_RANGES = frozenset({400, 405, 416})
"""What some registries, and what stands before them, answer to each request for a part."""
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class WrongBytesError(RegistryError):
    """A registry gives other bytes than those of the digest that was asked for."""

    hint = "the registry, or what stands before it, is damaged: pull from another, or publish it again"


class NoRangesError(RegistryError):
    """A server gives all of a blob or nothing of it."""


@contextmanager
def stream(session: Session, descriptor: Descriptor, advance: Callable[[int], None]) -> Iterator[BinaryIO]:
    """The bytes of a blob; the read that meets their end raises `WrongBytesError` if they are others."""
    stop = Stop()
    with closing(_Blob(session, descriptor, advance, stop).blocks()) as blocks:
        try:
            yield io.BufferedReader(_Raw(blocks), READ)
        finally:
            stop.set()


def ranged(session: Session, descriptor: Descriptor, start: int, end: int, stop: Stop) -> Iterator[bytes]:
    """The bytes `start` up to `end` of a blob, in blocks, unchecked; each connection goes on where the last one broke.

    Raises `NoRangesError`, before the first block, where that is not all of the blob and the server sends no parts.
    """
    return _Blob(session, descriptor, lambda _: None, stop).stretch(start, end)


def once(session: Session, descriptor: Descriptor, start: int, end: int) -> Generator[bytes, None, None]:
    """The same by one request, which is not tried again. Raises `TransientError` where another may do better."""
    return _Blob(session, descriptor, lambda _: None, Stop()).once(start, end, (start, end) != (0, descriptor.size))


class _Raw(io.RawIOBase):
    """Blocks as a file."""

    def __init__(self, blocks: Iterator[Bytes]) -> None:
        self._blocks = blocks
        self._block = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        if not self._block:
            self._block = memoryview(next(self._blocks, b""))
        count = min(len(buffer), len(self._block))
        buffer[:count] = self._block[:count]
        self._block = self._block[count:]
        return count


class _Blob:
    def __init__(self, session: Session, descriptor: Descriptor, advance: Callable[[int], None], stop: Stop) -> None:
        self._session = session
        self._descriptor = descriptor
        self._advance = advance
        self._stop = stop
        self._url = session.url(f"blobs/{descriptor.digest}")

    def blocks(self) -> Generator[Bytes, None, None]:
        """The bytes in order, the last of them only after all were checked."""
        if self._descriptor.size <= PART:
            yield self._small()
            return
        state = hashlib.sha256()
        reached = 0
        for block in self._received():
            state.update(block)
            reached += len(block)
            self._advance(len(block))
            if reached == self._descriptor.size:
                self._check(Digest(state.hexdigest()))
            yield block

    def stretch(self, start: int, end: int) -> Iterator[bytes]:
        """Some of the bytes in order, unchecked."""
        return self._serially(start, end, self._stop, only_ranges=(start, end) != (0, self._descriptor.size))

    def _small(self) -> bytes:
        """All of a small blob. What is wrong once may have been damaged on the way, and is fetched again."""
        for last in (False, True):
            data = b"".join(self._serially(0, self._descriptor.size, self._stop))
            if last or Digest.of(data) == self._descriptor.digest:
                break
        self._check(Digest.of(data))
        self._advance(len(data))
        return data

    def _check(self, found: Digest) -> None:
        if found != self._descriptor.digest:
            raise WrongBytesError(
                f"{redact(self._url)}: the bytes are not those of the digest: expected {self._descriptor.digest}, "
                f"got {found}"
            )

    def _received(self) -> Iterator[Bytes]:
        reached = 0
        if self._descriptor.size >= AHEAD_FROM:
            try:
                for block in self._ahead():
                    reached += len(block)
                    yield block
                return
            except NoRangesError:
                pass
        yield from self._serially(reached, self._descriptor.size, self._stop)

    def _ahead(self) -> Iterator[Bytes]:
        """Parts in order, several on their way; the first alone, since it shows whether the server knows ranges.

        A part is good until the next one is asked for: the memory of all is taken once and used again.
        """
        yield self._part(0, bytearray(PART), self._stop)
        starts = iter(range(PART, self._descriptor.size, PART))
        stop = Stop(self._stop)
        free = [bytearray(PART) for _ in range(AHEAD)]
        waiting: deque[tuple[bytearray, Future[memoryview]]] = deque()
        pool = ThreadPoolExecutor(AHEAD, "ahead")
        try:
            while True:
                while free and (start := next(starts, None)) is not None:
                    buffer = free.pop()
                    waiting.append((buffer, pool.submit(self._part, start, buffer, stop)))
                if not waiting:
                    return
                buffer, part = waiting.popleft()
                yield part.result()
                free.append(buffer)
        finally:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)

    def _part(self, start: int, buffer: bytearray, stop: Stop) -> memoryview:
        reached = 0
        for block in self._serially(start, min(start + PART, self._descriptor.size), stop, only_ranges=True):
            buffer[reached : reached + len(block)] = block
            reached += len(block)
        return memoryview(buffer)[:reached]

    def _serially(self, start: int, end: int, stop: Stop, *, only_ranges: bool = False) -> Iterator[bytes]:
        """One connection after the other, each from where the last one broke."""
        patience = self._session.patience(stop)
        reached = start
        while reached < end:
            before = reached
            try:
                for block in self.once(reached, end, only_ranges):
                    stop.check()
                    reached += len(block)
                    yield block
            except TransientError as error:
                patience.failed(error, progressed=reached > before)

    def once(self, start: int, end: int, only_ranges: bool) -> Generator[bytes, None, None]:
        """Some of the bytes in order, unchecked, from one connection."""
        whole = start == 0 and end == self._descriptor.size
        headers = {} if whole else {"range": f"bytes={start}-{end - 1}"}
        with self._opened(headers, only_ranges) as response:
            if response.status == 200 and only_ranges:
                raise NoRangesError(f"{redact(self._url)}: the server sends no parts")
            skip = self._check_headers(response, start, end)
            left = end - start
            for block in blocks(response):
                if skip:
                    block, skip = block[skip:], max(skip - len(block), 0)
                    if not block:
                        continue
                if len(block) > left:
                    raise TransientError(f"{redact(self._url)}: more bytes came than were asked for")
                left -= len(block)
                if not left and response.read1(1, decode_content=False):
                    raise TransientError(f"{redact(self._url)}: more bytes came than were asked for")
                yield block
                if not left:
                    return
        raise TransientError(f"{redact(self._url)}: the answer ended {left} bytes too early")

    @contextmanager
    def _opened(self, headers: dict[str, str], only_ranges: bool) -> Iterator[BaseHTTPResponse]:
        try:
            with self._session.open(self._url, headers) as response:
                yield response
        except RegistryError as error:
            if only_ranges and error.status in _NO_RANGES:
                raise NoRangesError(f"{redact(self._url)}: the server refuses to send parts") from error
            raise

    def _check_headers(self, response: BaseHTTPResponse, start: int, end: int) -> int:
        """How many bytes come before those that are wanted."""
        size = self._descriptor.size
        expected = end - start
        if response.status == 206:
            match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", "").strip())
            if not match or (int(match[1]), int(match[2])) != (start, end - 1) or match[3] not in ("*", str(size)):
                raise TransientError(f"{redact(self._url)}: it sent another part than was asked for")
        elif end == size:
            expected = size
        else:
            raise NoRangesError(f"{redact(self._url)}: the server sends no parts")
        length = response.headers.get("content-length", "").strip()
        if length and length != str(expected):
            raise TransientError(f"{redact(self._url)}: it says that it sends {length[:20]} bytes, not {expected}")
        return start if response.status == 200 else 0
