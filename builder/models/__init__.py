"""Models as artifacts of their own: published once, pulled whole or by the tensor at run time.

What programs use is imported when it is first asked for: `open_model`, `Model`, `LazyTensor`, `Prefetch`, `LazyModel`,
`serve_readiness`.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from builder.models.lazy import Model, Prefetch
    from builder.models.opening import open_model
    from builder.models.ready import LazyModel, NotReadyError, State, serve_readiness
    from builder.models.tensors import LazyTensor

__all__ = [
    "LazyModel",
    "LazyTensor",
    "Model",
    "NotReadyError",
    "Prefetch",
    "State",
    "open_model",
    "serve_readiness",
]

_HOMES = {
    "LazyModel": "ready",
    "LazyTensor": "tensors",
    "Model": "lazy",
    "NotReadyError": "ready",
    "Prefetch": "lazy",
    "State": "ready",
    "open_model": "opening",
    "serve_readiness": "ready",
}


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(f"builder.models.{_HOMES[name]}"), name)
