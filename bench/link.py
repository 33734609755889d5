"""A link of a given rate between two network namespaces, and a registry at this end of it. Needs root.

Several at once do not disturb one another: names and addresses are by process. What a killed run left, the next one removes.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))  # where the peers are known
import judges

require = judges.require
"""The judge of a name, built on demand."""

_PREFIX = "lwb"
_PORT = 5077


@dataclass(frozen=True)
class Link:
    """A link: the node is in the namespace `space`, `host` is this end's address, `registry` that of what serves there; unless it
    is `near`, when there is no other end."""

    number: int
    near: bool = False

    @property
    def space(self) -> str:
        return f"{_PREFIX}{self.number}"

    @property
    def _net(self) -> str:
        return f"10.199.{self.number % 250 + 1}"

    @property
    def host(self) -> str:
        return f"{self._net}.1"

    @property
    def registry(self) -> str:
        return f"{self.host}:{_PORT}"

    def inside(self) -> list[str]:
        """What stands before a command that runs on the node.

        Not `ip netns exec`, which gives the command another /sys, without the cgroups that containers need.
        """
        return ["nsenter", f"--net=/run/netns/{self.space}", "--"]


@contextmanager
def link(rate: str) -> Iterator[Link]:
    """A network namespace for the node, at the other end of a link of this rate, as tc writes it."""
    found = Link(os.getpid())
    ip, here, there = ["ip", "-n", found.space], f"{found.space}a", f"{found.space}b"
    commands = [
        ["ip", "netns", "add", found.space],
        ["ip", "link", "add", here, "type", "veth", "peer", "name", there],
        ["ip", "link", "set", there, "netns", found.space],
        ["ip", "addr", "add", f"{found.host}/24", "dev", here],
        ["ip", "link", "set", here, "up"],
        [*ip, "addr", "add", f"{found.host[:-1]}2/24", "dev", there],
        [*ip, "link", "set", there, "up"],
        [*ip, "link", "set", "lo", "up"],
        ["tc", "qdisc", "add", "dev", here, "root", *_limit(rate)],
    ]
    _sweep()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that what follows happens then, too
    try:
        for command in commands:
            subprocess.run(command, check=True)
        yield found
    finally:
        _remove(found.space)


@contextmanager
def near(rate: str) -> Iterator[Link]:
    """A network namespace whose own loopback has this rate: for what brings its registry with it, as `build start` does."""
    found = Link(os.getpid(), near=True)
    commands = [
        ["ip", "netns", "add", found.space],
        ["ip", "-n", found.space, "link", "set", "lo", "up"],
        ["tc", "-n", found.space, "qdisc", "add", "dev", "lo", "root", *_limit(rate)],
    ]
    _sweep()
    try:
        for command in commands:
            subprocess.run(command, check=True)
        yield found
    finally:
        _remove(found.space)


def _limit(rate: str) -> list[str]:
    return ["tbf", "rate", rate, "burst", "512k", "latency", "100ms"]


def _sweep() -> None:
    listed = subprocess.run(["ip", "netns", "list"], capture_output=True, text=True, check=False).stdout
    for number in re.findall(rf"^{_PREFIX}(\d+)\b", listed, re.MULTILINE):
        if not Path(f"/proc/{number}").exists() or int(number) == os.getpid():
            _remove(f"{_PREFIX}{number}")


def _remove(space: str) -> None:
    for command in (["ip", "netns", "del", space], ["ip", "link", "del", f"{space}a"]):
        subprocess.run(command, check=False, stderr=subprocess.DEVNULL)


@contextmanager
def registry(at: Link, folder: Path) -> Iterator[None]:
    """A registry at this end of the link, which keeps what it has in a folder of its own."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    config = folder / "config.yml"
    config.write_text(
        "version: 0.1\nlog: {level: error, accesslog: {disabled: true}}\n"
        f"storage: {{filesystem: {{rootdirectory: {folder / 'data'}}}}}\nhttp: {{addr: {at.registry}}}\n"
    )
    with (folder / "log").open("wb") as log:
        server = subprocess.Popen([judges.require("docker-registry"), "serve", config], stdout=log, stderr=log)
        try:
            yield
        finally:
            server.terminate()
            server.wait()
            shutil.rmtree(folder)
