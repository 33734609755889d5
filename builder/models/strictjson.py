"""JSON of others, read so that it means one thing (no key twice, and whole numbers alone) and can be walked through."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

from builder.models.formats.reading import short

_MAX_DIGITS = 19


def load(data: bytes) -> Any:
    """The value in UTF-8 text whose numbers are whole ones of at most 19 digits. Raises `ValueError` for anything else, and
    `RecursionError` where it is nested too deep; it is up to the caller to bound how much it may hold."""
    return json.loads(
        data.decode(),  # of bytes, json guesses the encoding
        object_pairs_hook=once,
        parse_constant=_no_number,
        parse_float=_no_number,
        parse_int=_whole,
    )


def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object by its pairs, for `object_pairs_hook`. Raises `ValueError` if a key is there twice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        twice, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {short(twice)} is there twice")
    return found


def _no_number(text: str) -> None:
    raise ValueError(f"{short(text, 40)} is no whole number")


def _whole(text: str) -> int:
    if len(text) > _MAX_DIGITS:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def is_deep(document: Any, most: int) -> bool:
    """Whether lists and objects stand in one another more than `most` times, which nobody could walk through."""
    level = [document]
    for _ in range(most):
        level = [
            inner
            for outer in level
            if isinstance(outer, dict | list)
            for inner in (outer.values() if isinstance(outer, dict) else outer)
        ]
    return bool(level)
