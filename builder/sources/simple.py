"""Where on the configured indexes a wheel lies: the simple API, as JSON (PEP 691) or as HTML (PEP 503).

Whatever a page says, the bytes behind its links are checked by the sha256 of the lock: an index is trusted with nothing
but being there.
"""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from html.parser import HTMLParser
from typing import Any, Protocol
from urllib.parse import unquote, urljoin, urlsplit, urlunsplit

from packaging.utils import InvalidWheelFilename, parse_wheel_filename

from builder.errors import FetchError
from builder.lock import LockedFile
from builder.sources.indexes import Index, Indexes
from builder.sources.redacting import redact

ORIGIN = "pypi"
"""The origin of every locked wheel: the configured indexes, however many they are."""

_PAGE_LIMIT = 64 << 20
_ACCEPT = "application/vnd.pypi.simple.v1+json, application/vnd.pypi.simple.v1+html;q=0.2, text/html;q=0.1"


class Get(Protocol):
    """The body of a URL, at most `limit` bytes; raises `FetchError`. Credentials in the URL are used, not shown."""

    def __call__(self, url: str, *, headers: Mapping[str, str] | None = None, limit: int = ...) -> bytes: ...


@dataclass(frozen=True)
class Offer:
    """What an index says of one file; None where it does not say it."""

    url: str
    sha256: str | None
    size: int | None


class Catalogue:
    """The files that the configured indexes offer; shared by threads, each page is read once.

    `configure` is called when an index is first needed, and once. `measure` tells the size of the file at a URL without
    fetching it, for an index that does not say sizes.
    """

    def __init__(
        self, configure: Callable[[], Indexes], get: Get, *, measure: Callable[[str], int | None] | None = None
    ) -> None:
        self._configure = configure
        self._get = get
        self._measure = measure
        self._guard = threading.RLock()
        self._locks: dict[tuple[Index, str], threading.Lock] = {}
        self._pages: dict[tuple[Index, str], Mapping[str, Offer] | FetchError] = {}

    @property
    def indexes(self) -> Indexes:
        with self._guard:
            return self._configured

    @cached_property
    def _configured(self) -> Indexes:
        return self._configure()

    def urls(self, file: LockedFile) -> Iterator[str]:
        """Where a locked wheel may be had, best first; a URL carries the credentials of its index.

        Raises `FetchError`, after the last URL, if no index offers the file.
        """
        found = False
        missing: list[str] = []
        for index in self.indexes:
            try:
                url = self.lookup(index, file)
            except FetchError as error:
                missing.append(str(error))
                continue
            if url is None:
                missing.append(f"{index}: no file of this name and sha256")
                continue
            found = True
            yield url
        if not found:
            reasons = "".join(f"\n  {reason}" for reason in missing)
            raise FetchError(
                f"{file.path}: not on the configured package indexes:{reasons}",
                hint="check the index settings (`build doctor` shows them); if it was deleted there, lock again",
            )

    def lookup(self, index: Index, file: LockedFile) -> str | None:
        """The URL of a wheel on one index, by its name and sha256; None if other bytes or none are there.

        Raises `FetchError` if the index does not answer, or has no page for the project.
        """
        offer = self._page(index, _project(file.path)).get(file.path)
        if offer is None or offer.sha256 not in (None, file.sha256):
            return None
        return offer.url

    def offers(self, project: str) -> Mapping[str, Offer]:
        """The files of a project by their names, each as the first index says that has it.

        Raises `FetchError` if no index has a page for the project.
        """
        found: dict[str, Offer] = {}
        missing: list[FetchError] = []
        for index in self.indexes:
            try:
                for name, offer in self._page(index, project).items():
                    found.setdefault(name, offer)
            except FetchError as error:
                missing.append(error)
        if not found and missing:
            raise missing[0]
        return found

    def size(self, name: str, sha256: str) -> int | None:
        """The size of a wheel as an index tells it, or as it is measured there."""
        for index in self.indexes:
            try:
                offer = self._page(index, _project(name)).get(name)
            except FetchError:
                continue
            if offer is None or offer.sha256 not in (None, sha256):
                continue
            size = offer.size if offer.size is not None or self._measure is None else self._measure(offer.url)
            if size is not None:
                return size
        return None

    def names(self, project: str) -> tuple[str, ...]:
        """The names of all files of a project, of whatever index; none if no index has the project.

        Raises `FetchError` if no index answers.
        """
        found: dict[str, None] = {}
        errors: list[FetchError] = []
        for index in self.indexes:
            try:
                found |= dict.fromkeys(self._page(index, project))
            except FetchError as error:
                errors.append(error)
        if errors and not found:
            raise errors[0]
        return tuple(found)

    def read(self, name: str, limit: int) -> bytes:
        """A small wheel, by its file name: the first that an index has and that is what the index says of it.

        Raises `FetchError` where there is none.
        """
        reasons: list[str] = []
        for index in self.indexes:
            try:
                offer = self._page(index, _project(name)).get(name)
                data = self._get(offer.url, limit=limit) if offer else None
            except FetchError as error:
                reasons.append(str(error))
                continue
            if offer and data is not None:
                if offer.sha256 in (None, hashlib.sha256(data).hexdigest()):
                    return data
                reasons.append(f"{index}: it has another sha256 than the index says")
        raise FetchError(f"{name}: not to be had from the configured package indexes: {'; '.join(reasons)}")

    def _page(self, index: Index, project: str) -> Mapping[str, Offer]:
        key = (index, project)
        with self._guard:
            lock = self._locks.setdefault(key, threading.Lock())
        with lock:
            if key not in self._pages:
                try:
                    self._pages[key] = _read_page(index, project, self._get)
                except FetchError as error:
                    self._pages[key] = error
            page = self._pages[key]
        if isinstance(page, FetchError):
            raise FetchError(str(page), hint=page.hint)
        return page


