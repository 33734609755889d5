"""Models that lie, servers that change their minds, caches that are damaged, disks that are full: nothing wrong is ever given."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import faultregistry
import judges
import modelworld
import numpy
import pytest
from faultregistry import Fault, FaultRegistry, Handler, Reply
from hypothesis import given
from hypothesis import strategies as some
from modelregistry import found, published, pull, push, serving
from registryworld import USER, repository
from test_fetch import disk

from builder.errors import StoreError
from builder.models import placing
from builder.models.artifact import encode
from builder.models.cache import Remembering
from builder.models.chunked import WrongModelError
from builder.models.describe import Description
from builder.models.filling import Filling, journal_of
from builder.models.lazy import Model
from builder.models.placing import FolderError, How
from builder.models.publish import publish
from builder.models.pull import Published, Pulling
from builder.models.scanning import model_index
from builder.models.values import ModelIndex
from builder.oci.digest import Digest
from builder.places.delivery import Sink
from builder.progress import Silent
from builder.store import Store

BIG = "model-00001-of-00002.safetensors"
FILES = modelworld.small_files(seed=3, megabytes=12)
DIGEST = hashlib.sha256(FILES[BIG]).hexdigest()
START = len(FILES[BIG]) - (12 << 20)


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("registry"), FILES) as address:
        yield address


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def push_with(address: str, folder: Path, change: Callable[[ModelIndex], ModelIndex], tag: str) -> None:
    """Publishes `FILES` with another index than theirs."""
    local = modelworld.write_files(folder, FILES)
    model = encode(local, change(model_index(local, None, Silent())), Description(name="small", version="1"))
    publish(model, [Sink(address, repository(address), (tag,))], Silent())


def of_other_bytes(data: bytes) -> Callable[[ModelIndex], ModelIndex]:
    """The index says of the big file what is true of other bytes of the same length."""

    def change(index: ModelIndex) -> ModelIndex:
        files = []
        for each in index.files:
            if each.file.path == BIG:
                parts = (data[:START], *(data[at : at + (4 << 20)] for at in range(START, len(data), 4 << 20)))
                each = replace(each, chunks=tuple(hashlib.sha256(part).hexdigest() for part in parts))
            files.append(each)
        return ModelIndex(tuple(files))

    return change


def giving(data: bytes) -> Fault:
    """The server gives other bytes, in parts and whole, as smoothly as the right ones."""

    def fault(handler: Handler, body: bytes) -> bool:
        start, end = 0, len(data)
        match = re.fullmatch(r"bytes=(\d+)-(\d+)", handler.headers.get("range", ""))
        if match:
            start, end = int(match[1]), int(match[2]) + 1
        headers = {"Content-Range": f"bytes {start}-{end - 1}/{len(data)}"} if match else {}
        handler.reply(Reply(206 if match else 200, headers, data[start:end]).sized())
        return True

    return fault


def changed(data: bytes) -> bytes:
    middle = len(data) // 2
    return data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]


def test_an_index_that_lies_about_right_bytes(registry: str, store: Store, tmp_path: Path) -> None:
    push_with(registry, tmp_path / "files", of_other_bytes(changed(FILES[BIG])), "lies")
    model = Model(published(registry, store, "lies"), store)
    with pytest.raises(WrongModelError, match=rf"{BIG}: bytes \d+ to \d+ .* are not those of the model's index"):
        model.tensor("embed.weight").bytes()
    pull(registry, store, tmp_path / "model", "lies")  # what the manifest says is right
    assert found(tmp_path / "model") == FILES


def test_an_index_that_vouches_for_wrong_bytes(way: FaultRegistry, store: Store, tmp_path: Path) -> None:
    """Index and server agree on other bytes; the manifest does not. The next honest model is not spoilt by them."""
    wrong = changed(FILES[BIG])
    push_with(way.upstream, tmp_path / "files", of_other_bytes(wrong), "vouches")
    way.decide = lambda request: giving(wrong) if DIGEST in request.path else None
    with Model(published(way.address, store, "vouches"), store) as model:
        assert bytes(model.tensor("embed.weight").bytes()) == wrong[START:]  # what its publisher vouches for
    with pytest.raises(WrongModelError, match="the model's index lies"):
        pull(way.address, store, tmp_path / "model", "vouches")
    with Model(published(way.address, store, "vouches"), store) as model:
        model.tensor("embed.weight").bytes()
    way.decide = lambda request: None
    with Model(published(way.address, store), store) as model:
        assert bytes(model.tensor("embed.weight").bytes()) == FILES[BIG][START:]
    pull(way.address, store, tmp_path / "model")
    assert found(tmp_path / "model") == FILES


def test_a_blob_without_index_that_was_changed(way: FaultRegistry, store: Store, tmp_path: Path) -> None:
    oras = judges.require("oras")
    folder = tmp_path / "files"
    modelworld.write_files(folder, FILES)
    command = [str(oras), "push", "--plain-http", f"{way.upstream}/some/image:plain", *FILES]
    subprocess.run(command, cwd=folder, check=True, capture_output=True)
    way.decide = lambda request: giving(changed(FILES[BIG])) if DIGEST in request.path else None
    with pytest.raises(WrongModelError, match=f"{BIG}: the bytes of its blob make"):
        pull(way.address, store, tmp_path / "model", "plain")
    assert list((store.root / "partial").glob(f"*{BIG}*")) == []
    way.decide = lambda request: None
    assert pull(way.address, store, tmp_path / "model", "plain").moved.resumed < 1000
    assert found(tmp_path / "model") == FILES


def test_addresses_that_expire(way: FaultRegistry, store: Store, tmp_path: Path) -> None:
    """The registry sends to a place that refuses each part once: the address had expired."""
    refused: set[str | None] = set()

    def refuse(handler: Handler, body: bytes) -> bool:
        wanted = handler.headers.get("range")
        if not wanted or wanted in refused:
            return False
        refused.add(wanted)
        handler.reply(Reply(403, {}, b"<Error>expired</Error>").sized())
        return True

    with faultregistry.before(way.upstream, decide=lambda _: refuse) as other:
        way.decide = lambda request: faultregistry.elsewhere(other.address) if request.what == "GET blobs" else None
        pull(way.address, store, tmp_path / "model")
    assert len(refused) > 2
    assert found(tmp_path / "model") == FILES


def test_tokens_that_wear_out_and_stay_at_home(way: FaultRegistry, store: Store, tmp_path: Path) -> None:
    """Each token is good for a few requests; the place that the registry sends to is never shown one."""
    with faultregistry.before(way.upstream) as other:
        way.users, way.uses = {USER.user: USER.password}, 8
        way.decide = lambda request: faultregistry.elsewhere(other.address) if request.what == "GET blobs" else None
        source = Remembering(store, "x", lambda: repository(way.address, writing=False, credentials=USER))
        model = Published.open("x", source, "v1")
        with Model(model, store) as opened:
            assert bytes(opened.tensor("embed.weight").bytes()) == FILES[BIG][START:]
        Pulling(store, Silent()).pull(model, tmp_path / "model")
        assert len(way.requests("GET token")) > 1
        assert other.seen
        assert not [request for request in other.seen if request.headers["authorization"]]
    assert found(tmp_path / "model") == FILES


def test_a_tag_that_moves_while_its_model_is_pulled(way: FaultRegistry, store: Store, tmp_path: Path) -> None:
    push(way.upstream, tmp_path / "v1", FILES, "moves")
    model = published(way.address, store, "moves")
    push(way.upstream, tmp_path / "v2", FILES | {"config.json": b'{"v": 2}'}, "moves")
    Pulling(store, Silent()).pull(model, tmp_path / "model")
    assert found(tmp_path / "model") == FILES


def test_equal_files_and_many_files(registry: str, store: Store, tmp_path: Path) -> None:
    files = {f"folder{number % 7}/{number}.txt": str(number % 40).encode() for number in range(230)} | {"empty": b""}
    push(registry, tmp_path / "files", files, "many")
    assert pull(registry, store, tmp_path / "model", "many").changed
    assert found(tmp_path / "model") == files


def test_an_older_version_that_is_damaged(way: FaultRegistry, store: Store, tmp_path: Path) -> None:
    """Nothing of the cache is believed without being read."""
    pull(way.address, store, tmp_path / "model", how=How.COPY)
    path = store.path(Digest(DIGEST))
    path.chmod(0o644)
    path.write_bytes(changed(FILES[BIG]))
    newer = changed(changed(FILES[BIG])[:-1] + b"!")
    push(way.upstream, tmp_path / "files", FILES | {BIG: newer}, "newer")
    pulled = pull(way.address, store, tmp_path / "model", "newer")
    assert found(tmp_path / "model")[BIG] == newer
    assert pulled.moved.reused == START + (4 << 20)
    path.unlink()
    push(way.upstream, tmp_path / "files", FILES | {BIG: newer[:-1] + b"?"}, "newest")
    for record in (store.root / "records/model").iterdir():
        record.chmod(0o644)
        record.write_text("{")
    assert pull(way.address, store, tmp_path / "model", "newest").moved.reused == 0


def test_too_little_room(way: FaultRegistry, tmp_path: Path) -> None:
    with disk(tmp_path / "tiny", "8m") as tiny:
        with pytest.raises(StoreError, match=r"12\.6 MB are needed and 8\.\d MB are free") as caught:
            pull(way.address, Store(tiny / "cache"), tmp_path / "model")
        assert "--cache" in str(caught.value.hint)
        assert not [request for request in way.requests("GET blobs") if DIGEST in request.path]


def test_a_disk_that_fills_up(way: FaultRegistry, tmp_path: Path) -> None:
    with disk(tmp_path / "tiny", "48m") as tiny:
        guard = threading.Lock()

        def greedy(handler: Handler, body: bytes) -> bool:
            with guard:
                if not (tiny / "greed").exists():
                    used = os.statvfs(tiny)
                    (tiny / "greed").write_bytes(bytes(max(used.f_bavail * used.f_frsize - (5 << 20), 0)))
            return False

        way.decide = lambda request: greedy if DIGEST in request.path else None
        store = Store(tiny / "cache")
        with pytest.raises(StoreError, match="the store is full"):
            pull(way.address, store, tmp_path / "model")
        (tiny / "greed").unlink()
        way.decide = lambda request: None
        pull(way.address, store, tmp_path / "model")
        assert found(tmp_path / "model") == FILES


def test_the_folder_is_on_another_disk_that_is_full(registry: str, store: Store, tmp_path: Path) -> None:
    with disk(tmp_path / "tiny", "8m") as tiny:
        with pytest.raises(FolderError, match=rf"no space is left: 12\.6 MB are needed for {BIG}") as caught:
            pull(registry, store, tiny / "model")
        assert "one file system" in str(caught.value.hint)
        assert list(tiny.iterdir()) == []


def test_a_mount_point_is_filled_file_by_file(registry: str, store: Store, tmp_path: Path) -> None:
    """An empty volume of a pod is mounted where the model is wanted: it cannot be replaced, its files can."""
    push(registry, tmp_path / "files", {"config.json": b"{}", "tokenizer": b"a file now"}, "mount")
    with disk(tmp_path / "model", "48m") as target:
        assert pull(registry, store, target).how is How.COPY
        assert found(target) == FILES
        assert not pull(registry, store, target).changed
        pull(registry, store, target, "mount")
        assert found(target) == {"config.json": b"{}", "tokenizer": b"a file now"}
        pull(registry, store, target)
        assert found(target) == FILES
        assert sorted(path.name for path in (target / ".build").iterdir()) == ["model.json"]
        # killed while files were changing, it goes on
        (target / ".build/model.json").rename(target / ".build/changing")
        (target / "README.md").rename(target / "OLD.md")
        pull(registry, store, target)
        assert found(target) == FILES
        assert sorted(path.name for path in (target / ".build").iterdir()) == ["model.json"]
        assert not (tmp_path / ".build").exists()


def test_a_cache_that_may_only_be_read(registry: str, tmp_path: Path) -> None:
    with disk(tmp_path / "tiny", "48m") as tiny:
        digest = str(pull(registry, Store(tiny / "cache"), tmp_path / "one").digest)
        subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
        store = Store(tiny / "cache")
        model = published(registry, store, digest, offline=True)
        assert Pulling(store, Silent()).pull(model, tmp_path / "two").moved.fetched == 0
        with Model(model, store) as opened:
            assert numpy.prod(opened.tensor("embed.weight").numpy().shape) == 12 * 256 * 1024
        assert found(tmp_path / "two") == FILES
        pull(registry, store, tmp_path / "three")
        assert found(tmp_path / "three") == FILES


def test_a_cache_of_a_group(registry: str, tmp_path: Path) -> None:
    """What one user began, another one of the group goes on with: all that is no finished file may be written by both."""
    cache = tmp_path / "cache"
    before = os.umask(0o002)
    try:
        with Model(published(registry, Store(cache)), Store(cache)) as model:
            model.tensor("bias").bytes()
    finally:
        os.umask(before)
    modes = {path: path.stat().st_mode & 0o777 for path in cache.rglob("*")}
    assert len([path for path in modes if path.parent.name == "partial"]) == 2
    assert {mode for path, mode in modes.items() if path.is_dir()} == {0o775}
    assert {mode for path, mode in modes.items() if path.parent.name in ("locks", "partial")} == {0o664}


LOCKLESS = """
import ctypes, errno, platform, struct, sys
from pathlib import Path
from builder.cli import main
from builder.models.opening import open_model
from builder.models.placing import How, place
from builder.store import Store

