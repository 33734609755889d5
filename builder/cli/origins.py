"""Where inputs come from, as the settings say: mirrors, package indexes, and what else resolving asks.

Apart from `work`, because it takes long to import, and a build of what is there already asks nobody.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from builder.cli.context import Context
from builder.errors import OfflineError
from builder.lock import LockedFile
from builder.oci.content import Source
from builder.profile import PYTHON_OF, LoadedProfile
from builder.sources import apt, indexes
from builder.sources.apt import Mirror
from builder.sources.indexes import Indexes
from builder.sources.origins import ConfiguredOrigins
from builder.sources.simple import ORIGIN as PYPI
from builder.sources.simple import Catalogue

if TYPE_CHECKING:
    from builder.models.sources import Means
    from builder.resolve import Places
    from builder.sources.nix import Means as NixMeans


def origins(context: Context) -> ConfiguredOrigins:
    """Where the files of locks are; no index is asked before a wheel is needed."""
    return ConfiguredOrigins(_mirrors(context), catalogue(context))


def catalogue(context: Context) -> Catalogue:
    """What the configured package indexes offer."""
    settings = context.settings

    def configure() -> Indexes:
        if settings.offline:
            raise OfflineError("the package index would have to be asked, and --offline forbids it")
        return indexes.configured(context.environ, explicit=settings.origins.get(PYPI, ()))

    def measure(url: str) -> int | None:
        with context.client.open(url) as answer:
            size = answer.headers.get("content-length", "")
        return int(size) if size.isdecimal() else None

    return Catalogue(configure, context.client.get, measure=measure)


def places(
    context: Context,
    loaded: LoadedProfile,
    machine: str,
    ensure: Callable[[Iterable[LockedFile]], None],
    base: Callable[[], tuple[Source, str | None]] | None,
    means: Means | None,
) -> Places:
    """What resolving a profile on a `machine` asks; `ensure` brings locked files into the store, `base` opens the place of
    its base image, `means` are those of its models."""
    from builder.resolve import Places
    from builder.sources.debian import Archive

    get = _get(context)
    now = datetime.fromtimestamp(context.clock(), UTC)
    archives = {suite: Archive(_mirrors(context, suite), get, now) for suite in PYTHON_OF}
    nix = _nix_means(context, loaded, ensure) if loaded.profile.nix else None
    return Places(archives, catalogue(context), machine, context.store, ensure, means, base, nix)


def _nix_means(context: Context, loaded: LoadedProfile, ensure: Callable[[Iterable[LockedFile]], None]) -> NixMeans:
    from builder.sources.nix import Means
    from builder.sources.nixtool import Tool

    return Means(Tool(context.environ, context.progress.note), loaded.root.absolute(), context.store, ensure)


def _mirrors(context: Context, suite: str | None = None) -> Mapping[str, Mirror]:
    settings = context.settings
    return apt.mirrors(overrides=settings.origins, suite=suite, keyrings=settings.keyrings)


def _get(context: Context) -> Callable[[str], bytes]:
    if context.settings.offline:

        def refuse(url: str) -> bytes:
            raise OfflineError("Debian's archive would have to be asked, and --offline forbids it")

        return refuse
    return functools.partial(context.client.get, limit=1 << 30)
