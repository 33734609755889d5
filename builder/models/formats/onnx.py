"""What is in ONNX files (github.com/onnx/onnx, onnx.proto): the weights of the graph and where their bytes lie.

An ONNX file is one message of protocol buffers; its weights stand anywhere in it, or in files beside it. Refused are: lengths
that reach beyond what holds them, two graphs, weights whose bytes are not as many as type and shape say, weights that are
there twice, and names of other files that leave the folder.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import BinaryIO

from builder.models.formats.reading import Reader, short, text_of
from builder.models.values import BadModelError, Header, Tensor, check_path

_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
_MODEL = {"ir_version": 1, "producer_name": 2, "producer_version": 3, "domain": 4, "graph": 7, "metadata": 14}
_INITIALIZER = 5
_DIMS, _DATA_TYPE, _NAME, _RAW, _EXTERNAL, _LOCATION = 1, 2, 8, 9, 13, 14
_KEY, _VALUE = 1, 2
_MAX_TEXT = 64 << 10
_MAX_SHOWN = 1024
_MAX_FIELDS = 1 << 23
_LARGEST = 1 << 62

TYPES: Mapping[int, tuple[str, int]] = {
    1: ("FLOAT", 32),
    2: ("UINT8", 8),
    3: ("INT8", 8),
    4: ("UINT16", 16),
    5: ("INT16", 16),
    6: ("INT32", 32),
    7: ("INT64", 64),
    8: ("STRING", 0),
    9: ("BOOL", 8),
    10: ("FLOAT16", 16),
    11: ("DOUBLE", 64),
    12: ("UINT32", 32),
    13: ("UINT64", 64),
    14: ("COMPLEX64", 64),
    15: ("COMPLEX128", 128),
    16: ("BFLOAT16", 16),
    17: ("FLOAT8E4M3FN", 8),
    18: ("FLOAT8E4M3FNUZ", 8),
    19: ("FLOAT8E5M2", 8),
    20: ("FLOAT8E5M2FNUZ", 8),
    21: ("UINT4", 4),
    22: ("INT4", 4),
    23: ("FLOAT4E2M1", 4),
    24: ("FLOAT8E8M0", 8),
    25: ("UINT2", 2),
    26: ("INT2", 2),
    27: ("FLOAT6E2M3", 6),
    28: ("FLOAT6E3M2", 6),
}
"""By its number, each type of weights: its name, and the bits of one number."""


def read(file: BinaryIO, size: int, name: str) -> Header:
    """What is in `size` bytes that begin where `file` is, which is only sought forward. Raises `HeaderError`.

    The tensors are those whose bytes lie in this file as they are; the header has no length, it is all over the file.
    `metadata` has who made it, and under `external_data` the names of the files beside it that hold weights.
    """
    return _model(Reader(file, size, name))


@dataclass
class _Found:
    tensors: list[Tensor] = field(default_factory=list)
    names: set[str] = field(default_factory=set)
    files: set[str] = field(default_factory=set)
    fields: int = 0


def _model(reader: Reader) -> Header:
    found = _Found()
    metadata: dict[str, str] = {}
    graphs = 0
    words = {number: key for key, number in _MODEL.items()}
    for number, wire, value in _fields(reader, reader.end, found):
        key = words.get(number)
        if key == "graph":
            if wire != _BYTES or graphs:
                raise reader.wrong("its graph is there twice" if graphs else "its graph is no message")
            graphs += 1
            _graph(reader, value, found)
        elif key == "ir_version" and wire == _VARINT:
            metadata[key] = str(value)
        elif key in ("producer_name", "producer_version", "domain") and wire == _BYTES:
            if text := _text(reader, value, key)[:_MAX_SHOWN]:
                metadata[key] = text
        elif wire == _BYTES:
            reader.skip(value - reader.at, "a field")
    if not graphs or "ir_version" not in metadata:
        raise reader.wrong("not an ONNX file: it has no graph, or no version")
    if found.files:
        metadata["external_data"] = ", ".join(sorted(found.files))
    return Header("onnx", 0, tuple(sorted(found.tensors, key=lambda item: (item.start, item.end))), metadata)


def _graph(reader: Reader, end: int, found: _Found) -> None:
    for number, wire, value in _fields(reader, end, found):
        if number == _INITIALIZER and wire == _BYTES:
            _initializer(reader, value, found)
        elif wire == _BYTES:
            reader.skip(value - reader.at, "a field")


def _initializer(reader: Reader, end: int, found: _Found) -> None:
    name, shape, kind, external, raw = "", [], 0, False, None
    for number, wire, value in _fields(reader, end, found):
        if number == _NAME and wire == _BYTES:
            name = reader.kept(_text(reader, value, "the name of a weight"))
        elif number == _DIMS and wire == _VARINT:
            shape.append(value)
        elif number == _DIMS and wire == _BYTES:
            while reader.at < value:
                shape.append(reader.varint("a dimension"))
            if reader.at != value:
                raise reader.wrong("a dimension reaches beyond its list")
        elif number == _DATA_TYPE and wire == _VARINT:
            kind = value
        elif number == _LOCATION and wire == _VARINT:
            external = value == 1
        elif number == _RAW and wire == _BYTES:
            raw = (reader.at, value)
            reader.skip(value - reader.at, "weights")
        elif number == _EXTERNAL and wire == _BYTES:
            _external(reader, value, found)
        elif wire == _BYTES:
            reader.skip(value - reader.at, "a field")
        if len(shape) > 64:
            raise reader.wrong(f"weight {short(name)} has more than 64 dimensions")
    if kind not in TYPES:
        raise reader.wrong(f"weight {short(name)} has the unknown type {kind}")
    if name and name in found.names:
        raise reader.wrong(f"the weight {short(name)} is there twice")
    found.names.add(name)
    if raw is None or external:
        return
    type_name, bits = TYPES[kind]
    if any(math.prod(shape[: n + 1]) >= _LARGEST for n in range(len(shape))):
        raise reader.wrong(f"weight {short(name)}: its shape has more elements than can be counted")
    size = -(-math.prod(shape) * bits // 8)
    if not bits or raw[1] - raw[0] != size:
        raise reader.wrong(
            f"weight {short(name)} has {raw[1] - raw[0]} bytes, {type_name} of shape {short(str(shape))} has {size}"
        )
    if name:
        found.tensors.append(Tensor(name, type_name, tuple(shape), *raw))


def _external(reader: Reader, end: int, found: _Found) -> None:
    key = value = ""
    for number, wire, stop in _fields(reader, end, found):
        if wire == _BYTES and number in (_KEY, _VALUE):
            text = _text(reader, stop, "the name of a file")
            key, value = (text, value) if number == _KEY else (key, text)
        elif wire == _BYTES:
            reader.skip(stop - reader.at, "a field")
    if key == "location":
        try:
            found.files.add(reader.kept(check_path(value.removeprefix("./"), reader.name)))
        except BadModelError as error:
            raise reader.wrong(
                f"its weights lie in another file: {str(error).removeprefix(f'{reader.name}: ')}"
            ) from None


def _fields(reader: Reader, end: int, found: _Found) -> Iterator[tuple[int, int, int]]:
    """The fields up to `end`: number, wire type, and the value of a number, or where the bytes end that are next. Whoever is
    given bytes has to pass over them."""
    while reader.at < end:
        found.fields += 1
        if found.fields > _MAX_FIELDS:
            raise reader.wrong(f"more than {_MAX_FIELDS} fields")
        tag = reader.varint("a field")
        number, wire = tag >> 3, tag & 7
        if not 0 < number < 1 << 29:
            raise reader.wrong(f"a field of the number {number}")
        match wire:
            case 0:
                yield number, wire, reader.varint("a number")
            case 1:
                reader.skip(8, "a number")
            case 5:
                reader.skip(4, "a number")
            case 2:
                length = reader.varint("a length")
                if length > end - reader.at:
                    raise reader.wrong(f"a field of {length} bytes, what holds it has {end - reader.at} more")
                yield number, wire, reader.at + length
            case _:
                raise reader.wrong(f"a field of the wire type {wire}")
    if reader.at != end:
        raise reader.wrong("a field reaches beyond what holds it")


def _text(reader: Reader, end: int, what: str) -> str:
    if end - reader.at > _MAX_TEXT:
        raise reader.wrong(f"{what} has {end - reader.at} bytes, {_MAX_TEXT} are allowed")
    return text_of(reader.take(end - reader.at, what), what, reader)
