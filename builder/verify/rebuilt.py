"""What is published is what its lock makes: compared with images that were just rebuilt, down to the first other byte."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from difflib import SequenceMatcher
from typing import Any, BinaryIO

from builder.documents.changes import changes
from builder.errors import BuilderError
from builder.image import Assembled, Image
from builder.layers import compare as layers
from builder.layers.compare import Compared, Difference
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.published import PublishedImage, read_document
from builder.oci.spec import Descriptor
from builder.soci import prefetch
from builder.soci.index import ARTIFACT_TYPE, IMAGE_MANIFEST_DIGEST, INDEX_DIGEST, LAYER_DIGEST
from builder.store import Store
from builder.verify.damage import damage
from builder.verify.findings import UNREADABLE, Finding, Kind, says_no
from builder.verify.quick import Structure

_MOST = 20


def compare(source: Source, found: Structure, rebuilt: Assembled, store: Store) -> tuple[Finding, ...]:
    """What is published, against what was rebuilt into `store`: nothing if they are identical, else for every layer that
    differs its first difference, and what differs in configurations, manifests, SOCI indexes and the index.

    Consequences are not repeated: another layer has another diff_id and makes another manifest. What `found` says already
    is not said again, but damaged blobs are compared byte by byte.
    """
    findings = list(
        damage(source, found, {layer.blob.digest for image in rebuilt.images for layer in image.layers}, store)
    )
    made = rebuilt.documents
    if found.top is None or found.descriptor.digest in (made.top.digest, *(entry.digest for entry in made.manifests)):
        return tuple(findings)
    documents = {descriptor.digest: data for descriptor, data in made.blobs}
    published = {str(image.platform): image for image in found.images}
    alone = found.top.entries == (found.descriptor,)
    for image, described in zip(rebuilt.images, made.manifests, strict=False):
        other = published.pop(str(image.platform), None)
        if other:
            findings += _image(source, found, image, json.loads(documents[described.digest]), described, other, store)
        elif not alone and str(image.platform) not in {finding.platform for finding in found.findings}:
            findings.append(
                Finding(Kind.PLATFORM, "the lock makes an image of it, and none is published", str(image.platform))
            )
    findings += [Finding(Kind.PLATFORM, "the lock makes no image of it", platform) for platform in published]
    if not alone and not any(finding.kind is Kind.PLATFORM for finding in findings):
        expected = _without_digests(json.loads(documents[made.top.digest]))
        findings += _documents(Kind.INDEX, expected, _without_digests(found.top.document))
    if findings or found.findings:
        return tuple(findings)
    if alone:
        return (Finding(Kind.MANIFEST, f"{found.descriptor.digest} is published, the lock makes {made.top.digest}"),)
    return (Finding(Kind.INDEX, "the index says the same in other bytes"),)


def _image(
    source: Source,
    found: Structure,
    image: Image,
    document: Mapping[str, Any],
    described: Descriptor,
    other: PublishedImage,
    store: Store,
) -> Iterator[Finding]:
    """The differences of the images of one platform, bottom layer first."""
    if described.digest == other.manifest.digest:
        return
    platform = str(image.platform)
    told = {finding.layer for finding in found.findings if finding.platform == platform and finding.kind in UNREADABLE}
    same = [layer.blob.digest for layer in image.layers] == [layer.digest for layer in other.layers]
    yield from (finding for finding in _layers(source, image, other, store, platform) if finding.layer not in told)
    dull = () if same else ("$.rootfs", "$.history")
    configured = list(_documents(Kind.CONFIG, json.loads(image.config), other.settings, platform, dull))
    yield from configured
    if not configured and same and Digest.of(image.config) != other.config.digest:
        yield Finding(Kind.CONFIG, "the configuration says the same in other bytes", platform)
    bound = list(_soci(source, found, image, document, other, platform)) if same else []
    yield from bound
    plain = list(_documents(Kind.MANIFEST, _plain(document), _plain(other.document), platform))
    yield from plain
    if not (configured or bound or plain) and same and Digest.of(image.config) == other.config.digest:
        yield Finding(Kind.MANIFEST, "the manifest says the same in other bytes", platform)


def _layers(source: Source, image: Image, other: PublishedImage, store: Store, platform: str) -> Iterator[Finding]:
    made = [layer.blob.digest for layer in image.layers]
    there = [layer.digest for layer in other.layers]
    if made != there and sorted(made) == sorted(there):
        first = next(number for number, pair in enumerate(zip(made, there, strict=True)) if pair[0] != pair[1])
        name = image.layers[first].name
        yield Finding(Kind.LAYERS, f"the layers are in another order, {name} should be here", platform, first + 1)
        return
    for _, start, end, begin, stop in SequenceMatcher(None, made, there, autojunk=False).get_opcodes():
        if made[start:end] == there[begin:stop]:
            continue
        for number in range(max(end - start, stop - begin)):
            expected = image.layers[start + number] if start + number < end else None
            place = begin + number
            if expected is None:
                yield Finding(Kind.LAYERS, "the lock makes no such layer", platform, place + 1, other.names[place])
            elif place >= stop:
                yield Finding(Kind.LAYERS, "this layer is missing", platform, start + number + 1, expected.name)
            else:
                where = Finding(Kind.LAYER, "", platform, place + 1, expected.name)
                yield from _layer(source, expected.blob, other.layers[place], store, where)


def _layer(source: Source, expected: Descriptor, found: Descriptor, store: Store, where: Finding) -> Iterator[Finding]:
    def made() -> AbstractContextManager[BinaryIO]:
        return store.path(expected.digest).open("rb")

    def published() -> AbstractContextManager[BinaryIO]:
        return source.blob(found)

    try:
        compared = layers.compare(made, published)
    except BuilderError as error:
        if not says_no(error):
            raise
        yield replace(where, kind=Kind.LAYER, message=f"it cannot be compared: {error}")
        return
    if compared.difference is Difference.NONE:
        yield replace(
            where, kind=Kind.BLOB, message=f"it is named {found.digest}, and has the bytes of {expected.digest}"
        )
        return
    yield replace(
        where,
        kind=Kind(compared.difference.value),
        message=_message(compared),
        path=compared.path,
        byte=compared.byte,
    )


def _message(compared: Compared) -> str:
    """The difference in words."""
    match compared.difference:
        case Difference.MISSING:
            return f"expected {compared.expected}, found {compared.found}"
        case Difference.EXTRA:
            return f"expected {compared.expected}, found it ({compared.found})"
        case Difference.ORDER:
            return f"{compared.found} stands in its place; both have the same files in another order"
        case Difference.COMPRESSION:
            return f"the tar is the same, its compression is not: expected {compared.expected}, found {compared.found}"
        case _:
            return f"expected {compared.expected}, found {compared.found}"


def _documents(
    kind: Kind,
    expected: Mapping[str, Any],
    found: Mapping[str, Any],
    platform: str | None = None,
    skip: Sequence[str] = (),
) -> Iterator[Finding]:
    """What differs in two documents, at most twenty places."""
    told = 0
    for change in changes(expected, found):
        if change.path.startswith(tuple(skip)):
            continue
        told += 1
        if told > _MOST:
            return
        before, after = change.texts()
        yield Finding(kind, f"{change.path}: expected {before}, found {after}", platform)


def _soci(
    source: Source, found: Structure, image: Image, document: Mapping[str, Any], other: PublishedImage, platform: str
) -> Iterator[Finding]:
    """The SOCI indexes of two images with the same layers."""
    expected = document.get("annotations", {}).get(INDEX_DIGEST)
    bound = (other.document.get("annotations") or {}).get(INDEX_DIGEST)
    if expected == bound:
        return
    if expected is None or bound is None:
        had = "has none" if bound is None else "has one"
        yield Finding(Kind.SOCI, f"the lock makes {'a' if expected else 'no'} SOCI index, the image {had}", platform)
        return
    made = {str(layer.blob.digest): str(layer.ztoc.digest) for layer in image.layers if layer.ztoc}
    there = _ztocs(source, found, bound)
    told = False
    for number, layer in enumerate(image.layers, 1):
        key = str(layer.blob.digest)
        if made.get(key) != there.get(key):
            told = True
            message = f"its ztoc is {there.get(key, 'missing')}, the lock makes {made.get(key, 'none')}"
            yield Finding(Kind.SOCI, message, platform, number, layer.name)
    if not told:
        yield Finding(Kind.SOCI, f"the SOCI index {bound} is not the one that the lock makes, {expected}", platform)


def _ztocs(source: Source, found: Structure, bound: str) -> Mapping[str, str]:
    """The ztocs that a SOCI index names, by the layer's digest; what cannot be read was found out before."""
    for entry in found.top.entries if found.top else ():
        if entry.artifact_type == ARTIFACT_TYPE and str(entry.digest) == bound:
            try:
                listed = read_document(source, entry)["layers"]
                ztocs = [item for item in listed if item["mediaType"] != prefetch.MEDIA_TYPE]
                return {item["annotations"][LAYER_DIGEST]: item["digest"] for item in ztocs}
            except (KeyError, TypeError):
                return {}
            except BuilderError as error:
                if not says_no(error):
                    raise
    return {}


def _plain(document: Mapping[str, Any]) -> dict[str, Any]:
    """A manifest without what follows from configuration, layers and SOCI index."""
    plain = {key: value for key, value in document.items() if key not in ("config", "layers", "annotations")}
    config = document.get("config")
    plain["config"] = {key: value for key, value in config.items() if key not in ("digest", "size")} if config else {}
    annotations = document.get("annotations") or {}
    if others := {key: value for key, value in annotations.items() if key != INDEX_DIGEST}:
        plain["annotations"] = others
    plain["layers"] = [
        {key: value for key, value in layer.items() if key not in ("digest", "size")} for layer in document["layers"]
    ]
    return plain


def _without_digests(index: Mapping[str, Any]) -> dict[str, Any]:
    """An index without what follows from its entries."""
    plain = dict(index)
    plain["manifests"] = []
    for entry in index["manifests"]:
        others = {key: value for key, value in entry.items() if key not in ("digest", "size", "annotations")}
        kept = {
            key: value
            for key, value in (entry.get("annotations") or {}).items()
            if key not in (INDEX_DIGEST, IMAGE_MANIFEST_DIGEST)
        }
        plain["manifests"].append({**others, "annotations": kept})
    return plain
