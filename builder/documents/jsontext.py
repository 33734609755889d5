"""JSON to nodes: strict and bounded, for documents that programs write and people may have edited."""

from __future__ import annotations

import json
import math
import re
from typing import Any

from builder.documents.nodes import Items, Mark, Node, Pairs, Path, Problems, Scalar

MAX_BYTES = 256 << 20
MAX_NODES = 2_000_000
MAX_DEPTH = 64


def scan(data: bytes | str, file: str, problems: Problems) -> Node | None:
    """The document in `data`, or None where it cannot be read; what is wrong goes to `problems`."""
    mark = Mark(file)
    if len(data) > MAX_BYTES:
        problems.add(mark, (), f"larger than {MAX_BYTES >> 20} MiB")
        return None
    try:
        text = data.decode() if isinstance(data, bytes) else data
        # Each value but the first follows one of these, so that this bounds what the reader would build.
        if sum(map(text.count, "[{,")) > MAX_NODES:
            problems.add(mark, (), f"more than {MAX_NODES} values")
            return None
        plain = json.loads(
            text, object_pairs_hook=_Object, parse_constant=_constant, parse_float=_float, parse_int=_int
        )
    except UnicodeDecodeError as error:
        problems.add(mark, (), f"not UTF-8: byte {error.start}")
    except json.JSONDecodeError as error:
        problems.add(Mark(file, error.lineno, error.colno), (), f"not JSON: {error.msg}")
    except ValueError as error:
        problems.add(mark, (), f"not JSON: {error}")
    except RecursionError:
        problems.add(mark, (), f"nested more than {MAX_DEPTH} deep")
    else:
        return _node(plain, mark, (), problems)
    return None


class _Object(list[tuple[str, Any]]):
    """The pairs of an object, before anything is lost."""


def _constant(text: str) -> None:
    raise ValueError(f"{text} is no JSON number")


def _int(text: str) -> int:
    if len(text) > 19:
        raise ValueError(f"a number of {len(text)} digits")
    return int(text)


def _float(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError("a number beyond what a double can hold")
    return number


def _node(value: Any, mark: Mark, path: Path, problems: Problems) -> Node | None:
    if len(path) > MAX_DEPTH:
        problems.add(mark, (), f"nested more than {MAX_DEPTH} deep")
        return None
    match value:
        case _Object():
            pairs: dict[str, tuple[Scalar, Node]] = {}
            for key, item in value:
                if key in pairs:
                    problems.add(mark, (*path, key), "the key is there twice")
                    continue
                node = _node(item, mark, (*path, key), problems)
                if node is None:
                    return None
                pairs[key] = (_text(key, mark, path, problems), node)
            return Pairs(mark, tuple(pairs.values()))
        case list():
            items: list[Node] = []
            for index, item in enumerate(value):
                node = _node(item, mark, (*path, index), problems)
                if node is None:
                    return None
                items.append(node)
            return Items(mark, tuple(items))
        case str():
            return _text(value, mark, path, problems)
        case _:
            return Scalar(mark, json.dumps(value), value, plain=True)


def _text(text: str, mark: Mark, path: Path, problems: Problems) -> Scalar:
    if _UNUSABLE.search(text):
        problems.add(mark, path, "text with a NUL or half a surrogate pair: no file or program can take it")
    return Scalar(mark, text, text)


_UNUSABLE = re.compile("[\x00\ud800-\udfff]")
