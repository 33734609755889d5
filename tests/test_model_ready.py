"""What takes long to load is loaded once, and who asks over HTTP is told when it is there."""

from __future__ import annotations

import http.client
import json
import threading

import pytest

from builder.errors import BuilderError
from builder.models import LazyModel, NotReadyError, State, serve_readiness


def ask(port: int, path: str = "/ready", method: str = "GET") -> tuple[int, dict[str, str]]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request(method, path)
    answer = connection.getresponse()
    data = answer.read()
    connection.close()
    return answer.status, json.loads(data or b"{}")


def test_it_is_loaded_once_by_the_first_who_asks() -> None:
    calls: list[int] = []
    gate = threading.Event()

    def load() -> str:
        calls.append(1)
        gate.wait(10)
        return "model"

    model = LazyModel(load)
    assert (model.state, calls) == (State.IDLE, [])
    found: list[str] = []
    threads = [threading.Thread(target=lambda: found.append(model.get(10))) for _ in range(8)]
    for thread in threads:
        thread.start()
    with pytest.raises(NotReadyError, match=r"after 0\.01 s"):
        model.get(timeout=0.01)
    assert model.state is State.LOADING
    gate.set()
    for thread in threads:
        thread.join()
    assert (found, calls, model.state) == (["model"] * 8, [1], State.READY)


def test_what_fails_is_told_to_all_and_tried_again_by_the_next() -> None:
    outcomes: list[Exception | None] = [ValueError("broken"), None]

    def load() -> str:
        error = outcomes.pop(0)
        if error:
            raise error
        return "model"

    model = LazyModel(load)
    with pytest.raises(ValueError, match="broken"):
        model.get(10)
    assert model.state is State.FAILED
    assert isinstance(model.error, ValueError)
    assert model.get(10) == "model"
    assert model.error is None


def test_it_is_ready_when_the_probe_has_answered() -> None:
    loaded, probed = threading.Event(), threading.Event()

    def load() -> str:
        loaded.wait(10)
        return "model"

    def probe(value: str) -> None:
        assert value == "model"
        probed.wait(10)

    model = LazyModel(load, probe=probe)
    with serve_readiness(model, 0, "127.0.0.1") as port:
        assert ask(port) == (503, {"state": "idle"})
        model.start()
        assert ask(port) == (503, {"state": "loading"})
        assert ask(port, "/live")[0] == 200
        loaded.set()
        assert ask(port) == (503, {"state": "loading"})
        probed.set()
        model.get(10)
        assert ask(port) == (200, {"state": "ready"})
        assert ask(port, "/", "HEAD") == (200, {})
    with pytest.raises(OSError, match="refused"):
        ask(port)


def test_a_failure_is_told_without_its_words() -> None:
    def load() -> str:
        raise RuntimeError("s3cret")

    model = LazyModel(load)
    with serve_readiness(model, 0, "127.0.0.1") as port:
        with pytest.raises(RuntimeError):
            model.get(10)
        assert ask(port) == (503, {"state": "failed", "error": "RuntimeError"})


def test_a_port_that_somebody_has() -> None:
    with (
        serve_readiness(LazyModel(str), 0) as port,
        pytest.raises(BuilderError, match=rf":{port}: cannot be listened on") as caught,
        serve_readiness(LazyModel(str), port),
    ):
        pass
    assert caught.value.hint == "choose another port"
