"""The index of a model, `.build/index.v1.json`: what each file's chunks hash to and where its tensors lie.

A blob's digest says nothing of a part of it. With the index, ranges, resumed downloads and single tensors are checked
too, and chunks of an older version are known again. The document (canonical JSON; docs/models.md describes it) holds for
each file, sorted by path, what `FileIndex` does; a tensor is `[name, dtype, shape, start, end]`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from builder.models import strictjson
from builder.models.cuts import cuts
from builder.models.values import (
    INDEX_PATH,
    BadModelError,
    FileIndex,
    Header,
    ModelFile,
    ModelIndex,
    Tensor,
    check_paths,
)
from builder.oci import spec

VERSION = 1
MAX_BYTES = 64 << 20
"""The largest index that is written or read, in bytes; a terabyte of weights has one of about 28 MB."""
MIN_CHUNK, MAX_CHUNK = 64 << 10, 64 << 20
_MAX_VALUES = 4_000_000
_LARGEST = 1 << 63
_HEX = re.compile(r"[0-9a-f]{64}")
_FILE_KEYS = {"path", "size", "sha256", "chunkSize", "chunks"}
_HEADER_KEYS = {"format", "length", "tensors", "metadata"}
_FORMATS = ("safetensors", "gguf", "onnx")


def encode(index: ModelIndex) -> bytes:
    """The bytes of an index: equal indexes have equal bytes. Raises `BadModelError` for one that is too large."""
    files = [document(file) for file in sorted(index.files, key=lambda each: each.file.path)]
    data = spec.encode({"version": VERSION, "files": files})
    if len(data) > MAX_BYTES:
        raise BadModelError(
            f"the index of the model has {len(data)} bytes, {MAX_BYTES} are allowed", hint="publish it as two models"
        )
    return data


def parse(data: bytes, where: str) -> ModelIndex:
    """The index that `data` holds; `where` names it in errors.

    Raises `BadModelError` for anything that `encode` would not write: files that clash, chunks that are not as many as the
    size needs, tensors that overlap or lie outside of their file, unknown keys.
    """
    try:
        return _index(_load(data))
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise BadModelError(f"{where}: {INDEX_PATH} cannot be trusted: {error}") from error
    except BadModelError as error:
        raise BadModelError(f"{where}: {error}") from error


def document(file: FileIndex) -> dict[str, object]:
    """One file's part of the index, as a JSON value."""
    found: dict[str, object] = {
        "path": file.file.path,
        "size": file.file.size,
        "sha256": file.file.sha256,
        "chunkSize": file.chunk_size,
        "chunks": list(file.chunks),
    }
    if file.header is not None:
        header = file.header
        found["header"] = {
            "format": header.format,
            "length": header.length,
            "tensors": [[each.name, each.dtype, list(each.shape), each.start, each.end] for each in header.tensors],
            "metadata": dict(header.metadata),
        }
    return found


def file_index(found: Any) -> FileIndex:
    """The inverse of `document`. Raises `ValueError` or `TypeError` that says what is wrong; the path is not checked."""
    if not isinstance(found, dict) or set(found) - {"header"} != _FILE_KEYS:
        raise ValueError(f"a file has {', '.join(sorted(_FILE_KEYS))} and perhaps header, nothing else")
    path = _text(found["path"], "path")
    size, chunk_size = _number(found["size"], "size"), _number(found["chunkSize"], "chunkSize")
    if not MIN_CHUNK <= chunk_size <= MAX_CHUNK:
        raise ValueError(f"{path!r}: chunks of {chunk_size} bytes, {MIN_CHUNK} to {MAX_CHUNK} are allowed")
    chunks = found["chunks"]
    file = ModelFile(path, size, _sha256(found["sha256"]))
    header = _header(found["header"], file) if "header" in found else None
    # Few chunks of a file that claims to be huge are refused before they are counted.
    if not isinstance(chunks, list) or len(chunks) * chunk_size < size:
        raise ValueError(f"{path!r}: too few chunks for its {size} bytes")
    hashes = tuple(map(_sha256, chunks))
    if len(hashes) != len(cuts(size, chunk_size, header)) - 1:
        raise ValueError(f"{path!r}: it has {len(hashes)} chunks, another number than its size and tensors ask for")
    if len(hashes) == 1 and hashes[0] != file.sha256:
        raise ValueError(f"{path!r}: its only chunk has another digest than the file")
    return FileIndex(file, chunk_size, hashes, header)


