"""What is published, proven: that it is what it says (`quick`), and that it is what its lock makes (`rebuilt`)."""

from __future__ import annotations

from builder.verify.findings import Finding, Kind, VerifiedImage, VerifiedLayer, says_no
from builder.verify.own import OwnFiles, own_files
from builder.verify.quick import Structure, examine
from builder.verify.rebuilt import compare

__all__ = [
    "Finding",
    "Kind",
    "OwnFiles",
    "Structure",
    "VerifiedImage",
    "VerifiedLayer",
    "compare",
    "examine",
    "own_files",
    "says_no",
]
