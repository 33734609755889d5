"""What it takes to have a model, whole or by the tensor, beside oras: `python -m bench.models`.

A registry runs here; a way before it makes it as slow, or as far, as one elsewhere. The model is one file of random bytes in
64 tensors of 16 MiB; what is pulled lies in memory (tmpfs) where there is room, so that no disk is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from bench import watch
from bench.measurements import MB, Row, median
from bench.pacing import way
from bench.table import HEAD, line, machine, say
from bench.watch import Cost

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # where the peers are known
import judges

_RATE = 50 * MB
_LATENCY = 0.02
_TENSOR = 16 << 20
_SHAPE = (2048, 4096)
_SETTLED = 2.5
"""Seconds after which a file counts as one that nobody writes to any more: it is remembered, and not read again."""
_NAME = "bench/model"

_READ = """
import json, sys, time
begun = time.perf_counter()
import builder.models
imported = time.perf_counter()
from builder.models import open_model
from builder.models import lazy, tensors
import numpy, urllib3, builder.places.opening
loaded = time.perf_counter()
model = open_model(sys.argv[1], cache=sys.argv[2])
opened = time.perf_counter()
if sys.argv[3] == "first":
    model.tensor("t031").numpy()
elif sys.argv[3] == "half":
    model.prefetch(part=lambda tensor: slice(tensor.shape[0] // 2)).wait()
    for name in model.names():
        assert model.tensor(name)[: 1024].shape == (1024, 4096)
done = time.perf_counter()
print(json.dumps({"import": imported - begun, "open": opened - loaded, "read": done - opened}))
"""


@dataclass(frozen=True)
class Bench:
    """What the measurements share: where things are, and the address of the registry."""

    folder: Path
    build: str
    python: str
    address: str
    rounds: int
    size: int

    def pull(
        self,
        address: str,
        *,
        cache: str = "cache",
        keep: bool = False,
        reference: str = ":v1",
        environ: Mapping[str, str] = os.environ,
    ) -> Cost:
        """One pull into a new folder; cache and folder are removed again unless they are to be kept."""
        target, store = self.folder / "pulled", self.folder / cache
        command = [self.build, "model", "pull", f"{address}/{_NAME}{reference}", str(target), "--cache", str(store)]
        cost = watch.run([*command, "--quiet"], environ)
        shutil.rmtree(target)
        if not keep:
            shutil.rmtree(store)
        return cost

    def oras(self, program: str, address: str, environ: Mapping[str, str] = os.environ) -> Cost:
        """The same by `oras pull`; a registry with a name speaks TLS."""
        target = self.folder / "pulled"
        plain = f"--plain-http={'true' if address[0].isdigit() else 'false'}"
        cost = watch.run([program, "pull", plain, "-o", str(target), f"{address}/{_NAME}:v1"], environ)
        shutil.rmtree(target)
        return cost

    def read(self, address: str, what: str) -> dict[str, float]:
        """Seconds that a fresh process with an empty cache takes to import, to open the model and to read of it."""
        store = self.folder / "lazy"
        command = [self.python, "-c", _READ, f"{address}/{_NAME}:v1", str(store), what]
        said: dict[str, float] = json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout)
        shutil.rmtree(store)
        return said


def pulls(bench: Bench, oras: str | None) -> Iterator[Row]:
    """Whole, from a registry that is slow for each connection, and from one that is not."""
    for rate, what in ((_RATE, f"{_RATE / MB:.0f} MB/s a connection"), (0, "no cap")):
        with _way(bench, rate) as address:
            theirs: list[Cost] = []
            ours: list[Cost] = []
            for number in range(bench.rounds):
                ours.append(bench.pull(address))
                if oras and (not rate or not number):
                    theirs.append(bench.oras(oras, address))
            cost = median(ours)
            yield Row(f"pull, {what}: build model pull", cost, _rate(bench.size, cost))
            if theirs:
                note = f"{_rate(bench.size, median(theirs))}; {median(theirs).wall / cost.wall:.1f} x our time"
                yield Row(f"pull, {what}: oras pull", median(theirs), note)


def encrypted(bench: Bench, oras: str | None) -> Iterator[Row]:
    """Whole, from the same registry behind TLS, without a cap."""
    with _tls(bench.folder) as (address, environ):
        theirs: list[Cost] = []
        ours: list[Cost] = []
        for _ in range(bench.rounds):
            ours.append(bench.pull(address, environ=environ))
            if oras:
                theirs.append(bench.oras(oras, address, environ))
        cost = median(ours)
        yield Row("pull, TLS: build model pull", cost, _rate(bench.size, cost))
        if theirs:
            note = f"{_rate(bench.size, median(theirs))}; {median(theirs).wall / cost.wall:.1f} x our time"
            yield Row("pull, TLS: oras pull", median(theirs), note)


def replicas(bench: Bench) -> Iterator[Row]:
    """A second one on the node, by digest and by tag."""
    with way(bench.address) as counting:
        bench.pull(counting.address, keep=True)
        digest = subprocess.run(
            [bench.build, "model", "inspect", "--format", "json", f"{bench.address}/{_NAME}:v1"],
            stdout=subprocess.PIPE,
            check=True,
        ).stdout
        before = counting.received
        cost = bench.pull(counting.address, keep=True)
        yield Row("second replica, by tag", cost, f"{counting.received - before:,} bytes came")
        before = counting.received + counting.sent
        reference = "@" + str(json.loads(digest)["digest"])
        cost = bench.pull(counting.address, reference=reference)
        yield Row(
            "second replica, by digest", cost, f"{counting.received + counting.sent - before:,} bytes came and went"
        )


def parts(bench: Bench) -> Iterator[Row]:
    """By the tensor, over a link of 20 ms on which each connection has 50 MB/s."""
    what = f"{_LATENCY * 1000:.0f} ms, {_RATE / MB:.0f} MB/s a connection"
    for kind, label in (
        ("open", "open the model"),
        ("first", "open, one tensor of 16 MiB"),
        ("half", "half of every tensor"),
    ):
        found: list[dict[str, Any]] = []
        for _ in range(max(bench.rounds, 3)):
            with way(bench.address, _RATE, _LATENCY) as far:
                said = bench.read(far.address, kind)
                found.append(said | {"moved": far.received, "wall": said["open"] + said["read"]})
        middle = sorted(found, key=lambda each: each["wall"])[len(found) // 2]
        note = f"import {middle['import'] * 1000:.0f} ms, open {middle['open'] * 1000:.0f} ms, then {middle['read'] * 1000:.0f} ms"
        moved = middle["moved"]
        yield Row(f"{label}, {what}", Cost(middle["wall"], 0), f"{note}; {moved:,} bytes, {moved / bench.size:.1%}")


@contextmanager
def _tls(folder: Path) -> Iterator[tuple[str, Mapping[str, str]]]:
    """The address of a registry of what is in `folder` that speaks TLS only, and the environment in which it is trusted."""
    own = Path(tempfile.mkdtemp(dir=folder))
    (own / "data").symlink_to(folder / "registry/data")
    key, certificate = str(own / "key.pem"), str(own / "certificate.pem")
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes"]
    command += ["-days", "2", "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, capture_output=True)
    settings = {"REGISTRY_HTTP_TLS_CERTIFICATE": certificate, "REGISTRY_HTTP_TLS_KEY": key}
    with judges.registry("docker-registry", own, settings) as address:
        yield f"localhost:{address.rpartition(':')[2]}", {**os.environ, "SSL_CERT_FILE": certificate}


@contextmanager
def _way(bench: Bench, rate: int) -> Iterator[str]:
    """The address to pull from; a registry without a cap is asked without anything between."""
    if not rate:
        yield bench.address
        return
    with way(bench.address, rate) as slow:
        yield slow.address


def publications(bench: Bench, source: Path, oras: str | None) -> Iterator[Row]:
    """The model into repositories that have nothing, by a store that knows nothing of it; again when nothing has changed, by the
    same store and by one that never saw the model. Plain and over TLS; the first one is what is pulled afterwards."""
    for way_there, place in (("", nullcontext((bench.address, os.environ))), (" over TLS", _tls(bench.folder))):
        costs: dict[str, list[Cost]] = {}
        with place as (address, environ):
            for number in range(bench.rounds):
                name = f"{address}/{_NAME}" + (f"{way_there[-3:].lower()}-{number}" if number or way_there else "")
                command = [bench.build, "model", "publish", "--quiet", str(source), f"{name}:v1"]
                stores = [{**environ, "XDG_CACHE_HOME": str(bench.folder / f"store-{each}")} for each in range(2)]
                for what, store in (("", 0), (" again", 0), (" again by another machine", 1)):
                    key = f"publish{way_there}{what}: build model publish"
                    costs.setdefault(key, []).append(watch.run(command, stores[store]))
                for each in stores:
                    shutil.rmtree(each["XDG_CACHE_HOME"])
                push = _push(oras, source, f"{name}-oras:v1") if oras else []
                for what in ("", " again") if push else ():
                    costs.setdefault(f"publish{way_there}{what}: oras push", []).append(watch.run(push, environ))
        for key, found in costs.items():
            yield Row(key, median(found), "no byte moved" if " again" in key else _rate(bench.size, median(found)))


def _push(oras: str, source: Path, name: str) -> list[str]:
    """The command that pushes all files of a folder by oras, whose titles are the paths that it is given."""
    files = sorted(path.name for path in source.iterdir())
    plain = f"--plain-http={'true' if name[0].isdigit() else 'false'}"
    return ["sh", "-c", f'cd "$0" && exec "$@" {" ".join(files)}', str(source), oras, "push", plain, name]


def _source(folder: Path, tensors: int) -> tuple[Path, int]:
    """The model's folder, and the size of its weights."""
    source = folder / "source"
    source.mkdir()
    described: Mapping[str, object] = {
        f"t{number:03}": {"dtype": "F16", "shape": _SHAPE, "data_offsets": [number * _TENSOR, (number + 1) * _TENSOR]}
        for number in range(tensors)
    }
    header = json.dumps(described).encode()
    header += b" " * (-len(header) % 8)
    with (source / "model.safetensors").open("wb") as file:
        file.write(len(header).to_bytes(8, "little") + header)
        for _ in range(tensors):
            file.write(os.urandom(_TENSOR))
        size = file.tell()
    (source / "config.json").write_text("{}\n")
    time.sleep(_SETTLED)
    return source, size


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench.models", description="Measures publications of models, pulls, and reads."
    )
    parser.add_argument("--build", default="build", help="the command to measure")
    parser.add_argument("--rounds", type=int, default=3, metavar="N", help="of each; the median counts")
    parser.add_argument("--tensors", type=int, default=64, metavar="N", help="of 16 MiB each")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where the registry and pulled models are")
    arguments = parser.parse_args()
    build = shutil.which(arguments.build)
    if not build:
        parser.error(f"there is no command {arguments.build}")
    try:
        oras: str | None = str(judges.require("oras"))
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        say(f"without oras: {error}")
        oras = None
    with tempfile.TemporaryDirectory(
        prefix="layerwright-bench-", dir=arguments.data or _roomy(arguments.tensors)
    ) as name:
        folder = Path(name)
        with judges.registry("docker-registry", folder / "registry") as address:
            source, size = _source(folder, arguments.tensors)
            bench = Bench(folder, build, str(Path(build).with_name("python")), address, arguments.rounds, size)
            rows = []
            published = publications(bench, source, oras)
            for measured in (published, pulls(bench, oras), encrypted(bench, oras), replicas(bench), parts(bench)):
                for row in measured:
                    say(f"{row.name}: {row.cost.wall:.2f} s, {row.note}")
                    rows.append(row)
                if measured is published:
                    shutil.rmtree(source)
    print(f"a model of {size / MB:,.0f} MB, on {machine()}; CPU and memory of the client alone\n")
    print(HEAD)
    print(*map(line, rows), sep="\n")


def _roomy(tensors: int) -> str | None:
    shared = Path("/dev/shm")
    return str(shared) if shared.is_dir() and shutil.disk_usage(shared).free > 5 * tensors * _TENSOR else None


def _rate(size: int, cost: Cost) -> str:
    return f"{size / cost.wall / MB:,.0f} MB/s"


if __name__ == "__main__":
    main()
