"""Sentences as vectors: a small HTTP service around MiniLM, whose model is an artifact that it pulls when it starts.

    POST /embed        {"texts": ["…", …]} -> {"embeddings": [[384 numbers], …], "dimensions": 384}
    GET  /healthz      200 once the model has answered a first sentence, 503 before

`service.py --once TEXT TEXT…` prints how much each text is like the first one, and ends. Settings come from `settings.json` beside
this file; the environment says which model it is, MODEL=HOST/REPOSITORY:TAG@DIGEST, and PORT wins over the port.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

from builder.start import IMPORTS, MODEL_LOAD, MODEL_PULL, ColdStartMonitor

START = ColdStartMonitor()
"""Tells whoever measures what this service's start is made of."""

with START.phase(IMPORTS):
    import numpy as np
    from minilm import Encoder, Tokenizer

    from builder.errors import BuilderError
    from builder.models import LazyModel, open_model

WEIGHTS = ("embeddings.*", "encoder.*")
"""What of the model is used: its pooler is never fetched."""


@dataclass(frozen=True)
class Embedder:
    """A model that is ready to answer."""

    tokenizer: Tokenizer
    encoder: Encoder
    most: int

    @classmethod
    def open(cls, reference: str, most: int) -> Embedder:
        """The published model, its weights fetched by the tensor and checked; `most` tokens of a text count."""
        with open_model(reference) as model:
            weights = model.prefetch(*WEIGHTS)
            tokenizer = Tokenizer(model.read("vocab.txt").decode())
            config = json.loads(model.read("config.json"))
            weights.wait()
            START.mark(MODEL_PULL)
            with START.phase(MODEL_LOAD):
                return cls(tokenizer, Encoder(config, lambda name: model.tensor(name).numpy()), most)

    def embed(self, texts: Sequence[str]) -> Any:
        """One unit vector for each text."""
        return self.encoder.embed([self.tokenizer.encode(text, self.most) for text in texts])


class BadRequestError(Exception):
    """The body is not what this service takes; the message says why."""


class Handler(BaseHTTPRequestHandler):
    """One request. HTTP/1.0 on purpose: no idle connection can hold up the end of the service."""

    model: LazyModel[Embedder]
    settings: dict[str, int]
    timeout = 10

    def do_GET(self) -> None:
        if self.path != "/healthz":
            self._fail(HTTPStatus.NOT_FOUND, "there are only GET /healthz and POST /embed")
        elif self.model.ready:
            self._answer(HTTPStatus.OK, {"status": "ready"})
        else:
            self._fail(HTTPStatus.SERVICE_UNAVAILABLE, f"the model is {self.model.state}")

    def do_POST(self) -> None:
        try:
            if self.path != "/embed":
                self._fail(HTTPStatus.NOT_FOUND, "there are only GET /healthz and POST /embed")
            elif not self.model.ready:
                self._fail(HTTPStatus.SERVICE_UNAVAILABLE, f"the model is {self.model.state}")
            else:
                found = self.model.get().embed(self._texts())
                self._answer(HTTPStatus.OK, {"embeddings": found.tolist(), "dimensions": found.shape[1]})
        except BadRequestError as error:
            self._fail(HTTPStatus.BAD_REQUEST, str(error))

    def _texts(self) -> list[str]:
        length = self.headers.get("Content-Length", "")
        if not (length.isascii() and length.isdigit()) or len(length) > 9:
            raise BadRequestError("send JSON as the body, with its Content-Length")
        if int(length) > self.settings["max-body"]:
            raise BadRequestError(f"the body has {length} bytes, at most {self.settings['max-body']}")
        try:
            document = json.loads(self.rfile.read(int(length)))
        except (ValueError, RecursionError) as error:
            raise BadRequestError(f"the body is not JSON: {error}") from error
        texts = document.get("texts") if isinstance(document, dict) else None
        if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
            raise BadRequestError('the body is to be {"texts": ["…", …]}')
        if len(texts) > self.settings["max-texts"]:
            raise BadRequestError(f"{len(texts)} texts, at most {self.settings['max-texts']} at once")
        return texts

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


def serve(model: LazyModel[Embedder], port: int, settings: dict[str, int]) -> int:
    """Answers until SIGTERM or SIGINT; the exit status."""
    handler = type("BoundHandler", (Handler,), {"model": model, "settings": settings})
    failed = threading.Event()
    with Server(("", port), handler) as server:

        def stop(*_: object) -> None:
            # shutdown() waits for serve_forever(), which runs in this very thread.
            threading.Thread(target=server.shutdown).start()

        def load() -> None:
            try:
                model.get()
            except BuilderError as error:  # with words for people
                complain(error)
                failed.set()
                stop()
                return
            except BaseException:
                failed.set()
                stop()
                raise
            START.ready()
            print("ready", flush=True)

        signal.signal(signal.SIGTERM, stop)
        signal.signal(signal.SIGINT, stop)
        print(f"listening on port {server.server_address[1]}", flush=True)
        threading.Thread(target=load, daemon=True).start()
        server.serve_forever(poll_interval=0.1)
    print("stopped", flush=True)
    return 1 if failed.is_set() else 0


def complain(error: BuilderError) -> None:
    """Says why there is no model, and what to do."""
    print(f"{error}\n{error.hint or ''}".rstrip(), file=sys.stderr, flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description="Sentences as vectors.")
    parser.add_argument("--once", nargs="+", metavar="TEXT", help="compare the first text with each, and end")
    texts: list[str] | None = parser.parse_args().once
    settings = json.loads(Path(__file__).with_name("settings.json").read_text())
    reference = os.environ.get("MODEL")
    if not reference:
        print("MODEL is not set: MODEL=HOST/REPOSITORY:TAG says which model to pull", file=sys.stderr)
        return 2
    model = LazyModel(lambda: Embedder.open(reference, settings["max-tokens"]), probe=lambda it: it.embed(["ready?"]))
    if texts is None:
        return serve(model, int(os.environ.get("PORT") or settings["port"]), settings)
    try:
        vectors = model.get().embed(texts)
    except BuilderError as error:
        complain(error)
        return 1
    for text, likeness in zip(texts, np.inner(vectors, vectors[0]), strict=True):
        print(f"{likeness:.3f}  {text}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
