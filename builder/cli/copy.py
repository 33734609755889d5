"""`build copy`: an image with everything that belongs to it, from one place to another."""

from __future__ import annotations

import json

import click

from builder.cli.context import Context
from builder.cli.options import common, format_option, plain_http_option
from builder.cli.report import delivery_document, delivery_lines
from builder.copying import copy as copy_to
from builder.errors import UsageError
from builder.oci.listing import REF_NAME
from builder.oci.spec import Descriptor
from builder.places.destination import DEFAULT_TAG, Destination, Repository, is_tag
from builder.places.opening import open_sinks, open_source


@click.command(
    help="Copy the image SRC to DST with everything that belongs to it: the index, all platforms, SOCI indexes, models, and "
    "what refers to any of them (SBOMs, locks, signatures, also those under cosign's tags). Each is a registry "
    "`HOST/REPOSITORY[:TAG]`, an OCI layout `oci:DIR[:TAG]` or an archive `oci-archive:FILE[:TAG]`. Digests stay as they "
    "are. It is complete, or an error; done again it goes on. Without a tag, DST gets that of SRC. The digest is printed.",
    epilog="Example: build copy localhost:5000/ocr:v1 oci-archive:ocr.tar:v1",
)
@click.argument("src")
@click.argument("dst")
@click.option("--no-referrers", is_flag=True, help="Leave out what refers to the image and its manifests.")
@click.option("--no-models", is_flag=True, help="Leave out the models that the image names.")
@click.option(
    "--mount-from", multiple=True, metavar="REPOSITORY", help="A repository of the same registry to take blobs from."
)
@plain_http_option
@format_option
@common
def copy(
    context: Context,
    src: str,
    dst: str,
    no_referrers: bool,
    no_models: bool,
    mount_from: tuple[str, ...],
    form: str,
) -> None:
    """Copies, and says what moved."""
    named, to = Destination.parse(src), Destination.parse(dst)
    source, reference = open_source(named, context)
    top = source.resolve(reference)
    if to.digest not in (None, top.digest):
        raise UsageError(f"{dst}: {src} is {top.digest}", hint="a copy has the digest of the original: name a tag")
    tag = to.tag or (None if to.digest else _tag_of(named, top))
    if tag is None and not isinstance(to, Repository):
        tag = DEFAULT_TAG  # a layout has to list it
    mounts = [*mount_from, *([str(named.place)] if isinstance(named, Repository) else [])]
    (sink,) = open_sinks([to.tagged(tag)], context, mounts)
    delivered = copy_to(
        source,
        top,
        sink,
        context.progress,
        context.settings.jobs,
        referrers=not no_referrers,
        models=not no_models,
    )
    for line in delivery_lines(delivered, {}):
        context.progress.note(line)
    if form == "text":
        click.echo(str(top.digest))
        return
    (document,) = delivery_document(delivered, {})
    click.echo(json.dumps(document, indent=2, ensure_ascii=False))


def _tag_of(named: Destination, top: Descriptor) -> str | None:
    """The tag by which the source was named, or which its layout lists; None if it was named by a digest."""
    if named.digest:
        return None
    listed = top.annotations.get(REF_NAME, "")
    if listed and is_tag(listed):
        return listed
    return named.tag or DEFAULT_TAG
