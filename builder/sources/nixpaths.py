"""What is in the paths of a Nix closure: archives in the store to trees, and to the entries of layers. Nix is not asked."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator

from builder.errors import StoreError
from builder.layers.merge import Origin, merge
from builder.layers.tar import Entry, Kind, Region
from builder.lock import LockedFile, LockedNix, LockedNixPath
from builder.oci.digest import Digest
from builder.plan import NixLayer, nix_file
from builder.sources import nar
from builder.sources.local import image_path
from builder.store import Store

MTIME = 1
"""As in every Nix store: what was compiled there remembers the time of its source."""


def trees(
    nix: LockedNix, store: Store, ensure: Callable[[Iterable[LockedFile]], None] | None = None
) -> dict[str, tuple[nar.Node, ...]]:
    """What is in the paths of a closure, by their names; in those whose archives are not in the store only if `ensure` may bring
    them."""
    if ensure:
        ensure([nix_file(path) for path in nix.paths])
    there = [path for path in nix.paths if store.has(Digest(path.sha256), path.size)]
    return {path.name: nar.read(store.path(Digest(path.sha256)), path.name) for path in there}


def entries(layer: NixLayer, store: Store) -> tuple[Entry, ...]:
    """The entries of a layer: its paths as they lie in a Nix store, and its links. Archives are checked against the lock again.

    Raises `StoreError` where one is damaged, `HostileInputError` where one is not in the form of an archive.
    """
    origins = [Origin(path.name, tuple(_entries(path, store))) for path in layer.paths]
    links = (Entry(image_path(link.to), Kind.SYMLINK, 0o777, linkname=link.target) for link in layer.links)
    return merge([*origins, Origin("the links of the profile", tuple(links))])


def _entries(path: LockedNixPath, store: Store) -> Iterator[Entry]:
    digest = Digest(path.sha256)
    archive = store.path(digest)
    if not store.verify(digest):
        raise StoreError(f"{path.name}: its archive is damaged", hint="run the same command again: it is brought anew")
    for node in nar.read(archive, path.name):
        place = f"nix/store/{path.name}" + (f"/{node.path}" if node.path else "")
        match node.kind:
            case Kind.DIR:
                yield Entry(place, Kind.DIR, 0o555, mtime=MTIME)
            case Kind.SYMLINK:
                yield Entry(place, Kind.SYMLINK, 0o777, linkname=node.target, mtime=MTIME)
            case _:
                content = Region(archive, node.offset, node.size, f"{path.name}: {node.path}")
                mode = 0o555 if node.executable else 0o444
                yield Entry(place, Kind.FILE, mode, content, mtime=MTIME)
