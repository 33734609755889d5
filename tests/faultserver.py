"""An HTTP server on the loopback that serves bytes and, when told so, misbehaves."""

from __future__ import annotations

import re
import socket
import ssl
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any

from loopback import Server, running

_RANGE = re.compile(r"bytes=(\d+)-(\d+)?")


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    path: str
    headers: Message

    @property
    def range(self) -> str | None:
        return self.headers.get("range")


@dataclass
class FaultServer:
    """What is served and how; `faults[path]` are used up one per request, `always[path]` stays."""

    address: str = ""
    files: dict[str, bytes] = field(default_factory=dict)
    etags: dict[str, str] = field(default_factory=dict)
    faults: dict[str, list[Fault]] = field(default_factory=dict)
    always: dict[str, Fault] = field(default_factory=dict)
    seen: list[Seen] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def url(self, path: str) -> str:
        return f"http://{self.address}{path}"

    def requests(self, path: str) -> list[Seen]:
        return [seen for seen in self.seen if seen.path == path]


class Handler(BaseHTTPRequestHandler):
    """One request."""

    protocol_version = "HTTP/1.1"
    server: _Server

    def do_GET(self) -> None:
        state = self.server.state
        with state.guard:
            state.seen.append(Seen(self.path, self.headers))
            queue = state.faults.get(self.path)
            fault = queue.pop(0) if queue else state.always.get(self.path, well)
        data = state.files.get(self.path)
        fault(self, data if data is not None else b"")

    def do_CONNECT(self) -> None:
        with self.server.state.guard:
            self.server.state.seen.append(Seen(self.path, self.headers))
        self.answer(502, b"no tunnels here")

    def asked(self, data: bytes) -> tuple[int, int] | None:
        """The range that was asked for, if any."""
        match = _RANGE.fullmatch(self.headers.get("range", ""))
        return (int(match[1]), int(match[2]) + 1 if match[2] else len(data)) if match else None

    def answer(self, status: int, body: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        self.begin(status, {"content-length": str(len(body)), **(headers or {})})
        self.wfile.write(body)

    def begin(self, status: int, headers: Mapping[str, str]) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()

    def etag(self) -> dict[str, str]:
        tag = self.server.state.etags.get(self.path)
        return {"etag": tag} if tag else {}

    def hang_up(self) -> None:
        self.close_connection = True
        self.wfile.flush()
        self.connection.shutdown(socket.SHUT_RDWR)

    def log_message(self, format: str, *args: Any) -> None:
        return None


Fault = Callable[[Handler, bytes], None]


def well(handler: Handler, data: bytes) -> None:
    """As it should be: ranges, 404."""
    asked = handler.asked(data)
    if handler.path not in handler.server.state.files:
        handler.answer(404)
    elif asked is None:
        handler.answer(200, data, handler.etag())
    else:
        start, end = asked
        part = data[start:end]
        content_range = {"content-range": f"bytes {start}-{start + len(part) - 1}/{len(data)}"}
        handler.answer(206, part, {**content_range, **handler.etag()})


def no_ranges(handler: Handler, data: bytes) -> None:
    handler.answer(200, data, handler.etag())


def status(code: int, headers: Mapping[str, str] | None = None) -> Fault:
    return lambda handler, data: handler.answer(code, b"sorry", headers)


def drop(after: int, serve: bool = True) -> Fault:
    """Promises everything, gives `after` bytes, and is gone."""

    def fault(handler: Handler, data: bytes) -> None:
        asked = handler.asked(data) if serve else None
        start, end = asked or (0, len(data))
        headers = {"content-length": str(min(end, len(data)) - start), **handler.etag()}
        if asked:
            headers["content-range"] = f"bytes {start}-{min(end, len(data)) - 1}/{len(data)}"
        handler.begin(206 if asked else 200, headers)
        handler.wfile.write(data[start : min(start + after, end)])
        handler.hang_up()

    return fault


def ends_early(handler: Handler, data: bytes) -> None:
    """No length, half of the bytes, and an orderly end."""
    handler.begin(200, {"connection": "close"})
    handler.wfile.write(data[: len(data) // 2])
    handler.close_connection = True


def endless(handler: Handler, data: bytes) -> None:
    """No length, and more than the file has."""
    handler.begin(200, {"connection": "close"})
    handler.close_connection = True
    try:
        handler.wfile.write(data)
        while True:
            handler.wfile.write(b"more" * 4096)
    except OSError:
        return


def wrong_range(handler: Handler, data: bytes) -> None:
    """Says and sends another range than was asked for."""
    asked = handler.asked(data)
    if asked is None:
        well(handler, data)
        return
    size = asked[1] - asked[0]
    handler.answer(206, data[1 : 1 + size], {"content-range": f"bytes 1-{size}/{len(data)}"})


def instead(other: bytes) -> Fault:
    """Other bytes under the same name."""
    return lambda handler, data: well_as(handler, other)


def well_as(handler: Handler, data: bytes) -> None:
    asked = handler.asked(data)
    if asked is None:
        handler.answer(200, data)
    else:
        part = data[slice(*asked)]
        handler.answer(206, part, {"content-range": f"bytes {asked[0]}-{asked[0] + len(part) - 1}/{len(data)}"})


def redirect(url: str) -> Fault:
    return lambda handler, data: handler.answer(302, b"over there", {"location": url})


def slow(pause: float, block: int = 64 << 10) -> Fault:
    """The right bytes, a block at a time."""

    def fault(handler: Handler, data: bytes) -> None:
        asked = handler.asked(data)
        start, end = asked or (0, len(data))
        end = min(end, len(data))
        headers = {"content-length": str(end - start), **handler.etag()}
        if asked:
            headers["content-range"] = f"bytes {start}-{end - 1}/{len(data)}"
        handler.begin(206 if asked else 200, headers)
        try:
            for offset in range(start, end, block):
                handler.wfile.write(data[offset : min(offset + block, end)])
                time.sleep(pause)
        except OSError:
            handler.close_connection = True

    return fault


class _Server(Server):
    def __init__(self, state: FaultServer) -> None:
        super().__init__(Handler)
        self.state = state


@contextmanager
def serving(encryption: ssl.SSLContext | None = None) -> Iterator[FaultServer]:
    """A server for the length of the block."""
    state = FaultServer()
    server = _Server(state)
    if encryption is not None:
        server.socket = encryption.wrap_socket(server.socket, server_side=True)
    with running(server) as state.address:
        yield state
