"""The services of profiles/: what they answer, and what they say when there is no model."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.numpy as library
from minilm import Tokenizer
from registry import serving
from world import run

ROOT = Path(__file__).resolve().parent.parent
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "the", "sun", "##ny", "rain", ".", "cafe", "!", "中"]
SETTINGS = {"port": 1, "max-body": 2000, "max-texts": 3, "max-tokens": 8}
WIDTH = 16


def environment(folder: Path, **more: str) -> dict[str, str]:
    return {**os.environ, "XDG_CACHE_HOME": str(folder / "cache"), **more}


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The service as in its image, with the client as it is published, and a small model of its kind in `layout`."""
    folder = tmp_path_factory.mktemp("service")
    rng = np.random.default_rng(1)

    def normal(*shape: int) -> Any:
        return rng.normal(0, 0.5, shape).astype(np.float32)

    tensors = {
        "embeddings.word_embeddings.weight": normal(len(WORDS), WIDTH),
        "embeddings.position_embeddings.weight": normal(10, WIDTH),
        "embeddings.token_type_embeddings.weight": normal(2, WIDTH),
        "pooler.dense.weight": normal(WIDTH, WIDTH),
    }
    layer = "encoder.layer.0"
    for name, out, into in [
        *(
            (f"{layer}.attention.{part}", WIDTH, WIDTH)
            for part in ("self.query", "self.key", "self.value", "output.dense")
        ),
        (f"{layer}.intermediate.dense", 32, WIDTH),
        (f"{layer}.output.dense", WIDTH, 32),
    ]:
        tensors |= {f"{name}.weight": normal(out, into), f"{name}.bias": normal(out)}
    for name in ("embeddings", f"{layer}.attention.output", f"{layer}.output"):
        tensors |= {f"{name}.LayerNorm.weight": normal(WIDTH), f"{name}.LayerNorm.bias": normal(WIDTH)}
    model = folder / "model"
    model.mkdir()
    library.save_file(tensors, model / "model.safetensors", {"format": "pt"})
    config = {"num_attention_heads": 4, "num_hidden_layers": 1, "max_position_embeddings": 10, "layer_norm_eps": 1e-12}
    (model / "config.json").write_text(json.dumps(config))
    (model / "vocab.txt").write_text("\n".join(WORDS) + "\n")
    app = folder / "app"
    app.mkdir()
    for name in ("service.py", "minilm.py"):
        (app / name).write_bytes((ROOT / "profiles/embed" / name).read_bytes())
    (app / "settings.json").write_text(json.dumps(SETTINGS))
    for command in (["publish", model, f"oci:{folder / 'layout'}:small"], ["client", "-o", app / "client.pyz"]):
        done = run(["model", *command], folder, environment(folder))
        assert done.code == 0, done.err
    return folder


@contextmanager
def service(home: Path, model: str) -> Iterator[int]:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = start(home, MODEL=model, PORT=str(port))
    assert process.stdout
    try:
        until = time.monotonic() + 60
        while answer(port, "GET", "/healthz")[0] != 200:
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.02)
        yield port
        process.send_signal(signal.SIGTERM)
        assert process.communicate(timeout=30)[0].endswith("stopped\n")
        assert process.returncode == 0
    finally:
        process.kill()
        process.wait()
        process.stdout.close()


