"""What was read, before it is given types: scalars, lists and mappings with their places, and problems with them."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, TypeAlias

from builder.errors import BuilderError

_SHOWN = 50
"""How many problems a message lists, and how many are kept: a binary file should not fill a screen."""


@dataclass(frozen=True, order=True, slots=True)
class Mark:
    """A place in a file; line and column count from 1, and 0 means that only the file is known."""

    file: str
    line: int = 0
    column: int = 0

    def __str__(self) -> str:
        return f"{self.file}:{self.line}:{self.column}" if self.line else self.file


@dataclass(frozen=True, slots=True, eq=False)
class Scalar:
    """One value as it was written (`text`) and what it means by YAML 1.2's core schema or by JSON (`value`).

    `plain` says that it stands without quotes. `doubt` marks plain text that other readers of YAML take for
    something else: a `number` such as 0644, a `word` such as yes, a `time` such as 1:30. Its value is the text.
    """

    mark: Mark
    text: str
    value: str | int | float | bool | None
    plain: bool = False
    doubt: Literal["number", "word", "time"] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Items:
    """A list; `replace` says that it was written with `!replace`."""

    mark: Mark
    items: tuple[Node, ...]
    replace: bool = False


@dataclass(frozen=True, slots=True, eq=False)
class Pairs:
    """A mapping whose keys are text, each there once, in the order of the file."""

    mark: Mark
    pairs: tuple[tuple[Scalar, Node], ...]
    replace: bool = False

    def get(self, name: str) -> Node | None:
        return next((node for key, node in self.pairs if key.text == name), None)


Node: TypeAlias = Scalar | Items | Pairs
Path: TypeAlias = tuple[str | int, ...]


@dataclass(frozen=True, order=True, slots=True)
class Problem:
    """One thing that is wrong, where it stands in the file and in the value (`$.files[0].from`)."""

    mark: Mark
    path: str
    message: str

    def __str__(self) -> str:
        return f"{self.mark}: {self.path}: {self.message}" if self.path else f"{self.mark}: {self.message}"


class DocumentError(BuilderError):
    """A document is not what it should be; `problems` has all that was found, sorted by place."""

    def __init__(self, problems: Iterable[Problem], more: int = 0) -> None:
        self.problems = tuple(sorted(set(problems)))
        total = len(self.problems) + more
        lines = [str(problem) for problem in self.problems[:_SHOWN]]
        if total > len(lines):
            lines.append(f"… and {total - len(lines)} more")
        super().__init__(lines[0] if total == 1 else "\n  ".join([f"{total} problems:", *lines]))


class Problems:
    """Collects problems on the way, so that all are told at once; keeps a bounded number of them."""

    def __init__(self) -> None:
        self.found: list[Problem] = []
        self.more = 0

    @property
    def full(self) -> bool:
        return len(self.found) >= _SHOWN

    def add(self, mark: Mark, path: Path, message: str) -> None:
        if self.full:
            self.more += 1
        else:
            self.found.append(Problem(mark, show(path) if path else "", message))

    def check(self) -> None:
        """Raises what was found, if anything was."""
        if self.found:
            raise DocumentError(self.found, self.more)


def show(path: Path) -> str:
    """`$.files[0].from`, the way a problem names a value."""
    return "$" + "".join(
        f"[{part}]" if isinstance(part, int) else f".{part}" if _WORD.fullmatch(part) else f"[{quote(part)}]"
        for part in path
    )


def quote(text: str) -> str:
    """Foreign text in a message: in quotes, on one line, of a bounded length."""
    quoted = json.dumps(text[:61], ensure_ascii=False)
    safe = "".join(c if c.isprintable() else f"\\u{ord(c):04x}" for c in quoted)
    return safe if len(text) <= 60 else f'{safe[:-1]}…"'


_WORD = re.compile(r"[A-Za-z_][A-Za-z0-9_-]{0,59}")
