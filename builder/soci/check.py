"""Whether a ztoc is right about its layer: told of the layer as it is read, it compares checkpoints, windows, spans and files."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from enum import StrEnum

from builder.layers.spans import TocEntry
from builder.layers.stream import Figures
from builder.oci.digest import Digest
from builder.soci.read import Ztoc

_MOST = 20


class Wrong(StrEnum):
    """What of a ztoc is wrong."""

    SIZE = "size"
    CHECKPOINT = "checkpoint"
    WINDOW = "window"
    SPAN = "span digest"
    TOC = "table of contents"


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong; `number` is that of the checkpoint or span, `path` the member of the tar."""

    wrong: Wrong
    message: str
    number: int | None = None
    path: str | None = None


class ZtocCheck:
    """A witness (`layers.stream.Witness`) of one layer, told of its members by `member` and of its end by `finish`.

    `faults` are what was found, at most twenty of them. Nothing but the ztoc is kept in memory.
    """

    def __init__(self, ztoc: Ztoc) -> None:
        self.faults: list[Fault] = []
        self._ztoc = ztoc
        self._toc: Iterator[TocEntry] | None = ztoc.toc()
        self._next = 0
        self._span = -1
        self._hash = hashlib.sha256()
        self._position = 0
        self._last = b""

    def blob(self, data: memoryview) -> None:
        """The next bytes of the blob; each span is hashed, and a byte in which two spans meet belongs to both."""
        checkpoints, start = self._ztoc.checkpoints, 0
        while self._span + 1 < len(checkpoints):
            cut = checkpoints[self._span + 1].in_offset - self._position
            if cut > len(data):
                break
            self._hash.update(data[start:cut])
            self._span_ends()
            self._span += 1
            shared = (bytes(data[cut - 1 : cut]) or self._last) if checkpoints[self._span].bits else b""
            self._hash = hashlib.sha256(shared)
            start = cut
        self._hash.update(data[start:])
        self._position += len(data)
        self._last = bytes(data[-1:]) or self._last

    def boundary(self, in_offset: int, out_offset: int, bits: int, window: Callable[[], bytes]) -> None:
        """Inflating can begin here; is there a checkpoint, and is it right?"""
        checkpoints = self._ztoc.checkpoints
        while self._next < len(checkpoints) and checkpoints[self._next].in_offset <= in_offset:
            number, checkpoint = self._next, checkpoints[self._next]
            if checkpoint.in_offset < in_offset:
                self._misplaced(number)
            elif (checkpoint.out_offset, checkpoint.bits) != (out_offset, bits):
                said = f"byte {checkpoint.out_offset} of the tar with {checkpoint.bits} bits left"
                self._add(
                    Wrong.CHECKPOINT,
                    f"checkpoint {number} at byte {in_offset} of the blob says {said}; "
                    f"there begins byte {out_offset} with {bits} bits left",
                    number,
                )
            elif window() != self._ztoc.window(number):
                self._add(
                    Wrong.WINDOW,
                    f"the window of checkpoint {number} is not the 32 KiB of tar before byte {out_offset}",
                    number,
                )
            self._next += 1

    def member(self, found: TocEntry) -> None:
        """The next member of the tar; is it the next of the table of contents?"""
        if self._toc is None:
            return
        try:
            listed = next(self._toc, None)
        except ValueError as error:
            self._toc = None
            self._add(Wrong.TOC, f"the table of contents cannot be read: {error}")
            return
        if listed is None:
            self._toc = None
            self._add(Wrong.TOC, "the table of contents ends before the tar does", path=found.name)
        elif listed != found:
            names = [
                field.name for field in fields(TocEntry) if getattr(listed, field.name) != getattr(found, field.name)
            ]
            self._add(Wrong.TOC, _entry_message(listed, found, names[0]), path=found.name)
            if "name" in names:  # all that follows would differ, too
                self._toc = None

    def finish(self, found: Figures) -> None:
        """The layer was read to its end."""
        self._span_ends()
        self._next = len(self._ztoc.checkpoints) if self._ztoc.plain else self._next
        for number in range(self._next, len(self._ztoc.checkpoints)):
            self._misplaced(number)
        for what, listed, real in (
            ("blob", self._ztoc.blob_size, found.blob_size),
            ("tar", self._ztoc.tar_size, found.archive_size),
        ):
            if listed != real:
                self._add(Wrong.SIZE, f"it says that the {what} has {listed} bytes; it has {real}")
        if self._toc is not None:
            try:
                listed_too = next(self._toc, None)
            except ValueError as error:
                self._add(Wrong.TOC, f"the table of contents cannot be read: {error}")
                return
            if listed_too:
                self._add(Wrong.TOC, "the table of contents lists more than is in the tar", path=listed_too.name)

    def _misplaced(self, number: int) -> None:
        at = self._ztoc.checkpoints[number].in_offset
        self._add(Wrong.CHECKPOINT, f"checkpoint {number} is at byte {at} of the blob, where no block ends", number)

    def _span_ends(self) -> None:
        if self._span < 0:
            return
        listed, found = self._ztoc.digests[self._span], Digest(self._hash.hexdigest())
        if listed != found:
            self._add(Wrong.SPAN, f"span {self._span} has the digest {found}, the ztoc says {listed}", self._span)

    def _add(self, wrong: Wrong, message: str, number: int | None = None, *, path: str | None = None) -> None:
        if len(self.faults) < _MOST:
            self.faults.append(Fault(wrong, message, number, path))


def _entry_message(listed: TocEntry, found: TocEntry, name: str) -> str:
    return f"its {name} is {getattr(found, name)!r} in the tar and {getattr(listed, name)!r} in the table of contents"
