"""What the user's machine decides: where the store is, which mirrors and proxies to use. Never part of a lock.

Parsed from `config.toml` and the environment, both given by the command line:

    mirrors = ["/srv/layerwright", "http://cache.example/layerwright"]  # hold sha256/<hex>; tried before the origin
    jobs = 8                                                            # connections at once
    store = "/var/cache/layerwright"
    keyrings = ["/srv/keys/archive.gpg"]                                # vouch for Debian instead of this machine's

    [origins]  # where an origin of a lock is found, one address or several; overrules the settings of pip, uv and apt
    pypi = "http://cache.example/simple"
"""

from __future__ import annotations

import os
import pwd
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.errors import UsageError

_NAME = "layerwright"
_KINDS = {
    "jobs": "a number",
    "keyrings": "a list of absolute paths",
    "mirrors": "a list of folders and URLs",
    "offline": "true or false",
    "origins": "a table",
    "store": "an absolute path",
}
_MAX_JOBS = 64


@dataclass(frozen=True)
class Network:
    """How to reach other machines. Proxies may hold passwords, so they are not shown."""

    http_proxy: str | None = field(default=None, repr=False)
    https_proxy: str | None = field(default=None, repr=False)
    no_proxy: tuple[str, ...] = ()
    ca_file: Path | None = None
    connect_timeout: float = 10.0
    read_timeout: float = 60.0
    attempts: int = 6
    backoff: float = 0.5

    @classmethod
    def of(cls, environ: Mapping[str, str]) -> Network:
        """As the usual variables say; a lower-case name wins, and `HTTP_PROXY` is not taken from a CGI request."""
        http = environ.get("http_proxy") or ("" if "REQUEST_METHOD" in environ else environ.get("HTTP_PROXY"))
        both = environ.get("all_proxy") or environ.get("ALL_PROXY")
        https = environ.get("https_proxy") or environ.get("HTTPS_PROXY")
        exempt = environ.get("no_proxy") or environ.get("NO_PROXY") or ""
        ca_file = next((environ[name] for name in _CA_VARIABLES if environ.get(name)), None)
        return cls(
            http_proxy=http or both or None,
            https_proxy=https or both or None,
            no_proxy=tuple(exempt.replace(",", " ").split()),
            ca_file=Path(ca_file) if ca_file else None,
        )


_CA_VARIABLES = ("SSL_CERT_FILE", "REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")


@dataclass(frozen=True)
class Settings:
    """The settings of one run. `origins` maps an origin's name in a lock to its addresses, best first; `keyrings` replace those
    that this machine checks Debian's archive with."""

    store: Path
    mirrors: tuple[str, ...] = ()
    origins: Mapping[str, tuple[str, ...]] = field(default_factory=dict, repr=False)
    keyrings: tuple[Path, ...] = ()
    offline: bool = False
    jobs: int = 8
    network: Network = Network()

    @classmethod
    def parse(cls, text: str, file: Path, environ: Mapping[str, str], home: Path) -> Settings:
        """The settings of the config file's `text` ("" if there is none), with what the environment says on top.

        Raises `UsageError` that tells everything that is wrong with `file`.
        """
        try:
            document = tomllib.loads(text)
        except tomllib.TOMLDecodeError as error:
            raise UsageError(f"{file}: {error}", hint="correct the file, or remove it") from error
        problems = _problems(document)
        if problems:
            lines = "".join(f"\n  {problem}" for problem in problems)
            raise UsageError(f"{file}: these settings cannot be used:{lines}", hint="correct the file, or remove it")
        return cls(
            store=_store(document, environ, home),
            mirrors=tuple(
                str(home / mirror[2:]) if mirror.startswith("~/") else mirror
                for mirror in (*environ.get("LAYERWRIGHT_MIRRORS", "").split(), *document.get("mirrors", ()))
            ),
            keyrings=tuple(home / keyring.removeprefix("~/") for keyring in document.get("keyrings", ())),
            origins={name: _listed(value) for name, value in document.get("origins", {}).items()},
            offline=_flag(environ, "LAYERWRIGHT_OFFLINE", document.get("offline", False)),
            jobs=_number(environ, "LAYERWRIGHT_JOBS", document.get("jobs", 8)),
            network=Network.of(environ),
        )


