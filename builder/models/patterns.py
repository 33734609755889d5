"""Patterns that choose files of a model."""

from __future__ import annotations

import fnmatch
import posixpath
from collections.abc import Sequence


def matches(path: str, patterns: Sequence[str]) -> bool:
    """Whether a path, its name, or a folder that it is in matches one of the patterns."""
    name = posixpath.basename(path)
    return any(
        fnmatch.fnmatchcase(name, pattern)
        or fnmatch.fnmatchcase(path, pattern.rstrip("/"))
        or fnmatch.fnmatchcase(path, f"{pattern.rstrip('/')}/*")
        for pattern in patterns
    )
