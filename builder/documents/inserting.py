"""A key put into a YAML document without touching anything else in it: comments, order and style stay as they were."""

from __future__ import annotations

from collections.abc import Sequence

import yaml


def inserted(text: str, keys: Sequence[str], value: str) -> str:
    """The text with `value` (YAML on one line) at the place that `keys` lead to,
    behind what is in the mapping there; at the end of the file if that is the document.

    Raises `KeyError` if there is something already, `ValueError` if what is on the way is no mapping, or `text` no YAML.
    """
    try:
        node = yaml.compose(text, Loader=yaml.SafeLoader)
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from error
    depth = 0
    while True:
        if not isinstance(node, yaml.MappingNode) or not node.value:
            raise ValueError(f"{'.'.join(keys[:depth]) or 'the document'} is no mapping with something in it")
        child = next((item for key, item in node.value if key.value == keys[depth]), None)
        if child is None:
            break
        depth += 1
        if depth == len(keys):
            raise KeyError(".".join(keys))
        node = child
    for key in reversed(keys[depth + 1 :]):
        value = f"{{{key}: {value}}}"
    entry = f"{keys[depth]}: {value}"
    if node.flow_style:
        return _in_flow(text, node, entry)
    return _in_block(text, node, entry) if depth else f"{text.rstrip()}\n\n{entry}\n"


def _in_flow(text: str, node: yaml.MappingNode, entry: str) -> str:
    at: int = node.value[-1][1].end_mark.index
    return f"{text[:at]}, {entry}{text[at:]}"


def _in_block(text: str, node: yaml.MappingNode, entry: str) -> str:
    """On a line of its own behind the last one."""
    last: int = node.value[-1][1].end_mark.index
    content = len(text[:last].rstrip())
    end = text.find("\n", content)
    end = len(text) if end < 0 else end
    indent = " " * int(node.value[0][0].start_mark.column)
    rest = text[end:] or "\n"
    return f"{text[:end]}\n{indent}{entry}{rest}"
