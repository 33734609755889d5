"""`build cache push` and `build cache pull`: layers go into a binary cache of Nix, and come from there."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from builder import plan as plans
from builder.cli.context import Context
from builder.cli.engine import engine_of, nix_options
from builder.cli.options import common, format_option, profile_argument
from builder.cli.work import Work
from builder.errors import BuilderError
from builder.nix import caches
from builder.plan import Layer, Plan


@click.command(
    help="Put the layers of PROFILE into the binary cache at URL, signed, and build with Nix what it does not have yet. "
    "Others take them with `--substituters URL`, or with `build cache pull`.",
    epilog="Example: build cache push profiles/ocr.yaml --to file:///srv/cache --key cache.key",
)
@profile_argument
@click.option("--to", "url", required=True, metavar="URL", help="file://DIR, http://…, s3://…, or a store: ssh-ng://….")
@click.option(
    "--key",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The secret key, as `nix key generate-secret` makes it. What is not signed is taken by nobody who checks.",
)
@nix_options
@format_option
@common
def push(context: Context, profile: Path, url: str, key: Path | None, nix: dict[str, Any], form: str) -> None:
    """Pushes the layers of one profile."""
    work = Work.open(context, profile)
    plan = plans.plan(work.current_lock(False))
    engine = engine_of(context, nix)
    assert engine
    with context.store.in_use():
        pushed = caches.push(engine, _layers(plan), plan.soci.span_size, context.store, work.fetcher.ensure, url, key)
    if pushed is None:
        raise BuilderError(f"{profile}: no layer has so much input that Nix is asked for it", hint="add --nix-floor 0")
    if form == "json":
        names = [layer.name for layer in pushed.layers]
        click.echo(json.dumps({"layers": names, "path": pushed.path, "packer": pushed.packer}, indent=2))
        return
    for layer in pushed.layers:
        context.progress.note(f"{layer.name}: is in {url}")
    click.echo(pushed.path)
    context.progress.note(f"machines with another Python build the same with --nix-packer {pushed.packer}")


@click.command(
    help="Take those layers of PROFILE into the local store that the binary cache at URL has. Nothing is built, and no wheel is "
    "fetched. The exit status is 3 if layers are lacking.",
    epilog="Example: build cache pull profiles/ocr.yaml --from http://cache.example --trusted-public-keys 'ci-1:…'",
)
@profile_argument
@click.option("--from", "url", required=True, metavar="URL", help="The binary cache.")
@nix_options
@format_option
@common
def pull(context: Context, profile: Path, url: str, nix: dict[str, Any], form: str) -> int:
    """Pulls the layers of one profile; returns the exit status."""
    plan = plans.plan(Work.open(context, profile).current_lock(False))
    others = [nix["substituters"]] if nix["substituters"] else []
    engine = engine_of(context, {**nix, "substituters": " ".join([*others, url]), "max-jobs": "0", "builders": ""})
    assert engine
    wanted = engine.worth(_layers(plan))
    with context.store.in_use():
        taken = caches.pull(engine, wanted, plan.soci.span_size, context.store)
    lacking = [layer for layer in wanted if layer not in taken]
    if form == "json":
        document = {"taken": [layer.name for layer in taken], "lacking": [layer.name for layer in lacking]}
        click.echo(json.dumps(document, indent=2))
        return 3 if lacking else 0
    for layer in lacking:
        context.progress.note(f"{layer.name}: {url} does not have it")
    click.echo(f"{len(taken)} of {len(wanted)} layers")
    return 3 if lacking else 0


def _layers(plan: Plan) -> list[Layer]:
    return [layer for platform in plan.platforms for layer in platform.layers]
