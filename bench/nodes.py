"""What settings of nodes change: `python -m bench.nodes [PROFILE]`, as root. Each round starts every way once, one after another.

The settings are those that `build node-config` prints, one by one; the link, the images and the program those of bench.coldstart.
"""

from __future__ import annotations

import statistics
import tempfile
from dataclasses import dataclass
from pathlib import Path

from bench.coldstart import Images, Way, stack_path
from bench.link import link, registry, require
from bench.table import machine, say
from bench.words import about_starts, command_of_root, words
from builder.coldstart.recommended import Node, soci_text
from builder.coldstart.values import Start

MB = 10**6
_LAZY = "[background_fetch]\ndisable = true\n[pull_modes.soci_v2]\nenable = true\n"
_FUSE = "[fuse]\nattr_timeout = 3600\nentry_timeout = 3600\nnegative_timeout = 3600\n"
_PREFETCH = "[prefetch]\nenable = true\n"


@dataclass(frozen=True)
class Variant:
    """A way to start, and the snapshotter's settings; `settings` is empty where it is not asked."""

    name: str
    way: Way
    settings: str = ""


_PLAIN, _AHEAD, _FIRST = Way("", "bytecode"), Way("", "adaptive", ahead=True), Way("", "prefetch")
VARIANTS = (
    Variant("lazily, settings by default", _PLAIN, _LAZY),
    Variant("FUSE timeouts of an hour", _PLAIN, _LAZY + _FUSE),
    Variant("fetching in the background, too", _PLAIN, _LAZY.replace("true", "false", 1)),
    Variant("reading ahead", _AHEAD, _LAZY),
    Variant("reading ahead, FUSE timeouts of an hour", _AHEAD, _LAZY + _FUSE),
    Variant("index with a list, `[prefetch]` off", _FIRST, _LAZY),
    Variant("index with a list, `[prefetch]` on", _FIRST, _LAZY + _PREFETCH),
    Variant("the same, FUSE timeouts of an hour", _FIRST, _LAZY + _PREFETCH + _FUSE),
    Variant("pulled whole, overlayfs", Way("", "bytecode", "overlayfs")),
    Variant("pulled whole, `parallel_pull_unpack`", _PLAIN, soci_text(Node(mode="parallel"))),
)


def main() -> None:
    parser = words("bench.nodes", "Measures settings of nodes.")
    parser.add_argument("--rate", default="1gbit", help="of the link, as tc writes it")
    about_starts(parser)
    parser.add_argument("--only", action="append", type=int, metavar="NUMBER", help="only these, from 1")
    arguments = parser.parse_args()
    build = command_of_root(parser, arguments.build)
    chosen = [item for number, item in enumerate(VARIANTS, 1) if not arguments.only or number in arguments.only]
    with tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir="/var/tmp") as name:
        images = Images(build, arguments.keep or Path(name) / "images", arguments.code, stack_path())
        images.make(arguments.profile, {item.way.tag for item in chosen}, require("soci-peer"))
        starts: dict[str, list[Start]] = {item.name: [] for item in chosen}
        with link(arguments.rate) as at, registry(at, Path(name) / "registry"):
            images.publish(at)
            for number in range(arguments.rounds):
                for item in chosen:
                    settings = Path(name) / "settings.toml"
                    settings.write_text(item.settings)
                    more = ["--node-config", settings] if item.settings else ["--timeout", 600]
                    (start,) = images.start(at, item.way, 1, *more).cold()
                    say(f"{number + 1} of {arguments.rounds}: {item.name}: {start.seconds:.1f} s")
                    starts[item.name].append(start)
        print(
            f"{arguments.profile}, {arguments.code!r}, {arguments.rate}, medians of {arguments.rounds}, on {machine()}\n"
        )
        print("| settings | ready after, s | spread | pull | program | moved |")
        print("|---|---:|---|---:|---:|---:|")
        for told, found in starts.items():
            print(_row(told, found))


def _row(name: str, starts: list[Start]) -> str:
    seconds = sorted(start.seconds for start in starts)
    pull, program = (
        statistics.median(start.seconds_of(phase) or 0.0 for start in starts) for phase in ("pull", "program")
    )
    moved = statistics.median(start.bytes for start in starts) / MB
    return (
        f"| {name} | {statistics.median(seconds):.1f} | {seconds[0]:.1f}-{seconds[-1]:.1f} | {pull:.1f} | {program:.1f} "
        f"| {moved:,.0f} MB |"
    )


if __name__ == "__main__":
    main()
