"""Nix itself, as a program: builds references, says what they need, gives their archives. Other modules ask it nothing.

What it prints has changed over its versions; what is read here is the same from 2.8 to 2.34.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, HostileInputError, ToolError
from builder.lock import LockedNixPath
from builder.process import follow, run

STORE = "/nix/store/"
SYSTEMS = {"amd64": "x86_64-linux", "arm64": "aarch64-linux"}
"""What Nix calls the architectures of platforms."""
INSTALL = "install Nix 2.8 or newer: apt install nix-bin, or what nixos' site says"
START_DAEMON = "start nix-daemon, or use a store of your own: NIX_REMOTE=/absolute/folder"
MAKE_ROOM = "make room where the store of Nix is: `nix-collect-garbage` removes what nobody needs"
COLOUR = re.compile(r"\x1b\[[0-9;]*m")
"""What Nix colours its words with, also where nobody looks."""
_NAME = re.compile(r"[0-9a-df-np-sv-z]{32}-[0-9A-Za-z+_?=.-]{1,211}")
_BASE32 = "0123456789abcdfghijklmnpqrsvwxyz"
_WORTH_TELLING = re.compile(r"unable to download|signed by any of the keys|substituter|binary cache")
_NO_SANDBOX = re.compile(
    r"^error: .*(?:sandboxing|sandbox-fallback|unshare|private mount namespace|cloning builder process).*$",
    re.MULTILINE,
)
_CHANGED = re.compile(r"^.*hash mismatch importing.*$", re.MULTILINE)
_BATCH = 500
_TAIL = 200
"""So many lines of what Nix says are kept."""
_MAX_PATHS = 100_000


class NixError(BuilderError):
    """Nix cannot do what it is asked for."""


@dataclass(frozen=True)
class Tool:
    """Nix with the environment `env`: its settings, its store (`NIX_REMOTE`) and its keys are the user's own."""

    env: Mapping[str, str] = field(repr=False)
    note: Callable[[str], None] = field(default=lambda _: None, repr=False)
    """Is told, once each, what Nix says of caches that are down or not trusted while it goes on without them."""
    _told: set[str] = field(default_factory=set, repr=False)

    def build(
        self, arguments: Sequence[str], architecture: str, out: Path, folder: Path, label: str
    ) -> tuple[str, ...]:
        """Builds or brings what `arguments` mean, read in `folder`; the names of its outputs, which links `out…` keep from being
        collected. `architecture` is in the words of a platform, `label` names it in errors."""
        system = SYSTEMS[architecture]
        foreign = [] if system == f"{os.uname().machine}-linux" else ["--option", "system", system]
        argv = ["build", "--json", "--no-write-lock-file", "--out-link", str(out), *foreign, *arguments]
        document = self._json(argv, label, folder)
        names: set[str] = set()
        for item in document if isinstance(document, list) else ():
            found = item.get("outputs", [item.get("path")]) if isinstance(item, dict) else [item]
            paths = list(found.values() if isinstance(found, dict) else found)
            names |= {name_of(path) for path in paths}
        if not names:
            raise NixError(f"{label}: Nix built nothing", hint="name an attribute that is a derivation")
        return tuple(sorted(names))

    def bring(self, names: Sequence[str], folder: Path) -> None:
        """Brings paths, as many of them as caches have, side by side; for the others nothing happens."""
        for start in range(0, len(names), _BATCH):
            paths = [STORE + name for name in names[start : start + _BATCH]]
            try:
                self._run(["build", "--no-link", "--keep-going", *paths], "paths", folder)
            except BuilderError:
                continue  # whoever needs one of them is told why it is not there

    def closure(self, names: Sequence[str]) -> tuple[LockedNixPath, ...]:
        """All paths that some paths of the store need, and themselves, sorted."""
        found: dict[str, LockedNixPath] = {}
        for start in range(0, len(names), _BATCH):
            paths = [STORE + name for name in names[start : start + _BATCH]]
            document = self._json(["path-info", "--json", "--recursive", *paths], "the closure")
            found |= {path.name: path for path in described(document)}
        return tuple(sorted(found.values()))

    def has(self, name: str) -> bool:
        """Whether the path is in the store already."""
        try:
            run(self._argv(["path-info", STORE + name]), env=self.env, hint=INSTALL)
        except ToolError as error:
            if not error.output:
                raise
            return False  # why will show when it is brought
        return True

    def on_disk(self, name: str) -> Path | None:
        """Where a path would be on this machine's disk; None for a store whose place is not known."""
        remote = self.env.get("NIX_REMOTE", "")
        if remote in ("", "auto", "daemon", "local"):
            return Path(STORE, name)
        return Path(remote + STORE, name) if remote.startswith("/") and "?" not in remote else None

    def dump(self, name: str, path: Path) -> None:
        """Writes the archive of a path of the store to a file."""
        with path.open("wb") as out:
            run(self._argv(["store", "dump-path", STORE + name]), env=self.env, stdout=out, hint=INSTALL)

    def flake(self, reference: str, folder: Path) -> Mapping[str, Any]:
        """What Nix says of a flake: its `locked` source and its `locks`."""
        document = self._json(["flake", "metadata", "--json", "--no-write-lock-file", reference], reference, folder)
        return document if isinstance(document, dict) else {}

    def _json(self, arguments: Sequence[str], label: str, folder: Path | None = None) -> Any:
        output = self._run(arguments, label, folder)
        try:
            return json.loads(output)
        except (ValueError, RecursionError) as error:
            raise NixError(f"{label}: Nix printed something else than JSON: {output[:200]!r}", hint=INSTALL) from error

    def _run(self, arguments: Sequence[str], label: str, folder: Path | None = None) -> bytes:
        lines: deque[str] = deque(maxlen=_TAIL)

        def tell(line: str) -> None:
            lines.append(line)
            text = line.removeprefix("warning: ")
            if text != line and _WORTH_TELLING.search(line) and "; retrying in" not in line and text not in self._told:
                self._told.add(text)
                self.note(f"nix: {text}")

        status, output = follow(self._argv(arguments), tell, env=self.env, cwd=folder, hint=INSTALL)
        if status:
            raise _explained(COLOUR.sub("", "\n".join(lines)), label, status)
        return output

    def _argv(self, arguments: Sequence[str]) -> list[str]:
        settings = ["--extra-experimental-features", "nix-command flakes", "--option", "sandbox-fallback", "false"]
        return ["nix", *arguments, *settings]


