"""Binary caches: layers that one machine has made are put there, signed, and others take them instead of making them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote, urlsplit

from builder.errors import UsageError
from builder.lock import LockedFile
from builder.nix.engine import Engine, Ensure
from builder.plan import Layer
from builder.store import Store

_PARAMETERS = ("file", "http", "https", "s3")
"""Schemes of caches that sign and compress what they are given."""


@dataclass(frozen=True)
class Pushed:
    """What a cache was given: its layers, the path that refers to all of them, and the packer."""

    layers: tuple[Layer, ...]
    path: str
    packer: str


def push(
    engine: Engine, layers: Sequence[Layer], span_size: int, store: Store, ensure: Ensure, url: str, key: Path | None
) -> Pushed | None:
    """Puts those of the layers that are worth it into the cache at `url`, signed with the secret key in the file `key`, and the
    packer beside them. What Nix does not have is built first. None if no layer is worth it."""
    target = address(url, key)
    chosen = engine.worth(layers)
    if not chosen:
        return None
    with store.workspace() as folder:
        (path,) = engine.realised(chosen, span_size, store, ensure, folder, image=True)
        packer = engine.runtime(store)
        engine.nix.command("copy", "--to", target, path, packer)
    return Pushed(tuple(chosen), path, packer)


def pull(engine: Engine, layers: Sequence[Layer], span_size: int, store: Store) -> tuple[Layer, ...]:
    """Takes layers into the store that Nix or one of its caches has, and gives those; nothing is built or fetched."""
    chosen = engine.worth(layers)
    if not chosen:
        return ()
    with store.workspace() as folder:
        paths = engine.realised(chosen, span_size, store, _nothing, folder, cached=True)
        return engine.take_all(paths, chosen, span_size, store)


def address(url: str, key: Path | None) -> str:
    """The address of a cache with what it needs to sign. Raises `UsageError`."""
    parts = urlsplit(url)
    if not parts.scheme:
        raise UsageError(
            f"{url}: not the address of a cache", hint="write file:///absolute/folder, http://…, s3://… or ssh-ng://…"
        )
    if parts.scheme == "file" and (parts.netloc or not parts.path.startswith("/")):
        raise UsageError(f"{url}: not an absolute folder", hint="write file:///absolute/folder")
    if parts.scheme not in _PARAMETERS:
        if key is None:
            return url
        raise UsageError(
            f"{url}: such a store is not signed for", hint="leave out --key, or name a cache: file://, http://, s3://"
        )
    words = [parts.query] if parts.query else []
    if key:
        words.append(f"secret-key={quote(str(key.absolute()))}")
    if "compression=" not in parts.query:
        words.append("compression=zstd")
    return parts._replace(query="&".join(words)).geturl()


def _nothing(files: Iterable[LockedFile]) -> None:
    """What is taken from a cache needs no files."""
