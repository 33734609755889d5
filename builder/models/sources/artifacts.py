"""Models that are published already: `oci://HOST/REPOSITORY:TAG`, as ModelPack, or as any artifact of plain files or of
archives."""

from __future__ import annotations

from collections.abc import Sequence

from builder.errors import FetchError
from builder.lock import LockedModel, LockedModelFile
from builder.models.artifact import read_artifact
from builder.models.sources import Collected, Means, Wanted
from builder.models.sources.archives import Archive, unpacked
from builder.models.sources.selection import select
from builder.models.values import BadModelError, LocalModelFile, ModelArtifact
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.places.remote import Remote
from builder.store import hash_of, partial_lock
from builder.transfer import settle

_PIECE = 1 << 20


def collect(text: str, wanted: Wanted, means: Means) -> Collected:
    """The wanted files of the artifact that the reference stands for now; its digest is in the lock."""
    source, reference = means.open_source(text.removeprefix("oci://"))
    manifest = source.resolve(reference)
    artifact = read_artifact(source, manifest, archives=True)
    by_path = {file.path: LockedModelFile(file.path, file.sha256, file.size) for file in artifact.files}
    for file in _unpacked(source, artifact, means):
        if file.path in by_path and by_path[file.path] != file:
            raise BadModelError(f"{manifest.digest}: {file.path!r} is there twice, with other bytes")
        by_path[file.path] = file
    paths = select(by_path, wanted, f"models: {text}")
    files = [by_path[path] for path in paths]
    _bring(source, artifact, files, means)
    place = text.removeprefix("oci://").partition("/")[2].partition("@")[0]
    name = place.rpartition(":")[0] or place
    return Collected(f"oci:///{name}@{manifest.digest}", tuple(map(means.stored, files)))


def bring(text: str, locked: LockedModel, files: Sequence[LockedModelFile], means: Means) -> tuple[LocalModelFile, ...]:
    """The files of the artifact whose digest is locked."""
    missing = [file for file in files if not means.store.has(Digest(file.sha256), file.size)]
    if missing:
        source, _ = means.open_source(text.removeprefix("oci://"))
        manifest = source.resolve(locked.source.rpartition("@")[2])
        artifact = read_artifact(source, manifest, archives=True)
        _unpacked(source, artifact, means)
        _bring(source, artifact, missing, means)
    return tuple(map(means.stored, files))


def _unpacked(source: Source, artifact: ModelArtifact, means: Means) -> tuple[LockedModelFile, ...]:
    """The files in the artifact's archives, all of them in the store."""
    if not artifact.archives:
        return ()
    with means.progress.task("unpack model") as task:
        archives = [Archive(source, layer, name) for layer, name in artifact.archives]
        return tuple(file for archive in archives for file in unpacked(archive, means.store, task.advance))


def _bring(source: Source, artifact: ModelArtifact, files: Sequence[LockedModelFile], means: Means) -> None:
    layers = {file.sha256: layer for layer, file in artifact.layers}
    missing = {file.sha256: file for file in files if not means.store.has(Digest(file.sha256), file.size)}
    total = sum(file.size for file in missing.values())
    means.check_space(total, str(artifact.manifest.digest))
    with means.progress.task("fetch model", total) as task:
        if isinstance(source, Remote):
            source.watch = task.advance
        for file in missing.values():
            if file.sha256 not in layers:
                raise FetchError(f"{artifact.manifest.digest}: it has no file with the sha256 of {file.path!r}")
            _fetch(source, layers[file.sha256], means)


def _fetch(source: Source, layer: Descriptor, means: Means) -> None:
    store = means.store
    with store.locked(partial_lock(layer.digest)):
        if store.has(layer.digest, layer.size):
            return
        if isinstance(source, Remote):
            path = store.partial(layer.digest)
            with store.explained():
                source.download(layer, path)
            store.adopt(path, layer.digest)
            settle(path)
            return
        with store.temporary() as path:
            with path.open("wb") as file, source.blob(layer) as stream:
                while piece := stream.read(_PIECE):
                    file.write(piece)
            with path.open("rb") as file:
                found = hash_of(file.fileno())
            if found != layer.digest:
                raise FetchError(f"{layer.digest}: the place gives other bytes, {found}")
            store.adopt(path, layer.digest)
