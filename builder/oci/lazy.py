"""Which clients start a layer before they have it, by what a manifest says of it; no layer is read. Pure.

Sources: soci-snapshotter v0.14 (`fs/fs.go`: a layer is mounted if the index that the manifest's annotation names has a ztoc
for it, and unpacked by the snapshotter itself if not); stargz-snapshotter v0.18 (`fs/fs.go`: a layer is mounted if an annotation
tells the digest of its table of contents, whose place its last bytes tell); containerd v2.4 (`core/unpack/unpacker.go`: from
the first layer on that a snapshotter leaves to it, it fetches all layers); containers/storage (`pkg/chunked`).
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor

SOCI = "soci-snapshotter"
STARGZ = "stargz-snapshotter"
CLIENTS = {SOCI: "0.10 or newer", STARGZ: ""}
"""The clients that start images lazily, with the versions that do."""

TOC_DIGEST = "containerd.io/snapshot/stargz/toc.digest"
"""The annotation of an eStargz layer, or one of zstd:chunked, that tells the digest of its table of contents."""

_CHUNKED = (
    "io.github.containers.zstd-chunked.manifest-checksum",  # Podman, Buildah, Skopeo
    "io.containers.zstd-chunked.manifest-checksum",  # stargz-snapshotter
)
_DOCKER = "application/vnd.docker.image.rootfs.diff.tar"
KINDS = {
    spec.LAYER: "tar",
    spec.LAYER_GZIP: "gzip",
    spec.LAYER_ZSTD: "zstd",
    _DOCKER: "tar",
    f"{_DOCKER}.gzip": "gzip",
    f"{_DOCKER}.zstd": "zstd",
}
"""How layers of a media type are compressed."""


@dataclass(frozen=True)
class LayerStart:
    """How a layer comes to a node. `kind` is `tar`, `gzip`, `zstd`, `eStargz`, `zstd:chunked` or a media type; `clients` are those
    of `CLIENTS` that mount it before they have it, and `why` says, for people, why these or why none."""

    kind: str
    clients: tuple[str, ...]
    why: str


def starts(layers: Sequence[Descriptor], spanned: Collection[Digest], index: bool) -> tuple[LayerStart, ...]:
    """How the layers of an image, bottom first, come to a node; `spanned` are those that have a ztoc in its SOCI index, and
    `index` says whether there is one."""
    found: list[LayerStart] = []
    below = ""  # the first layer that is left to containerd, which then fetches all above it, too
    for number, layer in enumerate(layers, 1):
        start = _start(layer, layer.digest in spanned, index, below)
        if not below and STARGZ not in start.clients:
            below = f"layer {number}"
        found.append(start)
    return tuple(found)


def _start(layer: Descriptor, has_ztoc: bool, index: bool, below: str) -> LayerStart:
    kind = _kind(layer)
    clients, reasons = [], []
    if has_ztoc:
        clients.append(SOCI)
        reasons.append("a ztoc")
    if kind in ("eStargz", "zstd:chunked"):
        if TOC_DIGEST not in layer.annotations:
            reasons.append("no annotation tells the digest of the table of contents; Podman and CRI-O can do without")
        elif below:
            reasons.append(f"a table of contents, but {below} has none, and containerd fetches all from there on")
        else:
            clients.append(STARGZ)
            reasons.append("a table of contents")
    if not reasons:
        reasons.append(_why_whole(kind, index))
    return LayerStart(kind, tuple(clients), "; ".join(reasons))


def _kind(layer: Descriptor) -> str:
    kind = KINDS.get(layer.media_type, layer.media_type)
    if kind == "gzip" and TOC_DIGEST in layer.annotations:
        return "eStargz"
    if kind == "zstd" and any(name in layer.annotations for name in (*_CHUNKED, TOC_DIGEST)):
        return "zstd:chunked"
    return kind


def _why_whole(kind: str, index: bool) -> str:
    if kind == "zstd":
        return "compressed with zstd, for which there are no ztocs"
    if kind not in ("tar", "gzip"):
        return "nothing is known of layers of this type"
    return "no ztoc in the SOCI index" if index else "no SOCI index"
