"""The models of a profile, published with its image."""

from __future__ import annotations

from collections.abc import Sequence

from builder.cli.work import Work
from builder.errors import UsageError
from builder.image import Assembled
from builder.lock import Lock
from builder.models import beside
from builder.models.beside import Beside
from builder.oci.artifact import stored
from builder.oci.spec import Descriptor
from builder.places.delivery import Delivered, Sink
from builder.places.destination import Destination, Folder
from builder.places.opening import open_sinks
from builder.publish import Publishing


class Models:
    """The models of one publication, and the place of their own where the profile names one."""

    def __init__(self, work: Work, lock: Lock, sinks: Sequence[Sink], mount_from: Sequence[str]) -> None:
        self._work = work
        self._lock = lock
        self._own = _own_place(work, mount_from)
        self._sinks = tuple(sinks) if self._own is None else self._own
        self._prepared: tuple[Beside, ...] = ()
        taken = {tag for model in lock.models for tag in beside.tags_of(model)}
        for sink in sinks:
            if self._own is None and (both := sorted(taken & set(sink.tags))):
                raise UsageError(
                    f"{sink.name}:{both[0]}: that is the tag of a model of this profile", hint="choose another tag"
                )

    def begin(self, publishing: Publishing) -> None:
        """Finds out what has to be sent, and begins to: inputs are fetched, and converted, only where a place lacks a model."""
        wanted = {model.name: model for model in self._work.loaded.profile.models}
        means = self._work.means
        assert means is not None
        targets = [sink.target for sink in self._sinks]
        self._prepared = tuple(beside.prepare(wanted[item.name], item, targets, means) for item in self._lock.models)
        if self._own is None:
            for blob in (blob for item in self._prepared for blob in item.blobs):
                publishing.offer(blob)

    def finish(
        self, publishing: Publishing, image: Assembled, attached: Sequence[tuple[Descriptor, bytes]], attaching: bool
    ) -> tuple[Delivered, ...]:
        """Everything is where it belongs: models before the image, which names them."""
        top, lock = image.documents.top, self._lock
        references = beside.references(self._prepared, lock.name, top, lock.created) if attaching else ()
        if self._own is not None:
            context = self._work.context
            elsewhere = beside.deliver(self._prepared, self._own, references, context.progress, context.settings.jobs)
            return (*publishing.finish(image, attached), *elsewhere)
        documents = [document for item in self._prepared for document in item.documents]
        return publishing.finish(image, (*attached, *stored(references)), documents)


def _own_place(work: Work, mount_from: Sequence[str]) -> tuple[Sink, ...] | None:
    text = work.loaded.profile.publish.models
    if text is None:
        return None
    named = Destination.parse(text)
    if named.tag or named.digest:
        raise UsageError(
            f"publish.models: {text}: a model is tagged by its name", hint="leave out the tag in the profile"
        )
    if isinstance(named, Folder):
        named = Folder(work.loaded.root / named.path)
    return open_sinks([named], work.context, mount_from)
