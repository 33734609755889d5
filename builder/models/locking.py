"""The models of a profile and their lock: files by digest, and the digest of the artifact that they are published as."""

from __future__ import annotations

import posixpath
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from builder.errors import FetchError, OfflineError, StaleLockError
from builder.lock import LockedFile, LockedModel, LockedModelFile
from builder.models import sources
from builder.models.artifact import EncodedModel, encode
from builder.models.convert import FORMAT as CONVERTER
from builder.models.describe import PRECISIONS, Description
from builder.models.formats.reading import short
from builder.models.scanning import ChangedFileError, known, model_index
from builder.models.sources import Means, Wanted, local
from builder.models.values import BadModelError, LocalModelFile, ModelFile
from builder.oci import spec
from builder.oci.digest import Digest
from builder.profile import Model
from builder.profile.models import scheme_of
from builder.progress import Progress, human_size
from builder.store import Store, hash_of

if TYPE_CHECKING:
    from builder.models.convert.report import Conversion

FORMAT = 1
"""The number of the rules by which files become an artifact. A change of any byte of it raises it."""
_CONVERSION = "model-conversion"
_SHARDS = ".safetensors.index.json"
_SHOWN = 3

Files = Mapping[str, tuple[LockedModelFile, ...]]
"""What the folders of models hold now, by the models' names."""


def scan_local(models: Sequence[Model], root: Path, store: Store | None, progress: Progress) -> Files:
    """The files of the models that lie in folders, as they are now; read only where something touched them."""
    found = {}
    for model in models:
        if scheme_of(model.source) is None:
            files = local.scan(root, model.source, _wanted(model), store, progress)
            found[model.name] = tuple(map(_locked, files))
    return found


def request(model: Model) -> str:
    """The digest of what is asked for: equal requests have equal answers, unless somebody asks for newer ones."""
    document = {
        "from": model.source,
        "include": list(model.include),
        "exclude": list(model.exclude),
        "precision": model.precision,
        "licenses": list(model.licenses),
    }
    if model.overflow:
        document["overflow"] = model.overflow
    return str(Digest.of(spec.encode(document)))


def lock_models(
    models: Sequence[Model],
    now: Files,
    means: Means,
    previous: Sequence[LockedModel] = (),
    upgrade: bool | frozenset[str] = False,
) -> tuple[LockedModel, ...]:
    """The locks of models, sorted by name. One of `previous` stays where the same is asked for, its folder holds the same, and
    `upgrade` (all, or these names) does not say otherwise; then nothing is looked up."""
    before = {item.name: item for item in previous}
    locked = []
    for model in sorted(models, key=lambda item: item.name):
        kept = before.get(model.name)
        moving = upgrade is True or (upgrade and model.name in upgrade)
        if kept and not moving and is_of(kept, model, now):
            locked.append(kept)
        else:
            locked.append(_lock(model, means))
    return tuple(locked)


def is_of(locked: LockedModel, model: Model, now: Files) -> bool:
    """Whether a locked model is what the profile asks for, and what its folder holds."""
    same = now.get(model.name, locked.files) == locked.files
    rules = locked.format == FORMAT and locked.converter in (None, CONVERTER)
    return same and rules and locked.request == request(model)


def differences(models: Sequence[Model], locked: Sequence[LockedModel], now: Files) -> list[str]:
    """Why the models of a lock are not those of a profile."""
    then = {item.name: item for item in locked}
    changed = []
    for model in models:
        item = then.pop(model.name, None)
        if item is None:
            changed.append(f"model {model.name} is new")
        elif not is_of(item, model, now):
            changed.append(f"model {model.name} has changed")
    return sorted(changed + [f"model {name} is gone" for name in then])


