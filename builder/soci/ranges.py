"""What a start reads, as images have it: `[[path, start, end], …]`, absolute paths and bytes of files. Pure.

In the image of somebody else it is foreign: whatever it says is checked before anything follows from it.
"""

from __future__ import annotations

import json

from builder.errors import HostileInputError

_MOST = 4_000_000


def parse(data: bytes) -> tuple[tuple[str, int, int], ...]:
    """The ranges, in their order; paths without the leading `/`. Raises `HostileInputError` where the bytes are none."""
    try:
        rows = json.loads(data)
    except (ValueError, RecursionError) as error:
        raise HostileInputError(f"what its start reads is no JSON: {error}") from error
    if not isinstance(rows, list) or len(rows) > _MOST:
        raise HostileInputError("what its start reads is no list of ranges, or a longer one than any")
    return tuple(map(_row, rows))


def by_path(data: bytes) -> dict[str, list[tuple[int, int]]]:
    """The same, from `start` to before `end`, by the paths of the files."""
    found: dict[str, list[tuple[int, int]]] = {}
    for path, start, end in parse(data):
        found.setdefault(path, []).append((start, end))
    return found


def _row(row: object) -> tuple[str, int, int]:
    match row:
        case [str(path), int(start), int(end)] if path.startswith("/") and 0 <= start <= end < 1 << 62:
            return path[1:], start, end
    raise HostileInputError("what its start reads has a row that is no absolute path, start and end")
