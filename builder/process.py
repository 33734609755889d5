"""The only door to other programs: one function that runs one and returns what it printed."""

from __future__ import annotations

import subprocess
from collections.abc import Container, Mapping, Sequence
from pathlib import Path
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
