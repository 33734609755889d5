"""A hub as huggingface.co is one, for tests: revisions, private and gated repositories, large files on another host behind
addresses that are signed and expire.

What it answers is what `huggingface_hub` reads: `X-Repo-Commit`, `X-Linked-Etag`, `X-Linked-Size`, `X-Error-Code`, redirects to
another host for files in LFS and to a path of its own for the others. That library is asked in the tests whether it does.
"""

from __future__ import annotations

import hashlib
import json
import re
import secrets
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, unquote, urlsplit

from loopback import Server, running

OPEN, PRIVATE, GATED = "org/open", "org/private", "org/gated"
READER, STRANGER = "hf_reader", "hf_stranger"
"""Tokens: of somebody who may read all, and of somebody whom the gate does not let in and who sees nothing private."""

COMMIT = "c0ffee" + "0" * 34
REVISIONS = {COMMIT: COMMIT, "main": COMMIT, "v1.0": COMMIT, "refs/pr/1": COMMIT}
_RESOLVE = re.compile(r"/(org/\w+)/resolve/([^/]+|refs%2Fpr%2F1)/(.+)")
_CACHED = re.compile(r"/api/resolve-cache/models/(org/\w+)/([0-9a-f]{40})/(.+)")
_INFO = re.compile(r"/api/models/(org/\w+)(?:/revision/([^?]+))?")
_TREE = re.compile(r"/api/models/(org/\w+)/tree/([^?]+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")


