"""Versions of the documents that cold starts leave: told before anything else that is wrong."""

from __future__ import annotations

import json

from builder.errors import BuilderError


def check_version(data: bytes | str, file: str, known: int, wrong: type[BuilderError], what: str) -> None:
    """Raises `wrong` where the bytes of `file`, a `what`, are no JSON object, or not of the version that is known."""
    try:
        version = json.loads(data).get("version")
    except (ValueError, AttributeError, RecursionError) as error:
        raise wrong(f"{file}: it is no {what}: {error}") from error
    if version != known:
        raise wrong(f"{file}: its version is {version!r}, this Layerwright reads version {known}")
