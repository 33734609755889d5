"""When a program counts as started: it answers, it prints a line, or it has done its work and ended."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

from builder.errors import UsageError

_HTTP = re.compile(r"https?://[^/\s]+(?:/\S*)?")


@dataclass(frozen=True)
class Ready:
    """What is waited for: `url` answers with 2xx, a line that `pattern` matches is printed, the program says so itself (`mark`,
    `builder.start`), or else it ends."""

    text: str
    url: str | None = None
    pattern: re.Pattern[str] | None = None

    @classmethod
    def parse(cls, text: str) -> Ready:
        """From `exit`, `mark`, `log:REGEX` or an address `http://…`. Raises `UsageError`."""
        if text in ("exit", "mark"):
            return cls(text)
        if text.startswith("log:"):
            try:
                return cls(text, pattern=re.compile(text[4:]))
            except re.error as error:
                raise UsageError(f"--ready {text}: no regular expression: {error}") from error
        if _HTTP.fullmatch(text):
            return cls(text, url=text)
        raise UsageError(
            f"--ready {text}: not understood", hint="write exit, mark, log:REGEX, or http://127.0.0.1:8080/healthz"
        )

    def reached(self, printed: str, ask: Callable[[str], bool], marked: Callable[[], bool]) -> bool:
        """Whether it is ready now: by what it has printed, what `ask` says of the address, or what it has `marked`."""
        if self.text == "mark":
            return marked()
        if self.pattern is not None:
            return any(self.pattern.search(line) for line in printed.splitlines())
        return self.url is not None and ask(self.url)
