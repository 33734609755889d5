"""What the verbs that start images share: their options, and the stack that they start them on."""

from __future__ import annotations

import functools
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from builder.cli.context import Context
from builder.cli.work import platform_name
from builder.coldstart import measure, state, tools
from builder.coldstart.gateway import Gateway
from builder.coldstart.images import Blobs, Startable, look
from builder.coldstart.measure import Wanted
from builder.coldstart.ready import Ready
from builder.coldstart.stack import Stack, stack
from builder.coldstart.tools import Snapshotter, Tools
from builder.coldstart.values import Start
from builder.errors import FetchError, UsageError
from builder.oci.content import Source
from builder.places.opening import open_source

STATE = Path("/var/lib/layerwright/starts")
"""Where stacks keep what they have, unless told otherwise."""


@dataclass(frozen=True)
class Options:
    """What all these verbs are given."""

    ref: str
    command: tuple[str, ...]
    ready: Ready
    timeout: float
    entrypoint: str
    env: tuple[str, ...]
    gpus: str
    platform: str | None
    folder: Path


def _ready(_: click.Context, __: click.Parameter, value: str) -> Ready:
    return Ready.parse(value)


_OPTIONS = (
    click.argument("ref"),
    click.argument("command", nargs=-1, metavar="[-- COMMAND]..."),
    click.option(
        "--ready",
        default="exit",
        show_default=True,
        callback=_ready,
        metavar="WHEN",
        help="When it has started: `exit`, `log:REGEX`, an address that answers, or `mark` (builder.start in the program).",
    ),
    click.option(
        "--timeout", type=click.FloatRange(1, 86400), default=600, show_default=True, help="Seconds for one start."
    ),
    click.option("--entrypoint", default="", metavar="PROGRAM", help="What runs instead of the image's entrypoint."),
    click.option("--env", multiple=True, metavar="NAME=VALUE", help="A variable for the program."),
    click.option("--gpus", default="", metavar="N,...", help="The GPUs that the program gets, by their numbers."),
    click.option("--platform", default=None, help="The platform to start.  [default: that of this machine]"),
    click.option(
        "--state",
        "folder",
        type=click.Path(file_okay=False, path_type=Path),
        default=STATE,
        show_default=True,
        help="Where the stack keeps what it has, for as long as it runs.",
    ),
)


def start_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Adds the options and arguments that make an `Options`, which the verb gets as `options`."""

    @functools.wraps(function)
    def wrapped(*arguments: Any, **given: Any) -> Any:
        options = Options(**{name: given.pop(name) for name in Options.__dataclass_fields__})
        return function(*arguments, options=options, **given)

    for option in reversed(_OPTIONS):
        wrapped = option(wrapped)
    return wrapped


@dataclass(frozen=True)
class Starter:
    """Everything that is needed to start one image, as often as one likes."""

    context: Context
    folder: Path
    snapshotter: Snapshotter
    tools: Tools
    source: Source
    image: Startable
    wanted: Wanted

    @classmethod
    def prepare(cls, context: Context, options: Options, snapshotter: Snapshotter) -> Starter:
        """Looks for the programs and the image, and clears away what killed starts left."""
        if os.geteuid() != 0:
            raise UsageError("mounting layers needs root", hint="run it as root: sudo build ...")
        found = tools.find(context.environ, snapshotter)
        variables = tuple(_variable(text) for text in options.env)
        source, reference = open_source(options.ref, context)
        platform = options.platform or f"linux/{platform_name()}"
        image = look(source, reference, platform)
        arguments = image.arguments(options.command, options.entrypoint)
        digest = str(image.top.digest)
        wanted = Wanted(digest, platform, options.ready, options.timeout, arguments, variables, options.gpus)
        for left in state.sweep(options.folder):
            context.progress.note(f"{left}: left by a start that was killed; cleared away")
        return cls(context, options.folder, snapshotter, found, source, image, wanted)

    @contextmanager
    def stack(self, *, watched: bool = False) -> Iterator[tuple[Stack, Gateway]]:
        """A stack that has nothing, and the registry that it sees."""
        environ = self.context.environ
        with (
            state.state(self.folder) as place,
            Gateway(self.source, Blobs(self.source, self.image.sizes)) as gateway,
            stack(
                place, self.tools, self.snapshotter, gateway.address, self.wanted.platform, environ, watched=watched
            ) as running,
        ):
            yield running, gateway

    def start(
        self, running: Stack, gateway: Gateway, *, again: bool = False, look: Callable[[], None] = lambda: None
    ) -> Start:
        """One start (`measure.start`)."""
        return measure.start(running, gateway, self.wanted, self._answers, again=again, look=look)

    def _answers(self, url: str) -> bool:
        try:
            with self.context.client.send("GET", url, read_timeout=1.0) as answer:
                return 200 <= answer.status < 300
        except FetchError:
            return False


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--env {text}: no NAME=VALUE", hint="write it as --env PORT=8080")
    return name, value
