"""Credentials of registries, as docker, podman and skopeo keep them: in their files, and with credential helpers."""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder import process
from builder.errors import BuilderError, ToolError
from builder.registry.reference import server_key

_TOKEN_USER = "<token>"
_HELPER_TIMEOUT = 60.0
_ABSENT = ("credentials not found", "no credentials server url", "not found in native keychain")


class CredentialsError(BuilderError):
    """Credentials cannot be read or stored."""


@dataclass(frozen=True)
class Credentials:
    """Who somebody is to a registry: user and password, or a token. Nothing of it is ever shown but the user."""

    user: str = ""
    password: str = field(default="", repr=False)
    identity_token: str = field(default="", repr=False)
    registry_token: str = field(default="", repr=False)

    @property
    def basic(self) -> str:
        """The header of basic authentication."""
        return "Basic " + base64.b64encode(f"{self.user}:{self.password}".encode()).decode()


@dataclass(frozen=True)
class Keychain:
    """Reads credentials from `files`, the first that has some winning; `login` writes to `writable`.

    Within a file a credential helper for the registry wins, then the entry with the longest name that is a prefix of
    the repository, then the file's credential store.
    """

    files: tuple[Path, ...] = ()
    writable: Path | None = None
    environ: Mapping[str, str] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Keychain:
        """The files that the environment names: REGISTRY_AUTH_FILE alone; else DOCKER_CONFIG, containers/auth.json of the
        session and of the user, and ~/.docker/config.json."""
        home = Path(environ.get("HOME") or os.path.expanduser("~"))
        docker = home / ".docker" / "config.json"
        if named := environ.get("REGISTRY_AUTH_FILE"):
            return cls((Path(named),), Path(named), environ)
        files = []
        if folder := environ.get("DOCKER_CONFIG"):
            docker = Path(folder) / "config.json"
            files.append(docker)
        if runtime := environ.get("XDG_RUNTIME_DIR"):
            files.append(Path(runtime) / "containers" / "auth.json")
        files.append(Path(environ.get("XDG_CONFIG_HOME") or home / ".config") / "containers" / "auth.json")
        return cls((*files, docker) if docker not in files else tuple(files), docker, environ)

    def find(self, registry: str, repository: str = "") -> Credentials | None:
        """The credentials for a repository, if there are any. Raises `CredentialsError` or `ToolError`."""
        for file in self.files:
            document = _read(file)
            if document and (found := self._find_in(document, file, registry, repository)):
                return found
        return None

    def store(self, registry: str, credentials: Credentials) -> str:
        """Keeps user and password as docker does; returns where: a file or a credential helper."""
        file = self.writable
        if file is None:
            raise CredentialsError("there is no file for credentials", hint="set DOCKER_CONFIG or HOME")
        document = _read(file)
        key = server_key(registry)
        helper = _helper_of(document, registry) or _text(document.get("credsStore"))
        if helper:
            secret = {"ServerURL": key, "Username": credentials.user, "Secret": credentials.password}
            self._helper(helper, "store", json.dumps(secret))
            entry = {}
        else:
            text = credentials.basic.removeprefix("Basic ")
            entry = {"auth": text}
        auths = _mapping(document.get("auths"))
        _write(file, {**document, "auths": {**auths, key: entry}})
        return f"docker-credential-{helper}" if helper else str(file)

    def erase(self, registry: str) -> list[str]:
        """Forgets the credentials of a registry wherever they are found; returns those places."""
        places = []
        for file in self.files:
            document = _read(file)
            auths = _mapping(document.get("auths"))
            kept = {name: entry for name, entry in auths.items() if _normal(name) != _normal(server_key(registry))}
            helper = _helper_of(document, registry) or _text(document.get("credsStore"))
            if helper and self._from_helper(helper, registry) is not None:
                self._helper(helper, "erase", server_key(registry))
                places.append(f"docker-credential-{helper}")
            if len(kept) != len(auths):
                _write(file, {**document, "auths": kept})
                places.append(str(file))
        return places

    def _find_in(self, document: Mapping[str, Any], file: Path, registry: str, repository: str) -> Credentials | None:
        if helper := _helper_of(document, registry):
            return self._from_helper(helper, registry)
        auths = {_normal(name): entry for name, entry in _mapping(document.get("auths")).items()}
        for prefix in _prefixes(registry, repository):
            if prefix in auths and (found := _entry(auths[prefix], file, prefix)):
                return found
        if store := _text(document.get("credsStore")):
            return self._from_helper(store, registry)
        return None

    def _from_helper(self, helper: str, registry: str) -> Credentials | None:
        answer = self._helper(helper, "get", server_key(registry))
        if answer is None:
            return None
        try:
            document = json.loads(answer)
            user, secret = document["Username"], document["Secret"]
            if not isinstance(user, str) or not isinstance(secret, str):
                raise TypeError
        except (ValueError, KeyError, TypeError):
            # the answer may hold a secret, so neither it nor the error is shown
            raise CredentialsError(
                f"docker-credential-{helper}: its answer for {registry} cannot be read", hint="run `build login` again"
            ) from None
        if not secret:
            return None
        return Credentials(identity_token=secret) if user == _TOKEN_USER else Credentials(user, secret)

    def _helper(self, helper: str, verb: str, text: str) -> bytes | None:
        """What the helper answers; None if it has nothing under that name."""
        name = f"docker-credential-{helper}"
        if "/" in helper:
            raise CredentialsError(f"{name}: not the name of a credential helper", hint="correct your docker config")
        hint = f"install {name}, or remove it from your docker config"
        answer = process.run(
            [name, verb],
            input=text.encode(),
            env=self.environ or None,
            timeout=_HELPER_TIMEOUT,
            hint=hint,
            accept=range(256),
        )
        # helpers say on stdout what went wrong, and exit with 1; a JSON object is an answer and may be secret
        said = answer.decode(errors="replace").strip()
        if verb == "get" and not said.startswith("{"):
            if not said or any(phrase in said.lower() for phrase in _ABSENT):
                return None
            raise ToolError(f"{name} {verb}: {said[:200]!r}", hint=hint)
        if verb == "store" and said:
            raise ToolError(f"{name} {verb}: {said[:200]!r}", hint=hint)
        return answer


