"""How large the flavours of CUDA are, as they are composed: `python -m bench.cuda [VERSION]…` prints the table of docs/cuda.md.

Each release is locked, assembled and inspected in a store of its own, which takes inputs from the user's store where they are
there, and is removed afterwards: a release takes about 6 GB for as long as it is measured.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from bench import watch
from bench.table import say

VERSIONS = ("12.4", "12.8", "13.0", "13.2")
_MB = 1_000_000
_PROFILE = """\
profile: 1
name: measured
base: {{debian: bookworm}}
cuda: {{version: "{version}", flavour: {flavour}, cudnn: {cudnn}}}
publish: {{soci: {{min-layer-size: 0}}}}
"""


@dataclass(frozen=True)
class Size:
    """One flavour of a release, in bytes: all layers as they are pulled, unpacked as tar, and of it what is not Debian's."""

    release: str
    flavour: str
    pulled: int
    unpacked: int
    own_pulled: int
    own_unpacked: int

    def line(self) -> str:
        sizes = (self.pulled, self.unpacked, self.own_pulled, self.own_unpacked)
        return f"| {self.release} | {self.flavour} | " + " | ".join(f"{size / _MB:,.0f}" for size in sizes) + " |"


HEAD = (
    "| release | flavour | pulled MB | unpacked MB | of it CUDA, pulled MB | of it CUDA, unpacked MB |\n"
    "|---|---|---:|---:|---:|---:|"
)


def flavours(version: str) -> list[tuple[str, bool]]:
    """What can be composed of a release: flavour, and whether with cuDNN."""
    names = ["base", "runtime"] if version.startswith("12.") else ["base", "runtime", "devel"]
    return [(name, cudnn) for name in names for cudnn in (False, True) if name != "base" or not cudnn]


def measure(build: str, version: str) -> list[Size]:
    """The sizes of all flavours of a release."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir=_existing(kept)) as name:
        env = {
            **os.environ,
            "XDG_CACHE_HOME": name,
            "LAYERWRIGHT_MIRRORS": f"{os.environ.get('LAYERWRIGHT_MIRRORS', '')} {kept / 'layerwright'}",
        }
        return [_one(build, version, flavour, cudnn, Path(name), env) for flavour, cudnn in flavours(version)]


def _one(build: str, version: str, flavour: str, cudnn: bool, folder: Path, env: Mapping[str, str]) -> Size:
    say(f"CUDA {version} {flavour}{' with cuDNN' if cudnn else ''}")
    profile = folder / "measured.yaml"
    profile.write_text(_PROFILE.format(version=version, flavour=flavour, cudnn=str(cudnn).lower()))
    lock = profile.with_suffix(".lock.json")
    lock.unlink(missing_ok=True)
    watch.run([build, "lock", str(profile)], env)
    release = ".".join(json.loads(lock.read_bytes())["platforms"][0]["cuda"]["version"].split(".")[:3])
    layout = folder / "layout"
    watch.run([build, "assemble", str(profile), "-o", f"oci:{layout}", "--no-attach"], env)
    document = json.loads(_output([build, "inspect", f"oci:{layout}", "--format", "json"], env, folder))
    layers: Sequence[Mapping[str, Any]] = document["platforms"]["linux/amd64"]["layers"]
    own = [layer for layer in layers if not layer["name"].startswith("debian ")]
    return Size(
        release,
        flavour + (" + cuDNN" if cudnn else ""),
        _sum(layers, "size"),
        _sum(layers, "unpacked"),
        _sum(own, "size"),
        _sum(own, "unpacked"),
    )


def _sum(layers: Sequence[Mapping[str, Any]], key: str) -> int:
    return sum(int(layer[key]) for layer in layers)


def _output(command: Sequence[str], env: Mapping[str, str], folder: Path) -> str:
    said = folder / "said"
    watch.run(list(command), env, output=said)
    return said.read_text()


def _existing(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("versions", nargs="*", default=VERSIONS, metavar="VERSION")
    parser.add_argument("--build", default="build", help="the command that is measured")
    arguments = parser.parse_args()
    print(HEAD)
    for version in arguments.versions:
        for size in measure(arguments.build, version):
            print(size.line(), flush=True)


if __name__ == "__main__":
    main()
