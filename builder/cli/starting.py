"""What the verbs that start images share: their options, and the stack that they start them on."""

from __future__ import annotations

import functools
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click

from builder import process
from builder.cli.context import Context
from builder.cli.work import platform_name
from builder.coldstart import measure, nodes, state, tools
from builder.coldstart.gateway import Gateway
from builder.coldstart.images import Blobs, Startable, look, sizes_of
from builder.coldstart.measure import Means, Model, StartError, Wanted
from builder.coldstart.ready import Ready
from builder.coldstart.stack import Stack, stack
from builder.coldstart.tools import Snapshotter, Tools
from builder.coldstart.values import Start
from builder.errors import FetchError, UsageError
from builder.oci.content import Source
from builder.places.opening import open_source

_SAID = 1000
_MOST_POSTED = 256 << 20
_FOLDER = re.compile(r"(/[A-Za-z0-9._-]+)+")  # what ctr's --mount takes as it is
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")

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
    models: tuple[tuple[str, str], ...] = ()
    post: tuple[str, Path] | None = None
    settings: Path | None = None


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
    click.option(
        "--model",
        "models",
        multiple=True,
        type=(str, str),
        metavar="TO REF",
        help="A model of the program, which it gets from the same counted registry: TO is the folder into which it is pulled "
        "before the program starts, or the variable that tells the program where to pull it from.",
    ),
    click.option(
        "--post",
        type=(str, click.Path(dir_okay=False, exists=True, path_type=Path)),
        default=None,
        metavar="URL FILE",
        help="Once it has started, post FILE to URL: the start ends with the answer.",
    ),
    click.option(
        "--node-config",
        "settings",
        type=click.Path(dir_okay=False, exists=True, path_type=Path),
        default=None,
        metavar="FILE",
        help="Settings of the snapshotter as nodes have them, in TOML, instead of those of measurements.",
    ),
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
    models: Mapping[str, tuple[Source, Blobs]] = field(default_factory=dict)
    settings: Mapping[str, Any] | None = None

    @classmethod
    def prepare(cls, context: Context, options: Options, snapshotter: Snapshotter) -> Starter:
        """Looks for the programs and the image, and clears away what killed starts left."""
        if os.geteuid() != 0:
            raise UsageError("mounting layers needs root", hint="run it as root: sudo build ...")
        found = tools.find(context.environ, snapshotter)
        variables = tuple(_variable(text) for text in options.env)
        if options.settings and snapshotter == "overlayfs":
            raise UsageError("--node-config is for lazy snapshotters", hint="leave it out: overlayfs has no settings")
        settings = nodes.read(options.settings) if options.settings else None
        models = tuple(_model(number, *named, context) for number, named in enumerate(options.models))
        post = _posted(*options.post) if options.post else None
        source, reference = open_source(options.ref, context)
        platform = options.platform or f"linux/{platform_name()}"
        image = look(source, reference, platform)
        arguments = image.arguments(options.command, options.entrypoint)
        digest = str(image.top.digest)
        wanted = Wanted(
            digest,
            platform,
            options.ready,
            options.timeout,
            arguments,
            variables,
            options.gpus,
            tuple(model for model, _, _ in models),
            post,
        )
        for left in state.sweep(options.folder):
            context.progress.note(f"{left}: left by a start that was killed; cleared away")
        served = {model.repository: (source, blobs) for model, source, blobs in models}
        return cls(context, options.folder, snapshotter, found, source, image, wanted, served, settings)

    @contextmanager
    def stack(self, *, watched: bool = False) -> Iterator[tuple[Stack, Gateway]]:
        """A stack that has nothing, and the registry that it sees."""
        with state.state(self.folder) as place:
            environ, tls = dict(self.context.environ), None
            if nodes.is_parallel(self.settings):
                from builder.coldstart.encrypted import certified  # few measure that

                tls, certificate = certified(place)
                environ["SSL_CERT_FILE"] = str(certificate)
            with (
                Gateway(self.source, Blobs(self.source, self.image.sizes), self.models, tls) as gateway,
                stack(
                    place,
                    self.tools,
                    self.snapshotter,
                    gateway.address,
                    self.wanted.platform,
                    environ,
                    watched=watched,
                    settings=self.settings,
                ) as running,
            ):
                yield running, gateway

    def mount(self, running: Stack, gateway: Gateway) -> None:
        """The image is there, mounted, and nothing of it has run (`measure.mount`)."""
        measure.mount(running, gateway, self.wanted)

    def start(
        self, running: Stack, gateway: Gateway, *, again: bool = False, look: Callable[[], None] = lambda: None
    ) -> Start:
        """One start (`measure.start`)."""
        means = Means(self._answers, self._post, self._bring)
        return measure.start(running, gateway, self.wanted, means, again=again, look=look)

    def _answers(self, url: str) -> bool:
        try:
            with self.context.client.send("GET", url, read_timeout=1.0) as answer:
                return 200 <= answer.status < 300
        except FetchError:
            return False

    def _post(self, url: str, body: bytes) -> None:
        try:
            with self.context.client.send("POST", url, body=body, read_timeout=self.wanted.timeout) as answer:
                if not 200 <= answer.status < 300:
                    said = answer.response.read(_SAID).decode(errors="replace").strip()
                    raise StartError(f"{url}: answered {answer.status}: {said}", hint="correct what --post sends")
        except FetchError as error:
            raise StartError(f"no answer to what --post sends: {error}") from error

    def _bring(self, address: str, folder: Path) -> None:
        """By the command that init containers run, in a process of its own."""
        code = "from builder.cli.main import main; main()"
        command = [sys.executable, "-c", code, "model", "pull", "--quiet", "--no-cache", address, str(folder)]
        process.run(command, env=self.context.environ, timeout=self.wanted.timeout)


def _model(number: int, to: str, ref: str, context: Context) -> tuple[Model, Source, Blobs]:
    """A model as it is served; `to` is an absolute folder or the name of a variable."""
    if not ((_FOLDER.fullmatch(to) and ".." not in to.split("/")) or _NAME.fullmatch(to)):
        hint = "write --model /models/NAME REF, or --model VARIABLE REF"
        raise UsageError(f"--model {to}: neither a folder in the container nor a variable", hint=hint)
    source, reference = open_source(ref, context)
    top = source.resolve(reference)
    return Model(to, f"model-{number}", str(top.digest)), source, Blobs(source, sizes_of(source, top))


def _posted(url: str, path: Path) -> tuple[str, bytes]:
    if not url.startswith(("http://", "https://")):
        raise UsageError(f"--post {url}: no address", hint="write --post http://127.0.0.1:8080/ocr FILE")
    if path.stat().st_size > _MOST_POSTED:
        raise UsageError(f"--post {path}: more than {_MOST_POSTED >> 20} MiB", hint="post something smaller")
    return url, path.read_bytes()


def _variable(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not name or not equals:
        raise UsageError(f"--env {text}: no NAME=VALUE", hint="write it as --env PORT=8080")
    return name, value
