"""One entry of a layer cache: what is known of the layer of a key, as the bytes that are signed, and its manifest.

Entries come from anybody who can write to the repository. A manifest is read for two things, where the record is and who signed
it; all else is taken from the record, after its signature was checked.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from builder.baseimage import COMPRESSIONS
from builder.errors import BuilderError
from builder.layercache.keys import PublicKey, SecretKey, signature_of
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.soci import ztoc

ARTIFACT_TYPE = "application/vnd.layerwright.layer-cache.v1"
RECORD_TYPE = "application/vnd.layerwright.layer-cache.record.v1+json"
LISTING_TYPE = "application/vnd.layerwright.layer-cache.listing.v1+json"
SIGNATURE = "vnd.layerwright.layer-cache.signature"
"""The annotation of a manifest that tells who signed its record: `NAME:BASE64`."""

MAX_RECORD = 4 << 20
MAX_LISTING = 64 << 20
_MAX_VALUES = 6_000_000
_MAX_NUMBER = 1 << 50
_TITLE = "org.opencontainers.image.title"
_VERSION = 1
_MESSAGE = b"layerwright layer cache 1\n"
"""What stands before a record where it is signed, so that no signature of something else is one of a record."""


class LyingCacheError(BuilderError):
    """An entry of a layer cache is not what it should be."""


@dataclass(frozen=True)
class CachedZtoc:
    """The ztoc of a layer for spans of `span_size` bytes."""

    span_size: int
    digest: Digest
    size: int
    spans: int

    @property
    def descriptor(self) -> Descriptor:
        return Descriptor(ztoc.MEDIA_TYPE, self.digest, self.size)


@dataclass(frozen=True)
class Record:
    """The layer that belongs to `key`, the list of its files, its ztocs, and what its wheels tell of their licences: for each
    wheel, by sha256, the fields `expression` and `text` and a list of `classifiers`."""

    key: Digest
    blob: Descriptor
    diff_id: Digest
    tar_size: int
    listing: Descriptor
    ztocs: tuple[CachedZtoc, ...] = ()
    licences: tuple[tuple[str, Mapping[str, object]], ...] = ()
    table: Digest | None = None
    """The digest of the table of an eStargz layer."""

    def encode(self) -> bytes:
        """Equal records have equal bytes."""
        return spec.encode(
            {
                "version": _VERSION,
                "key": str(self.key),
                "layer": {
                    "digest": str(self.blob.digest),
                    "size": self.blob.size,
                    "diff_id": str(self.diff_id),
                    "tar_size": self.tar_size,
                    **({} if self.blob.media_type == spec.LAYER_GZIP else {"type": self.blob.media_type}),
                    **({"table": str(self.table)} if self.table else {}),
                },
                "listing": {"digest": str(self.listing.digest), "size": self.listing.size},
                "ztocs": [
                    {"span_size": one.span_size, "digest": str(one.digest), "size": one.size, "spans": one.spans}
                    for one in self.ztocs
                ],
                "licences": {sha256: dict(told) for sha256, told in self.licences},
            }
        )

    @property
    def blobs(self) -> tuple[Descriptor, ...]:
        """All that belongs to the layer, itself first."""
        return (self.blob, self.listing, *(one.descriptor for one in self.ztocs))

    @classmethod
    def parse(cls, data: bytes) -> Record:
        """The record in `data`. Raises `LyingCacheError`."""
        try:
            document = json.loads(data, parse_constant=_refused, parse_float=_refused)
            if document["version"] != _VERSION:
                raise LyingCacheError(f"its record is of version {document['version']!r:.40}")
            layer, listing = document["layer"], document["listing"]
            record = cls(
                Digest.parse(document["key"]),
                Descriptor(_type(layer), Digest.parse(layer["digest"]), _number(layer["size"])),
                Digest.parse(layer["diff_id"]),
                _number(layer["tar_size"]),
                Descriptor(LISTING_TYPE, Digest.parse(listing["digest"]), _number(listing["size"])),
                tuple(
                    CachedZtoc(
                        _number(one["span_size"]),
                        Digest.parse(one["digest"]),
                        _number(one["size"]),
                        _number(one["spans"]),
                    )
                    for one in document["ztocs"]
                ),
                tuple(_licence(sha256, told) for sha256, told in document["licences"].items()),
                Digest.parse(layer["table"]) if "table" in layer else None,
            )
        except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise LyingCacheError(f"its record cannot be read: {error!s:.200}") from error
        if record.listing.size > MAX_LISTING:
            raise LyingCacheError(f"its list of files has {record.listing.size} bytes")
        return record


def tag_of(key: Digest) -> str:
    """The tag of the entry of a layer's key."""
    return f"layer-{key.hex}"


