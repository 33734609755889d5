"""`build model recipe`: how a cluster or a container gets a profile's models at run time."""

from __future__ import annotations

from pathlib import Path

import click

from builder import lock as locks
from builder import profile as profiles
from builder.cli.context import Context
from builder.cli.options import common, profile_argument
from builder.models.recipe import KINDS, Places, recipe


@click.command(
    "recipe",
    help="Print how a container of PROFILE gets its models (all, or those that are named) at run time, as YAML: "
    + "; ".join(f"`{kind}`: {what}" for kind, what in KINDS.items())
    + ". A model in the lock beside the profile is named by its digest.",
    epilog="Example: build model recipe profiles/embed.yaml --kind init --image localhost:5000/embed:v1 > embed.k8s.yaml",
)
@profile_argument
@click.argument("names", nargs=-1, metavar="[MODEL]...")
@click.option("--kind", type=click.Choice(list(KINDS)), required=True, help="Which recipe.")
@click.option("--image", metavar="REF", help="The image of the service.  [default: publish.to of the profile]")
@click.option(
    "--models",
    metavar="HOST/REPOSITORY",
    help="Where the models are.  [default: publish.models of the profile, or where the image is]",
)
@click.option(
    "--client", metavar="PATH", help="Where the client is in the image.  [default: the *.pyz among its files]"
)
@common
def print_recipe(
    context: Context,
    profile: Path,
    names: tuple[str, ...],
    kind: str,
    image: str | None,
    models: str | None,
    client: str | None,
) -> None:
    """Prints one recipe."""
    loaded = profiles.read(profile)
    path = profile.with_suffix(".lock.json")
    lock = _lock(path)
    if lock is None:
        context.progress.note(f"{path}: there is no lock, so that models are named by tags that may move")
    click.echo(recipe(kind, loaded.profile, lock, names, Places(image, models, client)), nl=False)


def _lock(path: Path) -> locks.Lock | None:
    try:
        return locks.parse(path.read_text(encoding="utf-8"), str(path))
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as error:
        raise locks.LockError(f"{path}: cannot be read: {error}") from error
