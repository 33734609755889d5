"""The facts of all inputs of a platform: fetched where they are not known yet, read once, and kept."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor

from builder.binaries.facts import InputFacts
from builder.binaries.known import known, remember
from builder.lock import LockedDeb, LockedFile, LockedWheel
from builder.plan import BaseLayer
from builder.progress import Progress
from builder.store import Store

_MOST_THREADS = 4
Item = LockedWheel | LockedDeb | BaseLayer
"""What has facts."""


def gather(
    inputs: Iterable[Item],
    store: Store,
    ensure: Callable[[Iterable[LockedFile]], None],
    progress: Progress,
) -> Mapping[str, InputFacts]:
    """The facts of each input, by the digest of its file in hex. `ensure` brings files into the store.

    Raises what fetching raises, `HostileInputError` for an input that is not in order, and `LayerError` for such a layer.
    """
    files = {item.file.sha256: item for item in inputs}
    found = {sha256: facts for sha256 in files if (facts := known(store, sha256))}
    missing = sorted((item for sha256, item in files.items() if sha256 not in found), key=lambda item: -item.file.size)
    if not missing:
        return found
    ensure([item.file for item in missing])
    total = sum(item.file.size for item in missing)
    threads = min(_MOST_THREADS, len(os.sched_getaffinity(0)))
    with (
        store.workspace() as spool,
        progress.task("look at the binaries", total) as task,
        ThreadPoolExecutor(threads) as pool,
    ):
        from builder.binaries import inputs as reading  # takes long to import

        def read(item: Item) -> InputFacts:
            path, name = store.path(item.file.digest), item.file.path.rpartition("/")[2]
            if isinstance(item, BaseLayer):
                with path.open("rb") as blob:
                    facts = reading.of_tar_stream(blob, item.name, spool=spool)
            elif isinstance(item, LockedWheel):
                facts = reading.of_wheel(path, name, spool=spool)
            else:
                facts = reading.of_deb(path, name, spool=spool)
            remember(store, item.file.sha256, facts)
            task.advance(item.file.size)
            return facts

        return found | {item.file.sha256: facts for item, facts in zip(missing, pool.map(read, missing), strict=True)}
