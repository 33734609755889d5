"""Models are read by the tensor: only what is used is fetched, every byte is checked, and what was fetched is kept."""

from __future__ import annotations

import hashlib
import json
import pickle
import random
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import faultregistry
import modelworld
import numpy
import pytest
from faultregistry import FaultRegistry
from hypothesis import given
from hypothesis import strategies as some
from modelregistry import found, published, push, serving
from registryworld import described, image, repository
from registryworld import push as push_image

from builder.errors import UsageError
from builder.models.cache import Remembering
from builder.models.chunked import WrongModelError
from builder.models.lazy import Model
from builder.models.opening import open_model
from builder.models.pull import Published, Pulling
from builder.models.requests import CONNECTIONS
from builder.models.slices import Index, spans
from builder.models.tensors import NoTypeError
from builder.oci import spec
from builder.progress import Silent
from builder.store import Store

CHANCE = random.Random(5)
WEIGHTS = {f"layer.{number}.weight": ("U32", (2048, 1024), CHANCE.randbytes(8 << 20)) for number in range(4)}
NORMS = {f"layer.{number}.norm": ("U32", (1024,), CHANCE.randbytes(4096)) for number in range(4)}
TENSORS = dict(sorted((WEIGHTS | NORMS | {"odd": ("Q7", (7,), b"seven b")}).items()))
FILES = {
    "config.json": b'{"model_type": "test"}\n',
    "model.safetensors": modelworld.safetensors({name: each for name, each in TENSORS.items() if name != "odd"}),
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with serving(tmp_path_factory.mktemp("registry"), FILES) as address:
        yield address


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "cache")


def moved(state: FaultRegistry) -> int:
    """The bytes that were asked for in ranges."""
    asked = [request.headers["range"] for request in state.requests("GET blobs") if request.headers["range"]]
    bounds = [text.removeprefix("bytes=").split("-") for text in asked]
    return sum(int(end) - int(start) + 1 for start, end in bounds)


def array(name: str) -> numpy.ndarray:
    _, shape, data = TENSORS[name]
    return numpy.frombuffer(data, "uint32").reshape(shape)


def test_a_tensor_is_fetched_alone(way: FaultRegistry, store: Store) -> None:
    with Model(published(way.address, store), store) as model:
        assert model.names("layer.2.*") == ("layer.2.norm", "layer.2.weight")
        tensor = model.tensor("layer.2.weight")
        assert (tensor.dtype, tensor.shape, tensor.nbytes) == ("U32", (2048, 1024), 8 << 20)
        assert moved(way) == 0
        assert numpy.array_equal(tensor.numpy(), array("layer.2.weight"))
        assert moved(way) == 8 << 20
        assert bytes(tensor.bytes()) == TENSORS["layer.2.weight"][2]
        assert not tensor.numpy().flags.writeable
        assert moved(way) == 8 << 20


@pytest.mark.parametrize("elsewhere", [False, True], ids=["here", "elsewhere"])
def test_connections_are_opened_while_the_documents_come(
    elsewhere: bool, way: FaultRegistry, registry: str, tmp_path: Path
) -> None:
    """To where blobs come from, once; and none where the model is known."""
    with faultregistry.before(registry) as store_of_blobs:
        if elsewhere:
            way.decide = lambda request: (
                faultregistry.elsewhere(store_of_blobs.address) if request.what == "GET blobs" else None
            )
        target = store_of_blobs if elsewhere else way
        with open_model(f"{way.address}/some/image:v1", cache=tmp_path) as model:
            deadline = time.monotonic() + 30
            while target.connections < CONNECTIONS and time.monotonic() < deadline:
                time.sleep(0.01)
            opened = target.connections
            assert opened >= CONNECTIONS
            assert numpy.array_equal(model.tensor("layer.1.weight").numpy(), array("layer.1.weight"))
            assert target.connections - opened <= 2, "one may have been taken before all were there"
        before = way.connections + target.connections
        with open_model(f"{way.address}/some/image:v1", cache=tmp_path):
            time.sleep(0.1)
        assert way.connections + target.connections - before <= 2


