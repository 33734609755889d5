"""A model as an OCI artifact: made as CNCF ModelPack says, one raw file a layer; read from any registry or layout."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.models import describe, modelpack, strictjson
from builder.models import index as indexes
from builder.models.describe import Description
from builder.models.values import (
    INDEX_PATH,
    BadModelError,
    LocalModelFile,
    ModelArtifact,
    ModelFile,
    ModelIndex,
    check_path,
    check_paths,
)
from builder.oci import spec
from builder.oci.artifact import TITLE
from builder.oci.content import MAX_MANIFEST, Source
from builder.oci.digest import Digest
from builder.oci.published import INDEXES, ImageError, read_document, read_small
from builder.oci.spec import Descriptor

MAX_CONFIG = 8 << 20
"""The largest configuration of a model that is read, in bytes."""
_MAX_DEPTH = 32
_IMAGE_CONFIGS = frozenset({spec.CONFIG, "application/vnd.docker.container.image.v1+json"})


class NotAModelError(BadModelError):
    """What a reference stands for is something else than a model whose files can be had."""

    hint = "name a model: one that `build model publish` made, or another artifact of plain files"


@dataclass(frozen=True)
class EncodedModel:
    """A model as it is stored: documents with their bytes, and files with the descriptors of their layers, sorted by path."""

    manifest: Descriptor
    data: bytes
    config: tuple[Descriptor, bytes]
    index: tuple[Descriptor, bytes]
    layers: tuple[tuple[Descriptor, LocalModelFile], ...]

    @property
    def artifact(self) -> ModelArtifact:
        """What `open_artifact` will read."""
        layers = tuple((descriptor, local.file) for descriptor, local in self.layers)
        return ModelArtifact(
            _bare(self.manifest, self.manifest.artifact_type),
            self.config[0],
            layers,
            self.manifest.annotations,
            self.index[0],
        )


def encode(files: Sequence[LocalModelFile], index: ModelIndex, description: Description) -> EncodedModel:
    """The artifact of a model: equal files and equal words have equal digests, wherever the files lie.

    `index` is that of these files. Raises `BadModelError` for none, for paths that clash, and for too many for a manifest.
    """
    ordered = sorted(files, key=lambda local: local.file.path)
    check_paths((local.file.path for local in ordered), "the model")
    if not ordered:
        raise BadModelError("a model without files cannot be published", hint="name files that are there")
    if tuple(local.file for local in ordered) != tuple(each.file for each in index.files):
        raise ValueError("this is the index of other files")
    described = indexes.encode(index)
    index_file = ModelFile(INDEX_PATH, len(described), Digest.of(described).hex)
    layers = [modelpack.layer(file) for file in (*(local.file for local in ordered), index_file)]
    try:
        words = spec.encode(describe.configuration(index, description, (layer.digest for layer in layers)))
        annotations = describe.manifest_annotations(description)
        spec.encode(annotations)
    except UnicodeEncodeError as error:
        raise BadModelError(
            f"what is said of the model is not UTF-8: {error.object!r}"[:200], hint="say it in UTF-8"
        ) from error
    config = Descriptor(modelpack.CONFIG, Digest.of(words), len(words))
    document = {
        "schemaVersion": 2,
        "mediaType": spec.MANIFEST,
        "artifactType": modelpack.ARTIFACT_TYPE,
        "config": config.document(),
        "layers": [layer.document() for layer in layers],
        "annotations": annotations,
    }
    data = spec.encode({key: value for key, value in document.items() if value})
    if len(data) > MAX_MANIFEST:
        raise BadModelError(
            f"a model of {len(ordered)} files: its manifest has {len(data)} bytes, registries take {MAX_MANIFEST}",
            hint="leave files out, or publish it as two models",
        )
    manifest = Descriptor(spec.MANIFEST, Digest.of(data), len(data), annotations, artifact_type=modelpack.ARTIFACT_TYPE)
    return EncodedModel(
        manifest, data, (config, words), (layers[-1], described), tuple(zip(layers[:-1], ordered, strict=True))
    )


def open_artifact(source: Source, reference: str | None) -> ModelArtifact:
    """The model that a tag, the text of a digest, or (None) the only one of a place stands for. Only its manifest is read.

    Any artifact whose layers are files with names will do: ModelPack, or what `oras push` makes; layers without a name are
    none of its files, as with `oras pull`. Raises `NotAModelError`, `BadModelError` for names that lie, and what the source does.
    """
    return read_artifact(source, source.resolve(reference))


def read_artifact(source: Source, manifest: Descriptor, *, archives: bool = False) -> ModelArtifact:
    """The same, of a manifest that is known by its descriptor. With `archives`, layers that are archives are no error."""
    where = str(manifest.digest)
    try:
        document = read_document(source, manifest)
        if manifest.media_type in INDEXES or "manifests" in document:
            raise NotAModelError(f"{where} is an index of images, and no model")
        config, layers = _parts(document)
    except (ValueError, ImageError) as error:
        raise NotAModelError(f"{where} is no model: {error}") from error
    if config.media_type in _IMAGE_CONFIGS and not document.get("artifactType"):
        raise NotAModelError(f"{where} is an image, and no model")
    found = [(layer, name) for layer in layers if (name := _name(layer)) is not None]
    packed = tuple((layer, name) for layer, name in found if modelpack.is_archive(layer))
    if packed and not archives:
        raise NotAModelError(
            f"{where}: {packed[0][1]!r} is an archive ({packed[0][0].media_type})",
            hint="`build model publish oci://REF DESTINATION` makes a model of it whose layers are files",
        )
    files = tuple(
        (layer, ModelFile(name, layer.size, layer.digest.hex))
        for layer, name in found
        if name != INDEX_PATH and not modelpack.is_archive(layer)
    )
    check_paths((file.path for _, file in files), where)
    sizes: dict[Digest, int] = {}
    for layer in (config, *layers):
        if sizes.setdefault(layer.digest, layer.size) != layer.size:
            raise BadModelError(f"{where}: it says of {layer.digest} that it has two sizes")
    index = [layer for layer, name in found if name == INDEX_PATH]
    if len(index) > 1:
        raise BadModelError(f"{where}: {INDEX_PATH} is there twice")
    if not files and not packed:
        raise NotAModelError(f"{where} has no files: none of its layers has a name")
    kind = document.get("artifactType")
    return ModelArtifact(
        _bare(manifest, kind if isinstance(kind, str) else None),
        config,
        files,
        _texts(document.get("annotations")),
        index[0] if index else None,
        packed,
    )


def read_index(source: Source, artifact: ModelArtifact) -> ModelIndex | None:
    """The index of a published model; None where it has none.

    Raises `BadModelError` for one that lies, and for one of other files than the manifest has.
    """
    if artifact.index is None:
        return None
    where = str(artifact.manifest.digest)
    try:
        index = indexes.parse(read_small(source, artifact.index, indexes.MAX_BYTES), where)
    except ImageError as error:
        raise BadModelError(f"{where}: {error}") from error
    if sorted(artifact.files) != sorted(each.file for each in index.files):
        raise BadModelError(f"{where}: {INDEX_PATH} is that of other files than the manifest names")
    return index


def read_config(source: Source, artifact: ModelArtifact) -> Mapping[str, Any]:
    """What a ModelPack's configuration says of the model; empty for artifacts of other kinds. Nothing in it is checked."""
    if artifact.config.media_type != modelpack.CONFIG:
        return {}
    try:
        document = json.loads(read_small(source, artifact.config, MAX_CONFIG))
        if strictjson.is_deep(document, _MAX_DEPTH):
            raise ValueError(f"nested more than {_MAX_DEPTH} deep")
    except (ValueError, RecursionError, ImageError) as error:
        raise BadModelError(f"{artifact.manifest.digest}: its configuration cannot be read: {error}") from error
    return document if isinstance(document, dict) else {}


def _bare(manifest: Descriptor, artifact_type: str | None) -> Descriptor:
    """The descriptor without what the place that it came from says of it."""
    return Descriptor(manifest.media_type, manifest.digest, manifest.size, artifact_type=artifact_type)


def _parts(document: Mapping[str, Any]) -> tuple[Descriptor, list[Descriptor]]:
    if document.get("schemaVersion") != 2:
        raise ValueError("it has no schemaVersion 2")
    listed = document.get("layers")
    if not isinstance(listed, list):
        raise ValueError("it has no list of layers")
    return Descriptor.parse(document.get("config")), [Descriptor.parse(layer) for layer in listed]


def _name(layer: Descriptor) -> str | None:
    """The path of the file that a layer is: ModelPack's own annotation comes before the title."""
    path, title = layer.annotations.get(modelpack.FILEPATH), layer.annotations.get(TITLE)
    name = path or title
    if name and name != INDEX_PATH:
        check_path(name, str(layer.digest))
    return name or None


def _texts(found: Any) -> dict[str, str]:
    if not isinstance(found, dict):
        return {}
    return {str(key): value for key, value in found.items() if isinstance(value, str)}
