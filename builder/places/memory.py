"""What the store remembers of registries: which repositories have which blobs, so that these can be mounted."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import suppress
from typing import Any

from builder.errors import StoreError
from builder.oci.digest import Digest
from builder.store import Store

_KIND = "registry"
_MAX_REPOSITORIES = 64
_MAX_BLOBS = 4096


def mounts(
    store: Store, registry: str, repository: str, preferred: Iterable[str] = ()
) -> Callable[[Digest], tuple[str, ...]]:
    """A function from a blob to the other repositories of the registry that may have it: the `preferred` ones, then those
    that are remembered, the latest first."""
    named = tuple(preferred)
    remembered = {name: frozenset(blobs) for name, blobs in reversed(_read(store, registry).items())}

    def candidates(digest: Digest) -> tuple[str, ...]:
        known = (name for name, blobs in remembered.items() if digest.hex in blobs)
        return tuple(dict.fromkeys(name for name in (*named, *known) if name != repository))

    return candidates


def remember(store: Store, registry: str, repository: str, blobs: Iterable[Digest]) -> None:
    """Notes that a repository has these blobs, its latest ones. A store that cannot be written remembers nothing."""
    new = sorted(digest.hex for digest in blobs)[:_MAX_BLOBS]
    with suppress(StoreError):
        if _read(store, registry).get(repository) == new:
            return
        with store.locked(f"{_KIND}-{registry}"):
            known = _read(store, registry)
            known.pop(repository, None)
            kept = dict([*known.items(), (repository, new)][-_MAX_REPOSITORIES:])
            rows = [{"repository": name, "blobs": listed} for name, listed in kept.items()]
            store.put_record(_KIND, registry, {"repositories": rows})


def _read(store: Store, registry: str) -> dict[str, list[str]]:
    """Repositories and their blobs, the latest last; what is damaged is forgotten."""
    found: dict[str, list[str]] = {}
    with suppress(StoreError):
        document: dict[str, Any] = store.record(_KIND, registry) or {}
        rows = document.get("repositories", ())
        for row in rows if isinstance(rows, list) else ():
            match row:
                case {"repository": str(name), "blobs": list(blobs)}:
                    found[name] = [text for text in blobs if isinstance(text, str)]
    return found
