"""Tags that belong to a manifest by its digest: how cosign keeps signatures where they are no referrers.

`sha256-<hex>.sig`, `.att` and `.sbom` are signatures, attestations and SBOMs of the manifest `sha256:<hex>`
(sigstore/cosign, specs/SIGNATURE_SPEC.md, "Discovery"). Pure.
"""

from __future__ import annotations

import re

from builder.oci.digest import Digest

OF_MODEL = "vnd.layerwright.of-model"
"""The annotation, and label, of an image that holds nothing but a model: the digest of the artifact with the same files."""

_SUFFIXES = ("att", "sbom", "sig")
_TAG = re.compile(rf"sha256-[0-9a-f]{{64}}\.(?:{'|'.join(_SUFFIXES)})")


def companions(digest: Digest) -> tuple[str, ...]:
    """The tags under which something may lie that belongs to the manifest `digest`."""
    return tuple(f"sha256-{digest.hex}.{suffix}" for suffix in _SUFFIXES)


def is_companion(tag: str) -> bool:
    """Whether a tag belongs to a digest; none who asks for the only image means it."""
    return _TAG.fullmatch(tag) is not None
