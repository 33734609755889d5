"""What a measured start was, as values: phases, starts, and measurements of several, as JSON that later versions read."""

from __future__ import annotations

import json
import statistics
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

from builder import documents
from builder.coldstart.versions import check_version
from builder.errors import BuilderError

VERSION = 1


@dataclass(frozen=True)
class Phase:
    """A part of a start: it begins `begin` seconds after the start, and takes `seconds`.

    `bytes` and `requests` are those of the registry that were asked for while it lasted; `spans` are requests for parts of a
    blob, which is what lazy layers are read by. `opened` counts the files that the container opened then for the first time, where
    that was watched.
    """

    name: str
    begin: float
    seconds: float
    bytes: int = 0
    requests: int = 0
    spans: int = 0
    opened: int | None = None


@dataclass(frozen=True)
class Start:
    """One start, from nothing unless `again` (the image was there). `seconds` is how long it took until it was ready, `status`
    the exit status of the program if it ended; `opened` counts the files that were opened, where that was watched."""

    phases: tuple[Phase, ...]
    seconds: float
    bytes: int
    requests: int
    spans: int
    again: bool = False
    status: int | None = None
    opened: int | None = None

    def seconds_of(self, name: str) -> float | None:
        """How long the phases of that name took together; None if there is none."""
        found = [phase.seconds for phase in self.phases if phase.name == name]
        return sum(found) if found else None


@dataclass(frozen=True)
class Measurement:
    """Starts of one image in one way: `size` are the bytes of its layers, `command` what ran, `ready` what was waited for."""

    version: int
    reference: str
    digest: str
    platform: str
    snapshotter: str
    size: int
    ready: str
    command: tuple[str, ...] = ()
    starts: tuple[Start, ...] = ()

    def cold(self) -> tuple[Start, ...]:
        """The starts from nothing."""
        return tuple(start for start in self.starts if not start.again)

    def again(self) -> tuple[Start, ...]:
        """The starts of an image that was there."""
        return tuple(start for start in self.starts if start.again)


@dataclass(frozen=True)
class Spread:
    """Of several figures: the median, the least and the most."""

    median: float
    least: float
    most: float

    @classmethod
    def of(cls, values: Iterable[float]) -> Spread:
        """Raises `ValueError` if there is none."""
        found = sorted(values)
        if not found:
            raise ValueError("nothing was measured")
        return cls(statistics.median(found), found[0], found[-1])


@dataclass(frozen=True)
class Summary:
    """All starts of a kind in one: each phase by its name, in the order of the first start, with its spread in seconds."""

    count: int
    seconds: Spread
    bytes: Spread
    requests: Spread
    spans: Spread
    phases: Mapping[str, Spread] = field(default_factory=dict)

    @classmethod
    def of(cls, starts: tuple[Start, ...]) -> Summary:
        """Raises `ValueError` if there is none."""
        names = dict.fromkeys(phase.name for start in starts for phase in start.phases)
        found = {name: [took for start in starts if (took := start.seconds_of(name)) is not None] for name in names}
        return cls(
            len(starts),
            Spread.of(start.seconds for start in starts),
            Spread.of(start.bytes for start in starts),
            Spread.of(start.requests for start in starts),
            Spread.of(start.spans for start in starts),
            {name: Spread.of(seconds) for name, seconds in found.items()},
        )


class MeasurementError(BuilderError):
    """A file is no measurement."""

    hint = "make one with `build start --format json`"


def encode(measurement: Measurement) -> str:
    """The measurement as JSON."""
    return json.dumps(documents.dump(measurement), indent=2, ensure_ascii=False) + "\n"


def parse(data: bytes | str, file: str) -> Measurement:
    """The measurement in the bytes of `file`. Raises `MeasurementError`, or `DocumentError` with all that is wrong."""
    check_version(data, file, VERSION, MeasurementError, "measurement")
    return documents.load_json(Measurement, data, file)
