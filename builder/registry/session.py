"""The requests to one repository: where its registry is, who asks, and what an answer means."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Container, Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import TypeVar

from urllib3.response import BaseHTTPResponse

from builder.client import (
    Answer,
    Body,
    Client,
    NotFoundError,
    Patience,
    RefusedError,
    TransientError,
    joined,
    origin,
    redact,
)
from builder.errors import FetchError
from builder.parallel import Stop
from builder.registry.auth import Authority, DeniedError, Scope, scope
from builder.registry.credentials import Credentials, Keychain
from builder.registry.reference import Reference

T = TypeVar("T")
_MAX_ERROR = 16 << 10
_SHOWN = 300
_TRIES = 3


class RegistryError(FetchError):
    """A registry refused something, or answered what it must not answer."""

    def __init__(self, message: str, *, hint: str | None = None, status: int = 0, codes: tuple[str, ...] = ()) -> None:
        super().__init__(message, hint=hint)
        self.status = status
        self.codes = codes


class DeniedElsewhereError(DeniedError):
    """The place that the registry redirects to refuses."""

    hint = "the registry sends there, and no credentials were sent along: ask whoever runs the registry"


class Session:
    """Sends requests to a repository; shared by threads.

    A registry on this machine is asked without encryption unless it wants some; any other only with `plain_http`.
    Credentials go to the registry's own origin and, for tokens, to the realm that it names; never to where it redirects.
    """

    def __init__(
        self,
        reference: Reference,
        client: Client,
        keychain: Keychain,
        *,
        plain_http: bool = False,
        credentials: Credentials | None = None,
        writing: bool = False,
    ) -> None:
        self.reference = reference
        self.client = client.bypassing(reference.hostname) if reference.is_loopback else client
        self.writing = writing
        self.served: str | None = None
        """Where the last download came from: many registries send to another host for blobs."""
        self._keychain = keychain
        self._given = credentials
        self._plain_http = plain_http
        self._guard = threading.Lock()
        self._base: str | None = None
        self._authority: Authority | None = None

    @property
    def base(self) -> str:
        """The origin of the registry, such as `https://host:port`."""
        with self._guard:
            if self._base is None:
                self._base = self._find_base()
            return self._base

    @property
    def authority(self) -> Authority:
        """The tokens."""
        base = self.base
        with self._guard:
            if self._authority is None:
                self._authority = Authority(self.client, base, self._credentials)
            return self._authority

    def url(self, path: str) -> str:
        """The address of something of the repository, such as `blobs/sha256:…`."""
        return f"{self.base}/v2/{self.reference.repository}/{path}"

    def location(self, answer: Answer) -> str:
        """Where the answer's `Location` leads. A registry behind a proxy may not know that it is reached encrypted."""
        told = answer.headers.get("location")
        if not told:
            raise RegistryError(f"{redact(answer.url)}: answered {answer.status} without saying where to go on")
        url = joined(answer.url, told)
        base = self.base
        if base.startswith("https:") and url.startswith("http:"):
            encrypted = "https:" + url.removeprefix("http:")
            with suppress(FetchError):
                if origin(encrypted)[1] == origin(base)[1]:
                    host = encrypted.split("/", 3)
                    return f"{base}/{host[3] if len(host) > 3 else ''}"
            raise RegistryError(f"{redact(answer.url)}: leads to the unencrypted address {redact(url)}")
        return url

    def scope(self, *, mount: str = "") -> Scope:
        """What this session may need to do."""
        actions = ("pull", "push") if self.writing else ("pull",)
        return scope(self.reference.repository, *actions, mount=mount)

    @contextmanager
    def send(
        self,
        method: str,
        url: str,
        headers: Mapping[str, str] | None = None,
        body: Body = None,
        *,
        accept: Container[int] = (200,),
        wanted: Scope | None = None,
        read_timeout: float | None = None,
    ) -> Iterator[Answer]:
        """The answer to one request, if its status is one of `accept`; what the registry asks for is given to it.

        Raises `TransientError`, `NotFoundError`, `DeniedError` or `RegistryError`.
        """
        wanted = self.scope() if wanted is None else wanted
        trusted = origin(url) == origin(self.base)
        header = self.authority.header(wanted) if trusted else None
        for attempt in range(_TRIES):
            sent = {**(headers or {}), **({"authorization": header} if header else {})}
            with self.client.send(method, url, sent, body, read_timeout=read_timeout) as answer:
                challenge = answer.headers.get("www-authenticate", "")
                own = trusted and answer.own
                if answer.status == 401 and own and challenge and attempt < _TRIES - 1:
                    # read it to its end: the same connection is used again
                    answer.body(_MAX_ERROR) if method != "HEAD" else None
                    refused, header = header, None
                else:
                    if answer.status not in accept:
                        raise self._refusal(answer, own)
                    yield answer
                    return
            header = self.authority.answer(challenge, wanted, refused)

    def retrying(self, attempt: Callable[[], T], stop: Stop | None = None) -> T:
        """What `attempt` returns, tried again where that may help."""
        return self.client.retrying(attempt, stop or Stop())

    @contextmanager
    def open(self, url: str, headers: Mapping[str, str] | None = None) -> Iterator[BaseHTTPResponse]:
        """The answer (200 or 206) to a GET, as a download needs it."""
        with self.send("GET", url, headers, accept=(200, 206)) as answer:
            self.served = answer.url
            yield answer.response

    def patience(self, stop: Stop) -> Patience:
        """A fresh count of failures."""
        return self.client.patience(stop)

    def _credentials(self) -> Credentials | None:
        if self._given is not None:
            return self._given
        return self._keychain.find(self.reference.registry, self.reference.repository)

    def _find_base(self) -> str:
        host = self.reference.host
        if self.reference.is_loopback:
            return f"http://{host}" if self._speaks_plainly(f"http://{host}") else f"https://{host}"
        return f"{'http' if self._plain_http else 'https'}://{host}"

    def _speaks_plainly(self, base: str) -> bool:
        """Whether a server takes requests without encryption; one that wants some says so, or hangs up."""

        def attempt() -> bool:
            try:
                with self.client.send("GET", f"{base}/v2/") as answer:
                    return answer.status != 400 or b"HTTPS" not in answer.body(_MAX_ERROR).upper()
            except TransientError as error:
                if self._plain_http or self._speaks_secretly(f"https:{base.removeprefix('http:')}"):
                    return self._plain_http
                if isinstance(error, RefusedError):  # on this machine, that is not going to change by itself
                    raise FetchError(str(error), hint="start the registry, or correct its address") from error
                raise

        return self.retrying(attempt)

    def _speaks_secretly(self, base: str) -> bool:
        try:
            with self.client.send("GET", f"{base}/v2/"):
                return True
        except TransientError:
            return False
        except FetchError:
            return True  # such as a certificate that is not trusted: that is what the user has to know

    def _refusal(self, answer: Answer, own: bool) -> FetchError:
        """What an answer that was not hoped for means."""
        errors = () if answer.response.length_remaining == 0 else _errors(answer)
        message = f"{redact(answer.url)}: {_said(answer, errors)}"
        try:
            answer.check()
        except TransientError as error:
            return TransientError(message, retry_after=error.retry_after)
        except NotFoundError:
            return NotFoundError(
                message, hint="check the repository and the tag, and that something was published there"
            )
        except FetchError:
            pass
        if answer.status in (401, 403) and not own:
            return DeniedElsewhereError(message)
        if answer.status in (401, 403):
            return DeniedError(message, hint=f"run `build login {self.reference.registry}`, as a user who may do that")
        return RegistryError(message, status=answer.status, codes=tuple(code for code, _ in errors))


