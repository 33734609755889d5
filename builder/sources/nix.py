"""What comes from Nix: references to what the lock says of them, and archives of paths into the store.

Nix is only asked when a profile is locked and when a path's archive is not in our store yet.
"""

from __future__ import annotations

import hashlib
import os
import re
import tempfile
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from builder import documents
from builder.errors import BuilderError, FetchError
from builder.lock import LockedFile, LockedNix, LockedNixLink, LockedNixPath, LockedNixRoot
from builder.lock.closure import named
from builder.oci import spec
from builder.oci.digest import Digest
from builder.plan import nix_file
from builder.profile import Nix
from builder.profile.nix import USUAL_LINKS
from builder.sources import nar
from builder.sources.nixtool import STORE, NixError, Tool, name_of, sha256_of
from builder.store import Store

_MAX_EXPRESSIONS = 10_000


@dataclass(frozen=True)
class Means:
    """How references are looked up: `folder` is the profile's, `ensure` brings archives into `store`."""

    tool: Tool
    folder: Path
    store: Store
    ensure: Callable[[Iterable[LockedFile]], None]


def request(item: Nix) -> str:
    """The digest of what a reference of a profile asks for."""
    return str(Digest.of(spec.encode({"nix": documents.dump(item)})))


def expressions(folder: Path, item: Nix) -> str:
    """The digest of the Nix files that a reference to the profile's own files may read; empty for any other reference.

    Those are `*.nix` and `flake.lock` in the folder of the file or flake, and below it, where no name begins with a dot.
    """
    if item.local is None:
        return ""
    path = folder / item.local[0]
    top = path if path.is_dir() else path.parent
    rows = []
    for found in sorted(_expressions(top), key=os.fsencode):
        try:
            name = os.fsencode(found.relative_to(top)).decode(errors="backslashreplace")
            rows.append([name, hashlib.sha256(found.read_bytes()).hexdigest()])
        except OSError as error:
            raise BuilderError(f"nix: {found}: {error.strerror}", hint="correct `nix` in the profile") from error
        if len(rows) > _MAX_EXPRESSIONS:
            raise BuilderError(
                f"nix: {item.source}: more than {_MAX_EXPRESSIONS} Nix files are beside it",
                hint="put it into a folder of its own",
            )
    return Digest.of(spec.encode({"files": rows})).hex


def _expressions(top: Path) -> Iterator[Path]:
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if not name.startswith(".")]
        for name in files:
            if name.endswith(".nix") or name == "flake.lock":
                yield Path(folder, name)


def lock(
    asked: Sequence[Nix],
    architecture: str,
    means: Means,
    previous: LockedNix | None,
    upgrade: bool | frozenset[str],
) -> LockedNix | None:
    """What references stand for, on an architecture in the words of a platform.

    What `previous` has stays where the same is asked for and `upgrade` (all, or these names) does not move it; only what the
    profile's own files mean is always asked, since they may read anything. Raises `NixError`, and what Nix says.
    """
    if not asked:
        return None
    before = {root.request: root for root in previous.roots} if previous else {}
    kept = {path.name: path for path in previous.paths} if previous else {}
    roots: list[LockedNixRoot] = []
    closure: Iterable[LockedNixPath]
    paths: dict[str, LockedNixPath] = {}
    with tempfile.TemporaryDirectory(prefix="layerwright-nix-") as workplace:
        for number, item in enumerate(asked):
            root = before.get(request(item))
            if root and item.local is None and not _moves(root, upgrade):
                closure = _below(root.outputs, kept)
            else:
                root, closure = _asked(item, architecture, means, Path(workplace, str(number)))
            roots.append(root)
            for path in closure:
                if paths.setdefault(path.name, path) != path:
                    raise NixError(
                        f"nix: {path.name} has another content than when it was locked: its build is not deterministic",
                        hint="`build lock --upgrade` takes all paths as they are now",
                    )
        found = LockedNix(tuple(roots), tuple(sorted(paths.values())))
    _check_links(found)
    return found


