"""The SOCI index of an image and the OCI index that binds both together (SOCI index manifest v2).

Every document here is what `soci convert --standalone` of soci-snapshotter v0.14.1 writes when it converts the
plain image (`soci/soci_convert.go`, `soci/soci_index.go`): Go's JSON of the structs of image-spec v1.1.1, fields
in the order of the structs. So these functions also say how our image manifests and top index are serialised.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor, Platform
from builder.soci import mounting, prefetch
from builder.soci.ztoc import BUILD_TOOL

ARTIFACT_TYPE = "application/vnd.amazon.soci.index.v2+json"
"""The artifact type of a SOCI index v2, and the media type of its config, which is the empty JSON object."""

INDEX_DIGEST = "com.amazon.soci.index-digest"
"""The annotation of an image manifest that names its SOCI index."""

LAYER_DIGEST = "com.amazon.soci.image-layer-digest"
"""The annotation of a ztoc's descriptor that names its layer."""

IMAGE_MANIFEST_DIGEST = "com.amazon.soci.image-manifest-digest"
"""The annotation of a SOCI index's entry that names the image's manifest."""

LAYER_MEDIA_TYPE = "com.amazon.soci.image-layer-mediaType"
"""The annotation of a ztoc's descriptor that says of what type its layer is."""

_SPAN_SIZE = "com.amazon.soci.span-size"
_BUILD_TOOL = "com.amazon.soci.build-tool-identifier"

_EMPTY = b"{}"
_CONFIG = Descriptor(ARTIFACT_TYPE, Digest.of(_EMPTY), len(_EMPTY))
_INDEXED = frozenset({spec.LAYER, spec.LAYER_GZIP, "application/vnd.docker.image.rootfs.diff.tar.gzip"})
_ESCAPES = {ord(character): f"\\u{ord(character):04x}" for character in "<>&\u2028\u2029"}


@dataclass(frozen=True)
class Layer:
    """A layer of an image, with its ztoc as `ztoc.write` described it if it has one, and its prefetch artifact's bytes if it has
    that, too; `bare` says that the node is told that its files have no extended attributes."""

    blob: Descriptor
    ztoc: Descriptor | None = None
    prefetch: bytes | None = None
    bare: bool = False


@dataclass(frozen=True)
class PlainImage:
    """The image of one platform before it is indexed; layers bottom first, `span_size` that of all its ztocs. `announced` says
    that each layer tells the sizes of those above it (`soci.mounting`), if the image has any ztoc."""

    platform: Platform
    config: Descriptor
    layers: tuple[Layer, ...]
    span_size: int
    annotations: Mapping[str, str] = field(default_factory=dict)
    announced: bool = False


@dataclass(frozen=True)
class Converted:
    """Documents that are to be written: every blob once, what is referred to before what refers to it.

    `top` describes the last blob, the OCI index; `manifests` are its entries: the images in the order given, then
    their SOCI indexes. `unindexed` are the platforms whose image has no ztoc: that image is there, without a
    SOCI index and without the annotation, and is pulled whole.
    """

    blobs: tuple[tuple[Descriptor, bytes], ...]
    top: Descriptor
    manifests: tuple[Descriptor, ...]
    unindexed: tuple[Platform, ...]


def wants_ztoc(layer: Descriptor, min_layer_size: int) -> bool:
    """Whether the real tool gives this layer a ztoc: gzip or uncompressed, and not smaller than the limit."""
    return is_indexed(layer.media_type) and layer.size >= min_layer_size


def is_indexed(media_type: str) -> bool:
    """Whether layers of this type can have ztocs."""
    return media_type in _INDEXED


UNKNOWN = Platform("unknown", "unknown")
"""The platform of what no client should pull by itself, as BuildKit gives it to attestations."""


