"""The files of a model in another precision: which of them are converted, and the documents beside them."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import posixpath
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Literal

from builder.models.convert import documents
from builder.models.convert.outputs import Output, outputs
from builder.models.convert.report import Conversion, ConvertedFile, Precision
from builder.models.convert.rules import Treatments, treat
from builder.models.convert.stream import PrecisionError, write
from builder.models.formats.safetensors import read_header
from builder.models.values import BadModelError, Header, LocalModelFile, ModelFile, check_paths
from builder.oci import files as whole_files

Overflow = Literal["error", "clamp"]
WEIGHTS = ".safetensors"
_MOST_JOBS = 4


def convert(
    files: Sequence[LocalModelFile], precision: Precision, out: Path, *, overflow: Overflow = "error"
) -> tuple[LocalModelFile, ...]:
    """The files of a model in another precision, sorted by path: see `conversion`, which also tells of errors."""
    return conversion(files, precision, out, overflow=overflow).files


def conversion(
    files: Sequence[LocalModelFile],
    precision: Precision,
    out: Path,
    *,
    overflow: Overflow = "error",
    tables: bool | None = None,
    jobs: int | None = None,
    hashed: bool = True,
    advance: Callable[[int], None] = lambda _: None,
) -> Conversion:
    """Converts the safetensors files among `files` into files below `out`, which keep their paths.

    Each folder with weights is a model of its own: its `config.json` and shard indexes are rewritten too. All other files
    are passed on as they are. The same files give the same bytes on every machine. `tables` is whether INT8 takes
    embedding tables (None: as `convert.rules` says), `jobs` the processes (None: up to 4), `advance` is told bytes of the
    source as they are done. Digests of converted files are empty unless they are to be `hashed`, a quarter of the work.

    Raises `PrecisionError` where nothing can be converted, for numbers that do not fit (`overflow="clamp"` takes the
    largest that do), for a model that is quantised already, and without numpy; `BadModelError` for files that lie.
    """
    if importlib.util.find_spec("numpy") is None:
        raise PrecisionError("numpy is missing, which converts models", hint="pip install 'layerwright[models]'")
    check_paths((file.file.path for file in files), "the model")
    by_path = {file.file.path: file for file in files}
    weights = sorted(path for path in by_path if path.endswith(WEIGHTS))
    if not weights:
        raise PrecisionError(
            f"none of the model's {len(files)} files is a {WEIGHTS} file: only those can be converted to {precision}",
            hint="leave the precision out, or convert the model where it is made",
        )
    converted: list[ConvertedFile] = []
    rewritten: dict[str, LocalModelFile] = {}
    jobs = jobs or min(_MOST_JOBS, len(os.sched_getaffinity(0)))
    work = _Work(precision, out, overflow == "clamp", jobs, hashed, advance, tables)
    for folder in sorted({posixpath.dirname(path) for path in weights}):
        inside = {path: by_path[path] for path in weights if posixpath.dirname(path) == folder}
        found, changed = work.folder(folder, inside, by_path)
        converted += found
        rewritten |= changed
    if not converted:
        raise PrecisionError(
            "no configuration says of the weights that Transformers reads them, and only there is INT8 known",
            hint="choose fp16 or bf16, or publish the model as it is",
        )
    results = by_path | {file.result.file.path: file.result for file in converted} | rewritten
    return Conversion(
        precision, tuple(results[path] for path in sorted(results)), tuple(converted), tuple(sorted(rewritten))
    )


class _Work:
    """What the conversions of all folders of a model have in common."""

    def __init__(
        self,
        precision: Precision,
        out: Path,
        clamp: bool,
        jobs: int,
        hashed: bool,
        advance: Callable[[int], None],
        tables: bool | None,
    ) -> None:
        self.precision = precision
        self.out = out
        self.clamp = clamp
        self.jobs = jobs
        self.hashed = hashed
        self.advance = advance
        self.tables = tables

    def folder(
        self, folder: str, weights: Mapping[str, LocalModelFile], others: Mapping[str, LocalModelFile]
    ) -> tuple[list[ConvertedFile], dict[str, LocalModelFile]]:
        """The weights of one folder, converted, and the documents beside them, rewritten."""
        headers = {path: _header(file) for path, file in weights.items()}
        config_path = posixpath.join(folder, documents.CONFIG)
        config = documents.read(others[config_path]) if config_path in others else None
        if config is not None and self._is_left(config):
            return [], {}
        treatments = self._treatments(folder, headers, config, config_path)
        made = {path: outputs(header, treatments, self.precision) for path, header in headers.items()}
        _check_names(made)

        converted = []
        for path, file in weights.items():
            target = self.out / path
            result, tensors = write(
                file,
                made[path],
                headers[path].metadata,
                target,
                clamp=self.clamp,
                jobs=self.jobs,
                hashed=self.hashed,
                advance=self.advance,
            )
            result = replace(result, file=replace(result.file, path=path))
            converted.append(ConvertedFile(file, result, tensors))

        rewritten = {}
        if config is not None:
            text = documents.encode(documents.rewrite_config(config, self.precision, treatments))
            rewritten[config_path] = self._document(config_path, text)
        for path in sorted(others):
            if path.endswith(documents.INDEX_SUFFIX) and posixpath.dirname(path) == folder:
                rewritten[path] = self._document(path, _index(others[path], headers, made))
        return converted, rewritten

    def _is_left(self, config: Mapping[str, Any]) -> bool:
        """Whether INT8 leaves a folder as it is: a layer of another library beside the model, whose loader knows nothing of it."""
        foreign = not documents.is_of_transformers(config) and "_class_name" not in config
        return foreign and self.precision.startswith("int8")

    def _treatments(
        self, folder: str, headers: Mapping[str, Header], config: Mapping[str, Any] | None, config_path: str
    ) -> Treatments:
        if config is None and self.precision.startswith("int8"):
            raise PrecisionError(
                f"there is no {config_path}, and a quantised model says in it how it is to be read",
                hint=f"add {documents.CONFIG} to the model, or choose fp16 or bf16",
            )
        if config is not None:
            documents.check_config(config, self.precision, config_path)
        tensors = [tensor for header in headers.values() for tensor in header.tensors]
        treatments = treat(tensors, self.precision, config or {}, self.tables)
        if not treatments.changed and self.precision.startswith("int8"):
            raise PrecisionError(
                f"{folder or 'the model'}: it has no weight of a linear layer that INT8 is for",
                hint="choose fp16 or bf16, or publish the model as it is",
            )
        return treatments

    def _document(self, path: str, text: bytes) -> LocalModelFile:
        target = self.out / path
        target.parent.mkdir(parents=True, exist_ok=True)
        whole_files.write(target, text)
        return LocalModelFile(ModelFile(path, len(text), hashlib.sha256(text).hexdigest()), target)


def _header(file: LocalModelFile) -> Header:
    if file.location.stat().st_size != file.file.size:
        raise BadModelError(
            f"{file.file.path}: it is no longer {file.file.size} bytes long", hint="run the command again"
        )
    return read_header(file.location, file.file.path)


def _check_names(made: Mapping[str, Iterable[Output]]) -> None:
    """A quantised tensor has new names beside it: they must be free in its file."""
    for path, found in made.items():
        names: set[str] = set()
        for output in found:
            if output.name in names:
                raise PrecisionError(f"{path}: tensor {output.name} is there already, and would be a second one")
            names.add(output.name)


def _index(index: LocalModelFile, headers: Mapping[str, Header], made: Mapping[str, tuple[Output, ...]]) -> bytes:
    """The bytes of a shard index for what was made of the shards that it names."""
    document = documents.read(index)
    said = document.get("weight_map")
    shards = {name for name in said.values() if isinstance(name, str)} if isinstance(said, dict) else set()
    ours = {path: posixpath.basename(path) for path in headers if posixpath.basename(path) in shards}
    sources = {tensor.name: name for path, name in ours.items() for tensor in headers[path].tensors}
    names = {output.name: name for path, name in ours.items() for output in made[path]}
    total = sum(output.size for path in ours for output in made[path])
    return documents.encode(documents.rewrite_index(document, names, total, index.file.path, sources))
