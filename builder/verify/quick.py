"""What is published is what it says: documents, digests, sizes, diff_ids, and the SOCI index against the layers.

Every blob is read once, as a stream; nothing is rebuilt. Memory does not grow with the image.
"""

from __future__ import annotations

import mmap
import tempfile
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

from builder.errors import BuilderError
from builder.layers.stream import Figures, LayerError
from builder.layers.tablecheck import TableCheck
from builder.layers.untar import TarReader
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.lazy import KINDS, TOC_DIGEST
from builder.oci.published import (
    ImageError,
    PublishedImage,
    Top,
    is_artifact,
    parsed,
    read_document,
    read_image,
    read_top,
)
from builder.oci.spec import Descriptor
from builder.parallel import Stop, for_each
from builder.progress import Progress, Task
from builder.soci import prefetch, read
from builder.soci.check import ZtocCheck
from builder.soci.index import (
    ARTIFACT_TYPE,
    IMAGE_MANIFEST_DIGEST,
    INDEX_DIGEST,
    LAYER_DIGEST,
    LAYER_MEDIA_TYPE,
    UNKNOWN,
)
from builder.soci.read import Ztoc
from builder.verify import prefetched
from builder.verify.findings import Finding, Kind, VerifiedImage, VerifiedLayer, says_no

MAX_ZTOC = 1 << 30
_BLOCK = 1 << 20
_THREADS = 4


@dataclass(frozen=True)
class Structure:
    """What a reference stands for, as far as it can be read, and what is wrong with it. `images` are those of `top` whose
    documents can be read; `verified` says what was read of them."""

    descriptor: Descriptor
    top: Top | None
    images: tuple[PublishedImage, ...]
    verified: tuple[VerifiedImage, ...]
    findings: tuple[Finding, ...]


def examine(source: Source, descriptor: Descriptor, progress: Progress) -> Structure:
    """Checks everything that `descriptor` leads to. Raises where the source cannot be asked; what it says wrongly is a finding."""
    report = _Report([])
    top: Top | None = report.attempt(Kind.STRUCTURE, read_top, source, descriptor)
    if top is None:
        return Structure(descriptor, None, (), (), tuple(report.findings))
    images = []
    for entry in top.images:
        at = str(entry.platform) if entry.platform else None
        image = report.attempt(Kind.STRUCTURE, read_image, source, entry, platform=at)
        if image:
            images.append(image)
    platforms = [str(image.platform) for image in images]
    for platform in sorted({name for name in platforms if platforms.count(name) > 1}):
        report.add(Kind.PLATFORM, "there are several images of this platform", platform=platform)
    bound = _bound(source, top, images, report)
    works = [work for image in images for work in _works(image, bound.get(image.manifest.digest, _Indexed()))]
    with progress.task("verifying layers", sum(work.layer.size for work in works)) as task:
        stop = Stop()
        by_size = sorted(works, key=lambda work: -work.layer.size)  # the last to end is not the longest
        for error in for_each(lambda work: _layer(source, work, task, stop), by_size, _THREADS, stop):
            raise error
    for work in works:
        report.findings += work.report.findings
    verified = tuple(
        VerifiedImage(
            str(image.platform),
            image.manifest.digest,
            tuple(work.verified for work in works if work.image is image and work.verified),
        )
        for image in images
    )
    return Structure(descriptor, top, tuple(images), verified, tuple(report.findings))


@dataclass
class _Indexed:
    """What a SOCI index has of layers, by their digests."""

    ztocs: dict[Digest, Descriptor] = field(default_factory=dict)
    prefetches: dict[Digest, Descriptor] = field(default_factory=dict)


@dataclass
class _Report:
    """Gathers findings."""

    findings: list[Finding]

    def add(self, kind: Kind, message: str, **where: Any) -> None:
        self.findings.append(Finding(kind, message, **where))

    def attempt(self, kind: Kind, read: Callable[..., Any], *arguments: object, **where: Any) -> Any:
        """What `read` gives, or None if it says that what is published is wrong."""
        try:
            return read(*arguments)
        except BuilderError as error:
            if not says_no(error):
                raise
            self.add(kind if isinstance(error, ImageError | LayerError) else Kind.BLOB, str(error), **where)
            return None


