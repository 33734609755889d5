"""Measures a profile and prints a table."""

from __future__ import annotations

import json
from dataclasses import asdict

from bench import engines, measurements, peers
from bench.measurements import MB
from bench.table import HEAD, line, machine, say
from bench.words import command, existing, words
from bench.workplace import workplace


def main() -> None:
    parser = words("bench", "Measures builds of a profile.", of="builds from cold; the median counts")
    parser.add_argument("--json", action="store_true", help="print JSON instead of the table")
    arguments = parser.parse_args()

    build, profile = command(parser, arguments.build, "bench"), existing(parser, arguments.profile)
    with workplace(str(build), profile) as work:
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
