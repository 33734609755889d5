"""One file converted: stretches of it read, converted and written by worker processes, and hashed as far as they are there.

A worker has a few blocks in memory, whatever the size of the file and of its tensors, so small that they stay in the cache of
a core from when they are read until they are written. Threads will not do: between its calls of numpy, which are short, it
is Python that runs.
"""

from __future__ import annotations

import hashlib
import os
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, chain
from pathlib import Path
from typing import Any

from builder import workers
from builder.errors import BuilderError
from builder.models.convert.hashing import Hashing
from builder.models.convert.memory import pages
from builder.models.convert.outputs import Output, encode_header
from builder.models.convert.report import ConvertedTensor, Errors
from builder.models.formats.safetensors import BITS
from builder.models.values import BadModelError, LocalModelFile, ModelFile
from builder.oci import files

BLOCK = 256 << 10
"""Bytes of a source tensor that are converted at a time; a row of a matrix is never split."""
_STRETCH = 8 << 20
"""Bytes of the source that a worker is given at a time."""
_ALONE = 4 * _STRETCH
"""Smaller files are not worth a worker."""


class PrecisionError(BuilderError):
    """A model cannot be had in the precision that was asked for."""

    hint = "choose another precision, or publish the model as it is"


@dataclass(frozen=True)
class _Block:
    """`length` bytes of a source from `start` become the bytes of the target from `at`; scales of rows go to `scales`."""

    output: Output
    start: int
    length: int
    at: int
    scales: int = 0


@dataclass(frozen=True)
class _Stretch:
    """Large blocks that one worker converts, one after the other; in the target they end at `end`."""

    number: int
    blocks: tuple[_Block, ...]
    end: int


def write(
    source: LocalModelFile,
    made: tuple[Output, ...],
    metadata: Mapping[str, str],
    target: Path,
    *,
    clamp: bool,
    jobs: int,
    hashed: bool,
    advance: Callable[[int], None],
) -> tuple[LocalModelFile, tuple[ConvertedTensor, ...]]:
    """Writes `made`, all of them from `source`, as the file `target`, which appears when it is complete.

    At most `jobs` processes convert; with one, this one does. Unless the result is to be `hashed`, its digest is empty.
    `advance` is told how many bytes of the source are done. Raises `PrecisionError` for numbers that do not fit, `BadModelError`
    for a source that changed while it was read, and `BuilderError` where the target cannot be written.
    """
    errors: dict[str, Errors] = {}
    target.parent.mkdir(parents=True, exist_ok=True)
    head = encode_header(made, metadata)
    stretches = tuple(_stretches(made, len(head)))
    size = len(head) + sum(output.size for output in made)
    with source.location.open("rb") as file, files.replacing(target) as out, open(out.name, "rb") as written:
        before = _state(file.fileno())
        # Scales come with the rows that they are of, and are somewhere else in the file: it is whole in the end only.
        in_order = not any(output.making == "scale" for output in made)
        alone = jobs == 1 or source.file.size < _ALONE
        passing = hashlib.sha256() if hashed and alone and in_order else None
        conversion = _Conversion(source.file.path, file.fileno(), out.fileno(), target, clamp, passing)
        conversion.put(head, 0)
        hashing = Hashing(written.fileno(), [stretch.end for stretch in stretches])
        beside = hashed and not passing

        def note(done: tuple[int, dict[str, Errors]]) -> None:
            number, found = done
            for name, each in found.items():
                errors[name] = errors.get(name, Errors()) + each
            if in_order and beside:
                hashing.there(number)

        try:
            if alone:
                if beside:
                    hashing.start()
                for stretch in stretches:
                    note(conversion(stretch, advance))
            else:
                begin = hashing.start if beside else lambda: None
                workers.run(conversion, stretches, jobs, advance, started=begin, done=note)
            if beside and not in_order:
                for stretch in stretches:
                    hashing.there(stretch.number)
            digest = passing.hexdigest() if passing else hashing.digest() if beside else ""
        finally:
            hashing.stop()
        if _state(file.fileno()) != before:
            raise BadModelError(f"{source.file.path}: it changed while it was converted", hint="run the command again")
    return LocalModelFile(ModelFile(target.name, size, digest), target), _tensors(made, errors)