def _prefixes(registry: str, repository: str) -> Iterator[str]:
    """The names that speak for a repository, the longest first."""
    parts = repository.split("/") if repository else []
    for count in range(len(parts), 0, -1):
        yield "/".join((registry, *parts[:count]))
    yield registry
    yield _normal(server_key(registry))


def _normal(name: str) -> str:
    """The name of an entry as docker writes it (with a scheme and /v1/) and as podman does."""
    bare = name.removeprefix("https://").removeprefix("http://").rstrip("/")
    return bare.removesuffix("/v1").removesuffix("/v2").lower()


def _entry(entry: object, file: Path, name: str) -> Credentials | None:
    if not isinstance(entry, dict):
        return None
    user, password = _text(entry.get("username")), _text(entry.get("password"))
    if auth := _text(entry.get("auth")):
        try:
            user, colon, password = base64.b64decode(auth, validate=True).decode().partition(":")
        except (binascii.Error, UnicodeDecodeError):
            colon = ""
        if not colon:
            raise CredentialsError(
                f"{file}: the credentials for {name} cannot be read", hint=f"run `build login {name}` again"
            ) from None
        password = password.rstrip("\0")
    identity, bearer = _text(entry.get("identitytoken")), _text(entry.get("registrytoken"))
    if not (user or identity or bearer):
        return None
    return Credentials(user, password, identity, bearer)


def _helper_of(document: Mapping[str, Any], registry: str) -> str:
    helpers = {_normal(name): helper for name, helper in _mapping(document.get("credHelpers")).items()}
    return _text(helpers.get(registry) or helpers.get(_normal(server_key(registry))))


def _mapping(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _text(value: object) -> str:
    return value if isinstance(value, str) else ""


def _read(file: Path) -> dict[str, Any]:
    try:
        document = json.loads(file.read_bytes() or b"{}")
        if not isinstance(document, dict):
            raise ValueError
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except OSError as error:
        raise CredentialsError(
            f"{file}: cannot be read: {error.strerror}", hint="correct its permissions, or name another file"
        ) from error
    except ValueError:
        raise CredentialsError(f"{file}: not a JSON object", hint="correct the file, or remove it") from None
    return document


def _write(file: Path, document: Mapping[str, Any]) -> None:
    """Replaces the file, readable by its owner only; a link stays a link."""
    try:
        target = file.resolve()
        target.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        descriptor, name = tempfile.mkstemp(dir=target.parent, prefix=f".{target.name}.")
        try:
            with os.fdopen(descriptor, "w", encoding="utf-8") as writer:
                json.dump(document, writer, indent="\t", ensure_ascii=False)
                writer.write("\n")
                writer.flush()
                os.fsync(writer.fileno())
            with suppress(FileNotFoundError):
                os.chmod(name, stat.S_IMODE(target.stat().st_mode) & 0o600)
            os.replace(name, target)
        except BaseException:
            os.unlink(name)
            raise
    except OSError as error:
        raise CredentialsError(
            f"{file}: cannot be written: {error.strerror}", hint="name another folder with DOCKER_CONFIG"
        ) from error
