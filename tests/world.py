"""A small world for whole builds: a signed Debian archive and a package index on the loopback, and a profile of them.

Nothing outside of this machine is asked. The interpreter of this Debian is a text file, so that no bytecode is made.
"""

from __future__ import annotations

import hashlib
import json
import os
import pwd
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import debarchive
import indexserver
import loopback
import pytest
from debarchive import Item, Signer, Suite, folder, symlink
from indexserver import IndexServer

from builder import lock as locks
from builder.lock import Lock, LockedFile
from builder.store import Store

BUILD = Path(sys.executable).with_name("build")
CREATED = "1700000000"
"""SOURCE_DATE_EPOCH of the locks that tests make."""

PROFILE = """\
profile: 1
name: small
base: {debian: bookworm, packages: [hello]}
python: {version: "3.11", requirements: [alpha, "beta>=1"], bytecode: false}
files:
  - {from: app, to: /app}
templates:
  - {from: settings.json.j2, to: /app/settings.json}
values: {port: 8080, names: [x, y]}
image:
  entrypoint: [python, /app/main.py]
  env: {LANG: C.UTF-8}
  user: "65532:65532"
  ports: [8080]
publish:
  soci: {span-size: 256KiB, min-layer-size: 1MiB}
"""

FILES = {
    "app/main.py": "print('hello')\n",
    "app/deep/er/notes.txt": "notes\n" * 100,
    "app/zeta": "z",
    "app/Alpha": "a",
    "settings.json.j2": '{"port": {{ port }}, "names": {{ names | tojson }}}\n',
}
EXECUTABLES = ("app/zeta",)
LINKS = {"app/current": "deep/er", "app/note": "deep/er/notes.txt"}


@dataclass(frozen=True)
class Done:
    """What a child printed and how it ended."""

    code: int
    out: str
    err: str

    @property
    def digest(self) -> str:
        """The digest that `publish` printed."""
        assert self.code == 0, self.err
        return self.out.strip()

    @property
    def json(self) -> Any:
        assert self.code == 0, self.err
        return json.loads(self.out)


def run(
    arguments: Sequence[object],
    cwd: Path,
    environment: Mapping[str, str],
    *,
    prefix: Sequence[str] = (),
    build: Path = BUILD,
    umask: int = -1,
) -> Done:
    """Runs `build ARGUMENTS` in a child."""
    argv = [*prefix, str(build), *map(str, arguments)]
    done = subprocess.run(
        argv, cwd=cwd, env=dict(environment), capture_output=True, text=True, umask=umask, check=False
    )
    return Done(done.returncode, done.stdout, done.stderr)


@dataclass
class World:
    """The servers, and where a config file says that they are."""

    root: Path
    index: IndexServer
    config: Path
    archive: Path
    signer: Signer

    def environment(self, cache: Path, **more: str) -> dict[str, str]:
        """The whole environment of a child with its own store."""
        return {
            "PATH": os.environ["PATH"],
            "HOME": str(self.root / "home"),
            "XDG_CACHE_HOME": str(cache),
            "LAYERWRIGHT_CONFIG": str(self.config),
            "SOURCE_DATE_EPOCH": CREATED,
            **more,
        }

    def project(self, root: Path, profile: str = PROFILE) -> Path:
        """A new folder with the profile, its files and its lock; returns the path of the profile."""
        path = write_project(root, profile)
        done = run(["lock", path], root, self.environment(self.root / "cache"))
        assert done.code == 0, done.err
        return path

    def release(self, *packages: bytes) -> None:
        """Puts further .debs into the archive, signed again."""
        for data in packages:
            name = hashlib.sha256(data).hexdigest()[:16]
            (self.archive / "pool" / f"{name}.deb").write_bytes(data)
        _write_suites(self.archive, self.signer)


def write_project(root: Path, profile: str = PROFILE, *, backwards: bool = False, name: str = "small.yaml") -> Path:
    """The profile and its files, in this order or the other way round."""
    items = sorted(FILES.items(), reverse=backwards)
    for path, text in items:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_text(text)
        (root / path).chmod(0o755 if path in EXECUTABLES else 0o644)
    for path, target in sorted(LINKS.items(), reverse=backwards):
        (root / path).symlink_to(target)
    (root / name).write_text(profile)
    return root / name


@contextmanager
def world(root: Path) -> Iterator[World]:
    """A running world below `root`."""
    for name in ("home", "archive/pool", "cache"):
        (root / name).mkdir(parents=True)
    archive = root / "archive"
    for number, data in enumerate(_debs()):
        (archive / "pool" / f"{number}.deb").write_bytes(data)
    signer = Signer(root / "gpg")
    try:
        keyring = signer.key("archive")
        _write_suites(archive, signer)
        with loopback.serving(archive) as debian, indexserver.index_server() as index:
            index.publish(*_wheels())
            config = root / "config.toml"
            config.write_text(
                f'keyrings = ["{keyring}"]\n'
                f'[origins]\ndebian = "{debian}"\ndebian-security = "{debian}"\npypi = "{index.url}"\n'
            )
            yield World(root, index, config, archive, signer)
    finally:
        signer.close()


def _write_suites(archive: Path, signer: Signer) -> None:
    stanzas = [_stanza(path) for path in sorted((archive / "pool").iterdir())]
    for suite in (Suite("bookworm", stanzas), Suite("bookworm-updates"), Suite("bookworm-security")):
        shutil.rmtree(archive / "dists" / suite.name, ignore_errors=True)
        suite.write(archive, signer.sign(suite.release().encode(), "archive"))


