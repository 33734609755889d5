"""What is inside model files: their headers, read strictly, so that a tensor can be taken without the rest."""

from __future__ import annotations

from pathlib import Path
from typing import BinaryIO

from builder.models.values import BadModelError, Format, Header


class HeaderError(BadModelError):
    """A model file whose header lies about the file, or is not what the file's name says."""

    hint = "download the file again from where it came from, or exclude it"


_SUFFIXES: dict[str, Format] = {".safetensors": "safetensors", ".gguf": "gguf", ".onnx": "onnx"}


def format_of(name: str) -> Format | None:
    """The format that a file's name promises; None for one that is not understood."""
    return _SUFFIXES.get(name[name.rfind(".") :].lower() if "." in name else "")


def read_header(path: Path, name: str) -> Header | None:
    """The header of the file at `path`, called `name`, as its name promises; None where its format is not understood.

    Raises `HeaderError` for a file that is not what its name says, or lies, and `OSError` where it cannot be read.
    """
    format = format_of(name)
    if format is None:
        return None
    with path.open("rb") as file:
        size = file.seek(0, 2)
        file.seek(0)
        return read(file, size, name, format)


def read(file: BinaryIO, size: int, name: str, format: Format) -> Header:
    """The header of `size` bytes in that format, which begin where `file` is; it is only sought forward. Raises `HeaderError`."""
    match format:
        case "safetensors":
            from builder.models.formats import safetensors

            return safetensors.read(file, size, name)
        case "gguf":
            from builder.models.formats import gguf

            return gguf.read(file, size, name)
        case "onnx":
            from builder.models.formats import onnx

            return onnx.read(file, size, name)
