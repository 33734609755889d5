"""What is inside model files: their headers, read strictly, so that a tensor can be taken without the rest."""

from __future__ import annotations

from pathlib import Path

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
    match format_of(name):
        case "safetensors":
            from builder.models.formats import safetensors

            return safetensors.read_header(path, name)
        case "gguf":
            from builder.models.formats import gguf

            return gguf.read_header(path, name)
        case "onnx":
            from builder.models.formats import onnx

            return onnx.read_header(path, name)
        case None:
            return None
