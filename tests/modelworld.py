"""Small models for tests: files with real headers, in a folder, and how they are published."""

from __future__ import annotations

import hashlib
import io
import json
import os
import random
from collections.abc import Mapping, Sequence
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

from world import Done

from builder.cli import main
from builder.models.artifact import EncodedModel, encode
from builder.models.describe import Description
from builder.models.formats import read_header
from builder.models.scanning import model_index, scan
from builder.models.values import Header, LocalModelFile
from builder.progress import Silent
from builder.store import Store


def safetensors(tensors: Mapping[str, tuple[str, tuple[int, ...], bytes]], metadata: Mapping[str, str] = {}) -> bytes:
    """A file with these tensors: name → dtype, shape, bytes."""
    header: dict[str, object] = {"__metadata__": dict(metadata)} if metadata else {}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors.values())


def small_files(seed: int = 1, megabytes: int = 6) -> dict[str, bytes]:
    """A model as people publish them: two shards, one of which has more than one chunk, and what belongs to them."""
    chance = random.Random(seed)
    rows = megabytes * 256
    big = safetensors({"embed.weight": ("F32", (rows, 1024), chance.randbytes(rows * 4096))}, {"format": "pt"})
    little = safetensors({"norm": ("F16", (8,), chance.randbytes(16)), "bias": ("F32", (2, 2), chance.randbytes(16))})
    return {
        "README.md": b"# A model\n",
        "config.json": b'{"model_type": "bert"}\n',
        "model-00001-of-00002.safetensors": big,
        "model-00002-of-00002.safetensors": little,
        "onnx/empty.txt": b"",
        "tokenizer/tokenizer.json": b"{}\n",
    }


def write_files(folder: Path, files: Mapping[str, bytes]) -> tuple[LocalModelFile, ...]:
    found = []
    for path, data in files.items():
        location = folder / path
        location.parent.mkdir(parents=True, exist_ok=True)
        location.write_bytes(data)
        found.append(LocalModelFile(scan(location, path).file, location))
        assert found[-1].file.sha256 == hashlib.sha256(data).hexdigest()
    return tuple(found)


def header_of(path: Path) -> Header:
    """What is in a file, by its name."""
    found = read_header(path, path.name)
    assert found is not None
    return found


def inside(arguments: Sequence[object], cwd: Path, environment: Mapping[str, str]) -> Done:
    """What `world.run` does, in this process, which takes a tenth of the time."""
    out, err, before, place = io.StringIO(), io.StringIO(), dict(os.environ), Path.cwd()
    os.environ.clear()
    os.environ.update(environment)
    os.chdir(cwd)
    try:
        with redirect_stdout(out), redirect_stderr(err):
            code = main.run([str(word) for word in arguments])
    finally:
        os.chdir(place)
        os.environ.clear()
        os.environ.update(before)
    return Done(code, out.getvalue(), err.getvalue())


def small_model(
    folder: Path, files: Mapping[str, bytes] | None = None, said: Description | None = None, store: Store | None = None
) -> EncodedModel:
    """A model whose files are in `folder`."""
    local = write_files(folder, small_files() if files is None else files)
    return encode(local, model_index(local, store, Silent()), said or Description(name="small", version="1"))
