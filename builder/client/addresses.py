"""Addresses: what they name, what may be shown of them, and whether a proxy is used for them."""

from __future__ import annotations

import base64
import ipaddress
from contextlib import suppress
from pathlib import Path
from urllib.parse import SplitResult, unquote, urljoin, urlsplit, urlunsplit

from builder.errors import FetchError


def redact(url: str) -> str:
    """The URL for people: without user, password and query, which may be secrets."""
    try:
        parts = urlsplit(url)
        return urlunsplit(parts._replace(netloc=host_of(parts), query="…" if parts.query else "", fragment=""))
    except ValueError:
        return "(an address that cannot be read)"


def is_local(url: str) -> bool:
    """Whether a URL names a file of this machine."""
    return url.startswith("file:")


def file_of(url: str) -> Path:
    """The local file that a `file:` URL names."""
    return Path(unquote(urlsplit(url).path))


def web_address(url: str) -> SplitResult:
    """The parts of an http or https address. Raises `FetchError` if it is none."""
    try:
        parts = urlsplit(url)
        usable = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port is None or parts.port > 0)
    except ValueError:
        usable = False
    if not usable:
        raise FetchError(f"{redact(url)}: not an http or https address")
    return parts


def origin_of(parts: SplitResult) -> tuple[str, str | None, int]:
    """Scheme, host and port: what may share a secret."""
    return parts.scheme, parts.hostname, parts.port or (443 if parts.scheme == "https" else 80)


def origin(url: str) -> tuple[str, str | None, int]:
    """The origin of an address."""
    return origin_of(web_address(url))


def host_of(parts: SplitResult) -> str:
    """Host and port, without user and password."""
    return parts.netloc.rpartition("@")[2]


def joined(url: str, location: str) -> str:
    """Where `location`, as a header says it, is seen from `url`."""
    try:
        return urljoin(url, location)
    except ValueError as error:
        raise FetchError(f"{redact(url)}: redirects to what is no address") from error


def basic_of(parts: SplitResult) -> str:
    """Basic authentication with the user and password of an address."""
    secret = f"{unquote(parts.username or '')}:{unquote(parts.password or '')}"
    return "Basic " + base64.b64encode(secret.encode()).decode()


def is_exempt(host: str, port: int | None, no_proxy: tuple[str, ...]) -> bool:
    """Whether `NO_PROXY` names the host: by name, domain, address, network, any of them with a port, or `*`."""
    for rule in no_proxy:
        name, colon, number = rule.rpartition(":")
        if colon and number.isdigit() and (":" not in name or name.endswith("]")):
            if int(number) != port:
                continue
            rule = name
        rule = rule.strip("[]").removeprefix("*").lstrip(".").lower()
        if not rule or host == rule or host.endswith("." + rule):
            return True
        with suppress(ValueError):
            if ipaddress.ip_address(host) in ipaddress.ip_network(rule, strict=False):
                return True
    return False
