"""The lock: every input of every platform by digest, and everything else that decides the image's bytes.

Canonical JSON beside the profile, `NAME.lock.json`, made to be read in a diff. It names no host: an
input is an origin and a path, and the user's configuration says where an origin is found.
"""

from __future__ import annotations

import json
import re

from builder import documents
from builder.errors import BuilderError
from builder.lock.checks import problems
from builder.lock.closure import LockedNixPath
from builder.lock.values import (
    ADAPTIVE,
    FORMAT,
    Lock,
    LockedCompression,
    LockedCuda,
    LockedDeb,
    LockedDebian,
    LockedFile,
    LockedInclude,
    LockedLocal,
    LockedModel,
    LockedModelFile,
    LockedNix,
    LockedNixLink,
    LockedNixRoot,
    LockedOrder,
    LockedPlatform,
    LockedPython,
    LockedRelease,
    LockedStart,
    LockedTemplate,
    LockedWheel,
    SociSettings,
)

__all__ = [
    "ADAPTIVE",
    "FORMAT",
    "Lock",
    "LockError",
    "LockedCompression",
    "LockedCuda",
    "LockedDeb",
    "LockedDebian",
    "LockedFile",
    "LockedInclude",
    "LockedLocal",
    "LockedModel",
    "LockedModelFile",
    "LockedNix",
    "LockedNixLink",
    "LockedNixPath",
    "LockedNixRoot",
    "LockedOrder",
    "LockedPlatform",
    "LockedPython",
    "LockedRelease",
    "LockedStart",
    "LockedTemplate",
    "LockedWheel",
    "SociSettings",
    "encode",
    "parse",
]


class LockError(BuilderError):
    """A lock file is not one that Layerwright wrote."""

    hint = "take it from version control again, or delete it and run `build lock`"


def encode(lock: Lock) -> str:
    """The text of a lock file: equal locks have equal text."""
    return json.dumps(documents.dump(lock), sort_keys=True, indent=2, ensure_ascii=False) + "\n"


def parse(text: str, file: str) -> Lock:
    """The lock in the text of `file`.

    A lock of an older format is read, if its form is the same: it is stale, as `staleness` says. Raises
    `LockError` for a lock of a newer version, one that contradicts itself, and one that is not in the form that
    `encode` writes; `DocumentError` with every key and type that is wrong.
    """
    _check_format(text, file)
    try:
        lock = documents.load_json(Lock, text, file)
    except documents.DocumentError as error:
        error.hint = LockError.hint
        if "unknown key" in str(error):
            error.hint = f"upgrade Layerwright, if a newer one made it; else {LockError.hint}"
        if re.search("^<{7} ", text, re.MULTILINE):
            error.hint = (
                "a merge was not finished in it: take one side, then run `build lock`, which brings it up to date"
            )
        raise
    found = list(problems(lock))
    if found:
        lines = "".join(f"\n  {problem}" for problem in found)
        raise LockError(f"{file}: these entries cannot be right:{lines}")
    if encode(lock) != text:
        raise LockError(f"{file}: it was edited by hand: it is not in the form that `build lock` writes")
    return lock


def _check_format(text: str, file: str) -> None:
    """A lock of a later format may have keys that this version does not know; that is not the user's mistake."""
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return
    found = document.get("format") if isinstance(document, dict) else None
    if isinstance(found, int) and found > FORMAT:
        raise LockError(
            f"{file}: it was made by a newer Layerwright, for format {found}; this one knows formats up to {FORMAT}",
            hint="upgrade Layerwright: pip install --upgrade layerwright",
        )
