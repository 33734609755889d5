"""Settings of nodes that were measured to help, as the files that soci-snapshotter and containerd read.

What is not in them stays as it is by default. The figures are those of docs/cold-start.md, `python -m bench.nodes`.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

Mode = Literal["lazy", "parallel"]
Client = Literal["containerd", "kubernetes"]

SOCI_FILE = "/etc/soci-snapshotter-grpc/config.toml"
"""Where soci-snapshotter 0.14 reads its settings, by default."""
CONTAINERD_FILE = "/etc/containerd/config.toml"
"""Where containerd 2.1 and newer do."""


@dataclass(frozen=True)
class Node:
    """What a node is like: how it gets images (`mode`), who asks containerd for them, whether it fetches what indexes list
    (`prefetch`), the sockets and the folder of its daemons, and how many `cores` unpack."""

    mode: Mode = "lazy"
    client: Client = "containerd"
    prefetch: bool = False
    soci: str = "/run/soci-snapshotter-grpc/soci-snapshotter-grpc.sock"
    containerd: str = "/run/containerd/containerd.sock"
    root: str = "/var/lib/soci-snapshotter-grpc"
    cores: int = 4


@dataclass(frozen=True)
class Setting:
    """One setting: the table that it stands in, its value, what it is by default, and why it is said; `figure` is what was
    measured, or empty where it is said because nothing works without it."""

    table: tuple[str, ...]
    key: str
    value: bool | int | str
    default: str
    why: str
    figure: str = ""


def soci(node: Node) -> tuple[Setting, ...]:
    """The settings of soci-snapshotter."""
    return tuple((_lazily if node.mode == "lazy" else _side_by_side)(node))


def _lazily(node: Node) -> Iterator[Setting]:
    yield Setting(
        (), "mount_timeout_sec", 600, "30", "a layer that takes longer is pulled whole, without a word", MOUNT
    )
    yield Setting(("content_store",), "type", "soci", "soci", "indexes are kept by the snapshotter")
    yield Setting(("content_store",), "containerd_address", node.containerd, "the same", "where containerd listens")
    for name in ("attr_timeout", "entry_timeout", "negative_timeout"):
        why = "seconds for which the kernel does not ask again; layers never change"
        yield Setting(("fuse",), name, 3600, "1", why, FUSE)
    if node.prefetch:
        why = "fetches what indexes list (publish.soci.prefetch) before containers start"
        yield Setting(("prefetch",), "enable", True, "false", why, PREFETCH)
    yield Setting(("pull_modes", "soci_v2"), "enable", True, "true", "what Layerwright publishes")


def _side_by_side(node: Node) -> Iterator[Setting]:
    yield Setting(("content_store",), "type", "soci", "soci", "layers are not kept twice")
    yield Setting(("content_store",), "containerd_address", node.containerd, "the same", "where containerd listens")
    yield Setting(("pull_modes", "soci_v2"), "enable", False, "true", "images are not started lazily")
    table = ("pull_modes", "parallel_pull_unpack")
    yield Setting(table, "enable", True, "false", "layers are pulled and unpacked side by side", PARALLEL)
    yield Setting(table, "max_concurrent_downloads_per_image", 10, "3", "connections at once")
    yield Setting(table, "concurrent_download_chunk_size", "16mb", "a layer", "large layers come in parts, too")
    yield Setting(table, "max_concurrent_unpacks_per_image", node.cores, "1", "as many as the node has cores")
    yield Setting(table, "discard_unpacked_layers", True, "false", "the compressed layers are not kept")


MOUNT = "with one second 84 MB instead of 61 (profiles/ocr.yaml)"
FUSE = "26 % fewer look-ups, 2 % fewer requests of the kernel, no time that could be measured"
PREFETCH = "ready after 4.7 s instead of 7.2, with 61 MB instead of 120 (libraries of profiles/ocr.yaml)"
PARALLEL = "ready after 18.8 s instead of 23.6 with overlayfs (784 MB over 1 Gbit/s)"


def soci_text(node: Node) -> str:
    """The file for soci-snapshotter, in TOML."""
    what = "starts images lazily" if node.mode == "lazy" else "pulls and unpacks layers side by side, over TLS alone"
    lines = [f"# {SOCI_FILE}: soci-snapshotter 0.14 {what}."]
    lines += [f"# It runs with --address {node.soci} --root {node.root}"]
    table: tuple[str, ...] = ()
    said = ""
    for setting in soci(node):
        if setting.table != table:
            table, said = setting.table, ""
            lines += ["", f"[{'.'.join(table)}]"]
        figure = f": {setting.figure}" if setting.figure else ""
        told = f"# {setting.why}{figure}"
        if told != said:
            lines.append(told)
            said = told
        lines.append(f"{setting.key} = {json.dumps(setting.value)}")
    return "\n".join(lines) + "\n"


def containerd_text(node: Node) -> str:
    """The file for containerd 2.1 or newer, in TOML, as far as it has to know of the snapshotter."""
    lines = [f"# {CONTAINERD_FILE}: containerd 2.1 or newer, with soci-snapshotter. Put it to what is there already."]
    lines += ["version = 3", ""]
    lines += ["[proxy_plugins.soci]", 'type = "snapshot"', f"address = {json.dumps(node.soci)}"]
    lines += ["[proxy_plugins.soci.exports]", f"root = {json.dumps(node.root)}"]
    lines += [
        "# without it the snapshotter is not told which image a layer is of",
        'enable_remote_snapshot_annotations = "true"',
    ]
    if node.client == "kubernetes":
        lines += ["", "# for all containers of the node, from its first one on: pause, too"]
        lines += ["[plugins.'io.containerd.cri.v1.images']", 'snapshotter = "soci"']
    lines += [
        "",
        "[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]",
        'platform = "linux"',
        'snapshotter = "soci"',
    ]
    if node.client == "containerd":
        lines += ["[[plugins.'io.containerd.transfer.v1.local'.unpack_config]]", 'platform = "linux"']
        lines += ['snapshotter = "overlayfs"']
    return "\n".join(lines) + "\n"
