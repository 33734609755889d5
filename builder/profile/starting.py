"""What a profile says of how its image starts: what is known of it, and how long it may take."""

# ruff: noqa: RUF009 (`field` makes a field, and the defaults are frozen)

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from builder.documents import field
from builder.profile.forms import Duration, LocalPath


@dataclass(frozen=True, kw_only=True)
class Start:
    """What a start reads, and what is done with that. The layers stay what they are, and shared."""

    trace: LocalPath = field(
        doc="The file that `build trace` wrote, relative to the folder of the profile that says so.",
        example="ocr.trace.json",
    )
    readahead: bool = field(
        doc="Whether a process beside the program reads ahead, from many places at once, what the start is known to read: on "
        "a node that starts the image lazily. The entrypoint is started by it and keeps its process; needs the image's Python.",
        default=True,
    )
    order: Literal["path", "own", "all"] | None = field(
        doc="What comes first in layers. `path`, which is what happens if it is not said: nothing, files are in the order of their "
        "paths. `own`: what the start reads, in the layers that are mixed for this image, of Debian packages and of small wheels. "
        "`all`: in those of large wheels, too, which then are the same only in images whose start reads the same files of them.",
        default=None,
        example="own",
    )

    @property
    def ordered(self) -> bool:
        """Whether anything comes first in any layer."""
        return self.order in ("own", "all")


@dataclass(frozen=True, kw_only=True)
class Budget:
    """How long a cold start may take; `build start --budget` says no where it takes longer, `build advise` says what to do."""

    total: Duration | None = field(doc="All of it, until the program is ready.", default=None, example="20s")
    pull: Duration | None = field(doc="Until all layers are pulled, or mounted.", default=None, example="5s")
    model: Duration | None = field(
        doc="What the program marks as `model pull` and `model load`.", default=None, example="10s"
    )

    @property
    def limits(self) -> Mapping[str, float]:
        """The parts that have a limit, in seconds."""
        found = {"total": self.total, "pull": self.pull, "model": self.model}
        return {name: float(limit) for name, limit in found.items() if limit is not None}
