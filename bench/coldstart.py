"""What a cold start takes over a link of a given rate, in several ways: `python -m bench.coldstart [PROFILE]`, as root.

The node (containerd, the snapshotter) is in a network namespace whose loopback has that rate (tc-tbf); what passes there is what
`build start` serves. Each round starts every way once, so that other work on the machine disturbs all of them alike. The
programs of the stack are those of tests/peers, built on demand, or those on PATH.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import services
from bench.link import Link, link, near, registry
from bench.peers import manifest_of, plain
from bench.table import machine, say
from bench.words import about_starts, command_of_root, words
from builder.coldstart import values
from builder.coldstart.values import Measurement, Start, Summary

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # where the peers are known
import judges

MB = 10**6
_PEERS = (
    "containerd",
    "containerd-shim-runc-v2",
    "ctr",
    "soci-snapshotter-grpc",
    "soci-peer",
    "containerd-stargz-grpc",
)
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Way:
    """One way to start: an image by its tag, on a snapshotter; `ahead` starts the program by what reads ahead, `options` are
    further ones of `build start`."""

    name: str
    tag: str
    snapshotter: str = "soci"
    ahead: bool = False
    options: tuple[str, ...] = ()


WAYS = (
    Way("pulled whole, overlayfs", "bytecode", "overlayfs"),
    Way("ordinary gzip layers, soci's own index", "ordinary"),
    Way("lazily, no bytecode", "plain"),
    Way("lazily", "bytecode"),
    Way("and reading ahead", "ahead", ahead=True),
    Way("and adaptive spans, index fetched once", "adaptive", ahead=True),
    Way("and layers mounted at once", "parallel", ahead=True),
    Way("and fetched while layers are mounted", "all", ahead=True),
    Way("instead of reading ahead, fetched while layers are mounted", "prefetch"),
    Way("eStargz, stargz-snapshotter", "estargz", "stargz"),
    Way("and what is read, first", "estargz-first", "stargz"),
    Way("reading ahead, adaptive spans, and what is read, first", "ordered", ahead=True),
)


def main() -> None:
    parser = words("bench.coldstart", "Measures cold starts.", rounds=5)
    parser.add_argument(
        "--rate", action="append", metavar="RATE", help="of the link, as tc writes it  [1gbit, 300mbit]"
    )
    about_starts(parser)
    parser.add_argument("--way", action="append", type=int, metavar="NUMBER", help="only these, from 1")
    parser.add_argument("--services", action="store_true", help="the services of profiles/ and their models, instead")
    arguments = parser.parse_args()
    build = command_of_root(parser, arguments.build)
    path = stack_path()
    ways = [way for number, way in enumerate(WAYS, 1) if not arguments.way or number in arguments.way]
    with tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir="/var/tmp") as name:
        if arguments.services:
            print(f"services and their models, medians of {arguments.rounds}, on {machine()}\n")
            for rate in arguments.rate or ["1gbit", "300mbit"]:
                with link(rate) as at, registry(at, Path(name) / "registry"):
                    env = {"PATH": path, "NO_PROXY": f"{at.host},127.0.0.1"}
                    services.measure(build, env, Path(name) / "profiles", at, rate, arguments.rounds)
            return
        images = Images(build, arguments.keep or Path(name) / "images", arguments.code, path)
        images.make(arguments.profile, {way.tag for way in ways}, judges.require("soci-peer"))
        print(f"{arguments.profile}, {arguments.code!r}, medians of {arguments.rounds}, on {machine()}\n")
        for rate in arguments.rate or ["1gbit", "300mbit"]:
            starts: dict[str, list[Start]] = {}
            with near(rate) as at:
                for number in range(arguments.rounds):
                    for way in ways:
                        say(f"{rate}, {number + 1} of {arguments.rounds}: {way.name}")
                        more = [] if way.snapshotter == "overlayfs" else ["--timeout", 600]
                        measured = images.start(at, way, 1, *more)
                        starts.setdefault(way.name, []).extend(measured.cold())
                        if way.snapshotter == "overlayfs":
                            starts.setdefault("the image is there, overlayfs", []).extend(measured.again())
            print(f"| {rate} | ready after, s | spread | pull | program | moved | requests, spans |")
            print("|---|---:|---|---:|---:|---:|---:|")
            print(*(_line(told, Summary.of(tuple(found))) for told, found in starts.items()), sep="\n", end="\n\n")


def stack_path() -> str:
    """The PATH on which the programs of the stack are."""
    return os.pathsep.join([*{str(judges.require(name).parent) for name in _PEERS}, os.environ["PATH"]])


@dataclass(frozen=True)
class Images:
    """The variants of one image, in one layout by their tags."""

    build: Path
    layout: Path
    code: str
    path: str

    @property
    def env(self) -> dict[str, str]:
        return {**os.environ, "PATH": self.path, "NO_PROXY": "10.199.0.0/16,127.0.0.1"}

    def make(self, profile: Path, tags: set[str], peer: Path) -> None:
        """Publishes what is not there yet."""
        folder = self.layout.parent / "profiles"
        folder.mkdir(parents=True, exist_ok=True)
        there = self._tags()
        shutil.copytree(profile.resolve().parent, folder, symlinks=True, dirs_exist_ok=True)
        for kind in sorted({"gzip", "none", "zstd"} & tags):
            self._variant(folder, profile, kind, f"publish: {{compression: {kind}}}", there)
        if "estargz" in tags:
            self._variant(folder, profile, "estargz", "publish: {lazy: estargz}", there)
        traced = tags & {"ahead", "adaptive", "parallel", "all", "prefetch", "estargz-first", "ordered"}
        if traced or tags & {"bytecode", "ordinary"}:
            self._variant(folder, profile, "bytecode", "", there)
        if "plain" in tags:
            self._variant(folder, profile, "plain", "python: {bytecode: false}", there)
        if "ordinary" in tags and "ordinary" not in there:
            say("recompressing layers as gzip -6")
            ordinary(self.layout, "bytecode", peer)
        if traced:
            trace = folder / "bench.trace.json"
            if not trace.exists():
                say("tracing")
                self.run(
                    "trace", f"oci:{self.layout}:bytecode", "-o", trace, "--entrypoint", "python", "--", "-c", self.code
                )
            if "estargz-first" in tags:
                first = "start: {trace: bench.trace.json, readahead: false, order: all}\npublish: {lazy: estargz}"
                self._variant(folder, profile, "estargz-first", first, there)
            start = "start: {trace: bench.trace.json}"
            self._variant(folder, profile, "ahead", start, there)
            soci = "publish: {soci: {spans: adaptive, platform: unknown}}"
            self._variant(folder, profile, "adaptive", f"{start}\n{soci}", there)
            ordered = start.replace("}", ", order: all}")
            if "ordered" in tags:
                self._variant(folder, profile, "ordered", f"{ordered}\n{soci}", there)
            self._variant(folder, profile, "parallel", f"{start}\n{soci[:-2]}, mount: parallel}}}}", there)
            self._variant(folder, profile, "all", f"{start}\n{soci[:-2]}, mount: parallel, prefetch: true}}}}", there)
            only = "start: {trace: bench.trace.json, readahead: false}"
            self._variant(
                folder, profile, "prefetch", f"{only}\n{soci[:-2]}, prefetch: true, mount: parallel}}}}", there
            )

    def _variant(self, folder: Path, profile: Path, tag: str, added: str, there: set[str]) -> None:
        if tag in there:
            return
        say(f"publishing {tag}")
        text = f"profile: 1\nname: {profile.stem}-{tag}\nextends: [{profile.name}]\n{added}\n"
        target = folder / f"{profile.stem}-{tag}.yaml"
        target.write_text(text)
        lock = profile.with_suffix(".lock.json")
        if lock.exists():
            shutil.copy(lock, target.with_suffix(".lock.json"))
        self.run("publish", "-q", "--no-attach", "--lock", target, f"oci:{self.layout}:{tag}")

    def publish(self, at: Link) -> None:
        """All of them go to the registry."""
        for tag in sorted(self._tags()):
            self.run("copy", "-q", "--plain-http", f"oci:{self.layout}:{tag}", f"{at.registry}/bench:{tag}")

    def start(self, at: Link, way: Way, rounds: int, *more: object) -> Measurement:
        """Starts in the node's namespace, out of the registry at this end of the link if there is one, else out of the layout."""
        command = [*at.inside(), self.build, "start", "-q", "--plain-http", "--format", "json"]
        entrypoint = "/opt/layerwright/start" if way.ahead else "python"
        code = ["python", "-c", self.code] if way.ahead else ["-c", self.code]
        again = more or ["--again"]
        options = ["--snapshotter", way.snapshotter, "-n", rounds, *again, "--entrypoint", entrypoint, *way.options]
        place = f"oci:{self.layout}:{way.tag}" if at.near else f"{at.registry}/bench:{way.tag}"
        done = self.run_all([*command, *options, place, "--", *code])
        return values.parse(done, "stdout")

    def run(self, *arguments: object) -> bytes:
        return self.run_all([self.build, *arguments])

    def run_all(self, command: Sequence[object]) -> bytes:
        done = subprocess.run(list(map(str, command)), env=self.env, stdout=subprocess.PIPE, check=False)
        if done.returncode:
            sys.exit(f"bench: failed: {' '.join(map(str, command))}")
        return done.stdout

    def _tags(self) -> set[str]:
        index = self.layout / "index.json"
        entries = json.loads(index.read_bytes())["manifests"] if index.exists() else []
        return {
            entry["annotations"]["org.opencontainers.image.ref.name"] for entry in entries if "annotations" in entry
        }


