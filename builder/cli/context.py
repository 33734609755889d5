"""What every verb is given: settings, progress, the environment and the clock, read once from the process."""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

from builder.progress import Progress, Silent, Terminal
from builder.settings import Settings, config_path, config_text, home_of

if TYPE_CHECKING:  # HTTP takes longer to import than `--help` may take
    from builder.client import Client
    from builder.fetch import Download, Fetcher, Origins
    from builder.store import Store
    from builder.transfer import Opener

_QUIET = 3.0


@dataclass(frozen=True)
class Context:
    """The process, as values; a click command gets it with `@click.pass_obj`. `clock` gives seconds since 1970."""

    settings: Settings
    progress: Progress
    environ: Mapping[str, str]
    config: Path
    clock: Callable[[], float] = time.time
    plain_http: bool = False

    @classmethod
    def from_environment(
        cls,
        environ: Mapping[str, str],
        stderr: TextIO,
        *,
        quiet: bool = False,
        offline: bool = False,
        jobs: int | None = None,
    ) -> Context:
        """Reads the config file; the arguments are the global options. Raises `UsageError`."""
        home = home_of(environ)
        config = config_path(environ, home)
        settings = Settings.parse(config_text(config, environ), config, environ, home)
        settings = replace(settings, offline=offline or settings.offline, jobs=jobs or settings.jobs)
        return cls(settings, Silent() if quiet else _terminal(environ, stderr), environ, config)

    @cached_property
    def store(self) -> Store:
        """The store that the settings name."""
        from builder.store import Store

        return Store(self.settings.store)

    @cached_property
    def client(self) -> Client:
        """One client, so that connections are kept."""
        from builder.client import Client

        return Client(self.settings.network, now_and_then(self.progress.note, time.monotonic))

    def fetcher(
        self, origins: Origins, client: Opener | None = None, others: Mapping[str, Download] | None = None
    ) -> Fetcher:
        """A fetcher into the store, for files of these origins; its requests are sent by `client` if one is given. `others` bring
        the files of origins without addresses."""
        from builder.fetch import Fetcher

        settings = self.settings
        return Fetcher(
            self.store,
            origins,
            client or self.client,
            self.progress,
            offline=settings.offline,
            jobs=settings.jobs,
            mirrors=settings.mirrors,
            others=others,
        )


def now_and_then(tell: Callable[[str], None], clock: Callable[[], float]) -> Callable[[str], None]:
    """Tells a line only if the last one is `_QUIET` seconds old: many requests at once fail for one reason."""
    guard = threading.Lock()
    last = -math.inf

    def told(line: str) -> None:
        nonlocal last
        with guard:
            if clock() - last < _QUIET:
                return
            last = clock()
        tell(line)

    return told


def _terminal(environ: Mapping[str, str], stderr: TextIO) -> Terminal:
    live = stderr.isatty() and environ.get("TERM", "dumb") != "dumb"
    return Terminal(stderr, time.monotonic, live=live, color=not environ.get("NO_COLOR"))
