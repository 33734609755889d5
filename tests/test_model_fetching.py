"""Chunks from a source that may give anything: what is there afterwards is right, or there is an error."""

from __future__ import annotations

import hashlib
import random
import tempfile
import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, field
from io import BytesIO
from itertools import pairwise
from pathlib import Path
from typing import BinaryIO

import pytest
from hypothesis import given, settings
from hypothesis import strategies as some

from builder.client import TransientError
from builder.errors import BuilderError
from builder.models.chunked import Chunked, Open
from builder.models.delta import Older
from builder.models.fetching import Fetcher
from builder.models.filling import Filling
from builder.models.hashing import Hasher
from builder.models.values import ModelFile
from builder.models.whole import Bringing
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.parallel import Stop
from builder.progress import Silent
from builder.registry import NoRangesError
from builder.store import Store

DATA = random.Random(9).randbytes(1000)
FAULTS = ("flip", "short", "long", "break", "other place", "no ranges", "nothing")


@dataclass
class Odd:
    """A source of `DATA` whose answers go wrong, each in its own way; then it answers well."""

    faults: list[str]
    whole_is_right: bool = True

    def ranges(self, descriptor: Descriptor, start: int, end: int, stop: Stop | None = None) -> Iterator[bytes]:
        fault = self.faults.pop(0) if self.faults else ""
        if fault == "no ranges":
            raise NoRangesError("it sends no parts")
        data = DATA[start:end]
        match fault:
            case "flip":
                data = bytes([data[0] ^ 1]) + data[1:]
            case "short":
                data = data[:-1]
            case "long":
                data += b"more"
            case "other place":
                data = DATA[-len(data) :]
            case "nothing":
                data = b""
        middle = len(data) // 2
        yield data[:middle]
        if fault == "break":
            raise TransientError("the connection broke")
        yield data[middle:]

    def blob(self, descriptor: Descriptor) -> AbstractContextManager[BinaryIO]:
        return closing(BytesIO(DATA if self.whole_is_right else DATA[::-1]))


def chunked(cuts: list[int], *, indexed: bool) -> Chunked:
    bounds = tuple(sorted({0, len(DATA), *cuts}))
    hashes = tuple(hashlib.sha256(DATA[start:end]).hexdigest() for start, end in pairwise(bounds))
    digest = Digest.of(DATA)
    blob = Descriptor("application/octet-stream", digest, len(DATA))
    return Chunked(ModelFile("m.bin", len(DATA), digest.hex), blob, bounds, hashes if indexed else None)


CUTS = some.lists(some.integers(1, len(DATA) - 1), max_size=12)
WRONG = some.lists(some.sampled_from((*FAULTS, "")), max_size=12)


@given(CUTS, WRONG, some.booleans(), some.data())
@settings(max_examples=80, deadline=None)
def test_parts_are_right_or_an_error(cuts: list[int], faults: list[str], whole: bool, data: some.DataObject) -> None:
    file = chunked(cuts, indexed=True)
    chunks = sorted(data.draw(some.sets(some.integers(0, len(file.cuts) - 2), min_size=1)))
    with tempfile.TemporaryDirectory() as name, Filling(Path(name, "file"), file.cuts) as filling:
        try:
            Fetcher(Odd(faults, whole), Stop()).fetch([(Open(file, filling), chunks)])  # type: ignore[arg-type]
            assert filling.missing(chunks) == []
        except BuilderError:
            pass
        there = set(range(len(file.cuts) - 1)) - set(filling.missing())
        with Filling(Path(name, "file"), file.cuts) as again:
            assert set(again.missing()) == set(range(len(file.cuts) - 1)) - there
        for chunk in there:
            start, end = filling.span(chunk)
            assert Path(name, "file").read_bytes()[start:end] == DATA[start:end]


@given(CUTS, WRONG, some.booleans(), some.booleans())
@settings(max_examples=40, deadline=None)
def test_whole_files_are_right_or_an_error(cuts: list[int], faults: list[str], indexed: bool, whole: bool) -> None:
    """Tried again and again, as an init container is, it ends well once the source does."""
    file = chunked(cuts, indexed=indexed)
    source = Odd(faults, whole)
    with tempfile.TemporaryDirectory() as name:
        store = Store(Path(name))
        bringing = Bringing(
            store,
            lambda advance, receivers: Fetcher(source, Stop(), advance, receivers),  # type: ignore[arg-type]
            lambda size: nullcontext(()),
            Older(store, []),
            Silent(),
            Stop(),
        )
        for _ in range(20):
            try:
                bringing.bring([file], "x")
                break
            except BuilderError:
                assert not store.has(Digest.of(DATA))
        assert store.path(Digest.of(DATA)).read_bytes() == DATA
        assert list((store.root / "partial").iterdir()) == []