def names(nix: LockedNix | None) -> set[str]:
    """The names by which `--upgrade` moves things: those of packages, without versions."""
    return {named(output)[0] for root in nix.roots for output in root.outputs} if nix else set()


def places(nix: LockedNix | None) -> tuple[str, ...]:
    """Where in the image it goes, as absolute paths: the links, and one for all in the store."""
    return ("/nix/store/.links", *(link.to for root in nix.roots for link in root.links)) if nix else ()


def _moves(root: LockedNixRoot, upgrade: bool | frozenset[str]) -> bool:
    if isinstance(upgrade, bool):
        return upgrade
    return any(named(output)[0] in upgrade for output in root.outputs)


def _below(outputs: Iterable[str], paths: dict[str, LockedNixPath]) -> list[LockedNixPath]:
    """The closure of some outputs, out of a lock."""
    found: dict[str, LockedNixPath] = {}
    waiting = list(outputs)
    while waiting:
        name = waiting.pop()
        if name not in found:
            found[name] = paths[name]
            waiting += paths[name].references
    return list(found.values())


def _asked(item: Nix, architecture: str, means: Means, out: Path) -> tuple[LockedNixRoot, tuple[LockedNixPath, ...]]:
    arguments, folder = meaning(item, means.folder)
    label = f"nix: {item.source}"
    outputs = means.tool.build(arguments, architecture, out, folder, label)
    closure = means.tool.closure(outputs)
    by_name = {path.name: path for path in closure}
    links = tuple(sorted(_links(item, [by_name[name] for name in outputs], means)))
    flake = means.tool.flake(arguments[0].partition("#")[0], folder) if is_flake(arguments) else {}
    locked = flake.get("locked") or {}
    root = LockedNixRoot(
        source=hostless(item.source),
        request=request(item),
        outputs=outputs,
        links=links,
        expressions=expressions(means.folder, item),
        flake=sha256_of(locked["narHash"]) if locked.get("narHash") and not item.local else "",
        revision="" if item.local else str(locked.get("rev") or ""),
        inputs=Digest.of(spec.encode(flake["locks"])).hex if flake.get("locks") else "",
    )
    return root, closure


def meaning(item: Nix, folder: Path) -> tuple[list[str], Path]:
    """What Nix is told of a reference, and the folder that it is read in."""
    if item.local is None:
        return [item.source], folder
    name, attribute = item.local
    path = folder / name
    if path.is_dir() and (path / "flake.nix").is_file():
        return [f".#{attribute}" if attribute else "."], path
    file = path / "default.nix" if path.is_dir() else path
    if not file.is_file():
        named = item.source.partition("#")[0]
        what = "there is neither flake.nix nor default.nix in it" if path.is_dir() else "there is no such file"
        hint = f"correct `nix` in the profile, or write flake:{item.source} for what Nix's registry calls {named}"
        raise NixError(f"nix: {item.source}: {what}", hint=hint)
    return ["--file", str(file.absolute()), *([attribute] if attribute else [])], folder


def is_flake(arguments: Sequence[str]) -> bool:
    """Whether Nix is told of a flake."""
    return arguments[0] != "--file" and not arguments[0].startswith(STORE)


def hostless(source: str) -> str:
    """A reference without the host of its address: what it stands for does not depend on where that is."""
    return re.sub(r"://[^/]*", "://", source, count=1)


def _links(item: Nix, outputs: Sequence[LockedNixPath], means: Means) -> Iterator[LockedNixLink]:
    """The links that a reference asks for, with the names of what is there."""
    asked = USUAL_LINKS if item.links is None else item.links
    if not asked:
        return
    means.ensure([nix_file(path) for path in outputs])
    there: dict[str, list[str]] = {}
    below: dict[str, str] = {}
    for output in outputs:
        for node in nar.read(means.store.path(Digest(output.sha256)), output.name):
            if node.path not in below:
                below[node.path] = f"{STORE}{output.name}" + (f"/{node.path}" if node.path else "")
                folder, _, name = node.path.rpartition("/")
                if name:
                    there.setdefault(folder, []).append(name)
    for to, part in asked:
        part = "" if part == "." else part
        if part in there:
            for name in there[part]:
                yield LockedNixLink(f"{to.rstrip('/')}/{name}", below[f"{part}/{name}" if part else name])
        elif part in below:
            yield LockedNixLink(to, below[part])
        elif item.links is not None:
            listed = ", ".join(sorted(there.get(part.rpartition("/")[0], []))[:8]) or "nothing"
            raise NixError(
                f"nix: {item.source}: it has no {part}; beside that it has {listed}",
                hint="correct `links` in the profile",
            )


