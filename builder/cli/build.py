"""`build assemble` and `build publish`: from a profile to images in layouts, archives and registries."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from builder import papers
from builder.assemble import Engine
from builder.cli.context import Context
from builder.cli.engine import engine_of, engine_options
from builder.cli.options import common, format_option, lock_option, plain_http_option, profile_argument
from builder.cli.report import delivery_document, delivery_lines
from builder.cli.work import Work, base_repository
from builder.errors import UsageError
from builder.image import Assembled
from builder.lock import Lock
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.places.delivery import Delivered, Sink
from builder.places.destination import DEFAULT_TAG, Destination, Folder, Repository
from builder.progress import counted, human_size
from builder.signing import Signer

if TYPE_CHECKING:
    from builder.cli.beside import Models

attach_option = click.option(
    "--attach/--no-attach",
    "attaching",
    default=True,
    show_default=True,
    help="Whether lock, profile, SBOMs and provenance travel with the image.",
)


def _signer(_: click.Context, __: click.Parameter, value: str | None) -> Signer | None:
    return None if value is None else Signer.parse(value)


sign_option = click.option(
    "--sign",
    "signer",
    metavar="TOOL",
    callback=_signer,
    help="Sign the image in each registry by `cosign` or `notation`; options may follow: 'cosign --key cosign.key'.",
)


@click.command(
    help="Make the images of PROFILE and their SOCI index in an OCI layout, without publishing. The lock has to be there.",
    epilog="Example: build assemble profiles/ocr.yaml -o oci:/var/tmp/ocr:test",
)
@profile_argument
@click.option("-o", "--output", metavar="oci:DIR[:TAG]", help="The layout.  [default: oci:out/NAME]")
@attach_option
@engine_options
@plain_http_option
@lock_option
@format_option
@common
def assemble(
    context: Context,
    profile: Path,
    output: str | None,
    attaching: bool,
    engine: dict[str, Any] | None,
    relock: bool,
    form: str,
) -> None:
    """Assembles to one layout."""
    work = Work.open(context, profile)
    lock = work.current_lock(relock)
    destination = Destination.parse(output) if output else Folder(Path("out", lock.name))
    image, published = _published(work, lock, [destination], attaching, engine=engine_of(context, engine))
    _report(context, lock, image, published, form)


@click.command(
    help="Publish PROFILE: make its lock if it has none, take every layer from the store or pack it, index the image for "
    "lazy starting, and put it into each DESTINATION: a registry `HOST/REPOSITORY[:TAG]`, an OCI layout `oci:DIR[:TAG]` or an "
    "archive `oci-archive:FILE[:TAG]`. What is there already is not sent again. The digest is printed.",
    epilog="Example: build publish profiles/ocr.yaml localhost:5000/ocr:v1 localhost:5000/ocr:latest",
)
@profile_argument
@click.argument("destinations", nargs=-1, metavar="[DESTINATION]...")
@click.option(
    "--mount-from", multiple=True, metavar="REPOSITORY", help="A repository of the same registry to take blobs from."
)
@attach_option
@sign_option
@engine_options
@plain_http_option
@lock_option
@format_option
@common
def publish(
    context: Context,
    profile: Path,
    destinations: tuple[str, ...],
    mount_from: tuple[str, ...],
    attaching: bool,
    signer: Signer | None,
    engine: dict[str, Any] | None,
    relock: bool,
    form: str,
) -> None:
    """Publishes to all destinations."""
    work = Work.open(context, profile)
    parsed = [Destination.parse(text) for text in destinations] or [_default(work)]
    if signer:
        _check_signer(signer, parsed, context)
    lock = work.current_lock(relock, make=True)
    image, published = _published(work, lock, parsed, attaching, mount_from, engine_of(context, engine))
    if signer:
        _sign(signer, image.documents.top.digest, parsed, context)
    _report(context, lock, image, published, form)


def _published(
    work: Work,
    lock: Lock,
    destinations: Sequence[Destination],
    attaching: bool,
    mount_from: Sequence[str] = (),
    engine: Engine | None = None,
) -> tuple[Assembled, tuple[Delivered, ...]]:
    from builder.places.opening import open_sinks
    from builder.publish import DamagedError, Publishing

    context = work.context
    cached = (context.settings.cache.at,) if context.settings.cache else ()
    mount_from = (*mount_from, *base_repository(work.loaded), *work.artifacts, *cached)
    if work.unsent(lock):
        _ = work.cache  # settings that cannot be meant are told before anything is made
    tagged = [named if named.tag or named.digest else named.tagged(DEFAULT_TAG) for named in destinations]
    with context.store.in_use():  # from the first layer to the last copy
        for attempt in range(2):
            sinks = open_sinks(tagged, context, mount_from)
            try:
                models = _models(work, lock, sinks, mount_from)
                with Publishing(context.store, sinks, context.progress, context.settings.jobs) as publishing:
                    if models:
                        models.begin(publishing)
                    image = work.assemble(lock, publishing.ready, engine)
                    attached = _papers(work, lock, image) if attaching else ()
                    done = (
                        models.finish(publishing, image, attached, attaching)
                        if models
                        else publishing.finish(image, attached)
                    )
                work.share(lock)  # what is published can be mounted from there
                return image, done
            except DamagedError as error:
                if attempt:
                    raise
                context.progress.note(f"{error}; it is made again")
    raise AssertionError("the second attempt returns or raises")


def _models(work: Work, lock: Lock, sinks: Sequence[Sink], mount_from: Sequence[str]) -> Models | None:
    if not lock.models:
        return None
    from builder.cli.beside import Models  # it takes long to import, and few profiles have models

    return Models(work, lock, sinks, mount_from)


def _papers(work: Work, lock: Lock, image: Assembled) -> Sequence[tuple[Descriptor, bytes]]:
    """The blobs and manifests of what travels with the images."""
    return papers.all_of(lock, image, work.loaded, work.context.store, work.fetcher.ensure)


def _check_signer(signer: Signer, destinations: Sequence[Destination], context: Context) -> None:
    """What cannot be signed is said before anything is made."""
    for named in destinations:
        if not isinstance(named, Repository):
            raise UsageError(
                f"{named}: only what is in a registry can be signed", hint="leave out --sign, or this place"
            )
    signer.check(context.environ)


def _sign(signer: Signer, digest: Digest, destinations: Sequence[Destination], context: Context) -> None:
    for name in dict.fromkeys(named.name for named in destinations if isinstance(named, Repository)):
        signer.sign(str(name), digest, context.environ, plain_http=context.plain_http or name.is_loopback)
        context.progress.note(f"{name}: signed by {signer.program}")


def _default(work: Work) -> Destination:
    """What the profile says, relative to its folder; else `oci:out/NAME` here."""
    profile = work.loaded.profile
    if profile.publish.to:
        named = Destination.parse(profile.publish.to)
        return Folder(work.loaded.root / named.path, tag=named.tag) if isinstance(named, Folder) else named
    return Folder(Path("out", profile.name))


def _report(context: Context, lock: Lock, image: Assembled, published: Sequence[Delivered], form: str) -> None:
    for platform in image.documents.unindexed if lock.soci.enabled else ():
        why = f"no layer has {human_size(lock.soci.min_layer_size)}"
        if lock.compression and lock.compression.kind == "zstd":
            why = "there are no spans for layers of zstd"
        context.progress.note(f"{platform}: {why}, so that no SOCI index is made; it is pulled whole")
    for each in image.images if lock.soci.enabled else ():
        for layer in each.layers:
            if layer.whole and layer.blob.size >= lock.soci.min_layer_size:
                context.progress.note(f"{each.platform}: {layer.name} is pulled whole: {layer.whole}")
    for each in image.images if lock.compression and lock.compression.kind == "estargz" else ():
        if bare := next((layer for layer in each.layers if not layer.blob.annotations), None):
            what = f"{bare.name} has no table, so that containerd pulls it and all layers above it whole"
            context.progress.note(f"{each.platform}: {what}")
    if lock.compression and lock.compression.kind == "estargz" and lock.start and lock.start.launcher:
        context.progress.note(
            "stargz-snapshotter fetches the same bytes several times for what reads ahead: write start.readahead: false"
        )
    layers = [layer for item in image.images for layer in item.layers]
    packed = sum(layer.packed for layer in layers)
    names = dict(_names(image, lock))
    for item in published:
        own = item.digest == image.documents.top.digest
        what = f"{counted(len(layers), 'layer')}, {packed} of them packed now; " if own else ""
        for line in delivery_lines(item, names, what):
            context.progress.note(line)
    if form == "text":
        click.echo(f"{image.documents.top.digest}")
        return
    document = {
        "digest": str(image.documents.top.digest),
        **({"models": {model.name: model.manifest for model in lock.models}} if lock.models else {}),
        "platforms": {
            str(item.platform): [
                {"name": layer.name, "digest": str(layer.blob.digest), "size": layer.blob.size, "packed": layer.packed}
                for layer in item.layers
            ]
            for item in image.images
        },
        "destinations": [document for item in published for document in delivery_document(item, names)],
    }
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _names(image: Assembled, lock: Lock) -> Iterator[tuple[Digest, str]]:
    """What the blobs of the images and their models are, for people."""
    for model in lock.models:
        for file in model.published:
            yield Digest(file.sha256), f"model {model.name}: {file.path}"
    for item in image.images:
        yield Digest.of(item.config), f"configuration of {item.platform}"
        for layer in item.layers:
            yield layer.blob.digest, layer.name
            if layer.ztoc:
                yield layer.ztoc.digest, f"ztoc of {layer.name}"