def test_half_of_every_tensor_is_half_of_the_bytes(way: FaultRegistry, store: Store) -> None:
    with Model(published(way.address, store), store) as model:
        for name in WEIGHTS:
            assert numpy.array_equal(model.tensor(name)[1024:], array(name)[1024:])
    assert moved(way) <= 0.51 * len(FILES["model.safetensors"])


def test_what_was_fetched_is_kept(way: FaultRegistry, store: Store, tmp_path: Path) -> None:
    with Model(published(way.address, store), store) as model:
        model.tensor("layer.0.weight").numpy()
    before = len(way.requests("GET blobs"))
    with Model(published(way.address, store), store) as model:
        assert numpy.array_equal(model.tensor("layer.0.weight").numpy(), array("layer.0.weight"))
        assert len(way.requests("GET blobs")) == before
        pulled = Pulling(store, Silent()).pull(model.published, tmp_path / "model")
        assert pulled.moved.resumed == 8 << 20
        assert pulled.moved.fetched == sum(map(len, FILES.values())) - (8 << 20)
        assert found(tmp_path / "model") == FILES
        before = len(way.requests("GET blobs"))
        for name in WEIGHTS:
            assert numpy.array_equal(model.tensor(name).numpy(), array(name))
        assert len(way.requests("GET blobs")) == before


def test_many_threads_fetch_a_chunk_once(way: FaultRegistry, store: Store) -> None:
    way.decide = lambda request: faultregistry.slow
    with Model(published(way.address, store), store) as model:
        results: list[bool] = []

        def read() -> None:
            results.append(numpy.array_equal(model.tensor("layer.1.weight").numpy(), array("layer.1.weight")))

        threads = [threading.Thread(target=read) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert results == [True] * 8
    assert moved(way) == 8 << 20


def test_processes_fetch_a_chunk_once(way: FaultRegistry, store: Store) -> None:
    """Ranks of one node that begin together share what each of them fetches."""
    way.decide = lambda request: faultregistry.slow
    code = (
        "import sys; from builder.models import open_model\n"
        "model = open_model(sys.argv[1], cache=sys.argv[2]); print(flush=True); sys.stdin.read()\n"
        "import hashlib; print(hashlib.sha256(model.tensor('layer.1.weight').bytes()).hexdigest())"
    )
    command = [sys.executable, "-c", code, f"{way.address}/some/image:v1", str(store.root)]
    pipe = subprocess.PIPE
    ranks = [subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) for _ in range(4)]
    for rank in ranks:
        assert rank.stdout is not None
        rank.stdout.readline()
    for rank in ranks:
        assert rank.stdin is not None
        rank.stdin.close()
        rank.stdin = None
    assert {rank.communicate(timeout=60)[0].strip() for rank in ranks} == {
        hashlib.sha256(TENSORS["layer.1.weight"][2]).hexdigest()
    }
    assert moved(way) == 8 << 20


FORKED = """
import hashlib, os, sys, threading
from builder.models import LazyModel, open_model

def digest(name):
    return hashlib.sha256(model.tensor(name).bytes()).hexdigest()

parent = os.getpid()
model = open_model(sys.argv[1], cache=sys.argv[2])
lazy = LazyModel(lambda: os.getpid() == parent and threading.Event().wait() or digest("layer.1.weight"))
lazy.start()
coming = model.prefetch("layer.1.*")
print(flush=True)
sys.stdin.readline()
children = []
for _ in range(3):
    children.append(os.fork())
    if not children[-1]:
        os.write(1, f"{lazy.get(50)}\\n".encode())
        os.write(1, f"{digest('layer.3.weight')}\\n".encode())
        os._exit(0)
print("forked", flush=True)
assert coming.wait(50)
for child in children:
    os.waitpid(child, 0)
print(digest("layer.1.weight"))
"""


