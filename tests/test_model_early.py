"""Large files of a model that are sent while they are hashed: what is sent, what is not, and what goes wrong meanwhile."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import faultregistry as faults
import judges
import modelworld
import pytest
from faultregistry import FaultRegistry, Handler, Reply
from hypothesis import given
from hypothesis import strategies as st
from registryworld import NETWORK, USER, as_stream, described, repository
from world import Done

from builder.client import Client
from builder.errors import BuilderError
from builder.models import early
from builder.models.artifact import open_artifact
from builder.models.early import Early
from builder.oci.content import Outcome
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.oci.spec import Descriptor
from builder.parallel import Stop
from builder.places.delivery import Blob, Delivery, Sink
from builder.places.remote import Remote
from builder.progress import Silent
from builder.registry import DeniedError, Keychain, Reference

NAME = "model.safetensors"
DATA = random.Random(5).randbytes(3 << 20)
"""For what is told of one upload: larger than what a connection takes at once."""


@pytest.fixture(scope="module", params=["docker-registry", "olareg"])
def real(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with judges.registry(request.param, tmp_path_factory.mktemp("registry")) as address:
        yield address


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The least that is sent early, and a small file beside it."""
    folder = tmp_path_factory.mktemp("model") / "m"
    folder.mkdir()
    rows = early.LEAST // 4096
    tensor = random.Random(3).randbytes(1 << 20) * (early.LEAST >> 20)
    (folder / NAME).write_bytes(modelworld.safetensors({"w": ("F32", (rows, 1024), tensor)}))
    (folder / "config.json").write_text("{}\n")
    return folder


def published(home: Path, *arguments: object) -> Done:
    home.mkdir(exist_ok=True)
    return modelworld.inside(["model", "publish", *arguments, "--format", "json"], home, {"HOME": str(home)})


def outcome(done: Done) -> str:
    """What became of the weights."""
    (told,) = done.json["destinations"]
    found: str = {blob["name"]: blob["outcome"] for blob in told["blobs"]}[NAME]
    return found


def sent(proxy: FaultRegistry) -> list[str]:
    """The requests that carry much: what they are, and how many MiB."""
    return [f"{what.split()[0]} {size >> 20}" for what, size in proxy.carried if size > 1 << 20]


def test_sent_once_and_never_again(real: str, weights: Path, tmp_path: Path) -> None:
    """New: while it is hashed. There already, by what a machine that never saw it finds out: not at all."""
    with faults.before(real) as proxy:
        first = published(tmp_path / "a", weights, f"{proxy.address}/early/m:v1")
        assert first.code == 0, first.err
        assert sent(proxy) == ["PATCH 64"]
        assert outcome(first) == "moved"
        found = open_artifact(repository(proxy.address, "early/m", writing=False), "v1")
        assert f"{found.manifest.digest}" == first.json["digest"]
        proxy.seen.clear()
        proxy.carried.clear()
        again = published(tmp_path / "b", weights, f"{proxy.address}/early/m:v1")
        assert again.json["destinations"][0]["moved"] == {"blobs": 0, "bytes": 0}
        assert not proxy.requests("POST uploads")
        other = published(tmp_path / "c", weights, f"{proxy.address}/early/m:v2", "--title", "Other words")
        assert (other.code, sent(proxy)) == (0, [])
        named = published(
            tmp_path / "d", weights, f"{proxy.address}/early/named:v1", "--mount-from", f"{proxy.address}/early/m"
        )
        assert (outcome(named), sent(proxy)) == ("mounted", [])
        assert not proxy.requests("PATCH uploads")
        assert outcome(published(tmp_path / "b", weights, f"{proxy.address}/early/beside:v1")) == "mounted"


