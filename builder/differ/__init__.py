"""Two images, locks or profiles, side by side: packages, wheels, layers, files and settings."""

from __future__ import annotations

from builder.differ.comparison import Comparison, PlatformComparison, VersionChange, compare
from builder.differ.files import FileChange
from builder.differ.sides import ImageSide, LayerSide, LockSide, Side, image_side, lock_side, profile_side

__all__ = [
    "Comparison",
    "FileChange",
    "ImageSide",
    "LayerSide",
    "LockSide",
    "PlatformComparison",
    "Side",
    "VersionChange",
    "compare",
    "image_side",
    "lock_side",
    "profile_side",
]