def materialise(
    model: Model, locked: LockedModel, means: Means, needed: Sequence[LockedModelFile] | None = None
) -> tuple[LocalModelFile, ...]:
    """The published files of a locked model, `needed` ones (all) on this disk: fetched again, and converted again, where the
    store does not have them.

    Raises `StaleLockError` where that makes other bytes than are locked.
    """
    if not locked.converted:
        wanted = locked.files if needed is None else needed
        return sources.bring(model.source, locked, wanted, means)
    wanted = locked.converted if needed is None else needed
    if not _from_mirrors(model, wanted, means):
        files = sources.bring(model.source, locked, locked.files, means)
        if _convert(files, locked.precision, locked.overflow, means) != locked.converted:
            raise StaleLockError(
                f"model {model.name}: converting it to {locked.precision} makes other bytes than are locked"
            )
    return tuple(map(means.stored, wanted))


def _from_mirrors(model: Model, files: Sequence[LockedModelFile], means: Means) -> bool:
    """Whether converted files are in the store, or a mirror has them: no origin does."""
    locked = [LockedFile(f"model {model.name}", file.path, file.sha256, file.size) for file in files]
    if not all(means.store.has(file.digest, file.size) for file in locked):
        try:
            means.fetcher(_Nowhere(), None).ensure(locked)
        except (FetchError, OfflineError):
            return False
    return True


class _Nowhere:
    """The origin of what was made here."""

    def urls(self, file: LockedFile) -> tuple[str, ...]:
        return ()


def encoded(model: Model, locked: LockedModel, means: Means, needed: Sequence[LockedModelFile]) -> EncodedModel:
    """The artifact of a locked model, with the `needed` files, and those that were never read here, on this disk.

    Raises `StaleLockError` where it is not the one that is locked.
    """
    unread = [file for file in locked.published if known(means.store, _file(file)) is None]
    wanted = tuple(file for file in locked.published if file in unread or file in needed)
    here = {item.file.path: item for item in materialise(model, locked, means, wanted)}
    files = tuple(here.get(file.path) or means.stored(file) for file in locked.published)
    made = encode(files, model_index(files, means.store, means.progress), describe(locked))
    if str(made.manifest.digest) != locked.manifest:
        raise StaleLockError(
            f"model {model.name}: it becomes the artifact {made.manifest.digest}, {locked.manifest} is locked",
            hint=f"another Layerwright locked it: run `build lock PROFILE {model.name} --upgrade` and review the change",
        )
    return made


def describe(locked: LockedModel) -> Description:
    """What the artifact of a locked model says of itself: nothing but what is in the lock, and of a folder not even its name."""
    scheme = scheme_of(locked.source)
    source = locked.source if scheme else ""
    precision, quantization = PRECISIONS.get(locked.precision, ("", ""))
    return Description(
        name=locked.name,
        licenses=locked.licenses,
        source=source,
        revision=source.rpartition("@")[2] if scheme in ("hf", "oci") else "",
        base_name=source if locked.converted else "",
        base_digest=_base(locked) if locked.converted else "",
        precision=precision,
        quantization=quantization,
    )


def _base(locked: LockedModel) -> str:
    """One digest for all files that a converted model was made of."""
    return str(Digest.of(spec.encode({file.path: file.sha256 for file in locked.files})))


def _lock(model: Model, means: Means) -> LockedModel:
    published_as_it_is = means if not model.precision else replace(means, early=lambda _: None)
    collected = sources.collect(model.source, _wanted(model), published_as_it_is)
    files = tuple(map(_locked, collected.files))
    for line in _lost_shards(collected.files):
        means.progress.note(line)
    converted = _convert(collected.files, model.precision, model.overflow or "", means) if model.precision else ()
    if converted and scheme_of(model.source) is None:
        _check_unchanged(model, collected.files, means)
    locked = LockedModel(
        name=model.name,
        source=collected.source,
        request=request(model),
        files=files,
        manifest="",
        format=FORMAT,
        wheel=collected.wheel,
        licenses=model.licenses,
        precision=model.precision or "",
        overflow=(model.overflow or "") if model.precision else "",
        converter=CONVERTER if model.precision else None,
        converted=converted,
    )
    published = tuple(map(means.stored, converted)) or collected.files
    index = model_index(published, means.store, means.progress, early=means.early)
    made = encode(published, index, describe(locked))
    return replace(locked, manifest=str(made.manifest.digest))


