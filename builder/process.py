"""The only door to other programs: one function that runs one and returns what it printed, one that lets one run."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryFile
from typing import BinaryIO

from builder.errors import ToolError

_TAIL = 4000


def run(
    argv: Sequence[str],
    *,
    input: bytes | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    timeout: float | None = None,
    hint: str | None = None,
    accept: Container[int] = (0,),
    stdin: BinaryIO | None = None,
    stdout: BinaryIO | None = None,
) -> bytes:
    """Runs a program without a shell and returns its stdout, or nothing if that goes to the file `stdout`. It reads `input`,
    or the file `stdin`, or nothing.

    `env` replaces the environment when given; `timeout` is in seconds; `accept` holds the exit statuses that are no failure.
    Raises `ToolError` when the program is missing, fails or takes too long, with the end of its stderr.
    """
    name = Path(argv[0]).name
    try:
        done = subprocess.run(
            argv,
            input=input,
            stdin=(stdin or subprocess.DEVNULL) if input is None else None,
            stdout=stdout or subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=env,
            cwd=cwd,
            timeout=timeout,
            check=False,
        )
    except FileNotFoundError as error:
        raise ToolError(f"{name}: not found", hint=hint or f"install {name}") from error
    except OSError as error:
        raise ToolError(f"{name}: cannot be run: {error.strerror}", hint=hint) from error
    except subprocess.TimeoutExpired as error:
        raise ToolError(f"{name}: no answer in {timeout:g} s", hint=hint) from error
    if done.returncode not in accept:
        tail = done.stderr[-_TAIL:].decode(errors="replace").strip()
        message = f"{name} failed with status {done.returncode}: {tail or 'it printed nothing'}"
        raise ToolError(message, hint=hint, output=tail)
    return done.stdout or b""


@dataclass(frozen=True)
class Running:
    """A program that runs beside us."""

    name: str
    pid: int
    log: Path
    status: Callable[[], int | None]

    def check(self) -> None:
        """Raises `ToolError` with the end of its log if it has ended."""
        status = self.status()
        if status is not None:
            raise ToolError(
                f"{self.name} ended with status {status}: {self.tail or 'it printed nothing'}", output=self.tail
            )

    @property
    def tail(self) -> str:
        """The end of its log."""
        return self.log.read_bytes()[-_TAIL:].decode(errors="replace").strip()


@contextmanager
def running(
    argv: Sequence[str], log: Path, *, env: Mapping[str, str] | None = None, grace: float = 5.0, hint: str | None = None
) -> Iterator[Running]:
    """A program for the length of a `with` block; what it prints goes to the file `log`.

    It is asked to end, and killed after `grace` seconds. It gets no interrupt of the terminal, and it ends with us, whatever
    ends us: who is left to run it in the background would never know of it. Raises `ToolError` if it cannot be run.
    """
    name = Path(argv[0]).name
    alone = ["setpriv", "--pdeathsig", "TERM", "--"]
    with log.open("ab") as out:
        try:
            child = subprocess.Popen(
                [*alone, *argv], stdin=subprocess.DEVNULL, stdout=out, stderr=out, env=env, start_new_session=True
            )
        except OSError as error:
            raise ToolError(f"{name}: cannot be run: {error.strerror}", hint=hint or "install util-linux") from error
    try:
        yield Running(name, child.pid, log, child.poll)
    finally:
        child.terminate()
        try:
            child.wait(grace)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()


def follow(
    argv: Sequence[str],
    tell: Callable[[str], None],
    *,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    hint: str | None = None,
) -> tuple[int, bytes]:
    """Runs a program as `run` does, but tells every line of its stderr as it comes, and returns its exit status and its stdout,
    which has to be small. An interrupt ends the program. Raises `ToolError` when it cannot be run."""
    name = Path(argv[0]).name
    with TemporaryFile() as out:
        try:
            child = subprocess.Popen(
                argv, stdin=subprocess.DEVNULL, stdout=out, stderr=subprocess.PIPE, env=env, cwd=cwd
            )
        except FileNotFoundError as error:
            raise ToolError(f"{name}: not found", hint=hint or f"install {name}") from error
        except OSError as error:
            raise ToolError(f"{name}: cannot be run: {error.strerror}", hint=hint) from error
        try:
            with child:
                assert child.stderr
                for line in child.stderr:
                    tell(line.decode(errors="replace").rstrip("\n"))
        except BaseException:
            child.terminate()
            child.wait()
            raise
        out.seek(0)
        return child.returncode, out.read()
