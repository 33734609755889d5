"""Where a damaged blob is damaged: its first other byte, and the file that it belongs to."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from pathlib import Path

from builder.errors import BuilderError
from builder.layers.untar import TarReader
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.store import Store
from builder.verify.findings import Finding, Kind, says_no
from builder.verify.quick import Structure

_BLOCK = 64 << 10


def damage(source: Source, found: Structure, known: Collection[Digest], store: Store) -> Iterator[Finding]:
    """For each layer whose blob has other bytes than its digest says, and that was rebuilt into `store` (`known`): where."""
    images = {str(image.platform): image for image in found.images}
    for finding in found.findings:
        image = images.get(finding.platform or "")
        if finding.kind is not Kind.BLOB or finding.layer is None or image is None:
            continue
        layer = image.layers[finding.layer - 1]
        if layer.digest not in known:
            continue
        path = store.path(layer.digest)
        place = _first(path, source, layer)
        if place:
            byte, message = place
            yield replace(finding, kind=Kind.BLOB, message=message, byte=byte, path=_member(path, byte))


def _first(good: Path, source: Source, layer: Descriptor) -> tuple[int, str] | None:
    """The place of the first other byte and what it should be; None where a source does not give it out."""
    at, left = 0, layer.size
    try:
        with good.open("rb") as expected, source.blob(layer) as stream:
            # The read that meets the end raises instead of giving its bytes: the last byte is asked for alone.
            while data := stream.read(max(1, min(_BLOCK, left - 1))):
                right = expected.read(len(data))
                if data != right:
                    place = next(n for n, pair in enumerate(zip(right, data, strict=True)) if pair[0] != pair[1])
                    message = f"the blob is damaged: expected 0x{right[place]:02x}, found 0x{data[place]:02x}"
                    return at + place, message
                at, left = at + len(data), left - len(data)
    except BuilderError as error:
        if not says_no(error):
            raise
    return None


class _Edge:
    """Remembers the last place before a byte of the blob where inflating could begin."""

    def __init__(self, byte: int) -> None:
        self.byte = byte
        self.out: int | None = None
        self.passed = False

    def blob(self, data: memoryview) -> None:
        """The bytes themselves are of no interest."""

    def boundary(self, in_offset: int, out_offset: int, bits: int, window: Callable[[], bytes]) -> None:
        """A block ends."""
        if in_offset <= self.byte:
            self.out = out_offset
        else:
            self.passed = True


def _member(good: Path, byte: int) -> str | None:
    """The member whose content or header lies where the block around a byte of the blob begins."""
    edge = _Edge(byte)
    with good.open("rb") as file, TarReader(file, edge) as reader:
        while not edge.passed and reader.next():
            pass
    if edge.out is None:
        return None
    name = None
    with good.open("rb") as file, TarReader(file) as reader:
        while member := reader.next():
            start = member.entry.offset - len(member.header)
            if start > edge.out:
                break
            name = member.entry.name
    return name
