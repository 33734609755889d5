"""A containerd of our own, that pulls images and mounts them. Needs root."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import judges

CONFIG = """\
version = 3
root = "{0}/root"
state = "{0}/state"
disabled_plugins = ["io.containerd.cri.v1.runtime", "io.containerd.cri.v1.images", "io.containerd.grpc.v1.cri"]
[grpc]
address = "{0}/socket"
"""


@dataclass(frozen=True)
class Node:
    """A containerd of our own."""

    root: Path

    def ctr(self, *arguments: object) -> subprocess.CompletedProcess[str]:
        argv = [judges.require("ctr"), "-a", self.root / "socket", *arguments]
        return subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)

    def mounted(self, name: str) -> dict[str, bytes]:
        """The files of an image, pulled and mounted."""
        place = Path(tempfile.mkdtemp(dir=self.root))
        pulled = self.ctr("images", "pull", "--local", "--plain-http", "--snapshotter", "overlayfs", name)
        assert pulled.returncode == 0, pulled.stderr
        done = self.ctr("images", "mount", "--snapshotter", "overlayfs", name, place)
        assert done.returncode == 0, done.stderr
        try:
            return {str(path.relative_to(place)): path.read_bytes() for path in place.rglob("*") if path.is_file()}
        finally:
            self.ctr("images", "unmount", "--rm", "--snapshotter", "overlayfs", place)


@contextmanager
def container_node() -> Iterator[Node]:
    """A running one, without snapshots."""
    if os.geteuid() != 0:
        judges.missing("containerd", "mounting layers needs root")
    root = Path(tempfile.mkdtemp(prefix="lw-", dir="/var/tmp"))  # sockets have short names
    (root / "config.toml").write_text(CONFIG.format(root))
    argv = [str(judges.require("containerd")), "--config", str(root / "config.toml"), "--log-level", "error"]
    with (root / "log").open("wb") as log, subprocess.Popen(argv, stdout=log, stderr=log) as server:
        try:
            until = time.monotonic() + 30
            while not (root / "socket").exists() and server.poll() is None and time.monotonic() < until:
                time.sleep(0.02)
            assert (root / "socket").exists(), (root / "log").read_text()
            yield Node(root)
        finally:
            server.terminate()
            server.wait()
            _unmount(root)
    shutil.rmtree(root)


def _unmount(root: Path) -> None:
    """What containerd itself mounted, the last first."""
    with suppress(OSError):
        places = [line.split()[1] for line in Path("/proc/mounts").read_text().splitlines()]
        for place in reversed(places):
            if Path(place).is_relative_to(root):
                subprocess.run(["umount", place], check=False)
