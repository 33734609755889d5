"""What a node that pulls images whole gains by how layers are compressed: `python -m bench.compressions [PROFILE]`, as root.

Over a link of a given rate, as `bench.coldstart` has it. Each image is pulled by containerd and by soci-snapshotter in its parallel
mode, as `build node-config soci --mode parallel` sets it, and started lazily where it can be.
"""

from __future__ import annotations

import os
import subprocess
import tempfile
from pathlib import Path

from bench.coldstart import Images, Way, row, stack_path
from bench.link import link, registry
from bench.table import machine, say
from bench.words import about_starts, command_of_root, words


def main() -> None:
    parser = words("bench.compressions", "Measures pulls of images.", rounds=5)
    parser.add_argument("--rate", action="append", metavar="RATE", help="of the link, as tc writes it  [1gbit, 10gbit]")
    about_starts(parser, code="print(1)")
    arguments = parser.parse_args()
    build = command_of_root(parser, arguments.build)
    with tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir="/var/tmp") as name:
        settings = Path(name) / "soci.toml"
        cores = str(len(os.sched_getaffinity(0)))
        command = [str(build), "node-config", "soci", "--mode", "parallel", "--cores", cores]
        settings.write_bytes(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        ways = _ways(settings)
        images = Images(build, arguments.keep or Path(name) / "images", arguments.code, stack_path())
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
