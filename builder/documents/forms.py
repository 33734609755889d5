"""What `Annotated` may add to a type hint of a document: forms of text, choices and ranges."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Self

from builder.documents.nodes import quote


@dataclass(frozen=True)
class Form:
    """Text that matches `pattern` as a whole; `what` goes on after "expected".

    `advice` says of text that does not match what to do about it, and `check` says what is wrong with text that
    does. With `digits`, a plain whole number counts as its text. `local` marks the name of a file that is relative to
    the document: the text that stands before the name, mostly none; what matches `remote` is no name of a file.
    """

    pattern: str
    what: str
    advice: Callable[[str], str | None] | None = None
    check: Callable[[str], str | None] | None = None
    digits: bool = False
    local: str | tuple[str, ...] | None = None
    remote: str | None = None

    def complaint(self, text: str) -> str | None:
        """What is wrong with the text, or None."""
        if not re.fullmatch(self.pattern, text):
            advice = self.advice(text) if self.advice else None
            return f"expected {self.what}, found {quote(text)}{f': {advice}' if advice else ''}"
        return self.check(text) if self.check else None

    def is_local(self, text: str) -> bool:
        """Whether the text names a file relative to the document."""
        if self.local is None or not text.startswith(self.local):
            return False
        return self.remote is None or not re.fullmatch(self.remote, text)


@dataclass(frozen=True)
class Choice:
    """Text that is one of a few."""

    choices: tuple[str, ...]


@dataclass(frozen=True)
class Range:
    """A number between two bounds, both of them allowed; `what` goes on after "expected"."""

    minimum: int
    maximum: int
    what: str

    def __str__(self) -> str:
        return self.what


class Size(int):
    """A number of bytes, written as `4MiB`, `512KiB` or a plain number of bytes."""

    pattern = r"(?:0|[1-9][0-9]{0,17})(?:B|KiB|MiB|GiB)?"
    what = "a size such as 4MiB"
    digits = True

    @classmethod
    def parse(cls, text: str) -> Self:
        if not re.fullmatch(cls.pattern, text):
            binary = re.fullmatch(r"([1-9][0-9]*) ?([kKmMgG])(?:[bB]|i|ib|IB)?", text)
            advice = f": write {binary[1]}{binary[2].upper()}iB" if binary else ""
            raise ValueError(f"expected {cls.what}, found {quote(text)}{advice}")
        number = text.rstrip("BKMGi")
        return cls(int(number) * _UNITS[text[len(number) :]])

    def __str__(self) -> str:
        unit = next(unit for unit in ("GiB", "MiB", "KiB", "") if self % _UNITS[unit] == 0) if self else ""
        return f"{int(self) // _UNITS[unit]}{unit}"


_UNITS = {"": 1, "B": 1, "KiB": 1 << 10, "MiB": 1 << 20, "GiB": 1 << 30}


class Mode(int):
    """The permission bits of a file, written in octal and in quotes: "0644"."""

    pattern = r"0?[0-7]{3}"
    what = 'octal permissions in quotes such as "0644"'

    @classmethod
    def parse(cls, text: str) -> Self:
        if not re.fullmatch(cls.pattern, text):
            raise ValueError(f"expected {cls.what}, found {quote(text)}")
        return cls(int(text, 8))

    @classmethod
    def respell(cls, text: str) -> str:
        """How text that was written as a number is to be written."""
        octal = re.fullmatch(r"(?:0o?)?([0-7]{3})", text)
        return f"0{octal[1]}" if octal else text

    def __str__(self) -> str:
        return f"{int(self):04o}"


def suggestion(text: str, known: Iterable[str]) -> str:
    """` (did you mean …?)` where something known is near, else nothing."""
    import difflib  # takes long to import, and few need it

    near = difflib.get_close_matches(text[:64], sorted(known), 1)
    return f" (did you mean {near[0]}?)" if near else ""
