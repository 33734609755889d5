"""A proxy before a real registry that asks for tokens and, when told so, breaks what goes through it."""

from __future__ import annotations

import base64
import http.client
import json
import re
import secrets
import socket
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, urlsplit

from loopback import Server, running

_BLOCK = 64 << 10
_HOP = {"connection", "transfer-encoding", "keep-alive"}
_WHAT = re.compile(r"/v2/.*/(blobs|manifests|referrers|tags)/")


@dataclass(frozen=True)
class Request:
    """What arrives at the proxy. `what` is such as `GET blobs`, `PATCH uploads`, `GET token`, `GET base`."""

    method: str
    path: str
    headers: Message = field(repr=False)

    @property
    def what(self) -> str:
        if urlsplit(self.path).path == "/token":
            return f"{self.method} token"
        if "/blobs/uploads/" in self.path:
            return f"{self.method} uploads"
        match = _WHAT.match(self.path)
        return f"{self.method} {match[1] if match else 'base'}"


Fault = Callable[["Handler", bytes], bool]
"""Breaks a request; false if it does not fit to it, and the request then goes through."""


@dataclass
class FaultRegistry:
    """The proxy. `decide` chooses a fault for each request. With `users` it asks for tokens, which live for `uses` requests."""

    upstream: str
    address: str = ""
    decide: Callable[[Request], Fault | None] = lambda _: None
    users: dict[str, str] = field(default_factory=dict)
    identity_token: str = ""
    uses: int = 1 << 30
    lifetime: int | None = 300
    tokens: dict[str, tuple[int, str]] = field(default_factory=dict)
    seen: list[Request] = field(default_factory=list)
    carried: list[tuple[str, int]] = field(default_factory=list)
    injected: Counter[str] = field(default_factory=Counter)
    connections: int = 0
    guard: threading.Lock = field(default_factory=threading.Lock)

    def requests(self, what: str) -> list[Request]:
        return [request for request in self.seen if request.what == what]


