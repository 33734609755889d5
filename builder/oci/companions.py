"""What belongs to a manifest and does not refer to it: models that it names, and what tags say that belongs to it.

The models of an image are named by annotations of its manifest; each has a tag for people, and one for its digest, so that a
registry that clears away what has no tag keeps the models of older images. Tags are also how cosign keeps signatures where
they are no referrers:
`sha256-<hex>.sig`, `.att` and `.sbom` are signatures, attestations and SBOMs of the manifest `sha256:<hex>`
(sigstore/cosign, specs/SIGNATURE_SPEC.md, "Discovery"). Pure.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import suppress

from builder.oci.digest import Digest

MODEL = "vnd.layerwright.model."
"""How the annotation of an image's manifest begins that names one of its models; its value is the artifact's digest."""

MAX_MODELS = 256
"""So many models of one manifest are looked at; each of them costs whoever reads it a question."""

OF_MODEL = "vnd.layerwright.of-model"
"""The annotation, and label, of an image that holds nothing but a model: the digest of the artifact with the same files."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,99}")
_SUFFIXES = ("att", "sbom", "sig")
_TAG = re.compile(rf"sha256-[0-9a-f]{{64}}\.(?:{'|'.join(_SUFFIXES)})")


def companions(digest: Digest) -> tuple[str, ...]:
    """The tags under which something may lie that belongs to the manifest `digest`."""
    return tuple(f"sha256-{digest.hex}.{suffix}" for suffix in _SUFFIXES)


def models(annotations: Mapping[str, str]) -> tuple[tuple[str, Digest], ...]:
    """The names and digests of the models that a manifest with these annotations names, `MAX_MODELS` at most; what is no digest
    is passed over."""
    found = []
    for key, value in sorted(annotations.items()):
        if key.startswith(MODEL) and _NAME.fullmatch(key, len(MODEL)):
            with suppress(ValueError):
                found.append((key.removeprefix(MODEL), Digest.parse(value)))
    return tuple(found[:MAX_MODELS])


def model_tags(name: str, digest: Digest) -> tuple[str, str]:
    """The tags of a model: the one that moves, and the one that stays."""
    return f"model-{name}", f"model-{name}-{digest.short}"


def model_image_tag(name: str) -> str:
    """The tag of the image that holds nothing but a model."""
    return f"model-{name}-image"


def is_companion(tag: str) -> bool:
    """Whether a tag belongs to a digest; none who asks for the only image means it."""
    return _TAG.fullmatch(tag) is not None
