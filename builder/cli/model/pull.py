"""`build model pull`: a published model into a folder, whole or in part."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import click

from builder.cli.context import Context
from builder.cli.options import common, format_option, model_cache_option, plain_http_option
from builder.errors import UsageError
from builder.models.opening import published
from builder.models.placing import FolderError, How
from builder.models.pull import Pulled, Pulling
from builder.models.receivers import usual
from builder.places.destination import Destination, Repository
from builder.progress import counted, human_size
from builder.store import Store
from builder.store.locks import hold_where_possible, is_same_file


class Puller(click.Command):
    """What stands behind `--` is a command, also where no folder stands before it."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        at = args.index("--") if "--" in args else len(args)
        left = super().parse_args(ctx, args[:at])
        ctx.params["command"] = (*ctx.params.get("command", ()), *args[at + 1 :])
        return left


@click.command(
    cls=Puller,
    help="Pull the model REF (`HOST/REPOSITORY[:TAG][@DIGEST]`, `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]`) into the folder DIR, by "
    "default one named like the repository. Ranges of its files are fetched side by side, each checked; what is in the cache, or "
    "was pulled before it was interrupted, or is part of an older version, is not fetched again. The folder changes in one "
    "step, when all is there. The digest of the model is printed. Exit status: 0 the folder holds the model, 1 it "
    "could not be had (another try may help), 2 wrong usage, 3 what is published is not what it says (another try does not help). "
    "A COMMAND behind `--` takes the place of this program when all is there.",
    epilog="Example: build model pull localhost:5000/models/bert:v1 /models/bert --ready-file /run/ready",
)
@click.argument("ref")
@click.argument("folder", required=False, type=click.Path(path_type=Path), metavar="[DIR]")
@click.argument("command", nargs=-1, type=click.UNPROCESSED, metavar="[-- COMMAND...]")
@click.option(
    "--subset", multiple=True, metavar="GLOB", help="Only the files that match, as '*.json'; may be repeated."
)
@model_cache_option
@click.option("--no-cache", is_flag=True, help="Keep nothing beside the folder; nothing is shared.")
@click.option(
    "--link",
    "how",
    type=click.Choice([str(how) for how in How]),
    default=str(How.AUTO),
    show_default=True,
    help="How files get from the cache into the folder; auto takes the first that works.",
)
@click.option(
    "--ready-file",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Written when the folder is complete, and absent as long as it holds no model.",
)
@click.option(
    "--serve",
    type=click.IntRange(1, 65535),
    metavar="PORT",
    help="Stay afterwards, and tell by HTTP from the beginning: /ready is 200 when the folder is complete, 503 before.",
)
@click.option("--check", "read", is_flag=True, help="Read what is there already: are the bytes right?")
@click.option("--force", is_flag=True, help="Replace the folder although it holds other files.")
@plain_http_option
@format_option
@common
def pull(
    context: Context,
    ref: str,
    folder: Path | None,
    command: tuple[str, ...],
    subset: tuple[str, ...],
    cache: Path | None,
    no_cache: bool,
    how: str,
    ready_file: Path | None,
    serve: int | None,
    read: bool,
    force: bool,
    form: str,
) -> None:
    """Pulls, says what moved, and then ends, stays, or becomes another program."""
    if cache and no_cache:
        raise UsageError("--cache and --no-cache contradict one another", hint="leave out one of them")
    if serve and command:
        raise UsageError("--serve stays, and a command takes the place of this program", hint="leave out one of them")
    target = folder or _named_like(ref)

    def pulled() -> Pulled:
        with _store(context, cache, target if no_cache else None) as store:
            pulling = Pulling(store, context.progress, subset, How(how), force, read, ready_file, processes=usual())
            pulling.begin(target)
            return pulling.pull(published(ref, context, store), target)

    if serve is None:
        _report(context, pulled(), form, aside=bool(command))
    else:
        _serve(pulled, serve, lambda found: _report(context, found, form))
    if command:
        _become(command)


