"""`build model list`: which models a place holds."""

from __future__ import annotations

import json
from contextlib import suppress
from typing import Any

import click

from builder.cli.context import Context
from builder.cli.options import common, format_option, plain_http_option
from builder.cli.table import table
from builder.errors import BuilderError
from builder.layers.untar import readable
from builder.models.artifact import open_artifact, read_config
from builder.models.values import BadModelError, ModelArtifact
from builder.parallel import Stop, for_each
from builder.places.destination import Destination, Folder, is_tag
from builder.places.opening import open_source
from builder.progress import counted, human_size


@click.command(
    "list",
    help="Show the models that PLACE holds, by their tags: a repository of a registry `HOST/REPOSITORY`, an OCI layout `oci:DIR` "
    "or an archive `oci-archive:FILE`. Images and other things in it are passed over.",
    epilog="Example: build model list oci:out/models",
)
@click.argument("place")
@plain_http_option
@format_option
@common
def list_models(context: Context, place: str, form: str) -> None:
    """Prints the models of a place."""
    named = Destination.parse(place).place
    if isinstance(named, Folder) and not named.path.is_dir():
        raise BuilderError(f"{place}: there is no such folder", hint="publish a model to it first")
    source, _ = open_source(named, context)
    found: dict[str, tuple[ModelArtifact, dict[str, Any]]] = {}

    def look(tag: str) -> None:
        with suppress(BadModelError):  # it is something else
            artifact = open_artifact(source, tag)
            found[tag] = artifact, dict(read_config(source, artifact))

    # `sha256-…` stands for a list of referrers, and a registry may call anything a tag.
    tags = [tag for tag in source.tags() if is_tag(tag) and not tag.startswith("sha256-")]
    for error in for_each(look, tags, context.settings.jobs, Stop()):
        raise error
    rows = [(tag, *found[tag]) for tag in sorted(found)]
    if form == "json":
        click.echo(json.dumps([_document(*row) for row in rows], indent=2, ensure_ascii=False))
    elif rows:
        head = ("TAG", "DIGEST", "SIZE", "FILES", "FORMAT", "PARAMETERS", "PRECISION")
        click.echo(table(head, [_row(*row) for row in rows], right=(2, 3)))
    else:
        context.progress.note(f"{place}: no models among {counted(len(tags), 'tag')}")


def _row(tag: str, artifact: ModelArtifact, config: dict[str, Any]) -> tuple[str, ...]:
    size = human_size(sum(file.size for file in artifact.files))
    said = (readable(_said(config, key)) for key in ("format", "paramSize", "precision"))
    return tag, artifact.manifest.digest.short, size, str(len(artifact.files)), *said


def _document(tag: str, artifact: ModelArtifact, config: dict[str, Any]) -> dict[str, object]:
    return {
        "tag": tag,
        "digest": str(artifact.manifest.digest),
        "size": sum(file.size for file in artifact.files),
        "files": len(artifact.files),
        "indexed": artifact.index is not None,
        "format": _said(config, "format") or None,
        "parameters": _said(config, "paramSize") or None,
        "precision": _said(config, "precision") or None,
    }


def _said(config: dict[str, Any], key: str) -> str:
    found = config.get("config")
    value = found.get(key) if isinstance(found, dict) else None
    return value if isinstance(value, str) else ""
