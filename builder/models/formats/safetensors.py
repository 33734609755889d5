"""Headers of safetensors files (github.com/safetensors/safetensors, README "Format" and tensor.rs).

A file is eight bytes with the length of the header, the header in JSON, and the tensors' bytes one after the other.
Everything that the format forbids is refused: a header beyond 100 MB or beyond the file, JSON with a key twice or with
numbers that JSON does not have, offsets that overlap, leave gaps or do not end where the file ends, and sizes that are not
what dtype and shape make of them.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

from builder.models import strictjson
from builder.models.formats import HeaderError
from builder.models.formats.reading import short
from builder.models.values import Header, Tensor

MAX_HEADER = 100_000_000
"""The format's own limit, in bytes of JSON."""
PREFIX = 8
"""How many bytes at the beginning of a file say how long its header is (`header_length`)."""

BITS: Mapping[str, int] = {
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    **dict.fromkeys(("BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F8_E4M3FNUZ", "F8_E5M2FNUZ"), 8),
    **dict.fromkeys(("U16", "I16", "F16", "BF16"), 16),
    **dict.fromkeys(("U32", "I32", "F32"), 32),
    **dict.fromkeys(("U64", "I64", "F64", "C64"), 64),
}
"""The bits of one element of each dtype."""

_METADATA = "__metadata__"
_KEYS = {"dtype", "shape", "data_offsets"}
_MAX_VALUES = 1_000_000
"""Those of about a hundred thousand tensors; bounds the memory that a header can ask for."""
_MAX_NAME = 4096
_LARGEST = 1 << 63


def read_header(path: Path, name: str | None = None) -> Header:
    """The header of a file on this disk; errors call it `name`. Raises `HeaderError`, and `OSError` where it cannot be read."""
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        return read(file, size, name or path.name)


def read(file: BinaryIO, size: int, name: str, most: int = MAX_HEADER) -> Header:
    """The header of `size` bytes that begin where `file` is; of more than `most` bytes it is refused. Raises `HeaderError`."""
    length = header_length(file.read(PREFIX), size, name)
    if length - PREFIX > most:
        raise HeaderError(f"{name}: its header has {length - PREFIX} bytes, {most} are expected at most")
    return parse(file.read(length - PREFIX), size, name)


def header_length(prefix: bytes, size: int, name: str) -> int:
    """Where the tensors' bytes begin in a file of `size` bytes whose first eight are `prefix`: the length of the header with
    the eight bytes before it. Raises `HeaderError`."""
    if len(prefix) < PREFIX or size < PREFIX + 2:
        raise HeaderError(f"{name}: {size} bytes are too few for a safetensors file")
    length = int.from_bytes(prefix[:PREFIX], "little")
    if length > MAX_HEADER:
        raise HeaderError(f"{name}: its header claims {length} bytes, safetensors allows {MAX_HEADER}")
    if not 2 <= length <= size - PREFIX:
        raise HeaderError(
            f"{name}: its header claims {length} bytes, the file has {size - PREFIX} after the first eight"
        )
    return PREFIX + length


def parse(text: bytes, size: int, name: str) -> Header:
    """The header whose JSON is `text`, all of it, in a file of `size` bytes. Raises `HeaderError`.

    Tensors are in the order of their bytes; their offsets count from the beginning of the file.
    """
    document = _document(text, name)
    metadata = _metadata(document.pop(_METADATA, None), name)
    begin = PREFIX + len(text)
    tensors = sorted(
        (_tensor(key, item, begin, name) for key, item in document.items()),
        key=lambda tensor: (tensor.start, tensor.end, tensor.name),
    )
    at = begin
    for tensor in tensors:
        if tensor.start != at:
            what = "overlaps the one before it" if tensor.start < at else f"leaves a gap of {tensor.start - at} bytes"
            raise HeaderError(f"{name}: tensor {short(tensor.name)} {what}")
        at = tensor.end
    if at != size:
        what = f"the file ends {at - size} bytes early" if at > size else f"{size - at} bytes belong to no tensor"
        raise HeaderError(f"{name}: {what}: its tensors end at {at}, the file at {size}")
    return Header("safetensors", begin, tuple(tensors), metadata)


def _document(text: bytes, name: str) -> dict[str, Any]:
    if not text.startswith(b"{"):
        raise HeaderError(f"{name}: not a safetensors file: its header does not begin with {{")
    if sum(map(text.count, (b"[", b"{", b","))) > _MAX_VALUES:
        raise HeaderError(f"{name}: its header holds more than {_MAX_VALUES} values")
    try:
        document = strictjson.load(text)
    except (ValueError, RecursionError) as error:
        raise HeaderError(f"{name}: its header cannot be read: {short(str(error), 200)}") from error
    if not isinstance(document, dict):
        raise HeaderError(f"{name}: its header is no object")
    return document


def _metadata(found: Any, name: str) -> dict[str, str]:
    if found is None:
        return {}
    if not isinstance(found, dict) or not all(isinstance(item, str) for item in found.values()):
        raise HeaderError(f"{name}: {_METADATA} is to be text by names")
    for text in (*found.keys(), *found.values()):
        _check_text(text, name)
    return dict(sorted(found.items()))


def _tensor(key: str, item: Any, begin: int, name: str) -> Tensor:
    where = f"{name}: tensor {short(key)}"
    _check_text(key, name)
    if not key or len(key) > _MAX_NAME:
        raise HeaderError(f"{where}: a name has 1 to {_MAX_NAME} characters")
    if not isinstance(item, dict) or set(item) != _KEYS:
        raise HeaderError(f"{where}: it is to have dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = item["dtype"], item["shape"], item["data_offsets"]
    if not isinstance(dtype, str) or dtype not in BITS:
        raise HeaderError(f"{where}: unknown dtype {short(str(dtype))}")
    if not _is_numbers(shape) or not _is_numbers(offsets) or len(offsets) != 2:
        raise HeaderError(f"{where}: shape and data_offsets are to be whole numbers from 0, offsets two of them")
    start, end = offsets
    if end < start:
        raise HeaderError(f"{where}: it ends at {end}, before it begins at {start}")
    bits = _product(shape, where) * BITS[dtype]
    if bits % 8:
        raise HeaderError(f"{where}: {bits} bits are no whole bytes")
    if end - start != bits // 8:
        raise HeaderError(f"{where}: it has {end - start} bytes, {dtype} of shape {short(str(shape))} has {bits // 8}")
    return Tensor(key, dtype, tuple(shape), begin + start, begin + end)


def _is_numbers(found: Any) -> bool:
    return isinstance(found, list) and all(type(item) is int and 0 <= item < _LARGEST for item in found)


def _product(shape: list[int], where: str) -> int:
    if len(shape) > 64:
        raise HeaderError(f"{where}: {len(shape)} dimensions")
    elements = math.prod(shape)
    if any(math.prod(shape[: n + 1]) >= _LARGEST for n in range(len(shape))):
        raise HeaderError(f"{where}: its shape has more elements than can be counted")
    return elements


def _check_text(text: str, name: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise HeaderError(f"{name}: a name with half a surrogate pair") from error
