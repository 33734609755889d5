"""The model of the dynamic loader beside the real one, on whole images: `python -m bench.loader PROFILE... [--import NAME]`.

Each profile is locked, published to a layout, and unpacked into a folder; then, for every library and program of the image,
ld.so itself says in a chroot what it would load from where (LD_TRACE_LOADED_OBJECTS), and the model has to say the same.
Modules named with `--import` are imported by the image's own interpreter, without a GPU. Needs root, and space for the image
twice.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import stat
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from builder import lock as locks
from builder.findings import inputs
from builder.findings.loader import Loader, Process
from builder.findings.root import compose
from builder.lock import Lock
from builder.progress import Silent
from builder.store import Store

BUILD = Path(sys.executable).with_name("build")
LD_SO = "/lib64/ld-linux-x86-64.so.2"
_LINE = re.compile(r"\t(?:(\S+) => )?(not found|\S+)(?: \(0x[0-9a-f]+\))?")
_ENTER = """
import json, os, sys
environ = json.loads(sys.argv[2])
os.chroot(sys.argv[1])
os.chdir("/")
os.execve(sys.argv[3], sys.argv[3:], environ)
"""


@dataclass(frozen=True)
class Compared:
    """One image: how many files were compared, and what differs."""

    files: int
    found: int
    missing: int
    differences: tuple[str, ...]


def entered(root: Path, environ: Mapping[str, str], *argv: str) -> subprocess.CompletedProcess[str]:
    """Runs a program of an unpacked image in it."""
    command = [sys.executable, "-ISc", _ENTER, str(root), json.dumps(dict(environ)), *argv]
    return subprocess.run(command, capture_output=True, text=True, check=False)


def real(root: Path, environ: Mapping[str, str], path: str) -> dict[str, str]:
    """What ld.so says that a file gets: names, and real paths below the root or `not found`."""
    traced = {**environ, "LD_TRACE_LOADED_OBJECTS": "1"}
    done = entered(root, traced, LD_SO, path)
    found = {}
    for line in done.stdout.splitlines():
        match = _LINE.fullmatch(line)
        if match and not match[2].startswith("linux-vdso") and "ld-linux" not in match[2]:
            found[match[1] or match[2]] = match[2] if match[2] == "not found" else _inside(root, match[2])
    return found


def _inside(root: Path, path: str) -> str:
    """Where a path leads in the root; the image's own links are absolute only in it."""
    parts = [part for part in reversed(path.split("/")) if part]
    here: list[str] = []
    while parts:
        part = parts.pop()
        if part in ("..", "."):
            del here[len(here) - (part == "..") :]
            continue
        place = root.joinpath(*here, part)
        if place.is_symlink():
            target = os.readlink(place)
            here = [] if target.startswith("/") else here
            parts += [part for part in reversed(target.split("/")) if part]
        else:
            here.append(part)
    return "/" + "/".join(here)


def modelled(loader: Loader, path: str) -> dict[str, str]:
    """What the model says that a file gets."""
    process = Process(loader, path)
    found = {item.name: item.file.path for item in process.maps if item.how not in ("the program", "the loader")}
    return found | {name: "not found" for item in process.maps for name in item.missing}


def compare(root: Path, lock: Lock, store: Store, environ: Mapping[str, str]) -> Compared:
    """Compares every ELF file of the image's first platform."""
    (locked, *_) = lock.platforms
    facts = inputs.read(locked, store, lambda files: None, Silent())
    tree = compose(inputs.of(locked, facts), inputs.python(locked))
    search = inputs.search(locked, environ)
    loader = Loader(tree, type(search)(search.machine, search.library_path, None))  # nothing makes a cache in a chroot
    files = [file.path for file in tree.binaries if file.binary and file.binary.machine == search.machine]
    with ThreadPoolExecutor(4) as pool:
        judged = dict(zip(files, pool.map(lambda path: real(root, environ, path), files), strict=True))
    differences, found, missing = [], 0, 0
    for path in files:
        said = modelled(loader, path)
        found += sum(place != "not found" for place in judged[path].values())
        missing += sum(place == "not found" for place in judged[path].values())
        if said != judged[path]:
            names = sorted(name for name in {*said, *judged[path]} if said.get(name) != judged[path].get(name))
            differences += [f"{path}: {name}: {judged[path].get(name)}, model: {said.get(name)}" for name in names]
    return Compared(len(files), found, missing, tuple(differences))


def unpack(layout: Path, root: Path) -> dict[str, str]:
    """Unpacks the one image of a layout; returns its variables."""

    def blob(digest: str) -> Path:
        return layout / "blobs/sha256" / digest.partition(":")[2]

    document = json.loads((layout / "index.json").read_bytes())
    while "manifests" in document:
        document = json.loads(blob(document["manifests"][0]["digest"]).read_bytes())
    root.mkdir()
    for layer in document["layers"]:
        subprocess.run(["tar", "-xzf", blob(layer["digest"]), "-C", root], check=True)
    config = json.loads(blob(document["config"]["digest"]).read_bytes())["config"]
    return dict(line.partition("=")[::2] for line in config.get("Env", ()))


def main() -> None:
    """Compares the images of some profiles."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profiles", nargs="+", type=Path)
    parser.add_argument("--import", dest="modules", action="append", default=[])
    asked = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    failed = False
    for profile in asked.profiles:
        with tempfile.TemporaryDirectory(prefix="bench-loader-") as name:
            folder = Path(name)
            subprocess.run([BUILD, "publish", "-q", profile, f"oci:{folder / 'out'}"], check=True)
            environ = unpack(folder / "out", folder / "root")
            lock = locks.parse(profile.with_suffix(".lock.json").read_text(), str(profile))
            start = time.perf_counter()
            compared = compare(folder / "root", lock, Store(cache / "layerwright"), environ)
            took = time.perf_counter() - start
            print(
                f"{profile.stem}: {compared.files} ELF files, {compared.found} libraries found, {compared.missing} not; "
                f"{len(compared.differences)} differences to ld.so ({took:.1f} s)"
            )
            for line in compared.differences[:20]:
                print(f"  {line}")
            failed |= bool(compared.differences)
            for device, minor in (("null", 3), ("urandom", 9)):
                (folder / "root/dev").mkdir(exist_ok=True)
                os.mknod(folder / "root/dev" / device, 0o666 | stat.S_IFCHR, os.makedev(1, minor))
            for module in asked.modules:
                program = f"import {module}; print({module}.__version__)"
                done = entered(folder / "root", environ, "/opt/venv/bin/python", "-c", program)
                print(f"  import {module}: {(done.stdout or done.stderr).strip().splitlines()[-1:]}")
    sys.exit(failed)


if __name__ == "__main__":
    main()
