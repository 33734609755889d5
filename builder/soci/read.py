"""Reading the few figures of a ztoc that people ask for (ztoc.fbs of soci-snapshotter)."""

from __future__ import annotations

import struct
from dataclasses import dataclass

_CHECKPOINT = 17 + 32768
_BLOB_HEAD = 12


@dataclass(frozen=True)
class ZtocFigures:
    """How many spans a ztoc has, and how large the tar is that it describes, in bytes."""

    spans: int
    tar_size: int


def figures(data: bytes) -> ZtocFigures:
    """The figures of a serialised ztoc; raises ValueError where the bytes are none."""
    try:
        root = _offset(data, 0)
        tar_size = struct.unpack_from("<q", data, _field(data, root, 3))[0]
        compression = _offset(data, _field(data, root, 5))
        checkpoints = _offset(data, _field(data, compression, 3))
        length = struct.unpack_from("<I", data, checkpoints)[0]
    except struct.error as error:
        raise ValueError(f"not a ztoc: {error}") from error
    spans, rest = divmod(length - _BLOB_HEAD, _CHECKPOINT)
    if rest or spans < 1 or tar_size < 0 or length > len(data):
        raise ValueError("not a ztoc of a gzip layer")
    return ZtocFigures(spans, tar_size)


def _offset(data: bytes, at: int) -> int:
    return at + int(struct.unpack_from("<I", data, at)[0])


def _field(data: bytes, table: int, slot: int) -> int:
    """Where the field `slot` of a flatbuffers table lies; raises ValueError where it is absent."""
    vtable = table - struct.unpack_from("<i", data, table)[0]
    size = struct.unpack_from("<H", data, vtable)[0] if vtable >= 0 else 0
    relative = struct.unpack_from("<H", data, vtable + 4 + 2 * slot)[0] if 4 + 2 * slot < size else 0
    if not relative:
        raise ValueError("not a ztoc: a field is missing")
    return table + int(relative)
