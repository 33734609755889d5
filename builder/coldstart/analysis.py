"""What a start spends its time with, what is over its budget, and what would make it shorter, as far as it was measured."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from builder.coldstart.trace import Trace
from builder.coldstart.values import Measurement, Summary
from builder.progress import counted, human_size
from builder.start import GPU_CONTEXT, IMPORTS, MODEL_LOAD, MODEL_PULL

LAZY_BELOW = 0.3
"""Where a start reads less than about this share of an image, starting it lazily is faster than pulling it."""
_WORTH = 0.05
_LONG_MOUNT = 1.0
_MUCH_MORE = 1.2
_SMALL = 1 << 20
_MANY = 100
_SLOW_PULL = 0.4
_GROUPS: Mapping[str, tuple[str, ...]] = {
    "pull": ("resolve", "pull"),
    "model": (MODEL_PULL, MODEL_LOAD),
}


@dataclass(frozen=True)
class Share:
    """A phase and its share of the whole."""

    name: str
    seconds: float
    share: float


@dataclass(frozen=True)
class Advice:
    """Something that would help: `gain` in seconds as the measurement lets expect, None where it was not measured; `why` in
    words, `how` as what to write or run. `key` names it for programs."""

    key: str
    gain: float | None
    why: str
    how: str


def shares(summary: Summary) -> tuple[Share, ...]:
    """The phases, the longest first."""
    total = sum(spread.median for spread in summary.phases.values()) or 1.0
    found = [Share(name, spread.median, spread.median / total) for name, spread in summary.phases.items()]
    return tuple(sorted(found, key=lambda share: -share.seconds))


def over(summary: Summary, budget: Mapping[str, float]) -> tuple[tuple[str, float, float], ...]:
    """The parts of a budget that the median start is over: name, seconds that it took, seconds that it may take.

    `total` is the whole start, `pull` is resolving and pulling, `model` is pulling and loading models; other names are phases.
    """
    found = []
    for name, limit in budget.items():
        phases = _GROUPS.get(name, (name,))
        took = (
            summary.seconds.median
            if name == "total"
            else sum(summary.phases[phase].median for phase in phases if phase in summary.phases)
        )
        if took > limit:
            found.append((name, took, limit))
    return tuple(found)


def unknown(summary: Summary, budget: Mapping[str, float]) -> tuple[str, ...]:
    """The names in a budget that no phase of the start has, so that nothing is ever over them."""
    return tuple(name for name in budget if name not in (*_GROUPS, "total", *summary.phases))


def advise(measurements: Sequence[Measurement], trace: Trace | None = None) -> tuple[Advice, ...]:
    """What would help, by the gain that is expected, the largest first; what was not measured comes last."""
    lazily = next((item for item in measurements if item.snapshotter != "overlayfs" and item.cold()), None)
    whole = next((item for item in measurements if item.snapshotter == "overlayfs" and item.cold()), None)
    found = [*_way(lazily, whole), *_warm(lazily or whole)]
    if lazily:
        found += _reading(lazily, trace)
    if whole:
        found += _pulling(whole)
    for item in filter(None, (lazily or whole,)):
        found += [*_models(Summary.of(item.cold())), *_context(Summary.of(item.cold()))]
    worth = [item for item in found if item.gain is None or item.gain > _WORTH]
    return tuple(sorted(worth, key=lambda item: (item.gain is None, -(item.gain or 0.0), item.key)))


def _way(lazily: Measurement | None, whole: Measurement | None) -> Iterator[Advice]:
    """Lazily, or all of it first."""
    if lazily and whole:
        gain = Summary.of(lazily.cold()).seconds.median - Summary.of(whole.cold()).seconds.median
        if gain < 0:
            yield Advice(
                "lazy",
                -gain,
                "started lazily it is ready earlier than when it is pulled first",
                "nodes with a lazy snapshotter",
            )
        else:
            yield Advice(
                "full-pull",
                gain,
                "pulled first it is ready earlier than when it is started lazily",
                "publish.soci: false",
            )
    elif lazily:
        moved = Summary.of(lazily.cold()).bytes.median / max(lazily.size, 1)
        if moved > LAZY_BELOW:
            why = f"the start reads {moved:.0%} of the image; above about {LAZY_BELOW:.0%} pulling all of it may be faster"
            yield Advice("full-pull", None, why, "measure it: build start --snapshotter overlayfs")
    elif whole:
        yield Advice(
            "lazy", None, "it was only measured when pulled first", "measure it: build start (--snapshotter soci)"
        )


def _warm(measured: Measurement | None) -> Iterator[Advice]:
    """Nodes that have the image already."""
    if measured is None:
        return
    if not measured.again():
        yield Advice(
            "pre-pull", None, "a start of an image that is there was not measured", "measure it: build start --again"
        )
        return
    gain = Summary.of(measured.cold()).seconds.median - Summary.of(measured.again()).seconds.median
    yield Advice(
        "pre-pull", gain, "a node that has the image starts it so much faster", "pull it on nodes before it is needed"
    )
    yield Advice(
        "warm-replicas",
        Summary.of(measured.cold()).seconds.median,
        "a replica that waits answers at once",
        "keep as many replicas as a burst needs",
    )


def _reading(lazily: Measurement, trace: Trace | None) -> Iterator[Advice]:
    """What lazily mounted layers cost while the program runs."""
    cold = Summary.of(lazily.cold())
    again = Summary.of(lazily.again()) if lazily.again() else None
    start = lazily.cold()[0]
    reading = [phase for phase in start.phases if phase.spans and phase.name not in _GROUPS["pull"]]
    moved = sum(phase.bytes for phase in reading)
    pull = next((phase for phase in start.phases if phase.name == "pull"), None)
    rate = pull.bytes / pull.seconds if pull and pull.bytes and pull.seconds else None
    is_estargz = lazily.snapshotter == "stargz"
    if is_estargz:
        if reading:  # what reads ahead from inside has stargz-snapshotter fetch the same bytes several times
            requests = sum(phase.spans for phase in reading)
            why = f"the program reads {human_size(moved)} of lazily mounted layers in {counted(requests, 'request')}"
            what = "start: {trace: NAME.trace.json, order: own, readahead: false}; the trace from an image with a SOCI index"
            yield Advice("order", None, why, what)
    elif again and rate and reading:
        names = {phase.name for phase in reading}
        waited = sum(spread.median for name, spread in cold.phases.items() if name in names)
        waited -= sum(spread.median for name, spread in again.phases.items() if name in names)
        gain = waited - moved / rate
        why = (
            f"the program waits {waited:.1f} s for {human_size(moved)} that come one after another; at once they would take "
            f"{moved / rate:.1f} s"
        )
        yield Advice("readahead", gain, why, "build trace REF -o NAME.trace.json; start: {trace: NAME.trace.json}")
    elif reading:
        why = f"the program reads {human_size(moved)} of lazily mounted layers, one span after another"
        yield Advice("readahead", None, why, "measure the wait: build start --again")
    if pull and pull.seconds > _LONG_MOUNT and not is_estargz:
        why = f"pulling takes {pull.seconds:.1f} s, in which layers are mounted one after another"
        yield Advice("mount-parallel", None, why, "publish: {soci: {mount: parallel}}")
    if trace:
        yield from _spans(moved, rate, trace) if not is_estargz else ()
        packages = [file.path for file in trace.files if "-packages/" in file.path]  # Debian's own modules stay source
        modules = {path for path in packages if path.endswith(".py")}
        compiled = {path for path in packages if path.endswith(".pyc")}
        if len(modules) > len(compiled):
            why = f"the start reads {len(modules)} modules as source and {len(compiled)} as bytecode"
            yield Advice("bytecode", None, why, "python.bytecode: true")


def _spans(moved: int, rate: float | None, trace: Trace) -> Iterator[Advice]:
    """What comes beside what is read, as far as it can be told without the layers: a trace has sizes before compression."""
    read = sum(file.read for file in trace.files)
    if moved > read * _MUCH_MORE:
        why = f"{human_size(moved)} come, and the start reads {human_size(read)} at most"
        gain = (moved - read) / rate if rate else None
        yield Advice("adaptive-spans", gain, why, "publish: {soci: {spans: adaptive}}")
    else:
        why = "spans that are small where the start reads and large elsewhere bring less that is not read"
        yield Advice("adaptive-spans", None, why, "publish: {soci: {spans: adaptive}}, and measure it")
    small = sum(file.size < _SMALL for file in trace.files)
    if small >= _MANY:
        why = (
            f"the start reads {small:,} small files, wherever they lie in their layers; together they need fewer spans"
        )
        yield Advice("order", None, why, "start: {order: own}, and measure it")


def _pulling(whole: Measurement) -> Iterator[Advice]:
    """What makes less of an image, or pulls it sooner."""
    took = Summary.of(whole.cold()).phases.get("pull")
    if not took or not took.median:
        return
    each = took.median * 100_000_000 / max(whole.size, 1)
    why = f"each 100 MB of layers take {each:.1f} s to pull and unpack"
    yield Advice("slimmer", None, why, "build plan --minimal; cuda: {flavour: auto}; slim")
    if each > _SLOW_PULL:
        yield Advice("parallel-pull", None, why, "build node-config --mode parallel; publish: {compression: zstd}")


def _context(summary: Summary) -> Iterator[Advice]:
    """A GPU's context needs nothing of what is imported or pulled before it."""
    made = summary.phases.get(GPU_CONTEXT)
    if made:
        beside = sum(summary.phases[name].median for name in (IMPORTS, MODEL_PULL) if name in summary.phases)
        how = "threading.Thread(target=start.gpu_context).start(), before what is imported (builder.start)"
        yield Advice(
            "gpu-context", min(made.median, beside), "the GPU's context can be made beside imports and pulls", how
        )


def _models(summary: Summary) -> Iterator[Advice]:
    """Models are pulled and loaded by what they weigh."""
    pulled = summary.phases.get(MODEL_PULL)
    if pulled:
        yield Advice(
            "fp16", pulled.median / 2, "a model in half precision has half of the bytes", "models: precision: fp16"
        )
        yield Advice("int8", pulled.median * 0.7, "a model in 8 bits has less than a third", "models: precision: int8")
        yield Advice(
            "lazy-tensors",
            None,
            "what is not read at the start need not come before it",
            "open_model(ref).tensor(name)",
        )
