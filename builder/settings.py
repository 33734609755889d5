"""What the user's machine decides: where the store is, which mirrors and proxies to use. Never part of a lock.

Parsed from `config.toml` and the environment, both given by the command line:

    mirrors = ["/srv/layerwright", "http://cache.example/layerwright"]  # hold sha256/<hex>; tried before the origin
    jobs = 8                                                            # connections at once
    store = "/var/cache/layerwright"
    keyrings = ["/srv/keys/archive.gpg"]                                # vouch for Debian instead of this machine's

    [origins]  # where an origin of a lock is found, one address or several; overrules the settings of pip, uv and apt
    pypi = "http://cache.example/simple"

    [cache]  # a repository in which layers are found that others have packed
    at = "oci://registry.example/team/layers"
    trust = ["ci-1:<public key>"]                                       # who may have packed them
    sign = "/run/secrets/ci-1.key"                                      # what is packed here goes there, signed by this
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
CONFIG = "LAYERWRIGHT_CONFIG"
_KINDS = {
    "cache": "a table",
    "jobs": "a number",
    "keyrings": "a list of absolute paths",
    "mirrors": "a list of folders and URLs",
    "offline": "true or false",
    "origins": "a table",
    "store": "an absolute path",
}
_MAX_JOBS = 64
_CACHE_KINDS = {"at": str, "sign": str, "trust": list, "unsigned": bool}
_CACHE_FORM = "oci://HOST/REPOSITORY"


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
class LayerCache:
    """A repository of layers: `HOST/REPOSITORY`, the public keys of those whose layers are taken, the file of the secret key that
    signs what is packed here, and whether layers are taken, and sent, without a signature."""

    at: str
    trust: tuple[str, ...] = ()
    sign: Path | None = None
    unsigned: bool = False


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
    cache: LayerCache | None = None

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
            cache=_cache(document.get("cache", {}), environ, home),
        )


def config_path(environ: Mapping[str, str], home: Path) -> Path:
    """Where the config file is, or would be."""
    named = environ.get(CONFIG)
    if named:
        return Path(named)
    return _base(environ, "XDG_CONFIG_HOME", home / ".config") / _NAME / "config.toml"


def config_text(config: Path, environ: Mapping[str, str]) -> str:
    """The text of the config file, empty if it is not there. Raises `UsageError` if it cannot be read, or is not there although
    the environment names it."""
    try:
        return config.read_text(encoding="utf-8")
    except (FileNotFoundError, NotADirectoryError) as error:
        if environ.get(CONFIG):
            raise UsageError(f"{CONFIG}: {config}: there is no such file", hint=f"correct or unset {CONFIG}") from error
        return ""
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{config}: cannot be read: {error}", hint="correct the file, or remove it") from error


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
            case "cache", dict():
                problems.extend(_cache_problems(value))
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


def _cache_problems(table: Mapping[str, object]) -> list[str]:
    problems = [f"cache.{key}: no such setting" for key in table if key not in _CACHE_KINDS]
    for key, kind in _CACHE_KINDS.items():
        value = table.get(key, kind())
        if not isinstance(value, kind) or (
            isinstance(value, list) and not all(isinstance(item, str) for item in value)
        ):
            words = {str: "a text", list: "a list of public keys", bool: "true or false"}[kind]
            problems.append(f"cache.{key}: expected {words}, found {value!r}")
    sign = table.get("sign", "/")
    if isinstance(sign, str) and not sign.startswith(("/", "~/")):
        problems.append(f"cache.sign: expected an absolute path, or one that begins with ~/, found {sign!r}")
    at = table.get("at", "oci://")
    if isinstance(at, str) and not at.startswith("oci://"):
        problems.append(f"cache.at: expected {_CACHE_FORM}, found {at!r}")
    return problems


def _cache(table: Mapping[str, Any], environ: Mapping[str, str], home: Path) -> LayerCache | None:
    """The layer cache; an empty `LAYERWRIGHT_CACHE` means that there is none."""
    at = environ.get("LAYERWRIGHT_CACHE", table.get("at", ""))
    if not at:
        return None
    if not at.startswith("oci://"):
        raise UsageError(f"LAYERWRIGHT_CACHE: expected {_CACHE_FORM}, found {at!r}", hint="correct or unset it")
    sign = environ.get("LAYERWRIGHT_CACHE_SIGN", table.get("sign", ""))
    trust = (*environ.get("LAYERWRIGHT_CACHE_TRUST", "").split(), *table.get("trust", ()))
    unsigned = _flag(environ, "LAYERWRIGHT_CACHE_UNSIGNED", table.get("unsigned", False))
    if not (trust or sign or unsigned):
        raise UsageError(
            f"{at}: nobody is trusted to have packed its layers",
            hint="name public keys in `trust` (LAYERWRIGHT_CACHE_TRUST), or a secret key in `sign`; `build cache key` makes one",
        )
    path = home / sign.removeprefix("~/") if sign else None
    return LayerCache(at.removeprefix("oci://"), trust, path, unsigned)


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
