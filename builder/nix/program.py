"""The programs of Nix, as they are installed: which version, which store, and builds whose log is read as it comes."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qs, urlsplit

from builder.errors import BuilderError, ToolError
from builder.nix.inside import MARK
from builder.parallel import Stop, for_each
from builder.process import follow, run
from builder.sources.nixtool import COLOUR, INSTALL, MAKE_ROOM, START_DAEMON

OLDEST = (2, 8)
_INSTALL = f"{INSTALL}; or build without it"
_BUILD, _SUBSTITUTE, _LOG_LINE = 105, 108, 101
"""Numbers of the activities and results that its JSON log tells."""
_ERROR, _WARNING = 0, 1
UNSIGNED = "signed by any of the keys"
"""What Nix says of something in a cache whose signature does not count."""
_IGNORED = "Ignoring setting "
"""What newer versions warn of in every program, if nix.conf has something that counts for others alone."""
_LOST = re.compile(
    r"unexpected end-of-file|disconnected unexpectedly|[Bb]roken pipe|[Cc]onnection (?:reset|closed|timed out)"
    r"|closed by remote host"
)
_DERIVATION = re.compile(r"/nix/store/[0-9a-z]{32}-[^\s'\"]+\.drv")
_HASH = len("/nix/store/") + 33
_MOST = 40
_LARGE = 8 << 20
"""From so many bytes on, a program of its own adds a file."""
THREADS = 4
"""So many files, or layers, are hashed at once."""
_ALWAYS = ("--option", "sandbox", "true", "--option", "sandbox-fallback", "false")
_REMEDIES = (
    (UNSIGNED, "name the key that signed it with --trusted-public-keys, or another cache"),
    (
        "may not be deterministic",
        "that is a bug in Layerwright, or a machine whose memory or disk errs: please report it",
    ),
    ("build users group", "set `build-users-group =` in NIX_CONFIG, or make the group as Nix's manual says"),
    ("build-users-group", "set `build-users-group =` in NIX_CONFIG, or make the group as Nix's manual says"),
    ("cloning builder process", "the sandbox needs namespaces of the kernel: run as root, or allow user namespaces"),
    ("cannot connect to socket", START_DAEMON),
    ("No space left", MAKE_ROOM),
    ("user namespace", "the sandbox needs namespaces of the kernel: run as root, or allow user namespaces"),
    ("sandbox", "the sandbox is required: run as root or allow user namespaces, and set `sandbox = true` in nix.conf"),
    ("experimental", "allow it: `experimental-features = nix-command` in nix.conf"),
    ("max-jobs", "let somebody build: --max-jobs 1 or --builders, or name a cache that has it with --substituters"),
    ("local builds are disabled", "let somebody build: --max-jobs 1 or --builders, or name a cache that has it"),
    ("machine", "name a machine with --builders, or let this one build with --max-jobs"),
    ("ermission denied", "name a store that you may write to: NIX_REMOTE=/absolute/folder"),
    ("ead-only", "name a store that you may write to: NIX_REMOTE=/absolute/folder"),
    ("ot a directory", "name a store that you may write to: NIX_REMOTE=/absolute/folder"),
    ("unable to open database", "name a store that you may write to: NIX_REMOTE=/absolute/folder"),
    (
        "appear to be a binary cache",
        "name a server that also takes what is put there (HTTP's PUT), or a folder: file://…",
    ),
    ("signature", "name the key that signed it with --trusted-public-keys, or another cache"),
)


class Where(Protocol):
    """Is told the name of a derivation and the machine that builds it ("" for this one), or the cache that it comes from."""

    def __call__(self, name: str, place: str, *, cached: bool) -> None: ...


class NixError(ToolError):
    """Nix is missing, too old, or failed."""


class LostError(NixError):
    """The connection to a machine that was building broke off."""

    hint = "look at that machine, or leave it out of --builders; what others have built is kept"


@dataclass(frozen=True)
class Nix:
    """The programs, with an environment and further options for all of them; `note` is told what users want to know."""

    environ: Mapping[str, str]
    options: tuple[str, ...] = ()
    note: Callable[[str], None] = field(default=lambda _: None)

    def check(self) -> None:
        """Raises `NixError` unless there is a Nix that is new enough, whose store is on this machine."""
        text = run(["nix", "--version"], env=self.environ, hint=_INSTALL).decode(errors="replace")
        found = re.search(r"(\d+)\.(\d+)(\S*)\s*$", text)
        if not found or (int(found[1]), int(found[2])) < OLDEST:
            raise NixError(f"{text.strip() or 'nix'}: too old", hint=_INSTALL)
        if not self.root.is_absolute():
            raise NixError(f"NIX_REMOTE: {self.root} is not an absolute folder", hint="NIX_REMOTE=/absolute/folder")

    @property
    def root(self) -> Path:
        """What stands before `/nix/store` on this machine's disk. Raises `NixError` for a store that is elsewhere."""
        remote = self.environ.get("NIX_REMOTE", "")
        if remote.startswith("/"):
            return Path(remote)
        address = urlsplit(remote)
        if remote.partition("?")[0] in ("", "auto", "daemon", "local") or address.scheme == "unix":
            return Path(parse_qs(address.query).get("root", ["/"])[0])
        raise NixError(
            f"NIX_REMOTE={remote}: that store is not on this machine",
            hint="let its machine build: --builders with a store of your own, NIX_REMOTE=/absolute/folder",
        )

    def real(self, path: str) -> Path:
        """Where a store path is on this machine's disk."""
        return self.root / path.lstrip("/")

    def add(self, folder: Path) -> str:
        """Adds a folder under its own name; its store path."""
        return self._plain("nix-store", "--add", str(folder)).decode().strip()

    def add_files(self, files: Iterable[tuple[Path, int]]) -> None:
        """Adds files, each with its size, as what a fetch of their sha256 gives, under their own names: several at once, because
        Nix hashes each of them twice."""
        ordered = sorted(files, key=lambda item: (-item[1], item[0]))
        large = [[str(path)] for path, size in ordered if size >= _LARGE]
        small = [str(path) for path, size in ordered if size < _LARGE]
        groups = [*large, *(small[start : start + _MOST] for start in range(0, len(small), _MOST))]

        def add(group: Sequence[str]) -> None:
            self._plain("nix-store", "--add-fixed", "sha256", *group)

        for failure in for_each(add, groups, THREADS, Stop()):
            raise failure

    def valid(self, path: str) -> bool:
        """Whether the store has a path."""
        try:
            self._plain("nix-store", "--check-validity", path)
        except NixError:
            return False
        return True

    def missing(self, arguments: Sequence[str]) -> tuple[str, ...]:
        """The names of the derivations that `build` would have to build: neither the store nor a cache has what they make."""
        lines: list[str] = []
        status, _ = follow(self._argv("build", "--dry-run", *arguments), lines.append, env=self.environ, hint=_INSTALL)
        if status:
            raise _failure([line for line in lines if line.strip()], "nix build --dry-run")
        names, listed = [], False
        for line in lines:
            if line.startswith("warning: ") and "; retrying in" not in line and _IGNORED not in line:
                self.note(f"nix: {line.removeprefix('warning: ')}")
            if not line.startswith("  "):
                listed = "will be built" in line
            elif listed and line.strip().endswith(".drv"):
                names.append(_name(line.strip()))
        return tuple(names)

    def build(self, arguments: Sequence[str], where: Where, called: Mapping[str, str]) -> tuple[str, ...]:
        """Builds and gives the outputs' store paths; `where` is told the name of every derivation and which machine or cache
        it comes from, as that begins. Errors speak of derivations as they are `called`."""
        log = _Log(where, self.note, called)
        argv = self._argv("build", "--log-format", "internal-json", "--json", "--keep-going", *arguments)
        status, out = follow(argv, log, env=self.environ, hint=_INSTALL)
        if status:
            raise log.failure()
        return tuple(path for built in json.loads(out) for path in built["outputs"].values())

    def command(self, *arguments: str) -> bytes:
        """Runs `nix ARGUMENTS` and returns what it printed."""
        return self._plain(*self._argv(*arguments))

    def _argv(self, verb: str, *arguments: str) -> list[str]:
        return ["nix", verb, "--extra-experimental-features", "nix-command", *_ALWAYS, *self.options, *arguments]

    def _plain(self, *argv: str) -> bytes:
        lines: list[str] = []
        status, out = follow(argv, lines.append, env=self.environ, hint=_INSTALL)
        if status:
            raise _failure(lines, " ".join(argv[:2]))
        return out


