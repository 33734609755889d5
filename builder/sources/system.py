"""The system layer: Debian packages and the skeleton of the one virtual environment; and the interpreter that runs here."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from builder.layers.merge import Origin, merge
from builder.layers.tar import Entry, Inline, Kind
from builder.layers.unpack import unpack
from builder.lock import LockedDeb
from builder.oci import spec
from builder.oci.digest import Digest
from builder.plan import Bytecode, SystemLayer
from builder.sources import rootfs
from builder.sources.bytecode import Interpreter
from builder.sources.wheel import VENV, site_packages
from builder.store import Store


def entries(layer: SystemLayer, store: Store, spool: Path) -> tuple[Entry, ...]:
    """All entries of the system layer; the packages are in the store, `spool` is a folder for large contents."""
    origins = [Origin("Debian", _rootfs(layer.packages, store, spool, layer.executable))]
    if layer.executable and layer.python:
        origins.append(Origin("the environment", skeleton(layer.executable, layer.python)))
    return merge(origins)


def skeleton(executable: str, python: str) -> tuple[Entry, ...]:
    """An empty virtual environment (PEP 405) of the interpreter at `executable`, for Python `3.N`."""
    home = executable.rpartition("/")[0]
    config = f"home = {home}\ninclude-system-site-packages = false\nversion = {python}\n"
    return (
        Entry(f"{VENV}/pyvenv.cfg", content=Inline(config.encode())),
        Entry(f"{VENV}/bin/python", Kind.SYMLINK, 0o777, linkname=executable),
        Entry(f"{VENV}/bin/python3", Kind.SYMLINK, 0o777, linkname="python"),
        Entry(f"{VENV}/bin/python{python}", Kind.SYMLINK, 0o777, linkname="python"),
        Entry(f"{VENV}/lib64", Kind.SYMLINK, 0o777, linkname="lib"),
        Entry(site_packages(python), Kind.DIR, 0o755),
    )


def identity(bytecode: Bytecode) -> Digest:
    """The digest of all that decides what an interpreter compiles."""
    packages = [deb.file.sha256 for deb in bytecode.packages]
    return Digest.of(spec.encode({"packages": packages, "executable": bytecode.executable}))


def interpreter(bytecode: Bytecode, version: str, store: Store) -> Interpreter:
    """The interpreter's packages, unpacked in the store so that it can run on this machine; kept for the next time."""
    name = identity(bytecode).hex
    home = store.root / "interpreters"
    target = home / name
    with store.locked(f"interpreter-{name}"), store.explained():
        if not target.is_dir():
            home.mkdir(parents=True, exist_ok=True)
            with store.workspace() as folder:
                unpack(_rootfs(bytecode.packages, store, folder / "spool", bytecode.executable), folder / "root")
                (folder / "root").rename(target)
    return Interpreter(target, bytecode.executable, version)


def _rootfs(packages: Sequence[LockedDeb], store: Store, spool: Path, executable: str | None) -> tuple[Entry, ...]:
    return rootfs.entries(packages, lambda deb: store.path(deb.file.digest), spool, executable=executable)
