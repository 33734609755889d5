"""Layer caches that lie, break, stall or are not there: no entry of theirs is taken that is not right, and each is named.

The lies, by whoever can write to the repository: a manifest that is none, of something else, too deep, or with a record that is
too large or gone; a record that is unsigned, signed by a stranger, in the name of somebody who is trusted, or changed
since; the right record of another layer; and, with a right signature, numbers, digests, lists, ztocs and blobs that
contradict one another.
"""

from __future__ import annotations

import json
import secrets
import socket
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import faultregistry
import judges
import pytest
from cacheworld import Entry
from faultregistry import always, before
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from registryworld import repository

from builder import lock as locks
from builder import plan as plans
from builder.client import Client
from builder.layercache import entry
from builder.layercache.cache import LayerCache, Pace, Trust
from builder.layercache.entry import LyingCacheError, Record, rows_of
from builder.layercache.keys import SecretKey
from builder.layercache.memory import is_cached
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.packing import Folder, Packer
from builder.parallel import Stop
from builder.places.remote import Remote
from builder.plan import Layer
from builder.progress import Silent
from builder.registry import Keychain, Reference
from builder.settings import Network
from builder.store import Store

CI = SecretKey.generate("ci-1", secrets.token_bytes)
STRANGER = SecretKey.generate("ci-1", secrets.token_bytes)
PATIENT = Pace(slow=5)
QUICK = Network(backoff=0.002, attempts=2, connect_timeout=1, read_timeout=1)


class Notes(Silent):
    def __init__(self) -> None:
        self.lines: list[str] = []

    def note(self, message: str) -> None:
        self.lines.append(message)


