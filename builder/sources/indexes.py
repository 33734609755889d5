"""Where the Python package indexes are: the user's configuration says it, and for its own default uv is asked."""

from __future__ import annotations

import configparser
import re
import sys
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from netrc import NetrcParseError, netrc
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit, urlunsplit

from builder import process
from builder.errors import BuilderError, ToolError
from builder.sources import uvtool
from builder.sources.redacting import redact

SETTING = "LAYERWRIGHT_PYPI_INDEX"
"""The environment variable that overrules every other setting: index URLs, separated by spaces, best first."""


@dataclass(frozen=True)
class Index:
    """One index with the simple API (PEP 503, 691). `url` may carry credentials; `str()` and `repr()` hide them."""

    url: str = field(repr=False)

    @classmethod
    def parse(cls, text: str) -> Index:
        try:
            parts = urlsplit(text)
            usable = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        except ValueError:
            usable = False
        if not usable:
            raise BuilderError(
                f"{redact(text)}: not the address of a package index",
                hint="give the URL of its simple API, http or https",
            )
        return cls(text.rstrip("/"))

    def __str__(self) -> str:
        return redact(self.url)

    @property
    def secrets(self) -> tuple[str, ...]:
        """What must not be shown: the password, or the user name where it stands alone, as a token does."""
        parts = urlsplit(self.url)
        secret = parts.password or parts.username
        return (secret, unquote(secret)) if secret else ()


@dataclass(frozen=True)
class Indexes:
    """The configured indexes, and the environment in which uv finds the very same ones."""

    default: Index
    extra: tuple[Index, ...]
    environment: Mapping[str, str] = field(repr=False)

    def __iter__(self) -> Iterator[Index]:
        """Best first; the default index is the last one, as it is for uv."""
        yield from self.extra
        yield self.default

    def redact(self, text: str) -> str:
        """The text without credentials, wherever they stand in it."""
        text = redact(text)
        for secret in {secret for index in self for secret in index.secrets if len(secret) > 3}:
            text = text.replace(secret, "***")
        return text


def configured(
    environ: Mapping[str, str],
    *,
    explicit: Sequence[str] = (),
    run: uvtool.Run = process.run,
    etc: Path = Path("/etc"),
) -> Indexes:
    """The indexes that the user has configured; the first of these that says anything decides.

    `explicit` (best first, from the caller's configuration); LAYERWRIGHT_PYPI_INDEX; uv's environment variables and
    uv.toml files, as uv itself reads them; pip's environment variables and pip.conf files; uv's built-in default.
    Credentials are taken from the URLs, from UV_INDEX_<NAME>_USERNAME and _PASSWORD, and from netrc. It runs uv: call
    it once, and not before an index is needed.
    """
    environment = uvtool.environment(environ)
    own = True
    if chosen := tuple(explicit) or tuple(environ.get(SETTING, "").split()):
        *extra, default = chosen
        own = False
    else:
        default, *extra = _ask_uv(environment, run)
        pip_default, pip_extra = _pip_settings(environ, etc)
        if (pip_default or pip_extra) and [default, *extra] == _ask_uv(uvtool.without_indexes(environment), run):
            default, extra = pip_default or default, pip_extra
            own = False
    names = _index_names(environ, etc)
    indexes = [Index.parse(_with_credentials(url, names, environ)) for url in (default, *extra)]
    if not own:
        environment = uvtool.without_indexes(environment)
        environment["UV_DEFAULT_INDEX"] = indexes[0].url
        environment["UV_INDEX"] = " ".join(index.url for index in indexes[1:])
    return Indexes(indexes[0], tuple(indexes[1:]), environment)


def _ask_uv(environment: Mapping[str, str], run: uvtool.Run) -> list[str]:
    """The indexes that uv would use, the default one first."""
    arguments = ["pip", "compile", "-", "--emit-index-url", "--no-header", "--offline", "--quiet"]
    try:
        printed = uvtool.call(run, environment, arguments, input=b"").decode()
    except ToolError as error:
        raise ToolError(f"uv does not say where its package index is: {redact(str(error))}", hint=error.hint) from None
    options = dict.fromkeys(line for line in printed.splitlines() if line.startswith("--"))
    default = [line.split()[1] for line in options if line.startswith("--index-url ")]
    if not default:
        raise BuilderError("uv is configured to use no package index", hint=f"set {SETTING} to one")
    return default[:1] + [line.split()[1] for line in options if line.startswith("--extra-index-url ")]


