"""`build cache`: what the local store holds, making room in it, and the caches that layers are shared by."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from builder.cli.main import Verbs
from builder.progress import human_size

if TYPE_CHECKING:
    from builder.cli.context import Context

_SIZES = {"": 1, "K": 10**3, "M": 10**6, "G": 10**9, "T": 10**12, "KI": 2**10, "MI": 2**20, "GI": 2**30, "TI": 2**40}
_AGES = {"s": 1, "m": 60, "h": 3600, "d": 86400, "w": 7 * 86400}
_FORMAT = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)


def parse_size(text: str) -> int:
    """`20GB`, `1.5GiB`, `0`: bytes."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?) ?([KMGT]I?)?B?", text.strip().upper(), re.ASCII)
    if not match:
        raise click.BadParameter(f"{text!r} is not a size such as 20GB or 512MiB")
    return int(float(match[1]) * _SIZES[match[2] or ""])


def parse_age(text: str) -> float:
    """`30d`, `12h`, `2w`: seconds."""
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhdw])", text.strip(), re.ASCII)
    if not match:
        raise click.BadParameter(f"{text!r} is not an age such as 30d, 12h or 2w")
    return float(match[1]) * _AGES[match[2]]


VERBS = {
    "info": "builder.cli.cache:info",
    "gc": "builder.cli.cache:gc",
    "fill": "builder.cli.layercache:fill",
    "key": "builder.cli.layercache:key",
    "push": "builder.cli.nixcache:push",
    "pull": "builder.cli.nixcache:pull",
}
"""Each verb and the command that does it, imported when it is asked for."""

_SUMMARIES = {
    "info": "Show where the store is and how much it holds.",
    "gc": "Remove what was not used lately.",
    "fill": "Send layers to the layer cache.",
    "key": "Make a pair of keys for a layer cache.",
    "push": "Put layers into a binary cache of Nix.",
    "pull": "Take layers from a binary cache of Nix.",
}


class _CacheVerbs(Verbs):
    verbs: Mapping[str, str] = VERBS
    summaries: Mapping[str, str] = _SUMMARIES


@click.group(
    cls=_CacheVerbs,
    help="Look into the local store, make room in it, and share layers by the caches of a team.",
    epilog="Example: build cache info",
)
def cache() -> None:
    """The group; its commands follow."""


@click.command(help="Show where the store is and how much it holds.", epilog="Example: build cache info --format json")
@_FORMAT
@click.pass_obj
def info(context: Context, form: str) -> None:
    """Prints the usage of the store."""
    from builder.store.collect import usage

    used = usage(context.store)
    if form == "json":
        click.echo(json.dumps({"path": str(context.store.root), **asdict(used)}, sort_keys=True, indent=2))
        return
    click.echo(f"path      {context.store.root}")
    click.echo(f"objects   {used.objects}  {human_size(used.bytes)}")
    click.echo(f"  inputs  {used.inputs}  {human_size(used.input_bytes)}")
    click.echo(f"  layers  {used.layers}  {human_size(used.layer_bytes)}")
    click.echo(f"records   {used.records}")
    click.echo(f"partial   {used.partial}  {human_size(used.partial_bytes)}")
    click.echo(f"temporary {used.temporary}  {human_size(used.temporary_bytes)}")
    click.echo(f"free disk {human_size(used.free_bytes)}")


@click.command(
    short_help="Remove what was not used lately.",
    help="Remove what killed runs left, and what was not used lately: nothing that is removed is lost, "
    "it is fetched or built again when it is needed.",
    epilog="Example: build cache gc --max-size 20GB --older-than 30d --dry-run",
)
@click.option("--max-size", type=parse_size, metavar="SIZE", help="Keep at most so much, the most recently used.")
@click.option("--older-than", type=parse_age, metavar="AGE", help="Remove what was not used for so long.")
@click.option("--dry-run", is_flag=True, help="Only say what would be removed.")
@_FORMAT
@click.pass_obj
def gc(context: Context, max_size: int | None, older_than: float | None, dry_run: bool, form: str) -> None:
    """Collects the store."""
    from builder.store.collect import gc

    removed = gc(context.store, context.clock(), max_age=older_than, max_size=max_size, dry_run=dry_run)
    if form == "json":
        click.echo(json.dumps({"dry_run": dry_run, **asdict(removed)}, sort_keys=True, indent=2))
        return
    verb = "would remove" if dry_run else "removed"
    click.echo(
        f"{verb} {removed.objects} objects, {removed.records} records and {removed.leftovers} leftovers: "
        f"{human_size(removed.bytes)}"
    )
