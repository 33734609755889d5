"""Reading ahead: a tiny layer on top that has what a start reads, and a launcher that reads it before the program does.

No layer below changes, so that shared layers stay shared, and the index stays what it was; any lazy snapshotter will do.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from builder.coldstart import trace as traces
from builder.coldstart.trace import Part, Trace, TraceError
from builder.errors import BuilderError
from builder.image import BuiltLayer
from builder.lock import LockedStart, LockedTemplate
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Platform
from builder.soci.ranges import by_path
from builder.store import Store

LAUNCHER = "/opt/layerwright/start"
"""The program that starts the image's program."""
RANGES = "/opt/layerwright/readahead.json"
"""What a start reads."""
NUMBER = 2
"""The newest launcher. Those that locks name stay as they are, for ever."""
_ROWS = 2
"""From this launcher on, a row of the ranges is a line."""


def locked(
    path: Path, source: str, number: int = NUMBER, before: LockedStart | None = None
) -> tuple[LockedStart, Mapping[str, bytes]]:
    """What a lock says of a start by the trace at `path`, whose name in the profile is `source`, and the files of it: the ranges,
    and the launcher of that number that reads them ahead (0: none).

    If the lock says `before` that another launcher reads what this very trace says, it is that one, so that no lock is stale
    because there is a newer launcher.
    Raises `BuilderError` if there is no such trace, and what `trace.parse` raises.
    """
    try:
        data = traces.read(path, source)
    except OSError as error:
        raise BuilderError(
            f"start.trace: {source}: {error.strerror}",
            hint=f"make it from the published image: build trace REF -o {source}",
        ) from error
    trace = traces.parse(data, source)
    if number and before and before.launcher and before.files[-1].template == _sha256(data):
        number = before.launcher
    files = {RANGES: ranges(trace, number)}
    rows: tuple[LockedTemplate, ...] = (LockedTemplate(RANGES, source, "0644", _sha256(data), *_of(files[RANGES])),)
    if number:
        text = _launcher(number)
        files[LAUNCHER] = text
        rows = (LockedTemplate(LAUNCHER, f"launcher {number}", "0755", _sha256(text), *_of(text)), *rows)
    return LockedStart(Platform.parse(trace.platform), number, rows), files


def ranges(trace: Trace, number: int = 0) -> bytes:
    """What the launcher of that number reads ahead, as `[[path, start, end], …]`: the files of which most is read first, since they
    take longest. From the second one on each row is on a line of its own."""
    rows = [
        (f"/{file.path}", part.start, part.end)
        for file in sorted(trace.files, key=lambda file: (-file.read, file.path))
        for part in file.parts or (Part(0, file.size),)
    ]
    if not rows:
        raise TraceError("the trace has no file", hint="trace a start that does something: build trace")
    if number >= _ROWS:
        lines = (json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows)
        return ("[\n" + ",\n".join(lines) + "\n]\n").encode()
    return json.dumps(rows, ensure_ascii=False, separators=(",", ":")).encode() + b"\n"


def missing(ranges: bytes, layers: Iterable[BuiltLayer], source: str, store: Store) -> str:
    """What is to be said of a trace that names files which these layers do not have, or not as long; nothing if they have all."""
    listings = [str(layer.listing) for layer in layers]
    key = Digest.of(spec.encode({"listings": listings, "ranges": str(Digest.of(ranges))})).hex
    record = store.record("traced", key)
    if record is None:
        sizes = {row[0]: row[3] for digest in listings for row in json.loads(store.read(Digest.parse(digest)))}
        parts = by_path(ranges)
        there = sum(sizes.get(path, 0) > max(start for start, _ in read) for path, read in parts.items())
        record = {"files": len(parts), "there": there}
        store.put_record("traced", key, record)
    files, there = int(record["files"]), int(record["there"])
    if files == there:
        return ""
    if not there:
        return f"{source}: none of its {files} files are in the image: it is a trace of another image"
    return f"{source}: {there} of {files} files are in the image as they were; trace a start of this one: build trace"


def _launcher(number: int) -> bytes:
    package = Path(__file__).resolve().parent
    inside = package / "templates"
    folder = inside if inside.is_dir() else package.parent / "templates"
    try:
        return (folder / "start" / f"launcher-{number}.py").read_bytes()
    except FileNotFoundError as error:
        raise BuilderError(f"there is no launcher {number}", hint="upgrade Layerwright, or run `build lock`") from error


def _sha256(data: bytes) -> str:
    return Digest.of(data).hex


def _of(data: bytes) -> tuple[str, int]:
    return _sha256(data), len(data)
