"""Options and arguments that several verbs share."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from builder.cli.context import Context
from builder.errors import UsageError
from builder.progress import Silent

profile_argument = click.argument(
    "profile", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="PROFILE"
)
format_option = click.option(
    "--format", "form", type=click.Choice(["text", "json"]), default="text", show_default=True, help="How to print it."
)
lock_option = click.option("--lock", "relock", is_flag=True, help="Update the lock first, as `build lock` does.")

model_cache_option = click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Where what is fetched is kept and shared.",
)


def existing(path: Path, hint: str = "correct the path") -> Path:
    """A file or folder that the command line names where more than a path may stand. Raises `UsageError` if it is not there, as
    click does for what can only be a path."""
    if not path.exists():
        raise UsageError(f"{path}: there is no such file or folder", hint=hint)
    return path


def _allow_plain_http(context: click.Context, _: click.Parameter, value: bool) -> None:
    if value:
        context.obj = replace(context.obj, plain_http=True)


plain_http_option = click.option(
    "--plain-http",
    is_flag=True,
    expose_value=False,
    callback=_allow_plain_http,
    help="Speak to registries without encryption; those on this machine need no such permission.",
)

_COMMON = (
    click.option("--offline", is_flag=True, help="Never use the network; say what is missing."),
    click.option("--jobs", type=click.IntRange(1, 64), help="How many downloads run at once."),
    click.option("-q", "--quiet", is_flag=True, help="Print results and errors only."),
)


def _is_interrupt(error: BaseException | None) -> bool:
    """Whether it is one, or what came of one: threads that had just begun to start cannot be waited for."""
    return error is not None and (
        isinstance(error, KeyboardInterrupt) or _is_interrupt(error.__cause__) or _is_interrupt(error.__context__)
    )


def common(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds --offline, --jobs and --quiet, and gives the verb the context that they make as its first argument."""

    @functools.wraps(function)
    def wrapped(*, offline: bool, jobs: int | None, quiet: bool, **others: Any) -> Any:
        context: Context = click.get_current_context().obj
        settings = context.settings
        settings = replace(settings, offline=offline or settings.offline, jobs=jobs or settings.jobs)
        progress = Silent() if quiet else context.progress
        context = replace(context, settings=settings, progress=progress)
        try:
            return function(context, **others)
        except BaseException as error:
            if not _is_interrupt(error):
                raise
            if "store" in vars(context):
                context.store.abandon()
            raise KeyboardInterrupt from error

    for option in reversed(_COMMON):
        wrapped = option(wrapped)
    return wrapped
