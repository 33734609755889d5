"""Reads the text of posted pictures: a small HTTP service around RapidOCR on onnxruntime.

    POST /ocr (or /)   a PNG or JPEG as the body -> {"text": [...], "lines": [{"text", "score", "box"}]}
    GET  /healthz      200 once the models are loaded, 503 before

`app.py --once FILE` reads one picture (`-` is the standard input), prints its text and ends. Settings come from
`settings.json` beside this file; the environment variables PORT and MODELS win over its port and its folder of models.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import signal
import sys
import threading
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

FORMATS = ("PNG", "JPEG")
NETWORKS = {
    "det_model_path": "ch_PP-OCRv4_det_infer.onnx",
    "cls_model_path": "ch_ppocr_mobile_v2.0_cls_infer.onnx",
    "rec_model_path": "ch_PP-OCRv4_rec_infer.onnx",
}
"""What finds lines, turns them, and reads them: RapidOCR's options, and the files of the model."""


class MissingModelError(Exception):
    """The model is not where it should be; the message says where that is."""


class BadPictureError(Exception):
    """The posted bytes are no picture that this service reads; the message says why."""


class Reader:
    """Text recognition. Loading takes about a second, so it happens apart from answering: see `ready`."""

    def __init__(self, models: Path, max_pixels: int) -> None:
        self.models = models
        self.max_pixels = max_pixels
        self.ready = threading.Event()
        self._lock = threading.Lock()
        self._engine: Any = None

    def load(self) -> None:
        missing = [name for name in NETWORKS.values() if not (self.models / name).is_file()]
        if missing:
            raise MissingModelError(
                f"{self.models}: there is no {missing[0]}; pull the model to this folder before the service starts"
            )
        from rapidocr_onnxruntime import RapidOCR

        self._engine = RapidOCR(**{option: str(self.models / name) for option, name in NETWORKS.items()})
        self.ready.set()

    def read(self, data: bytes) -> list[dict[str, Any]]:
        """The lines of text in a picture, from top to bottom. Raises `BadPictureError`."""
        pixels = self._decode(data)
        with self._lock:  # one picture at a time: the engine uses every core by itself
            found, _ = self._engine(pixels)
        return [_line(text, score, box) for box, text, score in found or []]

    def _decode(self, data: bytes) -> Any:
        import numpy
        from PIL import Image, UnidentifiedImageError

        try:
            with Image.open(io.BytesIO(data), formats=FORMATS) as picture:
                if picture.width * picture.height > self.max_pixels:
                    size = f"{picture.width} x {picture.height}"
                    raise BadPictureError(f"the picture is too large: {size} pixels, at most {self.max_pixels} in all")
                rgb = numpy.asarray(picture.convert("RGB"))
        except UnidentifiedImageError as error:
            raise BadPictureError(f"the body is not a picture in one of the formats {', '.join(FORMATS)}") from error
        # Pillow's decoders say "damaged" with any of these.
        except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
            raise BadPictureError(f"the picture is damaged: {error}") from error
        return rgb[:, :, ::-1].copy()  # the engine wants blue first


def _line(text: str, score: float, box: list[list[float]]) -> dict[str, Any]:
    corners = [[round(float(x), 1), round(float(y), 1)] for x, y in box]
    return {"text": text, "score": round(float(score), 4), "box": corners}


class Handler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0 on purpose: no idle connection can hold up the end of the service."""

    reader: Reader
    max_body: int
    timeout = 10

    def do_GET(self) -> None:
        if self.path != "/healthz":
            self._fail(HTTPStatus.NOT_FOUND, "there are only GET /healthz and POST /ocr")
        elif self.reader.ready.is_set():
            self._answer(HTTPStatus.OK, {"status": "ready"})
        else:
            self._fail(HTTPStatus.SERVICE_UNAVAILABLE, "the models are being loaded")

    def do_POST(self) -> None:
        if self.path not in ("/", "/ocr"):
            self._fail(HTTPStatus.NOT_FOUND, "there are only GET /healthz and POST /ocr")
            self._drain()
            return
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()):
            self._fail(HTTPStatus.LENGTH_REQUIRED, "send the picture as the body, with its Content-Length")
            return
        if int(length) > self.max_body:
            self._fail(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"the body has {length} bytes, at most {self.max_body}")
            self._drain()
            return
        data = self.rfile.read(int(length))
        if len(data) != int(length):
            self._fail(HTTPStatus.BAD_REQUEST, f"the body ended after {len(data)} of {length} bytes")
            return
        if not self.reader.ready.is_set():
            self._fail(HTTPStatus.SERVICE_UNAVAILABLE, "the models are being loaded")
            return
        try:
            lines = self.reader.read(data)
        except BadPictureError as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error))
            return
        self._answer(HTTPStatus.OK, {"text": [line["text"] for line in lines], "lines": lines})

    def _drain(self) -> None:
        """Throws away what the client still sends: closing on unread bytes would reset the answer away from it."""
        length = self.headers.get("Content-Length", "")
        left = min(int(length), self.max_body) if length.isascii() and length.isdigit() else 0
        while left > 0 and (chunk := self.rfile.read1(min(left, 1 << 16))):
            left -= len(chunk)

    def _fail(self, status: HTTPStatus, reason: str) -> None:
        self._answer(status, {"error": reason})

    def _answer(self, status: HTTPStatus, document: dict[str, Any]) -> None:
        body = json.dumps(document, ensure_ascii=False).encode() + b"\n"
        self.send_response(status)
        self.send_header("Content-Type", "application/json; charset=utf-8")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        if getattr(self, "path", "") != "/healthz":  # a request line that cannot be parsed leaves no path
            super().log_message(format, *args)


class Server(ThreadingHTTPServer):
    """A thread for each request; closing waits for the requests that are being answered."""

    daemon_threads = False


def serve(reader: Reader, port: int, max_body: int) -> int:
    """Answers until SIGTERM or SIGINT; the exit status."""
    handler = type("BoundHandler", (Handler,), {"reader": reader, "max_body": max_body})
    failed = threading.Event()
    with Server(("", port), handler) as server:

        def stop(*_: object) -> None:
            # shutdown() waits for serve_forever(), which runs in this very thread.
            threading.Thread(target=server.shutdown).start()

        def load() -> None:
            try:
                reader.load()
            except MissingModelError as error:
                print(error, file=sys.stderr, flush=True)
                failed.set()
                stop()
                return
            except BaseException:
                failed.set()
                stop()
                raise
            print("ready", flush=True)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        print(f"listening on port {server.server_address[1]}", flush=True)
        threading.Thread(target=load, daemon=True).start()
        server.serve_forever(poll_interval=0.1)
    print("stopped", flush=True)
    return 1 if failed.is_set() else 0


def main() -> int:
    parser = argparse.ArgumentParser(description="Reads the text of pictures.")
    parser.add_argument("--once", metavar="FILE", help="read one picture, print its text and end")
    once: str | None = parser.parse_args().once
    settings = json.loads(Path(__file__).with_name("settings.json").read_text())
    reader = Reader(Path(os.environ.get("MODELS") or settings["models"]), settings["max-pixels"])
    if once is None:
        return serve(reader, int(os.environ.get("PORT") or settings["port"]), settings["max-body"])
    try:
        reader.load()
        lines = reader.read(sys.stdin.buffer.read() if once == "-" else Path(once).read_bytes())
    except (BadPictureError, MissingModelError) as error:
        print(f"{once}: {error}" if isinstance(error, BadPictureError) else error, file=sys.stderr)
        return 1
    print(*(line["text"] for line in lines), sep="\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
