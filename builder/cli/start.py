"""`build start`: an image is started cold on the real stack, and every phase of it is measured."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import click

from builder import profile as profiles
from builder.cli.context import Context
from builder.cli.options import common, existing, format_option, plain_http_option
from builder.cli.starting import Options, Starter, start_options
from builder.coldstart import analysis, picture, values
from builder.coldstart.tools import Snapshotter
from builder.coldstart.values import Measurement, Start, Summary
from builder.errors import CheckError, UsageError
from builder.oci.files import write
from builder.profile.forms import Duration


@click.command(
    help="Start the image REF cold, as a node does that never saw it: containerd with a lazy snapshotter (or overlayfs, "
    "which pulls everything first), in a state of their own that is gone afterwards. Each phase is told apart with its "
    "seconds, bytes and requests. REF is a registry `HOST/REPOSITORY[:TAG]`, an OCI layout or an archive; COMMAND "
    "replaces the image's arguments. Needs root, and the programs that `build doctor` lists.",
    epilog="Example: build start oci:out/ocr --model /models/ocr oci:out/ocr:model-ocr "
    "--ready http://127.0.0.1:8080/healthz",
)
@start_options
@click.option(
    "--snapshotter",
    type=click.Choice(["soci", "stargz", "overlayfs"]),
    default="soci",
    show_default=True,
    help="What mounts layers.",
)  # fmt: skip
@click.option("-n", "--count", type=click.IntRange(1, 100), default=1, show_default=True, help="How many starts.")
@click.option("--again", is_flag=True, help="After each, start it once more, now that the image is there.")
@click.option(
    "--budget",
    metavar="PROFILE|NAME=TIME,...",
    help="How long it may take, by a profile's `budget` or as total=20s,pull=5s; more than that ends with 3.",
)
@click.option(
    "--svg", type=click.Path(dir_okay=False, path_type=Path), help="Draw the median start into this file, too."
)
@plain_http_option
@format_option
@common
def start(
    context: Context,
    options: Options,
    snapshotter: Snapshotter,
    count: int,
    again: bool,
    budget: str | None,
    svg: Path | None,
    form: str,
) -> int:
    """Measures, and shows; returns the exit status."""
    limits = _limits(budget) if budget else {}
    starter = Starter.prepare(context, options, snapshotter)
    starts: list[Start] = []
    for number in range(count):
        with starter.stack() as (running, gateway):
            starts.append(starter.start(running, gateway))
            context.progress.note(f"start {number + 1} of {count}: {starts[-1].seconds:.2f} s")
            if again:
                starts.append(starter.start(running, gateway, again=True))
    image, wanted = starter.image, starter.wanted
    measurement = Measurement(
        values.VERSION,
        options.ref,
        wanted.digest,
        wanted.platform,
        snapshotter,
        sum(layer.size for layer in image.layers),
        wanted.ready.text,
        wanted.arguments,
        tuple(starts),
    )
    if svg:
        write(svg, picture.svg(measurement).encode())
    if form == "json":
        click.echo(values.encode(measurement), nl=False)
    else:
        click.echo(picture.text(measurement))
    summary = Summary.of(measurement.cold())
    if strange := analysis.unknown(summary, limits):
        there = ", ".join(summary.phases)
        raise CheckError(
            f"budget: no phase is called {', '.join(strange)}", hint=f"there were {there}; and total, pull, model"
        )
    over = analysis.over(summary, limits)
    for name, took, limit in over:
        context.progress.note(f"over budget: {name} took {took:.2f} s of {limit:g} s")
    return 3 if over else 0


def _limits(text: str) -> Mapping[str, float]:
    """Seconds by the names of phases, out of a profile or out of the text itself."""
    if "=" not in text:
        found = profiles.read(existing(Path(text))).profile.budget
        if found is None or not found.limits:
            raise UsageError(f"{text}: it has no budget", hint="add one, such as budget: {total: 20s}")
        return found.limits
    try:
        pairs = [part.split("=", 1) for part in text.split(",")]
        return {name.strip(): float(Duration.parse(limit.strip())) for name, limit in pairs}
    except ValueError as error:
        raise UsageError(f"--budget {text}: {error}", hint="write it as total=20s,pull=5s") from error
