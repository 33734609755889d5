"""Nodes to typed values: a walk along the type hints that tells everything that is wrong."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, get_args, get_origin

from builder.documents.forms import Choice, Form, Range, suggestion
from builder.documents.keys import (
    Key,
    bare,
    element,
    expected,
    has_keys,
    is_sorted_mapping,
    keys,
    members,
    pair,
    shape,
)
from builder.documents.nodes import Items, Mark, Node, Pairs, Path, Problems, Scalar, quote

BAD = object()
"""Stands for a value that could not be made; why has been told."""


def convert(
    hint: Any,
    node: Node,
    problems: Problems,
    path: Path = (),
    *,
    local: Callable[[str, Mark], str] | None = None,
    partial: bool = False,
) -> Any:
    """The value of a node; adds what is wrong to `problems`, and gives `BAD` where there is no value.

    `local` is asked for each name of a file (`Form.local`) what it shall become, given the place where it is written.
    With `partial`, nothing is said of what is missing, nor of what does not go together: a part was not read.
    """
    return _Loader(problems, local, partial).value(hint, node, path)


class _Loader:
    def __init__(self, problems: Problems, local: Callable[[str, Mark], str] | None, partial: bool) -> None:
        self._problems = problems
        self._local = local
        self._partial = partial

    def value(self, hint: Any, node: Node, path: Path) -> Any:
        plain, rules = bare(hint)
        if choices := members(plain):
            return self._union(choices, node, path)
        if plain is Any or plain is object:
            return self._free(node, path)
        if shape(plain) is not type(node):
            return self._wrong(hint, node, path)
        match node:
            case Items():
                return self._list(element(plain), node, path)
            case Pairs() if has_keys(plain):
                return self._object(plain, node, path)
            case Pairs():
                mapping = self._mapping(pair(plain), node, path)
                return tuple(sorted(mapping.items())) if is_sorted_mapping(plain) and mapping is not BAD else mapping
            case Scalar() if get_origin(plain) is Literal:
                return self._literal(get_args(plain), node, path)
            case Scalar() if plain in (int, float, bool):
                value = float(node.value) if plain is float and type(node.value) is int else node.value
                return self._ranged(rules, value, node, path) if type(value) is plain else self._wrong(hint, node, path)
            case Scalar():
                return self._text(hint, node, path)

    def _union(self, hints: tuple[Any, ...], node: Node, path: Path) -> Any:
        if isinstance(node, Scalar) and node.value is None and type(None) in hints:
            return None
        hints = tuple(hint for hint in hints if hint is not type(None))
        fitting = [hint for hint in hints if shape(hint) is type(node)]
        if fitting or len(hints) == 1:
            return self.value((fitting or hints)[0], node, path)
        return self._bad(node, path, f"expected {' or '.join(map(expected, hints))}, found {_found(node)}")

    def _list(self, hint: Any, node: Items, path: Path) -> Any:
        values = [self.value(hint, item, (*path, index)) for index, item in enumerate(node.items)]
        return BAD if BAD in values else tuple(values)

    def _mapping(self, hints: tuple[Any, Any] | None, node: Pairs, path: Path) -> Any:
        assert hints
        mapping = {}
        for key, item in node.pairs:
            place = (*path, key.text)
            mapping[self.value(hints[0], key, place)] = self.value(hints[1], item, place)
        return BAD if BAD in mapping or BAD in mapping.values() else mapping

    def _object(self, cls: Any, node: Pairs, path: Path) -> Any:
        known = {key.name: key for key in keys(cls)}
        values = {key.attribute: key.default if key.optional else BAD for key in known.values()}
        for name, item in node.pairs:
            place = (*path, name.text)
            if key := known.get(name.text):
                values[key.attribute] = self._member(key, item, place)
            else:
                self._problems.add(name.mark, place, self._unknown(cls, name.text, known))
        for key in known.values():
            if not key.optional and not self._partial and node.get(key.name) is None:
                self._problems.add(node.mark, (*path, key.name), "required key missing")
        good = BAD not in values.values()
        for check in () if self._partial else getattr(cls, "checks", ()):
            needs = [values[name] for name in inspect.signature(check).parameters]
            for where, message in check(*needs) if BAD not in needs else ():
                self._problems.add(_mark(node, where), (*path, *where), message)
                good = False
        return cls(**values) if good else BAD

    def _member(self, key: Key, node: Node, path: Path) -> Any:
        if isinstance(node, Scalar) and isinstance(node.value, bool) and node.value in key.meta.short:
            return key.meta.short[node.value]
        value = self.value(key.hint, node, path)
        if value is BAD or not key.meta.unique or not isinstance(node, Items):
            return value
        good = True
        seen: dict[Any, int] = {}
        for index, (item, place) in enumerate(zip(value, node.items, strict=True)):
            if seen.setdefault(item, index) != index:
                good = False
                message = f"{quote(str(item))} is there twice, first as number {seen[item] + 1}"
                self._problems.add(place.mark, (*path, index), message)
        return value if good else BAD

    def _unknown(self, cls: Any, name: str, known: Mapping[str, Key]) -> str:
        if name in getattr(cls, "later", ()):
            return f"unknown key: this version does not know {name} yet"
        near = "" if self._problems.full else suggestion(name, known)
        return f"unknown key{near or ' (known here: ' + ', '.join(known) + ')'}"

    def _literal(self, choices: tuple[Any, ...], node: Scalar, path: Path) -> Any:
        for choice in choices:
            if type(choice) is type(node.value) and choice == node.value:
                return choice
        return self._choice([str(c).lower() if isinstance(c, bool) else str(c) for c in choices], node, path)

    def _choice(self, choices: Collection[str], node: Scalar, path: Path) -> Any:
        near = "" if self._problems.full else suggestion(node.text, choices)
        if len(choices) > 8:
            return self._bad(node, path, f"unknown name {quote(node.text)}{near}")
        names = ", ".join(choices)
        return self._bad(
            node, path, f"expected {'one of ' if len(choices) > 1 else ''}{names}, found {_found(node)}{near}"
        )

    def _text(self, hint: Any, node: Scalar, path: Path) -> Any:
        plain, rules = bare(hint)
        number = type(node.value) is int and node.text.isdecimal()
        if not isinstance(node.value, str) or node.doubt == "number":
            forms = [plain, *(rule for rule in rules if isinstance(rule, Form))]
            if not (number and any(getattr(form, "digits", False) for form in forms)):
                return self._wrong(hint, node, path)
        text = node.text
        for rule in rules:
            if isinstance(rule, Choice) and text not in rule.choices:
                return self._choice(rule.choices, node, path)
            if isinstance(rule, Form):
                if complaint := rule.complaint(text):
                    return self._bad(node, path, complaint)
                if self._local and rule.is_local(text):
                    text = self._local(text, node.mark)
        if plain is str:
            return text
        try:
            return self._ranged(rules, plain.parse(text), node, path)
        except ValueError as error:
            return self._bad(node, path, str(error))

    def _ranged(self, rules: tuple[object, ...], value: Any, node: Scalar, path: Path) -> Any:
        for rule in rules:
            if isinstance(rule, Range) and not rule.minimum <= value <= rule.maximum:
                return self._bad(node, path, f"expected {rule.what}, found {quote(node.text)}")
        return value

    def _free(self, node: Node, path: Path) -> Any:
        match node:
            case Pairs():
                mapping = {key.text: self._free(item, (*path, key.text)) for key, item in node.pairs}
                return BAD if BAD in mapping.values() else mapping
            case Items():
                items = [self._free(item, (*path, index)) for index, item in enumerate(node.items)]
                return BAD if BAD in items else items
            case Scalar(doubt=None):
                return node.value
            case Scalar(doubt="word"):
                advice = f"write true or false, or in quotes: {quote(node.text)}"
                return self._bad(
                    node, path, f"{node.text} is a word to some readers, true or false to others: {advice}"
                )
            case Scalar():
                advice = f"write a plain decimal number, or in quotes: {quote(node.text)}"
                return self._bad(node, path, f"{node.text[:60]} means different things to different readers: {advice}")

    def _wrong(self, hint: Any, node: Node, path: Path) -> Any:
        plain, _ = bare(hint)
        advice = ""
        if isinstance(node, Scalar) and node.value is not None:
            if shape(plain) is Items:
                advice = f": write it as a list: [{quote(node.text)}]"
            elif plain is bool:
                advice = ": write true or false"
            elif plain in (int, float):
                advice = ": write a plain decimal number" if node.doubt == "number" else ""
            elif shape(plain) is Scalar:
                text = getattr(plain, "respell", str)(node.text)
                if convert(hint, Scalar(node.mark, text, text), Problems()) is not BAD:
                    advice = f": write it in quotes: {quote(text)}"
        return self._bad(node, path, f"expected {expected(hint)}, found {_found(node)}{advice}")

    def _bad(self, node: Node, path: Path, message: str) -> Any:
        self._problems.add(node.mark, path, message)
        return BAD


def _found(node: Node) -> str:
    match node:
        case Items():
            return "a list"
        case Pairs():
            return "a mapping"
        case Scalar(value=None):
            return "nothing"
        case Scalar(value=bool()):
            return node.text
        case Scalar(value=str(), doubt=None | "word" | "time"):
            return quote(node.text)
        case Scalar():
            return f"the number {node.text[:60]}"


def _mark(node: Node, path: Path) -> Mark:
    """The place of a value inside a node, or of the last thing on the way that exists."""
    for part in path:
        if isinstance(node, Pairs) and isinstance(part, str) and (inner := node.get(part)):
            node = inner
        elif isinstance(node, Items) and isinstance(part, int) and part < len(node.items):
            node = node.items[part]
        else:
            break
    return node.mark
