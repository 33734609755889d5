"""What looking at the binaries of a lock's wheels takes, and whether NVIDIA's own reader agrees: `python -m bench.binaries LOCK`.

The wheels have to be in the user's store, where `build assemble` puts them; each is read anew. With `--judge`, every library
with GPU code is unpacked, too, and given to `cuobjdump`, from the wheel nvidia-cuda-cuobjdump.
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import sys
import tempfile
import time
import zipfile
from collections.abc import Iterable, Iterator
from pathlib import Path

from bench.measurements import MB
from bench.table import machine, say
from builder import lock as locks
from builder.binaries import elf, fatbin
from builder.binaries.gather import gather
from builder.binaries.window import Window
from builder.lock import LockedWheel
from builder.progress import Silent
from builder.store import Store

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # where the judge is known
import judges


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.binaries", description=__doc__.splitlines()[0])
    parser.add_argument("lock", type=Path)
    parser.add_argument("--judge", action="store_true", help="compare with cuobjdump")
    arguments = parser.parse_args()
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerwright"
    store = Store(cache)
    lock = locks.parse(arguments.lock.read_text(), str(arguments.lock))
    wheels = [wheel for platform in lock.platforms for wheel in platform.wheels]
    here = [wheel for wheel in wheels if store.has(wheel.file.digest, wheel.file.size)]
    say(f"{len(here)} of {len(wheels)} wheels are in {cache}")
    print(f"{arguments.lock.name} on {machine()}\n")
    with tempfile.TemporaryDirectory(dir=cache) as folder:
        for what, seconds in _measured(here, store, Store(Path(folder))):
            print(f"{what}: {seconds:.2f} s")
    print(f"most memory: {resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024:.0f} MiB")
    if arguments.judge:
        for text in _judged(here, store):
            print(text)


def _measured(wheels: list[LockedWheel], store: Store, empty: Store) -> Iterator[tuple[str, float]]:
    for wheel in wheels:
        path = empty.path(wheel.file.digest)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.hardlink_to(store.path(wheel.file.digest))
    size = sum(wheel.file.size for wheel in wheels) / MB
    for what in ("read", "known"):
        begin = time.perf_counter()
        found = gather(wheels, empty, lambda _: None, Silent())
        seconds = time.perf_counter() - begin
        binaries = [binary for facts in found.values() for binary in facts.binaries]
        total = sum(binary.size for binary in binaries) / MB
        yield f"{what}: {len(wheels)} wheels of {size:,.0f} MB, {len(binaries)} binaries of {total:,.0f} MB", seconds


def _judged(wheels: Iterable[LockedWheel], store: Store) -> Iterator[str]:
    judge = judges.require("cuobjdump")
    for wheel in wheels:
        with zipfile.ZipFile(store.path(wheel.file.digest)) as archive, tempfile.TemporaryDirectory() as folder:
            for name in archive.namelist():
                if not re.search(r"\.so[.\d]*$", name):
                    continue
                path = Path(archive.extract(name, folder))
                ours = _ours(path)
                if ours is not None:
                    theirs = _theirs(judge, path)
                    verdict = (
                        "refused by cuobjdump" if theirs is None else "agree" if theirs == ours else f"DIFFER {theirs}"
                    )
                    yield f"{verdict}: {wheel.name} {name}: {' '.join(sorted(ours[0]))} | {' '.join(sorted(ours[1]))}"
                path.unlink()


def _ours(path: Path) -> tuple[frozenset[str], frozenset[str]] | None:
    """What its sections have, where cuobjdump looks. It lists `sm_100f` as `sm_100`."""
    with path.open("rb") as file:
        window = Window(file.fileno(), 0, path.stat().st_size, path.name)
        if window.size < 64 or window.read(0, 4, "it") != elf.MAGIC:
            return None
        gpu = elf.read(window).gpu
        found = fatbin.read(window, gpu)
    if not gpu:
        return None
    ptx = frozenset(name.replace("compute", "sm") for name in found.ptx)
    return frozenset(name.removesuffix("f") for name in found.sass), ptx


def _theirs(judge: Path, path: Path) -> tuple[frozenset[str], frozenset[str]] | None:
    """What cuobjdump lists; None where it takes the file for damaged, as it does with a few of NVIDIA's own."""
    found = []
    for option in ("--list-elf", "--list-ptx"):
        done = subprocess.run([judge, option, path], capture_output=True, text=True, check=False)
        if "fatal" in done.stderr:
            return None
        found.append(frozenset(re.findall(r"\.(sm_\w+)\.(?:cubin|ptx)", done.stdout)))
    return found[0], found[1]


if __name__ == "__main__":
    main()
