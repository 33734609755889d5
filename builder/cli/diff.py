"""`build diff`: what is different in two images, locks or profiles."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path

import click

from builder import lock as locks
from builder import profile as profiles
from builder.cli.context import Context
from builder.cli.options import common, existing, format_option, plain_http_option
from builder.differ import (
    Comparison,
    FileChange,
    LayerSide,
    LockSide,
    PlatformComparison,
    Side,
    VersionChange,
    compare,
    image_side,
    lock_side,
    profile_side,
)
from builder.documents.changes import Change
from builder.layers.untar import readable
from builder.places.opening import open_source
from builder.progress import human_size

_SHOWN = 40


@click.command(
    help="Show what is different from A to B: images (`HOST/REPOSITORY[:TAG]`, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`), locks "
    "(FILE.json) or profiles (FILE.yaml, with the lock beside it). Layers that both images have are not read.",
    epilog="Example: build diff oci:out/ocr:v1 oci:out/ocr:v2",
)
@click.argument("a")
@click.argument("b")
@click.option("--exit-code", is_flag=True, help="End with 3 if there is a difference.")
@click.option("--no-files", is_flag=True, help="Read no layer of an image: only settings and layers are compared.")
@click.option("--all", "everything", is_flag=True, help=f"Show all files, not only the first {_SHOWN}.")
@plain_http_option
@format_option
@common
def diff(context: Context, a: str, b: str, exit_code: bool, no_files: bool, everything: bool, form: str) -> int:
    """Compares two sides; returns the exit status."""
    before, after = _side(a, context), _side(b, context)
    if isinstance(before, LockSide) != isinstance(after, LockSide):
        context.progress.note("an image and a lock: packages, wheels and settings are compared, files are not")
    with compare(before, after, context.progress, read_layers=not no_files) as comparison:
        if form == "json":
            _print_json(comparison, a, b)
        else:
            for line in _lines(comparison, None if everything else _SHOWN):
                click.echo(readable(line))
        return 3 if exit_code and not comparison.same else 0


def _side(text: str, context: Context) -> Side:
    """A file is a lock or a profile by the end of its name, everything else an image."""
    path = Path(text)
    if path.suffix in (".yaml", ".yml"):
        loaded = profiles.read(existing(path))
        place = path.with_suffix(".lock.json")
        lock = _lock(place) if place.exists() else None
        if lock and lock.profile != str(loaded.profile.digest):
            context.progress.note(f"{place} is stale: it is compared as it is")
        return profile_side(loaded.profile, lock)
    if path.suffix == ".json":
        return lock_side(_lock(existing(path)))
    source, reference = open_source(text, context)
    return image_side(source, source.resolve(reference))


def _lock(path: Path) -> locks.Lock:
    try:
        return locks.parse(path.read_text(encoding="utf-8"), str(path))
    except (OSError, UnicodeDecodeError) as error:
        raise locks.LockError(f"{path}: cannot be read: {error}") from error


def _lines(comparison: Comparison, most: int | None) -> Iterator[str]:
    if comparison.same:
        yield "no difference"
        return
    yield from (f"- platform {name}" for name in comparison.missing)
    yield from (f"+ platform {name}" for name in comparison.extra)
    yield from _section("values", [_change(change) for change in comparison.values])
    yield from _files(comparison.files, most)
    for platform in comparison.platforms:
        if not platform.same:
            yield platform.platform
            yield from (f"  {line}" for line in _platform(platform, most))


def _platform(platform: PlatformComparison, most: int | None) -> Iterator[str]:
    yield from _section("packages", [_version(change) for change in platform.packages])
    yield from _section("wheels", [_version(change) for change in platform.wheels])
    yield from _section("settings", [_change(change) for change in platform.settings])
    if platform.sizes:
        shared = f"{len(platform.shared)} shared ({human_size(_size(platform.shared))})"
        yield f"layers: {shared}; in all {human_size(platform.sizes[0])} → {human_size(platform.sizes[1])}"
        for sign, layers in (("-", platform.before), ("+", platform.after)):
            for layer in layers:
                yield f"  {sign} {layer.name or 'layer'}  {layer.blob.digest.short}  {human_size(layer.blob.size)}"
    if platform.files:
        yield from _files(platform.files(), most)


def _section(title: str, lines: Sequence[str]) -> Iterator[str]:
    if lines:
        yield f"{title}:"
        yield from (f"  {line}" for line in lines)


def _version(change: VersionChange) -> str:
    if change.before is None:
        return f"+ {change.name} {change.after}"
    if change.after is None:
        return f"- {change.name} {change.before}"
    return f"~ {change.name} {change.before} → {change.after}"


def _change(change: Change) -> str:
    return f"{change.path}: {' → '.join(change.texts())}"


def _files(found: Sequence[FileChange] | Iterator[FileChange], most: int | None) -> Iterator[str]:
    """The changes of files; of many the first, and how many more there are."""
    changes = iter(found)
    shown = list(islice(changes, most)) if most is not None else changes
    started = False
    for change in shown:
        if not started:
            started = True
            yield "files:"
        yield f"  {_file(change)}"
    if more := sum(1 for _ in changes):
        yield f"  … and {more} more (--all shows them)"


def _file(change: FileChange) -> str:
    path = f"/{change.path.lstrip('/')}"
    if change.change == "added":
        return f"+ {path}  {human_size(change.after or 0)}"
    if change.change == "removed":
        return f"- {path}  {human_size(change.before or 0)}"
    sizes = ""
    if change.before != change.after:
        sizes = f"  {human_size(change.before or 0)} → {human_size(change.after or 0)}"
    return f"~ {path}  {', '.join(change.what)}{sizes}"


def _size(layers: Sequence[LayerSide]) -> int:
    return sum(layer.blob.size for layer in layers)


def _print_json(comparison: Comparison, a: str, b: str) -> None:
    """One JSON object; files come one at a time, however many they are."""
    head: dict[str, object] = {
        "a": a,
        "b": b,
        "same": comparison.same,
        "missing": list(comparison.missing),
        "extra": list(comparison.extra),
        "values": [change.document() for change in comparison.values],
        "files": [_file_document(change) for change in comparison.files],
    }
    click.echo(json.dumps(head, indent=2, ensure_ascii=False)[:-2] + ',\n  "platforms": {', nl=False)
    for number, platform in enumerate(comparison.platforms):
        document = {
            "packages": [_version_document(change) for change in platform.packages],
            "wheels": [_version_document(change) for change in platform.wheels],
            "settings": [change.document() for change in platform.settings],
            "size": list(platform.sizes) if platform.sizes else None,
            "layers": {
                "shared": [_layer_document(layer) for layer in platform.shared],
                "a": [_layer_document(layer) for layer in platform.before],
                "b": [_layer_document(layer) for layer in platform.after],
            },
        }
        click.echo("," if number else "")
        name = json.dumps(platform.platform)
        click.echo(f"{name}: {json.dumps(document, ensure_ascii=False)[:-1]}, ", nl=False)
        if platform.files is None:
            click.echo('"files": null}', nl=False)
            continue
        click.echo('"files": [', nl=False)
        for index, change in enumerate(platform.files()):
            click.echo(("," if index else "") + "\n" + json.dumps(_file_document(change)), nl=False)
        click.echo("]}", nl=False)
    click.echo("\n}}")


def _version_document(change: VersionChange) -> dict[str, object]:
    return {"name": change.name, "a": change.before, "b": change.after}


def _layer_document(layer: LayerSide) -> dict[str, object]:
    return {"name": layer.name, "digest": str(layer.blob.digest), "size": layer.blob.size}


def _file_document(change: FileChange) -> dict[str, object]:
    path = change.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace")
    sizes = {"a": change.before, "b": change.after}
    return {"path": f"/{path.lstrip('/')}", "change": change.change, "what": list(change.what), "size": sizes}
