"""The upload of one blob: streamed in one request, or in chunks that go on where a connection broke."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import urlencode

from builder.client import Answer, Body, NotFoundError, TransientError
from builder.errors import FetchError
from builder.oci.content import Outcome
from builder.oci.spec import Descriptor
from builder.parallel import Stop
from builder.registry.auth import DeniedError
from builder.registry.outgoing import Open, Outgoing
from builder.registry.session import DeniedElsewhereError, RegistryError, Session

if TYPE_CHECKING:
    from builder.registry.ahead import Ahead

CHUNK = 64 << 20
_SMALLEST_CHUNK = 1 << 20
_COMMIT_TIMEOUT = 600.0
_MAX_MOUNTS = 3
_ONE_BY_ONE = 2
_TOO_MUCH_AT_ONCE = frozenset({405, 411, 413, 415, 501})
_LOST = frozenset({"BLOB_UPLOAD_INVALID", "BLOB_UPLOAD_UNKNOWN", "DIGEST_INVALID", "SIZE_INVALID"})
_RANGE = re.compile(r"(?:bytes=)?0-(\d+)")


def has(session: Session, kind: str, descriptor: Descriptor, headers: Mapping[str, str] | None = None) -> bool:
    """Whether the repository has a blob (`kind` is `blobs`) or manifest (`manifests`) of that digest and size."""

    def attempt() -> bool:
        try:
            with session.send("HEAD", session.url(f"{kind}/{descriptor.digest}"), headers) as answer:
                length = answer.headers.get("content-length", "")
                told = answer.headers.get("docker-content-digest", str(descriptor.digest))
                return told == str(descriptor.digest) and length in ("", str(descriptor.size))
        except (NotFoundError, DeniedElsewhereError):
            return False

    return session.retrying(attempt)


class Upload:
    """Brings one blob into a repository.

    `open` gives its bytes from the start; `path` is the same as a file. `mounts` are repositories of the registry that
    may have it. `advance` is told of each byte sent, and takes bytes back that have to be sent again. `ahead` is what was sent
    of the same file before its digest was known.
    """

    def __init__(
        self,
        session: Session,
        descriptor: Descriptor,
        open: Open,
        path: Path | None,
        mounts: Iterable[str],
        advance: Callable[[int], None],
        stop: Stop,
        ahead: Ahead | None = None,
    ) -> None:
        self._session = session
        self._descriptor = descriptor
        self._ahead = ahead
        opened = open if path is None else lambda: path.open("rb", buffering=0)
        self._bytes = Outgoing(descriptor, opened, self._name)
        self._mounts = tuple(mounts)[:_MAX_MOUNTS]
        self._advance = advance
        self._stop = stop
        self._location: str | None = None
        self._offset = 0
        self._sent = 0
        self._chunk: int | None = None
        self._failed_at_once = 0

    def run(self) -> Outcome:
        """The blob is in the repository. Raises `FetchError`, or `DamagedBlobError` if ours is not what it should be."""
        if has(self._session, "blobs", self._descriptor):
            self._drop_ahead()
            return Outcome.PRESENT
        patience = self._session.patience(self._stop)
        tried = False
        while True:
            before = self._offset
            try:
                if tried and has(self._session, "blobs", self._descriptor):
                    return Outcome.MOVED  # it had arrived, only the answer had not
                tried = True
                return self._attempt()
            except TransientError as error:
                self._take_back()
                self._note_failure()
                patience.failed(error, progressed=self._offset > before)
            except BaseException:
                self._take_back()
                self._cancel()
                raise

    def _attempt(self) -> Outcome:
        if self._location is not None:
            self._recover()
        elif self._mounted():
            self._drop_ahead()
            return Outcome.MOUNTED
        elif self._ahead is not None and self._take_over(self._ahead):
            return Outcome.MOVED
        if self._location is None:
            self._begin()
        if self._chunk is None and self._offset == 0:
            try:
                self._send_whole()
                return Outcome.MOVED
            except RegistryError as error:
                if error.status not in _TOO_MUCH_AT_ONCE:
                    raise
                self._take_back()
                self._chunk = CHUNK
                self._cancel()
                self._begin()
        self._chunk = self._chunk or CHUNK
        while self._offset < self._descriptor.size:
            self._send_chunk()
        self._close()
        return Outcome.MOVED

    def _mounted(self) -> bool:
        """Whether another repository had it; each is tried once."""
        mounts, self._mounts = self._mounts, ()
        own = self._session.reference.repository
        return any(self._mount(repository) for repository in mounts if repository != own)

    def _take_over(self, ahead: Ahead) -> bool:
        """Whether all of it was sent ahead, and has its name now; else goes on from what came."""
        begun = ahead.taken(self._advance, self._stop)
        self._ahead = None
        if begun is None:
            return False
        self._cancel()  # a mount that was refused may have begun another
        self._location, complete = begun
        try:
            if complete:
                self._offset = self._descriptor.size
                self._close()
                return True
            self._recover()
        except TransientError:
            raise
        except FetchError:
            self._cancel()
        return False

    def _drop_ahead(self) -> None:
        if self._ahead is not None:
            self._ahead.drop()

    def _begin(self) -> None:
        """Starts an upload."""
        self._advance(-self._offset)
        self._offset = 0
        with self._session.send(
            "POST", self._session.url("blobs/uploads/"), {"content-length": "0"}, b"", accept=(202,)
        ) as answer:
            self._started(answer)

    def _mount(self, repository: str) -> bool:
        query = urlencode({"mount": str(self._descriptor.digest), "from": repository}, safe=":/")
        self._cancel()
        try:
            with self._session.send(
                "POST",
                self._session.url(f"blobs/uploads/?{query}"),
                {"content-length": "0"},
                b"",
                accept=(201, 202),
                wanted=self._session.scope(mount=repository),
            ) as answer:
                if answer.status == 201:
                    return True
                self._started(answer)
        except (DeniedError, NotFoundError, RegistryError):
            pass  # it may not be known, or not be read: the bytes are sent then
        return False

    def _started(self, answer: Answer) -> None:
        self._location = self._session.location(answer)
        least = answer.headers.get("oci-chunk-min-length", "")
        if least.isascii() and least.isdigit() and self._chunk is not None:
            self._chunk = max(self._chunk, int(least[:12]))

    def _send_whole(self) -> None:
        headers = {"content-type": "application/octet-stream", "content-length": str(self._descriptor.size)}
        with self._judged(), self._put(headers, lambda: self._pieces(0, self._descriptor.size)) as answer:
            self._check_stored(answer)

    def _send_chunk(self) -> None:
        assert self._chunk is not None
        assert self._location is not None
        end = min(self._offset + self._chunk, self._descriptor.size)
        headers = {
            "content-type": "application/octet-stream",
            "content-length": str(end - self._offset),
            "content-range": f"{self._offset}-{end - 1}",
        }
        start = self._offset
        try:
            with (
                self._judged(),
                self._session.send(
                    "PATCH",
                    self._location,
                    headers,
                    lambda: self._pieces(start, end),
                    accept=(202, 201, 204),
                    read_timeout=_COMMIT_TIMEOUT,
                ) as answer,
            ):
                self._location = self._session.location(answer)
                arrived = reached(answer)
                if arrived is None or arrived == end:
                    self._offset, self._sent = end, 0
                    return
                if not start <= arrived < end:
                    self._cancel()
                    raise TransientError(f"{self._name}: the registry says that it has {arrived} bytes of {end} sent")
                self._take_back()
                self._advance(arrived - start)
                self._offset = arrived
        except RegistryError as error:
            if error.status != 413 or self._chunk <= _SMALLEST_CHUNK:
                raise
            self._take_back()
            self._chunk = max(self._chunk // 4, _SMALLEST_CHUNK)

    def _close(self) -> None:
        with self._judged(), self._put({"content-length": "0"}, b"") as answer:
            self._check_stored(answer)

    @contextmanager
    def _put(self, headers: dict[str, str], body: Body) -> Iterator[Answer]:
        assert self._location is not None
        sign = "&" if "?" in self._location else "?"
        url = f"{self._location}{sign}digest={self._descriptor.digest}"
        with self._session.send("PUT", url, headers, body, accept=(201, 204), read_timeout=_COMMIT_TIMEOUT) as answer:
            yield answer

    @contextmanager
    def _judged(self) -> Iterator[None]:
        """An upload that the registry has lost, or whose bytes did not arrive as they were, is made again."""
        try:
            yield
        except NotFoundError as error:
            self._location = None
            raise TransientError(f"{error}: the registry has lost the upload") from error
        except RegistryError as error:
            if error.status != 416 and not _LOST.intersection(error.codes):
                raise
            self._location = None
            if "DIGEST_INVALID" in error.codes:
                self._bytes.check(self._stop)
            raise TransientError(str(error)) from error

    def _check_stored(self, answer: Answer) -> None:
        told = answer.headers.get("docker-content-digest", str(self._descriptor.digest))
        if told != str(self._descriptor.digest):
            self._location = None
            raise TransientError(f"{self._name}: the registry says that it stored {told[:80]!r}")

    def _recover(self) -> None:
        """Asks how much has arrived; where that cannot be told, the upload begins anew."""
        assert self._location is not None
        try:
            with self._session.send("GET", self._location, accept=(204, 200, 202)) as answer:
                arrived = reached(answer)
                location = self._session.location(answer) if answer.headers.get("location") else self._location
        except TransientError:
            raise
        except FetchError:
            arrived = None
        if arrived is None or arrived > self._descriptor.size:
            self._cancel()
            self._offset = 0
            return
        self._advance(arrived - self._offset)
        self._location, self._offset = location, arrived

    def _note_failure(self) -> None:
        """What breaks again and again in one request may pass in parts."""
        if self._chunk is None:
            self._failed_at_once += 1
            if self._failed_at_once >= _ONE_BY_ONE and self._descriptor.size > _SMALLEST_CHUNK:
                self._chunk = CHUNK
        elif self._chunk > 4 * _SMALLEST_CHUNK:
            self._chunk //= 4

    def _cancel(self) -> None:
        """Gives up the upload that was begun; the registry would remove it some day."""
        location, self._location = self._location, None
        if location is not None:
            self._advance(-self._offset)
            self._offset = 0
            with suppress(FetchError), self._session.send("DELETE", location, accept=(204, 200, 202)):
                pass

    def _take_back(self) -> None:
        self._advance(-self._sent)
        self._sent = 0

    @property
    def _name(self) -> str:
        return f"{self._session.reference.name}: blob {self._descriptor.digest}"

    def _count(self, amount: int) -> None:
        self._sent += amount
        self._advance(amount)

    def _pieces(self, start: int, end: int) -> Iterator[memoryview]:
        return self._bytes.pieces(start, end, self._stop, self._count)


def reached(answer: Answer) -> int | None:
    """How many bytes a registry says that it has. `0-0` is none, since that is how it has to be said."""
    match = _RANGE.fullmatch(answer.headers.get("range", "").strip())
    if not match:
        return None
    return int(match[1]) + 1 if int(match[1]) else 0