def _project(file_name: str) -> str:
    try:
        return parse_wheel_filename(file_name)[0]
    except InvalidWheelFilename as error:
        raise FetchError(f"{file_name}: not the name of a wheel") from error


def _read_page(index: Index, project: str, get: Get) -> dict[str, Offer]:
    url = f"{index.url}/{project}/"
    body = get(url, headers={"Accept": _ACCEPT}, limit=_PAGE_LIMIT)
    # the first character tells JSON from HTML, whatever a proxy made of the content type
    links = _json_links(url, body) if body.lstrip()[:1] == b"{" else _html_links(url, body)
    offers: dict[str, Offer] = {}
    for name, link, sha256, size in links:
        try:
            target = urlsplit(urljoin(url, link))
        except ValueError:
            continue
        if target.scheme in ("http", "https"):
            offer = Offer(_authorised(index, urlunsplit(target._replace(fragment=""))), sha256, size)
            offers.setdefault(name, offer)
    return offers


_Link = tuple[str, str, str | None, int | None]


def _json_links(url: str, body: bytes) -> Iterator[_Link]:
    try:
        files = json.loads(body)["files"]
        for file in files:
            size = file.get("size")
            yield str(file["filename"]), str(file["url"]), _sha256(file.get("hashes")), size if _is_size(size) else None
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise FetchError(f"{redact(url)}: not a page of the simple API: {error!r}") from error


def _html_links(url: str, body: bytes) -> Iterator[_Link]:
    anchors = _Anchors()
    anchors.feed(body.decode(errors="replace"))
    anchors.close()
    for href in anchors.hrefs:
        try:
            link = urljoin(anchors.base, href)
            parts = urlsplit(link)
        except ValueError:
            continue
        algorithm, _, value = parts.fragment.partition("=")
        yield unquote(parts.path.rpartition("/")[2]), link, _sha256({algorithm: value}), None


class _Anchors(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.base = ""
        self.hrefs: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        href = dict(attrs).get("href")
        if href and tag == "a":
            self.hrefs.append(href)
        elif href and tag == "base" and not self.base:
            self.base = href


def _sha256(hashes: Any) -> str | None:
    value = hashes.get("sha256") if isinstance(hashes, dict) else None
    return value.lower() if isinstance(value, str) else None


def _is_size(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _authorised(index: Index, url: str) -> str:
    """The URL with the index's credentials if it is on the same server, and never with any other."""
    ours, theirs = urlsplit(index.url), urlsplit(url)
    bare = theirs.netloc.rpartition("@")[2]
    userinfo, at, host = ours.netloc.rpartition("@")
    same = (ours.scheme, host) == (theirs.scheme, bare)
    return urlunsplit(theirs._replace(netloc=userinfo + at + bare if same else theirs.netloc))
