"""The registry as a starting node sees it: everything that the node asks for passes here and is counted.

A server on the loopback that serves one image, and the models of its program, out of any `Source`. What the real clients
fetch, when, and how much of which blob, is then known exactly, whatever registry it comes from; and that registry's
credentials are ours to give.
Manifests and small requests: distribution-spec 1.1; blobs by ranges (RFC 9110 §14).
"""

from __future__ import annotations

import re
import ssl
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Protocol

from builder.errors import BuilderError
from builder.oci import spec
from builder.oci.content import Source
from builder.oci.digest import Digest

NAME = "image"
"""The repository that the image is served from."""

_SILENT = 2.0
_PATH = re.compile(r"/v2/([a-z0-9-]{1,100})/(manifests|blobs|referrers)/([^/?]+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_RANGES = re.compile(r"bytes=\d+-\d+(,\d+-\d+){1,999}")
_BOUNDARY = "b3f1c0d86a5e4e7f"
_PEEK = 0x2  # MSG_PEEK
_HANDSHAKE = b"\x16"  # what TLS begins with (RFC 8446, section 5.1)
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")


@dataclass(frozen=True)
class Request:
    """One request of the node: when it came (seconds of `time.monotonic`), how long it took, and what was sent.

    `kind` is `manifest`, `blob` or `referrers`; a blob was sent from `start` to before `end`. `sent` counts the body's bytes.
    `repository` is `NAME`, or that of a model.
    """

    at: float
    seconds: float
    kind: str
    digest: str
    start: int
    end: int
    sent: int
    status: int
    repository: str = NAME


class Blobs(Protocol):
    """Where the bytes of blobs come from, in any part."""

    def size(self, digest: Digest) -> int | None:
        """How many bytes a blob has; None if there is none."""

    def ranges(self, digest: Digest, start: int, end: int) -> Iterator[bytes | memoryview]:
        """The bytes from `start` to before `end`."""


class Gateway:
    """Serves `source` on the loopback while its `with` block lasts, as the repository `NAME`, and `others` by their own names.

    With `tls`, whoever begins to encrypt is answered so, on the same port.
    """

    def __init__(
        self,
        source: Source,
        blobs: Blobs,
        others: Mapping[str, tuple[Source, Blobs]] | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._served = {NAME: (source, blobs), **(others or {})}
        self._guard = threading.Lock()
        self._requests: list[Request] = []
        self._failures: list[BuilderError] = []
        self._asked: dict[int, tuple[str, float]] = {}
        self._server = _Server(("127.0.0.1", 0), _handler(self))
        self._server.tls = tls
        self._thread = threading.Thread(target=self._server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)

    def __enter__(self) -> Gateway:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @property
    def address(self) -> str:
        """Host and port."""
        return f"127.0.0.1:{self._server.server_address[1]}"

    @property
    def requests(self) -> tuple[Request, ...]:
        """What was asked for and answered so far, in the order in which it ended."""
        with self._guard:
            return tuple(self._requests)

    @property
    def failure(self) -> BuilderError | None:
        """What the source raised first, if it raised anything: why the node got no answer."""
        with self._guard:
            return self._failures[0] if self._failures else None

    @property
    def silence(self) -> str:
        """What the source was asked for and has not given a byte of for some time; nothing if it answers."""
        with self._guard:
            name, since = min(self._asked.values(), key=lambda asked: asked[1], default=("", 0.0))
        silent = time.monotonic() - since
        return f"its registry has not given a byte of {name} for {silent:.0f} s" if name and silent > _SILENT else ""

    def forget(self) -> None:
        """Begins to count anew."""
        with self._guard:
            self._requests.clear()
            self._failures.clear()

    def note(self, request: Request) -> None:
        with self._guard:
            self._requests.append(request)

    def failed(self, error: BuilderError) -> None:
        with self._guard:
            self._failures.append(error)

    def serves(self, repository: str) -> bool:
        return repository in self._served

    def document(self, repository: str, reference: str) -> tuple[str, bytes]:
        """Media type and bytes of a manifest."""
        source, _ = self._served[repository]
        with self._asking(reference):
            descriptor = source.resolve(reference)
            return descriptor.media_type, source.manifest(descriptor)

    def referrers(self, repository: str, digest: str) -> bytes:
        entries = [item.document() for item in self._served[repository][0].referrers(Digest.parse(digest))]
        return spec.encode({"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": entries})

    def size(self, repository: str, digest: str) -> int | None:
        return self._served[repository][1].size(Digest.parse(digest))

    def ranges(self, repository: str, digest: str, start: int, end: int) -> Iterator[bytes | memoryview]:
        pieces = iter(self._served[repository][1].ranges(Digest.parse(digest), start, end))
        while True:
            with self._asking(digest):
                piece = next(pieces, None)
            if piece is None:
                return
            yield piece

    @contextmanager
    def _asking(self, name: str) -> Iterator[None]:
        """The source is asked by this thread."""
        with self._guard:
            self._asked[threading.get_ident()] = name, time.monotonic()
        try:
            yield
        finally:
            with self._guard:
                del self._asked[threading.get_ident()]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    tls: ssl.SSLContext | None = None

    def finish_request(self, request: Any, client_address: Any) -> None:
        if self.tls is None or request.recv(1, _PEEK) != _HANDSHAKE:
            super().finish_request(request, client_address)
            return
        with self.tls.wrap_socket(request, server_side=True) as encrypted:
            super().finish_request(encrypted, client_address)

    def handle_error(self, request: object, client_address: object) -> None:
        """A node that is ended in mid-request hangs up, and that is no news."""
        if not isinstance(sys.exception(), OSError):
            super().handle_error(request, client_address)  # type: ignore[arg-type]


def _handler(gateway: Gateway) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True

        def do_GET(self) -> None:
            self._answer(True)

        def do_HEAD(self) -> None:
            self._answer(False)

        def log_message(self, *_: object) -> None:
            return None

        def _answer(self, with_body: bool) -> None:
            begun = time.monotonic()
            path = self.path.partition("?")[0]
            if path in ("/v2", "/v2/"):
                self._send(200, {}, b"{}", with_body)
                return
            found = _PATH.fullmatch(path)
            if not found or not gateway.serves(found[1]):
                self._send(404, {}, b"{}", with_body)
                return
            repository, name = found[1], found[3]
            kind = found[2].removesuffix("s") if found[2] != "referrers" else found[2]
            what = [0, 0, 404, 0]  # start, end, status, sent
            try:
                with suppress(BrokenPipeError, ConnectionResetError):
                    self._serve(repository, kind, name, with_body, what)
            except BuilderError as error:
                gateway.failed(error)
                self.close_connection = True
            start, end, status, sent = what
            took = time.monotonic() - begun
            gateway.note(Request(begun, took, kind, name, start, end, sent, status, repository))

        def _serve(self, repository: str, kind: str, name: str, with_body: bool, what: list[int]) -> None:
            if kind == "blob":
                self._blob(repository, name, with_body, what)
                return
            if kind == "manifest":
                media_type, data = gateway.document(repository, name)
                headers = {"content-type": media_type, "docker-content-digest": str(Digest.of(data))}
            else:
                data, headers = gateway.referrers(repository, name), {"content-type": spec.INDEX}
            self._send(200, headers, data, with_body)
            what[1:] = [len(data), 200, len(data) * with_body]

        def _blob(self, repository: str, name: str, with_body: bool, what: list[int]) -> None:
            size = gateway.size(repository, name) if _DIGEST.fullmatch(name) else None
            if size is None:
                self._send(404, {}, b"{}", with_body)
                return
            start, end, status = 0, size, 200
            headers = {"content-type": "application/octet-stream", "accept-ranges": "bytes"}
            if asked := _RANGE.fullmatch(self.headers.get("range", "")):
                start, end, status = int(asked[1]), min(size, int(asked[2] or size) + 1 if asked[2] else size), 206
                if start >= size:
                    self._send(416, {"content-range": f"bytes */{size}"}, b"", with_body)
                    what[2] = 416
                    return
                headers["content-range"] = f"bytes {start}-{end - 1}/{size}"
            elif _RANGES.fullmatch(self.headers.get("range", "")):
                self._parts(repository, name, size, with_body, what)
                return
            what[:3] = [start, end, status]
            self.send_response(status)
            for key, value in {**headers, "content-length": str(end - start)}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                for piece in gateway.ranges(repository, name, start, end):
                    self.wfile.write(piece)
                    what[3] += len(piece)

        def _parts(self, repository: str, name: str, size: int, with_body: bool, what: list[int]) -> None:
            """Several ranges in one answer, as RFC 9110 §14.6 has it; stargz-snapshotter asks so."""
            asked = self.headers["range"].removeprefix("bytes=").split(",")
            ranges = [
                (int(first), min(size, int(last) + 1)) for first, _, last in (text.partition("-") for text in asked)
            ]
            if any(start >= end for start, end in ranges):
                self._send(416, {"content-range": f"bytes */{size}"}, b"", with_body)
                what[2] = 416
                return
            heads = [
                f"\r\n--{_BOUNDARY}\r\ncontent-range: bytes {start}-{end - 1}/{size}\r\n\r\n".encode()
                for start, end in ranges
            ]
            tail = f"\r\n--{_BOUNDARY}--\r\n".encode()
            length = sum(map(len, heads)) + sum(end - start for start, end in ranges) + len(tail)
            what[:3] = [min(ranges)[0], max(end for _, end in ranges), 206]
            self.send_response(206)
            self.send_header("content-type", f"multipart/byteranges; boundary={_BOUNDARY}")
            self.send_header("content-length", str(length))
            self.end_headers()
            for head, (start, end) in zip(heads, ranges, strict=True) if with_body else ():
                self.wfile.write(head)
                for piece in gateway.ranges(repository, name, start, end):
                    self.wfile.write(piece)
                    what[3] += len(piece)
            if with_body:
                self.wfile.write(tail)

        def _send(self, status: int, headers: dict[str, str], data: bytes, with_body: bool) -> None:
            self.send_response(status)
            for key, value in {**headers, "content-length": str(len(data))}.items():
                self.send_header(key, value)
            self.end_headers()
            if with_body:
                self.wfile.write(data)

    return Handler
