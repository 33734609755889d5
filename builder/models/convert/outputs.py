"""The tensors of a converted file and its header: known before a number is read, from treatments and shapes alone.

A file has its tensors by their types, the widest first, and by name, so that each begins at a multiple of its element; that,
keys in this order, metadata sorted and the header filled with spaces to eight bytes is what the `safetensors` library writes
too, where there is no metadata or one key of it (tensor.rs, `serialize` and the order of `Dtype`).
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Literal

from builder.models.convert.report import Precision
from builder.models.convert.rules import TARGETS, Treatments, module
from builder.models.formats.safetensors import BITS
from builder.models.values import Header, Tensor

_WIDEST_FIRST = (
    *("U64", "I64", "F64", "C64", "F32", "U32", "I32", "BF16", "F16", "U16", "I16"),
    *("F8_E5M2FNUZ", "F8_E4M3FNUZ", "F8_E8M0", "F8_E4M3", "F8_E5M2", "I8", "U8", "F6_E3M2", "F6_E2M3", "F4", "BOOL"),
)

Making = Literal["copy", "cast", "packed", "steps", "scale", "shape"]


@dataclass(frozen=True)
class Output:
    """A tensor of a converted file, and how it is made from one tensor of the source."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    making: Making
    source: Tensor

    @property
    def size(self) -> int:
        """Its bytes."""
        return math.prod(self.shape) * BITS[self.dtype] // 8


def outputs(header: Header, treatments: Treatments, precision: Precision) -> tuple[Output, ...]:
    """The tensors that a file with this header is converted to, in the order in which they are written."""
    made = [output for tensor in header.tensors for output in _made(tensor, treatments, precision)]
    return tuple(sorted(made, key=lambda output: (_WIDEST_FIRST.index(output.dtype), output.name)))


def encode_header(made: Iterable[Output], metadata: Mapping[str, str]) -> bytes:
    """The beginning of a safetensors file with these tensors, one after the other: everything before their bytes."""
    document: dict[str, object] = {"__metadata__": dict(sorted(metadata.items()))} if metadata else {}
    at = 0
    for output in made:
        document[output.name] = {
            "dtype": output.dtype,
            "shape": list(output.shape),
            "data_offsets": [at, at + output.size],
        }
        at += output.size
    text = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _made(tensor: Tensor, treatments: Treatments, precision: Precision) -> list[Output]:
    treatment = treatments.by_name[tensor.name]
    if treatment == "keep":
        return [Output(tensor.name, tensor.dtype, tensor.shape, "copy", tensor)]
    if treatment == "cast":
        return [Output(tensor.name, TARGETS[precision], tensor.shape, "cast", tensor)]
    rows, columns = tensor.shape
    base = module(tensor.name)
    scale = Output(f"{base}.weight_scale", tensor.dtype, (rows, 1), "scale", tensor)
    if treatment == "step":
        return [Output(tensor.name, "I8", tensor.shape, "steps", tensor), scale]
    return [
        Output(f"{base}.weight_packed", "I32", (rows, -(-columns // 4)), "packed", tensor),
        scale,
        Output(f"{base}.weight_shape", "I64", (2,), "shape", tensor),
    ]
