"""Which files of a source become files of a model: by patterns, and nothing that can run code unless it is asked for."""

from __future__ import annotations

import posixpath
from collections.abc import Iterable, Sequence

from builder.errors import BuilderError
from builder.models.patterns import matches
from builder.models.sources import Wanted
from builder.models.values import check_paths

PICKLES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".dill")
CODE = (".py", ".pyc", ".pyd", ".so", ".dll", ".dylib", ".exe", ".sh")
"""Files that run code when they are loaded, or are code; by their suffix."""

ALWAYS_EXCLUDED = frozenset({".git", ".gitattributes", ".gitignore", ".cache", "__pycache__", ".DS_Store"})
"""Names that are never taken: they say something of the place, and nothing of the model."""
_SHOWN = 5


class RefusedError(BuilderError):
    """A source has files that can run code when they are loaded, and nobody asked for them by name."""


def select(paths: Iterable[str], wanted: Wanted, where: str) -> tuple[str, ...]:
    """The paths that are wanted, sorted, each as `values.check_path` allows it; `where` names the source in errors.

    Raises `RefusedError`, `BadModelError` for paths that lie or clash, and `BuilderError` where nothing is left.
    """
    offered = sorted(paths)
    taken = [path for path in offered if _is_taken(path, wanted)]
    if refused := [path for path in taken if not _is_harmless(path, wanted.include)]:
        suffix = posixpath.splitext(refused[0])[1].lower()
        raise RefusedError(
            f"{where}: {_some(refused)} can run code when loaded ({_what(suffix)})",
            hint=f'leave it out, exclude: ["*{suffix}"], or ask for it by its suffix, include: ["*{suffix}", …]; '
            f"--exclude '*{suffix}' and --include '*{suffix}' on the command line",
        )
    if not taken:
        raise BuilderError(
            f"{where}: no file is left of {_some(offered) or 'nothing'}",
            hint="correct `from`, `include` or `exclude` of the model",
        )
    return check_paths(taken, where)


def _is_taken(path: str, wanted: Wanted) -> bool:
    if ALWAYS_EXCLUDED & set(path.split("/")):
        return False
    return (not wanted.include or matches(path, wanted.include)) and not matches(path, wanted.exclude)


def _is_harmless(path: str, include: Sequence[str]) -> bool:
    """Whether a file cannot run code, or a pattern that matches it says the suffix."""
    suffix = posixpath.splitext(path)[1].lower()
    if suffix not in PICKLES and suffix not in CODE:
        return True
    return any(pattern.lower().endswith(suffix) and matches(path, [pattern]) for pattern in include)


def _what(suffix: str) -> str:
    return "a pickle" if suffix in PICKLES else "a program"


def _some(paths: Sequence[str]) -> str:
    shown = ", ".join(repr(path[:100]) for path in paths[:_SHOWN])
    return shown + (f" and {len(paths) - _SHOWN} more" if len(paths) > _SHOWN else "")
