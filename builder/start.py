"""Phases of a service's own start: marked where they happen, told to whoever measures, exported for dashboards.

    from builder.start import IMPORTS, MODEL_LOAD, ColdStartMonitor

    start = ColdStartMonitor()
    with start.phase(IMPORTS):
        import torch
    start.gpu_context()
    with start.phase(MODEL_LOAD):
        model = load()
    start.ready()

`build start` gives the program a file in the variable LAYERWRIGHT_START; each phase that ends is a line of JSON in it.
Nothing else of Layerwright is imported: importing this takes a millisecond.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass

VARIABLE = "LAYERWRIGHT_START"
"""The environment variable that names the file for marks."""

IMPORTS, MODEL_PULL, MODEL_LOAD, GPU_CONTEXT = "imports", "model pull", "model load", "gpu context"
"""Names of phases that budgets and advice know. Others are as good, and are shown as they are called."""
_LIBCUDA = "libcuda.so.1"


@dataclass(frozen=True)
class MarkedPhase:
    """A phase that has ended: `begin_ns` and `end_ns` are nanoseconds of CLOCK_MONOTONIC; `depth` counts the phases around it."""

    name: str
    begin_ns: int
    end_ns: int
    depth: int = 0

    @property
    def seconds(self) -> float:
        """How long it took."""
        return (self.end_ns - self.begin_ns) / 1e9


class ColdStartMonitor:
    """Gathers the phases of this process's start; shared by threads. It never raises because of what it writes to.

    `began_ns` is when the process began, on the same clock, as far as the kernel tells.
    """

    def __init__(self, environ: Mapping[str, str] | None = None, clock: Callable[[], int] = time.monotonic_ns) -> None:
        self._clock = clock
        self._guard = threading.Lock()
        self._depth = threading.local()
        self._phases: list[MarkedPhase] = []
        self._ready: int | None = None
        self._path = (os.environ if environ is None else environ).get(VARIABLE)
        self.began_ns = _began(clock())
        self._last = self.began_ns

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """A phase for the length of a `with` block, also when that raises. Phases may lie in one another."""
        depth = getattr(self._depth, "value", 0)
        self._depth.value = depth + 1
        begun = self._clock()
        try:
            yield
        finally:
            self._depth.value = depth
            self._ended(MarkedPhase(name, begun, self._clock(), depth))

    def mark(self, name: str) -> None:
        """Ends a phase that began where the last one ended, the first with the process."""
        self._ended(MarkedPhase(name, self._last, self._clock()))

    def gpu_context(self, device: int = 0, library: str = _LIBCUDA) -> bool:
        """Makes the primary context of a GPU in this process, as a phase of its own; False, and no phase, where there is no driver
        or no such GPU.

        PyTorch, CuPy and all that uses CUDA's runtime go on with the same context: made by a thread while others import, it costs
        nothing later. The context stays for as long as the process does (CUDA driver API: cuDevicePrimaryCtxRetain).
        """
        import ctypes  # only where it is asked for

        begun = self._clock()
        try:
            driver = ctypes.CDLL(library)
            found, context = ctypes.c_int(), ctypes.c_void_p()
            if driver.cuInit(0) or driver.cuDeviceGet(ctypes.byref(found), device):
                return False
            if driver.cuDevicePrimaryCtxRetain(ctypes.byref(context), found):
                return False
        except (OSError, AttributeError):
            return False
        self._ended(MarkedPhase(GPU_CONTEXT, begun, self._clock(), getattr(self._depth, "value", 0)))
        return True

    def ready(self) -> None:
        """The service answers from now on; said again, it changes nothing."""
        with self._guard:
            if self._ready is not None:
                return
            self._ready = self._clock()
        self._write({"ready_ns": self._ready})

    @property
    def phases(self) -> tuple[MarkedPhase, ...]:
        """The phases that have ended, in the order in which they did."""
        with self._guard:
            return tuple(self._phases)

    @property
    def ready_seconds(self) -> float | None:
        """From the beginning of the process to `ready`; None before."""
        return None if self._ready is None else (self._ready - self.began_ns) / 1e9

    def json(self) -> str:
        """All of it as a JSON document: seconds since the process began."""
        phases = [
            {
                "phase": phase.name,
                "begin": round((phase.begin_ns - self.began_ns) / 1e9, 6),
                "seconds": round(phase.seconds, 6),
                "depth": phase.depth,
            }
            for phase in self.phases
        ]
        return json.dumps({"phases": phases, "ready": self.ready_seconds})

    def prometheus(self) -> str:
        """All of it in the text format of Prometheus 0.0.4: seconds, as gauges."""
        lines = [
            "# HELP cold_start_phase_seconds How long a phase of the start took.",
            "# TYPE cold_start_phase_seconds gauge",
        ]
        seconds: dict[str, float] = {}
        for phase in self.phases:
            seconds[phase.name] = seconds.get(phase.name, 0.0) + phase.seconds
        lines += [f'cold_start_phase_seconds{{phase="{_label(name)}"}} {value:.6f}' for name, value in seconds.items()]
        if self.ready_seconds is not None:
            lines += [
                "# HELP cold_start_ready_seconds From the beginning of the process until it was ready.",
                "# TYPE cold_start_ready_seconds gauge",
                f"cold_start_ready_seconds {self.ready_seconds:.6f}",
            ]
        return "\n".join(lines) + "\n"

    def opentelemetry(self, service: str) -> str:
        """All of it as one trace of OpenTelemetry, OTLP 1.x in JSON: a span for the start, and one in it for each phase."""
        offset = time.time_ns() - self._clock()
        trace, root = os.urandom(16).hex(), os.urandom(8).hex()
        phases = self.phases
        end = self._ready or max((phase.end_ns for phase in phases), default=self._clock())
        spans = [_span(trace, root, "", "start", self.began_ns + offset, end + offset)]
        spans += [
            _span(trace, os.urandom(8).hex(), root, phase.name, phase.begin_ns + offset, phase.end_ns + offset)
            for phase in phases
        ]
        named = {"key": "service.name", "value": {"stringValue": service}}
        scope = {"scope": {"name": "layerwright"}, "spans": spans}
        return json.dumps({"resourceSpans": [{"resource": {"attributes": [named]}, "scopeSpans": [scope]}]})

    def _ended(self, phase: MarkedPhase) -> None:
        with self._guard:
            self._phases.append(phase)
            self._last = phase.end_ns
        self._write({"phase": phase.name, "begin_ns": phase.begin_ns, "end_ns": phase.end_ns, "depth": phase.depth})

    def _write(self, line: Mapping[str, object]) -> None:
        if self._path:
            with suppress(OSError), open(self._path, "a", encoding="utf-8") as file:
                file.write(json.dumps(line) + "\n")


def _began(now: int) -> int:
    """When this process began: the kernel tells it in ticks since the machine did (proc(5), /proc/pid/stat, field 22)."""
    try:
        with open("/proc/self/stat", "rb") as file:
            ticks = int(file.read().rpartition(b")")[2].split()[19])
        return min(now, int(ticks * 1_000_000_000 / os.sysconf("SC_CLK_TCK")))
    except (OSError, ValueError, IndexError):
        return now


def _label(name: str) -> str:
    return name.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _span(trace: str, span: str, parent: str, name: str, begin: int, end: int) -> dict[str, object]:
    document: dict[str, object] = {"traceId": trace, "spanId": span, "name": name, "kind": 1}
    if parent:
        document["parentSpanId"] = parent
    return document | {"startTimeUnixNano": str(begin), "endTimeUnixNano": str(end)}
