"""`build plan`: the layers of an image, and which of them the store has already."""

from __future__ import annotations

import json
from pathlib import Path

import click

from builder import baseimage, documents
from builder import plan as plans
from builder.assemble import known_layers
from builder.cli.context import Context
from builder.cli.options import common, format_option, lock_option, profile_argument
from builder.cli.table import table
from builder.cli.work import Work
from builder.image import BuiltLayer
from builder.lock import LockedModel
from builder.oci.digest import Digest
from builder.plan import Layer
from builder.progress import human_size

_SHOWN = 4


@click.command(
    help="Show the layers of PROFILE's image, bottom first: what goes in, how large that is, and whether the layer is in the "
    "store or has to be packed. Nothing is fetched.",
    epilog="Example: build plan profiles/ocr.yaml --format json",
)
@profile_argument
@lock_option
@format_option
@common
def plan(context: Context, profile: Path, relock: bool, form: str) -> None:
    """Prints the plan of every platform."""
    work = Work.open(context, profile)
    lock = work.current_lock(relock)
    planned = plans.plan(lock)
    known = known_layers(planned, context.store)
    contracts = {item.platform: item.gpu for item in lock.platforms if item.gpu}
    if form == "json":
        document: dict[str, object] = {
            str(item.platform): [_document(layer, known.get(layer)) for layer in item.layers]
            for item in planned.platforms
        }
        if contracts:
            document["gpu"] = {str(platform): documents.dump(found) for platform, found in contracts.items()}
        if lock.models:
            document["models"] = [_model(model) for model in lock.models]
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return
    for item in planned.platforms:
        click.echo(f"{planned.name} for {item.platform}")
        if item.base:
            click.echo(f"on top of {baseimage.words(item.base)}")
        rows = [_row(number, layer, known.get(layer)) for number, layer in enumerate(item.layers, 1)]
        click.echo(table(("", "LAYER", "INPUTS", "INPUT SIZE", "BLOB"), rows, right=(0, 3)))
        if item.platform in contracts:
            from builder.cli.gpu import summary  # few images have GPUs

            click.echo(summary(contracts[item.platform]))
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
    }