def name_of(path: object) -> str:
    """The name of a path of a store. Raises `HostileInputError` if it is none."""
    name = path.removeprefix(STORE) if isinstance(path, str) else ""
    if not _NAME.fullmatch(name):
        raise HostileInputError(f"Nix speaks of {path!r}, which is no path of a store in /nix/store")
    return name


def described(document: Any) -> Iterator[LockedNixPath]:
    """The paths in what `path-info --json` prints: a list, a mapping by path, or `{info: {NAME: …}}`."""
    if isinstance(document, dict) and isinstance(document.get("info"), dict):
        document = document["info"]
    pairs = document.items() if isinstance(document, dict) else [(None, item) for item in document or ()]
    for number, (path, item) in enumerate(pairs):
        if number >= _MAX_PATHS:
            raise HostileInputError(f"Nix speaks of a closure of more than {_MAX_PATHS} paths")
        try:
            name = _name(item.get("path") if path is None else path)
            references = {_name(reference) for reference in item["references"]} - {name}
            yield LockedNixPath(name, sha256_of(item["narHash"]), int(item["narSize"]), tuple(sorted(references)))
        except (AttributeError, LookupError, TypeError, ValueError) as error:
            raise HostileInputError(f"Nix says too little of {path or item}: no narHash, size or references") from error


def _name(path: object) -> str:
    """A path of a store, or its name alone, as newer versions have it."""
    return name_of(path if isinstance(path, str) and path.startswith("/") else f"{STORE}{path}")


def sha256_of(text: object) -> str:
    """A narHash as hex. Nix writes `sha256-BASE64`, `sha256:HEX`, `sha256:BASE32`, or a mapping that says which."""
    if isinstance(text, dict):
        text = f"{text['algorithm']}{'-' if text.get('format') == 'base64' else ':'}{text['hash']}"
    if not isinstance(text, str):
        raise ValueError(f"no hash: {text!r}")
    if text.startswith("sha256-"):
        data = base64.b64decode(text[7:], validate=True)
    elif re.fullmatch(r"sha256:[0-9a-f]{64}", text):
        data = bytes.fromhex(text[7:])
    elif re.fullmatch(rf"sha256:[{_BASE32}]{{52}}", text):
        number = 0
        for character in text[7:]:
            number = number << 5 | _BASE32.index(character)
        data = number.to_bytes(33, "little")[:32]
    else:
        raise ValueError(f"no sha256: {text!r}")
    if len(data) != 32:
        raise ValueError(f"no sha256: {text!r}")
    return data.hex()


def _explained(output: str, label: str, status: int) -> BuilderError:
    """Nix's words, with what to do about those that are known."""
    if not output.strip():
        return ToolError(f"{label}: nix failed with status {status}, and printed nothing", hint=INSTALL)
    told = (
        output.rpartition("error: ")[2]
        .replace("(use '--show-trace' to show detailed location information)", "")
        .strip()
    )
    message = f"{label}: {told}"
    if re.search(r"unrecogni[sz]ed flag|is not a recogni[sz]ed command|unknown setting", output):
        return NixError(f"{label}: this Nix is too old: {told}", hint=INSTALL)
    if "Permission denied" in output or "read-only" in output.lower():
        hint = "NIX_REMOTE=DIR names a store of your own, which needs no root"
        return NixError(message, hint=hint)
    if found := _NO_SANDBOX.search(output):
        message = f"{label}: {found[0].removeprefix('error: ')}"
        hint = "Nix cannot build in a sandbox here, and does not build without: allow user namespaces"
        return NixError(message, hint=hint)
    if "cannot connect to socket" in told:
        return NixError(message, hint=START_DAEMON)
    if "No space left" in output:
        return NixError(message, hint=MAKE_ROOM)
    if found := _CHANGED.search(output):
        message = f"{label}: {found[0].partition('error: ')[2] or found[0]}"
        return NixError(
            message, hint="a cache has something else than it says, or it came broken: leave that cache out"
        )
    if "signature" in told or "signed by any of the keys" in output:
        hint = "add the key of who signed it to trusted-public-keys of nix.conf, if you trust them"
        return NixError(message, hint=hint)
    if "is required, but there is no substituter" in output or "don't know how to build" in output:
        hint = "copy it to this machine's store, or name a cache that has it: NIX_CONFIG='substituters = …'"
        return NixError(message, hint=hint)
    if "flake 'flake:" in told or "cannot find flake" in told:
        return NixError(message, hint="`nix registry list` shows the names that are known here")
    return ToolError(message, output=output, hint="run the same with `nix` by hand: it is Nix that says so")