def _stanza(path: Path) -> str:
    """The stanza of a .deb that `debs` made, with what Packages adds."""
    data = path.read_bytes()
    (control,) = (line for line in data.split(b"\0\0") if b"Package: " in line)
    text = control.strip(b"\0").decode()
    return (
        f"{text.strip()}\nFilename: pool/{path.name}\nSize: {len(data)}\nSHA256: {hashlib.sha256(data).hexdigest()}\n"
    )


def package(name: str, version: str, items: Sequence[Item], **fields: str) -> bytes:
    """A .deb whose control can be read without unpacking."""
    control = debarchive.stanza(name, version, **fields)
    return debarchive.deb(items, control, control_suffix="")


def _debs() -> list[bytes]:
    words = "".join(random.Random(1).choices("abcdefgh ", k=400_000)).encode()
    return [
        package(
            "base-files",
            "12.4",
            [
                folder("./etc"),
                Item("./etc/debian_version", b"12.5\n"),
                folder("./tmp", 0o1777),
                symlink("./lib", "usr/lib"),
            ],
        ),
        package("libc6", "2.36-9", [folder("./lib"), Item("./lib/x86_64-linux-gnu/libc.so.6", words, mode=0o755)]),
        package("hello", "2.10-3", [Item("./usr/bin/hello", b"#!/bin/true\n", mode=0o755)], depends="libc6 (>= 2.34)"),
        package("tool", "1.0", [Item("./usr/bin/tool", b"#!/bin/true\n", mode=0o755)]),
        package(
            "python3.11",
            "3.11.2-6",
            [Item("./usr/share/python3/runtime", b"3.11\n")],
            depends="python3.11-minimal (= 3.11.2-6), libc6 (>= 2.29)",
        ),
        package(
            "python3.11-minimal",
            "3.11.2-6",
            [Item("./usr/bin/python3.11", b"no interpreter\n", mode=0o755)],
            depends="libc6",
        ),
    ]


def _wheels() -> list[indexserver.Archive]:
    """`alpha` is large enough for an index, and for worker processes: half of it cannot be compressed."""
    chance = random.Random(2)
    blob = b"".join(chance.randbytes(2048) + bytes(2048) for _ in range(1000))
    return [
        indexserver.wheel("alpha", "1.0", files={"alpha/blob.bin": blob, "alpha/tool.py": b"def main(): ...\n" * 50}),
        indexserver.wheel("beta", "1.0", requires=["gamma"]),
        indexserver.wheel("beta", "1.1", requires=["gamma"]),
        indexserver.wheel("gamma", "3.0"),
        indexserver.wheel("moving-one", "1.0"),
        indexserver.wheel("moving-two", "1.0"),
    ]


@dataclass(frozen=True)
class Real:
    """A profile of real packages, published to a layout from a store of its own, where every layer was packed anew."""

    profile: Path
    out: Path
    cache: Path
    digest: str

    @classmethod
    def publish(cls, profile: Path, root: Path) -> Real:
        """Publishes it below `root`. Inputs come from this user's own store, as far as they are there, and are left in it."""
        kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerwright"
        mirrors = f"{os.environ.get('LAYERWRIGHT_MIRRORS', '')} {kept}"
        environment = {**os.environ, "XDG_CACHE_HOME": str(root / "cache"), "LAYERWRIGHT_MIRRORS": mirrors}
        done = run(["publish", "-q", profile, f"oci:{root / 'out'}"], root, environment)
        assert done.code == 0, done.err
        keep(profile.with_suffix(".lock.json"), Store(root / "cache/layerwright"), Store(kept))
        return cls(profile, root / "out", root / "cache", done.digest)


def keep(lock: Path, store: Store, other: Store) -> None:
    """Puts the inputs of a lock that are in `store` into the other one, too."""
    for file in locked_files(locks.parse(lock.read_text(), str(lock))):
        if store.has(file.digest) and not other.has(file.digest):
            with other.temporary() as path:
                shutil.copyfile(store.path(file.digest), path)
                other.adopt(path, file.digest)


def locked_files(lock: Lock) -> Iterator[LockedFile]:
    """The .debs and wheels of a lock."""
    for platform in lock.platforms:
        yield from (deb.file for deb in (platform.debian.packages if platform.debian else ()))
        yield from (wheel.file for wheel in platform.wheels)


@contextmanager
def everybodys_folder() -> Iterator[Path]:
    """A folder that other users can look into, as pytest's are not."""
    with tempfile.TemporaryDirectory() as name:
        Path(name).chmod(0o755)
        yield Path(name)


def other_user(folder: Path) -> list[str]:
    """What to put before a command so that somebody else runs it: another user if we are root, else one without a name."""
    nobody = pwd.getpwnam("nobody")
    candidates = [
        ["setpriv", "--reuid", str(nobody.pw_uid), "--regid", str(nobody.pw_gid), "--clear-groups"],
        ["unshare", "--user"],
    ]
    for candidate in candidates:
        argv = [*candidate, str(BUILD), "--version"]
        if (
            shutil.which(candidate[0])
            and subprocess.run(argv, cwd=folder, capture_output=True, check=False).returncode == 0
        ):
            return candidate
    pytest.skip("neither setpriv nor unshare gives us another user who can run this Python")
