"""`build-model-pull`: the program that a container runs to have its model; `build model pull` by itself."""

from __future__ import annotations

import os
import sys

import click

from builder import __version__
from builder.cli.context import Context
from builder.cli.main import main as run
from builder.cli.model.pull import Puller, pull

NAME = "build-model-pull"


class _Program(Puller):
    """`build model pull` without the group around it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        ctx.obj = Context.from_environment(os.environ, sys.stderr)
        return super().parse_args(ctx, args)


program = click.version_option(__version__, prog_name=NAME)(
    _Program(
        NAME,
        params=list(pull.params),
        callback=pull.callback,
        help=pull.help,
        epilog=f"Example: {NAME} localhost:5000/models/bert:v1 /models/bert --ready-file /run/ready",
        context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    )
)


def main() -> None:
    """Runs the program and ends the process."""
    run(program, NAME)
