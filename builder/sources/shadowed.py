"""Headers that two of NVIDIA's wheels bring with different content to one place.

The wheels of CUPTI and of the sanitizer do: with pip, whichever is installed last wins. Here it is a rule of the format: the
wheel whose name comes first keeps its file, and the other's is left out. Its RECORD does not list it, and a file `SHADOWED`
beside that says what was left out, with hash and size as in RECORD, and whose file is there instead. Nothing but
headers of such wheels in one layer is settled so: all else that collides is an error.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Sequence
from dataclasses import replace

from builder.layers.merge import same
from builder.sources.wheel import Installed, WheelFiles, generated, relative

_HEADER = re.compile(r"nvidia/(?:[^/]+/)+include/.+")


def settled(wheels: Sequence[tuple[str, WheelFiles]]) -> list[WheelFiles]:
    """The wheels of one layer, given with their names and in the order of these, each header there once."""
    first: dict[str, tuple[str, Installed]] = {}
    found = []
    for name, wheel in wheels:
        left_out: list[tuple[Installed, str]] = []
        site = wheel.dist_info.rpartition("/")[0]
        for file in wheel.files if name.startswith("nvidia-") else ():
            if not _HEADER.fullmatch(relative(file.entry.path, site)):
                continue
            owner, other = first.setdefault(file.entry.path, (name, file))
            if other is not file and not same(other.entry, file.entry):
                left_out.append((file, owner))
        found.append(_without(wheel, left_out, site) if left_out else wheel)
    return found


def _without(wheel: WheelFiles, left_out: Sequence[tuple[Installed, str]], site: str) -> WheelFiles:
    text = io.StringIO()
    rows = sorted((relative(file.entry.path, site), *file.record, owner) for file, owner in left_out)
    csv.writer(text, lineterminator="\n").writerows(rows)
    gone = {file.entry.path for file, _ in left_out}
    kept = [file for file in wheel.files if file.entry.path not in gone]
    return replace(wheel, files=(*kept, generated(f"{wheel.dist_info}/SHADOWED", text.getvalue().encode())))
