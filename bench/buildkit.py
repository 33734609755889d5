"""BuildKit as a peer: a daemon of its own with an empty cache (buildkitd, buildctl and runc, as root)."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from bench import watch
from bench.watch import Cost


@dataclass(frozen=True)
class Daemon:
    """A running buildkitd: its address and process id."""

    address: str
    pid: int

    def build(self, options: Sequence[str | Path], environ: Mapping[str, str]) -> Cost:
        """One build of a Dockerfile. The daemon does the work: its CPU, and that of the containers it has waited for, count."""
        begun = _cpu(self.pid)
        command = ["buildctl", "--addr", self.address, "build", "--frontend", "dockerfile.v0", "--progress", "plain"]
        cost = watch.run([*command, *map(str, options)], environ)
        return Cost(cost.wall, cost.cpu + _cpu(self.pid) - begun)

    def push(self, layout: Path, digest: str, place: str, environ: Mapping[str, str]) -> Cost:
        """An image out of a layout goes to a registry as it is, by a Dockerfile that adds nothing to it."""
        folder = Path(self.address.removeprefix("unix://")).parent / "context"
        folder.mkdir(exist_ok=True)
        (folder / "Dockerfile").write_text("FROM base\n")
        local = ["--local", f"context={folder}", "--local", f"dockerfile={folder}"]
        base = ["--oci-layout", f"base={layout}", "--opt", f"context:base=oci-layout://base@{digest}"]
        to = ["--output", f"type=image,name={place},push=true,registry.insecure=true,oci-mediatypes=true"]
        return self.build([*local, *base, *to], environ)


def is_here() -> bool:
    """Whether BuildKit can be measured on this machine."""
    return all(shutil.which(name) for name in ("buildkitd", "buildctl", "runc")) and os.geteuid() == 0


@contextmanager
def daemon(root: Path) -> Iterator[Daemon]:
    """A daemon with an empty cache, which keeps what it has in the new folder `root`."""
    root.mkdir()
    address = f"unix://{root}/socket"
    options = ["--oci-worker=true", "--containerd-worker=false", "--oci-worker-snapshotter=overlayfs"]
    with (root / "log").open("wb") as log:
        running = subprocess.Popen(
            ["buildkitd", "--root", str(root / "state"), "--addr", address, "--oci-worker-net=host", *options],
            stdout=log,
            stderr=log,
        )
        try:
            for _ in range(100):
                if (root / "socket").exists() or running.poll() is not None:
                    break
                time.sleep(0.1)
            else:
                sys.exit("bench: buildkitd does not answer")
            yield Daemon(address, running.pid)
        finally:
            running.terminate()
            running.wait()
            shutil.rmtree(root)


def _cpu(pid: int) -> float:
    """Seconds of CPU of a process and of the children it has waited for."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return sum(map(int, fields[11:15])) / os.sysconf("SC_CLK_TCK")
