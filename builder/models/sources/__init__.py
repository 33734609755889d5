"""Where the files of models come from, one kind a file: folders, addresses, hubs, wheels, artifacts.

Each kind has `collect`, which finds out what there is and brings the bytes to this disk when a model is locked, and `bring`,
which brings locked files again, from the very same place, checked by their digests.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from builder.client import Client
from builder.errors import OfflineError, StoreError
from builder.fetch import Fetcher, Origins
from builder.lock import LockedFile, LockedModel, LockedModelFile
from builder.models.values import LocalModelFile, ModelFile
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.profile.models import scheme_of
from builder.progress import Progress, human_size
from builder.sources.simple import Catalogue
from builder.store import MAKE_ROOM, Store, free_bytes
from builder.transfer import Opener

__all__ = ["Collected", "Means", "Wanted", "bring", "collect"]


@dataclass(frozen=True)
class Wanted:
    """Which files of a source are taken: globs over names and over paths; everything where `include` is empty."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()


@dataclass(frozen=True)
class Means:
    """What sources use: paths are relative to `root`; `fetcher` makes one for origins, with this client if one is given;
    `open_source` opens a registry's repository by its reference; `origins` is where the configuration says origins are; `early` is
    told, from any thread, of a file that will be published before it is read for its digests."""

    root: Path
    store: Store
    client: Client
    catalogue: Catalogue
    fetcher: Callable[[Origins, Opener | None], Fetcher]
    open_source: Callable[[str], tuple[Source, str | None]]
    environ: Mapping[str, str]
    origins: Mapping[str, tuple[str, ...]]
    progress: Progress
    offline: bool = False
    early: Callable[[Path], None] = lambda _: None

    def online(self, what: str) -> None:
        """Raises `OfflineError` where the network may not be used."""
        if self.offline:
            raise OfflineError(f"{what} would have to be asked, and --offline forbids it")

    def check_space(self, needed: int, what: str) -> None:
        """Raises `StoreError` where the store's disk has not so many bytes left."""
        free = free_bytes(self.store.root)
        if needed > free:
            raise StoreError(
                f"{what} has {human_size(needed)}, but {self.store.root} has only {human_size(free)} left",
                hint=MAKE_ROOM,
            )

    def stored(self, file: LockedModelFile) -> LocalModelFile:
        """A file as it lies in the store, or will."""
        return LocalModelFile(ModelFile(file.path, file.size, file.sha256), self.store.path(Digest(file.sha256)))


@dataclass(frozen=True)
class Collected:
    """What a source gives: `source` is its text without a host, with the commit or digest that a name stood for."""

    source: str
    files: tuple[LocalModelFile, ...]
    wheel: LockedFile | None = None


def collect(text: str, wanted: Wanted, means: Means) -> Collected:
    """The files of the source `text` (as in a profile's `from`), sorted by path; their bytes are on this disk afterwards.

    Raises `BadModelError` for names that lie, `RefusedError` for files that can run code and were not asked for, `FetchError`
    and what else the place deserves.
    """
    collected: Collected = _kind(text).collect(text, wanted, means)
    return collected


def bring(text: str, locked: LockedModel, files: Sequence[LockedModelFile], means: Means) -> tuple[LocalModelFile, ...]:
    """These files of a locked model, on this disk; `text` is the profile's `from`, which knows the host.

    What the store has is not asked for. Files of a folder are not read: whoever reads them checks them.
    """
    brought: tuple[LocalModelFile, ...] = _kind(text).bring(text, locked, files, means)
    return brought


def _kind(text: str) -> ModuleType:
    match scheme_of(text):
        case "http" | "https":
            from builder.models.sources import web

            return web
        case "hf":
            from builder.models.sources import hub

            return hub
        case "pypi":
            from builder.models.sources import wheels

            return wheels
        case "oci":
            from builder.models.sources import artifacts

            return artifacts
    from builder.models.sources import local

    return local
