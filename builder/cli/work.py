"""What several verbs do: read a profile, get its lock, bring inputs, assemble."""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from builder import baseimage
from builder import plan as plans
from builder import profile as profiles
from builder.assemble import Engine, assemble
from builder.cli.context import Context
from builder.cli.lockfile import LockFile
from builder.errors import StaleLockError, UsageError
from builder.fetch import Download, Fetcher
from builder.image import Assembled, BuiltLayer
from builder.lock import Lock, LockedFile
from builder.oci.content import Source
from builder.own import Local, read_local
from builder.packing import Folder
from builder.parallel import Once
from builder.places.blobs import BaseLayers
from builder.plan import NIX_ORIGIN
from builder.profile import LoadedProfile
from builder.staleness import staleness

if TYPE_CHECKING:
    from builder.layercache.cache import LayerCache
    from builder.models.sources import Means
    from builder.plan import Layer
    from builder.resolve import Places
    from builder.sources.origins import ConfiguredOrigins

_ARCHITECTURES = {"x86_64": "amd64", "aarch64": "arm64"}


@dataclass(frozen=True)
class Work:
    """A profile that was read, its local inputs as they are now, and where its lock is."""

    context: Context
    loaded: LoadedProfile
    local: Local
    lock_file: LockFile

    @classmethod
    def open(cls, context: Context, path: Path) -> Work:
        """Reads the profile at `path`."""
        loaded = profiles.read(path)
        lock = LockFile(path.with_suffix(".lock.json"))
        return cls(context, loaded, read_local(loaded, context.store, context.progress, lock.start), lock)

    @property
    def lock_path(self) -> Path:
        """Where the lock is."""
        return self.lock_file.path

    def read_lock(self) -> Lock | None:
        """The lock beside the profile, whatever profile it belongs to; None if there is none."""
        return self.lock_file.read()

    def make_lock(self, upgrade: bool | frozenset[str] = False) -> tuple[Lock, bool]:
        """Makes the lock, keeping what need not move, and writes it; and whether it is another one than before."""
        previous = self.read_lock()
        from builder.resolve import resolve  # what only resolving needs takes long to import

        with self.context.store.in_use():  # models may take hours to come
            lock = resolve(
                self.loaded,
                self.local,
                self._places(),
                created=_now(self.context),
                previous=previous,
                upgrade=upgrade,
                progress=self.context.progress,
            )
        if lock == previous:
            return lock, False
        self.lock_file.write(lock)
        return lock, True

    def current_lock(self, relock: bool, *, make: bool = False) -> Lock:
        """The lock if it belongs to the profile; it is made if `relock` asks for it, or there is none and `make` allows it.

        Raises `StaleLockError` with the reasons.
        """
        lock = None if relock else self.read_lock()
        if lock is None and not (relock or make):
            raise StaleLockError(
                f"{self.lock_path}: there is no lock", hint=f"run `build lock {self.loaded.path}`, or add --lock"
            )
        if lock is None:
            lock, changed = self.make_lock()
            if changed:
                self.context.progress.note(f"wrote {self.lock_path}")
            return lock
        if reasons := staleness(self.loaded, self.local, lock):
            raise StaleLockError(
                f"{self.lock_path} is stale: {'; '.join(reasons)}",
                hint=f"run `build lock {self.loaded.path}` and review the change of the lock, or add --lock",
            )
        return lock

    def assemble(
        self, lock: Lock, ready: Callable[[BuiltLayer], None] = lambda _: None, engine: Engine | None = None
    ) -> Assembled:
        """Assembles the images of the lock in the store; `ready` is called with every layer as soon as it is there, `engine`
        is asked for layers first."""
        context, fetcher = self.context, self.fetcher
        folder = Folder(self.loaded.root, self.local.rendered)
        planned = plans.plan(lock)

        def bring(missing: Sequence[Layer]) -> None:
            if self.cache:
                self.cache.pull(missing, planned.soci)

        return assemble(planned, context.store, fetcher, folder, context.progress, jobs(), ready, engine, bring)

    @cached_property
    def cache(self) -> LayerCache | None:
        """The layer cache that the settings name, if it may be asked."""
        if self.context.settings.cache is None or self.context.settings.offline:
            return None
        from builder.cli.layercache import cache_of  # it takes long to import, and not everybody has one

        return cache_of(self.context, self.context.settings.cache)

    def unsent(self, lock: Lock) -> list[Layer]:
        """The layers of the lock that should be sent to the cache, as far as the store remembers."""
        settings = self.context.settings
        if settings.cache is None or settings.offline or not (settings.cache.sign or settings.cache.unsigned):
            return []
        from builder.layercache.memory import is_cached, is_there

        at, store = settings.cache.at, self.context.store
        layers = (layer for platform in plans.plan(lock).platforms for layer in platform.layers)
        return [layer for layer in layers if is_cached(layer) and not is_there(at, layer, store)]

    def share(self, lock: Lock, layers: Sequence[Layer] | None = None) -> int:
        """These layers, or else those that are `unsent`, are in the cache afterwards; how many were sent."""
        wanted = self.unsent(lock) if layers is None else layers
        return self.cache.push(wanted, plans.plan(lock).soci) if wanted and self.cache else 0

    @property
    def means(self) -> Means | None:
        """What the models of the profile need, where there are any."""
        if not self.loaded.profile.models:
            return None
        from builder.cli.means import means_of  # it takes long to import, and few profiles have models

        return means_of(self.context, self.loaded.root)

    @property
    def artifacts(self) -> tuple[str, ...]:
        """The repositories that models come from: blobs can be mounted from there."""
        return tuple(
            model.source.removeprefix("oci://")
            for model in self.loaded.profile.models
            if model.source.startswith("oci://")
        )

    def _places(self) -> Places:
        from builder.cli.origins import places  # what only resolving needs takes long to import

        base = _base_place(self.context, self.loaded)
        return places(self.context, self.loaded, platform_name(), self.fetcher.ensure, base, self.means)

    @property
    def fetcher(self) -> Fetcher:
        """What brings inputs of locks into the store."""
        return fetcher(self.context, _base_place(self.context, self.loaded), self.loaded)


