"""The words of Debian's control files (deb-control(5)): fields of a stanza, versions, relations between packages."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

from debian.debian_support import NativeVersion

_RELATION = re.compile(
    r"(?P<name>[a-z0-9][a-z0-9+.-]*)"
    r"(?::(?P<qualifier>[a-z0-9-]+))?"
    r"(?:\s*\(\s*(?P<operator><<|<=|=|>=|>>|<|>)\s*(?P<version>[^\s)]+)\s*\))?"
)
_OPERATORS = {"<": "<=", ">": ">="}


def fields(stanza: str) -> dict[str, str]:
    """The fields of one stanza by their names in lower case; continuation lines stay, with their leading space.

    Raises ValueError for a line that is no field and for a field that is there twice.
    """
    found: dict[str, str] = {}
    name = ""
    for line in stanza.splitlines():
        if line[:1] in (" ", "\t"):
            if not name:
                raise ValueError(f"a continuation line without a field: {line!r}")
            found[name] += "\n" + line
            continue
        key, colon, value = line.partition(":")
        name = key.lower()
        if not colon or not key or key != key.strip():
            raise ValueError(f"not a field: {line!r}")
        if name in found:
            raise ValueError(f"field {key} is there twice")
        found[name] = value.strip()
    return found


def stanzas(text: str) -> Iterator[str]:
    """The stanzas of a file, without comment lines."""
    lines: list[str] = []
    for line in text.splitlines():
        if line.startswith("#"):
            continue
        if line.strip():
            lines.append(line)
        elif lines:
            yield "\n".join(lines)
            lines = []
    if lines:
        yield "\n".join(lines)


@lru_cache(maxsize=1 << 16)
def version(text: str) -> NativeVersion:
    """A version that compares as dpkg compares; raises ValueError for what is none."""
    return NativeVersion(text)


@dataclass(frozen=True, slots=True)
class Relation:
    """`name[:qualifier] [(operator version)]`; `operator` is one of << <= = >= >>, or empty."""

    name: str
    operator: str = ""
    version: str = ""
    qualifier: str = ""

    def allows(self, candidate: str) -> bool:
        """Whether a version of the package satisfies this."""
        if not self.operator:
            return True
        have, want = version(candidate), version(self.version)
        match self.operator:
            case "<<":
                return bool(have < want)
            case "<=":
                return bool(have <= want)
            case "=":
                return bool(have == want)
            case ">=":
                return bool(have >= want)
            case _:
                return bool(have > want)

    def __str__(self) -> str:
        name = f"{self.name}:{self.qualifier}" if self.qualifier else self.name
        return f"{name} ({self.operator} {self.version})" if self.operator else name


Group = tuple[Relation, ...]
"""Alternatives, best first: `a | b`."""


@lru_cache(maxsize=1 << 14)
def relations(text: str) -> tuple[Group, ...]:
    """A relation field: groups between commas, alternatives between bars. Raises ValueError for what is none."""
    return tuple(
        tuple(_relation(alternative.strip()) for alternative in group.split("|"))
        for group in text.split(",")
        if group.strip()
    )


def _relation(text: str) -> Relation:
    match = _RELATION.fullmatch(text)
    if not match:
        raise ValueError(f"not a relation between packages: {text!r}")
    operator = match["operator"] or ""
    if operator:
        version(match["version"])
    return Relation(match["name"], _OPERATORS.get(operator, operator), match["version"] or "", match["qualifier"] or "")
