"""What others take for the same work on the same machine, where they are installed; nothing is quoted where not.

BuildKit (buildkitd, buildctl and runc, as root) installs the same wheels from a folder on the same rootfs and writes an
OCI layout; `soci` (or the program of tests/peers, which is the same library) indexes the layers.
"""

from __future__ import annotations

import ensurepip
import json
import os
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bench import buildkit, watch
from bench.measurements import Row
from bench.watch import Cost
from bench.workplace import Workplace

_SOCI_PEER = Path(__file__).resolve().parent.parent / "tests/peers/bin/soci-peer"
_IMAGE = "application/vnd.oci.image.config.v1+json"


def measure(work: Workplace, ours: Cost) -> list[Row]:
    """The peers that are here, and how many times as long they take as we do, `ours`."""
    soci = _soci()
    built = buildkit.is_here()
    if not (soci or built):
        return []
    store, layout = work.store(), work.layout()
    work.publish(store, layout)
    manifest = manifest_of(layout)
    rows = []
    if built:
        rows.append(Row("peer: BuildKit, an OCI layout", _buildkit(work, layout, manifest)))
    if soci:
        image, converted = work.layout(), work.layout()
        plain(layout, image, manifest)
        rows.append(Row(f"peer: {' '.join(soci[1])}", watch.run([*soci[0], str(image), str(converted)], os.environ)))
        work.remove(image, converted)
    work.remove(store, layout)
    if not (built and soci):  # half of the work compares with nothing
        return rows
    wall, cpu = sum(row.cost.wall for row in rows), sum(row.cost.cpu for row in rows)
    note = f"{wall / ours.wall:.1f} x our time, {cpu / ours.cpu:.1f} x our CPU"
    return [*rows, Row("peers, sum", Cost(wall, cpu), note)]


def _soci() -> tuple[list[str], list[str]] | None:
    """The command that indexes a layout, and what to call it."""
    if found := shutil.which("soci"):
        return [found, "convert", "--standalone", "--format", "oci-dir"], ["soci", "convert", "--standalone"]
    if _SOCI_PEER.exists():
        return [str(_SOCI_PEER), "convert"], ["the soci library,", "convert"]
    return None


def manifest_of(layout: Path) -> dict[str, Any]:
    """The descriptor of the first image manifest of a layout."""
    waiting = json.loads((layout / "index.json").read_bytes())["manifests"]
    while waiting:
        descriptor: dict[str, Any] = waiting.pop(0)
        document = _document(layout, descriptor)
        if document.get("config", {}).get("mediaType") == _IMAGE:
            return descriptor
        waiting += document.get("manifests", [])
    sys.exit("bench: the layout has no image")


def plain(layout: Path, plain: Path, manifest: Mapping[str, Any]) -> None:
    """The same image in a layout without its SOCI index; the blobs are links."""
    document = _document(layout, manifest)
    (plain / "blobs/sha256").mkdir(parents=True)
    for descriptor in (manifest, document["config"], *document["layers"]):
        os.link(_blob(layout, descriptor), _blob(plain, descriptor))
    index = {"schemaVersion": 2, "manifests": [dict(manifest)]}
    (plain / "index.json").write_text(json.dumps(index))
    (plain / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')


def _buildkit(work: Workplace, layout: Path, manifest: Mapping[str, Any]) -> Cost:
    """A build without any cache of the same rootfs, the same wheels and the same files."""
    context = work.layout()
    (context / "wheels").mkdir(parents=True)
    for each in work.inputs:
        if each.name.endswith(".whl"):
            os.link(each.path, context / "wheels" / Path(each.name).name)
    pip = next((Path(ensurepip.__file__).parent / "_bundled").glob("pip-*.whl"))
    shutil.copy(pip, context / "wheels")
    layers = _document(layout, manifest)["layers"]
    shutil.copy(_blob(layout, layers[0]), context / "rootfs.tar.gz")
    shutil.copy(_blob(layout, layers[-1]), context / "files.tar.gz")
    install = ["/opt/venv/bin/python", f"/wheels/{pip.name}/pip", "install", "--no-index", "--no-deps"]
    wheels = [f"/wheels/{path.name}" for path in sorted((context / "wheels").iterdir()) if path.name != pip.name]
    run = json.dumps([*install, *wheels])
    (context / "Dockerfile").write_text(
        "FROM scratch\n"
        "ADD rootfs.tar.gz /\n"
        f"RUN --network=none --mount=type=bind,source=wheels,target=/wheels --mount=type=tmpfs,target=/tmp {run}\n"
        "ADD files.tar.gz /\n"
    )
    with buildkit.daemon(work.layout()) as daemon:
        output = work.layout()
        local = ["--local", f"context={context}", "--local", f"dockerfile={context}"]
        cost = daemon.build([*local, "--output", f"type=oci,dest={output},tar=false,oci-mediatypes=true"], os.environ)
    work.remove(context, output)
    return cost


def _document(layout: Path, descriptor: Mapping[str, Any]) -> dict[str, Any]:
    document: dict[str, Any] = json.loads(_blob(layout, descriptor).read_bytes())
    return document


def _blob(layout: Path, descriptor: Mapping[str, Any]) -> Path:
    return layout / "blobs" / Path(*str(descriptor["digest"]).split(":"))
