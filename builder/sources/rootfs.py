"""The operating system's layer out of .debs, without running any script of theirs.

Rules of the format:

* `/bin`, `/sbin`, `/lib` and `/lib*` are symlinks to the same below `/usr`, and what packages put there moves along.
* Documentation stays out: what lies in `/usr/share/doc`, except copyright files; `/usr/share/man`, `info` and
  `lintian`; `/usr/share/locale`, except `C` and what is no locale's.
* A file that two packages have is one file if the bytes and modes are equal. If not, the package that `Replaces` the
  other wins, else it is an error. Diversions are a script's work and do not happen.
* Each package is recorded in `/var/lib/dpkg/status.d`, as in distroless images, where scanners look.
* What maintainer scripts would have made, and a root needs, is in `postinst`.

Entries are sorted by path as UTF-8 bytes, and every parent directory is there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

from builder.errors import BuilderError, HostileInputError, StoreError
from builder.layers.tar import Entry, Inline, Kind
from builder.layers.unpack import same_content
from builder.lock import LockedDeb
from builder.sources import deb, postinst
from builder.sources.control import relations
from builder.sources.deb import Deb

_MERGED = ("bin", "lib", "lib32", "lib64", "libo32", "libx32", "sbin")
_ALWAYS_MERGED = ("bin", "lib", "sbin")
_DROPPED = ("usr/share/doc", "usr/share/info", "usr/share/lintian", "usr/share/locale", "usr/share/man")
_STATUS = "var/lib/dpkg/status.d"
_THREADS = 2


class PackageConflictError(BuilderError):
    """Two packages cannot be in one root."""

    hint = "leave out one of the two packages"


def entries(
    debs: Sequence[LockedDeb],
    open_deb: Callable[[LockedDeb], Path],
    spool_dir: Path,
    *,
    executable: str | None = None,
) -> tuple[Entry, ...]:
    """The layer of some packages. `open_deb` says where the bytes of each lie; they are checked against the lock again.

    Contents lie in files of `spool_dir` (made if absent), which has to stay as long as the entries are used.
    `executable` is the absolute path of the image's interpreter: `/usr/bin/python3` is a link to it unless a package
    brings that.
    """
    spool_dir.mkdir(parents=True, exist_ok=True)
    ordered = sorted(debs)
    with ThreadPoolExecutor(_THREADS) as pool:
        packages = list(pool.map(lambda locked: _read(locked, open_deb(locked), spool_dir), ordered))
    tree = _Tree()
    for package in packages:
        for entry in package.entries:
            for moved in placed(entry, package):
                tree.add(moved, package)
    for package in packages:
        for entry in _record(package):
            tree.add(entry, package)
    for entry in _links(tree.paths):
        tree.add(entry, None)
    for entry in postinst.made(tree.paths, {package.name for package in packages}, executable):
        tree.put(entry)
    return tree.sorted()


def _read(locked: LockedDeb, path: Path, spool_dir: Path) -> Deb:
    """The package, if it is the one that the lock names, to the byte."""
    label = locked.file.path.rpartition("/")[2]
    try:
        with path.open("rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise StoreError(
            f"{label}: {path}: {error.strerror}", hint="run the command again: it is fetched anew"
        ) from error
    if sha256 != locked.file.sha256:
        raise StoreError(f"{label}: {path} has other bytes than the lock names", hint=f"remove {path} and run again")
    package = deb.read(path, spool_dir / f"{locked.name}.tar", label)
    told = (package.name, package.version, package.fields["architecture"])
    if told != (locked.name, locked.version, locked.architecture):
        raise HostileInputError(f"{label}: control: it says that it is {' '.join(told)}, unlike the lock")
    return package


def placed(entry: Entry, package: Deb) -> Iterator[Entry]:
    """The entry at its place below /usr, or nothing if it stays out."""
    top, slash, _ = entry.path.partition("/")
    if top in _MERGED and entry.kind is Kind.SYMLINK and not slash:
        if entry.linkname.strip("/") != f"usr/{top}":
            raise HostileInputError(f"{package.label}: {top}: it links to {entry.linkname!r}, not to usr/{top}")
    elif top in _MERGED:
        yield replace(entry, path=f"usr/{entry.path}")
    elif _stays(entry):
        yield entry


def _stays(entry: Entry) -> bool:
    """Documentation is left out. A link in /usr/share/doc stands for another package's folder, so for its copyright."""
    top = next((top for top in _DROPPED if entry.path == top or entry.path.startswith(top + "/")), None)
    if top is None:
        return True
    rest = entry.path[len(top) + 1 :].split("/")
    if top == "usr/share/doc":
        return rest[-1] == "copyright" or (len(rest) == 1 and entry.kind is Kind.SYMLINK)
    if top == "usr/share/locale":
        return entry.kind is not Kind.DIR and (rest[0] in ("C", "C.UTF-8", "C.utf8") or len(rest) == 1)
    return False