def test_without_faults_each_byte_is_asked_for_once(tmp_path: Path) -> None:
    file = chunked([100, 200, 300], indexed=True)
    asked: list[int] = []
    with Filling(tmp_path / "file", file.cuts) as filling:
        Fetcher(Odd([]), Stop(), asked.append).fetch([(Open(file, filling), [0, 1, 3])])  # type: ignore[arg-type]
        assert filling.missing() == [2]
    assert sum(asked) == 200 + 700


def test_a_slow_connection_keeps_nobody_waiting(tmp_path: Path) -> None:
    """The first connection stalls for good; the others do its work but for the piece that it has begun. What it brings of theirs in
    the end, damaged on its long way, is not written over what is right."""
    file = chunked(list(range(100, 1000, 100)), indexed=True)
    goes_on = threading.Event()

    class Slow(Odd):
        def ranges(self, descriptor: Descriptor, start: int, end: int, stop: Stop | None = None) -> Iterator[bytes]:
            if not start:
                yield DATA[:250]
                goes_on.wait(30)
                yield DATA[250:300] + bytes(end - 300)
            else:
                yield DATA[start:end]

    def landed(start: int, end: int) -> None:
        if filling.missing([0, 1, 2, 3, 4, 5, 6, 9]) == [2]:
            goes_on.set()

    with Filling(tmp_path / "file", file.cuts) as filling:
        # the last chunk is a task of its own, so that there is a second thread
        Fetcher(Slow([]), Stop()).fetch([(Open(file, filling, False, landed), [0, 1, 2, 3, 4, 5, 6, 9])])  # type: ignore[arg-type]
        assert filling.missing() == [7, 8]
    assert goes_on.is_set()
    assert (tmp_path / "file").read_bytes()[:700] == DATA[:700]


def test_a_failure_ends_the_others(tmp_path: Path) -> None:
    file = chunked([100], indexed=True)
    with Filling(tmp_path / "file", file.cuts) as filling, pytest.raises(BuilderError):
        Fetcher(Odd(["flip"] * 9), Stop()).fetch([(Open(file, filling), [0, 1])])  # type: ignore[arg-type]


@given(some.permutations(range(10)), some.integers(0, 10))
@settings(max_examples=30, deadline=None)
def test_a_file_is_hashed_in_order_whatever_comes_first(order: list[int], told: int) -> None:
    cuts = tuple(range(0, 1001, 100))
    with tempfile.TemporaryDirectory() as name, Filling(Path(name, "file"), cuts) as filling:
        with Hasher(filling) as hasher:
            for chunk in order:
                filling.put(chunk, memoryview(DATA)[chunk * 100 : chunk * 100 + 100])
                hasher.landed(*filling.span(chunk))
            assert hasher.digest() == Digest.of(DATA) == filling.digest()
        with Hasher(filling) as unfinished:  # which ends although nothing comes
            for chunk in order[:told]:
                unfinished.landed(*filling.span(chunk))


@dataclass
class Counting(Odd):
    """A source that says how many were asked for at once; `together` have to be, before it answers."""

    together: int = 1
    now: int = 0
    most: int = 0
    news: threading.Condition = field(default_factory=threading.Condition)

    def ranges(self, descriptor: Descriptor, start: int, end: int, stop: Stop | None = None) -> Iterator[bytes]:
        with self.news:
            self.now += 1
            self.most = max(self.most, self.now)
            self.news.notify_all()
            assert self.news.wait_for(lambda: self.most >= self.together, 30)
        try:
            yield DATA[start:end]
        finally:
            with self.news:
                self.now -= 1


@pytest.mark.parametrize(("enough", "least", "most"), [(0, 1, 4), (1 << 60, 12, 12)], ids=["quick", "slow"])
def test_there_are_as_many_connections_as_help(
    enough: int, least: int, most: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Few where each brings much, and all where not."""
    monkeypatch.setattr("builder.models.lanes._ENOUGH", enough)
    monkeypatch.setattr("builder.models.lanes._MUCH", 1)
    monkeypatch.setattr("builder.models.requests.CHUNK_SIZE", 10)  # so that each chunk is a request
    file = chunked(list(range(10, 1000, 10)), indexed=True)
    source = Counting([], together=least)
    with Filling(tmp_path / "file", file.cuts) as filling:
        Fetcher(source, Stop()).fetch([(Open(file, filling, False), range(100))])  # type: ignore[arg-type]
        assert filling.missing() == []
    assert (tmp_path / "file").read_bytes() == DATA
    assert least <= source.most <= most
