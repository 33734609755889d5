"""How much a torch image has twice when it stands on an image with CUDA: `python -m bench.twice [VERSION]…`.

* composed: `cuda: {flavour: base}`, so that the CUDA libraries are those of torch's own wheels; it is made and inspected
* base image + wheels: the same layers on top of one in the shape of nvidia/cuda's cudnn-runtime, which is made here out of the
  shared libraries of NVIDIA's wheels of the same release, and of nothing else: no headers, no packages of the system, by gzip -6

That is less than what nvidia/cuda has (apt's own files, libraries for compatibility), so that the difference is a lower bound. It
takes about 9 GB in the folder of the user's store, for as long as it runs, and some minutes for each release.
"""

from __future__ import annotations

import argparse
import gzip
import io
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bench import watch
from bench.table import say

TORCH = {"12.4": "2.6.0", "12.8": "2.10.0", "13.0": "2.11.0", "13.2": "2.15.0"}
"""The newest torch on the package index that is made for a release."""
_MB = 1_000_000
_PROFILE = """\
profile: 1
name: {name}
base: {{debian: bookworm, packages: [libgomp1]}}
python: {{version: "3.11", requirements: [{requirements}], bytecode: false}}
cuda: {{version: "{version}", flavour: {flavour}}}
publish: {{soci: {{min-layer-size: 0}}}}
"""
_SAME = ("nvidia-cudnn-cu", "nvidia-nccl-cu")
HEAD = (
    "| release | torch | composed: pulled MB | unpacked MB | base image + wheels: pulled MB | unpacked MB "
    "| less pulled | less unpacked |\n|---|---|---:|---:|---:|---:|---:|---:|"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("versions", nargs="*", default=TORCH, metavar="VERSION")
    parser.add_argument("--build", default="build", help="the command that is measured")
    arguments = parser.parse_args()
    print(HEAD)
    for version in arguments.versions:
        print(measure(arguments.build, version), flush=True)


def measure(build: str, version: str) -> str:
    """The row of a release."""
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    kept.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir=kept) as name:
        env = {**os.environ, "XDG_CACHE_HOME": name}
        env["LAYERWRIGHT_MIRRORS"] = f"{os.environ.get('LAYERWRIGHT_MIRRORS', '')} {kept / 'layerwright'}"
        folder = Path(name)
        say(f"CUDA {version}: composed")
        lock = _locked(build, folder, "composed", version, "base", f"torch=={TORCH[version]}", env)
        watch.run([build, "assemble", str(folder / "composed.yaml"), "-o", f"oci:{folder / 'out'}", "--no-attach"], env)
        watch.run([build, "inspect", f"oci:{folder / 'out'}", "--format", "json"], env, output=folder / "said")
        layers = json.loads((folder / "said").read_bytes())["platforms"]["linux/amd64"]["layers"]
        pulled, unpacked = (sum(layer[key] for layer in layers) for key in ("size", "unpacked"))
        say(f"CUDA {version}: what a base image has")
        wheels = lock["platforms"][0]["python"]["wheels"]
        same = ", ".join(f"{item['name']}=={item['version']}" for item in wheels if item["name"].startswith(_SAME))
        runtime = _locked(build, folder, "runtime", version, "runtime", same, env)
        more_pulled, more_unpacked = _layer(_libraries(runtime, folder / "layerwright"))
    both = (pulled + more_pulled, unpacked + more_unpacked)
    release = ".".join(lock["platforms"][0]["cuda"]["version"].split(".")[:3])
    sizes = (f"{size / _MB:,.0f}" for size in (pulled, unpacked, *both))
    less = (f"{1 - one / other:.1%}" for one, other in zip((pulled, unpacked), both, strict=True))
    return f"| {release} | {TORCH[version]} | {' | '.join(sizes)} | {' | '.join(less)} |"


def _locked(
    build: str, folder: Path, name: str, version: str, flavour: str, requirements: str, env: Mapping[str, str]
) -> Any:
    path = folder / f"{name}.yaml"
    path.write_text(_PROFILE.format(name=name, requirements=requirements, version=version, flavour=flavour))
    watch.run([build, "lock", str(path)], env)
    return json.loads(path.with_suffix(".lock.json").read_bytes())


def _libraries(lock: Any, store: Path) -> Iterator[tuple[str, zipfile.ZipFile, zipfile.ZipInfo]]:
    """The shared libraries of NVIDIA's wheels of a lock, which are in the store."""
    for item in lock["platforms"][0]["python"]["wheels"]:
        digest = item["file"]["sha256"]
        if item["name"].startswith("nvidia-"):
            with zipfile.ZipFile(store / "sha256" / digest[:2] / digest) as archive:
                for member in archive.infolist():
                    name = member.filename.rpartition("/")[2]
                    if ".so" in name:
                        yield name, archive, member


def _layer(libraries: Iterator[tuple[str, zipfile.ZipFile, zipfile.ZipInfo]]) -> tuple[int, int]:
    """How large a layer of them is: as it is pulled, and unpacked."""
    pulled = _Counter()
    with gzip.GzipFile(fileobj=pulled, mode="wb", compresslevel=6) as compressed:
        unpacked = _Counter(compressed)
        with tarfile.open(fileobj=unpacked, mode="w|") as tar:
            for name, archive, member in libraries:
                info = tarfile.TarInfo(f"usr/local/cuda/lib64/{name}")
                info.size, info.mode = member.file_size, 0o755
                with archive.open(member) as content:
                    tar.addfile(info, content)
    return pulled.size, unpacked.size


class _Counter(io.RawIOBase):
    """Counts what is written, and writes it on."""

    def __init__(self, out: gzip.GzipFile | None = None) -> None:
        super().__init__()
        self.size = 0
        self._out = out

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.size += len(data)
        return self._out.write(data) if self._out else len(data)


if __name__ == "__main__":
    main()