def check_login(registry: str, client: Client, credentials: Credentials, *, plain_http: bool = False) -> None:
    """Asks whether a registry takes these credentials. Raises `DeniedError` if it does not, or asks for none."""
    reference = Reference(registry, "login")
    session = Session(reference, client, Keychain(), plain_http=plain_http, credentials=credentials)
    url = f"{session.base}/v2/"

    def attempt() -> None:
        with session.send("GET", url, accept=(200, 404), wanted=frozenset()):
            pass

    try:
        session.retrying(attempt)
    except DeniedError as error:
        raise DeniedError(
            f"{registry}: it does not take this user and password", hint="check both, and that they may log in there"
        ) from error
    if session.authority.header(frozenset()) is None:
        raise RegistryError(f"{registry}: asks for no credentials, so that they cannot be checked", hint="just use it")


def _said(answer: Answer, errors: tuple[tuple[str, str], ...]) -> str:
    """The status and what the registry's own words add to it."""
    reason = f" {answer.response.reason}" if answer.response.reason else ""
    words = "; ".join(": ".join(filter(None, pair)) for pair in errors)
    return f"answered {answer.status}{reason}" + (f" ({words[:_SHOWN]})" if words else "")


def _errors(answer: Answer) -> tuple[tuple[str, str], ...]:
    """Code and message of each error that the body of an answer names, made fit to show."""
    try:
        document = json.loads(answer.body(_MAX_ERROR) or b"null")
        return tuple((_clean(error.get("code")), _clean(error.get("message"))) for error in document["errors"][:4])
    except (FetchError, ValueError, TypeError, KeyError, AttributeError):
        return ()


def _clean(text: object) -> str:
    return "".join(char for char in text if char.isprintable()) if isinstance(text, str) else ""
