"""What a lock takes from the profile itself, and from its folder: settings, files, rendered templates, folders of models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from builder.errors import BuilderError
from builder.lock import (
    ADAPTIVE,
    Lock,
    LockedCompression,
    LockedInclude,
    LockedLocal,
    LockedStart,
    LockedTemplate,
    SociSettings,
)
from builder.oci.config import Execution
from builder.oci.digest import Digest
from builder.profile import LoadedProfile, Profile
from builder.progress import Progress, Silent
from builder.sources import local

if TYPE_CHECKING:
    from builder.models.locking import Files
    from builder.store import Store

_MAX_TEMPLATE = 16 << 20


@dataclass(frozen=True)
class Local:
    """What a lock takes from the profile's own folder, as it is now; `rendered` are the templates by place, `models` the files
    of models that lie in folders by their names, `start` is what reads ahead."""

    includes: tuple[LockedInclude, ...]
    files: tuple[LockedLocal, ...]
    templates: tuple[LockedTemplate, ...]
    rendered: Mapping[str, bytes]
    models: Files = field(default_factory=dict)
    start: LockedStart | None = None


def read_local(
    loaded: LoadedProfile,
    store: Store | None = None,
    progress: Progress | None = None,
    before: Callable[[], LockedStart | None] = lambda: None,
) -> Local:
    """Reads, hashes and renders all local inputs of a profile; files of models that the `store` remembers are not read again.
    `before` tells what a lock says of the start, if there is one; it is asked where the profile has a trace."""
    copies = [
        local.Copy(item.source, item.to, str(item.mode) if item.mode is not None else None, item.exclude)
        for item in loaded.profile.files
    ]
    files = local.scan(loaded.root, copies)
    templates, rendered = [], {}
    for item in loaded.profile.templates:
        from builder.render import render  # it takes long to import, and few profiles have templates

        source = _template(loaded.root, item.source)
        text = render(source, loaded.profile.template_values, item.source)
        rendered[item.to] = text
        digest, size = Digest.of(text).hex, len(text)
        templates.append(
            LockedTemplate(item.to, item.source, str(item.mode), Digest.of(source.encode()).hex, digest, size)
        )
    includes = tuple(LockedInclude(include.source, include.sha256) for include in loaded.includes)
    models: Files = {}
    if loaded.profile.models:
        from builder.models import locking  # it takes long to import, and few profiles have models

        models = locking.scan_local(loaded.profile.models, loaded.root, store, progress or Silent())
    start = None
    asked = loaded.profile.start
    soci = loaded.profile.publish.soci
    if asked and (asked.readahead or asked.ordered or soci.spans == "adaptive" or soci.prefetch):
        from builder import readahead  # it takes long to import, and few profiles have a trace

        number = readahead.NUMBER if asked.readahead else 0
        start, texts = readahead.locked(loaded.root / asked.trace, asked.trace, number, before())
        rendered |= texts
    return Local(includes, files, tuple(sorted(templates)), rendered, models, start)


def own_places(local: Local | Lock) -> tuple[str, ...]:
    """Where in the image they go."""
    return tuple(sorted({item.to for item in local.files} | {item.to for item in local.templates}))


def _template(root: Path, source: str) -> str:
    path = root / source
    try:
        if path.stat().st_size > _MAX_TEMPLATE:
            raise BuilderError(f"templates: {source} is larger than 16 MiB", hint="put it under `files`")
        return path.read_bytes().decode("utf-8")
    except OSError as error:
        raise BuilderError(
            f"templates: {source}: {error.strerror or error}", hint="correct `from` in the profile"
        ) from error
    except UnicodeDecodeError as error:
        raise BuilderError(f"templates: {source} is not UTF-8", hint="put it under `files`") from error


def execution(profile: Profile) -> Execution:
    """How a container starts, as the profile says."""
    image = profile.image
    return Execution(
        entrypoint=image.entrypoint,
        cmd=image.cmd,
        env=tuple(sorted(image.env)),
        user=image.user,
        workdir=image.workdir,
        ports=tuple(str(port) for port in image.ports),
        labels=tuple(sorted(image.labels)),
        stop_signal=image.stop_signal,
    )


def soci_settings(profile: Profile, before: SociSettings | None = None) -> SociSettings:
    """Which layers get a ztoc, as the profile says, none of those that have a table of their own; by the rule for adaptive spans
    that was locked `before`, if one was."""
    soci = profile.publish.soci
    spans = ""
    if soci.spans == "adaptive":
        spans = (before.spans if before else "") or ADAPTIVE[-1]
    platform = "unknown" if soci.platform == "unknown" else ""
    mount = "parallel" if soci.mount == "parallel" else ""
    enabled = soci.enabled and profile.publish.lazy != "estargz"
    prefetch = "traced" if soci.prefetch else ""
    return SociSettings(enabled, int(soci.span_size), int(soci.min_layer_size), spans, platform, prefetch, mount)


def compression(profile: Profile, previous: Lock | None) -> LockedCompression | None:
    """How layers are compressed, as the profile says; a version that was locked stays."""
    kind = "estargz" if profile.publish.lazy == "estargz" else profile.publish.compression
    if kind in (None, "gzip"):
        return None
    if previous and previous.compression and previous.compression.kind == kind:
        return previous.compression
    if kind == "none":
        return LockedCompression("none")
    if kind == "estargz":
        from builder.layers import estargz  # few images are of it

        return LockedCompression("estargz", estargz.RULES)
    from builder.layers import zstd  # few images are compressed with it

    return LockedCompression("zstd", zstd.VERSION, zstd.LEVEL)
