"""Finds the judges: real programs that say whether what we wrote is what it should be."""

from __future__ import annotations

import fcntl
import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NoReturn

import pytest

PEERS = Path(__file__).parent / "peers"
_TOOLS = {
    "containerd": "containers",
    "containerd-shim-runc-v2": "containers",
    "crane": "registries",
    "ctr": "containers",
    "notation": "signers",
    "olareg": "registries",
    "oras": "registries",
}
"""Programs in Go and the folders of their modules here."""
_OWN = {"containerd-stargz-grpc": "stargz", "soci-peer": ".", "soci-snapshotter-grpc": "snapshotter"}
"""Programs of our own around the real thing, and their folders."""

_START = 30.0


def require(name: str) -> Path:
    """The judge of this name: `_OWN` and `_TOOLS` are built on demand, `cuobjdump` comes with a wheel, any other one is a
    program on PATH.

    A judge that is missing skips the test, or fails it where LAYERWRIGHT_REQUIRE_JUDGES=1 (as in CI).
    """
    if name in _OWN:
        return _built(name, PEERS / _OWN[name], ".")
    if name in _TOOLS:
        return _built(name, PEERS / _TOOLS[name], _package(name))
    if name == "cuobjdump":
        return _cuobjdump()
    found = shutil.which(name)
    return Path(found) if found else missing(name, f"no {name} on PATH")


def _cuobjdump() -> Path:
    """NVIDIA's own reader of GPU code, from its wheel, which is one of the test dependencies; its exec bit is in the wheel."""
    places = [Path(folder) / "nvidia/cu13/bin/cuobjdump" for folder in sys.path]
    found = next((place for place in places if os.access(place, os.X_OK)), None)
    return found or missing("cuobjdump", "the wheel nvidia-cuda-cuobjdump is not installed")


@contextmanager
def registry(kind: str, folder: Path, environ: Mapping[str, str] | None = None) -> Iterator[str]:
    """A running `docker-registry` or `olareg` that keeps what it has in `folder`; gives its address on the loopback."""
    address = f"127.0.0.1:{free_port()}"
    folder.mkdir(parents=True, exist_ok=True)
    if kind == "olareg":
        command = [
            str(require(kind)),
            "serve",
            "--dir",
            str(folder),
            "--port",
            address.rpartition(":")[2],
            "--addr",
            "127.0.0.1",
        ]
    else:
        config = folder / "config.yml"
        lines = ["version: 0.1", "log: {level: error, accesslog: {disabled: true}}"]
        lines += [f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}", f"http: {{addr: {address}}}", ""]
        config.write_text("\n".join(lines))
        command = [str(require(kind)), "serve", str(config)]
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen(command, stdout=log, stderr=log, env={**os.environ, **(environ or {})})
        try:
            _wait_for(address, server, folder / "log")
            yield address
        finally:
            server.terminate()
            server.wait()


def free_port() -> int:
    """A port of the loopback that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _wait_for(address: str, server: subprocess.Popen[bytes], log: Path) -> None:
    host, _, port = address.rpartition(":")
    until = time.monotonic() + _START
    while time.monotonic() < until and server.poll() is None:
        try:
            socket.create_connection((host, int(port)), timeout=1).close()
            return
        except OSError:
            time.sleep(0.02)
    pytest.fail(f"the registry does not start:\n{log.read_text(errors='replace')[-2000:]}")


def _package(name: str) -> str:
    """The Go package of a tool, as the module's `tool` lines name it."""
    lines = (PEERS / _TOOLS[name] / "go.mod").read_text().splitlines()
    return next(line.split()[-1] for line in lines if line.endswith(f"/cmd/{name}"))


def _built(name: str, module: Path, package: str) -> Path:
    """A Go program, built again whenever a file of its module here is newer than it."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    binary = PEERS / "bin" / name
    binary.parent.mkdir(exist_ok=True)
    with (binary.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        changed = max(file.stat().st_mtime for pattern in ("*.go", "go.*") for file in module.glob(pattern))
        if binary.exists() and binary.stat().st_mtime > changed:
            return binary
        if not go:
            missing(name, "no go on PATH to build it")
        built = subprocess.run(
            [go, "build", "-trimpath", "-buildvcs=false", "-o", str(binary.with_suffix(".new")), package],
            cwd=module,
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            missing(name, f"go build failed:\n{built.stderr[-2000:]}")
        binary.with_suffix(".new").rename(binary)
        return binary


def missing(name: str, why: str) -> NoReturn:
    """Skips the test that asks for this judge, or fails it where judges are required."""
    if os.environ.get("LAYERWRIGHT_REQUIRE_JUDGES") == "1":
        pytest.fail(f"the judge {name} is required: {why}")
    pytest.skip(f"the judge {name} is missing: {why}")
