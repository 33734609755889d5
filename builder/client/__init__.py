"""HTTP as downloads and registries need it: retries, timeouts, proxies, redirects, and messages without secrets."""

from __future__ import annotations

import email.utils
import re
import ssl
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from typing import TypeVar
from urllib.parse import SplitResult, urlsplit, urlunsplit

import urllib3
from urllib3 import exceptions as broken
from urllib3.response import BaseHTTPResponse

from builder import __version__
from builder.client.addresses import (
    basic_of,
    file_of,
    host_of,
    is_exempt,
    is_local,
    joined,
    origin,
    origin_of,
    redact,
    web_address,
)
from builder.client.opening import open_some
from builder.client.patience import (
    ForbiddenError,
    ForbiddenThereError,
    NotFoundError,
    Patience,
    RefusedError,
    TransientError,
)
from builder.errors import FetchError
from builder.forks import renew_in_forks
from builder.parallel import Stop
from builder.settings import Network

__all__ = [
    "READ",
    "Answer",
    "Body",
    "Client",
    "ForbiddenError",
    "ForbiddenThereError",
    "NotFoundError",
    "Patience",
    "RefusedError",
    "TransientError",
    "body",
    "file_of",
    "is_local",
    "joined",
    "origin",
    "redact",
]

T = TypeVar("T")
READ = 256 << 10
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_SAME_METHOD = frozenset({307, 308})
_MAX_REDIRECTS = 10
_TRANSIENT = frozenset({408, 425, 429})
_SECRET_HEADERS = ("authorization", "cookie")
_MAX_IDLE = 32
_PACKED = (".gz", ".xz", ".bz2", ".zst", ".tgz")
_SMALL = 64 << 10

Body = bytes | Callable[[], Iterable[bytes | memoryview]] | None
"""What a request sends: bytes, or a function that gives them in pieces, from the start each time it is called."""


@dataclass(frozen=True)
class Answer:
    """What came back for a request, with any status: its body is unread and as sent. `url` is where it came from;
    `own` says that this is the origin that was asked, and not one that it redirected to."""

    response: BaseHTTPResponse
    url: str
    own: bool

    @property
    def status(self) -> int:
        return self.response.status

    @property
    def headers(self) -> Mapping[str, str]:
        return self.response.headers

    def body(self, limit: int) -> bytes:
        """The whole body; raises `FetchError` if it has more than `limit` bytes."""
        return body(self.response, self.url, limit)

    def check(self) -> None:
        """Raises `TransientError`, `NotFoundError`, `ForbiddenError` or `FetchError` unless it is 200 or 206."""
        _check_status(self.response, self.url, ForbiddenError if self.own else ForbiddenThereError)