def _pip_settings(environ: Mapping[str, str], etc: Path) -> tuple[str | None, list[str]]:
    """`index-url` and `extra-index-url` as pip finds them: a later file overrules an earlier one."""
    settings: dict[str, str] = {}
    for path in _pip_files(environ, etc):
        parser = configparser.RawConfigParser()
        try:
            parser.read(path, encoding="utf-8")
        except (configparser.Error, UnicodeDecodeError) as error:
            raise BuilderError(f"{path}: pip's configuration cannot be read: {redact(str(error))}") from error
        for section in ("global", "install"):
            if parser.has_section(section):
                settings |= {key.replace("_", "-"): value for key, value in parser.items(section)}
    default = environ.get("PIP_INDEX_URL") or settings.get("index-url")
    extra = environ.get("PIP_EXTRA_INDEX_URL") or settings.get("extra-index-url", "")
    return default, list(dict.fromkeys(extra.split()))


def _pip_files(environ: Mapping[str, str], etc: Path) -> Iterator[Path]:
    named = environ.get("PIP_CONFIG_FILE")
    if named == "/dev/null":
        return
    yield from (folder / "pip/pip.conf" for folder in _system_folders(environ, etc))
    yield etc / "pip.conf"
    if not (named and Path(named).exists()):
        if home := environ.get("HOME"):
            yield Path(home, ".pip/pip.conf")
        yield from (folder / "pip/pip.conf" for folder in _user_folders(environ))
    yield Path(sys.prefix, "pip.conf")
    if named:
        yield Path(named)


def _index_names(environ: Mapping[str, str], etc: Path) -> dict[str, str]:
    """URL -> the name that the user gave to the index; uv does not print it, and credentials may be filed under it."""
    names: dict[str, str] = {}
    for path in _uv_files(environ, etc):
        try:
            tables = tomllib.loads(path.read_text(encoding="utf-8")).get("index", [])
            names |= {table["url"]: table["name"] for table in tables if "name" in table and "url" in table}
        except (OSError, ValueError, TypeError, AttributeError):
            continue  # uv has read these files already, and has complained where it had to
    for variable in ("UV_INDEX", "UV_DEFAULT_INDEX"):
        for entry in environ.get(variable, "").split():
            name, equals, url = entry.partition("=")
            if equals and "/" not in name:
                names[url] = name
    return names


def _uv_files(environ: Mapping[str, str], etc: Path) -> Iterator[Path]:
    if named := environ.get("UV_CONFIG_FILE"):
        yield Path(named)
        return
    folders = (*_system_folders(environ, etc), etc, *_user_folders(environ))
    yield from (folder / "uv/uv.toml" for folder in folders)


def _user_folders(environ: Mapping[str, str]) -> tuple[Path, ...]:
    if folder := environ.get("XDG_CONFIG_HOME"):
        return (Path(folder),)
    return (Path(home, ".config"),) if (home := environ.get("HOME")) else ()


def _system_folders(environ: Mapping[str, str], etc: Path) -> tuple[Path, ...]:
    folders = environ.get("XDG_CONFIG_DIRS") or str(etc / "xdg")
    return tuple(Path(folder) for folder in reversed(folders.split(":")) if folder)


def _with_credentials(url: str, names: Mapping[str, str], environ: Mapping[str, str]) -> str:
    """The URL with the credentials that are filed elsewhere, if it has none itself."""
    parts = urlsplit(url)
    if "@" in parts.netloc:
        return url
    user = password = None
    if name := names.get(url):
        variable = "UV_INDEX_" + re.sub(r"[^A-Z0-9]", "_", name.upper())
        user, password = environ.get(f"{variable}_USERNAME"), environ.get(f"{variable}_PASSWORD")
    if user is None and password is None:
        user, password = netrc_entry(parts.hostname or "", environ)
    if user is None and password is None:
        return url
    userinfo = quote(user or "", safe="") + (":" + quote(password, safe="") if password else "")
    return urlunsplit(parts._replace(netloc=f"{userinfo}@{parts.netloc}"))


def netrc_entry(host: str, environ: Mapping[str, str]) -> tuple[str | None, str | None]:
    """User and password that the user's netrc has for a host; (None, None) where it has none, or cannot be read."""
    path = environ.get("NETRC") or (str(Path(environ["HOME"], ".netrc")) if environ.get("HOME") else None)
    if path is None:
        return None, None
    try:
        entry = netrc(path).authenticators(host)
    except (OSError, NetrcParseError, UnicodeDecodeError):
        return None, None
    return (entry[0], entry[2]) if entry else (None, None)