def row(images: Images, at: Link, way: Way, rounds: int) -> str:
    """A row of the table, and one for the second start where it was pulled whole."""
    say(way.name)
    measured = images.start(at, way, rounds)
    rows = [_line(way.name, Summary.of(measured.cold()))]
    if way.snapshotter == "overlayfs":
        rows.append(_line("the image is there, overlayfs", Summary.of(measured.again())))
    return "\n".join(rows)


def _line(name: str, summary: Summary) -> str:
    def phase(which: str) -> str:
        return f"{summary.phases[which].median:.1f}" if which in summary.phases else ""

    seconds = summary.seconds
    return (
        f"| {name} | {seconds.median:.1f} | {seconds.least:.1f}-{seconds.most:.1f} | {phase('pull')} | {phase('program')} "
        f"| {summary.bytes.median / MB:,.0f} MB | {summary.requests.median:.0f}, {summary.spans.median:.0f} |"
    )


def ordinary(layout: Path, tag: str, peer: Path) -> None:
    """The same image with layers as everybody makes them, gzip -6, and the index that `soci` makes of it; tag `ordinary`."""
    with tempfile.TemporaryDirectory(dir=layout.parent) as name:
        one, two, three = (Path(name) / part for part in ("one", "two", "three"))
        subprocess.run(["cp", "-rl", layout, one], check=True)
        index = json.loads((one / "index.json").read_bytes())
        wanted = [entry for entry in index["manifests"] if tag in entry.get("annotations", {}).values()]
        (one / "index.json").unlink()  # it is the same file as that of the layout
        (one / "index.json").write_text(json.dumps(index | {"manifests": wanted}))
        manifest = manifest_of(one)
        plain(one, two, manifest)
        document = _read(two, manifest)
        blobs = two / "blobs/sha256"
        with ProcessPoolExecutor() as pool:
            document["layers"] = list(pool.map(_recompressed, document["layers"], [blobs] * len(document["layers"])))
        data = json.dumps(document).encode()
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        entry = {**manifest, "digest": f"sha256:{digest}", "size": len(data)}
        (two / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))
        subprocess.run([peer, "convert", two, three], check=True)
        found = json.loads((three / "index.json").read_bytes())["manifests"][0]
        subprocess.run(["cp", "-rln", f"{three}/blobs", layout], check=False)
        named = {**found, "annotations": {"org.opencontainers.image.ref.name": "ordinary"}}
        index = json.loads((layout / "index.json").read_bytes())
        (layout / "index.json").write_text(json.dumps(index | {"manifests": [*index["manifests"], named]}))


def _recompressed(layer: Mapping[str, Any], blobs: Path) -> dict[str, Any]:
    """A layer as GNU gzip and others compress it by default; its descriptor."""
    source = blobs / str(layer["digest"]).partition(":")[2]
    with tempfile.NamedTemporaryFile(dir=blobs, delete=False) as out:
        with gzip.open(source) as data, gzip.GzipFile("", "wb", 6, out, 0) as packed:
            shutil.copyfileobj(data, packed, _BLOCK)
        size = out.tell()
    with open(out.name, "rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    Path(out.name).rename(blobs / digest)
    return {**layer, "digest": f"sha256:{digest}", "size": size}


def _read(layout: Path, descriptor: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(
        (layout / "blobs/sha256" / descriptor["digest"].partition(":")[2]).read_bytes()
    )
    return document


if __name__ == "__main__":
    main()
