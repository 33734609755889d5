"""How much a torch image has twice when it stands on an image with CUDA: `python -m bench.twice`.

Two images of one Debian and the same wheels are made and inspected:

* composed: `cuda: {flavour: base}`, so that there are the CUDA libraries of torch's own wheels, and links to them
* twice: the same wheels on top of an image in the shape of nvidia/cuda's cudnn-runtime, which is made here out of the
  shared libraries of NVIDIA's wheels, and of nothing else: no headers, no OS packages of CUDA, one layer by gzip -6

That is less than what nvidia/cuda has (Ubuntu, libcuda compatibility, apt's own files), so that the difference is a lower bound.
It takes about 12 GB in the folder of the user's store, for as long as it runs, and several minutes.
"""

from __future__ import annotations

import argparse
import gzip
import hashlib
import io
import json
import os
import tarfile
import tempfile
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bench import watch
from bench.table import say

_MB = 1_000_000
_SOCI = "publish: {soci: {min-layer-size: 0}}\n"
_PYTHON = 'python: {{version: "3.11", requirements: [{0}], bytecode: false}}\n'
_RUNTIME = "nvidia-cudnn-cu13==9.26.0.51, nvidia-nccl-cu13==2.30.7"
"""As torch 2.15.0 has them."""
_TORCH = "torch==2.15.0"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", default="build", help="the command that is measured")
    build = parser.parse_args().build
    kept = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    with tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir=kept) as name:
        env = {**os.environ, "XDG_CACHE_HOME": name}
        env["LAYERWRIGHT_MIRRORS"] = f"{os.environ.get('LAYERWRIGHT_MIRRORS', '')} {kept / 'layerwright'}"
        folder = Path(name)
        debian = "base: {debian: bookworm, packages: [libgomp1]}\n"
        say("composed")
        cuda = 'cuda: {version: "13.2", flavour: base}\n'
        composed = _layers(build, folder, "composed", debian + _PYTHON.format(_TORCH) + cuda, env)
        say("the shape of nvidia/cuda's cudnn-runtime")
        system = "base: {debian: bookworm, packages: [libgomp1, libstdc++6, python3.11]}\n"
        _layers(build, folder, "system", system, env)
        text = debian + _PYTHON.format(_RUNTIME) + 'cuda: {version: "13.2", flavour: runtime}\n'
        _profile(folder, "runtime", text)
        watch.run([build, "lock", str(folder / "runtime.yaml")], env)
        wheels = _wheels(folder / "runtime.lock.json", folder / "layerwright")
        _add(folder / "system", wheels)
        say("twice")
        image = f"base: {{image: 'oci:{folder / 'system'}'}}\n"
        twice = _layers(build, folder, "twice", image + _PYTHON.format(_TORCH).replace(", bytecode: false", ""), env)
    print("| image | layers | pulled MB | unpacked MB |\n|---|---:|---:|---:|")
    for title, layers in (("composed", composed), ("base image + wheels", twice)):
        print(
            f"| {title} | {len(layers)} | {_sum(layers, 'size') / _MB:,.0f} | {_sum(layers, 'unpacked') / _MB:,.0f} |"
        )
    less = (f"{1 - _sum(composed, key) / _sum(twice, key):.1%}" for key in ("size", "unpacked"))
    print(f"| less | | {' | '.join(less)} |")


def _profile(folder: Path, name: str, text: str) -> Path:
    path = folder / f"{name}.yaml"
    path.write_text(f"profile: 1\nname: {name}\n{text}{_SOCI}")
    return path


def _layers(build: str, folder: Path, name: str, text: str, env: Mapping[str, str]) -> Sequence[Mapping[str, Any]]:
    """Makes an image of a profile in a layout of its name, and tells its layers."""
    path = _profile(folder, name, text)
    watch.run([build, "assemble", "--lock", str(path), "-o", f"oci:{folder / name}", "--no-attach"], env)
    said = folder / "said"
    watch.run([build, "inspect", f"oci:{folder / name}", "--format", "json"], env, output=said)
    layers: Sequence[Mapping[str, Any]] = json.loads(said.read_bytes())["images"][0]["layers"]
    return layers


def _wheels(lock: Path, store: Path) -> list[Path]:
    """NVIDIA's wheels of a lock, in the store."""
    (platform,) = json.loads(lock.read_bytes())["platforms"]
    digests = [item["file"]["sha256"] for item in platform["python"]["wheels"] if item["name"].startswith("nvidia-")]
    return [store / "sha256" / digest[:2] / digest for digest in digests]


def _add(layout: Path, wheels: Sequence[Path]) -> None:
    """Puts the shared libraries of wheels into the image of a layout, as one more layer."""
    blobs = layout / "blobs/sha256"

    def put(data: bytes) -> dict[str, Any]:
        digest = hashlib.sha256(data).hexdigest()
        (blobs / digest).write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    index = json.loads((layout / "index.json").read_bytes())
    top = json.loads((blobs / index["manifests"][0]["digest"][7:]).read_bytes())
    described = next(item for item in top["manifests"] if "artifactType" not in item)
    manifest = json.loads((blobs / described["digest"][7:]).read_bytes())
    config = json.loads((blobs / manifest["config"]["digest"][7:]).read_bytes())
    layer, diff_id = _layer(layout / "layer", wheels)
    (layout / "layer").rename(blobs / layer["digest"][7:])
    config["rootfs"]["diff_ids"].append(diff_id)
    config["history"].append({"created_by": "CUDA"})
    manifest["layers"].append({"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", **layer})
    manifest["config"] |= put(json.dumps(config).encode())
    entry = {
        "mediaType": manifest["mediaType"],
        "platform": described["platform"],
        **put(json.dumps(manifest).encode()),
    }
    index["manifests"] = [entry | {"annotations": index["manifests"][0].get("annotations", {})}]
    (layout / "index.json").write_text(json.dumps(index))


def _layer(path: Path, wheels: Sequence[Path]) -> tuple[dict[str, Any], str]:
    """Writes a layer, and gives its description and its diff_id."""
    with gzip.open(path, "wb", compresslevel=6) as out:
        plain = _Hashed(out)
        with tarfile.open(fileobj=plain, mode="w|") as tar:
            for wheel in wheels:
                _add_libraries(tar, wheel)
    with path.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    return {"digest": f"sha256:{digest}", "size": path.stat().st_size}, f"sha256:{plain.sha256.hexdigest()}"


def _add_libraries(tar: tarfile.TarFile, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        for member in archive.infolist():
            name = member.filename.rpartition("/")[2]
            if ".so" in name:
                info = tarfile.TarInfo(f"usr/local/cuda-13.2/lib64/{name}")
                info.size, info.mode = member.file_size, 0o755
                with archive.open(member) as content:
                    tar.addfile(info, content)


class _Hashed(io.RawIOBase):
    """Writes on, and hashes what goes by."""

    def __init__(self, out: gzip.GzipFile) -> None:
        super().__init__()
        self.sha256 = hashlib.sha256()
        self._out = out

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        self.sha256.update(data)
        return self._out.write(data)


def _sum(layers: Sequence[Mapping[str, Any]], key: str) -> int:
    return sum(int(layer[key] or 0) for layer in layers)


if __name__ == "__main__":
    main()
