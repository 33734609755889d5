"""Finds the verb, and is the one place where an error is shown and the process ends."""

from __future__ import annotations

import gc
import importlib
import os
import signal
import sys
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

import click

from builder import __version__
from builder.errors import BuilderError

VERBS = {
    "init": "builder.cli.init:init",
    "lock": "builder.cli.lock:lock",
    "plan": "builder.cli.plan:plan",
    "publish": "builder.cli.build:publish",
    "assemble": "builder.cli.build:assemble",
    "inspect": "builder.cli.inspect:inspect",
    "verify": "builder.cli.verify:verify",
    "diff": "builder.cli.diff:diff",
    "copy": "builder.cli.copy:copy",
    "model": "builder.cli.model:model",
    "start": "builder.cli.start:start",
    "trace": "builder.cli.trace:trace",
    "advise": "builder.cli.advise:advise",
    "node-config": "builder.cli.nodeconfig:node_config",
    "login": "builder.cli.login:login",
    "logout": "builder.cli.login:logout",
    "cache": "builder.cli.cache:cache",
    "schema": "builder.cli.schema:schema",
    "doctor": "builder.cli.doctor:doctor",
    "completion": "builder.cli.completion:completion",
}
"""Each verb and the command that does it, imported when it is asked for."""

_SUMMARIES = {
    "init": "Write a commented profile that works.",
    "lock": "Make or update the lock of a profile.",
    "plan": "Show the layers of an image, and what its binaries need.",
    "publish": "Lock if needed, assemble, index and publish.",
    "assemble": "Make the images of a profile in an OCI layout.",
    "inspect": "Show what is in a published image.",
    "verify": "Verify a published image, rebuilding it.",
    "diff": "Show what differs between two images.",
    "copy": "Copy an image with all that belongs to it.",
    "model": "Publish models, pull them, look into them.",
    "start": "Start an image cold, and measure every phase.",
    "trace": "Note what the start of an image reads.",
    "advise": "Say what would make a cold start shorter.",
    "node-config": "Print settings of nodes that were measured to help.",
    "login": "Store credentials for a registry.",
    "logout": "Forget credentials for a registry.",
    "cache": "Look into the local store, or clean it.",
    "schema": "Print the JSON Schema of profiles.",
    "doctor": "Show what is found of what builds need.",
    "completion": "Print the shell's completion script.",
}


class Verbs(click.Group):
    """A group that imports a verb only when it is used, so that `--help` is there at once.

    `verbs` gives each verb's command as `module:attribute`, `summaries` its line in the list of commands.
    """

    verbs: Mapping[str, str] = VERBS
    summaries: Mapping[str, str] = _SUMMARIES

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self.verbs)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self.verbs:
            return None
        module, _, attribute = self.verbs[cmd_name].partition(":")
        command: click.Command = getattr(importlib.import_module(module), attribute)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, self.summaries[name]) for name in self.verbs])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args and args[0] not in self.verbs and not args[0].startswith("-"):
            import difflib  # takes long to import, and few need it

            near = difflib.get_close_matches(args[0], self.verbs, 1)
            advice = f" Did you mean {near[0]}?" if near else ""
            raise click.UsageError(f"There is no command {args[0]!r}.{advice}", ctx)
        return super().resolve_command(ctx, args)


@click.command(
    cls=Verbs,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 110},
    epilog="Example: build publish profiles/ocr.yaml",
)
@click.version_option(__version__, prog_name="layerwright")
@click.pass_context
def cli(context: click.Context) -> None:
    """Reproducible, layer-ordered, lazily startable OCI images for AI and GPU containers."""
    from builder.cli.context import Context

    context.obj = Context.from_environment(os.environ, sys.stderr)


def main(command: click.Command | None = None, name: str | None = None) -> None:
    """Runs the command line, or another `command` called `name`; ends the process with 0, 1 (failed), 2 (wrong usage) or 3
    (a check says no)."""
    from builder.interrupts import ended_by

    # What is imported stays: to look through it for garbage every 700 objects costs a publication without news 20 ms.
    gc.set_threshold(50_000, 20, 20)
    _fill_closed_streams()
    left_alone = signal.getsignal(signal.SIGHUP) is not signal.SIG_DFL  # nohup ignores it: so do we
    try:
        ended_by((signal.SIGTERM,) if left_alone else (signal.SIGTERM, signal.SIGHUP), _interrupt)
        if signal.getsignal(signal.SIGINT) is not signal.SIG_IGN:  # `builder.cli.entry` ends by it
            signal.signal(signal.SIGINT, signal.default_int_handler)
        status = run(None, command or cli, name)
    except KeyboardInterrupt:  # before `run` could catch it, or while it told of another
        status = _interrupted()
    sys.exit(status)


def _interrupt(*_: object) -> None:
    """Being asked to end is an interrupt: what is half written is cleared away first."""
    raise KeyboardInterrupt


def run(arguments: list[str] | None, command: click.Command = cli, name: str | None = None) -> int:
    """Runs one command; `arguments` are those of the process if None. Returns the exit status."""
    try:
        result: Any = command.main(args=arguments, prog_name=name, standalone_mode=False)
        sys.stdout.flush()
    except click.ClickException as error:
        error.show()
        return 2
    except BuilderError as error:
        _show(error)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        return _interrupted()
    except RuntimeError as error:
        if not isinstance(error.__cause__, KeyboardInterrupt):  # Python 3.11 wraps one that comes while a class is made
            raise
        return _interrupted()
    except BrokenPipeError:
        _give_up_stdout()  # whoever read it has seen enough
        return 1
    except OSError as error:
        if _can_flush_stdout() and not _is_of_printing(error):
            raise
        _give_up_stdout()
        _show(BuilderError(f"the result cannot be written to standard output: {error.strerror}"))
        return 1
    return result if isinstance(result, int) else 0


def _interrupted() -> int:
    with suppress(OSError):  # the terminal may be gone
        click.echo("interrupted; the same command goes on where this one stopped", err=True)
    return 130


def _fill_closed_streams() -> None:
    """A standard stream that was closed before we began is opened on nothing, lest another file takes its number."""
    for descriptor, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        if getattr(sys, name) is None:
            opened = os.open(os.devnull, os.O_RDWR)
            if opened != descriptor:
                os.dup2(opened, descriptor)
                os.close(opened)
            setattr(sys, name, os.fdopen(descriptor, mode))


def _can_flush_stdout() -> bool:
    """Whether what was printed has arrived; what has not is still there and fails again."""
    try:
        sys.stdout.flush()
    except OSError:
        return False
    return True


def _is_of_printing(error: OSError) -> bool:
    """Whether it was raised while something was printed: what did not arrive may be dropped by then."""
    trace = error.__traceback__
    while trace is not None:
        if trace.tb_frame.f_code is click.echo.__code__:
            return True
        trace = trace.tb_next
    return False


def _give_up_stdout() -> None:
    """What Python would still flush at its end has nowhere to go."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _show(error: BuilderError) -> None:
    """`error:` and `hint:`, each on lines of its own, understandable without colour."""
    colour = sys.stderr.isatty() and not os.environ.get("NO_COLOR")
    click.echo(click.style("error: ", fg="red", bold=True) + str(error), err=True, color=colour)
    if error.hint:
        click.echo(click.style("hint: ", fg="cyan", bold=True) + error.hint, err=True, color=colour)
