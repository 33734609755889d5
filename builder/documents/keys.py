"""The keys of the documents of a dataclass, and what its type hints mean."""

from __future__ import annotations

import collections.abc
import dataclasses
import functools
import types
from collections.abc import Mapping
from dataclasses import MISSING, dataclass
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from builder.documents.nodes import Items, Pairs, Scalar


@dataclass(frozen=True)
class Meta:
    """What `field` says of a key."""

    doc: str = ""
    name: str | None = None
    example: object = None
    whole: bool = False
    unique: bool = False
    short: Mapping[bool, object] = dataclasses.field(default_factory=dict)


def field(
    *,
    doc: str,
    name: str | None = None,
    default: Any = MISSING,
    default_factory: Any = MISSING,
    example: object = None,
    whole: bool = False,
    unique: bool = False,
    short: Mapping[bool, object] | None = None,
) -> Any:
    """A dataclass field that is a key of a document.

    `name` is the key where it is not the attribute's; `doc` and `example` are for the reference. A `whole` list is
    one value, replaced when it is inherited; a `unique` one is a set. `short` says what true or false stand for.
    """
    given = {"default": default, "default_factory": default_factory}
    return dataclasses.field(
        metadata={Meta: Meta(doc, name, example, whole, unique, short or {})},
        **{name: value for name, value in given.items() if value is not MISSING},
    )


@dataclass(frozen=True)
class Key:
    """One key of the documents of a dataclass; `default` counts where it is `optional`."""

    name: str
    attribute: str
    hint: Any
    optional: bool
    default: Any
    meta: Meta


@functools.cache
def keys(cls: type) -> tuple[Key, ...]:
    """The keys of a dataclass, in its order."""
    hints = get_type_hints(cls, include_extras=True)
    found = []
    for item in dataclasses.fields(cls):
        meta = item.metadata.get(Meta, Meta())
        made = item.default_factory is not MISSING
        default = item.default_factory() if item.default_factory is not MISSING else item.default
        found.append(
            Key(meta.name or item.name, item.name, hints[item.name], made or default is not MISSING, default, meta)
        )
    return tuple(found)


def bare(hint: Any) -> tuple[Any, tuple[Any, ...]]:
    """A hint without `Annotated`, and what that added."""
    if get_origin(hint) is Annotated:
        hint, *rules = get_args(hint)
        return hint, tuple(rules)
    return hint, ()


def members(hint: Any) -> tuple[Any, ...]:
    """The members of a union; none where the hint is something else."""
    return get_args(hint) if get_origin(hint) in (Union, types.UnionType) else ()


def element(hint: Any) -> Any:
    """What the items of a list are, or None where the hint is no list."""
    return get_args(hint)[0] if get_origin(hint) is tuple and not is_sorted_mapping(hint) else None


def is_sorted_mapping(hint: Any) -> bool:
    """Whether a tuple of pairs stands for a mapping."""
    if get_origin(hint) is not tuple:
        return False
    inner, *rest = get_args(hint)
    return rest == [...] and get_origin(inner) is tuple and get_args(inner)[-1] is not ...


def pair(hint: Any) -> tuple[Any, Any] | None:
    """What the keys and the values of a mapping are, or None where the hint is no mapping."""
    if is_sorted_mapping(hint):
        hint = get_args(hint)[0]
    elif get_origin(hint) not in (dict, collections.abc.Mapping):
        return None
    key, value = get_args(hint)
    return key, value


def has_keys(hint: Any) -> bool:
    """Whether the hint is a dataclass whose keys a document has, and not one written as text."""
    return dataclasses.is_dataclass(hint) and not hasattr(hint, "parse")


def shape(hint: Any) -> type[Scalar] | type[Items] | type[Pairs]:
    """Which kind of node a value of this hint is read from; of a union, ask for its members."""
    hint, _ = bare(hint)
    if element(hint) is not None:
        return Items
    return Pairs if pair(hint) is not None or has_keys(hint) else Scalar


def expected(hint: Any) -> str:
    """How a message calls what the hint wants."""
    hint, rules = bare(hint)
    if shape(hint) is not Scalar:
        return "a list" if shape(hint) is Items else "a mapping"
    if get_origin(hint) is Literal:
        names = [str(member).lower() if isinstance(member, bool) else str(member) for member in get_args(hint)]
        return names[0] if len(names) == 1 else f"one of {', '.join(names)}"
    simple = {str: "text", int: "a whole number", float: "a number", bool: "true or false"}
    for rule in rules:
        if hasattr(rule, "what"):
            return str(rule.what)
    return simple.get(hint) or getattr(hint, "what", None) or f"a {hint.__name__.lower()}"
