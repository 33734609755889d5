"""The comparison of two sides. Layers that both have are not read; of images the layers that only one has are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass

from builder.differ.files import FileChange, Inventory
from builder.differ.sides import ImageSide, LayerSide, LockSide, OwnFile, Side
from builder.documents.changes import Change, changes
from builder.progress import Progress

Files = Callable[[], Iterator[FileChange]]


@dataclass(frozen=True)
class VersionChange:
    """A package of another version; None where it is not."""

    name: str
    before: str | None
    after: str | None


@dataclass(frozen=True)
class PlatformComparison:
    """What differs for one platform; `files` gives the changes of files one at a time, None where they were not compared.

    Of two images, `shared` are the layers that both have, `before` and `after` those of one only.
    """

    platform: str
    packages: tuple[VersionChange, ...]
    wheels: tuple[VersionChange, ...]
    settings: tuple[Change, ...]
    shared: tuple[LayerSide, ...] = ()
    before: tuple[LayerSide, ...] = ()
    after: tuple[LayerSide, ...] = ()
    sizes: tuple[int, int] | None = None
    files: Files | None = None

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        return not (self.packages or self.wheels or self.settings or self.before or self.after or self._any_file())

    def _any_file(self) -> bool:
        return self.files is not None and next(self.files(), None) is not None


@dataclass(frozen=True)
class Comparison:
    """What differs in two sides. `missing` and `extra` are platforms of only the first, or only the second; `values` is what
    differs in locks or profiles beside that, `files` what differs in the files that the profiles bring."""

    platforms: tuple[PlatformComparison, ...]
    missing: tuple[str, ...]
    extra: tuple[str, ...]
    values: tuple[Change, ...] = ()
    files: tuple[FileChange, ...] = ()

    @property
    def same(self) -> bool:
        """Whether nothing differs."""
        parts = self.missing or self.extra or self.values or self.files
        return not parts and all(platform.same for platform in self.platforms)


@contextmanager
def compare(before: Side, after: Side, progress: Progress, *, read_layers: bool = True) -> Iterator[Comparison]:
    """Compares two sides, of one kind or of two; of two kinds only what both say is compared: versions and settings.

    Without `read_layers` nothing is said of files, nor of packages of images. Files can be asked for inside of the block.
    """
    with ExitStack() as stack:
        one, other = set(before.settings), set(after.settings)
        platforms = tuple(_platform(name, before, after, progress, stack, read_layers) for name in sorted(one & other))
        values: tuple[Change, ...] = ()
        files: tuple[FileChange, ...] = ()
        if isinstance(before, LockSide) and isinstance(after, LockSide):
            values = tuple(changes(before.values, after.values))
            files = tuple(_own(before.files, after.files))
        yield Comparison(platforms, tuple(sorted(one - other)), tuple(sorted(other - one)), values, files)


def _platform(
    name: str, before: Side, after: Side, progress: Progress, stack: ExitStack, read_layers: bool
) -> PlatformComparison:
    settings = tuple(changes(before.settings[name], after.settings[name]))
    if isinstance(before, LockSide) and isinstance(after, LockSide):
        packages = _versions(before.packages[name], after.packages[name])
        return PlatformComparison(name, packages, _versions(before.wheels[name], after.wheels[name]), settings)
    layers = [side.layers[name] if isinstance(side, ImageSide) else () for side in (before, after)]
    shared = {layer.blob.digest for layer in layers[0]} & {layer.blob.digest for layer in layers[1]}
    only = [tuple(layer for layer in side if layer.blob.digest not in shared) for side in layers]
    versions: list[tuple[Mapping[str, str], Mapping[str, str]]] = []
    files: Files | None = None
    if read_layers:
        inventory = stack.enter_context(Inventory())
        total = sum(layer.blob.size for side in only for layer in side)
        with progress.task("reading layers", total) as task:
            for number, side in enumerate((before, after)):
                if isinstance(side, ImageSide):
                    other = (after, before)[number]
                    base = other.bases.get(name, 0) if isinstance(other, LockSide) else None
                    inventory.add(number, side.source, only[number], task.advance, base)
                    versions.append((inventory.packages(number), inventory.wheels(number)))
                else:
                    versions.append((side.packages[name], side.wheels[name]))
        if isinstance(before, ImageSide) and isinstance(after, ImageSide):
            files = inventory.changes
    else:
        versions = [({}, {})] * 2
    images = isinstance(before, ImageSide) and isinstance(after, ImageSide)
    sizes = (_size(layers[0]), _size(layers[1])) if images else None
    return PlatformComparison(
        name,
        _versions(versions[0][0], versions[1][0]),
        _versions(versions[0][1], versions[1][1]),
        settings,
        tuple(layer for layer in layers[0] if layer.blob.digest in shared),
        only[0] if images else (),
        only[1] if images else (),
        sizes,
        files,
    )


def _versions(before: Mapping[str, str], after: Mapping[str, str]) -> tuple[VersionChange, ...]:
    return tuple(
        VersionChange(name, before.get(name), after.get(name))
        for name in sorted({*before, *after})
        if before.get(name) != after.get(name)
    )


def _own(before: Mapping[str, OwnFile], after: Mapping[str, OwnFile]) -> Iterator[FileChange]:
    for path in sorted({*before, *after}):
        one, other = before.get(path), after.get(path)
        if one == other:
            continue
        if one is None or other is None:
            change = "added" if one is None else "removed"
            yield FileChange(path, change, (), one.size if one else None, other.size if other else None)
            continue
        what = tuple(name for name in ("type", "mode", "content") if getattr(one, name) != getattr(other, name))
        yield FileChange(path, "changed", what or ("content",), one.size, other.size)


def _size(layers: Sequence[LayerSide]) -> int:
    return sum(layer.blob.size for layer in layers)
