"""What a conversion did, tensor by tensor: sizes and errors. For people and for tests; no byte depends on it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from builder.models.values import LocalModelFile

Precision = Literal["fp16", "bf16", "int8", "int8-dynamic"]
"""`fp16` and `bf16` cast matrices; `int8` quantises them for weights alone (W8A16, compressed-tensors `pack-quantized`),
`int8-dynamic` for activations too, whose scales are found at run time (W8A8, `int-quantized`)."""

PRECISIONS: tuple[Precision, ...] = ("fp16", "bf16", "int8", "int8-dynamic")


@dataclass(frozen=True)
class Errors:
    """How far converted numbers are from their source: the largest distance, and the powers of signal and noise.

    `clamped` numbers did not fit and were set to the largest that does; `unbounded` ones were infinite or no number in
    the source already, stayed so, and count in nothing else.
    """

    largest: float = 0.0
    signal: float = 0.0
    noise: float = 0.0
    clamped: int = 0
    unbounded: int = 0

    def __add__(self, other: Errors) -> Errors:
        return Errors(
            max(self.largest, other.largest),
            self.signal + other.signal,
            self.noise + other.noise,
            self.clamped + other.clamped,
            self.unbounded + other.unbounded,
        )

    @property
    def sqnr(self) -> float:
        """The signal to quantisation noise ratio in dB; infinite where nothing was lost."""
        if not self.noise:
            return math.inf
        return 10 * math.log10(self.signal / self.noise) if self.signal else -math.inf


@dataclass(frozen=True)
class ConvertedTensor:
    """One tensor of a converted file: `size` bytes of `dtype`, with the scales of a quantised one; before, `source_size`
    bytes of `source_dtype`. Tensors that keep their type have no errors."""

    name: str
    source_dtype: str
    dtype: str
    source_size: int
    size: int
    errors: Errors = Errors()

    @property
    def kept(self) -> bool:
        return self.source_dtype == self.dtype


@dataclass(frozen=True)
class ConvertedFile:
    """A file whose tensors were converted: the source it was made from, and what became of each tensor, by name. The digest of the
    result is empty where nobody asked for it."""

    source: LocalModelFile
    result: LocalModelFile
    tensors: tuple[ConvertedTensor, ...]


@dataclass(frozen=True)
class Conversion:
    """All files of a converted model: those that were `converted`, documents that were `rewritten` to say so, and all
    others as they are in `files`, which is sorted by path and complete."""

    precision: Precision
    files: tuple[LocalModelFile, ...]
    converted: tuple[ConvertedFile, ...]
    rewritten: tuple[str, ...] = ()

    @property
    def errors(self) -> Errors:
        """The errors of all tensors that did not keep their type, together."""
        total = Errors()
        for file in self.converted:
            for tensor in file.tensors:
                total += tensor.errors
        return total

    @property
    def source_size(self) -> int:
        """The bytes of the converted files before."""
        return sum(file.source.file.size for file in self.converted)

    @property
    def size(self) -> int:
        """Their bytes now."""
        return sum(file.result.file.size for file in self.converted)


def moved(conversion: Conversion, old: Path, new: Path) -> Conversion:
    """The same conversion after the folder `old` of its results was renamed to `new`."""

    def there(file: LocalModelFile) -> LocalModelFile:
        inside = file.location.is_relative_to(old)
        return replace(file, location=new / file.location.relative_to(old)) if inside else file

    return replace(
        conversion,
        files=tuple(map(there, conversion.files)),
        converted=tuple(replace(file, result=there(file.result)) for file in conversion.converted),
    )