def convert(images: Sequence[PlainImage], *, unlisted: bool = False) -> Converted:
    """Index the images and bind all of it in one OCI index.

    `unlisted`: the entries of SOCI indexes are of no platform, so that clients that pull all entries of their platform leave
    the ztocs to the snapshotter, which fetches them in any case. Otherwise
    the real tool, asked for all platforms of a layout with these images, writes the same bytes. Where no image
    has a ztoc it refuses; here the outcome is the plain OCI index of the images. That is also the input
    from which the tool makes the same as this function: `convert` of the same images without their ztocs.
    """
    blobs: dict[Digest, tuple[Descriptor, bytes]] = {}
    manifests: list[Descriptor] = []
    indexes: list[Descriptor] = []
    for image in images:
        document = soci_index(image.layers, image.span_size)
        index = _described(document, artifact_type=ARTIFACT_TYPE) if document else None
        if document and index:
            blobs[_CONFIG.digest] = (_CONFIG, _EMPTY)
            blobs |= {artifact.digest: (artifact, data) for artifact, data in _prefetches(image.layers)}
            blobs[index.digest] = (index, document)
        annotations = dict(image.annotations) | ({INDEX_DIGEST: str(index.digest)} if index else {})
        layers = [layer.blob for layer in image.layers]
        told = mounting.announced(layers) if image.announced and index else layers
        text = manifest(image.config, told, annotations)
        described = replace(_described(text), annotations=annotations, platform=image.platform)
        blobs[described.digest] = (described, text)
        manifests.append(described)
        if index:
            binding = {IMAGE_MANIFEST_DIGEST: str(described.digest)}
            indexes.append(replace(index, annotations=binding, platform=UNKNOWN if unlisted else image.platform))
    text = top_index([*manifests, *indexes])
    top = Descriptor(spec.INDEX, Digest.of(text), len(text))
    return Converted(
        blobs=(*blobs.values(), (top, text)),
        top=top,
        manifests=(*manifests, *indexes),
        unindexed=tuple(image.platform for image in images if not any(layer.ztoc for layer in image.layers)),
    )


def manifest(config: Descriptor, layers: Iterable[Descriptor], annotations: Mapping[str, str]) -> bytes:
    """A manifest, of an image or of a SOCI index; that of an indexed image has the annotation `INDEX_DIGEST`."""
    document: dict[str, object] = {
        "schemaVersion": 2,
        "mediaType": spec.MANIFEST,
        "config": config.document(),
        "layers": [layer.document() for layer in layers],
    }
    return _json(document | ({"annotations": dict(sorted(annotations.items()))} if annotations else {}))


def soci_index(layers: Sequence[Layer], span_size: int) -> bytes | None:
    """The SOCI index of the layers that have a ztoc, in their order, then their prefetch artifacts; None where no layer has a ztoc
    (MarshalIndex)."""
    ztocs = [
        replace(
            layer.ztoc,
            annotations={
                LAYER_MEDIA_TYPE: layer.blob.media_type,
                LAYER_DIGEST: str(layer.blob.digest),
                _SPAN_SIZE: str(span_size),
            }
            | ({mounting.NO_XATTRS: "true"} if layer.bare else {}),
        )
        for layer in layers
        if layer.ztoc
    ]
    artifacts = [artifact for artifact, _ in _prefetches(layers)]
    return manifest(_CONFIG, [*ztocs, *artifacts], {_BUILD_TOOL: BUILD_TOOL}) if ztocs else None


def _prefetches(layers: Iterable[Layer]) -> Iterator[tuple[Descriptor, bytes]]:
    """The prefetch artifacts of layers, as they are described in the index (buildPrefetchLayer)."""
    for layer in layers:
        if layer.ztoc and layer.prefetch:
            told = {LAYER_DIGEST: str(layer.blob.digest)}
            size = len(layer.prefetch)
            yield Descriptor(prefetch.MEDIA_TYPE, Digest.of(layer.prefetch), size, annotations=told), layer.prefetch


def top_index(manifests: Iterable[Descriptor]) -> bytes:
    """The OCI index of images and SOCI indexes (newOciIndex, addSociIndexes)."""
    return _json(
        {
            "schemaVersion": 2,
            "mediaType": spec.INDEX,
            "manifests": [descriptor.document() for descriptor in manifests],
        }
    )


def _described(document: bytes, artifact_type: str | None = None) -> Descriptor:
    return Descriptor(spec.MANIFEST, Digest.of(document), len(document), artifact_type=artifact_type)


def _json(document: Mapping[str, object]) -> bytes:
    """As Go's encoding/json: no spaces, fields in their order, HTML's characters escaped (only strings hold any)."""
    return json.dumps(document, separators=(",", ":"), ensure_ascii=False).translate(_ESCAPES).encode()