FAULTS = {
    "refused": ("PATCH uploads", faults.busy(413), ["PATCH 64", "PUT 64"]),
    "unknown": ("PATCH uploads", faults.busy(405), ["PATCH 64", "PUT 64"]),
    "broken off": ("PATCH uploads", faults.half_sent, ["PATCH 64", "PATCH 32"]),
    "answer lost": ("PATCH uploads", faults.lost_answer, ["PATCH 64"]),
    "upload lost": ("PATCH uploads", faults.lost_session, ["PATCH 64", "PUT 64"]),
    "damaged": ("PATCH uploads", faults.damaged_request, ["PATCH 64", "PUT 64"]),
    "not begun": ("POST uploads", faults.busy(503), ["PUT 64"]),
    "not named": ("PUT uploads", faults.busy(503), ["PATCH 64"]),
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One that says how much of an upload that broke off has arrived; docker-registry does not."""
    with judges.registry("olareg", tmp_path_factory.mktemp("alone")) as address:
        yield address


@pytest.mark.parametrize("fault", FAULTS)
def test_what_goes_wrong_costs_a_second_try(fault: str, registry: str, weights: Path, tmp_path: Path) -> None:
    what, broken, wanted = FAULTS[fault]
    with faults.before(registry, decide=faults.only(what, broken)) as proxy:
        name = f"{proxy.address}/{fault.replace(' ', '-')}/m:v1"
        done = modelworld.inside(
            ["model", "publish", str(weights / NAME), name, "--format", "json"], tmp_path, {"HOME": str(tmp_path)}
        )
        assert done.code == 0, done.err
        assert sent(proxy) == wanted
    assert done.json["destinations"][0]["moved"]["bytes"] > early.LEAST


def test_answers_that_lie(registry: str, tmp_path: Path) -> None:
    """About how much has arrived: too little, too much, nonsense; and about where to go on. It is there in the end, and whole."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    for number, (lie, value) in enumerate(
        [
            ("Range", "0-99"),
            ("Range", f"0-{len(DATA) * 2}"),
            ("Range", "nonsense"),
            ("Range", ""),
            ("Location", "ftp://elsewhere.example/x"),
            ("Location", ""),
        ]
    ):

        def lying(handler: Handler, body: bytes, lie: str = lie, value: str = value) -> bool:
            def change(reply: Reply) -> None:
                reply.headers.update({lie: value})

            handler.forward(body, change)
            return True

        with faults.before(registry, decide=faults.only("PATCH uploads", lying)) as proxy:
            place = repository(proxy.address, f"lies/{number}")
            ahead = place.ahead(path, len(DATA))
            ahead.run(lambda: True)
            assert place.put_blob(described(DATA), lambda: as_stream(DATA), path) is Outcome.MOVED, value
            with place.blob(described(DATA)) as stream:
                assert stream.read() == DATA


