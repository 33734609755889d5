"""`build model verify`: whether a published model is what it says."""

from __future__ import annotations

import json

import click

from builder.cli.context import Context
from builder.cli.options import common, format_option, plain_http_option
from builder.places.destination import Destination
from builder.places.opening import open_source
from builder.progress import counted, human_size
from builder.verify.models import check_one


@click.command(
    help="Verify the model REF: read all its files, and hold them against their digests and its index: the chunks, and the "
    "tables of tensors against the headers of safetensors, GGUF and ONNX files. The exit status is 3 if it is not what it says.",
    epilog="Example: build model verify localhost:5000/models/bert:v1",
)
@click.argument("ref")
@plain_http_option
@format_option
@common
def verify(context: Context, ref: str, form: str) -> int:
    """Verifies one model; returns the exit status."""
    destination = Destination.parse(ref.removeprefix("oci://"))
    source, reference = open_source(destination, context)
    manifest = source.resolve(reference)
    model, findings = check_one(source, manifest, context.progress)
    word = "damaged" if findings else "valid"
    if form == "json":
        document = {
            "reference": str(destination),
            "digest": str(manifest.digest),
            "verdict": word,
            "files": model.files if model else None,
            "size": model.size if model else None,
            "indexed": model.indexed if model else None,
            "findings": [finding.document() for finding in findings],
        }
        click.echo(json.dumps(document, indent=2, ensure_ascii=False))
        return 3 if findings else 0
    lines = [f"{destination}  {manifest.digest}"]
    if model:
        lines.append(f"read {counted(model.files or 0, 'file')}, {human_size(model.size)}")
    lines += [str(finding) for finding in findings]
    index = "its index is true" if model and model.indexed else "it has no index"
    lines.append(
        f"damaged: {counted(len(findings), 'finding')}"
        if findings
        else f"valid: files are what their digests say; {index}"
    )
    click.echo("\n".join(lines))
    return 3 if findings else 0
