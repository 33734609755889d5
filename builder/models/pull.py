"""A published model → a folder: what is missing is brought into the store, then the folder changes in one step."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from builder.errors import BuilderError, UsageError
from builder.models import artifact as artifacts
from builder.models import cache, placing
from builder.models.chunked import Chunked, WrongModelError
from builder.models.fetching import Fetcher
from builder.models.patterns import matches
from builder.models.placing import How
from builder.models.receivers import receivers
from builder.models.values import ModelArtifact, ModelFile, ModelIndex
from builder.models.whole import Bringing, Moved
from builder.oci import files as oci_files
from builder.oci.digest import Digest
from builder.parallel import Stop
from builder.progress import Progress
from builder.registry import WrongBytesError
from builder.store import Store


@dataclass(frozen=True)
class Published:
    """A model that can be pulled: `name` is that of its place, without tag, as `HOST/REPOSITORY` or `oci:DIR`."""

    name: str
    source: cache.Remembering
    artifact: ModelArtifact
    index: ModelIndex | None

    @classmethod
    def open(cls, name: str, source: cache.Remembering, reference: str | None) -> Published:
        """The model that a tag or a digest stands for. Only its documents are read."""
        found = artifacts.open_artifact(source, reference)
        return cls(name, source, found, artifacts.read_index(source, found))

    @property
    def digest(self) -> Digest:
        """The digest of the manifest, by which the model is the same for ever."""
        return self.artifact.manifest.digest

    def chunked(self, wanted: Sequence[ModelFile]) -> tuple[Chunked, ...]:
        """How these files are fetched."""
        blobs = {file.path: blob for blob, file in self.artifact.layers}
        indexed = {each.file.path: each for each in self.index.files} if self.index else {}
        return tuple(Chunked.of(file, blobs[file.path], indexed.get(file.path)) for file in wanted)


@dataclass(frozen=True)
class Pulled:
    """A folder that holds a model now. `changed` is whether it did not before; `how` its files came there then."""

    folder: Path
    digest: Digest
    files: tuple[ModelFile, ...]
    moved: Moved
    changed: bool
    how: How | None

    @property
    def size(self) -> int:
        """The bytes of all files."""
        return sum(file.size for file in self.files)


@dataclass(frozen=True)
class Pulling:
    """How a model is pulled. `subset` are patterns as `patterns.matches` reads them; none means all files."""

    store: Store
    progress: Progress
    subset: tuple[str, ...] = ()
    how: How = How.AUTO
    force: bool = False
    read: bool = False
    """Whether a folder that has the model already is read to see that its bytes are right."""
    ready_file: Path | None = None
    stop: Stop = Stop()  # noqa: RUF009 - one that nobody sets
    processes: int = 0
    """How many processes may receive what is large: forks of this one, so only where it has no threads of other libraries."""

    def pull(self, model: Published, folder: Path) -> Pulled:
        """The folder holds the model afterwards, or is as it was.

        With `ready_file`, that file is there when and only when the folder is complete. Raises `FolderError`,
        `WrongModelError` where what is published is not what it says, and what the source raises.
        """
        self.begin(folder)
        files = selected(model.artifact.files, self.subset)
        if placing.is_whole(folder, model.digest, files, read=self.read):
            self._tell(model.digest)
            return Pulled(folder, model.digest, files, Moved(present=sum(file.size for file in files)), False, None)
        placing.check(folder, self.force, replaced=True)
        moved = self.bring(model, files)
        how = placing.place(self.store, model.digest, files, folder, self.how, force=self.force)
        self._tell(model.digest)
        return Pulled(folder, model.digest, files, moved, True, how)

    def begin(self, folder: Path) -> None:
        """Before anything is asked of the network: the folder may be used, and is called ready only if it holds some model."""
        placing.check(folder, self.force)
        if self.ready_file is not None and placing.held(folder) is None:
            with _explained(self.ready_file):
                self.ready_file.unlink(missing_ok=True)

    def bring(self, model: Published, files: Sequence[ModelFile]) -> Moved:
        """These files are in the store afterwards."""
        older = cache.older(self.store, model.name, model.artifact)
        bringing = Bringing(
            self.store,
            lambda advance, receivers: Fetcher(model.source.source, self.stop, advance, receivers),
            lambda size: receivers(model.source.source, self.processes, size),
            older,
            self.progress,
            self.stop,
        )
        try:
            moved = bringing.bring(model.chunked(files), model.name)
        except WrongBytesError as error:
            raise WrongModelError(str(error)) from error
        cache.note(self.store, model.name, model.artifact)
        return moved

    def _tell(self, digest: Digest) -> None:
        if self.ready_file is not None:
            with _explained(self.ready_file):
                self.ready_file.parent.mkdir(parents=True, exist_ok=True)
                oci_files.write(self.ready_file, json.dumps({"digest": str(digest)}).encode() + b"\n")


def selected(files: Sequence[ModelFile], subset: Sequence[str]) -> tuple[ModelFile, ...]:
    """The files that a pattern matches, or all. Raises `UsageError` for a pattern that matches none."""
    if not subset:
        return tuple(files)
    names = [file.path for file in files]
    for pattern in subset:
        if not any(matches(name, [pattern]) for name in names):
            import difflib  # takes long to import, and few need it

            near = difflib.get_close_matches(pattern, names, 1)
            hint = f"did you mean {near[0]}?" if near else f"it has {', '.join(names[:8])}{' …' if names[8:] else ''}"
            raise UsageError(f"no file of the model matches {pattern!r}", hint=hint)
    return tuple(file for file in files if matches(file.path, subset))


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise BuilderError(
            f"{path}: cannot be written: {error.strerror or error}", hint="name another file with --ready-file"
        ) from error