def _check_links(nix: LockedNix) -> None:
    first: dict[str, LockedNixRoot] = {}
    for root in nix.roots:
        for link in root.links:
            if first.setdefault(link.to, root) is not root:
                raise NixError(
                    f"nix: {first[link.to].source} and {root.source} both bring {link.to}",
                    hint="give one of them `links` that leave it out: {from: …, links: {}}",
                )


@dataclass
class Archives:
    """Brings archives of locked paths: out of this machine's Nix store, from where Nix finds them, or by building the profile's
    references again; for many threads."""

    tool: Tool
    folder: Path
    references: Sequence[tuple[Nix, str]] = ()
    """Those of the profile, each with an architecture in the words of a platform."""
    expected: Sequence[LockedFile] = ()
    """What else may be asked for: it is brought together with the first that is missing."""
    _guard: threading.Lock = field(default_factory=threading.Lock)
    _together: bool = False
    _built: list[str] | None = None

    def __call__(self, file: LockedFile, path: Path, advance: Callable[[int], None]) -> None:
        """The archive is in the file `path`. Raises `FetchError` where nothing gives the path that the lock names."""
        name = name_of(STORE + file.path)
        if self._copied(name, file.sha256, path) or (self._brought() and self._copied(name, file.sha256, path)):
            advance(file.size)
            return
        with tempfile.TemporaryDirectory(prefix="layerwright-nix-") as workplace:
            with self._guard:
                if not self.tool.has(name):
                    self._bring(name, Path(workplace))
            self.tool.dump(name, path)
        advance(file.size)

    def _copied(self, name: str, sha256: str, path: Path) -> bool:
        """Whether the store on this machine's disk has the path with that content. Its word is not taken for it."""
        found = self.tool.on_disk(name)
        if found is None or not os.path.lexists(found):
            return False
        try:
            with path.open("wb") as out:
                nar.write(found, out)
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest() == sha256
        except OSError as error:
            if isinstance(error.filename, bytes | str) and os.fsdecode(error.filename).startswith(str(found)):
                return False
            raise

    def _brought(self) -> bool:
        """Everything that caches have of what is expected is in the store afterwards: that is asked for once."""
        with self._guard:
            if not self._together:
                self._together = True
                names = dict.fromkeys(name_of(STORE + file.path) for file in self.expected)
                lacking = [
                    name for name in names if not (place := self.tool.on_disk(name)) or not os.path.lexists(place)
                ]
                self.tool.bring(lacking, self.folder)
        return True

    def _bring(self, name: str, workplace: Path) -> None:
        try:
            self.tool.build([STORE + name], _any(self.references), workplace / "path", self.folder, f"nix: {name}")
            return
        except BuilderError as error:
            failure = error
        if self._built is None:
            self._built = []
            for number, (item, architecture) in enumerate(self.references):
                arguments, folder = meaning(item, self.folder)
                out = workplace / str(number)
                self._built += self.tool.build(arguments, architecture, out, folder, f"nix: {item.source}")
        if not self.tool.has(name):
            if self._built:
                listed = ", ".join(item.source for item, _ in self.references)
                what = f"nix: {name} is locked, and {listed} gives it no more: what that is has moved"
                raise FetchError(what, hint="run `build lock --upgrade` and review the change of the lock")
            raise FetchError(str(failure), hint=failure.hint) from failure


def _any(references: Sequence[tuple[Nix, str]]) -> str:
    return references[0][1] if references else {"aarch64": "arm64"}.get(os.uname().machine, "amd64")
