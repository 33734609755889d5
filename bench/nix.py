"""What Nix as the engine costs, and what a second machine brings: `python -m bench.nix [PROFILE]`.

Every row is a store of its own, of Layerwright and of Nix; inputs come from the user's own store. The machines are stores on
this one (`ssh-ng://localhost?remote-store=`), each with two jobs on a core of its own; what asks them has the other cores.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import statistics
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from bench import watch
from bench.table import machine, say

_CONFIG = "build-users-group =\nsubstitute = false\nflake-registry =\n"
_SYSTEM = f"{os.uname().machine}-linux"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("profile", nargs="?", default="tests/data/real.yaml", type=Path, metavar="PROFILE")
    parser.add_argument("--build", default="build", help="the command that is measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--machines", action="store_true", help="measure one machine and two, instead")
    arguments = parser.parse_args()
    print(f"{machine()}\n\n| what | seconds |\n|---|---:|")
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir=kept) as name:
        try:
            bench = _Bench(arguments.build, arguments.profile, kept, Path(name), arguments.rounds)
            if arguments.machines:
                bench.machines()
            else:
                bench.engine()
        finally:
            subprocess.run(["chmod", "-R", "u+w", name], check=False)


class _Bench:
    def __init__(self, build: str, profile: Path, kept: Path, folder: Path, rounds: int) -> None:
        self._build, self._profile, self._folder, self._rounds = build, profile, folder, rounds
        mirrors = f"{os.environ.get('LAYERWRIGHT_MIRRORS', '')} {kept / 'layerwright'}"
        self._env = {**os.environ, "LAYERWRIGHT_MIRRORS": mirrors, "NIX_CONFIG": _CONFIG}

    def engine(self) -> None:
        """Packing here, by Nix, and what is left of it when Nix, or the local store, has the layers."""
        here, there, again, taken, nothing = [], [], [], [], []
        layers = 0
        for _ in range(self._rounds):
            say("packing here")
            here.append(self._run("here", [], first=True))
            say("packing by Nix")
            there.append(self._run("there", ["--max-jobs", "4"], first=True))
            layers = sum(1 for _ in self._outputs("there"))
            nothing.append(self._run("there", []))
            self._forget("there")
            taken.append(self._run("there", []))
            self._forget("there")
            for record in self._outputs("there"):
                path = f"/nix/store/{record.parents[2].name}"
                where = {**self._env, "NIX_REMOTE": str(self._folder / "there/nix")}
                subprocess.run(["nix-store", "--delete", path], env=where, check=True, capture_output=True)
            again.append(self._run("there", ["--max-jobs", "4"]))
        for what, costs in (
            ("packed here", here),
            (f"by Nix, {layers} layers, inputs and packer added", there),
            ("by Nix, inputs and packer there", again),
            ("Nix has all layers", taken),
            ("nothing changed", nothing),
        ):
            print(f"| {what} | {statistics.median(costs):.2f} |", flush=True)
        more = (statistics.median(again) - statistics.median(here)) / max(1, layers)
        print(f"| more for each layer | {more:.2f} |", flush=True)

    def machines(self) -> None:
        """One machine of two jobs, and two, in turns; the least of each counts, because others may use the cores."""
        *near, first, second = sorted(os.sched_getaffinity(0)) or (0, 0, 0)
        costs: dict[int, list[float]] = {1: [], 2: []}
        for count in (1, 2) * self._rounds:
            say(f"{count} machines")
            lines = [self._machine(number, core) for number, core in enumerate((first, second)[:count])]
            options = ["--max-jobs", "0", "--builders", " ; ".join(lines)]
            costs[count].append(self._run("machines", options, first=True, cores=near))
            self._remove("machines")
        for count, seconds in costs.items():
            print(f"| {count} {'machines' if count > 1 else 'machine'} of 2 jobs | {min(seconds):.2f} |", flush=True)
        print(f"| times as fast | {min(costs[1]) / min(costs[2]):.2f} |", flush=True)

    def _machine(self, number: int, core: int) -> str:
        """A machine that has one core, as `--builders` names it."""
        program = self._folder / f"daemon-{number}"
        program.write_text(f'#!/bin/sh\nexec taskset -c {core} nix-daemon "$@"\n')
        program.chmod(0o755)
        store = self._folder / "machines" / f"far-{number}"
        return f"ssh-ng://localhost?remote-store={store}&remote-program={program} {_SYSTEM} - 2 1"

    def _run(self, name: str, options: Sequence[str], *, first: bool = False, cores: Sequence[int] = ()) -> float:
        """Seconds of an assembly on the machine `name`, a new one if it is the `first`, where inputs are there already; on these
        `cores`, if it is not all."""
        root = self._folder / name
        if first:
            self._remove(name)
            root.mkdir()
            self._fetch(root)
        env: Mapping[str, str] = {**self._env, "XDG_CACHE_HOME": str(root / "cache"), "NIX_REMOTE": str(root / "nix")}
        engine = [] if name == "here" else ["--engine", "nix", *options]
        argv = [self._build, "assemble", str(self._profile), "-o", f"oci:{root / 'out'}", "--no-attach", *engine]
        return watch.run(argv, env, cpus=cores).wall

    def _fetch(self, root: Path) -> None:
        """The inputs of the lock, as hard links into the stores that are on the same disk."""
        lock = json.loads(self._profile.with_suffix(".lock.json").read_bytes())
        for mirror in self._env["LAYERWRIGHT_MIRRORS"].split():
            for hexdigest in _digests(lock):
                inner = Path("sha256", hexdigest[:2], hexdigest)
                place = root / "cache/layerwright" / inner
                if (Path(mirror) / inner).is_file() and not place.exists():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    os.link(Path(mirror) / inner, place)

    def _forget(self, name: str) -> None:
        """The local store loses its layers."""
        store = self._folder / name / "cache/layerwright"
        for kind in ("layer", "ztoc"):
            for record in (store / "records" / kind).iterdir():
                for digest in json.loads(record.read_bytes())["objects"]:
                    hexdigest = digest.removeprefix("sha256:")
                    (store / "sha256" / hexdigest[:2] / hexdigest).unlink(missing_ok=True)
                record.unlink()

    def _outputs(self, name: str) -> list[Path]:
        return list((self._folder / name / "nix/nix/store").glob("*/records/layer/*"))

    def _remove(self, name: str) -> None:
        subprocess.run(["chmod", "-R", "u+w", str(self._folder / name)], check=False, stderr=subprocess.DEVNULL)
        shutil.rmtree(self._folder / name, ignore_errors=True)


def _digests(document: object) -> set[str]:
    """All digests in a lock."""
    if isinstance(document, dict):
        own = {document["sha256"]} if isinstance(document.get("sha256"), str) else set()
        return own.union(*map(_digests, document.values()))
    return set().union(*map(_digests, document)) if isinstance(document, list) else set()


if __name__ == "__main__":
    main()
