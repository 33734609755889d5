"""One start on the real stack, and what it took, phase by phase."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from builder import process
from builder.coldstart import phases
from builder.coldstart.gateway import NAME, Gateway, Request
from builder.coldstart.opened import Opened
from builder.coldstart.ready import Ready
from builder.coldstart.stack import Stack
from builder.coldstart.values import Start
from builder.errors import BuilderError, ToolError
from builder.process import Running
from builder.start import MODEL_PULL

MARKS = "LAYERWRIGHT_START"
"""The environment variable that names the file which a program writes its own marks to (`builder.start`)."""

_PLACE = "/run/layerwright"
_POLL = 0.002
_ASK = 0.02
_END = 4.0
_MOST_PRINTED = 4 << 20


class StartError(BuilderError):
    """The image does not start, or not in time."""


@dataclass(frozen=True)
class Model:
    """A model of the program, which the gateway has as `repository`: it is pulled into the folder `to` before the program starts,
    as an init container does it, or the variable `to` tells the program where to pull it from."""

    to: str
    repository: str
    digest: str

    @property
    def is_folder(self) -> bool:
        """Whether it is pulled for the program."""
        return self.to.startswith("/")


@dataclass(frozen=True)
class Wanted:
    """What is started: `digest` of the index or manifest, the program's `arguments` in full (none: the image's own), variables
    and models added to what the image has, and when it counts as started, at most `timeout` seconds later. `post` is an address
    and what is posted there when it has started; the start ends with the answer, then."""

    digest: str
    platform: str
    ready: Ready
    timeout: float
    arguments: tuple[str, ...] = ()
    env: tuple[tuple[str, str], ...] = ()
    gpus: str = ""
    models: tuple[Model, ...] = ()
    post: tuple[str, bytes] | None = None


@dataclass(frozen=True)
class Means:
    """What a start does by others: `ask` says whether an address answers, `post` sends bytes to one and raises `BuilderError` if
    that is no success, `bring` pulls the model of that address into a folder."""

    ask: Callable[[str], bool]
    post: Callable[[str, bytes], None]
    bring: Callable[[str, Path], None]


@dataclass
class _Clock:
    """The ends of phases, in seconds of `time.monotonic`."""

    ends: list[tuple[str, float]]

    def end(self, name: str, at: float | None = None) -> None:
        self.ends.append((name, time.monotonic() if at is None else at))


def start(
    stack: Stack,
    gateway: Gateway,
    wanted: Wanted,
    means: Means,
    *,
    again: bool = False,
    look: Callable[[], None] = lambda: None,
) -> Start:
    """Starts the image once, until it is ready, and ends it. `again`: the stack has it already, so that only models are pulled.

    `look` is called when it is ready, before it is ended.
    Raises `StartError` with what the program or the stack said, `ToolError`, and what the source of the image raised.
    """
    gateway.forget()
    reference = f"{gateway.address}/{NAME}@{wanted.digest}"
    begun = time.monotonic()
    until = begun + wanted.timeout
    clock = _Clock([])
    with _explained(stack, gateway):
        if not again:
            _pull(stack, reference, wanted, until)
            clock.end("resolve", _resolved(gateway.requests, begun))
            clock.end("pull")
        name = f"start-{time.monotonic_ns():x}"
        folders = _brought(stack.folder / f"{name}-models", gateway, wanted, means, clock)
        variables = tuple((model.to, _address(gateway, model)) for model in wanted.models if not model.is_folder)
        with (
            _container(stack, reference, name, wanted, until, variables, folders) as marks,
            Opened(stack.folder, name) as opened,
        ):
            clock.end("create")
            status = _run(stack, name, wanted, means, until, clock, look)
            opened.stop()
            marked = phases.marks(marks)
    return phases.told(phases.Seen(begun, clock.ends, gateway.requests, opened.times), marked, status, again)


def mount(stack: Stack, gateway: Gateway, wanted: Wanted) -> None:
    """Pulls the image and makes a container of it, so that its root is mounted, without running it. Raises as `start` does."""
    gateway.forget()
    reference = f"{gateway.address}/{NAME}@{wanted.digest}"
    until = time.monotonic() + wanted.timeout
    with _explained(stack, gateway):
        _pull(stack, reference, wanted, until)
        with _container(stack, reference, f"mount-{time.monotonic_ns():x}", wanted, until):
            pass


@contextmanager
def _explained(stack: Stack, gateway: Gateway) -> Iterator[None]:
    """Where the node got no bytes, why it did not is what has to be known."""
    try:
        yield
    except (ToolError, StartError) as error:
        if gateway.failure:
            raise gateway.failure from error
        if why := gateway.silence:
            hint = "see whether the registry answers, or give it more time: --timeout"
            raise StartError(f"{error}\n{why}", hint=hint) from error
        if why := stack.said:
            raise StartError(f"{error}\n{why}", hint=error.hint) from error
        raise


def _pull(stack: Stack, reference: str, wanted: Wanted, until: float) -> None:
    options = ["--plain-http", "--snapshotter", stack.snapshotter, "--platform", wanted.platform]
    _timed(stack, until, "images", "pull", *options, reference)


def _brought(folder: Path, gateway: Gateway, wanted: Wanted, means: Means, clock: _Clock) -> dict[str, Path]:
    """Pulls the models that are to lie in folders; where they are, by their places in the container."""
    found = {}
    for model in wanted.models:
        if model.is_folder:
            folder.mkdir(mode=0o755, exist_ok=True)
            found[model.to] = folder / model.repository
            means.bring(_address(gateway, model), found[model.to])
            clock.end(MODEL_PULL)
    return found


def _address(gateway: Gateway, model: Model) -> str:
    return f"{gateway.address}/{model.repository}@{model.digest}"


def _timed(stack: Stack, until: float, *arguments: str) -> bytes:
    left = until - time.monotonic()
    if left <= 0:
        raise StartError("the start takes too long", hint="give it more time: --timeout")
    return stack.run(*arguments, timeout=left)


@contextmanager
def _container(
    stack: Stack,
    reference: str,
    name: str,
    wanted: Wanted,
    until: float,
    variables: Sequence[tuple[str, str]] = (),
    folders: Mapping[str, Path] | None = None,
) -> Iterator[Path]:
    """A container that is gone afterwards; gives the file that the program's marks come to. `folders` of this machine are mounted
    at their places in it, to be read."""
    folder = stack.folder / name
    folder.mkdir()
    folder.chmod(0o755)
    marks = folder / "marks"
    marks.touch()
    marks.chmod(0o666)  # whichever user the program is
    options = ["--snapshotter", stack.snapshotter, "--net-host"]
    options += ["--mount", f"type=bind,src={folder},dst={_PLACE},options=rbind:rw"]
    for place, source in (folders or {}).items():
        options += ["--mount", f"type=bind,src={source},dst={place},options=rbind:ro"]
    for key, value in (*variables, *wanted.env, (MARKS, f"{_PLACE}/{marks.name}")):
        options += ["--env", f"{key}={value}"]
    if wanted.gpus:
        options += ["--gpus", wanted.gpus]
    _timed(stack, until, "containers", "create", *options, reference, name, *wanted.arguments)
    try:
        yield marks
    finally:
        for command in (("tasks", "delete", "--force", name), ("containers", "delete", name)):
            with suppress(ToolError):
                process.run(stack.ctr(*command), timeout=_END)


def _run(
    stack: Stack, name: str, wanted: Wanted, means: Means, until: float, clock: _Clock, look: Callable[[], None]
) -> int | None:
    """Runs the program until it is ready; its exit status if it ended."""
    folder = stack.folder / name
    log, pid_file = folder / "output", folder / "pid"
    command = stack.ctr("tasks", "start", "--pid-file", str(pid_file), name)
    with process.running(command, log) as task, _killed(stack, name, task):
        _wait_for_exec(stack, task, pid_file, until)
        clock.end("process")
        asked = 0.0
        while (status := task.status()) is None:
            now = time.monotonic()
            if now - asked >= _ASK:
                asked = now
                stack.check()
                if wanted.ready.reached(_printed(log), means.ask, lambda: phases.says_ready(folder / "marks")):
                    clock.end(phases.PROGRAM)
                    if wanted.post:
                        means.post(*wanted.post)
                        clock.end("answer")
                    look()
                    return None
            if now > until:
                raise StartError(
                    f"it is not ready after {wanted.timeout:g} s{_said(log)}", hint="give it more time: --timeout"
                )
            time.sleep(_POLL)
        clock.end(phases.PROGRAM)
        if wanted.ready.text == "exit":
            if status != 0:
                raise StartError(f"it ended with status {status}{_said(log)}")
        elif not wanted.ready.reached(_printed(log), lambda _: False, lambda: phases.says_ready(folder / "marks")):
            raise StartError(f"it ended with status {status} before it was ready{_said(log)}")
        look()
        return status


@contextmanager
def _killed(stack: Stack, name: str, task: Running) -> Iterator[None]:
    """A task that does not outlive the block: `ctr` would pass on a polite signal, and wait."""
    try:
        yield
    finally:
        if task.status() is None:
            with suppress(ToolError):
                process.run(stack.ctr("tasks", "kill", "--all", "--signal", "SIGKILL", name), timeout=_END)
            until = time.monotonic() + _END
            while task.status() is None and time.monotonic() < until:
                time.sleep(_POLL)


def _wait_for_exec(stack: Stack, task: Running, pid_file: Path, until: float) -> None:
    """Until the container's first process is the image's program: runc's own has another name before."""
    while time.monotonic() < until and task.status() is None:
        with suppress(OSError, ValueError):
            pid = int(pid_file.read_text())
            if not Path(f"/proc/{pid}/comm").read_text().startswith("runc"):
                return
        time.sleep(_POLL)
    stack.check()


def _resolved(requests: Sequence[Request], begun: float) -> float:
    """When the last manifest had come before the first blob: after it, layers are fetched or mounted."""
    blob = min((request.at for request in requests if request.kind == "blob"), default=float("inf"))
    return max(
        (item.at + item.seconds for item in requests if item.kind == "manifest" and item.at < blob), default=begun
    )


def _printed(log: Path) -> str:
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - _MOST_PRINTED))
        return file.read().decode(errors="replace")


def _said(log: Path) -> str:
    lines = _printed(log).strip().splitlines()
    return "; it printed:\n  " + "\n  ".join(lines[-20:]) if lines else ", and it printed nothing"
