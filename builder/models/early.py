"""Large files of a model are sent while they are hashed: which ones, and when that could be in vain."""

from __future__ import annotations

import json
import threading
from collections.abc import Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import Self

from builder.client import NotFoundError
from builder.errors import BuilderError
from builder.parallel import Stop, for_each
from builder.places.delivery import Sink
from builder.places.remote import Remote
from builder.registry.ahead import Ahead

LEAST = 64 << 20
"""Bytes from which on hashing a file takes longer than asking whether a place has it."""
_ALIKE = 4


class Early:
    """Begins uploads of files that are being hashed, for the length of a `with` block; `threads` at once into each place.

    Only where all places are registries, and a place gives no reason to think that it has the file: a model under the same
    tag, or under one that is named alike, with a file of that size. What is not delivered within the block is dropped.
    """

    def __init__(self, sinks: Sequence[Sink], threads: int) -> None:
        self._places = tuple((sink.target, sink.tags) for sink in sinks if isinstance(sink.target, Remote))
        self._slots = threads if len(self._places) == len(sinks) else 0
        self._guard = threading.Lock()
        self._running = 0
        self._begun: list[Ahead] = []
        self._sizes = cache(_sizes)
        self._asking = threading.Lock()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        # side by side: each may have to wait for a silent registry
        for_each(Ahead.drop, self._begun, len(self._begun), Stop())

    def begin(self, path: Path) -> None:
        """A file of this model is going to be hashed. One that cannot be read is left to whoever does that."""
        try:
            size = path.stat().st_size
        except OSError:
            return
        with self._guard:
            if size < LEAST or self._running + len(self._places) > self._slots * len(self._places):
                return
            self._running += len(self._places)
        for place, tags in self._places:
            ahead = place.ahead(path, size)
            self._begun.append(ahead)
            threading.Thread(target=self._run, args=(ahead, place, tags), daemon=True).start()

    def _run(self, ahead: Ahead, place: Remote, tags: tuple[str, ...]) -> None:
        try:
            ahead.run(lambda: self._is_new(ahead.size, place, tags))
        finally:
            with self._guard:
                self._running -= 1

    def _is_new(self, size: int, place: Remote, tags: tuple[str, ...]) -> bool:
        with self._asking:  # once for all files
            sizes = self._sizes(place, tags)
        return sizes is not None and size not in sizes


def _sizes(place: Remote, tags: tuple[str, ...]) -> frozenset[int] | None:
    """The sizes of what a place has under these tags, or else under those most like them; None where that cannot be told."""
    try:
        found = {tag: place.find(tag) for tag in tags}
        if not any(found.values()):
            with suppress(NotFoundError):  # there is no such repository yet
                found = {tag: place.find(tag) for wanted in tags for tag in place.tags_like(wanted, _ALIKE)}
        documents = [json.loads(place.manifest(descriptor)) for descriptor in found.values() if descriptor]
        return frozenset(layer["size"] for document in documents for layer in document.get("layers", ()))
    except (BuilderError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        return None
