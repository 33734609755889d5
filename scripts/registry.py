"""An OCI layout as a registry that can only be read, on the loopback: what a node would pull from, for the tour.

    with serving(Path("out/embed")) as registry:   # registry.address is 127.0.0.1:PORT, for any repository
        ...

It knows manifests by tag and digest, blobs, and ranges of them (distribution-spec, "Pull"), and counts what it sends.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

_PATH = re.compile(r"/v2/[a-z0-9._/-]+/(manifests|blobs)/([\w.:-]+)")
_RANGE = re.compile(r"bytes=(\d+)-(\d*)")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_BLOCK = 1 << 20


class Registry(ThreadingHTTPServer):
    """The server; `sent` counts the bytes of all bodies."""

    daemon_threads = True

    def __init__(self, layout: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.layout = layout
        self.sent = 0
        self.guard = threading.Lock()

    @property
    def address(self) -> str:
        """Where it listens, as the host of a reference."""
        return f"127.0.0.1:{self.server_port}"

    def find(self, reference: str) -> Path | None:
        """The file of what a digest or a tag names."""
        if not _DIGEST.fullmatch(reference):
            for entry in json.loads((self.layout / "index.json").read_bytes())["manifests"]:
                if entry.get("annotations", {}).get("org.opencontainers.image.ref.name") == reference:
                    reference = entry["digest"]
        path = self.layout / "blobs" / reference.replace(":", "/")
        return path if _DIGEST.fullmatch(reference) and path.is_file() else None


@contextmanager
def serving(layout: Path) -> Iterator[Registry]:
    """The registry of a layout while the block runs."""
    with Registry(layout) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


class _Handler(BaseHTTPRequestHandler):
    server: Registry
    protocol_version = "HTTP/1.1"
    timeout = 10

    def do_GET(self) -> None:
        if self.path in ("/v2", "/v2/"):
            self._head(HTTPStatus.OK, 0)
            return
        asked = _PATH.fullmatch(self.path)
        path = self.server.find(asked[2]) if asked else None
        if asked is None or path is None:
            self._head(HTTPStatus.NOT_FOUND, 0)
            return
        size = path.stat().st_size
        headers = {"Docker-Content-Digest": f"sha256:{path.name}", "Content-Type": "application/octet-stream"}
        if asked[1] == "manifests":
            headers["Content-Type"] = json.loads(path.read_bytes())["mediaType"]
        start, end = 0, size
        status = HTTPStatus.OK
        wanted = _RANGE.fullmatch(self.headers.get("Range", ""))
        if wanted and int(wanted[1]) < size:
            start, end = int(wanted[1]), min(int(wanted[2] or size), size - 1) + 1
            status = HTTPStatus.PARTIAL_CONTENT
            headers["Content-Range"] = f"bytes {start}-{end - 1}/{size}"
        self._head(status, end - start, headers)
        if self.command == "GET":
            self._send(path, start, end)

    do_HEAD = do_GET  # noqa: N815 - http.server names it

    def _head(self, status: HTTPStatus, size: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for name, value in {**(headers or {}), "Content-Length": str(size)}.items():
            self.send_header(name, value)
        self.end_headers()

    def _send(self, path: Path, start: int, end: int) -> None:
        with path.open("rb") as file:
            file.seek(start)
            while start < end:
                block = file.read(min(_BLOCK, end - start))
                self.wfile.write(block)
                start += len(block)
                with self.server.guard:
                    self.server.sent += len(block)

    def log_message(self, format: str, *args: object) -> None:
        return None
