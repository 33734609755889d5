"""Documents to frozen dataclasses and back: strictly, by their type hints, every problem with its path and place.

What a type hint may be: `str`, `int`, `float`, `bool`, `Literal`, `T | None` and other unions whose members are
written differently, `tuple[T, ...]`, `tuple[tuple[str, T], ...]` and `Mapping[str, T]` (both are mappings; the
former is sorted), `Any` (whatever JSON can hold), a dataclass, and a class with `parse(str)` and `str()`.
`Annotated` adds a `Form`, `Choice` or `Range`; `field` gives a key its name, its words and its rules. A dataclass may
have `checks`: functions that take attributes by name and yield (path below it, what is wrong).
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypeVar

from builder.documents import jsontext, yamltext
from builder.documents.forms import Choice, Form, Mode, Range, Size
from builder.documents.keys import field, is_sorted_mapping, keys
from builder.documents.loading import convert
from builder.documents.nodes import DocumentError, Mark, Node, Problem, Problems, quote

__all__ = [
    "Choice",
    "DocumentError",
    "Form",
    "Mark",
    "Mode",
    "Node",
    "Problem",
    "Problems",
    "Range",
    "Size",
    "dump",
    "field",
    "load",
    "load_json",
    "quote",
    "read_yaml",
]

T = TypeVar("T")


def read_yaml(data: bytes | str, file: str, *, tags: Collection[str] = ()) -> Node:
    """The one document in `data`, with the place of each value; `file` is its name in problems."""
    problems = Problems()
    node = yamltext.scan(data, file, problems, tags)
    problems.check()
    assert node is not None
    return node


def load(cls: type[T], node: Node) -> T:
    """The value of a document; raises `DocumentError` with all that is wrong."""
    problems = Problems()
    value: T = convert(cls, node, problems)
    problems.check()
    return value


def load_json(cls: type[T], data: bytes | str, file: str) -> T:
    """The value of a JSON document, read as strictly; its problems have paths, and places where the syntax is wrong."""
    problems = Problems()
    node = jsontext.scan(data, file, problems)
    value: T | None = None if node is None else convert(cls, node, problems)
    problems.check()
    assert value is not None
    return value


def dump(value: object) -> Any:
    """The plain JSON value that loads as `value`; keys that hold nothing are left out where that is their default."""
    if value is None or type(value) in (str, int, float, bool):
        return value
    if hasattr(value, "parse"):
        return str(value)
    if isinstance(value, Mapping):
        return {name: dump(item) for name, item in value.items()}
    if isinstance(value, Iterable):
        return [dump(item) for item in value]
    document: dict[str, Any] = {}
    cls: Any = type(value)
    for key in keys(cls):
        item = getattr(value, key.attribute)
        if key.optional and item == key.default and item in (None, "", (), {}):
            continue
        document[key.name] = {name: dump(each) for name, each in item} if is_sorted_mapping(key.hint) else dump(item)
    return document
