"""`build start`: an image is started cold on the real stack, and every phase of it is measured."""

from __future__ import annotations

import os
from pathlib import Path

import click

from builder.cli.context import Context
from builder.cli.options import common, format_option, plain_http_option
from builder.cli.work import platform_name
from builder.coldstart import picture, state, tools, values
from builder.coldstart.gateway import Gateway
from builder.coldstart.images import Blobs, Startable, look
from builder.coldstart.measure import Wanted
from builder.coldstart.measure import start as start_once
from builder.coldstart.ready import Ready
from builder.coldstart.stack import stack
from builder.coldstart.tools import Snapshotter, Tools
from builder.coldstart.values import Measurement, Start
from builder.errors import FetchError, UsageError
from builder.oci.content import Source
from builder.places.opening import open_source

_STATE = Path("/var/lib/layerwright/starts")


def _ready(_: click.Context, __: click.Parameter, value: str) -> Ready:
    return Ready.parse(value)


@click.command(
    help="Start the image REF cold, as a node does that never saw it: containerd with a lazy snapshotter (or overlayfs, "
    "which pulls everything first), in a state of their own that is gone afterwards. Each phase is told apart with its "
    "seconds, bytes and requests. REF is a registry `HOST/REPOSITORY[:TAG]`, an OCI layout or an archive; COMMAND "
    "replaces the image's arguments. Needs root, and the programs that `build doctor` lists.",
    epilog="Example: build start -n 3 localhost:5000/ocr:v1 --ready http://127.0.0.1:8080/healthz",
)
@click.argument("ref")
@click.argument("command", nargs=-1, metavar="[-- COMMAND]...")
@click.option(
    "--snapshotter",
    type=click.Choice(["soci", "overlayfs"]),
    default="soci",
    show_default=True,
    help="What mounts layers.",
)
@click.option("-n", "--count", type=click.IntRange(1, 100), default=1, show_default=True, help="How many starts.")
@click.option("--again", is_flag=True, help="After each, start it once more, now that the image is there.")
@click.option(
    "--ready",
    default="exit",
    show_default=True,
    callback=_ready,
    metavar="WHEN",
    help="When it has started: `exit`, `log:REGEX` or an address that answers.",
)
@click.option(
    "--timeout", type=click.FloatRange(1, 86400), default=600, show_default=True, help="Seconds for one start."
)
@click.option("--entrypoint", default="", metavar="PROGRAM", help="What runs instead of the image's entrypoint.")
@click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable for the program.")
@click.option("--gpus", default="", metavar="N,...", help="The GPUs that the program gets, by their numbers.")
@click.option("--platform", default=None, help="The platform to start.  [default: that of this machine]")
@click.option(
    "--state", "folder", type=click.Path(file_okay=False, path_type=Path), default=_STATE, show_default=True,
    help="Where the stack keeps what it has, for as long as it runs.",
)  # fmt: skip
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw the median start into this file, too."
)
@plain_http_option
@format_option
@common
def start(
    context: Context,
    ref: str,
    command: tuple[str, ...],
    snapshotter: Snapshotter,
    count: int,
    again: bool,
    ready: Ready,
    timeout: float,
    entrypoint: str,
    env: tuple[str, ...],
    gpus: str,
    platform: str | None,
    folder: Path,
    svg: Path | None,
    form: str,
) -> None:
    """Measures, and shows."""
    if os.geteuid() != 0:
        raise UsageError("mounting layers needs root", hint="run it as root: sudo build start ...")
    found = tools.find(context.environ, snapshotter)
    source, reference = open_source(ref, context)
    wanted_platform = platform or f"linux/{platform_name()}"
    image = look(source, reference, wanted_platform)
    wanted = Wanted(
        str(image.top.digest),
        wanted_platform,
        ready,
        timeout,
        image.arguments(command, entrypoint),
        tuple(_variable(text) for text in env),
        gpus,
    )
    for left in state.sweep(folder):
        context.progress.note(f"{left}: left by a start that was killed; cleared away")
    starts: list[Start] = []
    for number in range(count):
        starts += _measured(context, source, image, wanted, found, snapshotter, folder, again)
        context.progress.note(f"start {number + 1} of {count}: {starts[-1 - again].seconds:.2f} s")
    measurement = Measurement(
        values.VERSION,
        ref,
        str(image.top.digest),
        wanted_platform,
        snapshotter,
        sum(layer.size for layer in image.layers),
        ready.text,
        wanted.arguments,
        tuple(starts),
    )
    if svg:
        svg.write_text(picture.svg(measurement), encoding="utf-8")
    if form == "json":
        click.echo(values.encode(measurement), nl=False)
    else:
        click.echo(picture.text(measurement))


def _measured(
    context: Context,
    source: Source,
    image: Startable,
    wanted: Wanted,
    found: Tools,
    snapshotter: Snapshotter,
    folder: Path,
    again: bool,
) -> list[Start]:
    """One start from nothing, and another one of the image that is there then if `again`."""
    with (
        state.state(folder) as place,
        Gateway(source, Blobs(source, image.sizes)) as gateway,
        stack(place, found, snapshotter, gateway.address, wanted.platform, context.environ) as running,
    ):
        starts = [start_once(running, gateway, wanted, lambda url: _answers(context, url))]
        if again:
            starts.append(start_once(running, gateway, wanted, lambda url: _answers(context, url), again=True))
    return starts


def _answers(context: Context, url: str) -> bool:
    try:
        with context.client.send("GET", url, read_timeout=1.0) as answer:
            return 200 <= answer.status < 300
    except FetchError:
        return False


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--env {text}: no NAME=VALUE", hint="write it as --env PORT=8080")
    return name, value
