"""`build plan`: the layers of an image, which of them the store has already, and what its binaries say of it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builder import baseimage, documents
from builder import plan as plans
from builder.assemble import known_layers
from builder.cli import ordered
from builder.cli.context import Context
from builder.cli.options import common, lock_option, profile_argument
from builder.cli.table import table
from builder.cli.work import Work
from builder.errors import CheckError, UsageError
from builder.image import BuiltLayer
from builder.lock import Lock, LockedModel, LockedPlatform
from builder.oci.digest import Digest
from builder.plan import Layer
from builder.progress import human_size

if TYPE_CHECKING:
    from builder.cli.binaries import Examined

_SHOWN = 4


class FindingsError(CheckError):
    """Something of an image cannot run."""

    hint = "the findings say what to do about each"


@click.command(
    help="Show the layers of PROFILE's image, bottom first: what goes in, how large that is, and whether the layer is in the "
    "store or has to be packed. Nothing is fetched, unless --findings or --minimal have to read inputs.",
    epilog="Example: build plan profiles/ocr.yaml --findings",
)
@profile_argument
@click.option(
    "--findings",
    is_flag=True,
    help="Say which library each binary gets and from where, and what is missing, too old, there twice or shadowed. The "
    "exit status is 3 if something cannot run.",
)
@click.option("--minimal", is_flag=True, help="Say what could go from the image, and how large it is.")
@lock_option
@click.option(
    "--format",
    "form",
    type=click.Choice(["text", "json", "nix"]),
    default="text",
    show_default=True,
    help="How to print it; `nix` is what `lib.mkImage` of the flake makes the image of, by Nix alone.",
)
@click.option("--nix-packer", metavar="PATH", help="With --format nix: the packer's store path, instead of adding it.")
@common
def plan(
    context: Context,
    profile: Path,
    findings: bool,
    minimal: bool,
    relock: bool,
    form: str,
    nix_packer: str | None,
) -> None:
    """Prints the plan of every platform."""
    if form == "nix" and (findings or minimal):
        raise UsageError("--format nix is the plan alone", hint="leave out --findings and --minimal")
    if form != "nix" and nix_packer:
        raise UsageError("--nix-packer: only Nix has such settings", hint="add --format nix")
    work = Work.open(context, profile)
    lock = work.current_lock(relock)
    if form == "nix":
        from builder.cli import nixplan  # what it imports takes long

        click.echo(nixplan.text(work, lock, nix_packer))
        return
    planned = plans.plan(lock)
    known = known_layers(planned, context.store)
    contracts = {item.platform: item.gpu for item in lock.platforms if item.gpu}
    examined = dict(_examined(work, lock, fetch=findings or minimal)) if form == "text" or findings or minimal else {}
    if form == "json":
        platforms: dict[str, Any] = {
            str(item.platform): {"layers": [_document(layer, known.get(layer)) for layer in item.layers]}
            for item in planned.platforms
        }
        for platform, contract in contracts.items():
            platforms[str(platform)]["gpu"] = documents.dump(contract)
        for name, found in examined.items():
            platforms[name] |= found.document(findings, minimal)
        document: dict[str, Any] = {"platforms": platforms}
        if lock.models:
            document["models"] = [_model(model) for model in lock.models]
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        for item, locked in zip(planned.platforms, lock.platforms, strict=True):
            click.echo(f"{planned.name} for {item.platform}")
            if item.base:
                click.echo(f"on top of {baseimage.words(item.base)}")
            rows = [_row(number, layer, known.get(layer)) for number, layer in enumerate(item.layers, 1)]
            click.echo(table(("", "LAYER", "INPUTS", "INPUT SIZE", "BLOB"), rows, right=(0, 3)))
            for line in ordered.lines(lock, item, known, context.store):
                click.echo(line)
            if locked.gpu:
                from builder.cli.gpu import summary  # few images have GPUs

                click.echo(summary(locked.gpu))
            for line in (*_flavour(locked), *_told(examined.get(str(item.platform)), findings, minimal)):
                click.echo(line)
        _show_models(lock)
    errors = sum(found.errors for found in examined.values())
    if findings and errors:
        raise FindingsError(f"{errors} {'finding says' if errors == 1 else 'findings say'} that something cannot run")


def _examined(work: Work, lock: Lock, *, fetch: bool) -> Iterator[tuple[str, Examined]]:
    """What the binaries of each platform say, as far as their inputs have been read; all are read if `fetch` says so."""
    from builder.cli import binaries  # takes long to import

    for locked in lock.platforms:
        if found := binaries.examine(work, lock, locked, fetch=fetch):
            yield str(locked.platform), found


def _flavour(locked: LockedPlatform) -> Iterator[str]:
    """Why the flavour of CUDA is what it is, where the profile left it open."""
    if locked.cuda and locked.cuda.reasons:
        yield f"CUDA {locked.cuda.version}, flavour {locked.cuda.flavour}:"
        yield from (f"  {reason}" for reason in locked.cuda.reasons)


def _told(examined: Examined | None, findings: bool, minimal: bool) -> Iterator[str]:
    if examined:
        yield from examined.lines(findings, minimal)


def _show_models(lock: Lock) -> None:
    if lock.models:
        models = [
            (
                item.name,
                item.precision,
                str(len(item.published)),
                human_size(sum(file.size for file in item.published)),
                Digest.parse(item.manifest).short,
            )
            for item in lock.models
        ]
        click.echo(table(("MODEL", "PRECISION", "FILES", "SIZE", "ARTIFACT"), models, right=(2, 3)))


def _model(model: LockedModel) -> dict[str, object]:
    return {
        "name": model.name,
        "source": model.source,
        "precision": model.precision or None,
        "digest": model.manifest,
        "files": [{"path": file.path, "size": file.size} for file in model.published],
    }


def _row(number: int, layer: Layer, built: BuiltLayer | None) -> tuple[str, ...]:
    parts = plans.inputs(layer)
    blob = f"{built.blob.digest.short} {human_size(built.blob.size)}" if built else "to pack"
    return str(number), layer.name, _summary([name for name, _ in parts]), human_size(_size(layer)), blob


def _summary(names: list[str]) -> str:
    shown = ", ".join(name.partition(" ")[0] for name in names[:_SHOWN])
    return shown + (f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else "")


def _size(layer: Layer) -> int:
    return sum(size for _, size in plans.inputs(layer))


def _document(layer: Layer, built: BuiltLayer | None) -> dict[str, object]:
    return {
        "name": layer.name,
        "key": str(layer.key),
        "inputs": [{"name": name, "size": size} for name, size in plans.inputs(layer)],
        "size": _size(layer),
        "blob": {"digest": str(built.blob.digest), "size": built.blob.size} if built else None,
        **({"first": ordered.files(layer)} if ordered.files(layer) else {}),
    }
