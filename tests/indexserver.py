"""A package index on the loopback (PEP 503 and 691) that serves wheels which the tests make."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import threading
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import quote, unquote

from loopback import running
from packaging.utils import canonicalize_name


@dataclass(frozen=True)
class Archive:
    """A file that an index can serve."""

    name: str
    data: bytes

    @property
    def project(self) -> str:
        return canonicalize_name(self.name.split("-")[0])

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


def wheel(
    project: str,
    version: str,
    *,
    tag: str = "py3-none-any",
    build: str = "",
    requires: Sequence[str] = (),
    extras: Mapping[str, Sequence[str]] | None = None,
    python: str = ">=3.8",
    files: Mapping[str, bytes] | None = None,
    method: int = zipfile.ZIP_DEFLATED,
) -> Archive:
    """A small wheel that installs; `files` are further members."""
    stem = f"{project.replace('-', '_')}-{version}"
    metadata = [f"Metadata-Version: 2.1\nName: {project}\nVersion: {version}\nRequires-Python: {python}"]
    metadata += [f"Requires-Dist: {requirement}" for requirement in requires]
    for extra, requirements in (extras or {}).items():
        metadata.append(f"Provides-Extra: {extra}")
        metadata += [f'Requires-Dist: {requirement}; extra == "{extra}"' for requirement in requirements]
    members: dict[str, bytes] = {
        f"{project.replace('-', '_')}/__init__.py": f"__version__ = {version!r}\n".encode(),
        **(files or {}),
        f"{stem}.dist-info/METADATA": ("\n".join(metadata) + "\n").encode(),
        f"{stem}.dist-info/WHEEL": f"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: {tag}\n".encode(),
    }
    record = [f"{name},sha256={_record_hash(data)},{len(data)}" for name, data in members.items()]
    members[f"{stem}.dist-info/RECORD"] = "\n".join([*record, f"{stem}.dist-info/RECORD,,", ""]).encode()
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        for name, data in members.items():
            info = zipfile.ZipInfo(name)
            info.external_attr = 0o100644 << 16
            archive.writestr(info, data, method)
    return Archive(f"{stem}{'-' + build if build else ''}-{tag}.whl", file.getvalue())


def _record_hash(data: bytes) -> str:
    return base64.urlsafe_b64encode(hashlib.sha256(data).digest()).decode().rstrip("=")


def sdist(project: str, version: str) -> Archive:
    """What stands for a source distribution; nobody ever gets to unpack it."""
    return Archive(f"{project}-{version}.tar.gz", b"not unpacked")


@dataclass
class _Entry:
    archive: Archive
    yanked: bool
    sha256: str | None
    size: bool


@dataclass
class IndexServer:
    """What is served, changeable while it runs. `html_only` turns JSON off; `login` (user, password) is asked for."""

    port: int = 0
    html_only: bool = False
    login: tuple[str, str] | None = None
    entries: dict[str, list[_Entry]] = field(default_factory=dict)
    requests: list[str] = field(default_factory=list)
    guard: threading.Lock = field(default_factory=threading.Lock)

    @property
    def url(self) -> str:
        """The address of the simple API, without credentials."""
        return f"http://127.0.0.1:{self.port}/simple"

    @property
    def login_url(self) -> str:
        """The same with the credentials that are asked for."""
        assert self.login is not None
        return self.url.replace("//", f"//{self.login[0]}:{quote(self.login[1], safe='')}@")

    def publish(self, *archives: Archive, yanked: bool = False, sha256: str | None = "", size: bool = True) -> Archive:
        """Offers files: `sha256` is what the page says of them (None: nothing), the truth if it is empty."""
        for archive in archives:
            entry = _Entry(archive, yanked, archive.sha256 if sha256 == "" else sha256, size)
            self.entries.setdefault(archive.project, []).append(entry)
        return archives[-1]

    def answer(self, path: str, accept: str) -> tuple[str, bytes] | None:
        """The content type and the body for a path; None if there is nothing."""
        parts = unquote(path).strip("/").split("/")
        match parts:
            case ["simple", project] if project in self.entries:
                entries = self.entries[project]
                if "json" in accept and not self.html_only:
                    return "application/vnd.pypi.simple.v1+json", _json_page(project, entries)
                return "text/html", _html_page(entries)
            case ["files", name]:
                found = [e.archive for entries in self.entries.values() for e in entries if e.archive.name == name]
                return ("application/octet-stream", found[-1].data) if found else None
        return None

    def allows(self, authorization: str | None) -> bool:
        if self.login is None:
            return True
        return authorization == "Basic " + base64.b64encode(":".join(self.login).encode()).decode()


def _json_page(project: str, entries: Sequence[_Entry]) -> bytes:
    files: list[dict[str, object]] = []
    for entry in entries:
        hashes = {"sha256": entry.sha256} if entry.sha256 else {}
        # a relative URL, which the specification allows
        file: dict[str, object] = {"filename": entry.archive.name, "hashes": hashes, "yanked": entry.yanked}
        file["url"] = f"../../files/{quote(entry.archive.name)}"
        if entry.size:
            file["size"] = len(entry.archive.data)
        files.append(file)
    return json.dumps({"meta": {"api-version": "1.1"}, "name": project, "files": files}).encode()


def _html_page(entries: Sequence[_Entry]) -> bytes:
    lines = ["<!DOCTYPE html><html><body>"]
    for entry in entries:
        fragment = f"#sha256={entry.sha256}" if entry.sha256 else ""
        yanked = ' data-yanked=""' if entry.yanked else ""
        name = html.escape(entry.archive.name)
        lines.append(f'<a href="/files/{quote(entry.archive.name)}{fragment}"{yanked}>{name}</a><br/>')
    return "\n".join([*lines, "</body></html>"]).encode()


@contextmanager
def index_server() -> Iterator[IndexServer]:
    """A running server with nothing on it yet."""
    state = IndexServer()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._respond(body=True)

        def do_HEAD(self) -> None:
            self._respond(body=False)

        def _respond(self, *, body: bool) -> None:
            with state.guard:
                state.requests.append(self.path)
                allowed = state.allows(self.headers.get("authorization"))
                answer = state.answer(self.path, self.headers.get("accept", "")) if allowed else None
            if answer is None:
                self.send_response(404 if allowed else 401)
                self.send_header("WWW-Authenticate", "Basic")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            content_type, data = answer
            self.send_response(200)
            self.send_header("Content-Type", content_type)
            self.send_header("Content-Length", str(len(data)))
            self.send_header("Cache-Control", "no-store")
            self.end_headers()
            if body:
                with suppress(BrokenPipeError, ConnectionResetError):  # a client may want the headers alone
                    self.wfile.write(data)

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    state.port = server.server_port
    with running(server):
        yield state