def _load(data: bytes) -> Any:
    if len(data) > MAX_BYTES:
        raise ValueError(f"larger than {MAX_BYTES} bytes")
    if sum(map(data.count, (b"[", b"{", b","))) > _MAX_VALUES:
        raise ValueError(f"more than {_MAX_VALUES} values")
    return strictjson.load(data)


def _index(found: Any) -> ModelIndex:
    if not isinstance(found, dict) or set(found) != {"version", "files"}:
        raise ValueError("it is to have version and files, nothing else")
    if found["version"] != VERSION or isinstance(found["version"], bool):
        raise ValueError(f"its version is {found['version']!r}, not {VERSION}")
    if not isinstance(found["files"], list):
        raise ValueError("files is no list")
    files = tuple(map(file_index, found["files"]))
    paths = check_paths((file.file.path for file in files), INDEX_PATH)
    if list(paths) != sorted(paths):
        raise ValueError("its files are not sorted")
    return ModelIndex(files)


def _header(found: Any, file: ModelFile) -> Header:
    where = f"the header of {file.path!r}"
    if not isinstance(found, dict) or set(found) != _HEADER_KEYS or found["format"] not in _FORMATS:
        raise ValueError(f"{where} is to have format, length, tensors and metadata of a format that is known")
    length = _number(found["length"], "length")
    metadata = found["metadata"]
    if length > file.size:
        raise ValueError(f"{where} is longer than the file")
    if not isinstance(metadata, dict) or not isinstance(found["tensors"], list):
        raise ValueError(f"{where}: metadata is to be an object, tensors a list")
    tensors = tuple(_tensor(item, where) for item in found["tensors"])
    _check_places(tensors, file.size, where)
    texts = {_text(key, "metadata"): _text(value, "metadata") for key, value in metadata.items()}
    return Header(found["format"], length, tensors, texts)


def _tensor(item: Any, where: str) -> Tensor:
    match item:
        case [str(name), str(dtype), list(shape), start, end] if len(shape) <= 64:
            dimensions = tuple(_number(each, "a dimension") for each in shape)
            return Tensor(
                _text(name, "name"), _text(dtype, "dtype"), dimensions, _number(start, "start"), _number(end, "end")
            )
    raise ValueError(f"{where}: a tensor is [name, dtype, shape, start, end]")


def _check_places(tensors: Sequence[Tensor], size: int, where: str) -> None:
    at = 0
    for tensor in tensors:
        if not at <= tensor.start <= tensor.end <= size:
            raise ValueError(f"{where}: tensor {tensor.name[:80]!r} overlaps another, or lies outside of the file")
        at = tensor.end
    if len({tensor.name for tensor in tensors}) != len(tensors):
        raise ValueError(f"{where}: two tensors of one name")


def _text(found: Any, what: str) -> str:
    if not isinstance(found, str):
        raise ValueError(f"{what} is no text")
    found.encode()  # half a surrogate pair is none
    return found


def _number(found: Any, what: str) -> int:
    if type(found) is not int or not 0 <= found < _LARGEST:
        raise ValueError(f"{what} is no whole number from 0")
    return found


def _sha256(found: Any) -> str:
    if not isinstance(found, str) or not _HEX.fullmatch(found):
        raise ValueError("a sha256 has 64 hexadecimal digits")
    return found
