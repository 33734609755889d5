"""The facts of ELF files that lie here: those of a profile's own folder."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from pathlib import Path

from builder.binaries.facts import BinaryFacts, InputFacts
from builder.binaries.window import BinaryError, Window
from builder.errors import BuilderError

_MAGIC = b"\x7fELF"


def of_files(files: Iterable[tuple[str, Path]]) -> InputFacts:
    """The facts of those files (absolute place in the image, place here) that are ELF files; of others nothing is said."""
    binaries: list[BinaryFacts] = []
    found: list[tuple[str, int, str]] = []
    damaged: list[tuple[str, str]] = []
    for place, path in sorted(files):
        try:
            with path.open("rb") as file:
                if file.read(len(_MAGIC)) != _MAGIC:
                    continue
                from builder.binaries.inputs import read_binary  # takes long to import

                size = path.stat().st_size
                file.seek(0)
                found.append((place, size, hashlib.file_digest(file, "sha256").hexdigest()))
                binaries.append(read_binary(place, Window(file.fileno(), 0, size, path.name)))
        except BinaryError as error:
            damaged.append((place, str(error)))
        except OSError as error:
            raise BuilderError(f"{path}: {error.strerror}", hint="run the command again when it is there") from error
    return InputFacts(tuple(binaries), (), tuple(found), tuple(damaged))
