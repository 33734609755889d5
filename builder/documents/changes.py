"""What is different in two JSON values, by path."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class Absent:
    """Stands where one of two documents has nothing."""

    def __repr__(self) -> str:
        return "nothing"


ABSENT = Absent()


@dataclass(frozen=True)
class Change:
    """A place, such as `$.config.Env[0]`, and the values there; `ABSENT` where there is none."""

    path: str
    before: Any
    after: Any

    def texts(self) -> tuple[str, str]:
        """Both values as JSON."""
        return _text(self.before), _text(self.after)

    def document(self) -> dict[str, object]:
        """The change as JSON: `a` and `b`, of which one is left out where there is nothing."""
        sides = (("a", self.before), ("b", self.after))
        return {"path": self.path} | {name: value for name, value in sides if value is not ABSENT}


def changes(before: Any, after: Any, path: str = "$") -> Iterator[Change]:
    """The places where two JSON values differ, in the order of their paths; equal values have none."""
    if isinstance(before, Mapping) and isinstance(after, Mapping):
        for key in sorted({*before, *after}):
            below = f"{path}.{key}" if _PLAIN.fullmatch(key) else f"{path}[{json.dumps(key)}]"
            if key not in after:
                yield Change(below, before[key], ABSENT)
            elif key not in before:
                yield Change(below, ABSENT, after[key])
            else:
                yield from changes(before[key], after[key], below)
    elif isinstance(before, list) and isinstance(after, list):
        for number in range(max(len(before), len(after))):
            below = f"{path}[{number}]"
            if number >= len(after):
                yield Change(below, before[number], ABSENT)
            elif number >= len(before):
                yield Change(below, ABSENT, after[number])
            else:
                yield from changes(before[number], after[number], below)
    elif type(before) is not type(after) or before != after:
        yield Change(path, before, after)


def _text(value: Any) -> str:
    return repr(value) if value is ABSENT else json.dumps(value, ensure_ascii=False, sort_keys=True)
