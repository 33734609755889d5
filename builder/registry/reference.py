"""References of images in registries: `HOST[:PORT]/REPOSITORY[:TAG][@DIGEST]`."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from oras.defaults import registry as hub

from builder.errors import UsageError
from builder.oci.digest import Digest

DEFAULT_TAG = "latest"
_COMPONENT = r"[a-z0-9]+(?:(?:\.|_|__|-+)[a-z0-9]+)*"
_REPOSITORY = re.compile(rf"{_COMPONENT}(?:/{_COMPONENT})*")
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_HOST = re.compile(
    r"(?:[a-z0-9](?:[a-z0-9-]*[a-z0-9])?(?:\.[a-z0-9](?:[a-z0-9-]*[a-z0-9])?)*|\[[0-9a-f:.]+\])(?::[0-9]{1,5})?"
)
_HOST_AND_PORT = re.compile(r"(?:localhost|.*[.\]].*):[0-9]+")
_MAX_REPOSITORY = 255
_SCHEMES = ("docker", "http", "https")


class BadReferenceError(UsageError):
    """A text is no reference of an image in a registry."""


@dataclass(frozen=True, order=True)
class Reference:
    """A place in a registry; `str()` and `parse` are inverse to one another, up to the case of the host."""

    registry: str
    repository: str
    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Reference:
        """Raises `BadReferenceError` that says what is wrong; a registry is never guessed."""
        shown = repr(text)
        if "://" in text:
            scheme, _, bare = text.partition("://")
            instead = bare if scheme in _SCHEMES and "://" not in bare else "HOST/REPOSITORY:TAG"
            raise BadReferenceError(f"{shown}: a reference has no scheme", hint=f"write {instead}")
        host, slash, rest = text.partition("/")
        if not slash and _HOST_AND_PORT.fullmatch(host) and _is_usable(host.lower()):
            raise BadReferenceError(f"{shown}: the repository is missing", hint=f"write {host}/REPOSITORY:TAG")
        if not slash or not _is_host(host):
            raise BadReferenceError(
                f"{shown}: the registry is missing", hint=f"write HOST/{text}, as localhost:5000/{text}"
            )
        host = host.lower()
        if not _is_usable(host):
            raise BadReferenceError(f"{shown}: {host!r} is not the name of a host", hint="write HOST or HOST:PORT")
        rest, at, digest = rest.partition("@")
        repository, colon, tag = rest.partition(":")
        if host in (hub.index_name, hub.index_hostname) and "/" not in repository:
            repository = f"library/{repository}"
        _check_repository(repository, shown)
        if colon and not _TAG.fullmatch(tag):
            raise BadReferenceError(
                f"{shown}: {tag!r} is not a tag", hint="a tag has up to 128 letters, digits, `_`, `.` and `-`"
            )
        return cls(host, repository, tag if colon else None, _digest(digest, shown) if at else None)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return f"{self.name}{tag}" + (f"@{self.digest}" if self.digest else "")

    @property
    def name(self) -> str:
        """Registry and repository, without tag and digest."""
        return f"{self.registry}/{self.repository}"

    @property
    def wanted(self) -> str:
        """What it stands for in its repository: the digest, else the tag, else the default tag."""
        return str(self.digest) if self.digest else self.tag or DEFAULT_TAG

    @property
    def host(self) -> str:
        """Where the registry answers: one has another name than that in references."""
        if self.registry in (hub.index_name, hub.index_hostname):
            return str(hub.default_v2_registry["host"])
        return self.registry

    @property
    def hostname(self) -> str:
        """The host without port and brackets."""
        return re.sub(r":[0-9]+$", "", self.host).strip("[]")

    @property
    def is_loopback(self) -> bool:
        """Whether the registry is on this machine."""
        return is_loopback(self.hostname)


def is_loopback(hostname: str) -> bool:
    """Whether a name or address, without port and brackets, is this machine."""
    if hostname == "localhost" or hostname.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(hostname).is_loopback
    except ValueError:
        return False


def server_key(registry: str) -> str:
    """The name under which docker keeps the credentials of a registry."""
    return str(hub.index_server) if registry in (hub.index_name, hub.index_hostname) else registry


def check_registry(text: str) -> str:
    """The registry that a user names as `HOST[:PORT]`, in lower case. Raises `BadReferenceError`."""
    host = text.lower()
    if not _is_usable(host):
        raise BadReferenceError(f"{text!r}: not the name of a registry", hint="write HOST or HOST:PORT")
    return host


def _is_host(component: str) -> bool:
    """Whether the first component can only be a host."""
    return component.lower() == "localhost" or any(mark in component for mark in ".:[")


def _is_usable(host: str) -> bool:
    if not _HOST.fullmatch(host):
        return False
    name, _, port = host.rpartition(":") if re.search(r":[0-9]+$", host) and not host.endswith("]") else (host, "", "")
    if port and not 0 < int(port) < 65536:
        return False
    if name.startswith("["):
        try:
            ipaddress.IPv6Address(name[1:-1])
        except ValueError:
            return False
    return True


def _check_repository(repository: str, shown: str) -> None:
    if _REPOSITORY.fullmatch(repository) and len(repository) <= _MAX_REPOSITORY:
        return
    if not repository:
        raise BadReferenceError(f"{shown}: the repository is missing", hint="write HOST/REPOSITORY:TAG")
    if len(repository) > _MAX_REPOSITORY:
        raise BadReferenceError(f"{shown}: a repository has at most {_MAX_REPOSITORY} characters")
    lower = repository.lower()
    if _REPOSITORY.fullmatch(lower):
        raise BadReferenceError(f"{shown}: repositories are in lower case", hint=f"write {lower}")
    raise BadReferenceError(
        f"{shown}: {repository!r} is not a repository",
        hint="its parts, between slashes, are lower-case letters and digits, joined by `.`, `_`, `__` or `-`",
    )


def _digest(text: str, shown: str) -> Digest:
    try:
        return Digest.parse(text)
    except ValueError as error:
        raise BadReferenceError(f"{shown}: {error}", hint="write it as sha256: and 64 lower-case digits") from error
