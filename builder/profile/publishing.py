"""The part of a profile on what is made for whoever pulls the image: values that stand under `publish`."""

# ruff: noqa: RUF009 (`field` makes a field, and the defaults are frozen)

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated, ClassVar, Literal

from builder.documents import Range, Size, field
from builder.profile.forms import Destination, ModelPlace


@dataclass(frozen=True, kw_only=True)
class Soci:
    """The SOCI index, with which a node starts the image before it has pulled it."""

    enabled: bool = field(doc="Whether an index is made.", default=True)
    span_size: Annotated[Size, Range(64 << 10, 1 << 30, "a size from 64KiB to 1GiB")] = field(
        name="span-size", doc="How much of a layer is fetched at a time, before compression.", default=Size(4 << 20)
    )
    min_layer_size: Size = field(
        name="min-layer-size", doc="Layers smaller than this are pulled as a whole.", default=Size(10 << 20)
    )
    spans: Literal["uniform", "adaptive"] | None = field(
        doc="`uniform`, which is what happens if it is not said, or `adaptive`: small where `start.trace` says that a start "
        "reads, large elsewhere. Fewer bytes come, and the index is smaller; the layers stay what they are.",
        default=None,
        example="uniform",
    )
    platform: Literal["image", "unknown"] | None = field(
        doc="The platform of the index's entry: the image's, which is what happens if it is not said, or `unknown`. A client that "
        "pulls all entries of its platform fetches the index once less with the latter; ctr 2.4 does, others were not tried.",
        default=None,
        example="image",
    )
    prefetch: bool | None = field(
        doc="Whether the index also lists what `start.trace` says that a start reads, for snapshotters that fetch it while they "
        "mount the layers: soci-snapshotter 0.14 does, where its settings say so (`build node-config --prefetch`).",
        default=None,
        example=True,
    )
    mount: Literal["serial", "parallel"] | None = field(
        doc="How soci-snapshotter mounts the layers: one after another, which is what happens if it is not said, or `parallel`: "
        "the image tells it the sizes of all layers, and which have no extended attributes. The layers stay what they are.",
        default=None,
        example="serial",
    )


def _estargz_is_gzip_without_index(
    lazy: str | None, soci: Soci, compression: str | None
) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if lazy != "estargz":
        return
    key = next((name for name in ("spans", "platform", "prefetch", "mount") if getattr(soci, name)), None)
    if key:
        yield ("soci", key), f"eStargz layers have no SOCI index: remove {key}, or lazy"
    if compression not in (None, "gzip"):
        yield ("compression",), f"eStargz layers are gzip: remove compression: {compression}, or lazy"


def _layers_of_zstd_have_no_spans(soci: Soci, compression: str | None) -> Iterator[tuple[tuple[str | int, ...], str]]:
    if compression != "zstd":
        return
    for key, asked in (("spans", soci.spans == "adaptive"), ("prefetch", soci.prefetch)):
        if asked:
            yield ("soci", key), f"layers of zstd have no spans: remove {key}, or compression: zstd"


@dataclass(frozen=True, kw_only=True)
class Publish:
    """What is made for whoever pulls the image, and where it goes."""

    checks: ClassVar = (_estargz_is_gzip_without_index, _layers_of_zstd_have_no_spans)

    soci: Soci = field(
        doc="The SOCI index; `false` stands for `{enabled: false}`.",
        default=Soci(),
        short={False: Soci(enabled=False), True: Soci()},
    )
    compression: Literal["gzip", "zstd", "none"] | None = field(
        doc="How layers are compressed: `gzip`, which is what happens if it is not said, `zstd` or `none`, for nodes that pull "
        "images whole. Layers of zstd have no SOCI index; those of a base image stay what they are. See cold-start.md.",
        default=None,
        example="gzip",
    )
    lazy: Literal["soci", "estargz"] | None = field(
        doc="How nodes start the image before they have it: `soci`, which is what happens if it is not said, by the index beside "
        "it, or `estargz`: each layer has a table of its files in itself, for stargz-snapshotter and all that read eStargz; there "
        "is no SOCI index then. These are other layers, which images of the same kind share. See cold-start.md.",
        default=None,
        example="soci",
    )
    to: Destination | None = field(
        doc="Where `build publish` publishes to when it is not told: a registry, `HOST/REPOSITORY[:TAG]`, or an OCI layout, "
        "`oci:DIR[:TAG]`; `DIR` is relative to the folder of the profile that says so.",
        default=None,
        example="oci:out/app",
    )
    models: ModelPlace | None = field(
        doc="The place that models are published to, such as `HOST/REPOSITORY`, where it is not that of the image; it has no tag.",
        default=None,
        example="localhost:5000/models",
    )
