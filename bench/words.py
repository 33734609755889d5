"""What several benchmarks are told in their command lines."""

from __future__ import annotations

import argparse
import os
import shutil
from pathlib import Path


def words(module: str, what: str, rounds: int = 3, of: str = "of each way") -> argparse.ArgumentParser:
    """A parser that knows a profile, the command to measure, and how often."""
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=what)
    parser.add_argument("profile", nargs="?", type=Path, default=Path("profiles/torch-cuda.yaml"))
    parser.add_argument("--build", default="build", help="the command to measure")
    parser.add_argument("--rounds", type=int, default=rounds, metavar="N", help=of)
    return parser


def about_starts(parser: argparse.ArgumentParser, code: str = "import torch; print(torch.zeros(2) + 1)") -> None:
    """What those are told, too, that start images."""
    parser.add_argument("--code", default=code, help="what the image's Python runs")
    parser.add_argument(
        "--keep", type=Path, metavar="DIR", help="where images are kept, and taken from if they are there"
    )


def command(parser: argparse.ArgumentParser, build: str, target: str) -> Path:
    """Where the command to measure is; `target` of the Makefile installs it. Ends the program if it is nowhere."""
    found = shutil.which(build)
    if not found:
        parser.error(f"there is no command {build}: `make {target}` installs it")
    return Path(found).absolute()


def command_of_root(parser: argparse.ArgumentParser, build: str) -> Path:
    """The same, for what root alone can measure."""
    if os.geteuid() != 0:
        parser.error("this needs root")
    return command(parser, build, "bench-start")


def existing(parser: argparse.ArgumentParser, profile: Path) -> Path:
    """The profile. Ends the program if it is not there."""
    if not profile.is_file():
        parser.error(f"there is no profile {profile}")
    return profile
