"""The programs of the real stack: which are needed, where they are found, and how to get those that are not."""

from __future__ import annotations

import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from builder.errors import ToolError

Snapshotter = Literal["soci", "stargz", "overlayfs"]
LAZY: Mapping[Snapshotter, str] = {"soci": "soci-snapshotter-grpc", "stargz": "containerd-stargz-grpc"}
"""The programs of the snapshotters that mount layers before they are there."""

PROGRAMS: Mapping[str, str] = {
    "containerd": "install containerd 2.1 or newer (its release archive)",
    "containerd-shim-runc-v2": "it comes with containerd",
    "ctr": "it comes with containerd",
    "runc": "install runc (a Debian package)",
    "setpriv": "install util-linux (a Debian package)",
    "umount": "install mount (a Debian package)",
    "soci-snapshotter-grpc": "install soci-snapshotter 0.11 or newer (its release archive), for --snapshotter soci",
    "containerd-stargz-grpc": "install stargz-snapshotter 0.18 or newer (its release archive), for --snapshotter stargz",
}
"""Every program that a measured start runs, and what has it."""


@dataclass(frozen=True)
class Tools:
    """Where the programs are; `path` is the PATH that containerd gets, so that it finds its shim and runc."""

    places: Mapping[str, Path]
    path: str

    def __getitem__(self, name: str) -> str:
        return str(self.places[name])


def find(environ: Mapping[str, str], snapshotter: Snapshotter) -> Tools:
    """The programs on PATH. Raises `ToolError` that names all that are missing, and what has them."""
    path = environ.get("PATH", os.defpath)
    others = set(LAZY.values()) - {LAZY.get(snapshotter)}
    wanted = [name for name in PROGRAMS if name not in others]
    found = {name: shutil.which(name, path=path) for name in wanted}
    missing = [name for name, place in found.items() if place is None]
    if missing:
        lines = "".join(f"\n  {name}: {PROGRAMS[name]}" for name in missing)
        raise ToolError(
            f"not on PATH, and needed to start an image:{lines}", hint="install them; `build doctor` looks again"
        )
    return Tools({name: Path(place) for name, place in found.items() if place}, path)
