"""What a start reads: the files and the parts of them, as the kernel fetched them from lazily mounted layers.

`NAME.trace.json` lies beside a profile, as its lock does: canonical JSON, sorted, reviewed in a diff.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from builder import documents
from builder.coldstart.versions import check_version
from builder.errors import BuilderError

VERSION = 1
GRAIN = 4 << 10
"""Parts begin and end at multiples of this, in bytes: the smallest piece that a kernel reads."""
_GAP = 64 << 10
"""Gaps of at most so many bytes cost less than what ends a part: about a block of compressed data."""
_MOST_FILES = 1_000_000
_MOST = 256 << 20


class TraceError(BuilderError):
    """A file is no trace, or not one of this image."""

    hint = "make it anew: build trace"


@dataclass(frozen=True, order=True, slots=True)
class Part:
    """Bytes of a file from `start` to before `end`, written `START-END`."""

    pattern: ClassVar[str] = r"(0|[1-9][0-9]{0,15})-([1-9][0-9]{0,15})"
    what: ClassVar[str] = "a part of a file such as 0-131072"

    start: int
    end: int

    @classmethod
    def parse(cls, text: str) -> Part:
        match = re.fullmatch(cls.pattern, text)
        if not match:
            raise ValueError(f"expected {cls.what}, found {documents.quote(text)}")
        return cls(int(match[1]), int(match[2]))

    def __str__(self) -> str:
        return f"{self.start}-{self.end}"


@dataclass(frozen=True, order=True)
class TracedFile:
    """A file that was read: `path` in the image without the leading `/`, `size` in bytes, and the `parts` that were, in
    order; none stands for all of it."""

    path: str
    size: int
    parts: tuple[Part, ...] = ()

    @property
    def read(self) -> int:
        """How many bytes were."""
        return sum(part.end - part.start for part in self.parts) if self.parts else self.size


@dataclass(frozen=True)
class Trace:
    """The files that starts of an image for `platform` read, by path."""

    version: int
    platform: str
    files: tuple[TracedFile, ...] = ()

    def by_path(self) -> Mapping[str, TracedFile]:
        """The files by their paths."""
        return {file.path: file for file in self.files}


def traced(path: str, size: int, pages: Iterable[tuple[int, int]]) -> TracedFile:
    """A file of which these parts were read: widened to whole pages, small gaps closed."""
    parts: list[tuple[int, int]] = []
    for start, end in sorted(pages):
        start, end = start // GRAIN * GRAIN, min(size, -(-end // GRAIN) * GRAIN)
        if parts and start - parts[-1][1] <= _GAP:
            parts[-1] = parts[-1][0], max(end, parts[-1][1])
        else:
            parts.append((start, end))
    whole = parts == [(0, size)]
    return TracedFile(path, size, () if whole else tuple(Part(start, end) for start, end in parts))


def merged(traces: Iterable[Trace]) -> Trace:
    """What any of several starts of one image read. Raises `TraceError` if they are of several images."""
    found: dict[str, TracedFile] = {}
    platforms = set()
    for trace in traces:
        platforms.add(trace.platform)
        for file in trace.files:
            other = found.setdefault(file.path, file)
            if other.size != file.size:
                raise TraceError(f"/{file.path} has {other.size} bytes in one trace and {file.size} in another")
            if other is not file:
                parts = [part for each in (other, file) for part in each.parts or (Part(0, file.size),)]
                found[file.path] = traced(file.path, file.size, [(part.start, part.end) for part in parts])
    if len(platforms) != 1:
        raise TraceError(f"traces of {', '.join(sorted(platforms)) or 'nothing'} are no trace of one image")
    return Trace(VERSION, platforms.pop(), tuple(sorted(found.values())))


def encode(trace: Trace) -> str:
    """The trace as canonical JSON, a file on each line: equal traces have equal text."""
    rows = [json.dumps(documents.dump(file), ensure_ascii=False, sort_keys=True) for file in sorted(trace.files)]
    listed = ",\n".join(f"    {row}" for row in rows)
    platform = json.dumps(trace.platform)
    return f'{{\n  "files": [\n{listed}\n  ],\n  "platform": {platform},\n  "version": {trace.version}\n}}\n'


def read(path: Path, named: str = "") -> bytes:
    """The bytes of a trace, which messages call `named`. Raises `OSError`, and `TraceError` if there are too many."""
    with path.open("rb") as file:
        data = file.read(_MOST + 1)
    if len(data) > _MOST:
        raise TraceError(f"{named or path}: it is larger than any trace, {_MOST >> 20} MiB")
    return data


def parse(data: bytes | str, file: str) -> Trace:
    """The trace in the bytes of `file`. Raises `TraceError`, or `DocumentError` with all that is wrong."""
    check_version(data, file, VERSION, TraceError, "trace")
    trace = documents.load_json(Trace, data, file)
    if len(trace.files) > _MOST_FILES:
        raise TraceError(f"{file}: more than {_MOST_FILES} files")
    for problem in _problems(trace):
        raise TraceError(f"{file}: {problem}")
    return trace


def _problems(trace: Trace) -> Iterable[str]:
    if not re.fullmatch(r"[a-z0-9]+(/[a-z0-9]+){1,2}", trace.platform):
        yield f"{trace.platform!r} is no platform such as linux/amd64"
    before = ""
    for file in trace.files:
        if not before < file.path:
            yield f"{file.path}: it is there twice, or not in order"
        before = file.path
        if file.path.startswith("/") or any(part in ("", ".", "..") for part in file.path.split("/")):
            yield f"{file.path!r} is no path in an image"
        at = 0
        for part in file.parts:
            if not at <= part.start < part.end <= file.size:
                yield f"{file.path}: {part} is no part of it"
            at = part.end
