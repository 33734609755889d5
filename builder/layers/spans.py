"""What one pass over a layer learns for lazy starting: checkpoints, span digests and the table of contents."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from builder.oci.digest import Digest

WINDOW = 32768


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A place where inflating can start: the end of a deflate block (zran's access point).

    `in_offset` counts bytes of the blob up to and including the byte that holds the block's last bit,
    `bits` is how many high bits of that byte are still unused, `out_offset` counts bytes of the tar.
    The 32 KiB of tar before it, its window, lie in `LayerSpans.windows` at `32768 * index`.
    """

    in_offset: int
    out_offset: int
    bits: int


@dataclass(frozen=True, slots=True)
class TocEntry:
    """One member of the tar, in the words of Go's archive/tar, as a ztoc stores it.

    `name` ends in `/` for a directory. `offset` and `size` locate the content in the tar, in bytes
    (`size` is 0 for what has no content). `type` is `reg`, `dir`, `symlink`, `hardlink`, `char`,
    `block` or `fifo`. `mode` holds the permission bits, `mtime` is in whole seconds since 1970, and `nanoseconds` are those
    since then. `pax` holds the PAX records of the header. Bytes that are no UTF-8 are surrogates (PEP 383).
    """

    name: str
    type: str
    offset: int
    size: int
    linkname: str
    mode: int
    uid: int
    gid: int
    uname: str
    gname: str
    mtime: int
    devmajor: int = 0
    devminor: int = 0
    pax: tuple[tuple[str, str], ...] = ()
    nanoseconds: int = 0


@dataclass(frozen=True)
class LayerSpans:
    """Checkpoints and span digests of one layer for one span size, windows in a file of their own.

    `digests[i]` is of the blob's bytes from checkpoint i (one byte earlier where its `bits` is not 0)
    to the `in_offset` of checkpoint i+1; the last one reaches to the end of the blob. `tar_size` reaches to the end of the
    two blocks of zeros that end the archive, behind which more zeros may follow. In a layer that is no gzip (`plain`), spans
    have equal lengths and there are no windows; where it is compressed otherwise, there are no checkpoints.
    """

    span_size: int
    blob_size: int
    tar_size: int
    checkpoints: tuple[Checkpoint, ...]
    digests: tuple[Digest, ...]
    windows: Path
    toc: tuple[TocEntry, ...]
    plain: bool = False

    def iter_windows(self) -> Iterator[bytes]:
        """The window of each checkpoint in turn; the first is zeros."""
        with self.windows.open("rb") as file:
            for _ in self.checkpoints:
                yield file.read(WINDOW)