def _bound(source: Source, top: Top, images: list[PublishedImage], report: _Report) -> dict[Digest, _Indexed]:
    """For the manifest of each image what its SOCI index has of its layers."""
    indexes = {entry.digest: entry for entry in top.entries if entry.artifact_type == ARTIFACT_TYPE}
    found: dict[Digest, _Indexed] = {}
    used = set()
    for image in images:
        where = {"platform": str(image.platform)}
        annotations = image.document.get("annotations")
        name = annotations.get(INDEX_DIGEST) if isinstance(annotations, dict) else None
        if name is None:
            continue
        # Images with the same layers share one SOCI index, which is listed once for each of them.
        listed = [entry for entry in top.entries if entry.artifact_type == ARTIFACT_TYPE and str(entry.digest) == name]
        own = (entry for entry in listed if entry.annotations.get(IMAGE_MANIFEST_DIGEST) == str(image.manifest.digest))
        index = next(own, listed[0] if listed else None)
        if index is None:
            if top.descriptor.digest != image.manifest.digest:  # a manifest alone has no index beside it
                report.add(Kind.SOCI, f"its SOCI index {name} is not in the index of the image", **where)
            continue
        used.add(index.digest)
        names = index.annotations.get(IMAGE_MANIFEST_DIGEST)
        if names != str(image.manifest.digest):
            report.add(Kind.SOCI, f"its SOCI index {index.digest} is for another image, {names}", **where)
        if index.platform not in (None, UNKNOWN, image.platform):
            report.add(Kind.SOCI, f"its SOCI index {index.digest} is for {index.platform}", **where)
        document = report.attempt(Kind.SOCI, read_document, source, index, **where)
        if document is not None:
            found[image.manifest.digest] = _indexed(document, index, image, report)
    for digest in sorted(indexes.keys() - used):
        report.add(Kind.SOCI, f"no image is bound to the SOCI index {digest}")
    for entry in top.entries:
        if is_artifact(entry) and entry.digest not in indexes:
            report.attempt(Kind.STRUCTURE, read_document, source, entry)
    return found


def _indexed(document: Mapping[str, Any], index: Descriptor, image: PublishedImage, report: _Report) -> _Indexed:
    where: dict[str, Any] = {"platform": str(image.platform)}
    layers = {str(layer.digest): (number, layer) for number, layer in enumerate(image.layers, 1)}
    found = _Indexed()
    config, listed = document.get("config"), document.get("layers")
    if not isinstance(config, dict) or ARTIFACT_TYPE not in (config.get("mediaType"), document.get("artifactType")):
        report.add(Kind.SOCI, f"{index.digest} is no SOCI index v2", **where)
    if not isinstance(listed, list) or not listed:
        report.add(Kind.SOCI, f"the SOCI index {index.digest} lists no ztocs", **where)
        return found
    for entry in listed:
        ztoc = report.attempt(Kind.SOCI, parsed, entry, f"the SOCI index {index.digest}", **where)
        if ztoc is None:
            continue
        ahead = ztoc.media_type == prefetch.MEDIA_TYPE
        what, of_kind = ("prefetch artifact", found.prefetches) if ahead else ("ztoc", found.ztocs)
        names = ztoc.annotations.get(LAYER_DIGEST)
        if names not in layers:
            report.add(Kind.SOCI, f"the {what} {ztoc.digest} is for {names}, which is no layer of this image", **where)
            continue
        number, layer = layers[names]
        if layer.digest in of_kind:
            report.add(Kind.SOCI, f"it has two {what}s", **where, layer=number, name=image.names[number - 1])
        media_type = ztoc.annotations.get(LAYER_MEDIA_TYPE)
        if not ahead and media_type != layer.media_type:
            message = f"its ztoc is said to be for {media_type}, the layer is {layer.media_type}"
            report.add(Kind.SOCI, message, **where, layer=number, name=image.names[number - 1])
        of_kind[layer.digest] = ztoc
    return found


@dataclass
class _Work:
    """A layer to read beside its ztoc, if it has one, and what came of it."""

    image: PublishedImage
    number: int
    ztoc: Descriptor | None
    prefetch: Descriptor | None
    report: _Report
    verified: VerifiedLayer | None = None

    @property
    def layer(self) -> Descriptor:
        return self.image.layers[self.number - 1]

    @property
    def where(self) -> dict[str, Any]:
        name = self.image.names[self.number - 1]
        return {"platform": str(self.image.platform), "layer": self.number, "name": name}


def _works(image: PublishedImage, indexed: _Indexed) -> list[_Work]:
    return [
        _Work(image, number, indexed.ztocs.get(layer.digest), indexed.prefetches.get(layer.digest), _Report([]))
        for number, layer in enumerate(image.layers, 1)
    ]


