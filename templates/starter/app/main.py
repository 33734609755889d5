"""A small HTTP service: GET /healthz says that it is up, GET /?n=8 answers with n numbers."""

from __future__ import annotations

import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import numpy

SETTINGS = json.loads(Path(__file__).with_name("settings.json").read_text(encoding="utf-8"))


class Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        url = urlsplit(self.path)
        if url.path == "/healthz":
            return self.answer(200, {"status": "ok"})
        if url.path != "/":
            return self.answer(404, {"error": "not found"})
        text = parse_qs(url.query).get("n", ["8"])[0]
        if not text.isdecimal() or len(text) > 4:
            return self.answer(400, {"error": "n is a number from 0 to 9999"})
        numbers = numpy.linspace(0, 1, int(text)).round(4)
        return self.answer(200, {"greeting": SETTINGS["greeting"], "numbers": numbers.tolist()})

    def answer(self, status: int, document: dict[str, object]) -> None:
        body = json.dumps(document).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


def main() -> None:
    address = ("", SETTINGS["port"])
    print(f"listening on port {address[1]}", flush=True)
    with ThreadingHTTPServer(address, Handler) as server:
        server.serve_forever()


if __name__ == "__main__":
    main()
