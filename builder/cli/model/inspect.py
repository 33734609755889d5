"""`build model inspect`: the files of a published model, what is said of it, and its tensors."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from typing import Any

import click

from builder.cli.context import Context
from builder.cli.options import common, format_option, plain_http_option
from builder.cli.table import table
from builder.layers.untar import readable
from builder.models.artifact import open_artifact, read_config, read_index
from builder.models.values import FileIndex, ModelArtifact, ModelIndex, Tensor
from builder.places.destination import Destination
from builder.places.opening import open_source
from builder.progress import human_size


@click.command(
    help="Show what is in the model REF, in a registry `HOST/REPOSITORY[:TAG]`, an OCI layout `oci:DIR[:TAG]` or an archive "
    "`oci-archive:FILE[:TAG]`: its files, and what is said of it. Only documents are read, no weights.",
    epilog="Example: build model inspect --tensors oci:out/models:bert",
)
@click.argument("ref")
@click.option("--tensors", is_flag=True, help="Show each tensor: name, type, shape, and where it is in its file.")
@plain_http_option
@format_option
@common
def inspect(context: Context, ref: str, tensors: bool, form: str) -> None:
    """Prints a model."""
    named = Destination.parse(ref)
    source, reference = open_source(named, context)
    artifact = open_artifact(source, reference)
    index, config = read_index(source, artifact), read_config(source, artifact)
    if form == "json":
        click.echo(json.dumps(_document(artifact, index, config, tensors), indent=2, ensure_ascii=False))
        return
    click.echo(f"{named}  {artifact.manifest.digest}\n")
    click.echo(_files(artifact, index))
    for line in _words(artifact, config):
        click.echo(readable(line))
    if index is None:
        click.echo("no index: parts of its files cannot be checked, so that it is pulled whole")
    elif tensors:
        for file in index.files:
            for text in _tensors(file):
                click.echo(text)


def _files(artifact: ModelArtifact, index: ModelIndex | None) -> str:
    indexed = {each.file.path: each for each in index.files} if index else {}
    rows = [
        _row(layer.media_type, file.path, file.size, file.sha256, indexed.get(file.path))
        for layer, file in artifact.layers
    ]
    total = ("in all", human_size(sum(file.size for file in artifact.files)), "", "", "", "")
    return table(("FILE", "SIZE", "DIGEST", "KIND", "CHUNKS", "TENSORS"), [*rows, total], right=(1, 4, 5))


def _row(media_type: str, path: str, size: int, sha256: str, index: FileIndex | None) -> tuple[str, ...]:
    kind = media_type.removeprefix("application/vnd.cncf.model.").removesuffix(".v1.raw")
    chunks = str(len(index.chunks)) if index else ""
    tensors = str(len(index.header.tensors)) if index and index.header else ""
    return readable(path), human_size(size), sha256[:12], kind, chunks, tensors


def _words(artifact: ModelArtifact, config: Mapping[str, Any]) -> Iterator[str]:
    """What is said of the model, a line each: its configuration, then annotations that say something else."""
    said: dict[str, str] = {}
    for part in ("descriptor", "config"):
        found = config.get(part)
        for key, value in found.items() if isinstance(found, dict) else ():
            said[str(key)] = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
    said |= {key: value for key, value in artifact.annotations.items() if value not in said.values()}
    if said:
        width = max(map(len, said)) + 1
        yield from ("", *(f"{key + ':':{width}} {value}" for key, value in sorted(said.items())))


def _tensors(file: FileIndex) -> Iterator[str]:
    if file.header is None:
        return
    yield f"\n{readable(file.file.path)}  {file.header.format}, header of {human_size(file.header.length)}"
    for key, value in sorted(file.header.metadata.items()):
        yield readable(f"  {key}: {value if len(value) <= 100 else value[:100] + '…'}")
    if file.header.tensors:
        rows = [_tensor(tensor) for tensor in file.header.tensors]
        yield table(("TENSOR", "TYPE", "SHAPE", "SIZE", "FROM", "TO"), rows, right=(3, 4, 5))


def _tensor(tensor: Tensor) -> tuple[str, ...]:
    shape = " x ".join(map(str, tensor.shape)) or "scalar"
    return (
        readable(tensor.name),
        tensor.dtype,
        shape,
        human_size(tensor.end - tensor.start),
        str(tensor.start),
        str(tensor.end),
    )


def _document(
    artifact: ModelArtifact, index: ModelIndex | None, config: Mapping[str, Any], tensors: bool
) -> dict[str, object]:
    indexed = {each.file.path: each for each in index.files} if index else {}
    files: list[dict[str, object]] = []
    for layer, file in artifact.layers:
        found: dict[str, object] = {
            "path": file.path,
            "size": file.size,
            "digest": f"sha256:{file.sha256}",
            "mediaType": layer.media_type,
        }
        each = indexed.get(file.path)
        if each:
            found["chunks"] = len(each.chunks)
        if each and each.header:
            found["format"] = each.header.format
            found["parameters"] = sum(math.prod(tensor.shape) for tensor in each.header.tensors)
        if each and each.header and tensors:
            found["tensors"] = [
                {
                    "name": tensor.name,
                    "dtype": tensor.dtype,
                    "shape": list(tensor.shape),
                    "start": tensor.start,
                    "end": tensor.end,
                }
                for tensor in each.header.tensors
            ]
        files.append(found)
    return {
        "digest": str(artifact.manifest.digest),
        "artifactType": artifact.manifest.artifact_type,
        "size": sum(file.size for file in artifact.files),
        "indexed": index is not None,
        "files": files,
        "config": config,
        "annotations": dict(sorted(artifact.annotations.items())),
    }
