"""The options that choose the engine, and the engine that they make."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import click

from builder.cli.cache import parse_size
from builder.cli.context import Context
from builder.errors import UsageError

if TYPE_CHECKING:
    from builder.nix.engine import Engine


def _size(_: click.Context, __: click.Parameter, value: str | None) -> int | None:
    return None if value is None else parse_size(value)


_SETTINGS = (
    click.option(
        "--builders", metavar="MACHINES", help="Machines that build, as in nix.conf: 'ssh-ng://HOST SYSTEM - JOBS'."
    ),
    click.option("--max-jobs", metavar="N", help="How many layers this machine builds at once; 0: none, others do."),
    click.option("--substituters", metavar="URLS", help="Binary caches to take layers from, as in nix.conf."),
    click.option(
        "--trusted-public-keys", metavar="KEYS", help="Whose signatures on cached layers count, as in nix.conf."
    ),
    click.option(
        "--nix-packer", metavar="PATH", help="The packer's store path, where machines share that of one of them."
    ),
    click.option(
        "--nix-floor", callback=_size, metavar="SIZE", help="Layers of less input are packed here.  [default: 1MiB]"
    ),
)


def nix_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the settings of Nix; the verb gets them as `nix`, a mapping."""

    @functools.wraps(function)
    def wrapped(
        builders: str | None,
        max_jobs: str | None,
        substituters: str | None,
        trusted_public_keys: str | None,
        nix_packer: str | None,
        nix_floor: int | None,
        **others: Any,
    ) -> Any:
        nix = {
            "builders": builders,
            "max-jobs": max_jobs,
            "substituters": substituters,
            "trusted-public-keys": trusted_public_keys,
            "packer": nix_packer,
            "floor": nix_floor,
        }
        return function(nix=nix, **others)

    for option in reversed(_SETTINGS):
        wrapped = option(wrapped)
    return wrapped


def engine_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds `--engine` and the settings of Nix; the verb gets them as `engine`, a mapping, or None."""

    @functools.wraps(function)
    def wrapped(engine: str | None, nix: dict[str, Any], **others: Any) -> Any:
        given = [name for name, value in nix.items() if value is not None]
        if engine != "nix" and given:
            raise UsageError(f"{', '.join(given)}: only Nix has such settings", hint="add --engine nix")
        return function(engine=nix if engine == "nix" else None, **others)

    return click.option(
        "--engine", type=click.Choice(["nix"]), help="Have layers built by Nix, instead of by this process."
    )(nix_options(wrapped))


def engine_of(context: Context, nix: dict[str, Any] | None, *, rebuild: bool = False) -> Engine | None:
    """The engine that options ask for."""
    if nix is None:
        return None
    from builder.nix.engine import FLOOR, Engine  # what it imports takes long
    from builder.nix.program import Nix, setting

    options = [part for name in ("builders", "max-jobs") for part in setting(name, nix[name])]
    if nix["substituters"]:
        options += [*setting("substituters", nix["substituters"]), *setting("substitute", "true"), "--fallback"]
    if nix["trusted-public-keys"]:
        options += setting("extra-trusted-public-keys", nix["trusted-public-keys"])
    if context.settings.offline:
        options += ["--offline"]
    told: set[str] = set()

    def note(text: str) -> None:
        if text not in told:  # each of its programs says the same of a cache that is down
            told.add(text)
            context.progress.note(text)

    builds = nix["max-jobs"] != "0" or bool(nix["builders"])
    floor = FLOOR if nix["floor"] is None else nix["floor"]
    return Engine(Nix(context.environ, tuple(options), note), floor, nix["packer"] or "", rebuild, builds)
