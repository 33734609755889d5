"""Services and their models, from nothing to the first answer, over a link of a given rate: part of `python -m bench.coldstart`."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from bench.link import Link
from bench.table import say
from builder.coldstart import values
from builder.coldstart.values import Summary

sys.path.append(str(Path(__file__).resolve().parent.parent / "scripts"))  # where the demo draws its picture
import picture

MB = 10**6
_ADDRESS = "http://127.0.0.1:8080"
_TEXTS = {"texts": ["The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium."]}
_PHASES = ("resolve", "pull", "create", "process", "program", "imports", "model pull", "model load", "answer")


@dataclass(frozen=True)
class Service:
    """A service: its profile, where it gets its model and of which name, what it is asked, and what its start needs besides."""

    profile: str
    to: str
    model: str
    path: str
    body: bytes
    options: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return Path(self.profile).stem


SERVICES = (
    Service("ocr.yaml", "/models/ocr", "ocr", "/ocr", picture.draw("HELLO LAYERWRIGHT 2026")),
    Service("embed.yaml", "MODEL", "minilm", "/embed", json.dumps(_TEXTS).encode(), ("--env", "XDG_CACHE_HOME=/tmp")),
)
WAYS = (
    ("pulled whole, overlayfs", "plain", "overlayfs"),
    ("lazily", "plain", "soci"),
    ("and reading ahead", "ahead", "soci"),
    ("fetched while layers are mounted", "first", "soci"),
)
_AHEAD = "start: {trace: bench.trace.json}\npublish: {soci: {spans: adaptive, platform: unknown, mount: parallel}}"
_FIRST = (
    "start: {trace: bench.trace.json, readahead: false}\n"
    "publish: {soci: {spans: adaptive, platform: unknown, mount: parallel, prefetch: true}}"
)


def measure(build: Path, env: Mapping[str, str], folder: Path, at: Link, rate: str, rounds: int) -> None:
    """Publishes the services and their models to the link's registry, and prints what their starts take."""
    shutil.copytree("profiles", folder, dirs_exist_ok=True, ignore=shutil.ignore_patterns("__pycache__", "*.pyz"))
    _run([build, "model", "client", "-o", folder / "embed/client.pyz"], env)
    print(f"| {rate} | ready after, s | spread | {' | '.join(_PHASES)} | moved | requests, spans | files |")
    print(f"|---|---:|---|{'---:|' * len(_PHASES)}---:|---:|---:|")
    for service in SERVICES:
        body = folder / f"{service.name}.body"
        body.write_bytes(service.body)
        published = f"{at.registry}/{service.name}"
        start: list[object] = ["--model", service.to, f"{published}:model-{service.model}", *service.options]
        start += ["--ready", f"{_ADDRESS}/healthz", "--post", f"{_ADDRESS}{service.path}", body]
        _publish(build, env, folder, service, published, "plain", "")
        say(f"tracing {service.name}")
        _run(
            [
                *at.inside(),
                build,
                "trace",
                "-q",
                "--plain-http",
                *start,
                "-o",
                folder / "bench.trace.json",
                f"{published}:plain",
            ],
            env,
        )
        _publish(build, env, folder, service, published, "ahead", _AHEAD)
        _publish(build, env, folder, service, published, "first", _FIRST)
        for name, tag, snapshotter in WAYS:
            say(f"{service.name}: {name}")
            options = ["--snapshotter", snapshotter, "-n", rounds, "--again", "-q", "--plain-http", "--format", "json"]
            done = _run([*at.inside(), build, "start", *options, *start, f"{published}:{tag}"], env)
            measured = values.parse(done, "stdout")
            print(_row(f"{service.name}, {name}", measured.cold()))
            if snapshotter == "overlayfs":
                print(_row(f"{service.name}, the image is there", measured.again()), flush=True)
    print()


def _publish(
    build: Path, env: Mapping[str, str], folder: Path, service: Service, published: str, tag: str, added: str
) -> None:
    target = folder / f"{service.name}-{tag}.yaml"
    target.write_text(f"profile: 1\nname: {service.name}\nextends: [{service.profile}]\n{added}\n")
    shutil.copy(folder / f"{service.name}.lock.json", target.with_suffix(".lock.json"))
    _run([build, "publish", "-q", "--no-attach", "--lock", "--plain-http", target, f"{published}:{tag}"], env)


def _row(name: str, starts: Sequence[values.Start]) -> str:
    summary, shown = Summary.of(tuple(starts)), starts[0]
    phases = [f"{summary.phases[phase].median:.2f}" if phase in summary.phases else "" for phase in _PHASES]
    seconds = summary.seconds
    return (
        f"| {name} | {seconds.median:.2f} | {seconds.least:.2f}-{seconds.most:.2f} | {' | '.join(phases)} "
        f"| {summary.bytes.median / MB:,.1f} MB | {summary.requests.median:.0f}, {summary.spans.median:.0f} | {shown.opened} |"
    )


def _run(command: Sequence[object], env: Mapping[str, str]) -> bytes:
    done = subprocess.run(list(map(str, command)), env={**os.environ, **env}, stdout=subprocess.PIPE, check=False)
    if done.returncode:
        sys.exit(f"bench: failed: {' '.join(map(str, command))}")
    return done.stdout
