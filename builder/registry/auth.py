"""How one registry is told who asks: nothing, basic authentication, or a bearer token for each scope."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from urllib.parse import urlencode, urlsplit

from builder.client import Client, TransientError, redact
from builder.errors import FetchError
from builder.parallel import Stop
from builder.registry.credentials import Credentials
from builder.registry.reference import is_loopback

Scope = frozenset[tuple[str, str]]
"""What a request may do: pairs of a repository and an action, `pull` or `push`."""

_CLIENT = "layerwright"
_MAX_ANSWER = 1 << 20
_LIFETIME = 60.0
_LONGEST_LIFETIME = 86400.0
_PARAMETER = re.compile(r'\s*([A-Za-z0-9_-]+)\s*=\s*(?:"((?:[^"\\]|\\.)*)"|([^\s,"]+))\s*(?:,|$)')
_SCHEME = re.compile(r"\s*,?\s*([A-Za-z0-9_-]+)(?:\s+(?=[A-Za-z0-9_-]+\s*=)|\s*(?:,|$))")


class DeniedError(FetchError):
    """The registry does not let this user do that."""

    hint = "log in with `build login HOST`, as a user who may do that"


def scope(repository: str, *actions: str, mount: str = "") -> Scope:
    """`actions` in a repository, and reading from the one to mount from."""
    return frozenset([*((repository, action) for action in actions), *([(mount, "pull")] if mount else [])])


def scope_text(wanted: Scope) -> str:
    """As token servers read it; words with spaces between."""
    actions: dict[str, list[str]] = {}
    for repository, action in sorted(wanted):
        actions.setdefault(repository, []).append(action)
    return " ".join(f"repository:{repository}:{','.join(names)}" for repository, names in actions.items())


@dataclass(frozen=True)
class Challenge:
    """One of the ways to authenticate that a 401 names."""

    scheme: str
    parameters: Mapping[str, str]


def challenges(header: str) -> tuple[Challenge, ...]:
    """What a `WWW-Authenticate` header says; what cannot be read of it ends the list."""
    found = []
    position = 0
    while match := _SCHEME.match(header, position):
        position = match.end()
        parameters = {}
        while parameter := _PARAMETER.match(header, position):
            value = parameter[3] if parameter[2] is None else re.sub(r"\\(.)", r"\1", parameter[2])
            parameters[parameter[1].lower()] = value
            position = parameter.end()
        found.append(Challenge(match[1].lower(), parameters))
    return tuple(found)


@dataclass(frozen=True)
class _Token:
    header: str = field(repr=False)
    scope: Scope
    renew_at: float


class Authority:
    """The credentials and tokens for one registry, whose origin is `base`; shared by threads.

    What it returns may be sent to that origin only. `find` gives the credentials, once, when they are asked for.
    """

    def __init__(self, client: Client, base: str, find: Callable[[], Credentials | None]) -> None:
        self._client = client
        self._base = base
        self._find = find
        self._guard = threading.RLock()
        self._credentials: Credentials | None = None
        self._asked = False
        self._bearer: Mapping[str, str] | None = None
        self._basic: str | None = None
        self._tokens: list[_Token] = []

    def header(self, wanted: Scope) -> str | None:
        """The `Authorization` for a request, renewed if its time is nearly over; None before the registry asked."""
        with self._guard:
            if self._basic is not None or self._bearer is None:
                return self._basic
            now = time.monotonic()
            for token in self._tokens:
                if wanted <= token.scope and now < token.renew_at:
                    return token.header
            return self._renew(wanted)

    def answer(self, header: str, wanted: Scope, sent: str | None) -> str:
        """The `Authorization` that answers a 401 of the registry to a request that had `sent`.

        Raises `DeniedError` if there is nothing to answer.
        """
        with self._guard:
            now = self.header(wanted) if self._tokens or self._basic else None
            if now is not None and now != sent:
                return now  # another thread was asked, too, and has answered
            for challenge in sorted(challenges(header), key=lambda challenge: challenge.scheme != "bearer"):
                if challenge.scheme == "bearer" and challenge.parameters.get("realm"):
                    self._bearer, self._basic = challenge.parameters, None
                    self._tokens = [token for token in self._tokens if token.header != sent]
                    return self._renew(wanted)
                credentials = self._known() if challenge.scheme == "basic" else None
                if credentials is not None and credentials.user and sent != credentials.basic:
                    self._basic, self._bearer = credentials.basic, None
                    return credentials.basic
            known = self._known()
            why = "it does not take the credentials that are stored" if known else "no credentials are stored for it"
            raise DeniedError(f"{redact(self._base)}: {why}", hint=self._hint())

    def _known(self) -> Credentials | None:
        if not self._asked:
            self._credentials = self._find()
            self._asked = True
        return self._credentials

    def _hint(self) -> str:
        return f"run `build login {urlsplit(self._base).netloc}`"

    def _renew(self, wanted: Scope) -> str:
        credentials = self._known()
        if credentials is not None and credentials.registry_token:
            return f"Bearer {credentials.registry_token}"
        token, lifetime = self._fetch(wanted, credentials)
        # a tenth early, so that none runs out on the way
        renewed = _Token(f"Bearer {token}", wanted, time.monotonic() + lifetime * 0.9)
        self._tokens = [old for old in self._tokens if not old.scope <= wanted]
        self._tokens.append(renewed)
        return renewed.header

    def _fetch(self, wanted: Scope, credentials: Credentials | None) -> tuple[str, float]:
        bearer = self._bearer or {}
        realm = bearer["realm"]
        self._check_realm(realm)
        asked = {"scope": _merged(scope_text(wanted), bearer.get("scope", ""))}
        if service := bearer.get("service"):
            asked["service"] = service
        headers: dict[str, str] = {}
        body = None
        method = "GET"
        if credentials is not None and credentials.identity_token:
            method = "POST"
            form = {
                "grant_type": "refresh_token",
                "refresh_token": credentials.identity_token,
                "client_id": _CLIENT,
                **asked,
            }
            body = urlencode({name: value for name, value in form.items() if value}).encode()
            headers["content-type"] = "application/x-www-form-urlencoded"
        else:
            query = urlencode([("service", service)] if service else [])
            query += "".join("&" + urlencode({"scope": word}) for word in asked["scope"].split())
            realm += ("&" if "?" in realm else "?") + query.lstrip("&")
            if credentials is not None and credentials.user:
                headers["authorization"] = credentials.basic

        def attempt() -> tuple[str, float]:
            with self._client.send(method, realm, headers, body, redirects=method == "GET") as answer:
                if answer.status in (400, 401, 403):
                    who = f"the user {credentials.user!r}" if credentials and credentials.user else "this user"
                    raise DeniedError(
                        f"{redact(realm)}: gives {who} no token (it answered {answer.status})", hint=self._hint()
                    )
                answer.check()
                return _token(answer.body(_MAX_ANSWER), redact(realm))

        return self._client.retrying(attempt, Stop())

    def _check_realm(self, realm: str) -> None:
        """Secrets go to a realm over an encrypted connection, to this machine, or as openly as the user allowed."""
        parts = urlsplit(realm)
        base = urlsplit(self._base)
        if parts.scheme == "https" or is_loopback(parts.hostname or ""):
            return
        if base.scheme == "http" and not is_loopback(base.hostname or ""):
            return  # the user said that this registry speaks without encryption
        raise DeniedError(
            f"{redact(self._base)}: wants tokens from {redact(realm)}, which is not encrypted",
            hint="nothing was sent there; ask whoever runs the registry",
        )


def _token(data: bytes, shown: str) -> tuple[str, float]:
    try:
        document = json.loads(data)
        token = document.get("token") or document.get("access_token")
        lifetime = document.get("expires_in") or _LIFETIME
        if not isinstance(token, str) or not token.isascii() or not token.isprintable():
            raise TypeError
        return token, min(max(float(lifetime), 1.0), _LONGEST_LIFETIME)
    except (ValueError, TypeError, AttributeError):
        # the answer may hold a secret, so neither it nor the error is shown
        raise TransientError(f"{shown}: its answer holds no token") from None


def _merged(ours: str, theirs: str) -> str:
    """Both scopes; the actions of one repository in one word."""
    actions: dict[str, list[str]] = {}
    for word in f"{ours} {theirs}".split():
        resource, _, names = word.rpartition(":")
        known = actions.setdefault(resource, [])
        known += [name for name in names.split(",") if name not in known]
    return " ".join(f"{resource}:{','.join(names)}" for resource, names in actions.items())