def test_forks_do_not_wait_for_threads_of_their_parent(way: FaultRegistry, store: Store) -> None:
    """Workers of data loaders are forks: a model that is open, and on its way, is good there."""
    began, forked = threading.Event(), threading.Event()

    def hold(handler: faultregistry.Handler, body: bytes) -> bool:
        began.set()
        return not forked.wait(50)

    way.decide = lambda request: hold if request.headers["range"] and not forked.is_set() else None
    command = [sys.executable, "-c", FORKED, f"{way.address}/some/image:v1", str(store.root)]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as program:
        try:
            assert program.stdin is not None
            assert program.stdout is not None
            program.stdout.readline()
            assert began.wait(50)
            print(file=program.stdin, flush=True)
            assert program.stdout.readline() == "forked\n"
            forked.set()
            told, _ = program.communicate(timeout=60)
        finally:
            program.kill()
    digests = {name: hashlib.sha256(TENSORS[f"layer.{name}.weight"][2]).hexdigest() for name in "13"}
    assert sorted(told.split()) == sorted([digests["1"]] * 4 + [digests["3"]] * 3)


def test_forks_have_connections_of_their_own(way: FaultRegistry) -> None:
    code = (
        "import os, sys; from builder.client import Client\n"
        "client = Client(); client.get(sys.argv[1]); child = os.fork()\n"
        "client.get(sys.argv[1]) if not child else os.waitpid(child, 0)"
    )
    subprocess.run([sys.executable, "-c", code, f"http://{way.address}/v2/"], check=True, timeout=60)
    assert (len(way.requests("GET base")), way.connections) == (2, 2)


def test_prefetching(way: FaultRegistry, store: Store) -> None:
    with Model(published(way.address, store), store) as model:
        prefetch = model.prefetch("layer.3.*", "layer.0.norm")
        assert prefetch.wait(30)
        before = len(way.requests("GET blobs"))
        for name in ("layer.3.weight", "layer.3.norm", "layer.0.norm"):
            assert numpy.array_equal(model.tensor(name).numpy(), array(name))
        assert len(way.requests("GET blobs")) == before
        way.decide = faultregistry.always({"GET blobs": faultregistry.damaged_answer})
        with pytest.raises(WrongModelError, match=r"model\.safetensors"):
            model.prefetch("layer.1.*").wait(30)


def test_files_and_folders(way: FaultRegistry, store: Store, tmp_path: Path) -> None:
    with Model(published(way.address, store), store) as model:
        assert [file.path for file in model.files] == sorted(FILES)
        assert model.read("config.json") == FILES["config.json"]
        assert moved(way) == 0
        assert found(model.folder(tmp_path / "model")) == FILES
        with pytest.raises(UsageError) as caught:
            model.read("config.jsn")
        assert caught.value.hint == "did you mean config.json?"
        with pytest.raises(UsageError) as caught:
            model.tensor("layer.0.weigth")
        assert caught.value.hint == "did you mean layer.0.weight?"
        with pytest.raises(TypeError, match="give its reference to the other process"):
            pickle.dumps(model)
    with pytest.raises(UsageError, match="the model is closed"):
        model.tensor("layer.0.weight").bytes()


def test_a_server_without_ranges(way: FaultRegistry, store: Store) -> None:
    way.decide = faultregistry.always({"GET blobs": faultregistry.no_ranges})
    with Model(published(way.address, store), store) as model:
        for name in WEIGHTS:
            assert numpy.array_equal(model.tensor(name).numpy(), array(name))


def test_wrong_bytes_are_never_given(way: FaultRegistry, store: Store) -> None:
    model = Model(published(way.address, store), store)
    way.decide = faultregistry.always({"GET blobs": faultregistry.damaged_answer})
    with pytest.raises(WrongModelError, match="are not those of the model's index"):
        model.tensor("layer.0.weight").numpy()
    way.decide = lambda request: None
    assert numpy.array_equal(model.tensor("layer.0.weight").numpy(), array("layer.0.weight"))