class Handler(BaseHTTPRequestHandler):
    """One connection."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1
    server: _Server

    def setup(self) -> None:
        super().setup()
        with self.server.state.guard:
            self.server.state.connections += 1

    def any(self) -> None:
        state = self.server.state
        request = Request(self.command, self.path, self.headers)
        with state.guard:
            state.seen.append(request)
        fault = state.decide(request)
        try:
            body = self.body() if fault is not _cut else b""
            with state.guard:
                state.carried.append((request.what, len(body)))
            if fault is not None and fault(self, body):
                return
            self.handle_well(body)
        except OSError:
            self.close_connection = True

    do_GET = do_HEAD = do_POST = do_PUT = do_PATCH = do_DELETE = any  # noqa: N815 - http.server names them

    def body(self) -> bytes:
        """All that is sent along, at once or in chunks."""
        if self.headers.get("transfer-encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("content-length") or 0))
        body = bytearray()
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return bytes(body)

    def handle_well(self, body: bytes) -> None:
        if urlsplit(self.path).path == "/token":
            self.give_token(body)
        elif self.server.state.users and not self.may():
            self.challenge()
        else:
            self.forward(body)

    def forward(self, body: bytes, change: Callable[[Reply], None] | None = None, **headers: str | None) -> None:
        reply = self.ask(body, **headers)
        if change is not None:
            change(reply)
        self.reply(reply)

    def ask(self, body: bytes, **headers: str | None) -> Reply:
        """What the real registry says."""
        sent = {name: value for name, value in self.headers.items() if name.lower() not in _HOP | {"authorization"}}
        sent = {name: value for name, value in sent.items() if headers.get(name.lower(), "") is not None}
        connection = http.client.HTTPConnection(self.server.state.upstream, timeout=60)
        try:
            connection.request(self.command, self.path, body, sent)
            answer = connection.getresponse()
            data = answer.read()
            kept = {name: value for name, value in answer.getheaders() if name.lower() not in _HOP}
            if self.command != "HEAD":
                kept["Content-Length"] = str(len(data))
            return Reply(answer.status, kept, data)
        finally:
            connection.close()

    def reply(self, reply: Reply) -> None:
        self.send_response(reply.status)
        for name, value in reply.headers.items():
            self.send_header(name, value)
        if not any(name.lower() == "content-length" for name in reply.headers) and reply.status != 204:
            self.send_header("Content-Length", "0")
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(reply.body)

    def hang_up(self) -> None:
        self.close_connection = True
        with suppress(OSError):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)

    def may(self) -> bool:
        """Whether a token is there that covers the request; it is worn by being used."""
        scheme, _, token = self.headers.get("authorization", "").partition(" ")
        state = self.server.state
        action = "pull" if self.command in ("GET", "HEAD") else "push"
        match = re.match(r"/v2/(.+?)/(?:blobs|manifests|referrers|tags)/", self.path)
        with state.guard:
            left, scope = state.tokens.get(token, (0, ""))
            if scheme != "Bearer" or left <= 0:
                return False
            state.tokens[token] = (left - 1, scope)
        return match is None or any(
            word.startswith(f"repository:{match[1]}:") and action in word.rpartition(":")[2].split(",")
            for word in scope.split()
        )

    def challenge(self) -> None:
        realm = f'Bearer realm="http://{self.server.state.address}/token",service="the registry"'
        self.reply(Reply(401, {"WWW-Authenticate": realm}, b'{"errors":[{"code":"UNAUTHORIZED"}]}').sized())

    def give_token(self, body: bytes) -> None:
        state = self.server.state
        if self.command == "POST":
            form = parse_qs(body.decode())
            right = form.get("refresh_token") == [state.identity_token] and form.get("grant_type") == ["refresh_token"]
        else:
            form = parse_qs(urlsplit(self.path).query)
            right = self.headers.get("authorization", "") in {
                "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
                for user, password in state.users.items()
            }
        if not right or form.get("service") != ["the registry"]:
            self.reply(Reply(401, {}, b"{}").sized())
            return
        token = secrets.token_urlsafe(32)
        with state.guard:
            state.tokens[token] = (state.uses, " ".join(form.get("scope", [])))
        answer = {"token": token} | ({} if state.lifetime is None else {"expires_in": state.lifetime})
        self.reply(Reply(200, {"Content-Type": "application/json"}, json.dumps(answer).encode()).sized())

    def log_message(self, format: str, *args: Any) -> None:
        return None


@dataclass
class Reply:
    """An answer before it is sent."""

    status: int
    headers: dict[str, str]
    body: bytes

    def sized(self) -> Reply:
        self.headers["Content-Length"] = str(len(self.body))
        return self


def _cut(handler: Handler, body: bytes) -> bool:
    """Gone, without a look at what comes."""
    handler.hang_up()
    return True


def lost_answer(handler: Handler, body: bytes) -> bool:
    """All is done, and nobody is told."""
    if not handler.server.state.users or handler.may():
        handler.ask(body)
    handler.hang_up()
    return True


def half_sent(handler: Handler, body: bytes) -> bool:
    """Half of an upload arrives at the registry before the connection breaks."""
    if handler.command not in ("PUT", "PATCH") or len(body) < 2:
        return False
    if handler.server.state.users and not handler.may():
        return False
    with suppress(OSError), socket.create_connection(_split(handler.server.state.upstream), timeout=10) as raw:
        lines = [f"{handler.command} {handler.path} HTTP/1.1"]
        left_out = {"authorization", "content-length", "transfer-encoding"}
        lines += [f"{name}: {value}" for name, value in handler.headers.items() if name.lower() not in left_out]
        lines.append(f"Content-Length: {len(body)}")
        raw.sendall("\r\n".join([*lines, "", ""]).encode() + body[: len(body) // 2])
        time.sleep(0.02)
    handler.hang_up()
    return True


def truncated(handler: Handler, body: bytes) -> bool:
    """Half of an answer, and gone."""
    if handler.command != "GET" or (handler.server.state.users and not handler.may()):
        return False
    reply = handler.ask(body)
    reply.body = reply.body[: len(reply.body) // 2]
    handler.reply(reply)
    handler.hang_up()
    return True


def busy(status: int, retry_after: str | None = None) -> Fault:
    def fault(handler: Handler, body: bytes) -> bool:
        headers = {"Retry-After": retry_after} if retry_after else {}
        handler.reply(Reply(status, headers, b'{"errors":[{"code":"UNAVAILABLE","message":"busy"}]}').sized())
        return True

    return fault


def slow(handler: Handler, body: bytes) -> bool:
    time.sleep(0.05)
    return False


def no_ranges(handler: Handler, body: bytes) -> bool:
    """200 and everything, although a part was asked for."""
    if handler.command != "GET" or "range" not in handler.headers or "/blobs/sha256:" not in handler.path:
        return False
    if handler.server.state.users and not handler.may():
        return False
    handler.forward(body, range=None)
    return True


def damaged_answer(handler: Handler, body: bytes) -> bool:
    """One bit of a blob or manifest is another on its way to the client."""
    if handler.command != "GET" or not re.search(r"/(blobs/sha256:|manifests/)", handler.path):
        return False
    if handler.server.state.users and not handler.may():
        return False
    handler.forward(body, lambda reply: setattr(reply, "body", _flipped(reply.body)))
    return True


def damaged_request(handler: Handler, body: bytes) -> bool:
    """One bit of a blob or manifest is another on its way to the registry."""
    if handler.command not in ("PUT", "PATCH") or not body:
        return False
    if handler.server.state.users and not handler.may():
        return False
    handler.forward(_flipped(body))
    return True


def wrong_length(more: int) -> Fault:
    """A Content-Length that is not that of the body."""

    def fault(handler: Handler, body: bytes) -> bool:
        if handler.command not in ("GET", "HEAD") or (handler.server.state.users and not handler.may()):
            return False
        reply = handler.ask(body)
        name = next((name for name in reply.headers if name.lower() == "content-length"), "Content-Length")
        reply.headers[name] = str(max(int(reply.headers.get(name, "0")) + more, 0))
        handler.reply(reply)
        handler.hang_up()
        return True

    return fault


def wrong_digest(handler: Handler, body: bytes) -> bool:
    """The registry names another digest than that of what it gives or got."""
    if handler.server.state.users and not handler.may():
        return False
    handler.forward(body, lambda reply: reply.headers.update({"Docker-Content-Digest": "sha256:" + "0" * 64}))
    return True


def elsewhere(address: str) -> Fault:
    """Sends the client to another host."""

    def fault(handler: Handler, body: bytes) -> bool:
        if handler.command not in ("GET", "HEAD"):
            return False
        if handler.server.state.users and not handler.may():
            return False
        handler.reply(Reply(307, {"Location": f"http://{address}{handler.path}"}, b"").sized())
        return True

    return fault


def lost_session(handler: Handler, body: bytes) -> bool:
    """The registry knows nothing of the upload."""
    if "/blobs/uploads/" not in handler.path or handler.command == "POST":
        return False
    handler.reply(Reply(404, {}, b'{"errors":[{"code":"BLOB_UPLOAD_UNKNOWN"}]}').sized())
    return True


def too_large(limit: int) -> Fault:
    """413 for a request body over the limit, as proxies before registries say it."""

    def fault(handler: Handler, body: bytes) -> bool:
        if len(body) <= limit:
            return False
        handler.reply(Reply(413, {}, b"").sized())
        return True

    return fault


cut: Fault = _cut


def _flipped(body: bytes) -> bytes:
    if not body:
        return body
    place = secrets.randbelow(len(body))
    return body[:place] + bytes([body[place] ^ 1]) + body[place + 1 :]


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    return host, int(port)


class _Server(Server):
    def __init__(self, state: FaultRegistry) -> None:
        super().__init__(Handler)
        self.state = state


@contextmanager
def before(upstream: str, **options: Any) -> Iterator[FaultRegistry]:
    """A proxy before the registry at `upstream`, for the length of the block."""
    state = FaultRegistry(upstream, **options)
    with running(_Server(state)) as state.address:
        yield state


def only(what: str, *faults: Fault | None) -> Callable[[Request], Fault | None]:
    """The faults one after the other for the requests of that kind; then none."""
    waiting = list(faults)
    guard = threading.Lock()

    def decide(request: Request) -> Fault | None:
        with guard:
            return waiting.pop(0) if waiting and request.what == what else None

    return decide


def always(faults: Mapping[str, Fault]) -> Callable[[Request], Fault | None]:
    """A fault for each kind of request."""
    return lambda request: faults.get(request.what)
