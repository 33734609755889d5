"""A Nix newer than Debian bookworm's: trixie's, resolved and fetched by Layerwright itself, in a folder of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import judges
from world import run

from builder import lock as locks
from builder.cli.context import Context
from builder.cli.work import fetcher, platform_name
from builder.lock import LockedFile

_PROFILE = "profile: 1\nname: nix\nplatforms: [linux/{}]\nbase: {{debian: trixie, packages: [nix-bin]}}\n"
_NEEDED = re.compile(r"nix-bin|bash-static|zlib1g|lib(?!perl|db|pam|sem|www-curl-perl).*")
"""What its programs are linked with, and the shell of its sandbox: neither Perl nor what Debian has of itself."""
_PROGRAM = """\
#!/bin/sh
NIX_BIN_DIR={bin} NIX_CONFIG="$NIX_CONFIG
sandbox-paths = /bin/sh={root}/usr/bin/bash-static"
export NIX_BIN_DIR NIX_CONFIG
exec {loader} --argv0 {name} --library-path {library} {root}/usr/bin/nix "$@"
"""


def install(root: Path) -> Path:
    """Unpacks it below `root`; the folder of its programs, to be put before PATH. 34 MB are fetched, where they are not there."""
    root.mkdir(parents=True)
    (root / "nix.yaml").write_text(_PROFILE.format(platform_name()))
    done = run(["lock", "-q", "nix.yaml"], root, dict(os.environ))
    if done.code:
        judges.missing("nix-newer", f"Debian trixie has no Nix for here:\n{done.err}")
    lock = locks.parse((root / "nix.lock.json").read_text(), "nix.lock.json")
    debian = lock.platforms[0].debian
    assert debian
    tree = root / "tree"
    tree.mkdir()
    for path in _fetched([deb.file for deb in debian.packages if _NEEDED.fullmatch(deb.name)]):
        subprocess.run([judges.require("dpkg-deb"), "-x", path, tree], check=True)
    (loader,) = (tree / "usr").glob("lib*/ld-linux*.so.*")
    library = next(tree.glob("usr/lib/*-linux-gnu"))
    programs = root / "bin"
    programs.mkdir()
    for name in sorted(path.name for path in (tree / "usr/bin").glob("nix*")):
        program = programs / name
        program.write_text(_PROGRAM.format(bin=programs, root=tree, loader=loader, library=library, name=name))
        program.chmod(0o755)
    return programs


def _fetched(files: list[LockedFile]) -> list[Path]:
    """Files in this user's own store."""
    context = Context.from_environment(os.environ, sys.stderr, quiet=True)
    fetcher(context).ensure(files)
    return [context.store.path(file.digest) for file in files]