def _lost_shards(files: Sequence[LocalModelFile]) -> Iterator[str]:
    """What to tell of indexes of shards that name files which the model does not have: nobody could load it."""
    paths = {file.file.path for file in files}
    for file in files:
        if file.file.path.endswith(_SHARDS):
            from builder.models.convert import documents  # few models have shards

            with suppress(BadModelError):  # what cannot be read is told, if ever, by who needs it
                said = documents.read(file).get("weight_map")
                shards = {name for name in said.values() if isinstance(name, str)} if isinstance(said, dict) else set()
                folder = posixpath.dirname(file.file.path)
                lost = sorted(name for name in shards if posixpath.join(folder, name) not in paths)
                if lost:
                    more = f" and {len(lost) - _SHOWN} more" if len(lost) > _SHOWN else ""
                    names = ", ".join(map(short, lost[:_SHOWN]))
                    yield f"{file.file.path} names files that the model does not have: {names}{more}"


def _check_unchanged(model: Model, files: Sequence[LocalModelFile], means: Means) -> None:
    """A folder holds after its conversion what it held before, so that what was converted is what is locked."""
    if sources.collect(model.source, _wanted(model), means).files != files:
        raise ChangedFileError(f"models: {model.source}: it changed while the model was converted")


def _convert(
    files: Sequence[LocalModelFile], precision: str, overflow: str, means: Means
) -> tuple[LockedModelFile, ...]:
    """The files in another precision, all of them in the store; what was converted before is known."""
    store = means.store
    document = {
        "files": [[file.file.path, file.file.sha256] for file in files],
        "precision": precision,
        "overflow": overflow,
        "converter": CONVERTER,
    }
    key = Digest.of(spec.encode(document)).hex
    if record := store.record(_CONVERSION, key):
        return tuple(LockedModelFile(*row) for row in record["files"])
    from builder.models.convert.converting import WEIGHTS, conversion

    total = sum(file.file.size for file in files if file.file.path.endswith(WEIGHTS))
    rows = []
    with store.workspace() as folder:
        with means.progress.task(f"convert to {precision}", total) as task:
            done = conversion(files, precision, folder, overflow=overflow or "error", advance=task.advance)  # type: ignore[arg-type] # as the profile's forms say
        for item in done.files:
            rows.append(_locked(item))
            _keep(item, folder, store)
    means.progress.note(_told(done))
    converted = tuple(sorted(rows))
    objects = [f"sha256:{file.sha256}" for file in converted]
    listed = [[file.path, file.sha256, file.size] for file in converted]
    store.put_record(_CONVERSION, key, {"files": listed, "objects": objects})
    return converted


def _told(done: Conversion) -> str:
    """What a conversion did, in a line; `build model convert` tells of each tensor."""
    errors = done.errors
    noise = f"SQNR {errors.sqnr:.1f} dB, largest error {errors.largest:.3g}" if errors.noise else "nothing was lost"
    clamped = f", {errors.clamped} numbers clamped" if errors.clamped else ""
    return f"{done.precision}: {human_size(done.source_size)} are {human_size(done.size)} now; {noise}{clamped}"


def _keep(item: LocalModelFile, folder: Path, store: Store) -> None:
    """A converted file becomes an object, and so does one that was passed on as it was."""
    digest = Digest(item.file.sha256)
    if store.has(digest, item.file.size):
        return
    if item.location.is_relative_to(folder):
        store.adopt(item.location, digest)
        return
    with store.temporary() as path:
        shutil.copyfile(item.location, path)
        with path.open("rb") as file:
            found = hash_of(file.fileno())
        if found != digest:
            raise ChangedFileError(f"{item.location}: it changed while the model was converted")
        store.adopt(path, digest)


def _wanted(model: Model) -> Wanted:
    return Wanted(model.include, model.exclude)


def _locked(item: LocalModelFile) -> LockedModelFile:
    return LockedModelFile(item.file.path, item.file.sha256, item.file.size)


def _file(file: LockedModelFile) -> ModelFile:
    return ModelFile(file.path, file.size, file.sha256)
