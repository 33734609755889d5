"""Layers in binary caches of Nix: signed, taken by machines that neither build nor fetch, and refused where they lie."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from loopback import OfFolder, serving
from nixmachines import Machine, Machines

from builder.errors import UsageError
from builder.nix.caches import address


@dataclass(frozen=True)
class Cache:
    """A cache with the layers of the profile, signed, and the public key."""

    machines: Machines
    machine: Machine
    folder: Path
    key: str
    other: str

    @property
    def url(self) -> str:
        return f"file://{self.folder}"

    def copy(self, folder: Path) -> Path:
        shutil.copytree(self.folder, folder)
        return folder


@pytest.fixture(scope="module")
def cache(nix_machines: Machines) -> Cache:
    root = nix_machines.root / "keys"
    root.mkdir()
    for name in ("ci-1", "other-1"):
        subprocess.run(
            ["nix-store", "--generate-binary-cache-key", name, root / f"{name}.key", root / f"{name}.pub"], check=True
        )
    machine = nix_machines.new("first")
    folder = nix_machines.root / "cache"
    done = machine("cache push", "--to", f"file://{folder}", "--key", root / "ci-1.key", "--nix-floor", "0")
    assert done.code == 0, done.err
    assert "3 wheels: is in file://" in done.err
    assert "key" not in done.out
    return Cache(nix_machines, machine, folder, *((root / f"{name}.pub").read_text() for name in ("ci-1", "other-1")))


@pytest.fixture
def machine(nix_machines: Machines, tmp_path: Path) -> Iterator[Machine]:
    """A fresh machine."""
    yield nix_machines.at(tmp_path / "machine")
    subprocess.run(["chmod", "-R", "u+w", str(tmp_path)], check=False)


def test_a_fresh_machine_takes_all_layers(cache: Cache, machine: Machine) -> None:
    """It may not build, and has no way to fetch a wheel."""
    options = ["--substituters", cache.url, "--trusted-public-keys", cache.key, "--max-jobs", "0", "--nix-floor", "0"]
    done = machine("assemble", "--engine", "nix", "--no-attach", *options, LAYERWRIGHT_CONFIG=os.devnull)
    assert done.code == 0, done.err
    assert f"nix: 3 wheels: from {cache.url}" in done.err
    assert f"nix: debian bookworm: from {cache.url}" in done.err
    assert "built" not in done.err.replace("built now", "")
    assert [path for path in (machine.root / "nix/nix/store").iterdir() if len(path.name) == 33 + 64] == []
    assert machine("assemble").digest == cache.machines.digest


def test_pull_over_http(cache: Cache, machine: Machine) -> None:
    with serving(cache.folder) as url:
        options = ["--from", url, "--trusted-public-keys", cache.key, "--nix-floor", "0"]
        done = machine("cache pull", *options, "--format", "json")
    assert done.code == 0, done.err
    assert sorted(done.json["taken"]) == ["3 wheels", "debian bookworm"]
    assert done.json["lacking"] == []
    plan = machine("plan", "--format", "json").json
    assert plan


def test_push_over_http(cache: Cache, tmp_path: Path) -> None:
    """What is put there is what is in a folder; a server that takes nothing is named."""
    key = cache.machines.root / "keys/ci-1.key"
    names = []
    for handler in (_Storing, OfFolder):
        folder = tmp_path / handler.__name__
        folder.mkdir()
        with serving(folder, handler) as url:
            done = cache.machine("cache push", "--to", url, "--key", key, "--nix-floor", "0")
        names.append({path.name for path in folder.iterdir()})
        if handler is OfFolder:
            assert done.code == 1
            assert f"'{url}' does not appear to be a binary cache" in done.err
            assert "hint: name a server that also takes what is put there (HTTP's PUT)" in done.err
        else:
            assert done.code == 0, done.err
    assert names[0] >= {path.name for path in cache.folder.glob("*.narinfo")}
    assert names[1] == set()


def test_another_key(cache: Cache, machine: Machine) -> None:
    """What it signed counts for nothing: told, and built instead, where that is allowed."""
    options = ["--substituters", cache.url, "--trusted-public-keys", cache.other]
    done = machine("assemble", "--engine", "nix", "--max-jobs", "0", *options)
    assert done.code == 1
    assert "not signed by any of the keys" in done.err
    assert "hint: name the key that signed it with --trusted-public-keys" in done.err
    done = machine("assemble", "--engine", "nix", *options)
    assert done.digest == cache.machines.digest
    assert "not signed by any of the keys" in done.err
    assert "3 wheels: built here" in done.err


def test_not_signed(cache: Cache, machine: Machine, tmp_path: Path) -> None:
    url = f"file://{tmp_path / 'plain'}"
    assert cache.machine("cache push", "--to", url).code == 0
    done = machine("cache pull", "--from", url, "--trusted-public-keys", cache.key)
    assert done.code == 1
    assert "not signed by any of the keys" in done.err


@pytest.mark.parametrize("lie", ["cut", "changed", "narinfo"])
def test_tampered(cache: Cache, machine: Machine, tmp_path: Path, lie: str) -> None:
    """Nothing of it is used; the layer is built here."""
    folder = cache.copy(tmp_path / "cache")
    for path in sorted(folder.glob("*.narinfo")):
        if "3-wheels" not in path.read_text():
            continue
        nar = folder / next(line[5:] for line in path.read_text().splitlines() if line.startswith("URL: "))
        if lie == "cut":
            nar.write_bytes(nar.read_bytes()[:-1000])
        elif lie == "changed":
            data = bytearray(nar.read_bytes())
            data[len(data) // 2] ^= 1
            nar.write_bytes(data)
        else:
            path.write_text(
                path.read_text().replace("NarHash: sha256:", "NarHash: sha256:1").replace("NarSize: ", "NarSize: 1")
            )
    options = ["--substituters", f"file://{folder}", "--trusted-public-keys", cache.key]
    done = machine("assemble", "--engine", "nix", *options)
    assert done.digest == cache.machines.digest
    assert "3 wheels: built here" in done.err


def test_a_cache_that_is_down(cache: Cache, machine: Machine) -> None:
    """The build goes on, and says so."""
    config = "build-users-group =\nflake-registry =\ndownload-attempts = 1\n"
    options = ["--substituters", "http://127.0.0.1:9", "--trusted-public-keys", cache.key]
    done = machine("assemble", "--engine", "nix", *options, NIX_CONFIG=config)
    assert done.digest == cache.machines.digest
    assert "http://127.0.0.1:9" in done.err
    assert "3 wheels: built here" in done.err
    done = machine(
        "cache pull", "--from", "http://127.0.0.1:9", NIX_CONFIG=config, NIX_REMOTE=str(machine.root / "more")
    )
    assert done.code == 3
    assert "3 wheels: http://127.0.0.1:9 does not have it" in done.err
    assert done.out == "0 of 1 layers\n"


def test_addresses() -> None:
    key = Path("/keys/a b.key")
    assert address("file:///srv/c", key) == "file:///srv/c?secret-key=/keys/a%20b.key&compression=zstd"
    assert address("s3://bucket?region=eu&compression=xz", key).endswith(
        "?region=eu&compression=xz&secret-key=/keys/a%20b.key"
    )
    assert address("ssh-ng://far", None) == "ssh-ng://far"
    for wrong in ("cache", "file://relative/cache", "/srv/cache"):
        with pytest.raises(UsageError):
            address(wrong, key)
    with pytest.raises(UsageError, match="not signed for"):
        address("ssh-ng://far", key)


class _Storing(OfFolder):
    """Keeps what is put."""

    def do_PUT(self) -> None:  # noqa: N802 - http.server names it
        path = Path(self.translate_path(self.path))
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(self.rfile.read(int(self.headers["Content-Length"])))
        self.send_response(201)
        self.send_header("Content-Length", "0")
        self.end_headers()
