"""Published models by the names of their places, opened."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from builder.models.cache import Remembering
from builder.models.pull import Published
from builder.places.destination import Destination, Repository

if TYPE_CHECKING:
    from builder.models.lazy import Model
    from builder.places.opening import Context
    from builder.progress import Progress
    from builder.store import Store


def published(text: str, context: Context, store: Store | None = None, *, ahead: int = 0) -> Published:
    """The model that `text` names: `HOST/REPOSITORY[:TAG]`, `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`, each also with
    `@DIGEST`. What was read of it before is taken from the store; else `ahead` connections are opened for what will be read.

    Raises `UsageError` for what is no place, `NotAModelError`, and what the place raises.
    """
    named = Destination.parse(text.removeprefix("oci://"))
    offline = context.settings.offline and isinstance(named, Repository)

    def open() -> object:
        from builder.places.opening import open_source

        return open_source(named, context)[0]

    source = Remembering(store or context.store, str(named.place), None if offline else open, ahead=ahead)  # type: ignore[arg-type]
    return Published.open(str(named.place), source, named.reference)


def open_model(
    reference: str,
    *,
    cache: Path | str | None = None,
    offline: bool = False,
    plain_http: bool = False,
    progress: Progress | None = None,
) -> Model:
    """The model that `reference` names, `HOST/REPOSITORY[:TAG][@DIGEST]`, `oci:DIR[:TAG]` or `oci-archive:FILE[:TAG]`.

    Its documents are read now (from the cache, if a digest names it that was opened before), its files when they are used. The
    environment says what it says to commands: proxies, `DOCKER_CONFIG`, `XDG_CACHE_HOME`. `cache` is a folder for what
    is fetched; `offline` forbids the network; `plain_http` allows registries without encryption that are not on this machine.
    """
    from builder.models.ambient import Ambient
    from builder.models.lazy import Model
    from builder.models.requests import CONNECTIONS

    context = Ambient.here(cache=Path(cache) if cache else None, offline=offline, plain_http=plain_http)
    return Model(published(reference, context, ahead=CONNECTIONS), context.store, progress)
