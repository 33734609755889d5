"""The values of models: files, tensors, the index of what a file is made of, and the published artifact."""

from __future__ import annotations

import posixpath
import re
import unicodedata
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from builder.errors import HostileInputError
from builder.oci.spec import Descriptor

Format = Literal["safetensors", "gguf", "onnx"]

INDEX_PATH = ".build/index.v1.json"
"""Where the index of a model lies among its files; no other file of a model is below `.build`."""

CHUNK_SIZE = 4 << 20
"""The most bytes of a chunk, whose sha256 is in the index; `cuts` says where chunks begin."""

MAX_FILES = 10_000
MAX_PATH = 1024
_MAX_NAME = 255
_RESERVED = INDEX_PATH.partition("/")[0]
_UNUSABLE = re.compile("[\x00-\x1f\x7f\\\\\ud800-\udfff]")


class BadModelError(HostileInputError):
    """A model, or what was published as one, lies about itself; the message names the file and the lie."""

    hint = "the model is damaged or hostile: choose another version of it, or leave the file out"


@dataclass(frozen=True, order=True)
class ModelFile:
    """One file of a model: `path` as `check_path` allows it, `size` in bytes, `sha256` as 64 hexadecimal digits."""

    path: str
    size: int
    sha256: str


@dataclass(frozen=True)
class LocalModelFile:
    """A file of a model whose bytes are at `location` on this disk: an object of the store, or the user's own file."""

    file: ModelFile
    location: Path


@dataclass(frozen=True)
class Tensor:
    """A tensor in a file: its bytes are `start` up to `end` of the file; `dtype` as its format spells it."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    end: int


@dataclass(frozen=True)
class Header:
    """What the head of a file says: its first `length` bytes; tensors in the order of their bytes."""

    format: Format
    length: int
    tensors: tuple[Tensor, ...] = ()
    metadata: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class FileIndex:
    """A file, the sha256 (64 digits) of each of its chunks, and its header where its format is understood.

    The chunks are those of `cuts.cuts(file.size, chunk_size, header)`, in the order of their bytes.
    """

    file: ModelFile
    chunk_size: int
    chunks: tuple[str, ...]
    header: Header | None = None


@dataclass(frozen=True)
class ModelIndex:
    """The files of a model, sorted by path; what `.build/index.v1.json` holds."""

    files: tuple[FileIndex, ...]


@dataclass(frozen=True)
class ModelArtifact:
    """A published model: the descriptors of its manifest, its configuration, and of each file's blob.

    `index` is the descriptor of its `.build/index.v1.json`, which is not among `layers`; a foreign artifact has none.
    `archives` are layers of a foreign artifact that hold files in an archive, with their names, for who can unpack them.
    """

    manifest: Descriptor
    config: Descriptor
    layers: tuple[tuple[Descriptor, ModelFile], ...]
    annotations: Mapping[str, str]
    index: Descriptor | None = None
    archives: tuple[tuple[Descriptor, str], ...] = ()

    @property
    def files(self) -> tuple[ModelFile, ...]:
        return tuple(file for _, file in self.layers)


def check_path(path: str, where: str) -> str:
    """The path itself if a file of a model may have it: relative, with `/`, and leaving no folder.

    Raises `BadModelError` that begins with `where` for: nothing, absolute paths, drives, `..`, `.`, empty parts, `\\`,
    control characters, halves of surrogate pairs, names over 255 bytes, paths over 1024 bytes, and what is below `.build`.
    """
    if why := _wrong(path):
        raise BadModelError(f"{where}: {path[:MAX_PATH]!r} cannot be the path of a file: {why}")
    return path


def check_paths(paths: Iterable[str], where: str) -> tuple[str, ...]:
    """Paths that can lie in one folder on any file system, each as `check_path` allows it.

    Raises `BadModelError` for one that is there twice, that differs from another by case or Unicode form alone, or that
    is a folder of another, and for more than 10,000.
    """
    checked: list[str] = []
    folded: dict[str, str] = {}
    folders: dict[str, str] = {}
    for path in paths:
        check_path(path, where)
        if len(checked) == MAX_FILES:
            raise BadModelError(f"{where}: more than {MAX_FILES} files")
        key = _folded(path)
        if key in folded:
            if folded[key] == path:
                raise BadModelError(f"{where}: {path!r} is there twice")
            alike = unicodedata.normalize("NFC", path) == unicodedata.normalize("NFC", folded[key])
            shown = ascii if alike else repr  # two forms of one text look the same
            raise BadModelError(f"{where}: {shown(path)} clashes with {shown(folded[key])}")
        if key in folders:
            raise BadModelError(f"{where}: {path!r} is a file, and a folder of {folders[key]!r}")
        parent, exact = posixpath.dirname(key), posixpath.dirname(path)
        while parent:
            if parent in folded:
                raise BadModelError(f"{where}: {folded[parent]!r} is a file, and a folder of {path!r}")
            other = folders.setdefault(parent, path)
            spelled = "/".join(other.split("/")[: exact.count("/") + 1])
            if spelled != exact:
                raise BadModelError(f"{where}: the folders of {path!r} and {other!r} differ by case alone")
            parent, exact = posixpath.dirname(parent), posixpath.dirname(exact)
        folded[key] = path
        checked.append(path)
    return tuple(checked)


def _folded(path: str) -> str:
    """Equal for two paths that are one on a file system that ignores case and Unicode forms."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", path).casefold())


def _wrong(path: str) -> str | None:
    if not path:
        return "it is empty"
    if match := _UNUSABLE.search(path):
        return f"it has {match[0]!r}"
    if len(path.encode()) > MAX_PATH:
        return f"it is longer than {MAX_PATH} bytes"
    if path.startswith("/") or re.match(r"[A-Za-z]:", path):
        return "it is absolute"
    parts = path.split("/")
    if ".." in parts:
        return "it leaves the folder"
    if "" in parts or "." in parts:
        return "it has an empty part"
    if any(len(part.encode()) > _MAX_NAME for part in parts):
        return f"a name in it is longer than {_MAX_NAME} bytes"
    if _folded(parts[0]) == _RESERVED:
        return f"{_RESERVED} is for the index of the model"
    return None
