"""Measures a profile and prints a table."""

from __future__ import annotations

import argparse
import json
import os
import shutil
from dataclasses import asdict
from pathlib import Path

from bench import engines, measurements, peers
from bench.measurements import MB
from bench.table import HEAD, line, machine, say
from bench.workplace import workplace


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description="Measures builds of a profile.")
    parser.add_argument("profile", nargs="?", type=Path, default=Path("profiles/torch-cuda.yaml"))
    parser.add_argument("--build", default="build", help="the command to measure")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="builds from cold; the median counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    arguments = parser.parse_args()
    build = shutil.which(arguments.build)
    if not build:
        parser.error(f"there is no command {arguments.build}: `make bench` installs it")
    if not arguments.profile.is_file():
        parser.error(f"there is no profile {arguments.profile}")

    with workplace(os.path.abspath(build), arguments.profile) as work:
        wheels = [each for each in work.inputs if each.name.endswith(".whl")]
        if not wheels:
            parser.error(f"{arguments.profile} has no wheels to measure with")
        largest = max(wheels, key=lambda each: each.path.stat().st_size)
        say(f"inflate engines, on {largest.name}")
        rates = engines.rates(largest.path)
        say("the floor of this machine")
        rows = measurements.least([each.path for each in work.inputs], engines.fastest(rates))
        say("builds from cold")
        cold = measurements.cold(work, arguments.rounds, rows[-1].cost)
        rows.append(cold)
        say("builds with nothing and with little changed")
        rows += measurements.again(work)
        say("two cores and four")
        rows += measurements.cores(work)
        rows += measurements.start(work.build)
        say("peers, where they are on PATH")
        rows += peers.measure(work, cold.cost)

    table = [(rate.engine.name, rate.cost.cpu, rate.size / rate.cost.cpu / MB) for rate in rates]
    if arguments.json:
        document = {
            "machine": machine(),
            "profile": str(arguments.profile),
            "rows": [asdict(row) for row in rows],
            "engines": [{"name": name, "cpu": cpu, "rate": rate} for name, cpu, rate in table],
        }
        print(json.dumps(document, indent=2))
        return
    print(f"{arguments.profile} on {machine()}\n")
    print(HEAD)
    print(*map(line, rows), sep="\n")
    print(f"\n| inflating {largest.name}, one core | CPU s | MB/s of output |\n|---|---:|---:|")
    print(*(f"| {name} | {cpu:.2f} | {rate:,.0f} |" for name, cpu, rate in table), sep="\n")


if __name__ == "__main__":
    main()