class _Conversion:
    """What a worker does; its files are open where it was forked from. `passing` hashes all that is put."""

    def __init__(
        self, path: str, source: int, target: int, name: Path, clamp: bool, passing: hashlib._Hash | None
    ) -> None:
        self._passing = passing
        self._path = path
        self._source = source
        self._target = target
        self._name = name
        self._clamp = clamp
        # Used again: to give memory back to the system and get it anew would take as long as the conversion.
        self._raw = self._out = memoryview(b"")

    def __call__(self, stretch: _Stretch, advance: Callable[[int], None]) -> tuple[int, dict[str, Errors]]:
        errors, nothing = dict[str, Errors](), Errors()
        for block in chain.from_iterable(_cut(block, BLOCK) for block in stretch.blocks):
            name = block.output.source.name
            before = errors.get(name, nothing)
            raw = self._read(block)
            copied = block.output.making == "copy"
            data, found = (raw, nothing) if copied else self._converted(raw, block, before.largest)
            self.put(data, block.at)
            errors[name] = before + found
            advance(block.length)
        return stretch.number, errors

    def put(self, data: Any, at: int) -> None:
        """Writes bytes of the target, and hashes them if all come in order."""
        view = memoryview(data)
        if self._passing:
            self._passing.update(view)
        try:
            while view:
                count = os.pwrite(self._target, view, at)
                view, at = view[count:], at + count
        except OSError as error:
            raise BuilderError(
                f"{self._name}: cannot be written: {error.strerror or error}",
                hint="make room on that disk, or choose another one",
            ) from error

    def _read(self, block: _Block) -> memoryview:
        # Not mapped: a mapped file that someone shortens ends the process, and in a file numbers lie where its header ends.
        self._raw = _at_least(self._raw, block.length)
        raw, at = self._raw[: block.length], block.start
        while at < block.start + block.length:
            count = os.preadv(self._source, [raw[at - block.start :]], at)
            if not count:
                raise BadModelError(f"{self._path}: it ends early, at {at} bytes", hint="run the command again")
            at += count
        return raw

    def _converted(self, raw: memoryview, block: _Block, known: float) -> tuple[Any, Errors]:
        # Here, and not before there are workers: numpy has threads, which a fork would lose.
        from builder.models.convert import kernels

        output, tensor = block.output, block.output.source
        if output.making == "shape":
            return struct.pack("<2q", *tensor.shape), Errors()
        size = block.length * 16 // BITS[tensor.dtype]  # two bytes an element; a step takes one
        self._out = _at_least(self._out, size)
        out = self._out[:size]
        try:
            if output.making == "cast":
                return out, kernels.cast(raw, tensor.dtype, output.dtype, out, clamp=self._clamp, known=known)
            numbers = kernels.floats(raw, tensor.dtype).reshape(-1, tensor.shape[1])
            steps = out[: numbers.size]
            scales, errors = kernels.quantise(numbers, tensor.dtype, steps)
            self.put(scales, block.scales)
            return (kernels.pack(steps, tensor.shape[1]) if output.making == "packed" else steps), errors
        except kernels.DoesNotFitError as error:
            raise PrecisionError(
                f"{self._path}: tensor {tensor.name}: {error.largest:g} does not fit into {output.dtype}, "
                f"which ends at {kernels.LIMITS[output.dtype]:g} ({error.count} such numbers in one block)",
                hint="choose bf16, which has the range of float32, or clamp: --allow-overflow=clamp, or so in the profile",
            ) from error
        except kernels.NoNumberError as error:
            raise PrecisionError(
                f"{self._path}: tensor {tensor.name} has numbers that are infinite or none, for which there is no scale",
                hint="the weights are damaged, or it is no weight: choose fp16 or bf16",
            ) from error


def _stretches(made: Sequence[Output], at: int) -> Iterator[_Stretch]:
    """All of the target from byte `at`: the last stretch ends where it ends, and there is one even of nothing."""
    number, size, blocks = 0, 0, list[_Block]()
    for block in _blocks(made, at):
        if size + block.length > _STRETCH and blocks:
            yield _Stretch(number, tuple(blocks), block.at)
            number, size, blocks = number + 1, 0, []
        blocks.append(block)
        size += block.length
    yield _Stretch(number, tuple(blocks), at + sum(output.size for output in made))


def _blocks(made: Sequence[Output], at: int) -> Iterator[_Block]:
    places = dict(zip(made, accumulate((output.size for output in made), initial=at), strict=False))
    scales = {output.source: place for output, place in places.items() if output.making == "scale"}
    for output, place in places.items():
        tensor = output.source
        size = tensor.end - tensor.start
        if output.making == "shape":
            yield _Block(output, tensor.start, 0, place)
        elif output.making != "scale" and size:
            yield from _cut(_Block(output, tensor.start, size, place, scales.get(tensor, 0)), _STRETCH)


def _cut(block: _Block, most: int) -> Iterator[_Block]:
    """The same in blocks of at most `most` bytes, or of one row that is longer."""
    if block.length <= most:
        yield block
        return
    output, tensor = block.output, block.output.source
    unit = _unit(output)
    step = max(most // unit, 1) * unit
    width = output.size * unit // (tensor.end - tensor.start)
    for start in range(0, block.length, step):
        number = start // unit
        length = min(step, block.length - start)
        scales = block.scales + number * BITS[tensor.dtype] // 8
        yield _Block(output, block.start + start, length, block.at + number * width, scales)


def _unit(output: Output) -> int:
    """The bytes of the source that cannot be taken apart: one, a number, or a row."""
    if output.making == "copy":
        return 1
    element = BITS[output.source.dtype] // 8
    return element if output.making == "cast" else element * output.source.shape[1]


def _at_least(memory: memoryview, size: int) -> memoryview:
    return memory if len(memory) >= size else pages(max(size, BLOCK))


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
