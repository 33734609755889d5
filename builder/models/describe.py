"""What is said of a model: by whoever publishes it, and by the headers of its files. Gives configuration and annotations."""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from builder.models.values import ModelIndex, Tensor
from builder.oci.digest import Digest

_PRECISION = {
    "F64": "float64",
    "F32": "float32",
    "F16": "float16",
    "BF16": "bfloat16",
    "I8": "int8",
    "U8": "uint8",
    "F8_E4M3": "float8_e4m3",
    "F8_E5M2": "float8_e5m2",
    "F4": "float4",
}
_LEAST = 0.01

PRECISIONS: Mapping[str, tuple[str, str]] = {
    "fp16": ("float16", ""),
    "bf16": ("bfloat16", ""),
    "int8": ("int8", "compressed-tensors W8A16"),
    "int8-dynamic": ("int8", "compressed-tensors W8A8"),
}
"""What is said of a model that was converted: its precision and its quantisation, by the name of the conversion."""
_ANNOTATION = "org.opencontainers.image."


@dataclass(frozen=True)
class Description:
    """What people say of a model; what is empty is not said; family, format, parameters, precision and quantization then
    come from the files.

    `licenses` are SPDX expressions, `created` an RFC 3339 time, `base_name` and `base_digest` the model that this one was
    made from, `annotations` are added to the manifest's and win.
    """

    name: str = ""
    title: str = ""
    description: str = ""
    version: str = ""
    revision: str = ""
    vendor: str = ""
    family: str = ""
    authors: tuple[str, ...] = ()
    licenses: tuple[str, ...] = ()
    source: str = ""
    documentation: str = ""
    created: str = ""
    base_name: str = ""
    base_digest: str = ""
    architecture: str = ""
    format: str = ""
    parameters: str = ""
    precision: str = ""
    quantization: str = ""
    annotations: Mapping[str, str] = field(default_factory=dict)


def configuration(index: ModelIndex, said: Description, layers: Iterable[Digest]) -> dict[str, object]:
    """The configuration document of ModelPack (its schema allows these keys only), with the digests of all layers."""
    descriptor: dict[str, object] = {
        "createdAt": said.created,
        "authors": list(said.authors),
        "vendor": said.vendor,
        "family": said.family or _family(index),
        "name": said.name,
        "version": said.version,
        "title": said.title,
        "description": said.description,
        "docURL": said.documentation,
        "sourceURL": said.source,
        "revision": said.revision,
        "licenses": list(said.licenses),
    }
    tensors = _tensors(index)
    config = {
        "architecture": said.architecture,
        "format": said.format or _format(index),
        "paramSize": said.parameters or _parameters(tensors),
        "precision": said.precision or _precision(tensors),
        "quantization": said.quantization or _quantization(index),
    }
    return {
        "descriptor": {key: value for key, value in descriptor.items() if value},
        "config": {key: value for key, value in config.items() if value},
        "modelfs": {"type": "layers", "diffIds": [str(digest) for digest in layers]},
    }


def manifest_annotations(said: Description) -> dict[str, str]:
    """The annotations of the manifest (image-spec, annotations.md)."""
    found = {
        "created": said.created,
        "title": said.title or said.name,
        "description": said.description,
        "version": said.version,
        "revision": said.revision,
        "vendor": said.vendor,
        "authors": ", ".join(said.authors),
        "licenses": " AND ".join(said.licenses),
        "source": said.source,
        "documentation": said.documentation,
        "base.name": said.base_name,
        "base.digest": said.base_digest,
    }
    return {_ANNOTATION + key: value for key, value in found.items() if value} | dict(said.annotations)


def _tensors(index: ModelIndex) -> Sequence[Tensor]:
    return [tensor for file in index.files if file.header for tensor in file.header.tensors]


def _format(index: ModelIndex) -> str:
    """The format that most bytes are in."""
    sizes: Counter[str] = Counter()
    for file in index.files:
        if file.header:
            sizes[file.header.format] += file.file.size
    return min(sizes, key=lambda name: (-sizes[name], name), default="")


def _family(index: ModelIndex) -> str:
    """What a GGUF file says of its architecture, such as `llama`."""
    found = (file.header.metadata.get("general.architecture", "") for file in index.files if file.header)
    return next(filter(None, found), "")


def _quantization(index: ModelIndex) -> str:
    """The type that has the most bytes in GGUF files, if that is one of GGUF's own, such as `Q4_K`."""
    sizes: Counter[str] = Counter()
    for file in index.files:
        for tensor in file.header.tensors if file.header and file.header.format == "gguf" else ():
            sizes[tensor.dtype] += tensor.end - tensor.start
    most = min(sizes, key=lambda name: (-sizes[name], name), default="")
    return most if re.fullmatch(r"I?T?Q\d.*|MXFP4|NVFP4", most) else ""


def _parameters(tensors: Sequence[Tensor]) -> str:
    """How many numbers the weights have, as people write it: `22.7m`, `8.03b`. Numbers packed into others are not known."""
    count = sum(math.prod(tensor.shape) for tensor in tensors)
    if not count or any(tensor.name.endswith("_packed") for tensor in tensors):
        return ""
    for unit, amount in (("t", 10**12), ("b", 10**9), ("m", 10**6), ("k", 10**3)):
        if count >= amount:
            return f"{count / amount:.3g}{unit}"
    return str(count)


def _precision(tensors: Sequence[Tensor]) -> str:
    """The kinds of numbers that have a hundredth of the bytes, the commonest first; none if one of them has no name here."""
    sizes: Counter[str] = Counter()
    for tensor in tensors:
        sizes[tensor.dtype] += tensor.end - tensor.start
    least = sum(sizes.values()) * _LEAST
    common = [dtype for dtype in sorted(sizes, key=lambda name: (-sizes[name], name)) if sizes[dtype] >= max(least, 1)]
    return ",".join(_PRECISION[dtype] for dtype in common) if all(dtype in _PRECISION for dtype in common) else ""
