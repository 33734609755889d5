"""A tensor whose elements are fetched when they are asked for, as bytes, for numpy, for torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from builder.errors import BuilderError
from builder.models.slices import Index, spans
from builder.models.values import Tensor

if TYPE_CHECKING:
    import numpy as np
    import torch as pytorch

_NUMPY = {
    "BOOL": "bool",
    **{f"{kind}{bits}": f"{name}{bits}" for kind, name in (("I", "int"), ("U", "uint")) for bits in (8, 16, 32, 64)},
    **{f"F{bits}": f"float{bits}" for bits in (16, 32, 64)},
    "C64": "complex64",
}
_ML_DTYPES = {
    "BF16": "bfloat16",
    "F8_E4M3": "float8_e4m3fn",
    "F8_E4M3FNUZ": "float8_e4m3fnuz",
    "F8_E5M2": "float8_e5m2",
    "F8_E8M0": "float8_e8m0fnu",
}
_TORCH: Mapping[str, str] = {**_NUMPY, **_ML_DTYPES}


class NoTypeError(BuilderError):
    """A library that was asked for has no type for the elements of a tensor."""

    hint = "take its bytes with .bytes(), which need no library"


@dataclass(frozen=True)
class LazyTensor:
    """A tensor in a published model. `view` gives its bytes, of which those in the spans that it is given are there."""

    tensor: Tensor
    view: Callable[[Sequence[tuple[int, int]]], memoryview]

    @property
    def name(self) -> str:
        """Its name in the model."""
        return self.tensor.name

    @property
    def dtype(self) -> str:
        """The type of its elements, as its format spells it."""
        return self.tensor.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        """Its dimensions, the outermost first."""
        return self.tensor.shape

    @property
    def nbytes(self) -> int:
        """How many bytes it has."""
        return self.tensor.end - self.tensor.start

    def spans(self, index: Index) -> list[tuple[int, int]]:
        """The bytes, counted from its first, that a part of it needs. Raises `IndexError`."""
        count = math.prod(self.shape)
        return spans(self.shape, self.nbytes * 8 // count, index) if count else []

    def bytes(self) -> memoryview:
        """All its bytes, as they are in the file; they may not be written."""
        return self.view([(0, self.nbytes)])

    def numpy(self) -> np.ndarray[Any, Any]:
        """All of it, as a view of the cache that may not be written. Raises `NoTypeError` where numpy has no such type."""
        return self[...]

    def torch(self) -> pytorch.Tensor:
        """All of it, as a copy. Raises `NoTypeError` where torch has no such type."""
        import torch

        dtype = getattr(torch, _TORCH.get(self.dtype, ""), None)
        if dtype is None:
            raise NoTypeError(f"{self.name}: torch has no type for {self.dtype}")
        if not self.nbytes:
            return torch.empty(self.shape, dtype=dtype)
        return torch.frombuffer(bytearray(self.bytes()), dtype=dtype).reshape(self.shape)

    def __getitem__(self, index: Index) -> np.ndarray[Any, Any]:
        """A part of it for numpy, such as `[:1000]` or `[:, 0:64]`: a view of the cache that may not be written; only what is
        asked for is fetched, and little around it. Raises `IndexError` and `NoTypeError`."""
        import numpy

        dtype = numpy.dtype(self._dtype())
        view = self.view(self.spans(index))
        array: np.ndarray[Any, Any] = numpy.frombuffer(view, dtype).reshape(self.shape)[index]
        return array

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray[Any, Any]:
        import numpy

        return numpy.array(self.numpy(), dtype=dtype, copy=True if copy is None else copy)

    def _dtype(self) -> Any:
        if self.dtype in _NUMPY:
            return _NUMPY[self.dtype]
        try:
            import ml_dtypes
        except ImportError as error:
            if self.dtype not in _ML_DTYPES:
                raise NoTypeError(f"{self.name}: numpy has no type for {self.dtype}") from error
            raise NoTypeError(
                f"{self.name}: numpy alone has no type for {self.dtype}", hint="install ml_dtypes, or take .bytes()"
            ) from error
        if self.dtype not in _ML_DTYPES:
            raise NoTypeError(f"{self.name}: numpy has no type for {self.dtype}")
        return getattr(ml_dtypes, _ML_DTYPES[self.dtype])
