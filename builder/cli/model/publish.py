"""`build model publish`: files of a model, wherever they come from, as an artifact in registries, layouts and archives."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Literal

import click

from builder.cli.context import Context
from builder.cli.means import means_of
from builder.cli.options import common, existing, format_option, plain_http_option
from builder.cli.report import delivery_document, delivery_lines
from builder.errors import BuilderError, UsageError
from builder.models.artifact import EncodedModel, encode
from builder.models.describe import PRECISIONS, Description
from builder.models.early import Early
from builder.models.image import ModelImage, image_of, publish_image
from builder.models.locking import describe, lock_models, materialise
from builder.models.publish import publish as publish_model
from builder.models.scanning import model_index
from builder.models.sources import Means
from builder.models.values import INDEX_PATH
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.places.delivery import Delivered, Sink
from builder.places.destination import DEFAULT_TAG, Destination, is_tag
from builder.places.opening import open_sinks
from builder.places.remote import Remote
from builder.profile import Model
from builder.profile.models import scheme_of
from builder.progress import counted

_NAME = re.compile(r"[a-z0-9]+(?:[._-][a-z0-9]+)*")


@click.command(
    help="Publish the model that SOURCE gives: a file or folder, `https://HOST/PATH`, `hf://ORGANISATION/REPOSITORY@COMMIT`, "
    "`pypi://PROJECT==VERSION#PATH/IN/WHEEL` or `oci://HOST/REPOSITORY:TAG`. It becomes a CNCF ModelPack, one file a layer, in "
    "each DESTINATION: a registry `HOST/REPOSITORY[:TAG]`, an OCI layout `oci:DIR[:TAG]` or an archive `oci-archive:FILE[:TAG]`. "
    "What is there already is not sent again. The same files and words make the same digest, which is printed.",
    epilog="Example: build model publish ./bert localhost:5000/models:bert --license Apache-2.0",
)
@click.argument("source")
@click.argument("destinations", nargs=-1, required=True, metavar="DESTINATION...")
@click.option(
    "--include", multiple=True, metavar="GLOB", help="Take these files only; also what could run code, by its suffix."
)
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these files out.")
@click.option(
    "--precision", type=click.Choice(list(PRECISIONS)), help="Convert the weights of safetensors files first."
)
@click.option(
    "--allow-overflow",
    type=click.Choice(["clamp"]),
    help="Make numbers that do not fit the --precision the largest ones that do, instead of failing.",
)
@click.option("--name", help="What the model is called.  [default: by its source]")
@click.option("--version", help="Its version.")
@click.option("--title", help="Its title, for people.")
@click.option("--description", help="What it is, in a sentence.")
@click.option("--license", "licenses", multiple=True, metavar="SPDX", help="A licence of it.")
@click.option("--annotation", "annotations", multiple=True, metavar="KEY=TEXT", help="An annotation of its manifest.")
@click.option(
    "--image",
    "with_image",
    is_flag=True,
    help="Publish it a second time, as an image of /models under TAG-image, for nodes that mount nothing but images.",
)
@click.option(
    "--mount-from", multiple=True, metavar="REPOSITORY", help="A repository of the same registry to take blobs from."
)
@plain_http_option
@format_option
@common
def publish(
    context: Context,
    source: str,
    destinations: tuple[str, ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    precision: str | None,
    allow_overflow: Literal["clamp"] | None,
    name: str | None,
    licenses: tuple[str, ...],
    annotations: tuple[str, ...],
    with_image: bool,
    mount_from: tuple[str, ...],
    form: str,
    **said: str | None,
) -> None:
    """Publishes one model to all destinations."""
    places = [
        place if place.tag or place.digest else place.tagged(DEFAULT_TAG)
        for place in map(Destination.parse, destinations)
    ]
    second = [_of_image(place) for place in places] if with_image else []
    if allow_overflow and not precision:
        raise UsageError(
            "--allow-overflow is about the numbers of a --precision", hint="add --precision fp16, or leave it out"
        )
    root, text = _rooted(source)
    model = Model(
        name=_checked(name or _name_of(source)),
        source=text,
        include=include,
        exclude=exclude,
        precision=precision,
        overflow=allow_overflow,
        licenses=licenses,
    )
    words = {key: value for key, value in said.items() if value}
    sinks = open_sinks(places, context, mount_from)
    jobs = context.settings.jobs
    # what somebody knows to be there, to be mounted, is not worth a byte
    with context.store.in_use(), Early(sinks, 0 if mount_from else jobs) as early:
        means = replace(means_of(context, root), early=early.begin)
        made = _made(model, means, jobs, words, dict(map(_annotation, annotations)))
        _tell_what_moves(sinks, made.manifest.digest, context)
        published = publish_model(made, sinks, context.progress, jobs, store=context.store)
        image, also = _published_image(made, open_sinks(second, context, mount_from), context)
    _report(context, made, image, published, also, form)


def _made(model: Model, means: Means, jobs: int, words: dict[str, str], annotations: dict[str, str]) -> EncodedModel:
    (locked,) = lock_models([model], {}, means)
    files = materialise(model, locked, means)
    description: Description = replace(describe(locked), annotations=annotations, **words)  # type: ignore[arg-type]
    return encode(files, model_index(files, means.store, means.progress, jobs), description)


def _published_image(
    made: EncodedModel, sinks: Sequence[Sink], context: Context
) -> tuple[ModelImage | None, tuple[Delivered, ...]]:
    if not sinks:
        return None, ()
    image = image_of(made, context.store, context.progress, context.settings.jobs)
    return image, publish_image(image, sinks, context.progress, context.settings.jobs)


def _rooted(source: str) -> tuple[Path, str]:
    """A source as a profile in the folder `root` would say it: a path that the user gives may lie anywhere, and be a symlink."""
    if scheme_of(source):
        return Path(), source
    from builder.models.sources.local import missing_hint

    path = Path(os.path.realpath(existing(Path(source), missing_hint(source))))
    return (path.parent, path.name) if path.name else (path, ".")


def _name_of(source: str) -> str:
    """The last part of the place that a model comes from."""
    if scheme_of(source) is None:
        words = os.path.basename(os.path.abspath(source))
    else:
        before = re.split(r"[@#]|==", source.partition("://")[2])[0].rstrip("/")
        words = before.rpartition("/")[2].partition(":")[0]
    return re.sub(r"[^a-z0-9]+", "-", words.lower()).strip("-")


def _checked(name: str) -> str:
    if not _NAME.fullmatch(name):
        raise UsageError(
            f"{name!r} is no name of a model",
            hint="give one with --name: lower-case letters, digits and single . _ - between them",
        )
    return name


def _annotation(text: str) -> tuple[str, str]:
    key, equals, value = text.partition("=")
    if not key or not equals:
        raise UsageError(f"--annotation {text!r}: no annotation", hint="write KEY=TEXT")
    return key, value


def _of_image(named: Destination) -> Destination:
    tag = f"{named.tag}-image"
    if not is_tag(tag):
        raise UsageError(f"{named}: {tag!r} is too long for a tag", hint="choose a shorter tag")
    return named.tagged(tag)


def _tell_what_moves(sinks: Sequence[Sink], digest: Digest, context: Context) -> None:
    """Says which tags stand for something else now: nobody overwrites one without hearing of it."""
    for sink in sinks:
        for tag in sink.tags:
            with suppress(BuilderError):  # what is wrong with the place is told when it is written to
                before = sink.target.find(tag) if isinstance(sink.target, Layout | Remote) else None
                if before is not None and before.digest != digest:
                    context.progress.note(f"{sink.name}:{tag}: stood for {before.digest}")


def _report(
    context: Context,
    made: EncodedModel,
    image: ModelImage | None,
    published: Sequence[Delivered],
    also: Sequence[Delivered],
    form: str,
) -> None:
    names = {descriptor.digest: local.file.path for descriptor, local in made.layers}
    names |= {made.index[0].digest: INDEX_PATH, made.config[0].digest: "configuration"}
    names |= {layer.digest: "layer of the image" for layer, _ in image.layers} if image else {}
    for item in (*published, *also):
        for line in delivery_lines(item, names, counted(len(made.layers), "file") + "; "):
            context.progress.note(line)
    if form == "text":
        click.echo(str(made.manifest.digest))
        return
    document = {
        "digest": str(made.manifest.digest),
        "image": str(image.index.descriptor.digest) if image else None,
        "files": [
            {"path": local.file.path, "size": local.file.size, "digest": str(descriptor.digest)}
            for descriptor, local in made.layers
        ],
        "destinations": [found for item in (*published, *also) for found in delivery_document(item, names)],
    }
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))
