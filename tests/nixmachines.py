"""Machines with stores of their own, of Layerwright and of Nix, in one small world."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from world import Done, World, run, world

from builder.nix.engine import Engine
from builder.nix.program import Nix
from builder.store import Store

CONFIG = "build-users-group =\nsubstitute = false\nflake-registry =\n"
SYSTEM = f"{os.uname().machine}-linux"


DYING = """\
#!/bin/sh
# A daemon that dies as soon as it builds anything.
exec 3<&0
nix-daemon "$@" <&3 &
exec 0</dev/null 3<&0 1>/dev/null
while kill -0 $! 2>/dev/null; do
    for file in {store}/nix/store/*.chroot; do [ ! -e "$file" ] || kill -9 $!; done
    sleep 0.01
done
"""


@dataclass(frozen=True)
class Machine:
    """One machine: its own store of Layerwright, and its own of Nix."""

    world: World
    project: Path
    root: Path

    def __call__(self, verb: str, *arguments: object, prefix: tuple[str, ...] = (), **environment: str) -> Done:
        """Runs a verb on the profile of the world, or `assemble` where that is the verb, into `out`."""
        known = {"NIX_REMOTE": str(self.root / "nix"), "NIX_CONFIG": CONFIG, "USER": "root"}
        where = self.world.environment(self.root / "cache", **{**known, **environment})
        output = ["-o", f"oci:{self.root / 'out'}"] if verb == "assemble" else []
        (self.root).mkdir(exist_ok=True, parents=True)
        return run([*verb.split(), self.project / "small.yaml", *output, *arguments], self.root, where, prefix=prefix)

    def builder(self, name: str, speed: int = 1, *, dies: bool = False) -> str:
        """Another machine, as `--builders` says it: a store below this one's folder; with `dies`, one that is lost in mid-build."""
        store, more = self.root / name, ""
        if dies:
            self.root.mkdir(exist_ok=True, parents=True)
            program = self.root / f"{name}-daemon"
            program.write_text(DYING.format(store=store))
            program.chmod(0o755)
            more = f"&remote-program={program}"
        return f"ssh-ng://localhost?remote-store={store}{more} {SYSTEM} - 2 {speed}"

    def nix(self, *arguments: str) -> str:
        """Runs a program of Nix on the machine's store."""
        where = {**os.environ, "NIX_REMOTE": str(self.root / "nix"), "NIX_CONFIG": CONFIG}
        return subprocess.run(arguments, env=where, check=True, capture_output=True, text=True).stdout


@dataclass(frozen=True)
class Machines:
    """Machines of one world, and the digest that packing without Nix gives."""

    world: World
    project: Path
    root: Path
    digest: str

    def new(self, name: str, *, bare: bool = False) -> Machine:
        """A machine whose store of Nix has nothing but the packer, or, if it is `bare`, nothing at all."""
        root = self.root / name
        return Machine(self.world, self.project, root) if bare else self.at(root)

    def at(self, root: Path, project: Path | None = None) -> Machine:
        """The same, below another folder, and with another profile."""
        for part, how in (("nix/nix/store", "-al"), ("nix/nix/var", "-a"), ("cache", "-a")):
            (root / part).parent.mkdir(parents=True, exist_ok=True)
            subprocess.run(["cp", how, self._packer / part, root / part], check=True)
        return Machine(self.world, project or self.project, root)

    @cached_property
    def _packer(self) -> Path:
        """A machine that has the packer: adding it takes longer than most tests."""
        root = self.root / "packer"
        environ = {**os.environ, "NIX_REMOTE": str(root / "nix"), "NIX_CONFIG": CONFIG}
        Engine(Nix(environ)).runtime(Store(root / "cache/layerwright"))
        return root


@contextmanager
def machines(root: Path) -> Iterator[Machines]:
    """Machines below `root`, and a profile with its lock."""
    with world(root / "world") as made:
        project = made.project(root / "project").parent
        done = Machine(made, project, root / "plain")("assemble")
        try:
            yield Machines(made, project, root, done.digest)
        finally:
            # Nix leaves folders that pytest cannot remove.
            subprocess.run(["chmod", "-R", "u+w", str(root)], check=False)
