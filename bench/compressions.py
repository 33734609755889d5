"""What a node that pulls images whole gains by how layers are compressed: `python -m bench.compressions [PROFILE]`, as root.

Over a link of a given rate, as `bench.coldstart` has it. Each image is pulled by containerd and by soci-snapshotter in its parallel
mode, as `build node-config soci --mode parallel` sets it, and started lazily where it can be.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
from pathlib import Path

from bench.coldstart import Images, Way, row, stack_path
from bench.link import link, registry
from bench.table import machine, say


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.compressions", description="Measures pulls of images.")
    parser.add_argument("profile", nargs="?", type=Path, default=Path("profiles/torch-cuda.yaml"))
    parser.add_argument("--build", default="build", help="the command to measure")
    parser.add_argument("--rounds", type=int, default=5, metavar="N", help="of each way")
    parser.add_argument("--rate", action="append", metavar="RATE", help="of the link, as tc writes it  [1gbit, 10gbit]")
    parser.add_argument("--code", default="print(1)", help="what the image's Python runs")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="where images are kept")
    arguments = parser.parse_args()
    build = shutil.which(arguments.build)
    if not build or os.geteuid() != 0:
        parser.error("this needs the command `build`, and root")
    with tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir="/var/tmp") as name:
        settings = Path(name) / "soci.toml"
        command = [build, "node-config", "soci", "--mode", "parallel", "--cores", str(len(os.sched_getaffinity(0)))]
        settings.write_bytes(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        ways = _ways(settings)
        images = Images(Path(build).absolute(), arguments.keep or Path(name) / "images", arguments.code, stack_path())
        images.make(arguments.profile, {way.tag for way in ways}, Path())
        print(f"{arguments.profile}, {arguments.code!r}, medians of {arguments.rounds}, on {machine()}\n")
        for rate in arguments.rate or ["1gbit", "10gbit"]:
            with link(rate) as at, registry(at, Path(name) / "registry"):
                say(f"{rate}: publishing")
                images.publish(at)
                rows = [row(images, at, way, arguments.rounds) for way in ways]
            print(f"| {rate} | ready after, s | spread | pull | program | moved | requests, spans |")
            print("|---|---:|---|---:|---:|---:|---:|")
            print(*rows, sep="\n", end="\n\n")


def _ways(settings: Path) -> list[Way]:
    kinds = ("gzip", "zstd", "none")
    return [
        *(Way(f"{kind}, pulled whole by containerd", kind, "overlayfs") for kind in kinds),
        *(Way(f"{kind}, in parallel", kind, options=("--node-config", str(settings))) for kind in kinds),
        *(Way(f"{kind}, lazily", kind) for kind in ("gzip", "none")),
    ]


if __name__ == "__main__":
    main()
