"""`build completion`: the script that a shell needs to complete commands."""

from __future__ import annotations

import click
from click.shell_completion import get_completion_class


@click.command(
    help="Print the completion script of a shell, for the command that was called.",
    epilog='Example: eval "$(build completion bash)"',
)
@click.argument("shell", type=click.Choice(["bash", "zsh", "fish"]))
@click.pass_context
def completion(context: click.Context, shell: str) -> None:
    """Prints the script for `build` and for `layerwright`."""
    from builder.cli.main import cli

    found = get_completion_class(shell)
    assert found
    for name in ("build", "layerwright"):
        click.echo(found(cli, {}, name, f"_{name.upper()}_COMPLETE").source())