@dataclass
class Hub:
    """Its files, of every repository, and what it does. `signed` are the addresses that are good, by signature; each is good for
    `uses` requests. Of the next `expired` that are given out none is good at all; the next `cuts` answers end early."""

    plain: dict[str, bytes]
    large: dict[str, bytes]
    url: str = ""
    cdn: str = ""
    uses: int = 1000
    expired: int = 0
    cuts: int = 0
    signed: dict[str, int] = field(default_factory=dict)
    seen: list[tuple[str, str, Message]] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    def requests(self, host: str) -> list[tuple[str, Message]]:
        """Path and headers of the requests to `hub` or `cdn`."""
        return [(path, headers) for where, path, headers in self.seen if where == host]

    def sign(self, path: str) -> str:
        signature = secrets.token_hex(8)
        with self.guard:
            self.signed[signature] = self.uses if self.expired <= 0 else 0
            self.expired -= 1
        return f"{self.cdn}/store/{path}?Expires=1&Signature={signature}"

    def info(self, repository: str) -> dict[str, object]:
        siblings: list[dict[str, object]] = []
        for path, data in sorted({**self.plain, **self.large}.items()):
            item: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": _git(data)}
            if path in self.large:
                item["lfs"] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            siblings.append(item)
        return {"_id": "1", "id": repository, "modelId": repository, "sha": COMMIT, "siblings": siblings, "tags": []}

    def tree(self) -> list[dict[str, object]]:
        found: list[dict[str, object]] = []
        for path, data in sorted({**self.plain, **self.large}.items()):
            item: dict[str, object] = {"type": "file", "path": path, "size": len(data), "oid": _git(data)}
            if path in self.large:
                item["lfs"] = {"oid": hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 134}
            found.append(item)
        return found


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *arguments: object) -> None:
        pass

    def do_GET(self) -> None:
        with self.server.hub.guard:
            self.server.hub.seen.append((self.server.role, self.path, self.headers))
        self.cdn() if self.server.role == "cdn" else self.hub()

    do_HEAD = do_GET  # noqa: N815 - http.server names them

    def hub(self) -> None:
        path = urlsplit(self.path).path
        state = self.server.hub
        for form in (_TREE, _INFO, _RESOLVE, _CACHED):
            if match := form.fullmatch(path):
                break
        else:
            self.refuse(404, "EntryNotFound")
            return
        repository, revision = match[1], unquote(match[2] or "main")
        token = self.headers.get("authorization", "").removeprefix("Bearer ")
        if repository not in (OPEN, PRIVATE, GATED) or (repository == PRIVATE and token != READER):
            self.refuse(401 if token != READER else 404, "RepoNotFound")
        elif repository == GATED and token != READER and form not in (_INFO, _TREE):
            self.refuse(403 if token else 401, "GatedRepo")
        elif revision not in REVISIONS:
            self.refuse(404, "RevisionNotFound")
        elif form is _TREE:
            self.give(json.dumps(state.tree()).encode(), {"Content-Type": "application/json"})
        elif form is _INFO:
            self.give(json.dumps(state.info(repository)).encode(), {"Content-Type": "application/json"})
        elif form is _RESOLVE:
            self.resolve(repository, unquote(match[3]))
        else:
            data = state.plain[unquote(match[3])]
            self.give(data, {"ETag": f'"{_git(data)}"', "X-Repo-Commit": COMMIT})

    def resolve(self, repository: str, path: str) -> None:
        state = self.server.hub
        if path in state.large:
            data = state.large[path]
            said = {"X-Linked-Etag": f'"{hashlib.sha256(data).hexdigest()}"', "X-Linked-Size": str(len(data))}
            self.redirect(302, state.sign(path), said)
        elif path in state.plain:
            self.redirect(307, f"/api/resolve-cache/models/{repository}/{COMMIT}/{path}", {})
        else:
            self.refuse(404, "EntryNotFound")

    def cdn(self) -> None:
        """Storage: it takes a signature in the address, and no other credentials beside it."""
        state = self.server.hub
        if "authorization" in self.headers:
            self.give(b"<Code>InvalidArgument</Code> only one authentication mechanism is allowed", status=400)
            return
        signature = parse_qs(urlsplit(self.path).query).get("Signature", [""])[0]
        with state.guard:
            good = state.signed.get(signature, 0) > 0
            state.signed[signature] = state.signed.get(signature, 0) - 1
        if not good:
            self.give(b"<Code>AccessDenied</Code> Request has expired", status=403)
            return
        data = state.large[unquote(urlsplit(self.path).path.removeprefix("/store/"))]
        whole, status, headers = len(data), 200, {"ETag": '"of-the-store"', "Accept-Ranges": "bytes"}
        if match := _RANGE.fullmatch(self.headers.get("range", "")):
            start, end = int(match[1]), min(int(match[2] or whole - 1), whole - 1)
            data, status = data[start : end + 1], 206
            headers["Content-Range"] = f"bytes {start}-{end}/{whole}"
        with state.guard:
            cut, state.cuts = state.cuts > 0 and self.command == "GET", state.cuts - (self.command == "GET")
        self.give(data, headers, status, cut=cut)

    def redirect(self, status: int, location: str, headers: dict[str, str]) -> None:
        self.give(b"", {"Location": location, "X-Repo-Commit": COMMIT, **headers}, status)

    def refuse(self, status: int, code: str) -> None:
        self.give(b'{"error": "no"}', {"X-Error-Code": code, "X-Error-Message": "no"}, status)

    def give(self, data: bytes, headers: dict[str, str] | None = None, status: int = 200, *, cut: bool = False) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(data[: len(data) // 2] if cut else data)
        if cut:
            self.close_connection = True


class _Server(Server):
    def __init__(self, hub: Hub, role: str) -> None:
        super().__init__(_Handler)
        self.hub, self.role = hub, role


@contextmanager
def serving(plain: dict[str, bytes], large: dict[str, bytes]) -> Iterator[Hub]:
    """A hub with these files, and its storage on another origin, for the length of a `with` block."""
    hub = Hub(plain, large)
    with running(_Server(hub, "hub")) as here, running(_Server(hub, "cdn")) as there:
        hub.url, hub.cdn = f"http://{here}", f"http://{there}"
        yield hub


def _git(data: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
