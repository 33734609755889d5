"""`build model client`: the client by itself, as one file."""

from __future__ import annotations

from pathlib import Path

import click

from builder.errors import BuilderError
from builder.oci import files
from builder.oci.digest import Digest


@click.command(
    help="Write the client by itself: one file of about a megabyte that any Python from 3.11 on runs, without anything installed. "
    "`FILE REF DIR` does what `build model pull` does; with FILE on sys.path, `builder.models` can be imported. Equal "
    "versions of Layerwright, click, urllib3 and oras make equal bytes. The digest is printed.",
    epilog="Example: build model client -o build-model-pull.pyz",
)
@click.option(
    "-o",
    "--output",
    type=click.Path(dir_okay=False, path_type=Path),
    default=Path("build-model-pull.pyz"),
    show_default=True,
    help="Where to write it.",
)
def client(output: Path) -> None:
    """Writes the file."""
    from builder.models.client import client as make

    data = make()
    try:
        files.write(output, data)
        output.chmod(0o755)
    except OSError as error:
        raise BuilderError(f"{output}: cannot be written: {error.strerror}", hint="name another with -o") from error
    click.echo(str(Digest.of(data)))
