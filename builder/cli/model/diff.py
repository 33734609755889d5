"""`build model diff`: what differs between two published models."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

import click

from builder.cli.context import Context
from builder.cli.options import common, format_option, plain_http_option
from builder.layers.untar import readable
from builder.models.artifact import open_artifact, read_config, read_index
from builder.models.compare import (
    ModelComparison,
    ModelFileChange,
    ModelSide,
    TensorChange,
    compare,
    settled,
    unsettled,
)
from builder.models.values import ModelFile, Tensor
from builder.places.opening import open_source
from builder.progress import human_size

_SHOWN = 20


@click.command(
    help="Show what is different from the model A to the model B, in registries `HOST/REPOSITORY[:TAG]`, OCI layouts "
    "`oci:DIR[:TAG]` or archives `oci-archive:FILE[:TAG]`: files, tensors, what is said of them, and how many bytes of B somebody "
    "needs who has A. Only documents are read; with --read the weights, too, of which they do not tell whether they differ.",
    epilog="Example: build model diff oci:out/models:bert-1 oci:out/models:bert-2",
)
@click.argument("a")
@click.argument("b")
@click.option("--exit-code", is_flag=True, help="End with 3 if there is a difference.")
@click.option("--read", is_flag=True, help="Fetch the small tensors of which nothing but their neighbourhood differs.")
@click.option("--all", "everything", is_flag=True, help=f"Show all tensors, not only the first {_SHOWN} of a file.")
@plain_http_option
@format_option
@common
def diff(context: Context, a: str, b: str, exit_code: bool, read: bool, everything: bool, form: str) -> int:
    """Compares two models; returns the exit status."""
    before, after = _side(a, context), _side(b, context)
    found = compare(before, after)
    if read and (names := unsettled(found)):
        found = _read(found, names, a, b, context)
    if form == "json":
        click.echo(json.dumps(_document(found, a, b), indent=2, ensure_ascii=False))
    else:
        for line in _lines(found, sum(file.size for file in after.artifact.files), None if everything else _SHOWN):
            click.echo(readable(line))
    return 3 if exit_code and not found.same else 0


def _read(found: ModelComparison, names: Sequence[str], a: str, b: str, context: Context) -> ModelComparison:
    """The comparison, with the bytes of these tensors looked at."""
    from builder.models.lazy import Model
    from builder.models.opening import published

    models = [Model(published(text, context), context.store, context.progress) for text in (a, b)]
    with models[0] as before, models[1] as after:
        patterns = [re.sub(r"([*?[])", r"[\1]", name) for name in names]
        for fetching in [model.prefetch(*patterns) for model in models]:
            fetching.wait()
        return settled(found, lambda name: before.tensor(name).bytes() != after.tensor(name).bytes())


def _side(text: str, context: Context) -> ModelSide:
    source, reference = open_source(text, context)
    artifact = open_artifact(source, reference)
    return ModelSide(artifact, read_index(source, artifact), read_config(source, artifact))


def _lines(found: ModelComparison, size: int, most: int | None) -> Iterator[str]:
    if found.same:
        yield "no difference"
        return
    for change in found.files:
        yield _file(change)
        yield from (f"    {_tensor(tensor)}" for tensor in change.tensors[:most])
        if most is not None and len(change.tensors) > most:
            yield f"    … and {len(change.tensors) - most} more (--all shows them)"
    for title, changes in (("configuration", found.config), ("annotations", found.annotations)):
        if changes:
            yield f"{title}:"
            yield from (f"  {change.path}: {' → '.join(change.texts())}" for change in changes)
    yield f"{human_size(found.missing)} of {human_size(size)} are new to whoever has the first"


def _file(change: ModelFileChange) -> str:
    if change.before is None and change.after is not None:
        return f"+ {change.path}  {human_size(change.after.size)}"
    if change.after is None and change.before is not None:
        return f"- {change.path}  {human_size(change.before.size)}"
    assert change.before is not None
    assert change.after is not None
    sizes = human_size(change.before.size)
    if change.before.size != change.after.size:
        sizes += f" → {human_size(change.after.size)}"
    return f"~ {change.path}  {sizes}, {human_size(change.missing)} of it new"


def _tensor(change: TensorChange) -> str:
    if change.before is None and change.after is not None:
        return f"+ {change.name}  {_kind(change.after)}"
    if change.after is None and change.before is not None:
        return f"- {change.name}  {_kind(change.before)}"
    assert change.before is not None
    assert change.after is not None
    if "dtype" in change.what or "shape" in change.what:
        return f"~ {change.name}  {_kind(change.before)} → {_kind(change.after)}"
    return f"~ {change.name}  {'bytes' if 'bytes' in change.what else 'perhaps: its chunk differs'}"


def _kind(tensor: Tensor) -> str:
    return f"{tensor.dtype} {' x '.join(map(str, tensor.shape)) or 'scalar'}"


def _document(found: ModelComparison, a: str, b: str) -> dict[str, object]:
    return {
        "a": a,
        "b": b,
        "same": found.same,
        "missing": found.missing,
        "files": [
            {
                "path": change.path,
                "a": _file_document(change.before),
                "b": _file_document(change.after),
                "missing": change.missing,
                "tensors": [
                    {
                        "name": tensor.name,
                        "a": _tensor_document(tensor.before),
                        "b": _tensor_document(tensor.after),
                        "what": list(tensor.what),
                    }
                    for tensor in change.tensors
                ],
            }
            for change in found.files
        ],
        "config": [change.document() for change in found.config],
        "annotations": [change.document() for change in found.annotations],
    }


def _file_document(file: ModelFile | None) -> dict[str, object] | None:
    return {"size": file.size, "digest": f"sha256:{file.sha256}"} if file else None


def _tensor_document(tensor: Tensor | None) -> dict[str, object] | None:
    return {"dtype": tensor.dtype, "shape": list(tensor.shape)} if tensor else None
