"""Flatbuffers as Go's builder lays them out: written from the end of the file towards its start."""

from __future__ import annotations

import struct
from collections.abc import Sequence
from dataclasses import dataclass

_SIZE = {"O": 4, "I": 4, "b": 1, "i": 4, "q": 8}


@dataclass(frozen=True, slots=True)
class Hole:
    """Bytes of a known length that are known only when the file is written."""

    length: int


Part = bytes | Hole


class Builder:
    """Prepends strings, vectors and tables; each method returns an offset, counted from the end of the file.

    The bytes are those of github.com/google/flatbuffers go/builder.go (v25.12.19) for the same calls in
    the same order: the same padding, the same elided defaults, and one vtable for all tables whose field
    offsets are equal, whatever their sizes are.
    """

    def __init__(self) -> None:
        self.offset = 0
        self._parts: list[Part] = []
        self._vtables: dict[bytes, int] = {}

    def string(self, data: bytes) -> int:
        """A string: its length, its bytes, a NUL."""
        size = len(data)
        padding = -(self.offset + size + 1) & 3
        self._parts.append(b"%b%b%b" % (size.to_bytes(4, "little"), data, b"\0\0\0\0"[: padding + 1]))
        self.offset += size + padding + 5
        return self.offset

    def hole(self, length: int) -> int:
        """A vector of `length` bytes that are not known yet."""
        self._align(4, length)
        self._parts.append(Hole(length))
        self.offset += length
        return self.prepend(length.to_bytes(4, "little"))

    def blob(self, data: bytes) -> int:
        """A vector of bytes."""
        self._align(4, len(data))
        self._parts.append(data)
        self.offset += len(data)
        return self.prepend(len(data).to_bytes(4, "little"))

    def vector(self, targets: Sequence[int]) -> int:
        """A vector of offsets."""
        count = len(targets)
        self._align(4, 4 * count)
        first = self.offset + 4 * count
        relative = [first - 4 * index - target for index, target in enumerate(targets)]
        return self.prepend(struct.pack(f"<{count + 1}I", count, *relative))

    def table(self, schema: Schema, values: Sequence[int]) -> int:
        """A table; `values` in the schema's order, offsets as the methods returned them, 0 for what is not there."""
        start = self.offset
        layout = schema.layout(start & 7, tuple([value != 0 for value in values]))
        fields = [
            start + place - value if place else value
            for value, place in zip(values, layout.places, strict=True)
            if value
        ]
        fields.reverse()
        size = layout.pack.size
        shared = self._vtables.get(layout.vtable)
        if shared is not None:
            return self.prepend(layout.pack.pack(shared - start - size, *fields))
        length = len(layout.vtable) + 4
        table = self.prepend(layout.pack.pack(length, *fields))
        self._vtables[layout.vtable] = self.prepend(struct.pack("<HH", length, size) + layout.vtable)
        return table

    def finish(self, root: int) -> list[Part]:
        """The parts of the file from its start to its end."""
        self._align(8, 4)
        self.prepend(struct.pack("<I", self.offset + 4 - root))
        return self.parts()

    def parts(self) -> list[Part]:
        """What was prepended so far, in the order of the file."""
        return self._parts[::-1]

    def prepend(self, data: bytes) -> int:
        """Bytes that are laid out already, for this alignment."""
        self._parts.append(data)
        self.offset += len(data)
        return self.offset

    def _align(self, size: int, additional: int) -> None:
        padding = -(self.offset + additional) & (size - 1)
        if padding:
            self.prepend(bytes(padding))


class Schema:
    """The fields of a table as (slot, `struct` letter or `O` for an offset), in the order in which Go's code adds them.

    The default of every field is 0. Tables with the same fields present and the same alignment are laid out once.
    """

    def __init__(self, *fields: tuple[int, str]) -> None:
        self._fields = fields
        self._layouts: dict[tuple[int, tuple[bool, ...]], _Layout] = {}

    def layout(self, start: int, present: tuple[bool, ...]) -> _Layout:
        """The layout of a table whose end lies `start` bytes (modulo 8) before the end of the file."""
        layout = self._layouts.get((start, present))
        if layout is None:
            layout = self._layouts[start, present] = self._lay_out(start, present)
        return layout

    def _lay_out(self, start: int, present: tuple[bool, ...]) -> _Layout:
        form: list[str] = []
        places: list[int] = []
        slots: dict[int, int] = {}
        end = start
        for (slot, code), there in zip((*self._fields, (-1, "i")), (*present, True), strict=True):
            if there:
                padding = -end & (_SIZE[code] - 1)
                end += padding + _SIZE[code]
                form.append(f"{'I' if code == 'O' else code}{padding}x")
                slots[slot] = end - start
            places.append(slots[slot] if there and code == "O" else 0)
        offsets = [end - start - slots[slot] if slot in slots else 0 for slot in range(max(slots) + 1)]
        return _Layout(
            struct.Struct("<" + "".join(reversed(form))), tuple(places[:-1]), struct.pack(f"<{len(offsets)}H", *offsets)
        )


@dataclass(frozen=True, slots=True)
class _Layout:
    """Where the fields of a table lie.

    `places` is, for a field that is an offset, how far before the table's end it begins, and 0 for the others;
    `pack` takes the distance to the vtable and the present fields, last added first.
    """

    pack: struct.Struct
    places: tuple[int, ...]
    vtable: bytes