reference, cache = sys.argv[1:]
model = open_model(reference, cache=cache)
files = [file for file in model.files if file.path.endswith(".json")]
assert files and all(model.path(file.path) for file in files)

# from here on the kernel says of each flock what it says on file systems without locks (linux/filter.h, linux/seccomp.h)
steps = [(0x20, 0, 0, 0), (0x15, 0, 1, {"x86_64": 73}.get(platform.machine(), 32)), (6, 0, 0, 0x50000 | errno.ENOLCK)]
code = b"".join(struct.pack("HBBI", *step) for step in [*steps, (6, 0, 0, 0x7FFF0000)])
program = ctypes.create_string_buffer(struct.pack("HP", 4, ctypes.addressof(room := ctypes.create_string_buffer(code))))
libc = ctypes.CDLL(None)
assert not libc.prctl(38, 1, 0, 0, 0) and not libc.prctl(22, 2, program, 0, 0)

place(Store(Path(cache)), model.digest, files, Path("model"), How.AUTO, force=False)
place(Store(Path(cache)), model.digest, files, Path("model"), How.AUTO, force=False)
assert sorted(str(path) for path in Path("model").rglob("*.json")) == sorted(
    ["model/.build/model.json", *(f"model/{file.path}" for file in files)]
)
sys.exit(main.run(["model", "pull", reference, "other", "--cache", cache]))
"""


def test_a_file_system_without_locks(registry: str, tmp_path: Path) -> None:
    """A folder may lie on one; a cache may not, and the error says where it may."""
    command = [sys.executable, "-c", LOCKLESS, f"{registry}/some/image:v1", str(tmp_path / "cache")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert (done.returncode, "its file system has no locks" in done.stderr) == (1, True), done.stderr
    assert "hint: name a place on a local disk" in done.stderr
    assert not (tmp_path / "other").exists()


def test_the_journal_of_another_boot_does_not_count(tmp_path: Path) -> None:
    path = tmp_path / "file"
    with Filling(path, (0, 4, 8)) as filling:
        filling.put(1, memoryview(b"abcd"))
    with Filling(path, (0, 4, 8)) as filling:
        assert filling.missing() == [0]
    head, _, rest = journal_of(path).read_text().partition("\n")
    with Filling(path, (0, 4, 8)) as other:
        seen = other.map()
        journal_of(path).write_text(json.dumps(json.loads(head) | {"boot": "another"}) + "\n" + rest)
        with Filling(path, (0, 4, 8)) as filling:
            assert filling.missing() == [0, 1]
        assert path.read_bytes() == bytes(8)
        assert seen[4:] == b"abcd"  # whoever has the old one in memory is not disturbed
        assert not other.is_current()


def test_processes_see_what_others_bring(tmp_path: Path) -> None:
    with Filling(tmp_path / "file", (0, 4, 8)) as one, Filling(tmp_path / "file", (0, 4, 8)) as other:
        one.put(0, memoryview(b"abcd"))
        assert other.missing() == [0, 1]
        other.refresh()
        assert other.missing() == [1]
        other.put(1, memoryview(b"efgh"))
        one.refresh()
        assert one.complete
        assert one.digest() == Digest.of(b"abcdefgh")


@given(some.binary(max_size=60), some.booleans())
def test_any_journal_is_read(data: bytes, with_head: bool) -> None:
    """Garbage in a journal never makes a chunk of the file that is not one, and never an error."""
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        path = Path(name, "file")
        with Filling(path, (0, 4, 8, 9)) as filling:
            head = journal_of(path).read_bytes()
        journal_of(path).write_bytes((head if with_head else b"") + data)
        with Filling(path, (0, 4, 8, 9)) as filling:
            filling.refresh()
            assert set(filling.missing()) <= {0, 1, 2}
            for chunk in filling.missing():
                start, end = filling.span(chunk)
                filling.put(chunk, memoryview(b"x" * (end - start)))
            assert filling.complete
        with Filling(path, (0, 4, 8, 9)) as filling:
            assert filling.complete or not with_head or not data.endswith(b"\n")


@given(some.one_of(some.binary(max_size=80), some.from_regex(rb'\{"digest":.*"files":.*\}')))
def test_any_marker_is_read(data: bytes) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        (Path(name) / ".build").mkdir()
        (Path(name) / placing.MARKER).write_bytes(data)
        held = placing.held(Path(name))
        assert held is None or set(held) == {"digest", "files"}


def test_a_place_that_is_named_twice_is_remembered_once(registry: str, store: Store) -> None:
    opened: list[object] = []

    def open() -> object:
        opened.append(1)
        return repository(registry, writing=False)

    source = Remembering(store, "x", open)  # type: ignore[arg-type]
    first = Published.open("x", source, "v1")
    again = Published.open("x", source, str(first.digest))
    assert (again.digest, opened) == (first.digest, [1])
