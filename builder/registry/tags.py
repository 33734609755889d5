"""The tags of a repository, as its registry lists them."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence

from builder.client import TransientError
from builder.errors import BuilderError
from builder.oci.content import MAX_MANIFEST
from builder.registry.referrers import next_page
from builder.registry.session import Session

_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_COMPANION = re.compile(r"sha256-[0-9a-f]{64}.*")
_ASKED = 100
_SHOWN = 6
_PATIENCE = 5.0


def page(session: Session, url: str, patience: float | None = None) -> tuple[list[str], str | None]:
    """The tags that one answer lists, and the address of the next one; the answer may take `patience` seconds. Raises
    `FetchError`."""
    with session.send("GET", url, read_timeout=patience) as answer:
        link = answer.headers.get("link", "")
        data = answer.body(MAX_MANIFEST)
    try:
        names = json.loads(data)["tags"] or []
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise TypeError
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise TransientError(f"{session.reference.name}: its list of tags cannot be read") from error
    return names, next_page(link, url) if link else None


def some(session: Session) -> tuple[list[str], bool]:
    """The first hundred tags at most, and whether there are more; signatures and the like are none. One request finds them."""
    listed, more = page(session, session.url(f"tags/list?n={_ASKED}"), _PATIENCE)
    names = [name for name in listed[:_ASKED] if _TAG.fullmatch(name) and not _COMPANION.fullmatch(name)]
    return names, more is not None or len(listed) > _ASKED


def nearest(wanted: str, names: Sequence[str], count: int) -> list[str]:
    """So many of the names that are most like the one that is wanted, the nearest first."""
    from difflib import get_close_matches  # it takes long to import, and few need it

    return get_close_matches(wanted, names, count, 0.0)


def advice(session: Session, wanted: str) -> str | None:
    """What to say to somebody who asked for a tag that is not there: the nearest of the first hundred that are. One request
    finds them; None where it does not."""
    try:
        names, more = some(session)
    except BuilderError:
        return None
    if not names:
        return None
    from difflib import get_close_matches

    near = nearest(wanted, names, _SHOWN)
    meant = f"did you mean {near[0]}? " if get_close_matches(wanted, near, 1) else ""
    others = " and more" if more or len(names) > len(near) else ""
    return f"{meant}there {'are' if others or len(near) > 1 else 'is'} {', '.join(near)}{others}"