@dataclass
class Side:
    """A store with a cache, and what was noted."""

    store: Store
    at: str
    path: str
    plan: plans.Plan
    trust: Trust
    pace: Pace = PATIENT
    notes: Notes = field(default_factory=Notes)

    def cache(self) -> LayerCache:
        def opened(writing: bool, stop: Stop) -> Remote:
            reference = Reference.parse(f"{self.at}/{self.path}")
            return Remote(reference, Client(QUICK), Keychain(), writing=writing, stop=stop)

        return LayerCache(f"{self.at}/{self.path}", opened, self.trust, self.store, self.notes, self.pace)

    @property
    def layers(self) -> list[Layer]:
        return [layer for platform in self.plan.platforms for layer in platform.layers if is_cached(layer)]

    def pull(self) -> str:
        """What was noted."""
        self.cache().pull(self.layers, self.plan.soci)
        return "\n".join(self.notes.lines)

    def there(self) -> list[bool]:
        """Which of the layers are in the store, with all that belongs to them; all of it is right."""
        packer = Packer(self.store.root, Folder(Path()), self.plan.soci)
        found = [packer.known(layer, self.store) for layer in self.layers]
        for built in filter(None, found):
            assert self.store.verify(built.blob.digest)
            assert self.store.verify(built.listing)
            assert built.ztoc is None or self.store.verify(built.ztoc.digest)
        return [built is not None for built in found]


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with judges.registry("docker-registry", tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture
def filled(registry: str, small: Path, world: Any, request: pytest.FixtureRequest) -> Side:
    """A repository of its own, filled by somebody who is trusted."""
    lock = small.with_suffix(".lock.json")
    plan = plans.plan(locks.parse(lock.read_text(), str(lock)))
    path = f"hostile/t{secrets.token_hex(6)}"
    side = Side(Store(world.root / "cache/layerwright"), registry, path, plan, Trust((CI.public,), CI))
    assert side.cache().push(side.layers, plan.soci) == 2
    return side


@pytest.fixture
def mate(filled: Side, tmp_path: Path) -> Side:
    """Somebody with an empty store."""
    return Side(Store(tmp_path / "mate"), filled.at, filled.path, filled.plan, Trust((CI.public,)))


def wheels_of(mate: Side) -> Entry:
    """The entry of the wheels, which has a ztoc."""
    (found,) = (one for one in Entry.all_at(mate.at, mate.path) if one.record["licences"])
    return found


def test_what_is_right_is_taken(mate: Side) -> None:
    assert "2 of 2 missing layers taken" in mate.pull()
    assert mate.there() == [True, True]


def test_two_builds_of_one_machine_download_once(mate: Side) -> None:
    """They share the store: one of them waits for what the other one fetches."""
    with before(mate.at, decide=always({"GET blobs": faultregistry.slow})) as proxy:
        mate.at = proxy.address
        with ThreadPoolExecutor(2) as pool:
            said = list(pool.map(lambda _: mate.pull(), range(2)))
        digests = [layer.record["layer"]["digest"] for layer in Entry.all_at(proxy.upstream, mate.path)]
        asked = [request.path for request in proxy.requests("GET blobs")]
    assert mate.there() == [True, True]
    assert "2 of 2 missing layers taken" in said[0]
    assert [sum(digest in path for path in asked) for digest in digests] == [1, 1]


MANIFESTS: dict[str, Callable[[dict[str, Any]], Any]] = {
    "artifact type": lambda m: m | {"artifactType": "application/x-other"},
    "config of another type": lambda m: m | {"config": m["config"] | {"mediaType": spec.CONFIG}},
    "signature without form": lambda m: m | {"annotations": {entry.SIGNATURE: "ci-1"}},
    "no signature": lambda m: m | {"annotations": {}},
    "another signature": lambda m: m | {"annotations": {entry.SIGNATURE: CI.sign(b"something")}},
    "a stranger in the name of ci-1": lambda m: m | {"annotations": {entry.SIGNATURE: STRANGER.sign(b"x")}},
}


@pytest.mark.parametrize("lie", MANIFESTS)
def test_lying_manifests(lie: str, mate: Side) -> None:
    found = wheels_of(mate)
    found.put_manifest(spec.encode(MANIFESTS[lie](found.manifest)))
    said = mate.pull()
    assert "3 wheels is not taken: " in said
    assert "1 of 2 missing layers taken" in said
    assert sorted(mate.there()) == [False, True]


def test_manifests_that_no_registry_would_take(mate: Side) -> None:
    """They come from a registry that lies itself; the digest that it tells is right."""
    for data in (
        b"",
        b"[]",
        b"nonsense",
        b'{"config":' * 5000,
        b'{"a":"' + b"x" * (5 << 20) + b'"}',
        b'{"config":NaN}',
    ):

        def lie(handler: faultregistry.Handler, _: bytes, data: bytes = data) -> bool:
            handler.reply(faultregistry.Reply(200, {"Content-Type": spec.MANIFEST}, data).sized())
            return True

        with before(mate.at, decide=always({"GET manifests": lie})) as proxy:
            mate.at, at = proxy.address, mate.at
            said = mate.pull()
            mate.at = at
        assert "is not taken" in said or "left alone" in said, data[:20]
        assert mate.there() == [False, False]


def test_a_changed_record_is_not_taken(mate: Side) -> None:
    found = wheels_of(mate)
    found.record["layer"]["tar_size"] += 1
    found.put()  # the old signature stays
    assert "3 wheels is not taken: ci-1 has not signed these bytes" in mate.pull()
    assert sorted(mate.there()) == [False, True]


def test_the_record_of_another_layer_is_not_taken(mate: Side) -> None:
    """It is signed, and the tag is what its owner says."""
    one, other = Entry.all_at(mate.at, mate.path)
    one.put_manifest(spec.encode(one.manifest), other.tag)
    assert "is not taken: it is the entry of another layer" in mate.pull()
    assert sorted(mate.there()) == [False, True]


def _set(*path: Any, to: Any) -> Callable[[Entry], None]:
    def change(found: Entry) -> None:
        place: Any = found.record
        for part in path[:-1]:
            place = place[part]
        place[path[-1]] = to

    return change


def _listing(data: bytes) -> Callable[[Entry], None]:
    def change(found: Entry) -> None:
        found.record["listing"] = {key: found.blob(data)[key] for key in ("digest", "size")}

    return change


def _ztoc(data: bytes) -> Callable[[Entry], None]:
    def change(found: Entry) -> None:
        found.record["ztocs"][0] |= {key: found.blob(data)[key] for key in ("digest", "size")}

    return change


RECORDS: dict[str, tuple[Callable[[Entry], None], str]] = {
    "version": (_set("version", to=2), "its record is of version 2"),
    "key": (_set("key", to="sha256:" + "1" * 64), "the entry of another layer"),
    "digest": (_set("layer", "digest", to="sha256:../../etc"), "not a sha256 digest"),
    "another algorithm": (_set("layer", "diff_id", to="md5:" + "0" * 32), "not a sha256 digest"),
    "negative size": (_set("layer", "size", to=-1), "no size"),
    "true": (_set("layer", "tar_size", to=True), "no size"),
    "fraction": (_set("layer", "size", to=1.5), "no whole number"),
    "text": (_set("layer", "size", to="1"), "no size"),
    "as large as the disk": (_set("layer", "size", to=1 << 45), "more than its inputs can become"),
    "larger than any": (_set("layer", "size", to=1 << 80), "no size"),
    "one byte more": (lambda e: e.record["layer"].update(size=e.record["layer"]["size"] + 1), "3 wheels"),
    "one byte less": (lambda e: e.record["layer"].update(size=e.record["layer"]["size"] - 1), "3 wheels"),
    "no such blob": (_set("layer", "digest", to="sha256:" + "2" * 64), "3 wheels is not taken"),
    "another type": (
        _set("layer", "type", to=spec.LAYER_ZSTD),
        "it is of the type application/vnd.oci.image.layer.v1.tar+zstd",
    ),
    "a table": (_set("layer", "table", to="sha256:" + "3" * 64), "it is of eStargz"),
    "no table": (_set("layer", "table", to=""), "not a sha256 digest"),
    "no type": (_set("layer", "type", to="text/plain"), "'text/plain' is no type of a layer"),
    "no type at all": (_set("layer", "type", to=["x"]), "cannot be read"),
    "no layer": (_set("layer", to=None), "cannot be read"),
    "licences": (_set("licences", to={"x": {"expression": 1}}), "another form"),
    "list too large": (_set("listing", "size", to=entry.MAX_LISTING + 1), "its list of files has"),
    "list is none": (_listing(b'{"a": 1}'), "list of files"),
    "list of other rows": (_listing(b'[["a", "file", 1]]'), "list of files"),
    "list too deep": (_listing(b"[" * 100_000), "list of files"),
    "list of nothing, often": (_listing(b"[" + b"[]," * 6_000_000 + b"[]]"), "too many values"),
    "list of NaN": (_listing(b'[["a", "file", 1, NaN, 2]]'), "list of files"),
    "ztoc": (_ztoc(b"no ztoc at all"), "its ztoc"),
    "empty ztoc": (_ztoc(b"\0"), "its ztoc"),
    "ztoc of other spans": (lambda e: e.record["ztocs"][0].update(spans=e.record["ztocs"][0]["spans"] + 1), "its ztoc"),
}


@pytest.mark.parametrize("lie", RECORDS)
def test_signed_lies(lie: str, mate: Side) -> None:
    """Who is trusted is not believed to be able to count."""
    change, said = RECORDS[lie]
    found = wheels_of(mate)
    change(found)
    found.put(CI)
    notes = mate.pull()
    assert "3 wheels is not taken: " in notes
    assert said in notes
    assert sorted(mate.there()) == [False, True]


def test_a_blob_that_is_gone(mate: Side) -> None:
    """Registries lose blobs: the layer is packed, others are taken."""
    found = wheels_of(mate)
    gone = found.record["layer"]["digest"]

    def lost(handler: faultregistry.Handler, _: bytes) -> bool:
        if gone not in handler.path:
            return False
        handler.reply(faultregistry.Reply(404, {}, b"{}").sized())
        return True

    with before(mate.at, decide=always({"GET blobs": lost})) as proxy:
        mate.at = proxy.address
        assert "3 wheels is not taken" in mate.pull()
    assert sorted(mate.there()) == [False, True]


FAULTS: dict[str, dict[str, faultregistry.Fault]] = {
    "damaged blobs": {"GET blobs": faultregistry.damaged_answer},
    "damaged manifests": {"GET manifests": faultregistry.damaged_answer},
    "cut off": {"GET blobs": faultregistry.truncated},
    "hangs up": {"GET manifests": faultregistry.cut},
    "busy": {"GET manifests": faultregistry.busy(503)},
    "busy for long": {"GET manifests": faultregistry.busy(429, "100")},
    "denied": {"GET manifests": faultregistry.busy(403)},
    "elsewhere": {"GET blobs": faultregistry.elsewhere("127.0.0.1:9")},
    "wrong digest": {"GET manifests": faultregistry.wrong_digest},
    "longer": {"GET blobs": faultregistry.wrong_length(5)},
}


@pytest.mark.parametrize("fault", FAULTS)
def test_caches_that_break(fault: str, mate: Side) -> None:
    """Nothing is taken that is wrong; it is said once for a cache, or once for each layer."""
    mate.pace = Pace(slow=1)
    with before(mate.at, decide=always(FAULTS[fault])) as proxy:
        mate.at = proxy.address
        said = mate.pull()
        assert said.count("left alone") == 1 or said.count("is not taken") == 2, said
        assert mate.there() == [False, False]


def test_a_cache_that_is_not_there(mate: Side, filled: Side) -> None:
    mate.at = filled.at = f"127.0.0.1:{judges.free_port()}"
    assert mate.pull().count("\n") == 0
    assert "left alone from here on: " in mate.notes.lines[0]
    assert filled.cache().push(filled.layers, filled.plan.soci) == 0
    assert "left alone" in filled.notes.lines[-2]


def test_a_cache_that_drips(mate: Side) -> None:
    """A byte now and then is no answer; the build goes on, and what is left of the request disturbs nobody."""
    stop = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as server:

        def drip(connection: socket.socket) -> None:
            with connection:
                connection.recv(65536)
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 4000000\r\n\r\n")
                while not stop.wait(0.05):
                    try:
                        connection.sendall(b" ")
                    except OSError:
                        return

        def accept() -> None:
            while not stop.is_set():
                try:
                    threading.Thread(target=drip, args=(server.accept()[0],), daemon=True).start()
                except OSError:
                    return

        threading.Thread(target=accept, daemon=True).start()
        mate.at = f"127.0.0.1:{server.getsockname()[1]}"
        mate.pace = Pace(slow=0.5)
        try:
            said = mate.pull()
        finally:
            stop.set()
            server.close()
    assert "it is too slow" in said
    assert mate.there() == [False, False]


def test_what_was_down_is_not_asked_again(mate: Side) -> None:
    with before(mate.at, decide=always({"GET manifests": faultregistry.busy(503)})) as proxy:
        mate.at = proxy.address
        cache = mate.cache()
        cache.pull(mate.layers, mate.plan.soci)
        asked = len(proxy.seen)
        cache.pull(mate.layers, mate.plan.soci)
        assert cache.push(mate.layers, mate.plan.soci) == 0
        assert len(proxy.seen) == asked


def test_a_cache_that_takes_nothing(filled: Side) -> None:
    """What cannot be sent is said, and nothing else happens."""
    with before(
        filled.at, decide=always({"POST uploads": faultregistry.busy(403), "PUT uploads": faultregistry.busy(403)})
    ) as proxy:
        filled.at, filled.path = proxy.address, f"{filled.path}/read-only"
        assert filled.cache().push(filled.layers, filled.plan.soci) == 0
    assert "left alone from here on: " in "\n".join(filled.notes.lines)


def test_a_full_disk_is_noted(mate: Side, monkeypatch: pytest.MonkeyPatch) -> None:
    """There is no room for what the cache has: whether there is some for packing, packing finds out."""
    monkeypatch.setattr("builder.layercache.taking.free_bytes", lambda _: 1000)
    assert mate.pull().count("the disk has no room") == 2
    assert mate.there() == [False, False]


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)
GOOD = Record.parse(
    spec.encode(
        {
            "version": 1,
            "key": "sha256:" + "a" * 64,
            "layer": {"digest": "sha256:" + "b" * 64, "size": 5, "diff_id": "sha256:" + "c" * 64, "tar_size": 6},
            "listing": {"digest": "sha256:" + "d" * 64, "size": 7},
            "ztocs": [{"span_size": 4, "digest": "sha256:" + "e" * 64, "size": 8, "spans": 1}],
            "licences": {"f" * 64: {"expression": "MIT", "text": "", "classifiers": []}},
        }
    )
)


