"""`build plan --format nix`: the plan for `lib.mkImage` of the flake, with which Nix alone makes the image."""

from __future__ import annotations

import json
from collections.abc import Mapping
from urllib.parse import urlsplit

from builder import plan as plans
from builder.cli.engine import engine_of
from builder.cli.origins import origins
from builder.cli.work import Work
from builder.client.addresses import host_of
from builder.errors import FetchError
from builder.lock import Lock, LockedFile
from builder.nix.document import image_of
from builder.plan import NIX_ORIGIN
from builder.sources.origins import ConfiguredOrigins

_NONE = dict.fromkeys(("builders", "max-jobs", "substituters", "trusted-public-keys", "floor"))


def text(work: Work, lock: Lock, packer: str | None) -> str:
    """The plan as JSON. In the store of Nix are afterwards the packer, unless that is named by its store path, and the inputs that
    have no address, or all of them where the network may not be used."""
    context = work.context
    engine = engine_of(context, {**_NONE, "packer": packer})
    assert engine
    files = dict.fromkeys(
        file for item in plans.plan(lock).platforms for layer in item.layers for file in plans.files(layer)
    )
    where = None if context.settings.offline else origins(context)
    places = {file: _place(file, where) for file in files}
    if lacking := [file for file, place in places.items() if not place]:
        work.fetcher.ensure(lacking)
        engine.nix.check()
        engine.nix.add_files((context.store.path(file.digest), file.size) for file in lacking)
    document = image_of(lock, packer or engine.runtime(context.store), work.local.rendered, places)
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=False)


def _place(file: LockedFile, where: ConfiguredOrigins | None) -> Mapping[str, str]:
    """Where Nix finds a file: its address as it is configured here, without passwords; nothing where there is none."""
    if file.origin == NIX_ORIGIN:
        return {"path": f"/nix/store/{file.path}"}
    try:
        url = next(iter(where.urls(file)), None) if where else None
    except FetchError:
        return {}
    parts = urlsplit(url or "")
    if parts.scheme not in ("http", "https"):
        return {}
    return {"url": parts._replace(netloc=host_of(parts), fragment="").geturl()}
