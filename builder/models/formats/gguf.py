"""Headers of GGUF files (github.com/ggml-org/ggml, docs/gguf.md), versions 2 and 3, little-endian.

Refused are: counts and lengths that reach beyond the file, keys and tensors that are there twice, types that are not known,
offsets that are not where the tensor before ends (padded), and sizes that are not what type and shape make of them.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping
from typing import BinaryIO

from builder.models.formats.reading import Reader, short, text_of
from builder.models.values import Header, Tensor

MAGIC = b"GGUF"
_VERSIONS = (2, 3)
_MAX_HEADER = 1 << 30
_MAX_KEYS = 65_536
_MAX_TENSORS = 1 << 20
_MAX_KEY = 65_535
_MAX_TEXT = 8 << 20
_MAX_STRINGS = 1 << 23
_MAX_DEPTH = 4
_SHOWN = 256
_LARGEST = 1 << 62
_U32, _U64 = struct.Struct("<I"), struct.Struct("<Q")
_HEAD = struct.Struct("<4sIQQ")
_ARRAY = struct.Struct("<IQ")
_STRING, _LIST = 8, 9
_SCALARS: Mapping[int, struct.Struct] = {
    kind: struct.Struct(f"<{code}") for kind, code in enumerate("BbHhIif?") if kind < 8
} | {10: struct.Struct("<Q"), 11: struct.Struct("<q"), 12: struct.Struct("<d")}

TYPES: Mapping[int, tuple[str, int, int]] = {
    0: ("F32", 1, 4),
    1: ("F16", 1, 2),
    2: ("Q4_0", 32, 18),
    3: ("Q4_1", 32, 20),
    6: ("Q5_0", 32, 22),
    7: ("Q5_1", 32, 24),
    8: ("Q8_0", 32, 34),
    9: ("Q8_1", 32, 40),
    10: ("Q2_K", 256, 84),
    11: ("Q3_K", 256, 110),
    12: ("Q4_K", 256, 144),
    13: ("Q5_K", 256, 176),
    14: ("Q6_K", 256, 210),
    15: ("Q8_K", 256, 292),
    16: ("IQ2_XXS", 256, 66),
    17: ("IQ2_XS", 256, 74),
    18: ("IQ3_XXS", 256, 98),
    19: ("IQ1_S", 256, 50),
    20: ("IQ4_NL", 32, 18),
    21: ("IQ3_S", 256, 110),
    22: ("IQ2_S", 256, 82),
    23: ("IQ4_XS", 256, 136),
    24: ("I8", 1, 1),
    25: ("I16", 1, 2),
    26: ("I32", 1, 4),
    27: ("I64", 1, 8),
    28: ("F64", 1, 8),
    29: ("IQ1_M", 256, 56),
    30: ("BF16", 1, 2),
    34: ("TQ1_0", 256, 54),
    35: ("TQ2_0", 256, 66),
    39: ("MXFP4", 32, 17),
    40: ("NVFP4", 64, 36),
    41: ("Q1_0", 128, 18),
}
"""By its number, each type of tensors: its name, how many numbers are a block, and the bytes of a block."""


def read(file: BinaryIO, size: int, name: str) -> Header:
    """The header of `size` bytes that begin where `file` is, which is only sought forward. Raises `HeaderError`.

    Shapes are row-major, the reverse of how the file writes them; `metadata` holds single values, not lists.
    """
    return _header(Reader(file, size, name))


def _header(reader: Reader) -> Header:
    magic, version, tensors, keys = reader.unpack(_HEAD, "a head")
    if magic != MAGIC:
        raise reader.wrong("not a GGUF file")
    if version not in _VERSIONS:
        raise reader.wrong(f"version {version} of GGUF; 2 and 3 are known, little-endian")
    if tensors > _MAX_TENSORS or keys > _MAX_KEYS:
        raise reader.wrong(f"it claims {tensors} tensors and {keys} keys; {_MAX_TENSORS} and {_MAX_KEYS} are allowed")
    size, reader.end = reader.end, min(reader.end, _MAX_HEADER)
    metadata = _metadata(reader, keys)
    alignment = _alignment(reader, metadata)
    listed = [_tensor(reader) for _ in range(tensors)]
    begin = _aligned(reader.at, alignment) if tensors else reader.at
    found: list[Tensor] = []
    at = 0
    for name, kind, shape, offset in listed:
        type_name, _, _ = TYPES[kind]
        if offset != at:
            raise reader.wrong(f"tensor {short(name)} lies at {offset}, the one before it ends at {at}")
        end = at + _bytes(reader, name, kind, shape)
        found.append(Tensor(name, type_name, tuple(reversed(shape)), begin + at, begin + end))
        at = _aligned(end, alignment)
    end = found[-1].end if found else begin
    if not end <= size <= _aligned(end - begin, alignment) + begin:
        what = f"ends {end - size} bytes early" if end > size else f"has {size - end} bytes that belong to no tensor"
        raise reader.wrong(f"the file {what}")
    if len({tensor.name for tensor in found}) != len(found):
        raise reader.wrong("two tensors have one name")
    return Header("gguf", begin, tuple(found), dict(sorted(metadata.items())))


def _metadata(reader: Reader, keys: int) -> dict[str, str]:
    seen: set[str] = set()
    metadata: dict[str, str] = {}
    for _ in range(keys):
        key = reader.kept(_string(reader, "a key", _MAX_KEY))
        if not key or key in seen:
            raise reader.wrong(f"the key {short(key)} is {'there twice' if key else 'empty'}")
        seen.add(key)
        (kind,) = reader.unpack(_U32, "a type")
        value = _value(reader, kind, 0)
        if value is not None and len(value) <= _SHOWN:
            metadata[key] = value
    return metadata


def _value(reader: Reader, kind: int, depth: int) -> str | None:
    """A value as text; None for a list, which is passed over."""
    if kind == _STRING:
        return _string(reader, "a text", _MAX_TEXT)
    if kind in _SCALARS:
        (value,) = reader.unpack(_SCALARS[kind], "a value")
        return str(value).lower() if isinstance(value, bool) else repr(value)
    if kind != _LIST:
        raise reader.wrong(f"a value of the unknown type {kind}")
    inner, count = reader.unpack(_ARRAY, "a list")
    if inner in _SCALARS:
        reader.skip(count * _SCALARS[inner].size, "a list")
        return None
    if count > _MAX_STRINGS or depth >= _MAX_DEPTH:
        raise reader.wrong(f"a list of {count} texts or lists, {depth} deep")
    for _ in range(count):
        if inner == _STRING:
            reader.skip(_length(reader, "a text", _MAX_TEXT), "a text")
        else:
            _value(reader, inner, depth + 1)
    return None


def _alignment(reader: Reader, metadata: Mapping[str, str]) -> int:
    text = metadata.get("general.alignment", "32")
    value = int(text) if text.isdecimal() else 0
    if not 1 <= value <= 1 << 20 or value & (value - 1):
        raise reader.wrong(f"general.alignment is {short(text)}, and no power of two up to 1 MiB")
    return value


def _tensor(reader: Reader) -> tuple[str, int, list[int], int]:
    name = reader.kept(_string(reader, "the name of a tensor", _MAX_KEY))
    (dimensions,) = reader.unpack(_U32, "a number of dimensions")
    if not name or dimensions > 8:
        raise reader.wrong(f"tensor {short(name)} has {dimensions} dimensions" if name else "a tensor without a name")
    shape = [reader.unpack(_U64, "a dimension")[0] for _ in range(dimensions)]
    (kind,) = reader.unpack(_U32, "a type")
    (offset,) = reader.unpack(_U64, "an offset")
    if kind not in TYPES:
        raise reader.wrong(f"tensor {short(name)} has the unknown type {kind}")
    return name, kind, shape, offset


def _bytes(reader: Reader, name: str, kind: int, shape: list[int]) -> int:
    _, block, size = TYPES[kind]
    count = math.prod(shape)
    if any(math.prod(shape[: n + 1]) >= _LARGEST for n in range(len(shape))):
        raise reader.wrong(f"tensor {short(name)}: its shape has more elements than can be counted")
    row = shape[0] if shape else 1
    if row % block:
        raise reader.wrong(f"tensor {short(name)}: rows of {row} numbers are no whole blocks of {block}")
    return count // block * size


def _string(reader: Reader, what: str, most: int) -> str:
    return text_of(reader.take(_length(reader, what, most), what), what, reader)


def _length(reader: Reader, what: str, most: int) -> int:
    (length,) = reader.unpack(_U64, "a length")
    if length > most:
        raise reader.wrong(f"{what} of {length} bytes, {most} are allowed")
    return int(length)


def _aligned(at: int, alignment: int) -> int:
    return -(-at // alignment) * alignment
