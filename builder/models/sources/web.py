"""Models at an address: one file, `https://HOST/PATH`."""

from __future__ import annotations

import base64
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from builder.client import Client, Patience, origin, redact
from builder.errors import BuilderError, FetchError
from builder.lock import LockedFile, LockedModel, LockedModelFile
from builder.models.sources import Collected, Means, Wanted
from builder.models.sources.selection import select
from builder.models.values import LocalModelFile
from builder.oci.digest import Digest
from builder.parallel import Stop
from builder.sources.indexes import netrc_entry
from builder.store import hash_of, partial_lock
from builder.transfer import Lane, download, forget, settle

_ORIGIN = "https"
_CONNECTIONS = 8


def collect(text: str, wanted: Wanted, means: Means) -> Collected:
    """The one file, whatever the address gives now; an interrupted download goes on if nothing changed there."""
    (path,) = select([_name(text)], wanted, f"models: {redact(text)}")
    means.online(redact(text))
    digest, size = _download(text, means)
    return Collected(_pinned(text), (means.stored(LockedModelFile(path, digest.hex, size)),))


def bring(text: str, locked: LockedModel, files: Sequence[LockedModelFile], means: Means) -> tuple[LocalModelFile, ...]:
    """The file from the same address, if it still has those bytes."""
    path = urlsplit(text).path.strip("/")
    wanted = [LockedFile(_ORIGIN, path, file.sha256, file.size) for file in files]
    means.fetcher(_At(text), Asking(means.client, text, _credentials(text, means))).ensure(wanted)
    return tuple(map(means.stored, files))


@dataclass(frozen=True)
class _At:
    url: str

    def urls(self, file: LockedFile) -> list[str]:
        return [self.url]


@dataclass(frozen=True)
class Asking:
    """A client that adds `headers` to what it asks of the host of `url`, and of no other."""

    client: Client
    url: str
    headers: Mapping[str, str] = field(repr=False)

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[Any]:
        """As the client does."""
        own = self.headers if origin(url) == origin(self.url) else {}
        with self.client.open(url, {**(headers or {}), **own}) as response:
            yield response

    def patience(self, stop: Stop) -> Patience:
        """As the client has it."""
        return self.client.patience(stop)


def _credentials(text: str, means: Means) -> dict[str, str]:
    """What the user's netrc says of the host, as a header."""
    user, password = netrc_entry(urlsplit(text).hostname or "", means.environ)
    if user is None and password is None:
        return {}
    encoded = base64.b64encode(f"{user or ''}:{password or ''}".encode()).decode()
    return {"authorization": f"Basic {encoded}"}


def _name(text: str) -> str:
    name = unquote(urlsplit(text).path.rstrip("/").rpartition("/")[2])
    if not name or "/" in name:
        raise BuilderError(f"models: {redact(text)}: the address names no file", hint="name the file at its end")
    return name


def _pinned(text: str) -> str:
    """Without the host, and without what follows the path: it may be a signature."""
    return f"https://{urlsplit(text).path}"


def _download(text: str, means: Means) -> tuple[Digest, int]:
    store, stop = means.store, Stop()
    shown = redact(text)

    secret = _credentials(text, means)

    def measure() -> tuple[int, str, str]:
        with means.client.open(text, secret) as answer:
            size, etag = answer.headers.get("content-length", ""), answer.headers.get("etag", "")
            return int(size) if size.isdecimal() else -1, etag, answer.headers.get("last-modified", "")

    size, etag, modified = means.client.retrying(measure, stop)
    if size < 0:
        raise FetchError(
            f"{shown}: the server does not say how large the file is",
            hint="download it, and name the file in the profile",
        )
    means.check_space(size, shown)
    strong = etag if etag.startswith('"') else ""
    key = Digest.of("\n".join((text, str(size), etag, modified)).encode())
    with store.locked(partial_lock(key), stop.check), means.progress.task(f"fetch {_name(text)}", size) as task:
        path = store.partial(key)
        if not strong and not modified:
            forget(path)  # nothing says that what is left there is of the same file
        opener = Asking(means.client, text, secret | ({"if-match": strong} if strong else {}))
        lane = Lane(
            opener, threading.BoundedSemaphore(_CONNECTIONS), _CONNECTIONS, task.advance, stop, teller="the server"
        )
        with store.explained():
            download(lane, text, path, size)
            descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            try:
                digest = hash_of(descriptor)
            finally:
                os.close(descriptor)
            store.adopt(path, digest)
            settle(path)
    return digest, size