def start(home: Path, *arguments: str, **more: str) -> subprocess.Popen[str]:
    argv = [sys.executable, str(home / "app/service.py"), *arguments]
    marks = {"LAYERWRIGHT_START": str(home / "marks")}
    env = environment(home, PYTHONPATH=str(home / "app/client.pyz"), **marks, **more)
    return subprocess.Popen(argv, env=env, cwd=home, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def answer(
    port: int, method: str, path: str, body: bytes | None = None, headers: Mapping[str, str] | None = None
) -> tuple[int, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    try:
        connection.request(method, path, body, dict(headers or {}))
        response = connection.getresponse()
        return response.status, json.loads(response.read())
    except OSError:
        return 0, None
    finally:
        connection.close()


def test_sentences_become_vectors(home: Path) -> None:
    with serving(home / "layout") as registry, service(home, f"{registry.address}/any/name:small") as port:
        status, document = answer(
            port, "POST", "/embed", json.dumps({"texts": ["sunny.", "The  SUNNY .", "rain"]}).encode()
        )
        assert (status, document["dimensions"]) == (200, WIDTH)
        marked = [json.loads(line) for line in (home / "marks").read_text().splitlines()]
        names = [mark.get("phase", "ready") for mark in marked]
        assert names == ["imports", "model pull", "model load", "ready"]
        first, second, third = np.array(document["embeddings"])
        assert np.allclose(np.linalg.norm([first, second, third], axis=1), 1)
        assert np.inner(first, first) > np.inner(first, second) > np.inner(first, third)
        for body, words in [
            (b"{", "not JSON"),
            (b"[]", "the body is to be"),
            (b'{"texts": []}', "the body is to be"),
            (b'{"texts": [1]}', "the body is to be"),
            (b'{"texts": ["a", "b", "c", "d"]}', "4 texts, at most 3"),
            (b'{"texts": ["%s"]}' % (b"a" * 3000), "3015 bytes, at most 2000"),
            (b"[" * 1990, "not JSON"),
        ]:
            status, document = answer(port, "POST", "/embed", body)
            assert (status, words in document["error"]) == (400, True), document
        assert answer(port, "POST", "/other", b"{}")[0] == 404
        assert answer(port, "GET", "/")[0] == 404
        long = answer(port, "POST", "/embed", json.dumps({"texts": ["rain " * 50]}).encode())
        assert long[0] == 200
    assert registry.sent > 0


def test_once(home: Path) -> None:
    process = start(home, "--once", "sun", "sun", "rain!", MODEL=f"oci:{home / 'layout'}:small")
    printed = process.communicate(timeout=60)[0]
    assert process.returncode == 0, printed
    assert printed.splitlines()[:2] == ["1.000  sun", "1.000  sun"]


def test_no_model_is_no_service(home: Path) -> None:
    unset = start(home, MODEL="")
    assert "MODEL is not set" in unset.communicate(timeout=60)[0]
    assert unset.returncode == 2
    absent = start(home, MODEL=f"oci:{home / 'layout'}:other", PORT="0")
    printed = absent.communicate(timeout=60)[0]
    assert "it holds small" in printed
    assert "Traceback" not in printed
    assert absent.returncode == 1


@pytest.mark.parametrize("arguments", [["--once", "-"], []])
def test_the_reader_of_pictures_says_where_its_model_should_be(tmp_path: Path, arguments: list[str]) -> None:
    app = tmp_path / "app.py"
    app.write_bytes((ROOT / "profiles/ocr/app.py").read_bytes())
    (tmp_path / "settings.json").write_text('{"models": "/models/ocr", "port": 0, "max-body": 9, "max-pixels": 9}')
    done = subprocess.run(
        [sys.executable, str(app), *arguments],
        input="",
        env={**os.environ, "MODELS": str(tmp_path / "none"), "PORT": "0"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert f"{tmp_path / 'none'}: there is no ch_PP-OCRv4_det_infer.onnx; pull the model" in done.stderr
    assert "Traceback" not in done.stderr


TOKENS = {
    "sunny sun-ny": [2, 5, 6, 5, 1, 1, 3],
    "THE\tsun!": [2, 4, 5, 10, 3],
    "Café cafe\u0301 the\u0000.": [2, 9, 9, 4, 8, 3],
    "中the中": [2, 11, 4, 11, 3],
    "": [2, 3],
    "sun" * 40: [2, 1, 3],
    "rain rain rain rain rain rain rain rain": [2, 7, 7, 7, 7, 7, 3],
}


@pytest.mark.parametrize("text", TOKENS)
def test_tokens(text: str) -> None:
    """As the `tokenizers` library has them with BertNormalizer and WordPiece."""
    most = 7 if text.startswith("rain") else 99
    assert Tokenizer("\n".join(WORDS)).encode(text, most) == TOKENS[text]
