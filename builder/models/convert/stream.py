"""One file converted: blocks of tensors read, converted on a few threads, and written and hashed in order.

At most a few blocks of 2 MiB are in memory for each thread, whatever the size of the file and of its tensors.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder.errors import BuilderError
from builder.models.convert.outputs import Output, encode_header
from builder.models.convert.report import ConvertedTensor, Errors
from builder.models.formats.safetensors import BITS
from builder.models.values import BadModelError, LocalModelFile, ModelFile
from builder.oci import files

BLOCK = 2 << 20
"""Bytes of a source tensor that are converted at a time; a row of a matrix is never split."""


class PrecisionError(BuilderError):
    """A model cannot be had in the precision that was asked for."""

    hint = "choose another precision, or publish the model as it is"


_Made = tuple[Any, Errors, bytearray]
"""What a block became, its errors, and the memory that can be used again when it is written."""


@dataclass(frozen=True)
class _Block:
    output: Output
    start: int
    length: int


def write(
    source: LocalModelFile,
    made: tuple[Output, ...],
    metadata: Mapping[str, str],
    target: Path,
    *,
    clamp: bool,
    jobs: int,
    advance: Callable[[int], None],
) -> tuple[LocalModelFile, tuple[ConvertedTensor, ...]]:
    """Writes `made`, all of them from `source`, as the file `target`, which appears when it is complete.

    `advance` is told how many bytes of the source are done. Raises `PrecisionError` for numbers that do not fit and
    `BadModelError` for a source that changed while it was read.
    """
    digest = hashlib.sha256()
    errors: dict[str, Errors] = {}
    target.parent.mkdir(parents=True, exist_ok=True)
    with source.location.open("rb") as file, files.replacing(target) as out:
        before = _state(file.fileno())
        # Memory is used again: to give it back and get it anew would take as long as the conversion.
        spare: list[bytearray] = []

        def convert(block: _Block) -> tuple[Any, Errors, bytearray]:
            memory, raw = _memory(spare, block.length)
            _read(file.fileno(), block.start, raw, source)
            if block.output.making == "copy":
                return raw, Errors(), memory
            target_memory, out = _memory(spare, block.length * 16 // BITS[block.output.source.dtype])
            data, found = _converted(raw, block.output, out, source.file.path, clamp)
            spare.append(memory)
            return data, found, target_memory

        head = encode_header(made, metadata)
        digest.update(head)
        out.write(head)
        with ThreadPoolExecutor(jobs) as pool:
            for block, (data, found, memory) in _in_order(pool, convert, _blocks(made), jobs + 2):
                digest.update(data)
                out.write(data)
                del data
                spare.append(memory)
                name = block.output.source.name
                errors[name] = errors.get(name, Errors()) + found
                if block.output.making not in ("scale", "shape"):
                    advance(block.length)
        if _state(file.fileno()) != before:
            raise BadModelError(f"{source.file.path}: it changed while it was converted", hint="run the command again")
        size = out.tell()
    result = LocalModelFile(ModelFile(target.name, size, digest.hexdigest()), target)
    return result, _tensors(made, errors)


def _blocks(made: tuple[Output, ...]) -> Iterator[_Block]:
    for output in made:
        tensor = output.source
        size = tensor.end - tensor.start
        if output.making == "shape":
            yield _Block(output, tensor.start, 0)
            continue
        unit = 1
        if output.making != "copy":
            element = BITS[tensor.dtype] // 8
            unit = element if output.making == "cast" else element * tensor.shape[1]
        step = max(BLOCK // unit, 1) * unit
        for at in range(0, size, step):
            yield _Block(output, tensor.start + at, min(step, size - at))


def _in_order(
    pool: ThreadPoolExecutor, convert: Callable[[_Block], _Made], blocks: Iterator[_Block], ahead: int
) -> Iterator[tuple[_Block, _Made]]:
    """Each block and what it becomes, in order; `ahead` of them are under way."""
    waiting: deque[tuple[_Block, Future[_Made]]] = deque()
    try:
        for block in blocks:
            waiting.append((block, pool.submit(convert, block)))
            if len(waiting) >= ahead:
                done, future = waiting.popleft()
                yield done, future.result()
                del future
        while waiting:
            done, future = waiting.popleft()
            yield done, future.result()
    finally:
        for _, future in waiting:
            future.cancel()


def _read(descriptor: int, start: int, raw: memoryview, source: LocalModelFile) -> None:
    done = 0
    while done < len(raw):
        count = os.preadv(descriptor, [raw[done:]], start + done)
        if not count:
            raise BadModelError(
                f"{source.file.path}: it ends early, at {start + done} bytes", hint="run the command again"
            )
        done += count


def _memory(spare: list[bytearray], size: int) -> tuple[bytearray, memoryview]:
    """Memory that nothing else uses, and `size` bytes of it, or of more memory where that is too small."""
    memory = spare.pop() if spare else bytearray(BLOCK)
    return memory, memoryview(memory if size <= BLOCK else bytearray(size))[:size]


def _converted(raw: memoryview, output: Output, out: memoryview, path: str, clamp: bool) -> tuple[Any, Errors]:
    """What a block becomes; `out` has two bytes for each of its elements, and is what is given where that is right."""
    from builder.models.convert import kernels

    tensor = output.source
    if output.making == "shape":
        return struct.pack("<2q", *tensor.shape), Errors()
    try:
        if output.making == "cast":
            return out, kernels.cast(raw, tensor.dtype, output.dtype, out, clamp=clamp)
        numbers = kernels.floats(raw, tensor.dtype).reshape(-1, tensor.shape[1])
        if output.making == "scale":
            return kernels.encode(kernels.scales(numbers, tensor.dtype), tensor.dtype), Errors()
        steps = out[: numbers.size]
        errors = kernels.quantise(numbers, tensor.dtype, steps)
        return (kernels.pack(steps, tensor.shape[1]) if output.making == "packed" else steps), errors
    except kernels.DoesNotFitError as error:
        raise PrecisionError(
            f"{path}: tensor {tensor.name}: {error.largest:g} does not fit into {output.dtype}, "
            f"which ends at {kernels.LIMITS[output.dtype]:g} ({error.count} such numbers in one block)",
            hint="choose bf16, which has the range of float32, or clamp with --allow-overflow=clamp",
        ) from error
    except kernels.NoNumberError as error:
        raise PrecisionError(
            f"{path}: tensor {tensor.name} has numbers that are infinite or none, for which there is no scale",
            hint="the weights are damaged, or it is no weight: choose fp16 or bf16",
        ) from error


def _tensors(made: tuple[Output, ...], errors: Mapping[str, Errors]) -> tuple[ConvertedTensor, ...]:
    sizes: dict[str, int] = {}
    dtypes: dict[str, str] = {}
    for output in made:
        name = output.source.name
        sizes[name] = sizes.get(name, 0) + output.size
        if output.making not in ("scale", "shape"):
            dtypes[name] = "I8" if output.making == "packed" else output.dtype
    sources = {output.source.name: output.source for output in made}
    return tuple(
        ConvertedTensor(
            name, tensor.dtype, dtypes[name], tensor.end - tensor.start, sizes[name], errors.get(name, Errors())
        )
        for name, tensor in sorted(sources.items())
    )


def _state(descriptor: int) -> tuple[int, int, int]:
    status = os.fstat(descriptor)
    return status.st_size, status.st_mtime_ns, status.st_ino
