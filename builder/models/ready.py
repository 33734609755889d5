"""What takes long to load, such as a model: loaded at first use or in the background; and HTTP that tells when it is there.

model = LazyModel(lambda: Session(open_model(REFERENCE).folder("/models/bert")), probe=lambda it: it.embed("ready?"))
with serve_readiness(model, port=8081):   # 503 until the probe has answered, then 200
    model.start()
    model.get(timeout=600).embed("…")
"""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Generic, TypeVar

from builder.errors import BuilderError
from builder.forks import renew_in_forks

T = TypeVar("T")


class State(StrEnum):
    """How far a model is."""

    IDLE = "idle"
    LOADING = "loading"
    READY = "ready"
    FAILED = "failed"


class NotReadyError(BuilderError):
    """A model is not loaded in time."""

    hint = "wait longer, or look at why loading takes so long"


class PortError(BuilderError):
    """Nobody can be told on a port."""

    hint = "choose another port"


class LazyModel(Generic[T]):
    """What `load` returns, loaded once, by a thread of its own, when it is first asked for or `start` is called.

    With `probe` it counts as loaded only after that was called with it and returned. Shared by threads. What loading raises, all
    who wait are given; the next one who asks lets it be tried again.
    """

    def __init__(self, load: Callable[[], T], *, probe: Callable[[T], object] | None = None) -> None:
        self._load = load
        self._probe = probe
        self._news = threading.Condition()
        self._state = State.IDLE
        self._turn = 0
        self._value: T | None = None
        self._error: BaseException | None = None
        renew_in_forks(self)

    def renew(self) -> None:
        """In a forked process nobody is loading: who asks there begins anew."""
        self._news = threading.Condition()
        if self._state is State.LOADING:
            self._state = State.IDLE

    @property
    def state(self) -> State:
        """How far it is now."""
        return self._state

    @property
    def ready(self) -> bool:
        """Whether it can answer."""
        return self._state is State.READY

    @property
    def error(self) -> BaseException | None:
        """What the last attempt raised, if it failed."""
        return self._error

    def start(self) -> None:
        """Begins to load, in the background, unless it is loaded or being loaded."""
        with self._news:
            if self._state in (State.IDLE, State.FAILED):
                self._state = State.LOADING
                self._turn += 1
                self._error = None
                threading.Thread(target=self._run, daemon=True).start()

    def get(self, timeout: float | None = None) -> T:
        """The loaded model; waits for it at most `timeout` seconds. Raises `NotReadyError`, and what loading raises."""
        if not self.ready:
            with self._news:
                self.start()
                turn = self._turn
                ended = self._news.wait_for(lambda: self._turn != turn or self._state is not State.LOADING, timeout)
                if not ended:
                    raise NotReadyError(f"the model is not loaded after {timeout:g} s")
                if not self.ready:
                    raise self._error or NotReadyError("the model could not be loaded")
        return self._value  # type: ignore[return-value]

    def _run(self) -> None:
        try:
            value = self._load()
            if self._probe is not None:
                self._probe(value)
        except BaseException as error:
            with self._news:
                self._error, self._state = error, State.FAILED
                self._news.notify_all()
            return
        with self._news:
            self._value, self._state = value, State.READY
            self._news.notify_all()


@contextmanager
def serve_readiness(model: LazyModel[Any], port: int, host: str = "0.0.0.0") -> Iterator[int]:
    """Answers HTTP in the background while the block runs; gives the port, which is chosen if `port` is 0.

    `/live` is 200; `/ready`, and any other path, is 200 if the model can answer, else 503. The body is JSON with the state
    and, after a failure, its kind: no message, since messages may name what is not for everybody. Raises `PortError`.
    """
    try:
        listening = _Server((host, port), model)
    except OSError as error:
        raise PortError(f"{host}:{port}: cannot be listened on: {error.strerror or error}") from error
    with listening as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


class _Server(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self, address: tuple[str, int], model: LazyModel[Any]) -> None:
        super().__init__(address, _Handler)
        self.model = model

    def handle_error(self, request: Any, client_address: Any) -> None:
        return None


class _Handler(BaseHTTPRequestHandler):
    server: _Server
    timeout = 10.0

    def do_GET(self) -> None:
        model = self.server.model
        good = model.ready or self.path.partition("?")[0] == "/live"
        error = model.error
        document = {"state": str(model.state)} | ({"error": type(error).__name__} if error else {})
        body = json.dumps(document).encode() + b"\n"
        self.send_response(200 if good else 503)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    do_HEAD = do_GET  # noqa: N815 - http.server names it

    def log_message(self, format: str, *args: Any) -> None:
        return None
