"""The JSON Schema (draft 2020-12) of the documents of a dataclass, from the same hints and rules that read them."""

from __future__ import annotations

import inspect
from typing import Any, Literal, get_args, get_origin

from builder.documents.forms import Choice, Range
from builder.documents.keys import Key, bare, element, has_keys, keys, members, pair


def schema(cls: type) -> dict[str, Any]:
    """The schema of `cls`. It takes what `load` takes, but for rules that concern several values at once."""
    definitions: dict[str, Any] = {}
    top = _object(cls, definitions)
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": cls.__name__,
        **top,
        "$defs": definitions,
    }


def _object(cls: type, definitions: dict[str, Any]) -> dict[str, Any]:
    known = keys(cls)
    return {
        "description": inspect.getdoc(cls) or "",
        "type": "object",
        "properties": {key.name: _key(key, definitions) for key in known},
        "required": [key.name for key in known if not key.optional],
        "additionalProperties": False,
    }


def _key(key: Key, definitions: dict[str, Any]) -> dict[str, Any]:
    document = _value(key.hint, definitions)
    if key.meta.unique:
        lists = [each for each in (document, *document.get("anyOf", ())) if each.get("type") == "array"]
        for each in lists:
            each["uniqueItems"] = True
    if key.meta.short:
        document = {"anyOf": [document, {"enum": list(key.meta.short)}]}
    if key.meta.doc:
        document = {"description": key.meta.doc, **document}
    if key.optional and not has_keys(type(key.default)) and key.default not in (None, "", (), {}):
        document["default"] = plain(key.default)
    if key.meta.example is not None:
        document["examples"] = [key.meta.example]
    return document


def plain(default: Any) -> Any:
    """A default as a document has it."""
    if isinstance(default, tuple):
        return [plain(item) for item in default]
    return str(default) if hasattr(default, "parse") else default


def _value(hint: Any, definitions: dict[str, Any]) -> dict[str, Any]:
    hint, rules = bare(hint)
    if choices := members(hint):
        return {"anyOf": [_value(choice, definitions) for choice in choices]}
    if hint is type(None):
        return {"type": "null"}
    if hint is Any or hint is object:
        return {}
    if get_origin(hint) is Literal:
        return {"enum": list(get_args(hint))}
    if (item := element(hint)) is not None:
        return {"type": "array", "items": _value(item, definitions)}
    if types := pair(hint):
        names = {name: value for name, value in _value(types[0], {}).items() if name != "type"}
        document: dict[str, Any] = {"type": "object"}
        if names:
            document["propertyNames"] = names
        return {**document, "additionalProperties": _value(types[1], definitions)}
    if has_keys(hint):
        if hint.__name__ not in definitions:
            definitions[hint.__name__] = {}
            definitions[hint.__name__] = _object(hint, definitions)
        return {"$ref": f"#/$defs/{hint.__name__}"}
    return _scalar(hint, rules)


def _scalar(hint: Any, rules: tuple[Any, ...]) -> dict[str, Any]:
    simple = {int: "integer", float: "number", bool: "boolean"}
    if hint in simple:
        document: dict[str, Any] = {"type": simple[hint]}
    else:
        document = {"type": "string"}
        for form in (hint, *rules):
            if pattern := getattr(form, "pattern", None):
                document["pattern"] = f"^(?:{pattern})$"
            if getattr(form, "digits", False):
                document["type"] = ["string", "integer"]
                document["minimum"] = 0
    for rule in rules:
        if isinstance(rule, Choice):
            document = {"enum": list(rule.choices)}
        elif isinstance(rule, Range) and "integer" in document["type"]:
            document |= {"minimum": rule.minimum, "maximum": rule.maximum}
    return document