def config_path(environ: Mapping[str, str], home: Path) -> Path:
    """Where the config file is, or would be."""
    named = environ.get("LAYERWRIGHT_CONFIG")
    if named:
        return Path(named)
    return _base(environ, "XDG_CONFIG_HOME", home / ".config") / _NAME / "config.toml"


def home_of(environ: Mapping[str, str]) -> Path:
    """The user's home; containers run as users that no file knows, and theirs is `/`."""
    if home := environ.get("HOME"):
        return Path(home)
    try:
        return Path(pwd.getpwuid(os.getuid()).pw_dir)
    except KeyError:
        return Path("/")


def _problems(document: Mapping[str, object]) -> list[str]:
    problems = []
    for key, value in document.items():
        match key, value:
            case "jobs", bool():
                problems.append(f"jobs: expected a number, found {value!r}")
            case "jobs", int():
                if not 1 <= value <= _MAX_JOBS:
                    problems.append(f"jobs: expected 1 to {_MAX_JOBS}, found {value}")
            case "keyrings", list():
                if not all(isinstance(item, str) and item.startswith(("/", "~/")) for item in value):
                    problems.append("keyrings: expected a list of absolute paths, or of some that begin with ~/")
            case "mirrors", list():
                if not all(isinstance(item, str) and item for item in value):
                    problems.append("mirrors: expected a list of folders and URLs")
            case "offline", bool():
                pass
            case "store", str():
                if not value.startswith(("/", "~/")):
                    problems.append(f"store: expected an absolute path, or one that begins with ~/, found {value!r}")
            case "origins", dict():
                problems.extend(
                    f"origins.{name}: expected an address or a list of addresses"
                    for name, item in value.items()
                    if not all(isinstance(address, str) for address in _listed(item))
                )
            case _ if key in _KINDS:
                problems.append(f"{key}: expected {_KINDS[key]}, found {value!r}")
            case _:
                import difflib  # takes long to import, and few need it

                close = difflib.get_close_matches(key, _KINDS, 1)
                problems.append(f"{key}: no such setting" + (f" (did you mean {close[0]}?)" if close else ""))
    return problems


def _listed(value: object) -> tuple[Any, ...]:
    return tuple(value) if isinstance(value, list) else (value,)


def _store(document: Mapping[str, str], environ: Mapping[str, str], home: Path) -> Path:
    if "XDG_CACHE_HOME" not in environ and "store" in document:
        return home / document["store"].removeprefix("~/")
    return _base(environ, "XDG_CACHE_HOME", home / ".cache") / _NAME


def _base(environ: Mapping[str, str], variable: str, default: Path) -> Path:
    """A base directory; the XDG specification says that a relative one is to be ignored."""
    named = Path(environ.get(variable, ""))
    return named if named.is_absolute() else default


def _flag(environ: Mapping[str, str], variable: str, default: bool) -> bool:
    text = environ.get(variable, "").lower()
    if text in ("", "1", "true", "yes", "0", "false", "no"):
        return default if not text else text in ("1", "true", "yes")
    raise UsageError(f"{variable}: expected 1 or 0, found {text!r}", hint=f"correct or unset {variable}")


def _number(environ: Mapping[str, str], variable: str, default: int) -> int:
    text = environ.get(variable, "")
    if not text:
        return default
    if text.isascii() and text.isdigit() and 1 <= int(text) <= _MAX_JOBS:
        return int(text)
    raise UsageError(f"{variable}: expected 1 to {_MAX_JOBS}, found {text!r}", hint=f"correct or unset {variable}")
