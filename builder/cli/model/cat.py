"""`build model cat`: the bytes of a file or a tensor of a published model, checked."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import click

from builder.cli.context import Context
from builder.cli.options import common, model_cache_option, plain_http_option
from builder.errors import UsageError
from builder.models.lazy import Model
from builder.models.opening import published
from builder.store import Store

_BLOCK = 1 << 20


@click.command(
    help="Write a file of the model REF to standard output, or with --tensor one tensor's bytes, of which only the chunks that "
    "they lie in are fetched. What is written was checked, and stays in the cache.",
    epilog="Example: build model cat localhost:5000/models/bert:v1 config.json",
)
@click.argument("ref")
@click.argument("path", required=False)
@click.option("--tensor", metavar="NAME", help="The tensor of that name, instead of a file.")
@model_cache_option
@plain_http_option
@common
def cat(context: Context, ref: str, path: str | None, tensor: str | None, cache: Path | None) -> None:
    """Writes bytes."""
    if (path is None) == (tensor is None):
        raise UsageError("name one file, or one tensor with --tensor", hint=f"`build model inspect {ref}` lists them")
    store = Store(cache.absolute()) if cache else context.store
    out = sys.stdout.buffer
    with Model(published(ref, context, store), store, context.progress) as model:
        if path is not None:
            with model.path(path).open("rb") as file:
                shutil.copyfileobj(file, out, _BLOCK)
        elif tensor is not None:
            data = model.tensor(tensor).bytes()
            for start in range(0, len(data), _BLOCK):
                out.write(data[start : start + _BLOCK])
        out.flush()