class Client:
    """Gets URLs (`http`, `https`; `get` also `file`); shared by threads. Forks have connections of their own.

    User and password in a URL are sent as basic authentication to that host only, and never shown. `tell` is called with a line
    for people before a request is tried again.
    """

    def __init__(self, network: Network | None = None, tell: Callable[[str], None] | None = None) -> None:
        self._network = network if network is not None else Network()
        self._tell = tell
        self._pools: dict[str | None, urllib3.PoolManager] = {}
        renew_in_forks(self)

    def renew(self) -> None:
        """Forgets the connections, which are another process's."""
        self._pools = {}

    def get(self, url: str, *, headers: Mapping[str, str] | None = None, limit: int = 64 << 20) -> bytes:
        """The body of a small document, at most `limit` bytes. Raises `NotFoundError` or another `FetchError`."""
        if is_local(url):
            return _read_file(url, limit)

        def attempt() -> bytes:
            with self.open(url, headers) as response:
                return body(response, url, limit)

        return self.retrying(attempt, Stop())

    def retrying(self, attempt: Callable[[], T], stop: Stop) -> T:
        """What `attempt` returns, tried again while it raises `TransientError`, up to the number of attempts."""
        patience = self.patience(stop)
        while True:
            try:
                return attempt()
            except TransientError as error:
                patience.failed(error)

    def bypassing(self, host: str) -> Client:
        """A client like this one that asks `host` directly, without a proxy."""
        return Client(replace(self._network, no_proxy=(*self._network.no_proxy, host)), self._tell)

    def patience(self, stop: Stop) -> Patience:
        """A fresh count of failures."""
        return Patience(self._network, stop, self._tell)

    def prepare(self, url: str, count: int) -> None:
        """Opens connections to the host of `url` for the next requests; what goes wrong is left to them."""
        with suppress(FetchError, broken.HTTPError):
            open_some(self._pool(parts := web_address(url)).connection_from_url(parts.geturl()), count, Stop())

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[BaseHTTPResponse]:
        """The answer (200 or 206) to one request, redirects followed, its body unread and as sent.

        Raises `TransientError` where another attempt may help, `NotFoundError`, or another `FetchError`; what goes
        wrong while the body is read inside the block is raised like that, too.
        """
        with self.send("GET", url, headers) as answer:
            answer.check()
            yield answer.response

    @contextmanager
    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        *,
        redirects: bool = True,
        read_timeout: float | None = None,
    ) -> Iterator[Answer]:
        """The answer, whatever its status, to one request. Redirects are followed where the method can stay the same,
        unless `redirects` is false: where a body is secret, it must not be.

        A body that comes in pieces needs a `content-length` among the headers. `read_timeout` replaces the usual one.
        `authorization` never travels to another origin. Raises `TransientError` and `FetchError` where no answer came,
        also for what goes wrong while the body of the answer is read inside the block.
        """
        with self._explained(url):
            sent = {name.lower(): value for name, value in (headers or {}).items()}
            answer = self._follow(method, url, sent, body, redirects, read_timeout)
            try:
                yield answer
                # what is left of a short answer is read, so that its connection can be used again
                if (answer.response.length_remaining or 0) <= _SMALL and "content-length" in answer.headers:
                    answer.response.drain_conn()
            finally:
                answer.response.close()
                answer.response.release_conn()

    def _follow(
        self, method: str, url: str, headers: dict[str, str], body: Body, redirects: bool, read_timeout: float | None
    ) -> Answer:
        origin = origin_of(web_address(url))
        followed = _REDIRECTS if method in ("GET", "HEAD") else _SAME_METHOD
        network = self._network
        timeout = urllib3.Timeout(connect=network.connect_timeout, read=read_timeout or network.read_timeout)
        for _ in range(_MAX_REDIRECTS):
            parts = web_address(url)
            if parts.username is not None:
                headers["authorization"] = basic_of(parts)
            response = self._pool(parts).request(
                method,
                urlunsplit(parts._replace(netloc=host_of(parts), fragment="")),
                body=body() if callable(body) else body,  # type: ignore[arg-type] # all of these are sent
                headers={"user-agent": f"layerwright/{__version__}", "accept-encoding": "identity", **headers},
                redirect=False,
                retries=False,
                timeout=timeout,
                preload_content=False,
                decode_content=False,
            )
            location = response.headers.get("location")
            if response.status not in followed or not location or not redirects:
                return Answer(response, url, origin_of(parts) == origin)
            response.drain_conn()
            response.release_conn()
            target = web_address(joined(url, location))
            if parts.scheme == "https" and target.scheme != "https":
                raise FetchError(f"{redact(url)}: redirects to the unencrypted address {redact(target.geturl())}")
            if origin_of(target) != origin_of(parts):
                headers = {name: value for name, value in headers.items() if name not in _SECRET_HEADERS}
            url = target.geturl()
        raise FetchError(f"{redact(url)}: more than {_MAX_REDIRECTS} redirects")

    def _pool(self, parts: SplitResult) -> urllib3.PoolManager:
        """The connections to use for an address: direct ones, or those through its proxy."""
        network = self._network
        proxy = network.https_proxy if parts.scheme == "https" else network.http_proxy
        if proxy is not None and is_exempt(parts.hostname or "", parts.port, network.no_proxy):
            proxy = None
        if proxy not in self._pools:
            self._pools[proxy] = self._new_pool(proxy)
        return self._pools[proxy]

    def _new_pool(self, proxy: str | None) -> urllib3.PoolManager:
        network = self._network
        if network.ca_file is not None and not network.ca_file.is_file():
            raise FetchError(
                f"{network.ca_file}: no such file of certificates",
                hint="correct SSL_CERT_FILE (or REQUESTS_CA_BUNDLE), or unset it",
            )
        timeout = urllib3.Timeout(connect=network.connect_timeout, read=network.read_timeout)
        certificates = str(network.ca_file) if network.ca_file is not None else None
        if proxy is None:
            return urllib3.PoolManager(maxsize=_MAX_IDLE, timeout=timeout, ca_certs=certificates)
        parts = urlsplit(proxy if "://" in proxy else f"http://{proxy}")
        if parts.scheme not in ("http", "https"):
            raise FetchError(
                f"{redact(proxy)}: a {parts.scheme} proxy cannot be used",
                hint="name an http or https proxy in HTTPS_PROXY and HTTP_PROXY",
            )
        if not _is_host_and_port(parts):
            raise FetchError(
                f"{redact(proxy)}: not the address of a proxy",
                hint="write http://HOST:PORT in HTTPS_PROXY and HTTP_PROXY",
            )
        secret = {"proxy-authorization": basic_of(parts)} if parts.username is not None else {}
        address = f"{parts.scheme}://{host_of(parts)}"
        return urllib3.ProxyManager(
            address, proxy_headers=secret, maxsize=_MAX_IDLE, timeout=timeout, ca_certs=certificates
        )

    @contextmanager
    def _explained(self, url: str) -> Iterator[None]:
        """Turns what urllib3 raises into our errors; its own texts may hold whole URLs and are not used."""
        try:
            yield
        except broken.HTTPError as error:
            raise _translated(error, redact(url), self._network) from error


