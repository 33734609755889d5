"""`build init`: a new profile that works, to be changed from there."""

from __future__ import annotations

import re
from pathlib import Path

import click

from builder.errors import BuilderError, UsageError
from builder.profile import starter


@click.command(
    help="Write a commented profile NAME.yaml that works, and the small service it is about. Nothing that exists is touched.",
    epilog="Example: build init my-service && build publish my-service.yaml",
)
@click.argument("name")
@click.option(
    "-C",
    "--directory",
    type=click.Path(file_okay=False, path_type=Path),
    default=Path(),
    help="Where.  [default: here]",
)
def init(name: str, directory: Path) -> None:
    """Prints the paths that were written."""
    if not re.fullmatch(r"[a-z0-9]+([._-][a-z0-9]+)*", name) or name.endswith((".yaml", ".yml")):
        path = Path(name)
        plain = path.name.removesuffix(path.suffix) if path.suffix in (".yaml", ".yml") else path.name
        place = f" -C {directory / path.parent}" if path.parent != Path() else ""
        meant = f"build init {plain}{place}" if plain and plain != name else ""
        hint = meant or "use lower-case letters, digits and single . _ - between them"
        raise UsageError(f"{name!r} is no name of an image", hint=hint)
    files = {directory / path: data for path, data in starter(name).items()}
    if existing := [str(path) for path in files if path.exists()]:
        raise BuilderError(f"{', '.join(existing)}: there already", hint="choose another name, or another --directory")
    try:
        for path, data in files.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            with path.open("xb") as file:
                file.write(data)
            click.echo(str(path))
    except OSError as error:
        raise BuilderError(
            f"{error.filename}: cannot be written: {error.strerror}", hint="choose another --directory"
        ) from error
    click.echo(f"next: build publish {next(iter(files))}", err=True)
