"""The process that uses models as a library: its environment, as values. For it this is what `cli` is for commands."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from builder.errors import UsageError
from builder.settings import CONFIG, Settings, config_path, config_text, home_of
from builder.store import Store

if TYPE_CHECKING:
    from builder.client import Client


@dataclass(frozen=True)
class Ambient:
    """What opening a place needs: a `places.opening.Context`."""

    settings: Settings
    environ: Mapping[str, str]
    plain_http: bool = False

    @classmethod
    def here(
        cls,
        *,
        cache: Path | None = None,
        offline: bool = False,
        plain_http: bool = False,
        environ: Mapping[str, str] | None = None,
    ) -> Ambient:
        """This process, or another `environ`: proxies, credentials and the place of the cache, as for commands."""
        environ = os.environ if environ is None else environ
        home = home_of(environ)
        path = config_path(environ, home)
        text = ""
        with nullcontext() if environ.get(CONFIG) else suppress(UsageError):  # what nobody has named is left alone
            text = config_text(path, environ)
        settings = Settings.parse(text, path, environ, home)
        settings = replace(settings, store=cache or settings.store, offline=offline or settings.offline)
        return cls(settings, environ, plain_http)

    @cached_property
    def store(self) -> Store:
        """The cache."""
        return Store(self.settings.store)

    @cached_property
    def client(self) -> Client:
        """One client, so that connections are kept."""
        from builder.client import Client

        return Client(self.settings.network)
