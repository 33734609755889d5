"""Texts without credentials."""

from __future__ import annotations

import re

_USERINFO = re.compile(r"(\w+://)[^/\s]*@")


def redact(text: str) -> str:
    """The text with `***` for the credentials of every URL in it."""
    return _USERINFO.sub(r"\1***@", text)
