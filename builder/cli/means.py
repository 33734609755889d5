"""What the sources of models need of this process."""

from __future__ import annotations

from pathlib import Path

from builder.cli.context import Context
from builder.cli.origins import catalogue
from builder.models.sources import Means
from builder.oci.content import Source


def means_of(context: Context, root: Path) -> Means:
    """What collecting and bringing models needs; paths are relative to `root`."""

    def open_source(text: str) -> tuple[Source, str | None]:
        from builder.places.opening import open_source as opened  # it takes long to import

        return opened(text, context)

    return Means(
        root,
        context.store,
        context.client,
        catalogue(context),
        context.fetcher,
        open_source,
        context.environ,
        context.settings.origins,
        context.progress,
        context.settings.offline,
    )