def test_a_registry_that_keeps_less_than_it_says(registry: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    path.write_bytes(DATA)

    def keeping_half(handler: Handler, body: bytes) -> bool:
        half = {"content-length": None}
        handler.forward(body[: len(body) // 2], lambda reply: reply.headers.update(Range=f"0-{len(body) - 1}"), **half)
        return True

    with faults.before(registry, decide=faults.only("PATCH uploads", keeping_half)) as proxy:
        place = repository(proxy.address, "lies/half")
        place.ahead(path, len(DATA)).run(lambda: True)
        assert place.put_blob(described(DATA), lambda: as_stream(DATA), path) is Outcome.MOVED
        assert len(proxy.requests("PUT uploads")) == 2


def test_a_file_that_is_written_to_meanwhile(real: str, tmp_path: Path) -> None:
    """Whichever bytes have the digest are stored; none that have another."""
    path = tmp_path / "file"
    place = repository(real, "written")
    for before, then in ((DATA, DATA[::-1]), (DATA[:-1], DATA[:-1][::-1]), (DATA[1:], DATA[1:-9])):
        path.write_bytes(before)
        place.ahead(path, len(then)).run(lambda: True)
        path.write_bytes(then)
        assert place.put_blob(described(then), lambda then=then: as_stream(then), path) is Outcome.MOVED  # type: ignore[misc]
        with place.blob(described(then)) as stream:
            assert stream.read() == then
    path.write_bytes(b"short")
    ahead = place.ahead(path, 1 << 20)
    ahead.run(lambda: True)
    ahead.drop()


def test_what_is_not_wanted_leaves_nothing_behind(tmp_path: Path) -> None:
    """Another error, a blob that was there under a name nothing like it, an interrupt: the registry keeps no half of an upload."""
    bad = tmp_path / "bad.safetensors"
    with bad.open("wb") as file:
        file.write(b"\xff" * 8)
        file.truncate(early.LEAST)
    with judges.registry("docker-registry", tmp_path / "r") as address:
        failed = published(tmp_path / "h", bad, f"{address}/dropped/m:v1")
        assert failed.code == 1
        assert "bad.safetensors" in failed.err

        path = tmp_path / "file"
        path.write_bytes(DATA)
        place = repository(address, "dropped/m")
        place.put_blob(described(DATA), lambda: as_stream(DATA))
        place.ahead(path, len(DATA)).run(lambda: True)
        assert place.put_blob(described(DATA), lambda: as_stream(DATA), path) is Outcome.PRESENT

        large = tmp_path / "large"
        with large.open("wb") as file:
            file.truncate(1 << 30)
        target = Remote(Reference.parse(f"{address}/dropped/large"), Client(NETWORK), Keychain(), writing=True)
        sinks = [Sink("there", target, ("v1",))]
        nobodys = Descriptor("application/octet-stream", Digest("0" * 64), 1 << 30)
        with suppress(KeyboardInterrupt), Early(sinks, 1) as begun, Delivery(sinks, Silent(), 1) as delivery:
            begun.begin(large)
            delivery.offer(Blob(nobodys, lambda: large.open("rb"), large))
            while not list((tmp_path / "r/data").rglob("_uploads/*/data")):
                time.sleep(0.01)
            raise KeyboardInterrupt
        assert not list((tmp_path / "r/data").rglob("_uploads/*/data"))


def test_layouts_and_small_files_wait_for_their_digests(registry: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(early.LEAST)
    target = Remote(Reference.parse(f"{registry}/waiting/m"), Client(NETWORK), Keychain(), writing=True)
    sinks = [Sink("there", target, ("v1",)), Sink("here", Layout(tmp_path / "out"), ("v1",))]
    with Early(sinks, 4) as begun:
        begun.begin(path)
    assert target.sending_since is None
    path.write_bytes(b"small")
    with Early(sinks[:1], 4) as begun:
        begun.begin(path)
    assert target.sending_since is None


def test_no_more_at_once_than_there_are_connections(registry: str, tmp_path: Path) -> None:
    """Files for which there is none wait for their digests; those that cannot be read are left to whoever does."""
    places = [tmp_path / name for name in "abc"]
    for place in places:
        with place.open("wb") as file:
            file.truncate(early.LEAST)
    with faults.before(registry, decide=faults.always({"GET manifests": faults.slow})) as proxy:
        target = Remote(Reference.parse(f"{proxy.address}/waiting/m"), Client(NETWORK), Keychain(), writing=True)
        with Early([Sink("there", target, ("v1",))], 2) as begun:
            begun.begin(tmp_path / "none")
            for place in places:
                begun.begin(place)
            assert [ahead.path for ahead in begun._begun] == places[:2]


def test_tokens_that_wear_out(registry: str, tmp_path: Path) -> None:
    """The bytes are sent again to who asks for another token; what was sent is the blob in the end."""
    path = tmp_path / "file"
    path.write_bytes(DATA)
    for uses in (1, 2, 3):
        with faults.before(registry, users={USER.user: USER.password}, uses=uses) as proxy:
            place = repository(proxy.address, f"tokens/{uses}", credentials=USER)
            place.ahead(path, len(DATA)).run(lambda: True)
            assert place.put_blob(described(DATA), lambda: as_stream(DATA), path) is Outcome.MOVED
            with place.blob(described(DATA)) as stream:
                assert stream.read() == DATA
            assert {what for what, size in proxy.carried if size} == {"PATCH uploads"}
    with faults.before(registry, users={USER.user: "other"}) as proxy:
        place = repository(proxy.address, "tokens/none", credentials=USER)
        place.ahead(path, len(DATA)).run(lambda: True)
        with pytest.raises(DeniedError):
            place.put_blob(described(DATA), lambda: as_stream(DATA), path)
        (tmp_path / "config.json").write_text('{"credsStore": "nobody-has-this"}')
        place = repository(proxy.address, "tokens/none", keychain=Keychain.of({"DOCKER_CONFIG": str(tmp_path)}))
        place.ahead(path, len(DATA)).run(lambda: True)
        with pytest.raises(BuilderError, match="nobody-has-this"):
            place.put_blob(described(DATA), lambda: as_stream(DATA), path)
        assert not [what for what, size in proxy.carried if size]


class Told:
    """A place that says what a test says."""

    def __init__(self, *documents: bytes, tags: tuple[str, ...] = ("v1",)) -> None:
        self._documents = dict(zip(tags, documents, strict=False))

    def find(self, tag: str) -> Descriptor | None:
        return described(self._documents[tag], tag) if tag in self._documents else None

    def tags_like(self, tag: str, count: int) -> list[str]:
        return list(self._documents)[:count]

    def manifest(self, descriptor: Descriptor) -> bytes:
        return self._documents[descriptor.media_type]


def sizes(place: Told, *tags: str) -> frozenset[int] | None:
    return early._sizes(place, tags)  # type: ignore[arg-type] # as much of a place as it asks


anything = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["layers", "size", "digest", "x"]), inner),
    max_leaves=12,
)


@given(st.lists(anything.map(json.dumps).map(str.encode) | st.binary(max_size=40), max_size=3), st.booleans())
def test_manifests_may_say_anything(documents: list[bytes], named: bool) -> None:
    """What cannot be understood is a reason to wait for the digest."""
    place = Told(*documents, tags=("v1", "v2", "v3") if named else ("a", "b", "c"))
    found = sizes(place, "v1")
    assert found is None or isinstance(found, frozenset)


def test_manifests_that_cannot_be_understood_are_a_reason_to_wait() -> None:
    good = json.dumps({"layers": [{"size": 7}, {"size": 9}]}).encode()
    assert sizes(Told(good), "v1") == frozenset({7, 9})
    assert sizes(Told(good), "v2") == frozenset({7, 9})
    assert sizes(Told(), "v1") == frozenset()
    deep = b'{"layers": ' + b"[" * 200_000 + b"]" * 200_000 + b"}"
    for document in (b"[]", b'{"layers": 7}', b'{"layers": [{"size": []}]}', b'{"layers": [7]}', b"{", b"\xff", deep):
        assert sizes(Told(good, document, tags=("v1", "v2")), "v1", "v2") is None, document[:20]


def test_a_place_that_cannot_be_asked_is_a_reason_to_wait(registry: str, tmp_path: Path) -> None:
    path = tmp_path / "file"
    with path.open("wb") as file:
        file.truncate(early.LEAST)
    broken = {"GET manifests": faults.damaged_answer, "GET tags": faults.busy(403)}
    with faults.before(registry, decide=faults.always(broken)) as proxy:
        target = Remote(Reference.parse(f"{proxy.address}/lying/m"), Client(NETWORK), Keychain(), writing=True)
        with Early([Sink("there", target, ("v1",))], 1) as begun:
            begun.begin(path)
            (ahead,) = begun._begun
            assert ahead.taken(lambda _: None, Stop()) is None
        assert not proxy.requests("POST uploads")