def _record(package: Deb) -> Iterator[Entry]:
    """The control stanza, and the checksums of the files that are in the layer."""
    control = package.control.strip("\n") + "\n"
    yield Entry(f"{_STATUS}/{package.name}", content=Inline(control.encode()))
    kept = {entry.path for entry in package.entries if _stays(entry)}
    lines = [line for line in package.md5sums.splitlines() if line[32:].strip().removeprefix("./") in kept]
    if lines:
        yield Entry(
            f"{_STATUS}/{package.name}.md5sums", content=Inline("".join(f"{line}\n" for line in lines).encode())
        )


def _links(paths: Mapping[str, Entry]) -> Iterator[Entry]:
    """The links of the merged /usr; the rare ones only if something is there."""
    for name in _MERGED:
        if name in _ALWAYS_MERGED or any(path == f"usr/{name}" or path.startswith(f"usr/{name}/") for path in paths):
            yield Entry(f"usr/{name}", Kind.DIR, 0o755)
            yield Entry(name, Kind.SYMLINK, 0o777, linkname=f"usr/{name}")


class _Tree:
    """Entries by path, each with the package that brought it."""

    def __init__(self) -> None:
        self.paths: dict[str, Entry] = {}
        self._owners: dict[str, Deb | None] = {}

    def add(self, entry: Entry, owner: Deb | None) -> None:
        known = self.paths.get(entry.path)
        if known is None or self._wins(entry, owner, known):
            self.paths[entry.path] = entry
            self._owners[entry.path] = owner

    def put(self, entry: Entry) -> None:
        """Sets an entry that no package has, or the mode of a directory that one has."""
        self.paths[entry.path] = entry
        self._owners.setdefault(entry.path, None)

    def sorted(self) -> tuple[Entry, ...]:
        for path in list(self.paths):
            self._add_parents(path)
        return tuple(self.paths[path] for path in sorted(self.paths, key=str.encode))

    def _wins(self, entry: Entry, owner: Deb | None, known: Entry) -> bool:
        """Whether an entry takes the place of another one; raises if neither may."""
        if entry.kind is known.kind is Kind.DIR:
            return entry.mode > known.mode
        if _equal(entry, known):
            return False
        before = self._owners[entry.path]
        if owner is None or before is None:
            other = owner or before
            raise PackageConflictError(
                f"/{entry.path} of {_name(other)} is not what the layout of the root needs there"
            )
        wins, loses = _replaces(owner, before), _replaces(before, owner)
        if wins is loses:
            raise PackageConflictError(f"{before.name} and {owner.name} both have /{entry.path}, and they differ")
        return wins

    def _add_parents(self, path: str) -> None:
        parent = path.rpartition("/")[0]
        while parent:
            above = self.paths.setdefault(parent, Entry(parent, Kind.DIR, 0o755))
            if above.kind is not Kind.DIR:
                below, owner = _name(self._owners[path]), _name(self._owners.get(parent))
                raise PackageConflictError(f"{below} has /{path}, but /{parent} is a {above.kind} of {owner}")
            parent = parent.rpartition("/")[0]


def _equal(one: Entry, other: Entry) -> bool:
    if (one.kind, one.mode, one.linkname) != (other.kind, other.mode, other.linkname):
        return False
    return same_content(one.content, other.content)


def _replaces(package: Deb, other: Deb) -> bool:
    try:
        groups = relations(package.fields.get("replaces", ""))
        return any(each.name == other.name and each.allows(other.version) for group in groups for each in group)
    except ValueError as error:
        raise HostileInputError(f"{package.label}: control: Replaces: {error}") from error


def _name(owner: Deb | None) -> str:
    return owner.name if owner else "the root's layout"
