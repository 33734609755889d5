"""Members of a foreign tar as Go's archive/tar, and so a ztoc, sees them: one at a time, content in pieces, nothing believed."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from types import TracebackType
from typing import BinaryIO

from builder.layers.spans import TocEntry
from builder.layers.stream import Figures, LayerError, LayerStream, Witness
from builder.layers.tar import BLOCK

_MAX_SPECIAL = 1 << 20
_MAX_HEADER = 4 << 20
_MAX_ENTRIES = 10_000_000
_MAX_SIZE = 1 << 62
_TYPES = {
    b"0": "reg",
    b"\0": "reg",
    b"7": "reg",
    b"1": "hardlink",
    b"2": "symlink",
    b"3": "char",
    b"4": "block",
    b"5": "dir",
    b"6": "fifo",
}
_RECORD = re.compile(rb"([0-9]{1,7}) ")
_PAX_NUMBER = re.compile(r"[0-9]{1,19}")
_PAX_TIME = re.compile(r"-?[0-9]{1,18}(\.[0-9]*)?")
_ZERO = bytes(BLOCK)


@dataclass(frozen=True, slots=True)
class Found:
    """A member: what it says of itself, and its header blocks as they are, with those of pax and long names."""

    entry: TocEntry
    header: bytes


class TarReader:
    """The members of a layer in order. A context manager; `next` until it gives None, then `figures`.

    `has_global_header` says whether a pax header for all members was passed over: other readers take it for a member. Raises
    `LayerError` where the blob or its tar is damaged, contradicts itself or is of a kind that no layer may be.
    """

    def __init__(self, blob: BinaryIO, witness: Witness | None = None) -> None:
        self._stream = LayerStream(blob, witness)
        self._piece = memoryview(b"")
        self._begin = 0
        self._position = 0
        self._left = 0
        self._padding = 0
        self._count = 0
        self._ended = False
        self._archive_size = 0
        self.has_global_header = False

    def __enter__(self) -> TarReader:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self._stream.close()

    @property
    def position(self) -> int:
        """Bytes of the tar that were given out."""
        return self._position

    @property
    def compression(self) -> str:
        """`gzip`, `zstd` or nothing, once `next` was called."""
        return self._stream.compression

    @property
    def blob_position(self) -> int:
        """Bytes of the blob that were used for them, at most a piece too many."""
        return self._stream.position

    def next(self) -> Found | None:
        """The next member; None at the end of the archive, after which the rest of the blob has been read and checked."""
        if self._ended:
            return None
        for _ in self.content():
            pass
        if any(self._exactly(self._padding)):
            raise LayerError(f"the bytes before byte {self._position} of the tar, which fill a block, are not zero")
        self._padding = 0
        header, special = bytearray(), dict[str, str]()
        while True:
            block = self._exactly(BLOCK, may_end=not header)
            if not block or block == _ZERO:
                if header:
                    raise LayerError(f"a header without its member ends at byte {self._position} of the tar")
                self._finish(bool(block))
                return None
            header += block
            kind, size = block[156:157], self._sized(block)
            if kind not in b"xgLK":
                return self._member(block, special, bytes(header))
            if size > _MAX_SPECIAL or len(header) + size > _MAX_HEADER:
                raise LayerError(f"a header of more than {_MAX_SPECIAL} bytes ends at byte {self._position} of the tar")
            data = self._exactly(size)
            header += data + self._exactly(-size % BLOCK)
            if kind == b"x":
                special = {key: value for key, value in special.items() if key.startswith("\0")} | self._pax(data)
            elif kind == b"g":
                self.has_global_header = True
            else:
                special["\0path" if kind == b"L" else "\0linkpath"] = _text(data)

    def content(self) -> Iterator[memoryview]:
        """What is left of the content of the member that `next` gave; a piece stays until the next one is asked for."""
        while self._left:
            piece = self._some(self._left)
            self._left -= len(piece)
            yield piece

    def read(self, limit: int) -> bytes | None:
        """The whole content of the member that `next` gave, or None where it is larger than `limit`."""
        return b"".join(map(bytes, self.content())) if self._left <= limit else None

    def figures(self) -> Figures:
        """What the layer was, once `next` has given None."""
        return replace(self._stream.figures(), archive_size=self._archive_size)

    def _member(self, block: bytes, special: Mapping[str, str], header: bytes) -> Found:
        self._count += 1
        if self._count > _MAX_ENTRIES:
            raise LayerError(f"the tar has more than {_MAX_ENTRIES} members")
        pax = {key: value for key, value in special.items() if not key.startswith("\0")}
        if any(key.startswith("GNU.sparse.") for key in pax) or block[156:157] == b"S":
            raise LayerError(f"the member at byte {self._position - BLOCK} of the tar is a sparse file")
        name = special.get("\0path") or pax.get("path") or _name(block)
        type_ = _TYPES.get(block[156:157])
        if type_ is None:
            raise LayerError(f"the member at byte {self._position - BLOCK} of the tar has the type {block[156:157]!r}")
        if block[156:157] == b"\0" and name.endswith("/"):
            type_ = "dir"
        size = self._number(pax, "size", block[124:136])
        if not 0 <= size < _MAX_SIZE:
            raise LayerError(f"the member at byte {self._position - BLOCK} of the tar has the size {size}")
        self._left = size if type_ == "reg" else 0
        self._padding = -self._left % BLOCK
        ustar = block[257:263] == b"ustar\0" or block[257:265] == b"ustar  \0"
        seconds, nanoseconds = self._time(pax, block)
        entry = TocEntry(
            name=name,
            type=type_,
            offset=self._position,
            size=size,
            linkname=special.get("\0linkpath") or pax.get("linkpath") or _text(block[157:257]),
            mode=self._octal(block[100:108]),
            uid=self._number(pax, "uid", block[108:116]),
            gid=self._number(pax, "gid", block[116:124]),
            uname=pax.get("uname") or (_text(block[265:297]) if ustar else ""),
            gname=pax.get("gname") or (_text(block[297:329]) if ustar else ""),
            mtime=seconds,
            devmajor=self._octal(block[329:337]) if ustar else 0,
            devminor=self._octal(block[337:345]) if ustar else 0,
            pax=tuple(sorted(pax.items())),
            nanoseconds=nanoseconds,
        )
        return Found(entry, header)

    def _sized(self, block: bytes) -> int:
        """The size in a header block whose checksum is right."""
        recorded = self._octal(block[148:156])
        unsigned = sum(block) - sum(block[148:156]) + 8 * 32
        signed = unsigned - 256 * sum(byte > 127 for byte in block[:148] + block[156:])
        if recorded not in (unsigned, signed):
            raise LayerError(
                f"the header at byte {self._position - BLOCK} of the tar is damaged: its checksum is wrong"
            )
        return self._octal(block[124:136])

    def _number(self, pax: Mapping[str, str], key: str, field: bytes) -> int:
        text = pax.get(key)
        if not text:
            return self._octal(field)
        if not _PAX_NUMBER.fullmatch(text):
            raise LayerError(f"the pax record {key} before byte {self._position} of the tar is no number")
        return int(text)

    def _time(self, pax: Mapping[str, str], block: bytes) -> tuple[int, int]:
        """Seconds since 1970, and the nanoseconds after them."""
        text = pax.get("mtime")
        if not text:
            return self._octal(block[136:148]), 0
        if not _PAX_TIME.fullmatch(text):
            raise LayerError(f"the pax record mtime before byte {self._position} of the tar is no time")
        whole, _, fraction = text.partition(".")
        nanoseconds = int(fraction[:9].ljust(9, "0"))
        if text.startswith("-") and nanoseconds:
            return int(whole) - 1, 1_000_000_000 - nanoseconds
        return int(whole), nanoseconds

    def _octal(self, field: bytes) -> int:
        """A number of a header: octal digits, or GNU's base 256."""
        if field[0] & 0x80:
            value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
            return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
        text = field.strip(b" \0").partition(b"\0")[0]
        try:
            return int(text, 8) if text else 0
        except ValueError as error:
            raise LayerError(f"the header at byte {self._position - BLOCK} of the tar holds {field!r}") from error

    def _pax(self, data: bytes) -> dict[str, str]:
        records: dict[str, str] = {}
        while data:
            match = _RECORD.match(data)
            length = int(match[1]) if match else 0
            record = data[match.end() : length] if match else b""
            key, equals, value = record[:-1].partition(b"=")
            if length > len(data) or not record.endswith(b"\n") or not equals or not key or b"\0" in key:
                raise LayerError(f"the pax records before byte {self._position} of the tar are damaged")
            records[_decode(key)] = _decode(value)
            data = data[length:]
        return records

    def _finish(self, whole: bool) -> None:
        """The end of the archive: two blocks of zeros, and nothing but zeros behind."""
        if not whole or self._exactly(BLOCK, may_end=True) not in (b"", _ZERO):
            raise LayerError("the tar does not end in two blocks of zeros")
        self._archive_size = self._position
        while piece := self._some(1 << 20):
            if any(bytes(piece)):
                raise LayerError(f"bytes follow the end of the tar, before its byte {self._position}")
        self._ended = True

    def _some(self, most: int) -> memoryview:
        """At most so many bytes; none at the end of the tar, which is an error inside of a member."""
        if self._begin == len(self._piece):
            self._piece, self._begin = self._stream.piece(), 0
            if not self._piece and self._left:
                raise LayerError(f"the tar is cut off at its byte {self._position}, inside of a member")
        piece = self._piece[self._begin : self._begin + most]
        self._begin += len(piece)
        self._position += len(piece)
        return piece

    def _exactly(self, count: int, *, may_end: bool = False) -> bytes:
        data = b""
        while len(data) < count:
            piece = self._some(count - len(data))
            if not piece:
                if may_end and not data:
                    return b""
                raise LayerError(f"the tar is cut off at its byte {self._position}")
            data += piece
        return data


def _name(block: bytes) -> str:
    name, prefix = _text(block[:100]), _text(block[345:500])
    return f"{prefix}/{name}" if prefix and block[257:263] == b"ustar\0" else name


def _text(field: bytes) -> str:
    return _decode(field.partition(b"\0")[0])


def _decode(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def readable(text: str) -> str:
    """A name of a foreign archive as a terminal may show it."""
    return "".join(letter if letter.isprintable() else f"\\x{ord(letter):02x}" for letter in text)


def normal(name: str) -> str:
    """The path of a member as it lies in an image: no `./` and no `/` at its ends."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))