def test_an_artifact_without_index_is_fetched_whole(way: FaultRegistry, store: Store) -> None:
    """What `oras push` makes has nothing that could vouch for a part."""
    pushed = image(FILES["model.safetensors"])
    document = json.loads(pushed.manifest)
    document["layers"][0]["annotations"] = {"org.opencontainers.image.title": "model.safetensors"}
    named = type(pushed)(spec.encode(document), pushed.blobs)
    push_image(repository(way.upstream, "plain"), named, "v1")
    source = Remembering(store, "plain", lambda: repository(way.address, "plain", writing=False))
    with Model(Published.open("plain", source, "v1"), store) as model:
        assert numpy.array_equal(model.tensor("layer.3.weight").numpy(), array("layer.3.weight"))
        assert store.has(described(FILES["model.safetensors"]).digest)


def test_types_without_a_name_in_numpy(way: FaultRegistry, store: Store, tmp_path: Path) -> None:
    data = modelworld.safetensors(
        {"b": ("BF16", (2, 2), bytes(8)), "f": ("F8_E4M3", (3,), b"abc"), "e": ("F32", (0, 4), b"")}
    )
    push(way.upstream, tmp_path / "files", {"m.safetensors": data}, "types")
    with Model(published(way.address, store, "types"), store) as model:
        assert str(model.tensor("b").numpy().dtype) == "bfloat16"
        assert bytes(model.tensor("f").bytes()) == b"abc"
        assert model.tensor("e").numpy().shape == (0, 4)
        odd = model.tensor("f")
        object.__setattr__(odd.tensor, "dtype", "Q4_K")
        with pytest.raises(NoTypeError, match="Q4_K"):
            odd.numpy()


INDICES = some.one_of(
    some.integers(-9, 8),
    some.slices(9),
    some.just(...),
    some.tuples(some.slices(9), some.integers(-3, 2)),
    some.just(()),
)


@given(some.tuples(some.just(9), some.integers(1, 5), some.integers(1, 3)), INDICES)
def test_an_index_needs_just_its_bytes(shape: tuple[int, ...], index: Index) -> None:
    numbers = numpy.arange(int(numpy.prod(shape)), dtype="uint8").reshape(shape)
    try:
        taken = numbers[index]
    except IndexError:
        with pytest.raises(IndexError):
            spans(shape, 8, index)
        return
    covered = {byte for start, end in spans(shape, 8, index) for byte in range(start, end)}
    assert set(taken.ravel().tolist()) <= covered
    if taken.size:
        assert covered <= set(range(int(taken.min()), int(taken.max()) + 1))


@pytest.mark.parametrize("index", [True, (0, True), numpy.array([True] * 4), numpy.array([0, 1]), [0, 1], None])
def test_what_numpy_takes_for_more_than_a_place_is_refused(index: Index) -> None:
    """It would show elements that nobody fetched."""
    with pytest.raises(IndexError, match="made of numbers and slices"):
        spans((4, 4), 8, index)


def test_columns_of_a_wide_matrix_are_separate_stretches() -> None:
    shape = (4, 8 << 20)
    assert spans(shape, 8, (slice(None), slice(0, 10))) == [(row * (8 << 20), row * (8 << 20) + 10) for row in range(4)]
    assert spans((4096, 4096), 16, (slice(None), slice(0, 2048))) == [(0, 2 * 4096 * 4095 + 4096)]


def test_importing_is_cheap() -> None:
    """Programs in images pay for what they use: no HTTP, no numpy, before something is asked for."""
    code = "import builder.models, sys; print(*sorted(set(sys.modules)), sep='\\n')"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"urllib3", "numpy", "click", "yaml", "jinja2", "asyncio", "difflib"} & set(loaded)