def _layer(source: Source, work: _Work, task: Task, stop: Stop) -> None:
    """Reads one layer to its end."""
    with ExitStack() as stack:
        ztoc = _ztoc(stack, source, work.ztoc, work.report, work.where)
        check = ZtocCheck(ztoc) if ztoc else None
        if work.prefetch and (wrong := work.report.attempt(Kind.SOCI, prefetched.wrong, source, work.prefetch, ztoc)):
            work.report.add(Kind.SOCI, wrong, **work.where)
        table = _table(work, check)
        read = _read_layer(source, work, check, table, task, stop)
        if read is None:
            return
        figures, members = read
        diff_id = work.image.diff_ids[work.number - 1]
        if figures.diff_id != diff_id:
            message = f"its tar has the digest {figures.diff_id}, the configuration says {diff_id}"
            work.report.add(Kind.DIFF_ID, message, **work.where)
        for fault in check.faults if check else ():
            work.report.add(Kind.SOCI, f"its ztoc: {fault.wrong}: {fault.message}", **work.where, path=fault.path)
        for wrong in table.faults if table else ():
            work.report.add(Kind.TABLE, wrong.message, **work.where, path=wrong.path)
        spans, name = len(ztoc.checkpoints) if ztoc else 0, work.image.names[work.number - 1]
        work.verified = VerifiedLayer(name, work.layer.digest, work.layer.size, figures.tar_size, members, spans)


def _table(work: _Work, check: ZtocCheck | None) -> TableCheck | None:
    """What checks the table of an eStargz layer, if the manifest says that it is one."""
    told = work.layer.annotations.get(TOC_DIGEST)
    if told is None or "gzip" not in work.layer.media_type:
        return None
    try:
        return TableCheck(Digest.parse(told), check)
    except ValueError as error:
        work.report.add(Kind.TABLE, str(error), **work.where)
        return None


def _read_layer(
    source: Source, work: _Work, check: ZtocCheck | None, table: TableCheck | None, task: Task, stop: Stop
) -> tuple[Figures, int] | None:
    members, told = 0, 0
    try:
        with source.blob(work.layer) as blob:
            try:
                with TarReader(blob, table or check) as reader:
                    while member := reader.next():
                        members += 1
                        if check:
                            check.member(member.entry)
                        if table:
                            table.member(member.entry, len(member.header))
                        for piece in reader.content():
                            stop.check()
                            if table:
                                table.content(piece)
                            at = reader.blob_position
                            task.advance(at - told)
                            told = at
                    figures = reader.figures()
                    if check:
                        check.finish(figures)
                    if table:
                        table.finish()
                    task.advance(figures.blob_size - told)
                    if (said := KINDS.get(work.layer.media_type)) not in (None, reader.compression or "tar"):
                        message = f"its media type says {said}, and it is {reader.compression or 'tar'}"
                        work.report.add(Kind.LAYER, message, **work.where)
                    return figures, members
            except LayerError as error:
                while blob.read(_BLOCK):  # what the blob's digest says comes first
                    stop.check()
                work.report.add(Kind.LAYER, str(error), **work.where)
    except BuilderError as error:
        if not says_no(error):
            raise
        work.report.add(Kind.BLOB, str(error), **work.where)
    return None


def _ztoc(
    stack: ExitStack, source: Source, described: Descriptor | None, report: _Report, where: Mapping[str, Any]
) -> Ztoc | None:
    """The ztoc of a layer. Its bytes lie in a file without a name: most of them are windows, which are read once."""
    if described is None:
        return None
    if described.size > MAX_ZTOC:
        report.add(Kind.SOCI, f"its ztoc {described.digest} is larger than {MAX_ZTOC} bytes", **where)
        return None
    try:
        file = stack.enter_context(tempfile.TemporaryFile())  # noqa: SIM115
        with source.blob(described) as blob:
            while piece := blob.read(_BLOCK):
                file.write(piece)
        file.flush()
        if not file.tell():
            raise ValueError("it is empty")
        return read.decode(stack.enter_context(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)))
    except ValueError as error:
        report.add(Kind.SOCI, f"its ztoc {described.digest} cannot be read: {error}", **where)
    except BuilderError as error:
        if not says_no(error):
            raise
        report.add(Kind.BLOB, f"its ztoc: {error}", **where)
    return None