def fetcher(
    context: Context,
    base: Callable[[], tuple[Source, str | None]] | None = None,
    loaded: LoadedProfile | None = None,
) -> Fetcher:
    """What brings inputs of locks into the context's store, from where its settings say that they are; `base` opens the place
    that has the layers of base images. What Nix does not have, it builds again from the references of a `loaded` profile."""
    others: dict[str, Download] = {NIX_ORIGIN: _Archives(context, loaded)}
    if base:
        others[baseimage.ORIGIN] = BaseLayers(base)
    return context.fetcher(_Origins(context), others=others)


class _Archives:
    """What brings archives of Nix, made when the first is asked for: few images have anything from there."""

    def __init__(self, context: Context, loaded: LoadedProfile | None) -> None:
        self._context, self._loaded = context, loaded
        self._expected: list[LockedFile] = []
        self._made = Once(self._make)

    def expect(self, files: Sequence[LockedFile]) -> None:
        self._expected += files

    def __call__(self, file: LockedFile, path: Path, advance: Callable[[int], None]) -> None:
        self._made()(file, path, advance)

    def _make(self) -> Download:
        from builder.sources.nix import Archives
        from builder.sources.nixtool import Tool

        context, loaded = self._context, self._loaded
        profile = loaded.profile if loaded else None
        references = [
            (item, each.architecture)
            for item in (profile.from_nix if profile else ())
            for each in (profile.platforms if profile else ())
        ]
        tool = Tool(context.environ, context.progress.note)
        return Archives(tool, loaded.root if loaded else Path(), references, self._expected)


class _Origins:
    """The configured origins, found when the first file is asked for."""

    def __init__(self, context: Context) -> None:
        self._context = context
        self._configured = Once(self._find)

    def urls(self, file: LockedFile) -> Iterable[str]:
        return self._configured().urls(file)

    def _find(self) -> ConfiguredOrigins:
        from builder.cli.origins import origins  # it takes long to import; a build of what is there asks nobody

        return origins(self._context)


def base_name(loaded: LoadedProfile) -> str | None:
    """What the profile's base image is called here: its folders are relative to that of the profile."""
    name = loaded.profile.base.image if loaded.profile.base else None
    scheme, _, path = name.partition(":") if name else ("", "", "")
    return f"{scheme}:{loaded.root / path}" if f"{scheme}:" in baseimage.SCHEMES else name


def base_repository(loaded: LoadedProfile) -> tuple[str, ...]:
    """The repository of the profile's base image, whose layers another one of the same registry may mount."""
    name = loaded.profile.base.image if loaded.profile.base else None
    return () if name is None or name.startswith(baseimage.SCHEMES) else (name,)


def _base_place(context: Context, loaded: LoadedProfile) -> Callable[[], tuple[Source, str | None]] | None:
    name = base_name(loaded)
    if name is None:
        return None

    def opened() -> tuple[Source, str | None]:
        from builder.places.opening import open_source

        return open_source(name, context)

    return opened


def platform_name() -> str:
    """This machine's architecture in the words of an OCI platform."""
    return _ARCHITECTURES.get(platform.machine(), platform.machine())


def _now(context: Context) -> str:
    """The time of a new lock, RFC 3339 in UTC; SOURCE_DATE_EPOCH means what it means elsewhere."""
    epoch = context.environ.get("SOURCE_DATE_EPOCH")
    try:
        seconds = int(epoch) if epoch else int(context.clock())
        if seconds < 0:
            raise ValueError("before 1970")
        return datetime.fromtimestamp(seconds, UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    except (ValueError, OverflowError, OSError) as error:
        raise UsageError(f"SOURCE_DATE_EPOCH: {epoch!r} is no number of seconds since 1970") from error


def jobs() -> int:
    """How many layers are packed at once."""
    return max(1, len(os.sched_getaffinity(0)))