class _Log:
    """Nix's log as JSON, a line at a time (its `internal-json`); what is unknown is passed over."""

    def __init__(self, where: Where, note: Callable[[str], None], called: Mapping[str, str]) -> None:
        self._where, self._note, self._called = where, note, called
        self._errors: list[str] = []
        self._activities: dict[int, tuple[str, str]] = {}
        self._refused: list[tuple[str, str | None]] = []
        self._unsigned: list[str] = []

    def __call__(self, line: str) -> None:
        try:
            event = json.loads(line.removeprefix("@nix ")) if line.startswith("@nix ") else {}
        except (ValueError, RecursionError):
            event = {}
        match event:
            case {"action": "start", "type": int(kind), "id": int(number), "fields": [str(path), str(place), *_]} if (
                kind in (_BUILD, _SUBSTITUTE)
            ):
                self._activities[number] = _name(path), place
                self._where(_name(path), place, cached=kind == _SUBSTITUTE)
            case {"action": "result", "type": 101, "id": int(number), "fields": [str(text), *_]} if text.startswith(
                MARK
            ):
                self._refuse(text, *self._activities.get(number, ("a layer", "")))
            case {"action": "msg", "level": int(level), "msg": str(text)}:
                self._message(level, COLOUR.sub("", text).strip())
            case _ if line and not line.startswith("@nix "):
                self._errors.append(COLOUR.sub("", line))

    def _message(self, level: int, text: str) -> None:
        if level == _ERROR:
            self._errors.append(text)
        elif level == _WARNING and text and "; retrying in" not in text and _IGNORED not in text:
            if UNSIGNED in text:
                self._unsigned.append(text)
            self._note(f"nix: {text.removeprefix('warning: ')}")

    def _refuse(self, text: str, name: str, place: str) -> None:
        try:
            message, hint = json.loads(text.removeprefix(MARK))
        except (ValueError, TypeError, RecursionError):
            return  # it is not ours
        where = f"{self._called.get(name, name)}{f' on {place}' if place else ''}"
        self._refused.append((f"{where}: {message}", hint if isinstance(hint, str) else None))

    def failure(self) -> BuilderError:
        """Why the build failed."""
        for message, hint in self._refused:
            return BuilderError(message, hint=hint)
        if self._unsigned:
            return _failure(self._unsigned, "nix build")
        text = "\n".join(self._errors)
        if lost := _LOST.search(text):
            names = set(map(_name, _DERIVATION.findall(text)))
            for name, place in self._activities.values():
                if place and name in names:
                    what = self._called.get(name, name)
                    return LostError(f"{place} was lost while it built {what}: {lost[0]}", output=text)
        return _failure(self._errors, "nix build")


def _name(path: str) -> str:
    return path[_HASH:].removesuffix(".drv")


def _failure(lines: Iterable[str], what: str) -> NixError:
    """Why a program failed. What it only warned of is told as well, but decides on the remedy only where nothing else does."""
    told = [line for line in COLOUR.sub("", "\n".join(lines)).splitlines() if _IGNORED not in line]
    text = "\n".join(told).strip()[-4000:]
    errors = "\n".join(line for line in told if not line.startswith("warning: "))
    hint = next((remedy for known in (errors, text) for sign, remedy in _REMEDIES if sign in known), None)
    return NixError(f"{what} failed: {text or 'it printed nothing'}", hint=hint, output=text)


def setting(name: str, value: Any) -> tuple[str, ...]:
    """One of Nix's settings, as options of its programs."""
    return ("--option", name, str(value)) if value is not None else ()