def test_records_are_read_as_they_were_written() -> None:
    assert Record.parse(GOOD.encode()) == GOOD


@settings(max_examples=100, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_no_record_surprises(data: st.DataObject) -> None:
    """A value anywhere in it is another one: it is read, or refused with `LyingCacheError`."""
    document = json.loads(GOOD.encode())
    place, key = data.draw(st.sampled_from(list(_places(document))))
    place[key] = data.draw(JSON)
    for read in (Record.parse, entry.record_of, rows_of):
        with suppress(LyingCacheError):
            read(json.dumps(document).encode())


@settings(max_examples=60, deadline=None)
@given(st.binary(max_size=60) | st.text(max_size=60).map(str.encode))
def test_no_bytes_surprise(data: bytes) -> None:
    for read in (Record.parse, entry.record_of, rows_of):
        with suppress(LyingCacheError):
            read(data)
    with pytest.raises(LyingCacheError):
        entry.check(data, data.decode("latin-1"), (CI.public,))


def _places(node: Any) -> Iterator[tuple[Any, Any]]:
    for key, value in list(node.items() if isinstance(node, dict) else enumerate(node)):
        yield node, key
        if isinstance(value, dict | list):
            yield from _places(value)


def test_a_signature_is_of_one_purpose() -> None:
    """The same bytes signed elsewhere, as a NAR's fingerprint may be, are no entry."""
    data = GOOD.encode()
    with pytest.raises(LyingCacheError, match="has not signed these bytes"):
        entry.check(data, CI.sign(data), (CI.public,))


def test_repositories_may_hold_other_things(mate: Side) -> None:
    """Nothing but the tags of keys is looked at."""
    repository(mate.at, mate.path).put_manifest(*_odd())
    assert "2 of 2 missing layers taken" in mate.pull()


def _odd() -> tuple[Any, bytes, str]:
    data = spec.encode({"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": []})
    return Descriptor(spec.INDEX, Digest.of(data), len(data)), data, "latest"
