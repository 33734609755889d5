"""`build advise`: what would make a cold start shorter, by what was measured."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path

import click

from builder import profile as profiles
from builder.cli.context import Context
from builder.cli.options import common, format_option
from builder.coldstart import analysis, trace, values
from builder.coldstart.analysis import Advice
from builder.coldstart.values import Measurement, Summary
from builder.errors import BuilderError, UsageError
from builder.oci.files import write

_FILE = click.Path(exists=True, dir_okay=False, path_type=Path)


@click.command(
    help="Say what would make a start shorter, the largest gain first, from one or more MEASUREMENTs that `build start "
    "--format json` wrote of the same image (lazily, pulled first, with --again). With --profile, its budget says what is too "
    "long, and --apply writes into it what can be written.",
    epilog="Example: build advise lazy.json whole.json --profile profiles/ocr.yaml",
)
@click.argument("measurements", nargs=-1, required=True, type=_FILE, metavar="MEASUREMENT...")
@click.option("--profile", type=_FILE, help="The profile of the image.")
@click.option("--trace", "traced", type=_FILE, help="What the start reads, as `build trace` wrote it.")
@click.option("--apply", "applying", is_flag=True, help="Write into the profile what reads ahead.")
@format_option
@common
def advise(
    context: Context,
    measurements: tuple[Path, ...],
    profile: Path | None,
    traced: Path | None,
    applying: bool,
    form: str,
) -> None:
    """Analyses, advises, and applies."""
    found = [values.parse(path.read_bytes(), str(path)) for path in measurements]
    if len({measurement.digest for measurement in found}) > 1:
        raise UsageError("these are measurements of several images", hint="measure one image in several ways")
    if applying and not (profile and traced):
        raise UsageError("--apply needs the profile and the trace", hint="add --profile PROFILE --trace FILE")
    limits: Mapping[str, float] = {}
    if profile:
        budget = profiles.read(profile).profile.budget
        limits = budget.limits if budget else {}
    advice = analysis.advise(found, trace.parse(trace.read(traced), str(traced)) if traced else None)
    click.echo(_document(found, advice, limits) if form == "json" else _text(found, advice, limits))
    if applying and profile and traced:
        _apply(context, profile, traced, advice)


def _text(measurements: Sequence[Measurement], advice: Sequence[Advice], limits: Mapping[str, float]) -> str:
    lines = []
    for measurement in measurements:
        for title, starts in (("cold", measurement.cold()), ("again", measurement.again())):
            if starts:
                summary = Summary.of(starts)
                most = analysis.shares(summary)[0]
                lines.append(
                    f"{measurement.snapshotter}, {title}: ready after {summary.seconds.median:.2f} s; most of it, "
                    f"{most.share:.0%}, is {most.name} ({most.seconds:.2f} s)"
                )
        if measurement.cold():
            for name, took, limit in analysis.over(Summary.of(measurement.cold()), limits):
                lines.append(f"  over budget: {name} took {took:.2f} s of {limit:g} s")
    lines.append("")
    for item in advice:
        gain = "not measured" if item.gain is None else f"{item.gain:.1f} s less"
        lines += [f"{gain:>14}  {item.key}: {item.why}", f"{'':16}{item.how}"]
    if not advice:
        lines.append("nothing that was measured would help")
    return "\n".join(lines)


def _document(measurements: Sequence[Measurement], advice: Sequence[Advice], limits: Mapping[str, float]) -> str:
    document = {
        "measurements": [
            {
                "snapshotter": measurement.snapshotter,
                "kind": kind,
                "seconds": asdict(Summary.of(starts).seconds),
                "phases": [asdict(share) for share in analysis.shares(Summary.of(starts))],
                "over": [
                    {"name": name, "seconds": took, "limit": limit}
                    for name, took, limit in analysis.over(Summary.of(starts), limits)
                ],
            }
            for measurement in measurements
            for kind, starts in (("cold", measurement.cold()), ("again", measurement.again()))
            if starts
        ],
        "advice": [asdict(item) for item in advice],
    }
    return json.dumps(document, indent=2, ensure_ascii=False)


def _apply(context: Context, profile: Path, traced: Path, advice: Sequence[Advice]) -> None:
    """Adds what reads ahead to the end of the profile, whose own text and comments stay."""
    if not any(item.key == "readahead" for item in advice):
        context.progress.note("nothing to apply: reading ahead would not help")
        return
    if profiles.read(profile).profile.start:
        context.progress.note(f"{profile}: it has `start` already")
        return
    try:
        place = traced.resolve().relative_to(profile.resolve().parent)
    except ValueError as error:
        raise BuilderError(
            f"{traced} does not lie beside {profile}", hint=f"move it to {profile.with_suffix('.trace.json')}"
        ) from error
    text = profile.read_text(encoding="utf-8")
    added = f"{text.rstrip()}\n\nstart: {{trace: {json.dumps(str(place))}}}\n"
    try:
        write(profile, added.encode())
        profiles.read(profile)
    except BuilderError:
        write(profile, text.encode())  # its last line was not what it seemed
        raise
    context.progress.note(f"{profile}: added start.trace; now `build lock {profile}`")
