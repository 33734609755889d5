"""`build assemble` and `build publish`: from a profile to images in an OCI layout."""

from __future__ import annotations

import json
from pathlib import Path

import click

from builder.cli.context import Context
from builder.cli.options import common, format_option, lock_option, profile_argument
from builder.cli.work import Work
from builder.image import Assembled
from builder.lock import Lock
from builder.progress import human_size
from builder.publish import Destination, Publication
from builder.publish import publish as publish_to


@click.command(
    help="Make the images of PROFILE and their SOCI index in an OCI layout, without publishing. The lock has to be there.",
    epilog="Example: build assemble profiles/ocr.yaml -o oci:/var/tmp/ocr:test",
)
@profile_argument
@click.option("-o", "--output", metavar="oci:DIR[:TAG]", help="The layout.  [default: oci:out/NAME]")
@lock_option
@format_option
@common
def assemble(context: Context, profile: Path, output: str | None, relock: bool, form: str) -> None:
    """Assembles to one layout."""
    work = Work.open(context, profile)
    lock = work.current_lock(relock)
    destination = Destination.parse(output) if output else Destination(Path("out", lock.name))
    image, published = _published(work, lock, [destination])
    _report(context, lock, image, published, form)


@click.command(
    help="Publish PROFILE: make its lock if it has none, take every layer from the store or pack it, index the image for "
    "lazy starting, and put it into each DESTINATION, an OCI layout `oci:DIR[:TAG]`. The digest is printed.",
    epilog="Example: build publish profiles/ocr.yaml oci:out/ocr:v1",
)
@profile_argument
@click.argument("destinations", nargs=-1, metavar="[DESTINATION]...")
@lock_option
@format_option
@common
def publish(context: Context, profile: Path, destinations: tuple[str, ...], relock: bool, form: str) -> None:
    """Publishes to all destinations."""
    work = Work.open(context, profile)
    parsed = [Destination.parse(text) for text in destinations] or [_default(work)]
    lock = work.current_lock(relock, make=True)
    image, published = _published(work, lock, parsed)
    _report(context, lock, image, published, form)


def _published(work: Work, lock: Lock, destinations: list[Destination]) -> tuple[Assembled, list[Publication]]:
    context = work.context
    with context.store.in_use():  # from the first layer to the last copy
        image = work.assemble(lock)
        return image, [publish_to(image, context.store, to, context.progress) for to in destinations]


def _default(work: Work) -> Destination:
    """What the profile says, relative to its folder; else `oci:out/NAME` here."""
    profile = work.loaded.profile
    if profile.publish.to:
        named = Destination.parse(profile.publish.to)
        return Destination(work.loaded.root / named.folder, named.tag)
    return Destination(Path("out", profile.name))


def _report(context: Context, lock: Lock, image: Assembled, published: list[Publication], form: str) -> None:
    for platform in image.documents.unindexed if lock.soci.enabled else ():
        least = human_size(lock.soci.min_layer_size)
        context.progress.note(f"{platform}: no layer has {least}, so that no SOCI index is made; it is pulled whole")
    layers = [layer for item in image.images for layer in item.layers]
    packed = sum(layer.packed for layer in layers)
    for item in published:
        context.progress.note(
            f"{item.destination}: {len(layers)} layers, {packed} of them packed now; "
            f"{human_size(item.new_bytes)} new, {human_size(item.present_bytes)} there before"
        )
    if form == "text":
        click.echo(f"{image.documents.top.digest}")
        return
    document = {
        "digest": str(image.documents.top.digest),
        "platforms": {
            str(item.platform): [
                {"name": layer.name, "digest": str(layer.blob.digest), "size": layer.blob.size, "packed": layer.packed}
                for layer in item.layers
            ]
            for item in image.images
        },
        "destinations": [
            {
                "destination": str(item.destination),
                "new": {"blobs": item.new_blobs, "bytes": item.new_bytes},
                "present": {"blobs": item.present_blobs, "bytes": item.present_bytes},
            }
            for item in published
        ],
    }
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