def _report(context: Context, pulled: Pulled, form: str, *, aside: bool = False) -> None:
    """Prints the result; aside of a command that follows, whose standard output is its own."""
    context.progress.note(_told(pulled))
    text = str(pulled.digest) if form == "text" else json.dumps(_document(pulled), indent=2, ensure_ascii=False)
    click.echo(text, err=aside)


def _serve(pulled: Callable[[], Pulled], port: int, report: Callable[[Pulled], None]) -> None:
    """Pulls while HTTP tells how far that is, and stays until somebody ends this process, which is no failure then."""
    from builder.models.ready import LazyModel, serve_readiness  # few have a port to serve

    model = LazyModel(pulled)
    with serve_readiness(model, port):
        report(model.get())
        sys.stdout.flush()
        with suppress(KeyboardInterrupt):
            threading.Event().wait()


def _become(command: Sequence[str]) -> None:
    """This process goes on as another program; it has nothing open that the other one could miss."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        os.execvp(command[0], list(command))
    except OSError as error:
        raise UsageError(
            f"{command[0]}: cannot be run: {error.strerror}", hint="correct the command after --"
        ) from error


def _named_like(ref: str) -> Path:
    named = Destination.parse(ref.removeprefix("oci://"))
    if not isinstance(named, Repository):
        raise UsageError(f"{ref}: which folder is the model to be pulled into?", hint=f"build model pull {ref} DIR")
    return Path(named.name.repository.rpartition("/")[2])


@contextmanager
def _store(context: Context, cache: Path | None, target: Path | None) -> Iterator[Store]:
    """The cache; one of its own beside `target`, or in it if that is a mount point, is gone afterwards if all went well."""
    if target is None:
        yield Store(cache.absolute()) if cache else context.store
        return
    target = target.absolute()
    root = target / ".build/cache" if target.is_mount() else target.with_name(f".{target.name}.cache")
    held = _alone(root)
    try:
        yield Store(root)
        shutil.rmtree(root, ignore_errors=True)
    finally:
        with suppress(OSError):
            root.rmdir()  # nothing was kept
        os.close(held)


def _alone(folder: Path) -> int:
    """Makes a folder, and waits until no other process has it; what is returned is to be closed."""
    while True:
        try:
            folder.mkdir(parents=True, exist_ok=True)
            held = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError as error:
            raise FolderError(
                f"{folder}: cannot be made: {error.strerror}", hint="choose a folder where you may write"
            ) from error
        hold_where_possible(held, fcntl.LOCK_EX)
        if is_same_file(held, folder):
            return held
        os.close(held)  # the other one removed it at its end


def _told(pulled: Pulled) -> str:
    moved = pulled.moved
    if not pulled.changed:
        return (
            f"{pulled.folder}: holds the model already, {counted(len(pulled.files), 'file')}, {human_size(pulled.size)}"
        )
    parts = [(moved.fetched, "fetched"), (moved.reused, "of older versions"), (moved.resumed, "of an interrupted pull")]
    parts += [(moved.present, "in the cache")]
    words = [f"{human_size(amount)} {what}" for amount, what in parts if amount or what == "fetched"]
    return f"{pulled.folder}: {counted(len(pulled.files), 'file')}, {human_size(pulled.size)}: {', '.join(words)}"


def _document(pulled: Pulled) -> dict[str, object]:
    moved = pulled.moved
    return {
        "folder": str(pulled.folder),
        "digest": str(pulled.digest),
        "files": [{"path": file.path, "size": file.size, "sha256": file.sha256} for file in pulled.files],
        "size": pulled.size,
        "changed": pulled.changed,
        "link": str(pulled.how) if pulled.how else None,
        "moved": {
            "fetched": moved.fetched,
            "reused": moved.reused,
            "resumed": moved.resumed,
            "present": moved.present,
        },
    }
