"""Everything that breaks between us and a registry: the data is right afterwards, or the error says what is wrong."""

from __future__ import annotations

import random
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import faultregistry as faults
import judges
import pytest
from faultregistry import Fault, FaultRegistry, Request
from registryworld import NETWORK, USER, as_stream, described, image, pull, push, random_layers, repository

from builder import transfer
from builder.client import NotFoundError, TransientError
from builder.errors import BuilderError, FetchError
from builder.oci.content import Outcome
from builder.parallel import Stop, StoppedError
from builder.registry import DamagedBlobError, DeniedError, WrongBytesError, outgoing, stream, upload
from builder.registry.reference import Reference
from builder.settings import Network


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with judges.registry("docker-registry", tmp_path_factory.mktemp("registry")) as address:
        yield address


def test_what_is_not_there(real: str) -> None:
    with pytest.raises(NotFoundError, match="answered 404") as caught:
        repository(real).resolve("nothing")
    assert "check the repository and the tag" in str(caught.value.hint)


@pytest.fixture(params=["docker-registry", "olareg"])
def each(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[str]:
    with judges.registry(request.param, tmp_path / "registry") as address:
        yield address


@pytest.fixture
def proxy(real: str) -> Iterator[FaultRegistry]:
    with faults.before(real) as state:
        yield state


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is done to gigabytes is done to kilobytes."""
    monkeypatch.setattr(stream, "AHEAD_FROM", 64 << 10)
    monkeypatch.setattr(stream, "PART", 16 << 10)
    monkeypatch.setattr(transfer, "IN_PARTS_FROM", 64 << 10)
    monkeypatch.setattr(transfer, "PART", 16 << 10)
    monkeypatch.setattr(upload, "CHUNK", 48 << 10)
    monkeypatch.setattr(upload, "_SMALLEST_CHUNK", 8 << 10)
    monkeypatch.setattr(outgoing, "PIECE", 8 << 10)


PASSING: dict[str, Fault] = {
    "cut": faults.cut,
    "lost answer": faults.lost_answer,
    "half sent": faults.half_sent,
    "truncated": faults.truncated,
    "408": faults.busy(408),
    "429": faults.busy(429, "0"),
    "500": faults.busy(500),
    "502": faults.busy(502),
    "503": faults.busy(503, "0"),
    "slow": faults.slow,
    "no ranges": faults.no_ranges,
    "damaged answer": faults.damaged_answer,
    "damaged request": faults.damaged_request,
    "short": faults.wrong_length(-1),
    "long": faults.wrong_length(3),
    "wrong digest": faults.wrong_digest,
    "lost session": faults.lost_session,
}


class Chance:
    """Faults for a part of the requests, by chance."""

    def __init__(self, seed: int, state: FaultRegistry, rate: float, others: dict[str, Fault]) -> None:
        self._random = random.Random(seed)
        self._state = state
        self._rate = rate
        self._faults = sorted((PASSING | others).items())
        self._guard = threading.Lock()

    def __call__(self, request: Request) -> Fault | None:
        with self._guard:
            if self._random.random() >= self._rate:
                return None
            name, fault = self._random.choice(self._faults)

        def counted(handler: faults.Handler, body: bytes) -> bool:
            broken = fault(handler, body)
            if broken or name == "slow":
                with self._state.guard:
                    self._state.injected[name] += 1
            return broken

        return faults.cut if fault is faults.cut and self._count("cut") else counted

    def _count(self, name: str) -> bool:
        with self._state.guard:
            self._state.injected[name] += 1
        return True


@pytest.mark.parametrize("kind", ["docker-registry", "olareg"])
def test_three_hundred_faults_and_no_wrong_tag(kind: str, tmp_path: Path) -> None:
    """Push and pull while every third request breaks: the tag is the old image or the new one, whole; a pull is right or
    an error."""
    chance = random.Random(7)
    done = {"pushed": 0, "refused": 0, "pulled": 0, "not pulled": 0}
    injected = 0
    said: list[str] = []
    with judges.registry(kind, tmp_path / "registry") as address:
        direct = repository(address)
        tagged = image(b"the first")
        push(direct, tagged, "tag")
        known = [tagged]
        turn = 0
        while injected < 320:
            turn += 1
            with faults.before(address, users={USER.user: USER.password}, uses=7) as state:
                with faults.before(address, users={"x": "y"}) as other:
                    state.decide = Chance(turn, state, 0.3, {"elsewhere": faults.elsewhere(other.address)})
                    pushed = image(*random_layers(chance, 3, 200 << 10))
                    through = repository(state.address, credentials=USER)
                    try:
                        push(through, pushed, "tag", tmp_path if turn % 2 else None)
                        done["pushed"] += 1
                        tagged = pushed
                        assert direct.tagged("tag") == pushed.descriptor.digest
                    except BuilderError as error:
                        said.append(str(error))
                        done["refused"] += 1
                        assert direct.tagged("tag") in (tagged.descriptor.digest, pushed.descriptor.digest)
                        if direct.tagged("tag") == pushed.descriptor.digest:
                            tagged = pushed
                    assert pull(repository(address), "tag") == tagged
                    known.append(tagged)
                    wanted = chance.choice(known)
                    try:
                        assert (
                            pull(repository(state.address, credentials=USER), str(wanted.descriptor.digest)) == wanted
                        )
                        for descriptor, data in wanted.blobs:
                            repository(state.address, credentials=USER).download(descriptor, tmp_path / "blob")
                            assert (tmp_path / "blob").read_bytes() == data
                        done["pulled"] += 1
                    except BuilderError as error:
                        said.append(str(error))
                        done["not pulled"] += 1
                    assert not any(request.headers.get("authorization") for request in other.seen)
                injected += state.injected.total()
    print(f"\n{kind}: {injected} faults in {turn} turns: {done}")
    assert USER.password not in " ".join(said)
    assert done["pushed"] > turn / 3
    assert done["pulled"] > turn / 10


@pytest.mark.parametrize("fault", [name for name in PASSING if name not in ("slow", "no ranges", "truncated", "short")])
def test_a_push_survives(proxy: FaultRegistry, fault: str, tmp_path: Path) -> None:
    """Each kind of fault at each kind of request of a push, three times in a row."""
    for what in ("HEAD blobs", "POST uploads", "PUT uploads", "PUT manifests"):
        if (fault, what) == ("damaged request", "PUT manifests"):
            continue  # it may be no manifest any longer: an error
        pushed = image(random.Random(f"{fault}{what}").randbytes(100 << 10))
        proxy.decide = faults.only(what, *[PASSING[fault]] * 3)
        push(repository(proxy.address), pushed, "tag", tmp_path)
        assert pull(repository(proxy.upstream), "tag") == pushed


def test_a_broken_upload_goes_on_in_chunks(proxy: FaultRegistry) -> None:
    """Where one request breaks twice, chunks follow; a chunk that breaks goes on from what has arrived."""
    data = random.Random(1).randbytes(400 << 10)
    breaks: dict[str, list[Fault | None]] = {
        "PUT uploads": [faults.half_sent] * 2,
        "PATCH uploads": [None, faults.half_sent, faults.lost_answer],
    }

    def decide(request: Request) -> Fault | None:
        waiting = breaks.get(request.what)
        return waiting.pop(0) if waiting else None

    proxy.decide = decide
    sent: list[int] = []
    target = repository(proxy.address, advance=sent.append)
    assert target.put_blob(described(data), lambda: as_stream(data)) is Outcome.MOVED
    assert sum(sent) == len(data)
    assert len(proxy.requests("PATCH uploads")) > 3
    assert target.has(described(data))


def test_where_a_whole_blob_is_too_much(proxy: FaultRegistry) -> None:
    data = random.Random(2).randbytes(200 << 10)
    proxy.decide = lambda request: faults.too_large(20 << 10)
    target = repository(proxy.address)
    assert target.put_blob(described(data), lambda: as_stream(data)) is Outcome.MOVED
    assert target.has(described(data))


def test_an_upload_is_never_begun_for_what_is_there(real: str) -> None:
    data = b"there already"
    with faults.before(real) as state:
        target = repository(state.address)
        assert target.put_blob(described(data), lambda: as_stream(data)) is Outcome.MOVED
        before = len(state.seen)
        assert target.put_blob(described(data), lambda: as_stream(data)) is Outcome.PRESENT
        assert [request.what for request in state.seen[before:]] == ["HEAD blobs"]


def test_mounts(each: str) -> None:
    data = b"to be mounted"
    repository(each, "one/place").put_blob(described(data), lambda: as_stream(data))
    target = repository(each, "another", mounts=lambda digest: ("not/there", "one/place"))
    assert target.put_blob(described(data), lambda: as_stream(data)) is Outcome.MOUNTED
    nowhere = b"is nowhere"
    assert target.put_blob(described(nowhere), lambda: as_stream(nowhere)) is Outcome.MOVED


def test_a_damaged_blob_of_ours_is_told(real: str) -> None:
    good = random.Random(3).randbytes(50 << 10)
    target = repository(real, network=NETWORK)
    for bad in (good[:-1], good + b"x", b"x" + good[1:]):
        with pytest.raises(DamagedBlobError, match=described(good).digest.hex):
            target.put_blob(described(good), lambda bad=bad: as_stream(bad))  # type: ignore[misc]
    assert not target.has(described(good))


@pytest.mark.parametrize("size", [10 << 10, 300 << 10])
@pytest.mark.parametrize("fault", ["cut", "truncated", "429", "503", "no ranges", "short", "long", "slow"])
def test_a_pull_survives(proxy: FaultRegistry, fault: str, size: int, tmp_path: Path) -> None:
    pushed = image(random.Random(size).randbytes(size))
    push(repository(proxy.upstream), pushed, "tag")
    proxy.decide = faults.only("GET blobs", *[PASSING[fault]] * 3)
    assert pull(repository(proxy.address), "tag") == pushed
    for descriptor, data in pushed.blobs:
        if fault in ("short", "long"):
            continue  # a file of another size than the digest's is an error
        proxy.decide = faults.only("GET blobs", *[PASSING[fault]] * 3)
        repository(proxy.address).download(descriptor, tmp_path / "blob")
        assert (tmp_path / "blob").read_bytes() == data
        assert not (tmp_path / "blob.journal").exists()


@pytest.mark.parametrize("size", [10, 300 << 10])
def test_wrong_bytes_are_refused(proxy: FaultRegistry, size: int, tmp_path: Path) -> None:
    pushed = image(random.Random(size).randbytes(size))
    push(repository(proxy.upstream), pushed, "tag")
    proxy.decide = faults.always({"GET blobs": faults.damaged_answer})
    descriptor = pushed.blobs[1][0]
    source = repository(proxy.address)
    with source.blob(descriptor) as blob, pytest.raises(WrongBytesError, match=descriptor.digest.hex):
        list(iter(lambda: blob.read(1000), b""))
    with pytest.raises(WrongBytesError, match=descriptor.digest.hex):
        source.download(descriptor, tmp_path / "blob")
    assert not (tmp_path / "blob").exists()
    proxy.decide = faults.always({"GET manifests": faults.damaged_answer})
    with pytest.raises(WrongBytesError):
        repository(proxy.address).resolve(str(pushed.descriptor.digest))
    proxy.decide = faults.always({"GET manifests": faults.wrong_digest})
    with pytest.raises(WrongBytesError):
        repository(proxy.address).resolve("tag")


def test_an_interrupted_download_goes_on(proxy: FaultRegistry, tmp_path: Path) -> None:
    data = random.Random(4).randbytes(300 << 10)
    target = repository(proxy.upstream)
    target.put_blob(described(data), lambda: as_stream(data))
    proxy.decide = faults.only("GET blobs", *[None] * 8, *[faults.busy(403)] * 99)
    with pytest.raises(DeniedError):
        repository(proxy.address).download(described(data), tmp_path / "blob")
    assert (tmp_path / "blob.journal").exists()
    proxy.decide = lambda request: None
    before = len(proxy.requests("GET blobs"))
    repository(proxy.address).download(described(data), tmp_path / "blob")
    assert (tmp_path / "blob").read_bytes() == data
    assert 0 < len(proxy.requests("GET blobs")) - before < 19


@pytest.mark.parametrize(
    ("fault", "error"),
    [(faults.busy(401), DeniedError), (faults.busy(403), DeniedError), (faults.busy(418), BuilderError)],
)
def test_no_second_try_where_it_cannot_help(proxy: FaultRegistry, fault: Fault, error: type[Exception]) -> None:
    proxy.decide = faults.always({"GET manifests": fault})
    with pytest.raises(error):
        repository(proxy.address).resolve("tag")
    assert len(proxy.requests("GET manifests")) == 1


def test_it_gives_up_in_the_end(proxy: FaultRegistry) -> None:
    proxy.decide = faults.always({"GET manifests": faults.busy(503)})
    with pytest.raises(TransientError, match="503"):
        repository(proxy.address, network=NETWORK).resolve("tag")
    assert len(proxy.requests("GET manifests")) == NETWORK.attempts


def test_credentials_stay_with_their_registry(proxy: FaultRegistry) -> None:
    """A redirect to a host that asks for credentials, with its own realm, gets none."""
    pushed = image(b"x" * 1000)
    push(repository(proxy.upstream), pushed, "tag")
    proxy.users = {USER.user: USER.password}
    with faults.before(proxy.upstream, users=proxy.users) as other:
        proxy.decide = faults.always({"GET blobs": faults.elsewhere(other.address)})
        source = repository(proxy.address, credentials=USER)
        with pytest.raises(DeniedError) as caught, source.blob(pushed.blobs[1][0]) as blob:
            blob.read()
        assert len(other.seen) == 1
        assert other.seen[0].headers["authorization"] is None
        assert USER.password not in f"{caught.value} {caught.value.__cause__} {caught.value.hint}"
    assert {request.what for request in proxy.seen if "Basic" in request.headers.get("authorization", "")} == {
        "GET token"
    }


@pytest.mark.parametrize("lifetime", [300, None])
def test_tokens_are_renewed(proxy: FaultRegistry, lifetime: int | None, tmp_path: Path) -> None:
    """Tokens that a registry takes three times only: it asks again, and gets a new one."""
    proxy.users, proxy.uses, proxy.lifetime = {USER.user: USER.password}, 3, lifetime
    pushed = image(*random_layers(random.Random(5), 5, 100 << 10))
    push(repository(proxy.address, credentials=USER), pushed, "tag", tmp_path)
    assert pull(repository(proxy.address, credentials=USER), "tag") == pushed
    assert len(proxy.requests("GET token")) > 5


def test_one_token_is_enough(proxy: FaultRegistry, tmp_path: Path) -> None:
    proxy.users = {USER.user: USER.password}
    push(repository(proxy.address, credentials=USER), image(b"a", b"b", b"c"), "tag", tmp_path)
    assert len(proxy.requests("GET token")) == 1


def test_a_wrong_password_is_tried_once(proxy: FaultRegistry) -> None:
    from builder.registry import Credentials

    proxy.users = {USER.user: USER.password}
    with pytest.raises(DeniedError, match="gives the user 'me' no token"):
        repository(proxy.address, credentials=Credentials("me", "wr0ng")).resolve("tag")
    assert len(proxy.requests("GET token")) == 1


def test_identity_tokens(proxy: FaultRegistry) -> None:
    from builder.registry import Credentials

    proxy.users, proxy.identity_token = {"nobody": "nothing"}, "a-refresh-token"
    source = repository(proxy.address, credentials=Credentials(identity_token="a-refresh-token"))
    push(source, image(b"with an identity token"), "tag")
    assert [request.method for request in proxy.seen if "token" in request.what] == ["POST"]
    assert not any("refresh" in request.path for request in proxy.seen)


def test_another_host_needs_plain_http() -> None:
    from builder.client import Client
    from builder.registry.credentials import Keychain
    from builder.registry.session import Session

    reference = Reference.parse("registry.invalid:5000/x/y")
    assert Session(reference, Client(), Keychain()).base == "https://registry.invalid:5000"
    assert Session(reference, Client(), Keychain(), plain_http=True).base == "http://registry.invalid:5000"


def test_a_registry_that_says_nothing() -> None:
    """It takes the connection and never answers: an error in good time, not a wait for ever."""
    with socket.create_server(("127.0.0.1", 0), backlog=32) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        quick = Network(backoff=0.01, attempts=2, connect_timeout=0.3, read_timeout=0.3)
        begun = time.monotonic()
        with pytest.raises(TransientError, match=r"no data for 0\.3 s"):
            repository(address, network=quick).resolve("tag")
        assert time.monotonic() - begun < 10


def test_nobody_is_there() -> None:
    """On this machine that is not going to change: nobody waits, and asks again."""
    with socket.create_server(("127.0.0.1", 0)) as probe:
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    with pytest.raises(FetchError, match="Connection refused") as caught:
        repository(address, network=replace(NETWORK, attempts=6, backoff=60.0)).resolve("tag")
    assert caught.value.hint == "start the registry, or correct its address"


def test_work_that_is_stopped(proxy: FaultRegistry) -> None:
    data = random.Random(6).randbytes(300 << 10)
    stop = Stop()
    sent: list[int] = []

    def advance(count: int) -> None:
        sent.append(count)
        stop.set()

    target = repository(proxy.address, stop=stop, advance=advance)
    with pytest.raises(StoppedError):
        target.put_blob(described(data), lambda: as_stream(data))
    assert sum(sent) == 0
    assert not repository(proxy.upstream).has(described(data))


def test_referrers_that_several_write_at_once(proxy: FaultRegistry) -> None:
    """The tag that replaces the API of referrers is read, changed and written again: none of one program's gets lost."""
    subject = image(b"subject of many")
    target = repository(proxy.address)
    push(target, subject, "tag")
    signatures = [image(bytes([number]), subject=subject.descriptor) for number in range(8)]
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda signature: push(target, signature), signatures))
    listed = {found.digest for found in target.referrers(subject.descriptor.digest)}
    assert listed == {signature.descriptor.digest for signature in signatures}


def test_through_a_proxy_of_the_environment(proxy: FaultRegistry) -> None:
    """A registry elsewhere is reached through the proxy; one on this machine never is."""
    network = Network.of({"http_proxy": f"http://{proxy.address}"})
    push(repository(proxy.upstream), image(b"direct"), "direct")
    pull(repository(proxy.upstream, network=network), "direct")
    assert proxy.seen == []
    repository("registry.invalid", network=network, plain_http=True).tagged("x")
    assert [request.path for request in proxy.seen] == ["http://registry.invalid/v2/some/image/manifests/x"]
