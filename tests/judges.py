"""Finds the judges: real programs that say whether what we wrote is what it should be."""

from __future__ import annotations

import fcntl
import os
import shutil
import subprocess
from pathlib import Path
from typing import NoReturn

import pytest

PEERS = Path(__file__).parent / "peers"


def require(name: str) -> Path:
    """The judge of this name: `soci-peer` is built on demand, any other one is a program on PATH.

    A judge that is missing skips the test, or fails it where LAYERWRIGHT_REQUIRE_JUDGES=1 (as in CI).
    """
    if name == "soci-peer":
        return _soci_peer()
    found = shutil.which(name)
    return Path(found) if found else missing(name, f"no {name} on PATH")


def _soci_peer() -> Path:
    """The Go program of tests/peers, built again whenever one of its files is newer than it."""
    go = shutil.which("go") or shutil.which("go", path="/usr/local/go/bin")
    binary = PEERS / "bin" / "soci-peer"
    binary.parent.mkdir(exist_ok=True)
    with (binary.parent / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        changed = max(file.stat().st_mtime for pattern in ("*.go", "go.*") for file in PEERS.glob(pattern))
        if binary.exists() and binary.stat().st_mtime > changed:
            return binary
        if not go:
            missing("soci-peer", "no go on PATH to build it")
        built = subprocess.run(
            [go, "build", "-trimpath", "-buildvcs=false", "-o", str(binary.with_suffix(".new")), "."],
            cwd=PEERS,
            capture_output=True,
            text=True,
            check=False,
        )
        if built.returncode:
            missing("soci-peer", f"go build failed:\n{built.stderr[-2000:]}")
        binary.with_suffix(".new").rename(binary)
        return binary


def missing(name: str, why: str) -> NoReturn:
    """Skips the test that asks for this judge, or fails it where judges are required."""
    if os.environ.get("LAYERWRIGHT_REQUIRE_JUDGES") == "1":
        pytest.fail(f"the judge {name} is required: {why}")
    pytest.skip(f"the judge {name} is missing: {why}")
