"""containerd with a snapshotter, started for one measurement in a folder of its own, and asked through `ctr`."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import process
from builder.coldstart import nodes
from builder.coldstart.tools import LAZY, Snapshotter, Tools
from builder.errors import ToolError
from builder.process import Running

_START = 30.0
_POLL = 0.01
_TAIL = 1 << 20

_CONTAINERD = """version = 3
root = {root}
state = {state}
disabled_plugins = [
  "io.containerd.cri.v1.images", "io.containerd.cri.v1.runtime", "io.containerd.grpc.v1.cri",
  "io.containerd.nri.v1.nri", "io.containerd.internal.v1.tracing",
]
[grpc]
  address = {socket}
[ttrpc]
  address = {ttrpc}
[proxy_plugins.{lazy}]
  type = "snapshot"
  address = {snapshots}
  [proxy_plugins.{lazy}.exports]
    root = {kept}
    enable_remote_snapshot_annotations = "true"
[plugins.'io.containerd.transfer.v1.local']
  [[plugins.'io.containerd.transfer.v1.local'.unpack_config]]
    platform = {platform}
    snapshotter = {snapshotter}
"""

_SOCI = """metadata_store = "db"
disable_verification = false
no_prometheus = true
mount_timeout_sec = 600
[background_fetch]
  disable = true
[prefetch]
  enable = true
[fuse]
  log_fuse_operations = {watched}
[content_store]
  type = "soci"
  containerd_address = {socket}
[http]
  MaxRetries = 1
  MinWaitMsec = 1
[pull_modes.soci_v1]
  enable = false
[pull_modes.soci_v2]
  enable = true
[resolver.host.{registry}]
  [[resolver.host.{registry}.mirrors]]
    host = {address}
    insecure = true
"""

_STARGZ = """no_prometheus = true
no_background_fetch = true
log_file_access = {watched}
[blob]
  max_retries = 1
  min_wait_msec = 1
"""
_SETTINGS = {"soci": _SOCI, "stargz": _STARGZ}


@dataclass(frozen=True)
class Stack:
    """A running stack. `namespace` is containerd's; `daemons` are the programs that have to stay alive."""

    folder: Path
    tools: Tools
    snapshotter: Snapshotter
    namespace: str
    daemons: tuple[Running, ...]

    def ctr(self, *arguments: str) -> list[str]:
        """The command line of `ctr` for this stack."""
        return [
            *(self.tools["ctr"], "--address", str(self.folder / "containerd.sock"), "--namespace", self.namespace),
            *arguments,
        ]

    def run(self, *arguments: str, timeout: float, accept: Sequence[int] = (0,)) -> bytes:
        """What a command of `ctr` prints. Raises `ToolError`, of the daemon that ended if one did."""
        try:
            return process.run(self.ctr(*arguments), timeout=timeout, accept=accept)
        except ToolError:
            self.check()
            raise

    @property
    def said(self) -> str:
        """What the snapshotter complained of last; nothing if it did not."""
        log = self.folder / f"{self.snapshotter}.log"
        found = ""
        for line in log.read_bytes()[-_TAIL:].splitlines() if log.exists() else ():
            with suppress(ValueError, AttributeError):
                entry = json.loads(line)
                if entry.get("level") == "error":
                    found = f"the snapshotter says of {entry.get('digest', 'the image')}: {entry.get('error', entry.get('msg'))}"
        return found

    def check(self) -> None:
        """Raises `ToolError` if a daemon has ended."""
        for daemon in self.daemons:
            daemon.check()


@contextmanager
def stack(
    folder: Path,
    tools: Tools,
    snapshotter: Snapshotter,
    registry: str,
    platform: str,
    environ: Mapping[str, str],
    *,
    watched: bool = False,
    settings: Mapping[str, Any] | None = None,
) -> Iterator[Stack]:
    """A stack in the new folder `folder`, whose nodes find the image at `registry` (host and port, without encryption).

    `watched`: the snapshotter logs the path of every file that is opened or read, which takes time. `settings` are those of
    nodes, which are to be measured instead of ours.
    """
    lazy = snapshotter if snapshotter in LAZY else "soci"
    socket, kept, log = folder / f"{lazy}.sock", folder / lazy, folder / f"{lazy}.log"
    values = {
        "socket": folder / "containerd.sock",
        "ttrpc": folder / "ttrpc.sock",
        "root": folder / "containerd",
        "state": folder / "run",
        "snapshots": socket,
        "kept": kept,
        "lazy": lazy,
        "platform": platform,
        "snapshotter": snapshotter,
        "registry": registry,
        "address": f"http://{registry}",
    }
    quoted = {name: json.dumps(str(value)) for name, value in values.items()} | {"watched": json.dumps(watched)}
    (folder / "containerd.toml").write_text(_CONTAINERD.format(**quoted))
    (folder / f"{lazy}.toml").write_text(nodes.laid_over(_SETTINGS[lazy].format(**quoted), settings))
    env = {**environ, "PATH": tools.path}
    with ExitStack() as daemons:
        running = []
        if snapshotter in LAZY:
            command = [tools[LAZY[snapshotter]], "--address", str(socket), "--config", str(folder / f"{lazy}.toml")]
            command += ["--root", str(kept), "--log-level", "debug" if watched else "info"]
            running.append(daemons.enter_context(process.running(command, log, env=env)))
            _wait(socket.exists, running)
        command = [tools["containerd"], "--config", str(folder / "containerd.toml")]
        running.append(daemons.enter_context(process.running(command, folder / "containerd.log", env=env)))
        found = Stack(folder, tools, snapshotter, folder.name, tuple(running))
        _wait(lambda: _answers(found), running)
        yield found


def _answers(found: Stack) -> bool:
    if not (found.folder / "containerd.sock").exists():
        return False
    try:
        process.run(found.ctr("version"), timeout=_START)
    except ToolError:
        return False
    return True


def _wait(there: Callable[[], bool], running: Sequence[Running]) -> None:
    """Waits until a daemon is there; raises `ToolError` if it ends or takes too long."""
    until = time.monotonic() + _START
    while not there():
        for daemon in running:
            daemon.check()
        if time.monotonic() > until:
            tail = running[-1].tail  # its log goes with its state
            raise ToolError(
                f"{running[-1].name}: no answer in {_START:g} s: {tail or 'it printed nothing'}", output=tail
            )
        time.sleep(_POLL)
