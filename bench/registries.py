"""What it takes to bring images to a registry and back, beside others: `python -m bench.registries [PROFILE]`.

All servers run here, on the loopback, for as long as they are measured; what they keep lies in memory (tmpfs) where there
is room for it. The peers are those of tests/peers, built on demand, and what is on PATH.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from bench import buildkit, watch
from bench.measurements import MB, Row, median
from bench.pacing import way
from bench.peers import manifest_of, plain
from bench.table import HEAD, line, machine, say
from bench.watch import Cost
from bench.words import command, existing, words
from bench.workplace import Workplace, top_digest, workplace

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # where the peers are known
import judges

_RATE = 50 * MB
_BLOB = 2000 * MB
_BLOCK = 4 << 20
_ROOM = 3
_EMPTY = b"{}"
_EMPTY_TYPE = "application/vnd.oci.empty.v1+json"
_MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"


@dataclass(frozen=True)
class Tool:
    """A program that pushes; `command` tells how, from a layout with one image to a repository."""

    name: str
    command: Callable[[Path, str], Sequence[str | Path]]


@dataclass(frozen=True)
class Bench:
    """What the measurements share: `data` is where registries keep what they have."""

    work: Workplace
    home: Path
    data: Path
    rounds: int

    @property
    def env(self) -> dict[str, str]:
        """The environment of every command: no credentials, and a store of its own."""
        nobody = {"HOME": str(self.work.folder), "DOCKER_CONFIG": str(self.work.folder), "NO_PROXY": "127.0.0.1"}
        env = {**os.environ, **nobody, "XDG_CACHE_HOME": str(self.home)}
        env.pop("PYTHONDONTWRITEBYTECODE", None)  # an installed program has its bytecode
        return env

    @contextmanager
    def registry(self, kind: str) -> Iterator[str]:
        """A new registry without anything in it, and its address; it is gone afterwards with all that it has."""
        with (
            tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir=self.data) as folder,
            judges.registry(kind, Path(folder, "registry")) as address,
        ):
            yield address

    def publish(self, place: str, *options: str) -> tuple[Cost, Mapping[str, int]]:
        """One publication; what it took, and how many blobs and bytes of them it says to have moved."""
        with tempfile.TemporaryDirectory(dir=self.work.folder) as folder:
            said = Path(folder, "said")
            command = [self.work.build, "publish", str(self.work.profile), place, "--format", "json", *options]
            cost = watch.run(command, self.env, output=said)
            (destination,) = json.loads(said.read_bytes())["destinations"]
        moved: Mapping[str, int] = destination["moved"]
        return cost, moved


def pushes(bench: Bench, layout: Path, kind: str) -> list[Row]:
    """All tools push the same image into empty registries, one after the other, as often as there are rounds."""
    size = sum(path.stat().st_size for path in layout.glob("blobs/sha256/*"))
    tools = list(_tools(bench.work.build))
    costs: dict[str, list[Cost]] = {tool.name: [] for tool in tools}
    for _ in range(bench.rounds):
        for tool in tools:
            with bench.registry(kind) as address:
                command = [str(part) for part in tool.command(layout, f"{address}/bench:v1")]
                costs[tool.name].append(watch.run(command, bench.env))
        if buildkit.is_here():
            with bench.registry(kind) as address, buildkit.daemon(bench.work.layout()) as daemon:
                cost = daemon.push(layout, top_digest(layout), f"{address}/bench:v1", bench.env)
                costs.setdefault("buildctl build, FROM it", []).append(cost)
    rows = []
    for name, found in costs.items():
        cost = median(found)
        walls = ", ".join(f"{each.wall:.1f}" for each in found)
        rows.append(Row(f"push to {kind}: {name}", cost, f"{size / cost.wall / MB:,.0f} MB/s ({walls} s)"))
    return rows


def publications(bench: Bench, kind: str) -> list[Row]:
    """A profile whose layers are all packed goes to an empty registry; again; and with a file of the application changed."""
    rows = []
    with bench.registry(kind) as address, way(address) as counting:
        place = f"{address}/bench:v1"
        cost, moved = bench.publish(place)
        rows.append(Row("publish to an empty registry, layers packed", cost, _told(moved)))
        found = [bench.publish(place) for _ in range(max(bench.rounds, 3))]
        most = max((moved for _, moved in found), key=lambda moved: moved["bytes"])
        bench.publish(f"{counting.address}/bench:v1")  # the registry has two addresses: to us, those are two places
        before = counting.sent
        bench.publish(f"{counting.address}/bench:v1")
        note = f"{_told(most)}; {counting.sent - before:,} bytes sent in all, requests included"
        rows.append(Row("publish, nothing changed", median([cost for cost, _ in found]), note))
        changes = []
        for _ in range(max(bench.rounds, 3)):
            name = bench.work.change_file()
            changes.append(bench.publish(place, "--lock"))
        most = max((moved for _, moved in changes), key=lambda moved: moved["bytes"])
        name = bench.work.change_file()
        before = counting.sent
        bench.publish(f"{counting.address}/bench:v1", "--lock")
        note = f"{_told(most)}; {counting.sent - before:,} bytes sent in all, papers and requests included"
        rows.append(Row(f"publish, {name} changed", median([cost for cost, _ in changes]), note))
        bench.work.change_file()
        cost, moved = bench.publish(place, "--lock", "--no-attach")
        rows.append(Row(f"publish --no-attach, {name} changed", cost, _told(moved)))
    return rows


def pulls(bench: Bench, kind: str) -> list[Row]:
    """One large blob, from a registry that gives each connection so many bytes a second and no more."""
    rows: list[Row] = []
    with tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir=bench.data) as name:
        folder = Path(name)
        digest = _random_artifact(folder / "made")
        with bench.registry(kind) as address, way(address, _RATE) as slow:
            repository = f"{slow.address}/large"
            command = [bench.work.build, "copy", f"oci:{folder / 'made'}:v1", f"{address}/large:v1"]
            watch.run(command, bench.env)
            bench.work.remove(folder / "made")
            ours = []
            for _ in range(bench.rounds):
                target = folder / "pulled"
                command = [bench.work.build, "copy", f"{repository}:v1", f"oci:{target}"]
                ours.append(watch.run(command, bench.env))
                if not _same(target / "blobs" / "sha256" / digest, digest):
                    sys.exit("bench: what was pulled is not what was pushed")
                bench.work.remove(target)
            cost = median(ours)
            what = f"pull of {_BLOB / MB:,.0f} MB, {_RATE / MB:.0f} MB/s a connection"
            rows.append(Row(f"{what}: build copy", cost, _rate(cost)))
            oras = _program("oras")
            if oras is None:
                return rows
            for verb, command in {
                "oras pull": [oras, "pull", "--plain-http", "-o", str(folder / "out"), f"{repository}:v1"],
                "oras blob fetch": [
                    *(oras, "blob", "fetch", "--plain-http", "--output", str(folder / "file")),
                    f"{repository}@sha256:{digest}",
                ],
            }.items():
                cost_of = watch.run(command, bench.env)
                note = f"{_rate(cost_of)}; {cost_of.wall / cost.wall:.1f} x our time"
                rows.append(Row(f"{what}: {verb}, once", cost_of, note))
                shutil.rmtree(folder / "out", ignore_errors=True)
                (folder / "file").unlink(missing_ok=True)
    return rows


def main() -> None:
    parser = words("bench.registries", "Measures registries and peers.", of="of each push; the median counts")
    parser.add_argument("--registry", action="append", choices=("docker-registry", "olareg"), help="to push to")
    parser.add_argument("--data", type=Path, metavar="DIR", help="where registries keep what they have")
    parser.add_argument("--no-pull", action="store_true", help="leave out the pulls of one large blob")
    arguments = parser.parse_args()
    build, profile = command(parser, arguments.build, "bench-registries"), existing(parser, arguments.profile)
    kinds = arguments.registry or ["docker-registry", "olareg"]
    for kind in kinds:
        if _program(kind) is None:
            parser.error(f"there is no {kind}, and it cannot be built")

    with workplace(str(build), profile) as work:
        store, layout = work.store(), work.layout()
        say("packing the layers")
        work.publish(store, layout, "--no-attach")
        # The platform's image alone: skopeo cannot copy an index with a SOCI index in it as it is.
        image = work.layout()
        plain(layout, image, manifest_of(layout))
        size = sum(path.stat().st_size for path in layout.glob("blobs/sha256/*"))
        data = arguments.data or _roomy(max(size, 0 if arguments.no_pull else _BLOB), work.folder)
        bench = Bench(work, store, data, arguments.rounds)
        rows = []
        for kind in kinds:
            say(f"pushes to {kind}, which keeps what it has in {data}")
            rows += pushes(bench, image, kind)
        say("publications")
        rows += publications(bench, kinds[0])
        if not arguments.no_pull:
            say("pulls")
            rows += pulls(bench, kinds[0])
    print(
        f"{arguments.profile}, {size / MB:,.0f} MB in the registry, on {machine()}; CPU and memory of the client alone, and of "
        "BuildKit's daemon\n"
    )
    print(HEAD)
    print(*map(line, rows), sep="\n")


def _tools(build: str) -> Iterator[Tool]:
    """Ours and the peers that are here."""
    yield Tool("build copy", lambda layout, place: [build, "copy", f"oci:{layout}", place])
    if crane := _program("crane"):
        yield Tool("crane push", lambda layout, place: [crane, "push", "--insecure", layout, place])
    if oras := _program("oras"):
        yield Tool(
            "oras cp",
            lambda layout, place: [
                oras,
                "cp",
                "--from-oci-layout",
                "--to-plain-http",
                f"{layout}@{top_digest(layout)}",
                place,
            ],
        )
    if skopeo := shutil.which("skopeo"):
        yield Tool(
            "skopeo copy",
            lambda layout, place: [
                *(skopeo, "--insecure-policy", "copy", "--preserve-digests", "--dest-tls-verify=false"),
                *(f"oci:{layout}", f"docker://{place}"),
            ],
        )


def _program(name: str) -> str | None:
    """A judge of the tests, if it is here or can be built."""
    try:
        return str(judges.require(name))
    except (pytest.skip.Exception, pytest.fail.Exception) as error:
        say(f"without {name}: {error}")
        return None


def _roomy(size: int, otherwise: Path) -> Path:
    """Memory, if the largest that is kept at a time fits in with plenty left."""
    shared = Path("/dev/shm")
    return shared if shared.is_dir() and shutil.disk_usage(shared).free > _ROOM * size else otherwise


def _random_artifact(layout: Path) -> str:
    """Makes a layout with an artifact tagged `v1` whose one blob nothing can compress; the blob's digest in hex."""
    blobs = layout / "blobs" / "sha256"
    blobs.mkdir(parents=True)
    state = hashlib.sha256()
    with (layout / "large").open("wb") as file:
        for start in range(0, _BLOB, _BLOCK):
            block = os.urandom(min(_BLOCK, _BLOB - start))
            state.update(block)
            file.write(block)
    (layout / "large").rename(blobs / state.hexdigest())
    large = {
        "mediaType": "application/octet-stream",
        "digest": f"sha256:{state.hexdigest()}",
        "size": _BLOB,
        "annotations": {"org.opencontainers.image.title": "large"},
    }
    manifest = {
        "schemaVersion": 2,
        "mediaType": _MANIFEST_TYPE,
        "artifactType": "application/vnd.example.large",
        "config": _blob(blobs, _EMPTY, _EMPTY_TYPE),
        "layers": [large],
    }
    listed = _blob(blobs, json.dumps(manifest).encode(), _MANIFEST_TYPE)
    listed["annotations"] = {"org.opencontainers.image.ref.name": "v1"}
    (layout / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [listed]}))
    (layout / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
    return state.hexdigest()


def _blob(blobs: Path, data: bytes, media_type: str) -> dict[str, object]:
    """Writes a small blob; its descriptor."""
    name = hashlib.sha256(data).hexdigest()
    (blobs / name).write_bytes(data)
    return {"mediaType": media_type, "digest": f"sha256:{name}", "size": len(data)}


def _same(path: Path, digest: str) -> bool:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() == digest


def _told(moved: Mapping[str, int]) -> str:
    return f"{moved['bytes']:,} bytes in {moved['blobs']} blobs moved"


def _rate(cost: Cost) -> str:
    return f"{_BLOB / cost.wall / MB:,.0f} MB/s"


if __name__ == "__main__":
    main()
