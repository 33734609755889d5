from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from builder.errors import StoreError
from builder.oci.digest import Digest
from builder.store import Store, partial_lock
from builder.store.collect import gc, usage

DAY = 86400.0
ABSENT = Digest("0" * 64)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def child(code: str, *arguments: object) -> subprocess.Popen[bytes]:
    """Python in a process of its own, which prints a line when it is where the test wants it."""
    argv = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stdin=subprocess.PIPE)


def kill(process: subprocess.Popen[bytes]) -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def age(store: Store, digest: Digest, seconds: float) -> None:
    when = time.time() - seconds
    os.utime(store.path(digest), (when, when))


@pytest.fixture
def tiny(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB."""
    path = tmp_path / "tiny"
    path.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tiny", path], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("mounting needs root")
    yield path
    subprocess.run(["umount", path], check=True)


@pytest.fixture
def read_only(tiny: Path) -> Path:
    """A store on a disk that may only be read, with one object in it."""
    Store(tiny / "store").put(b"old")
    subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
    return tiny / "store"


def test_nothing_is_created_by_looking(store: Store) -> None:
    assert not store.has(ABSENT)
    assert store.record("layer", "a") is None
    assert usage(store).objects == 0
    assert gc(store, time.time(), max_size=0).objects == 0
    assert not store.root.exists()


def test_bytes_come_back_by_their_digest(store: Store) -> None:
    digest = store.put(b"bytes")
    assert digest == Digest.of(b"bytes")
    assert store.read(digest) == b"bytes"
    assert store.path(digest).stat().st_mode & 0o777 == 0o444
    assert store.path(digest).relative_to(store.root) == Path("sha256", digest.hex[:2], digest.hex)
    assert list((store.root / "tmp").iterdir()) == []


def test_an_object_of_another_size_is_absent(store: Store) -> None:
    digest = store.put(b"bytes")
    assert store.has(digest)
    assert store.has(digest, 5)
    assert not store.has(digest, 6)


def test_damage_is_found_and_healed(store: Store) -> None:
    digest = store.put(b"bytes")
    damaged = store.path(digest)
    damaged.chmod(0o644)
    damaged.write_bytes(b"bytez")
    with pytest.raises(StoreError, match="damaged") as caught:
        store.read(digest)
    assert caught.value.hint
    assert not store.has(digest)
    assert store.put(b"bytes") == digest
    assert store.verify(digest)
    damaged.chmod(0o644)
    damaged.write_bytes(b"bytez")
    assert not store.verify(digest)
    assert not damaged.exists()


def test_what_is_absent_cannot_be_read(store: Store) -> None:
    with pytest.raises(StoreError, match="not in the store"):
        store.read(ABSENT)
    assert not store.verify(ABSENT)


def test_a_temporary_file_goes_away(store: Store) -> None:
    with store.temporary() as path:
        assert path.read_bytes() == b""
        path.write_bytes(b"half")
    with suppress(ZeroDivisionError), store.temporary() as other:
        other.write_bytes(b"half")
        raise ZeroDivisionError
    assert list((store.root / "tmp").iterdir()) == []
    assert usage(store).objects == 0


def test_many_threads_adopt_the_same_bytes(store: Store) -> None:
    data = os.urandom(1 << 20)
    threads = [threading.Thread(target=store.put, args=(data,)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert store.read(Digest.of(data)) == data
    assert usage(store).objects == 1


def test_records(store: Store) -> None:
    blob = store.put(b"layer")
    document = {"objects": [str(blob)], "name": "größe"}
    store.put_record("layer", "a/../b", document)
    assert store.record("layer", "a/../b") == document
    assert store.record("layer", "b") is None
    store.put_record("layer", "a/../b", {"objects": []})
    assert store.record("layer", "a/../b") == {"objects": []}
    outside = [path for path in store.root.parent.rglob("*") if not path.is_relative_to(store.root)]
    assert outside == []


def test_a_record_of_what_is_gone_is_absent(store: Store) -> None:
    blob = store.put(b"layer")
    store.put_record("layer", "key", {"objects": [str(blob)]})
    store.discard(blob)
    assert store.record("layer", "key") is None


@pytest.mark.parametrize("damage", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_damaged_record_is_absent(store: Store, damage: bytes) -> None:
    store.put_record("layer", "key", {})
    (store.root / "records/layer/key").chmod(0o644)
    (store.root / "records/layer/key").write_bytes(damage)
    assert store.record("layer", "key") is None
    assert gc(store, time.time()).records == 1
    assert usage(store).records == 0


def test_a_lock_excludes_threads(store: Store) -> None:
    inside = 0
    most = 0

    def work() -> None:
        nonlocal inside, most
        for _ in range(20):
            with store.locked("key"):
                inside += 1
                most = max(most, inside)
                os.sched_yield()
                inside -= 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == 1


HOLD = """
import sys; from pathlib import Path; from builder.store import Store
store = Store(Path(sys.argv[1]))
with store.in_use(), store.locked("key"), store.temporary() as path:
    path.write_bytes(b"half")
    print("held", flush=True)
    sys.stdin.read()
"""


class GaveUpError(Exception):
    pass


def test_a_lock_excludes_processes_until_they_die(store: Store) -> None:
    holder = child(HOLD, store.root)
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"

    def give_up() -> None:
        raise GaveUpError

    with pytest.raises(GaveUpError), store.locked("key", give_up):
        pass
    kill(holder)
    with store.locked("key", give_up):
        pass


def test_gc_removes_the_leavings_of_the_dead_only(store: Store) -> None:
    holder = child(HOLD, store.root)
    assert holder.stdout is not None
    holder.stdout.readline()
    assert gc(store, time.time()).leftovers == 0
    assert usage(store).temporary == 1
    kill(holder)
    assert gc(store, time.time(), dry_run=True).leftovers == 1
    assert usage(store).temporary == 1
    assert gc(store, time.time()).leftovers == 1
    assert usage(store).temporary == 0
    assert list((store.root / "locks").iterdir()) in ([], [store.root / "locks/in-use"])


def test_gc_spares_what_a_living_process_may_need(store: Store) -> None:
    fresh, old = store.put(b"fresh"), store.put(b"old")
    age(store, old, 2 * DAY)
    with store.in_use():
        assert gc(store, time.time(), max_size=0).objects == 1
    assert store.has(fresh)
    assert not store.has(old)
    assert gc(store, time.time(), max_size=0).objects == 1


def test_gc_removes_the_least_recently_used_first(store: Store) -> None:
    digests = [store.put(bytes([number]) * 1000) for number in range(5)]
    for number, digest in enumerate(digests):
        age(store, digest, (10 - number) * DAY)
    other = Store(store.root)
    assert other.has(digests[0])  # used just now
    removed = gc(store, time.time(), max_size=3000, keep=[digests[1]])
    assert removed.objects == 2
    assert [other.path(digest).exists() for digest in digests] == [True, True, False, False, True]


def test_gc_removes_what_is_old_and_its_records(store: Store) -> None:
    old, new = store.put(b"old"), store.put(b"new")
    store.put_record("layer", "old", {"objects": [str(old)]})
    store.put_record("layer", "new", {"objects": [str(new)]})
    age(store, old, 31 * DAY)
    assert gc(store, time.time(), max_age=30 * DAY).records == 1
    assert not store.has(old)
    assert store.record("layer", "new") is not None


def test_gc_removes_downloads_nobody_came_back_for(store: Store) -> None:
    path = store.partial(ABSENT)
    path.write_bytes(b"half")
    assert gc(store, time.time()).leftovers == 0
    assert gc(store, time.time() + 8 * DAY, dry_run=True).leftovers == 1
    with store.locked(partial_lock(ABSENT)):
        gc(store, time.time() + 8 * DAY)
        assert path.exists()
    gc(store, time.time() + 8 * DAY)
    assert not path.exists()


def test_usage_tells_inputs_from_layers(store: Store) -> None:
    store.put(b"input")
    layer = store.put(b"a layer")
    store.put_record("layer", "key", {"objects": [str(layer)]})
    used = usage(store)
    assert (used.objects, used.bytes, used.inputs, used.input_bytes) == (2, 12, 1, 5)
    assert (used.layers, used.layer_bytes, used.records) == (1, 7, 1)


@pytest.mark.parametrize("root", ["file", "file/store", "file/deep/store"])
def test_a_file_in_the_place_of_the_store_is_told(tmp_path: Path, root: str) -> None:
    """The store itself, or a folder that it is in; so it is with a home that may not be written."""
    (tmp_path / "file").touch()
    store = Store(tmp_path / root)
    with pytest.raises(StoreError, match="the store cannot be used"):
        store.put(b"x")
    with pytest.raises(StoreError, match="the store cannot be used"), store.locked("name"):
        pass
    with store.in_use():
        assert usage(store).objects == 0


def test_a_full_disk_is_told(tiny: Path) -> None:
    store = Store(tiny / "store")
    small = store.put(b"small")
    with pytest.raises(StoreError, match="full") as caught:
        store.put(bytes(2 << 20))
    assert "cache gc" in str(caught.value.hint)
    assert store.read(small) == b"small"
    assert usage(store).temporary == 0
    assert usage(store).objects == 1


LIMITED = """
import resource, sys; from pathlib import Path; from builder.errors import StoreError; from builder.store import Store
resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))
try:
    Store(Path(sys.argv[1])).put(bytes(2 << 20))