def manifest(record: Record, name: str, secret: SecretKey | None) -> tuple[Descriptor, bytes, Descriptor, bytes]:
    """The manifest of an entry and its record, each as descriptor and bytes; `name` is for people who look at it."""
    data = record.encode()
    config = Descriptor(RECORD_TYPE, Digest.of(data), len(data))
    annotations = {_TITLE: name} | ({SIGNATURE: secret.sign(_MESSAGE + data)} if secret else {})
    document = spec.encode(
        {
            "schemaVersion": 2,
            "mediaType": spec.MANIFEST,
            "artifactType": ARTIFACT_TYPE,
            "config": config.document(),
            "layers": [descriptor.document() for descriptor in record.blobs],
            "annotations": annotations,
        }
    )
    return Descriptor(spec.MANIFEST, Digest.of(document), len(document)), document, config, data


def record_of(data: bytes) -> tuple[Descriptor, str]:
    """Where the record of a manifest is, and the text of its signature, empty without one. Raises `LyingCacheError`."""
    try:
        document: Any = json.loads(data)
        config = Descriptor.parse(document["config"])
        artifact_type = document["artifactType"]
        signature = (document.get("annotations") or {}).get(SIGNATURE, "")
    except (LookupError, TypeError, ValueError, AttributeError, RecursionError) as error:
        raise LyingCacheError(f"its manifest cannot be read: {error!s:.200}") from error
    if artifact_type != ARTIFACT_TYPE or config.media_type != RECORD_TYPE or not isinstance(signature, str):
        raise LyingCacheError("its manifest is not one of a layer cache")
    if config.size > MAX_RECORD:
        raise LyingCacheError(f"its record has {config.size} bytes")
    return config, signature


def check(data: bytes, signature: str, trusted: Sequence[PublicKey]) -> None:
    """Raises `LyingCacheError` unless one of the `trusted` keys has signed the record `data`."""
    found = signature_of(signature)
    if found is None:
        raise LyingCacheError("it is not signed")
    name, raw = found
    if not any(key.signed(raw, _MESSAGE + data) for key in trusted if key.name == name):
        known = any(key.name == name for key in trusted)
        why = f"{name} has not signed these bytes" if known else f"it is signed by {name}, who is not trusted"
        raise LyingCacheError(why)


def rows_of(data: bytes) -> None:
    """Raises `LyingCacheError` if this is no list of files as assembling compares them."""
    # So that reading it takes no more memory than a large layer's.
    if sum(map(data.count, (b"[", b"{", b","))) > _MAX_VALUES:
        raise LyingCacheError("its list of files has too many values")
    try:
        rows = json.loads(data, parse_constant=_refused)
    except (ValueError, RecursionError) as error:
        raise LyingCacheError("its list of files cannot be read") from error
    good = isinstance(rows, list) and all(
        isinstance(row, list) and len(row) == 5 and isinstance(row[0], str) and isinstance(row[1], str) for row in rows
    )
    if not good:
        raise LyingCacheError("its list of files is none")


def _licence(sha256: object, told: Any) -> tuple[str, Mapping[str, object]]:
    match told:
        case {"expression": str(expression), "text": str(text), "classifiers": list(classifiers)} if isinstance(
            sha256, str
        ) and all(isinstance(item, str) for item in classifiers):
            return sha256, {"expression": expression, "text": text, "classifiers": classifiers}
    raise ValueError("what a wheel tells of its licence has another form")


def _type(layer: Any) -> str:
    """The type of a layer, told where it is not gzip."""
    found = layer.get("type", spec.LAYER_GZIP)
    if found not in COMPRESSIONS:
        raise ValueError(f"{found!r:.80} is no type of a layer")
    return str(found)


def _number(value: object) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < _MAX_NUMBER:
        raise ValueError(f"{value!r:.40} is no size")
    return value


def _refused(text: str) -> None:
    raise ValueError(f"{text:.40} is no whole number")
