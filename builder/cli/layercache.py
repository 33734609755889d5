"""The layer cache that the settings name, and the verbs that fill it and make its keys."""

from __future__ import annotations

import os
import secrets
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import click

from builder.cli.context import Context
from builder.cli.options import common, plain_http_option, profile_argument
from builder.errors import BuilderError, OfflineError, UsageError
from builder.layercache.cache import LayerCache, Trust
from builder.layercache.keys import PublicKey, SecretKey
from builder.places import memory
from builder.places.remote import Remote
from builder.plan import plan
from builder.registry import BadReferenceError, Keychain, Reference

if TYPE_CHECKING:
    from builder.parallel import Stop
    from builder.settings import LayerCache as Settings

_ATTEMPTS, _CONNECT, _READ = 2, 5.0, 20.0
"""A cache that does not answer soon is no help."""
_NONE = "set `at` under [cache] in the settings, or LAYERWRIGHT_CACHE"


def cache_of(context: Context, settings: Settings) -> LayerCache:
    """The cache of these settings. Raises `UsageError` where they cannot be meant."""
    from builder.client import Client

    try:
        reference = Reference.parse(settings.at)
    except BadReferenceError as error:
        raise UsageError(f"[cache] at: {error}", hint="write oci://HOST/REPOSITORY") from error
    if reference.tag or reference.digest:
        raise UsageError(f"[cache] at: {settings.at!r} has a tag or digest", hint="write oci://HOST/REPOSITORY")
    secret = SecretKey.read(settings.sign) if settings.sign else None
    public = tuple(PublicKey.parse(text) for text in settings.trust)
    trust = Trust((*public, *([secret.public] if secret else ())), secret, settings.unsigned)
    network = context.settings.network
    client = Client(
        replace(
            network,
            attempts=min(network.attempts, _ATTEMPTS),
            connect_timeout=min(network.connect_timeout, _CONNECT),
            read_timeout=min(network.read_timeout, _READ),
        )
    )

    def opened(writing: bool, stop: Stop) -> Remote:
        return Remote(
            reference,
            client,
            Keychain.of(context.environ),
            plain_http=context.plain_http,
            writing=writing,
            mounts=memory.mounts(context.store, reference.registry, reference.repository),
            stop=stop,
        )

    return LayerCache(settings.at, opened, trust, context.store, context.progress)


@click.command(
    help="Make a pair of keys for a layer cache: the secret one goes into FILE, the public one is printed.",
    epilog="Example: build cache key ci-1 -o ci-1.key",
)
@click.argument("name")
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), metavar="FILE", help="A new file.")
def key(name: str, output: Path) -> None:
    """Makes a pair of keys."""
    made = SecretKey.generate(name, secrets.token_bytes)
    try:
        descriptor = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(f"{made.text}\n")
    except OSError as error:
        raise BuilderError(
            f"{output}: cannot be written: {error.strerror}", hint="name a new file; no key is overwritten"
        ) from error
    click.echo(str(made.public))


@click.command(
    help="Send the layers of PROFILE that the store has to the layer cache, whether they went there before or not.",
    epilog="Example: build cache fill profiles/ocr.yaml",
)
@profile_argument
@plain_http_option
@common
def fill(context: Context, profile: Path) -> int:
    """Fills the cache; returns the exit status."""
    from builder.cli.work import Work

    settings = context.settings
    if settings.cache is None:
        raise UsageError("there is no layer cache", hint=_NONE)
    if settings.offline:
        raise OfflineError("the layer cache would have to be asked, and --offline forbids it")
    if not (settings.cache.sign or settings.cache.unsigned):
        raise UsageError(
            "there is no key to sign layers with", hint="set `sign` under [cache], or LAYERWRIGHT_CACHE_SIGN"
        )
    work = Work.open(context, profile)
    with context.store.in_use():
        lock = work.current_lock(False)
        work.share(lock, [layer for platform in plan(lock).platforms for layer in platform.layers])
    assert work.cache
    if work.cache.down:
        raise BuilderError(f"the layer cache was not filled: {work.cache.down}", hint="run the same command again")
    return 0