except StoreError as error:
    print(error)
"""


def test_a_limit_on_file_sizes_is_told(store: Store) -> None:
    process = child(LIMITED, store.root)
    output, _ = process.communicate()
    assert b"the store is full" in output
    assert usage(store).objects == usage(store).temporary == 0


def test_a_read_only_store_can_be_read(read_only: Path) -> None:
    store = Store(read_only)
    assert store.read(Digest.of(b"old")) == b"old"
    with store.in_use():
        assert store.put(b"old") == Digest.of(b"old")


def lock(store: Store) -> None:
    with store.locked("key"):
        pass


@pytest.mark.parametrize(
    "write",
    [
        lambda store: store.put(b"new"),
        lambda store: store.put_record("layer", "key", {}),
        lambda store: store.partial(ABSENT),
        lambda store: gc(store, time.time(), max_size=0),
        lock,
    ],
    ids=["put", "put_record", "partial", "gc", "locked"],
)
def test_a_read_only_store_cannot_be_written(read_only: Path, write: Callable[[Store], object]) -> None:
    with pytest.raises(StoreError, match=r"cannot be used: Read-only") as caught:
        write(Store(read_only))
    assert "XDG_CACHE_HOME" in str(caught.value.hint)


def test_errors_of_other_files_pass_through(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError), store.temporary():
        (tmp_path / "nothing").read_bytes()
