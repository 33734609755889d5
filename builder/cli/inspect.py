"""`build inspect`: what is in a published image."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import click

from builder import attach
from builder.attach import Attached
from builder.cli.context import Context
from builder.cli.gpu import Answer, answer, architecture
from builder.cli.options import common, format_option, plain_http_option
from builder.cli.table import table
from builder.examine import Examined, ExaminedImage, examine
from builder.oci import lazy
from builder.oci.artifact import TITLE
from builder.oci.published import by_platform
from builder.places.destination import Destination
from builder.places.opening import open_source
from builder.progress import human_size

_SOCI_V1 = "application/vnd.amazon.soci.index.v1+json"


@click.command(
    help="Show what is in the image REF, in a registry `HOST/REPOSITORY[:TAG]`, an OCI layout `oci:DIR[:TAG]` or an archive "
    "`oci-archive:FILE[:TAG]`: layers, sizes, SOCI spans, which clients start it before they have it, how it starts, labels.",
    epilog="Example: build inspect oci:out/ocr",
)
@click.argument("ref")
@click.option(
    "--gpu",
    metavar="ARCHITECTURE",
    callback=architecture,
    help="Say whether the image runs on GPUs such as sm_90, by its labels; exit with 3 if it does not.",
)
@plain_http_option
@format_option
@common
def inspect(context: Context, ref: str, gpu: str | None, form: str) -> int:
    """Prints the image of every platform."""
    destination = Destination.parse(ref)
    source, reference = open_source(destination, context)
    examined = examine(source, reference)
    if gpu:
        return _gpu([answer(image, gpu) for image in examined.images], form)
    attached = attach.list(source, examined.digest)
    if form == "json":
        document = _document(examined) | {"attached": [_attached_document(item) for item in attached]}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return 0
    click.echo(f"{destination}  {examined.digest}")
    for image in examined.images:
        click.echo(f"\n{image.platform}  {image.digest}")
        click.echo(_layers(image))
        for line in _lazy(image, attached):
            click.echo(line)
        for name, digest in image.models:
            click.echo(f"{'Model:':14}{name}  {digest}")
        for line in _settings(image.config.get("config", {})):
            click.echo(line)
    if attached:
        click.echo("\n" + _attached(attached))
    return 0


def _gpu(answers: Sequence[Answer], form: str) -> int:
    if form == "json":
        document = {"platforms": {item.platform: item.document() for item in answers}}
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
    else:
        for item in answers:
            click.echo(item.text())
    return 0 if all(item.runs for item in answers) else 3


def _attached(attached: Sequence[Attached]) -> str:
    rows = [
        (
            item.kind,
            item.platform or "all",
            item.manifest.digest.short,
            human_size(sum(file.size for file in item.files)),
        )
        for item in attached
    ]
    return table(("ATTACHED", "TO", "DIGEST", "SIZE"), rows, right=(3,))


def _attached_document(item: Attached) -> dict[str, object]:
    return {
        "kind": item.kind,
        "artifactType": item.artifact_type,
        "digest": str(item.manifest.digest),
        "subject": str(item.subject),
        "platform": item.platform,
        "files": [
            {"digest": str(file.digest), "size": file.size, "title": file.annotations.get(TITLE)} for file in item.files
        ],
    }


def _layers(image: ExaminedImage) -> str:
    rows = [
        (
            str(number),
            layer.name,
            layer.digest.short,
            layer.start.kind,
            human_size(layer.size),
            human_size(layer.tar_size) if layer.spans else "",
            str(layer.spans) if layer.spans else "" if layer.start.clients else "whole",
            human_size(layer.ztoc_size) if layer.spans else "",
        )
        for number, layer in enumerate(image.layers, 1)
    ]
    total = ("", "in all", "", "", human_size(sum(layer.size for layer in image.layers)))
    sums = (str(sum(layer.spans for layer in image.layers)), human_size(sum(layer.ztoc_size for layer in image.layers)))
    head = ("", "LAYER", "DIGEST", "TYPE", "SIZE", "UNPACKED", "SPANS", "ZTOC")
    return table(head, [*rows, (*total, "", *sums)], right=(0, 4, 5, 6, 7))


def _lazy(image: ExaminedImage, attached: Sequence[Attached]) -> list[str]:
    """Which clients start the image before they have it, and what comes whole all the same."""
    lines = [f"SOCI index {image.soci}"] if image.soci else []
    if image.missing:
        lines.append(
            f"SOCI index {image.missing} is not there, though the manifest names it: copy the image with all that is its"
        )
    lines += [
        f"SOCI index v1 {item.manifest.digest}: of use only where `pull_modes.soci_v1` is enabled, which it seldom is"
        for item in attached
        if item.artifact_type == _SOCI_V1 and item.subject == image.digest
    ]
    layers, size = image.layers, sum(layer.size for layer in image.layers)
    clients = {client: found for client in lazy.CLIENTS if (found := image.lazily(client))}
    for client, found in clients.items():
        share = 100 * sum(layer.size for layer in found) / (size or 1)
        words = " ".join(filter(None, (client, lazy.CLIENTS[client])))
        lines.append(f"Starts lazily with {words}: {len(found)} of {len(layers)} layers, {share:.1f} % of the bytes")
    lines.append("Other clients pull it whole" if clients else "All clients pull it whole")
    whole: dict[str, list[int]] = {}
    for number, layer in enumerate(layers, 1):
        if not layer.start.clients:
            whole.setdefault(layer.start.why, []).append(number)
    return [*lines, *(f"  {_numbers(numbers)}: {why}" for why, numbers in whole.items())]


def _numbers(numbers: Sequence[int]) -> str:
    """`layer 3`, `layers 1 to 3` or `layers 1, 3 and 5`."""
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    if numbers[-1] - numbers[0] == len(numbers) - 1 > 1:
        return f"layers {numbers[0]} to {numbers[-1]}"
    return f"layers {', '.join(map(str, numbers[:-1]))} and {numbers[-1]}"


def _settings(config: dict[str, Any]) -> list[str]:
    """How a container starts, a line each; what is not set is not shown."""
    lines = []
    for key, value in sorted(config.items()):
        if isinstance(value, dict):
            value = [f"{name}={text}" if text else name for name, text in value.items()]
        words = [str(item) for item in value] if isinstance(value, list) else [str(value)]
        lines.append(f"{key + ':':14}{words[0] if words else ''}")
        lines += [f"{'':14}{word}" for word in words[1:]]
    return lines


def _document(examined: Examined) -> dict[str, object]:
    return {
        "digest": str(examined.digest),
        "platforms": {
            platform: {
                "digest": str(image.digest),
                "soci": str(image.soci) if image.soci else None,
                "lazy": {
                    client: {"layers": len(found), "size": sum(layer.size for layer in found)}
                    for client in lazy.CLIENTS
                    if (found := image.lazily(client))
                },
                "models": {name: str(digest) for name, digest in image.models},
                "layers": [
                    {
                        "name": layer.name,
                        "digest": str(layer.digest),
                        "mediaType": layer.media_type,
                        "type": layer.start.kind,
                        "lazy": list(layer.start.clients),
                        "why": layer.start.why,
                        "size": layer.size,
                        "unpacked": layer.tar_size or None,
                        "spans": layer.spans,
                        "ztoc": layer.ztoc_size,
                    }
                    for layer in image.layers
                ],
                "config": image.config.get("config", {}),
            }
            for platform, image in by_platform(
                (image.platform, image.digest, image) for image in examined.images
            ).items()
        },
    }
