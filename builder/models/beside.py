"""The models of a profile on their way into the places of its image, or into one of their own.

A model is tagged `model-NAME`, and `model-NAME-` with the beginning of its digest: a registry that clears away what has no tag
keeps the models of older images. What a place has already is neither sent nor fetched again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from builder.client import NotFoundError
from builder.errors import BuilderError
from builder.lock import LockedModel
from builder.models import image as images
from builder.models import modelpack, publish
from builder.models.locking import encoded
from builder.models.sources import Means
from builder.oci.artifact import Artifact, stored
from builder.oci.companions import OF_MODEL, model_image_tag, model_tags
from builder.oci.content import Target
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.oci.listing import LayoutError
from builder.oci.spec import Descriptor
from builder.places.delivery import Blob, Delivered, Delivery, Document, Sink
from builder.places.remote import Remote
from builder.profile import Model
from builder.progress import Progress

USED_BY = "application/vnd.layerwright.used-by.v1+json"
"""The type of the artifact that is attached to a model, and says which image was made to use it."""


@dataclass(frozen=True)
class Beside:
    """A model that is to be delivered: blobs, then documents, in their order and under their tags."""

    name: str
    manifest: Descriptor
    blobs: tuple[Blob, ...]
    documents: tuple[Document, ...]


def prepare(model: Model, locked: LockedModel, targets: Sequence[Target], means: Means) -> Beside:
    """What has to be sent so that all targets have the model. Where all of them do, nothing is fetched, converted or read.

    Raises what `locking.encoded` raises.
    """
    there = [_there(target, locked) for target in targets]
    found = next((document for document in there if document), None)
    done = bool(found) and all(there) and (not model.image or all(_has_image(target, locked) for target in targets))
    if found and done:
        return Beside(model.name, found.descriptor, (), _tagged(found, locked))
    needed = [
        file
        for file in locked.published
        if model.image or not all(target.has(_blob(file.sha256, file.size)) for target in targets)
    ]
    made = encoded(model, locked, means, needed)
    linkable = all(isinstance(target, Remote) for target in targets)
    blobs = [*publish.blobs(made, means.store, as_files=linkable)]
    documents = [*_tagged(publish.document(made), locked)]
    if model.image:
        image = images.image_of(made, means.store, means.progress)
        blobs += images.blobs(image)
        documents += [*image.documents, replace(image.index, tag=model_image_tag(locked.name))]
    return Beside(model.name, made.manifest, tuple(blobs), tuple(documents))


def deliver(
    models: Sequence[Beside], sinks: Sequence[Sink], attached: Sequence[Artifact], progress: Progress, connections: int
) -> tuple[Delivered, ...]:
    """Models, and what is attached to them, into places that are not those of the image. Tags are set last."""
    with Delivery(sinks, progress, connections, "publish models") as delivery:
        for item in models:
            for blob in item.blobs:
                delivery.offer(blob)
        documents = [document for item in models for document in item.documents]
        for descriptor, data in stored(attached):
            part = publish.part(descriptor, data)
            if isinstance(part, Document):
                documents.append(part)
            else:
                delivery.offer(part)
        done = delivery.complete(documents, documents[-1])
    tags = tuple(f"model-{item.name}" for item in models)
    return tuple(replace(item, sink=replace(item.sink, tags=tags)) for item in done)


def references(models: Sequence[Beside], name: str, image: Descriptor, created: str) -> tuple[Artifact, ...]:
    """What is attached to each model: the image `name` that was made to use it, by its digest."""
    return tuple(
        Artifact(
            USED_BY,
            item.manifest,
            ((f"{name}.json", json.dumps({"image": str(image.digest), "name": name}, sort_keys=True).encode()),),
            {"org.opencontainers.image.created": created},
        )
        for item in models
    )


def tags_of(locked: LockedModel) -> tuple[str, ...]:
    """The tags that a model has, and that of its image."""
    return (*model_tags(locked.name, Digest.parse(locked.manifest)), model_image_tag(locked.name))


def _tagged(document: Document, locked: LockedModel) -> tuple[Document, ...]:
    tags = model_tags(locked.name, Digest.parse(locked.manifest))
    return tuple(replace(document, tag=tag) for tag in tags)


def _there(target: Target, locked: LockedModel) -> Document | None:
    """The model's manifest where a target has it, and all that it names."""
    if not isinstance(target, Remote | Layout):
        return None
    with suppress(NotFoundError, LayoutError):
        found = target.resolve(locked.manifest)
        bare = Descriptor(found.media_type, found.digest, found.size, artifact_type=modelpack.ARTIFACT_TYPE)
        document = Document(bare, target.manifest(found))
        # A registry takes no manifest without its blobs; from a folder, somebody may have removed one.
        if isinstance(target, Remote) or all(map(target.has, _named(document.data))):
            return document
    return None


def _named(data: bytes) -> Iterator[Descriptor]:
    with suppress(ValueError, KeyError, TypeError):
        found: Mapping[str, Any] = json.loads(data)
        yield from map(Descriptor.parse, (found["config"], *found["layers"]))


def _has_image(target: Target, locked: LockedModel) -> bool:
    if not isinstance(target, Remote | Layout):
        return False
    with suppress(BuilderError, ValueError, KeyError, TypeError):
        found = target.find(model_image_tag(locked.name))
        if found:
            annotations = json.loads(target.manifest(found))["annotations"]
            return bool(annotations[OF_MODEL] == locked.manifest)
    return False


def _blob(sha256: str, size: int) -> Descriptor:
    return Descriptor("", Digest(sha256), size)
