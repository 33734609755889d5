"""A small world of Nix: a store of its own below a folder, and expressions that need neither nixpkgs nor a network."""

from __future__ import annotations

import json
import os
import random
import struct
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import judges

SETTINGS = """\
build-users-group =
experimental-features = nix-command flakes
substitute = false
sandbox = true
sandbox-fallback = false
flake-registry =
"""
MAKER = """\
#include <stdio.h>
#include <stdlib.h>
#include <sys/stat.h>
/* Run as a builder, makes $out/bin/$tool, which mentions $needs; else says hello. */
int main(void) {
    const char *out = getenv("out"), *tool = getenv("tool"), *needs = getenv("needs"), *size = getenv("size");
    char path[4096];
    FILE *file;
    if (!out) return puts("hello from Nix") < 0;
    mkdir(out, 0755);
    snprintf(path, sizeof path, "%s/bin", out);
    mkdir(path, 0755);
    snprintf(path, sizeof path, "%s/bin/%s", out, tool);
    file = fopen(path, "w");
    fprintf(file, "#!/bin/sh\\n# %s\\n", needs ? needs : "");
    for (long left = size ? atol(size) : 0, seed = 1; left > 0; left--)
        fputc((seed = (seed * 1103515245 + 12345) & 0x7fffffff) >> 16 & 255, file);
    fclose(file);
    return chmod(path, 0755);
}
"""
DEFAULT = """\
let
  make = name: more: derivation ({ inherit name; tool = name; builder = ./maker; system = builtins.currentSystem; } // more);
  libc = make "libc-2.36" { size = "4000000"; };
  ssl = make "libssl-3.0.1" { needs = "${libc}"; size = "300000"; };
in {
  app = make "app-1.2" { needs = "${ssl} ${libc}"; };
  other = make "other" { needs = "${libc}"; };
}
"""


def environment(root: Path) -> dict[str, str]:
    """What makes Nix keep its store below `root`, and ask nobody."""
    return {"NIX_REMOTE": str(root / "nix"), "NIX_CONFIG": SETTINGS, "HOME": str(root)}


def maker(folder: Path) -> None:
    """Puts the builder of `DEFAULT`, a static program, and that into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "maker.c"
    source.write_text(MAKER)
    subprocess.run(
        [judges.require("gcc"), "-static", "-O1", "-s", "-o", folder / "maker", source], check=True, capture_output=True
    )
    source.unlink()
    (folder / "default.nix").write_text(DEFAULT)


def nix(root: Path, *arguments: str, cwd: Path | None = None, stdin: bytes | None = None) -> bytes:
    """What `nix ARGUMENTS` prints, with the store below `root`."""
    environ: Mapping[str, str] = {**os.environ, **environment(root)}
    program = arguments[0] if arguments[0].startswith("nix-") else "nix"
    argv = [str(judges.require(program)), *(arguments[1:] if program != "nix" else arguments)]
    done = subprocess.run(argv, env=environ, cwd=cwd, input=stdin, capture_output=True, check=False)
    assert done.returncode == 0, done.stderr.decode()
    return done.stdout


def evaluated(root: Path, expression: str) -> Any:
    """The value of an expression."""
    return json.loads(nix(root, "eval", "--impure", "--json", "--expr", expression))


def imported(root: Path, count: int, padding: int = 0) -> list[str]:
    """Brings a closure of `count` small paths into the store below `root`, each of which needs up to four before it, and the last
    one all; their names. Earlier ones are larger by `padding` bytes each. They are in the form of `nix-store --export`."""
    chance = random.Random(count)
    letters = "0123456789abcdfghijklmnpqrsvwxyz"
    names = [f"{''.join(chance.choices(letters, k=32))}-thing-{number}" for number in range(count)]
    stream = bytearray()
    for number, name in enumerate(names):
        needs = {chance.randrange(number) for _ in range(min(number, 4))} if number < count - 1 else range(number)
        references = sorted(f"/nix/store/{names[other]}".encode() for other in needs)
        content = b"\n".join(references) + bytes(padding * (count - number))
        file = (b"(", b"type", b"regular", b"executable", b"", b"contents", content, b")")
        archive = (b"(", b"type", b"directory", b"entry", b"(", b"name", b"bin", b"node", *file, b")", b")")
        stream += (
            _number(1) + _words(b"nix-archive-1", *archive) + b"NIXE\0\0\0\0" + _words(f"/nix/store/{name}".encode())
        )
        stream += _number(len(references)) + _words(*references) + _words(b"") + _number(0)
    nix(root, "nix-store", "--import", "--option", "fsync-metadata", "false", stdin=bytes(stream + _number(0)))
    return names


def _number(value: int) -> bytes:
    return struct.pack("<Q", value)


def _words(*words: bytes) -> bytes:
    return b"".join(_number(len(word)) + word + bytes(-len(word) % 8) for word in words)