def _is_host_and_port(parts: SplitResult) -> bool:
    try:
        return bool(parts.hostname) and parts.port != 0
    except ValueError:
        return False


def _read_file(url: str, limit: int) -> bytes:
    path = file_of(url)
    try:
        with path.open("rb") as file:
            data = file.read(limit + 1)
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError) as error:
        raise NotFoundError(f"{path}: there is no such file") from error
    except OSError as error:
        raise FetchError(f"{path}: {error.strerror}") from error
    if len(data) > limit:
        raise FetchError(f"{path}: larger than {limit} bytes")
    return data


def body(response: BaseHTTPResponse, url: str, limit: int) -> bytes:
    """All of an answer's body; raises `FetchError` if it has more than `limit` bytes. `url` is for the error."""
    # some caches compress although they were asked not to; a .gz file served "with gzip encoding" is meant as it is
    decode = not urlsplit(url).path.endswith(_PACKED)
    data = bytearray()
    while block := response.read(READ, decode_content=decode):
        data += block
        if len(data) > limit:
            raise FetchError(f"{redact(url)}: the answer is larger than {limit} bytes")
    return bytes(data)


def _check_status(response: BaseHTTPResponse, url: str, forbidden: type[ForbiddenError]) -> None:
    status = response.status
    if status in (200, 206):
        return
    shown = f"{redact(url)}: answered {status}" + (f" {response.reason}" if response.reason else "")
    if status in _TRANSIENT or status >= 500:
        raise TransientError(shown, retry_after=_retry_after(response.headers))
    if status in (404, 410):
        raise NotFoundError(shown)
    if status in (401, 403, 407):
        raise forbidden(shown)
    raise FetchError(shown)


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait; a date is read against the server's own clock."""
    text = headers.get("retry-after", "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    with suppress(ValueError, TypeError):
        until = email.utils.parsedate_to_datetime(text)
        return max((until - email.utils.parsedate_to_datetime(headers.get("date", ""))).total_seconds(), 0.0)
    return None


def _translated(error: broken.HTTPError, shown: str, network: Network) -> FetchError:
    match error:
        case broken.ProxyError() | broken.SSLError() if isinstance(_root(error), ssl.SSLCertVerificationError):
            return FetchError(
                f"{shown}: its certificate is not trusted: {_root(error)}",
                hint="name a file with the right certificates in SSL_CERT_FILE",
            )
        case broken.ProxyError():
            kind = FetchError if re.search(r"failed: 4\d\d ", str(_root(error))) else TransientError
            hint = "check HTTPS_PROXY and HTTP_PROXY, and the user and password in them"
            return kind(f"{shown}: the proxy gives no connection: {_root(error)}", hint=hint)
        case broken.SSLError() if isinstance(_root(error), (ssl.SSLEOFError, ssl.SSLZeroReturnError)):
            return TransientError(f"{shown}: the connection broke")
        case broken.SSLError():
            return FetchError(f"{shown}: no encrypted connection: {_root(error)}")
        case broken.NameResolutionError():
            return TransientError(f"{shown}: the name of the host cannot be resolved")
        case broken.NewConnectionError() if isinstance(_root(error), ConnectionRefusedError):
            return RefusedError(f"{shown}: no connection: {_reason(error)}")
        case broken.NewConnectionError():
            return TransientError(f"{shown}: no connection: {_reason(error)}")  # urllib3 counts it as a timeout, too
        case broken.ConnectTimeoutError():
            return TransientError(f"{shown}: no connection within {network.connect_timeout:g} s")
        case broken.ReadTimeoutError():
            return TransientError(f"{shown}: no data for {network.read_timeout:g} s")
        case broken.ProtocolError():
            return TransientError(f"{shown}: the connection broke before the end")
        case broken.LocationValueError():
            return FetchError(f"{shown}: not an address that can be asked")
        case _:
            return TransientError(f"{shown}: {type(error).__name__}")


def _root(error: BaseException) -> BaseException:
    """The innermost cause, whose text names no URL."""
    while True:
        inner = error.__cause__ or error.__context__ or (error.args[0] if error.args else None)
        if not isinstance(inner, BaseException) or inner is error:
            return error
        error = inner


def _reason(error: BaseException) -> str:
    root = _root(error)
    return root.strerror if isinstance(root, OSError) and root.strerror else type(root).__name__
