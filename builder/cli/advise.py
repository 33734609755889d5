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
from builder.documents.inserting import inserted
from builder.errors import BuilderError, UsageError
from builder.oci.files import write
from builder.profile import Profile

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
@click.option(
    "--apply",
    "applying",
    is_flag=True,
    help="Write into the profile what changes no program: what reads ahead, adaptive spans, an order, mounting side by side, "
    "bytecode.",
)
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
    read = profiles.read(profile).profile if profile else None
    limits = read.budget.limits if read and read.budget else {}
    advice = analysis.advise(found, trace.parse(trace.read(traced), str(traced)) if traced else None)
    if read:
        done = _done(read)
        advice = tuple(item for item in advice if item.key not in done)
    click.echo(_document(found, advice, limits) if form == "json" else _text(found, advice, limits))
    if applying and profile and read and traced:
        _apply(context, profile, read, traced, advice)


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


_WRITTEN: Mapping[str, tuple[str, str]] = {
    "readahead": ("start.trace", ""),
    "order": ("start.order", "own"),
    "adaptive-spans": ("publish.soci.spans", "adaptive"),
    "mount-parallel": ("publish.soci.mount", "parallel"),
    "bytecode": ("python.bytecode", "true"),
}
"""What `--apply` writes, by the keys of advice: a place in the profile, and what it says; `start.trace` is the trace."""


def _done(profile: Profile) -> set[str]:
    """Advice that a profile follows already."""
    start, soci = profile.start, profile.publish.soci
    found = {
        "readahead": start is not None and start.readahead,
        "order": start is not None and start.ordered,
        "adaptive-spans": soci.spans == "adaptive",
        "mount-parallel": soci.mount == "parallel",
        "bytecode": profile.python is not None and profile.python.bytecode is True,
    }
    return {key for key, done in found.items() if done}


def _apply(context: Context, path: Path, profile: Profile, traced: Path, advice: Sequence[Advice]) -> None:
    """Writes what changes no program into the profile at `path`, whose own text and comments stay."""
    wanted = [_WRITTEN[item.key] for item in advice if item.key in _WRITTEN and _fits(item.key, profile)]
    if not wanted:
        context.progress.note("nothing to apply: what would help is there already, or is not a matter of the profile")
        return
    try:
        place = traced.resolve().relative_to(path.resolve().parent)
    except ValueError as error:
        raise BuilderError(
            f"{traced} does not lie beside {path}", hint=f"move it to {path.with_suffix('.trace.json')}"
        ) from error
    if profile.start is None and ("start.trace", "") not in wanted and wanted != [_WRITTEN["bytecode"]]:
        wanted.append(("start.readahead", "false"))
        wanted.append(("start.trace", ""))
    before = text = path.read_text(encoding="utf-8")
    for where, value in sorted(wanted, key=lambda item: item[0] != "start.trace"):
        try:
            text = inserted(text, where.split("."), value or json.dumps(str(place)))
            context.progress.note(f"{path}: added {where}")
        except KeyError:
            context.progress.note(f"{path}: it has {where} already")
        except ValueError:
            context.progress.note(f"{path}: {where} cannot be added; write it yourself")
    try:
        write(path, text.encode())
        profiles.read(path)
    except BuilderError:
        write(path, before.encode())  # its text was not what it seemed
        raise
    if text != before:
        context.progress.note(f"now `build lock {path}`")


def _fits(key: str, profile: Profile) -> bool:
    if key in ("bytecode", "readahead"):
        return profile.python is not None
    publish = profile.publish
    indexed = publish.soci.enabled and publish.lazy != "estargz" and publish.compression != "zstd"
    if key == "adaptive-spans":
        return indexed and publish.compression != "none"  # plain layers have spans of one size
    return indexed or key != "mount-parallel"
