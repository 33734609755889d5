"""`build schema`: the JSON Schema of profiles, for editors."""

from __future__ import annotations

import json

import click


@click.command(
    help="Print the JSON Schema of profiles, with which editors complete and check them.",
    epilog="Example: build schema > profile.schema.json",
)
def schema() -> None:
    """Prints the schema."""
    from builder import reference

    click.echo(json.dumps(reference.schema(), indent=2, ensure_ascii=False))
