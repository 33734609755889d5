from __future__ import annotations

import hashlib
import json
import os
import random
import shutil
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import faultserver
import pytest
from faultserver import Fault, FaultServer, Handler, serving

from builder.cli.context import now_and_then
from builder.client import NotFoundError, redact
from builder.errors import BuilderError, FetchError, OfflineError, StoreError
from builder.fetch import Client, Fetcher
from builder.lock import LockedFile
from builder.oci.digest import Digest
from builder.progress import Silent
from builder.settings import Network
from builder.store import Store
from builder.store.collect import usage
from builder.transfer import PART

QUICK = Network(backoff=0.001, connect_timeout=5, read_timeout=5)
SMALL = random.Random(1).randbytes(100_000)
DATE = "Wed, 21 Oct 2015 07:28:00 GMT"
BIG = random.Random(2).randbytes(2 * PART + 5_000_000)


@dataclass
class At:
    """Origins that find every file at the same addresses."""

    places: tuple[str, ...]
    asked: list[str] = field(default_factory=list)

    def urls(self, file: LockedFile) -> Iterator[str]:
        for place in self.places:
            self.asked.append(place)
            yield place + file.path


class Counting(Silent):
    """Progress that adds up."""

    def __init__(self) -> None:
        self.total = 0
        self.done = 0

    def task(self, label: str, total: int | None = None, unit: str = "B") -> Counting:
        self.total = total or 0
        return self

    def __enter__(self) -> Counting:
        return self

    def __exit__(self, *error: object) -> None:
        return None

    def advance(self, amount: int) -> None:
        self.done += amount


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with serving() as server:
        server.files = {"/small": SMALL, "/big": BIG}
        yield server


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


def locked(name: str, data: bytes) -> LockedFile:
    return LockedFile("origin", f"/{name}", hashlib.sha256(data).hexdigest(), len(data))


def fetcher(store: Store, *places: str, jobs: int = 4, network: Network = QUICK, offline: bool = False) -> Fetcher:
    return Fetcher(store, At(places), Client(network), Silent(), offline=offline, jobs=jobs)


def nothing_half(store: Store) -> bool:
    """Whether all that is left is whole, or can be resumed."""
    used = usage(store)
    journals = {path.stem for path in (store.root / "partial").glob("*.journal")}
    partial = {path.name for path in (store.root / "partial").iterdir() if path.suffix != ".journal"}
    return used.temporary == 0 and partial == journals


FILES = {"small": SMALL, "big": BIG}
both = pytest.mark.parametrize("name", ["small", "big"])


@both
def test_a_file_arrives(store: Store, server: FaultServer, name: str) -> None:
    file = locked(name, FILES[name])
    progress = Counting()
    Fetcher(store, At((server.url(""),)), Client(QUICK), progress).ensure([file, file])
    assert store.verify(file.digest)
    assert progress.done == progress.total == file.size
    assert usage(store).partial == usage(store).temporary == 0
    seen = len(server.seen)
    fetcher(store, server.url("")).ensure([file])
    assert len(server.seen) == seen, "what is there is not asked for"


def test_a_big_file_comes_in_parts(store: Store, server: FaultServer) -> None:
    fetcher(store, server.url("")).ensure([locked("big", BIG)])
    ranges = sorted(seen.range or "" for seen in server.seen)
    assert ranges == sorted([f"bytes=0-{PART - 1}", f"bytes={PART}-{2 * PART - 1}", f"bytes={2 * PART}-{len(BIG) - 1}"])


def test_an_empty_file(store: Store, server: FaultServer) -> None:
    server.files["/empty"] = b""
    fetcher(store, server.url("")).ensure([locked("empty", b"")])
    assert store.read(Digest.of(b"")) == b""


def test_many_files_at_once(store: Store, server: FaultServer) -> None:
    files = {f"/{number}": random.Random(number).randbytes(1000 + number) for number in range(100)}
    server.files |= files
    fetcher(store, server.url(""), jobs=8).ensure([locked(name[1:], data) for name, data in files.items()])
    assert usage(store).objects == 100
    assert len(server.seen) == 100


HEALED: dict[str, list[Fault]] = {
    "a drop in the middle": [faultserver.drop(1000)],
    "many drops": [faultserver.drop(7000)] * 10,
    "a drop before the first byte": [faultserver.drop(0)] * 3,
    "a drop, then no ranges": [faultserver.drop(1000), faultserver.no_ranges],
    "an early end": [faultserver.ends_early],
    "a burst of 503": [faultserver.status(503)] * 4,
    "429 with Retry-After": [faultserver.status(429, {"retry-after": "0"})] * 2,
    "429 with a date": [
        faultserver.status(
            429, {"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT", "date": "Wed, 21 Oct 2015 07:28:00 GMT"}
        )
    ],
    "408 and 500": [faultserver.status(408), faultserver.status(500)],
    "a wrong range": [faultserver.wrong_range, faultserver.wrong_range],
}


@both
@pytest.mark.parametrize("faults", HEALED.values(), ids=HEALED)
def test_a_passing_fault_is_healed(store: Store, server: FaultServer, name: str, faults: list[Fault]) -> None:
    server.faults[f"/{name}"] = list(faults)
    file = locked(name, FILES[name])
    progress = Counting()
    Fetcher(store, At((server.url(""),)), Client(QUICK), progress).ensure([file])
    assert store.verify(file.digest)
    assert progress.done == file.size
    assert nothing_half(store)


def test_a_broken_download_goes_on_where_it_broke(store: Store, server: FaultServer) -> None:
    server.faults["/small"] = [faultserver.drop(60_000)]
    fetcher(store, server.url("")).ensure([locked("small", SMALL)])
    assert [seen.range for seen in server.seen] == [None, f"bytes=60000-{len(SMALL) - 1}"]


@pytest.mark.parametrize("fault", [faultserver.no_ranges, faultserver.wrong_range])
def test_a_server_without_ranges_gives_one_stream(store: Store, server: FaultServer, fault: Fault) -> None:
    server.always["/big"] = fault
    file = locked("big", BIG)
    fetcher(store, server.url("")).ensure([file])
    assert store.verify(file.digest)
    assert server.seen[-1].range is None


def test_a_file_that_changes_meanwhile_is_fetched_again(store: Store, server: FaultServer) -> None:
    old = bytes(len(BIG))

    def before(handler: Handler, data: bytes) -> None:
        handler.server.state.etags["/big"] = '"old"'
        faultserver.well(handler, old)
        handler.server.state.etags["/big"] = '"new"'

    server.faults["/big"] = [before]
    file = locked("big", BIG)
    fetcher(store, server.url("")).ensure([file])
    assert store.verify(file.digest)


REFUSED: dict[str, tuple[Fault, str]] = {
    "other bytes": (
        faultserver.instead(bytes(len(SMALL))),
        r"are not those of the lock: expected sha256:.*, got sha256:",
    ),
    "fewer bytes": (faultserver.instead(SMALL[:-1]), "has 99999 bytes, the lock says 100000"),
    "more bytes": (faultserver.instead(SMALL + b"!"), "has 100001 bytes, the lock says 100000"),
    "bytes without end": (faultserver.endless, "larger than the 100000 bytes of the lock"),
    "not there": (faultserver.status(404), "answered 404"),
    "forbidden": (faultserver.status(403), "answered 403"),
    "always busy": (faultserver.status(503), "answered 503"),
    "come back tomorrow": (faultserver.status(429, {"retry-after": "86400"}), "answered 429"),
    "always ends early": (faultserver.ends_early, "too early"),
    "a circle": (faultserver.redirect("/small"), "redirects"),
}


@pytest.mark.parametrize(("fault", "message"), REFUSED.values(), ids=REFUSED)
def test_a_lasting_fault_is_told_and_the_next_place_tried(
    store: Store, server: FaultServer, fault: Fault, message: str
) -> None:
    server.always["/small"] = fault
    file = locked("small", SMALL)
    with pytest.raises(FetchError, match=message) as caught:
        fetcher(store, server.url("")).ensure([file])
    assert "/small (of origin, 100.0 kB): no place gave it:\n  http://" in str(caught.value)
    assert caught.value.hint
    assert usage(store).objects == usage(store).partial == usage(store).temporary == 0
    server.files["/good/small"] = SMALL
    progress = Counting()
    Fetcher(store, At((server.url(""), server.url("/good"))), Client(QUICK), progress).ensure([file])
    assert store.verify(file.digest)
    assert progress.done == file.size


@pytest.mark.parametrize("code", [401, 403, 404])
def test_a_clear_no_is_not_asked_again(store: Store, server: FaultServer, code: int) -> None:
    server.always["/small"] = faultserver.status(code)
    with pytest.raises(FetchError):
        fetcher(store, server.url("")).ensure([locked("small", SMALL)])
    assert len(server.seen) == 1


def test_a_big_file_of_other_bytes(store: Store, server: FaultServer) -> None:
    server.always["/big"] = faultserver.instead(bytes(len(BIG)))
    with pytest.raises(FetchError, match="are not those of the lock"):
        fetcher(store, server.url("")).ensure([locked("big", BIG)])
    assert usage(store).objects == usage(store).partial == 0


def test_parts_of_a_bad_place_do_not_spoil_a_good_one(store: Store, server: FaultServer) -> None:
    def bad(handler: Handler, data: bytes) -> None:
        asked = handler.asked(data)
        if asked and asked[0] == 0:
            faultserver.well_as(handler, bytes(len(BIG)))
        else:
            handler.answer(403)

    server.always["/bad/big"] = bad
    file = locked("big", BIG)
    fetcher(store, server.url("/bad"), server.url("")).ensure([file])
    assert store.verify(file.digest)


def test_other_places_are_found_out_only_when_needed(store: Store, server: FaultServer) -> None:
    origins = At((server.url(""), server.url("/other")))
    Fetcher(store, origins, Client(QUICK), Silent()).ensure([locked("small", SMALL)])
    assert origins.asked == [server.url("")]


def test_an_origin_that_cannot_be_asked_is_told(store: Store) -> None:
    class Unknown:
        def urls(self, file: LockedFile) -> Iterable[str]:
            raise FetchError("the index is on fire")

    with pytest.raises(FetchError, match="the index is on fire"):
        Fetcher(store, Unknown(), Client(QUICK), Silent()).ensure([locked("small", SMALL)])


def test_no_place_at_all(store: Store) -> None:
    with pytest.raises(FetchError, match="no place is configured") as caught:
        fetcher(store).ensure([locked("small", SMALL)])
    assert "doctor" in str(caught.value.hint)


def test_a_bug_keeps_its_traceback(store: Store) -> None:
    class Buggy:
        def urls(self, file: LockedFile) -> Iterable[str]:
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        Fetcher(store, Buggy(), Client(QUICK), Silent()).ensure([locked("small", SMALL)])


def test_a_damaged_object_is_fetched_again(store: Store, server: FaultServer) -> None:
    file = locked("small", SMALL)
    store.put(SMALL)
    store.path(file.digest).chmod(0o644)
    store.path(file.digest).write_bytes(SMALL[:10])
    fetcher(store, server.url("")).ensure([file])
    assert store.verify(file.digest)


def test_offline_names_everything_that_is_missing(store: Store, server: FaultServer) -> None:
    there = locked("there", b"there")
    store.put(b"there")
    with pytest.raises(OfflineError) as caught:
        fetcher(store, server.url(""), offline=True).ensure([locked("small", SMALL), there, locked("big", BIG)])
    assert str(caught.value).splitlines() == [
        "2 files (38.7 MB) are not in the store, and --offline forbids fetching them:",
        "  origin: /big (38.6 MB)",
        "  origin: /small (100.0 kB)",
    ]
    assert server.seen == []
    fetcher(store, server.url(""), offline=True).ensure([there])


def mirrored(store: Store, server: FaultServer, *mirrors: str, offline: bool = False) -> Fetcher:
    return Fetcher(store, At((server.url(""),)), Client(QUICK), Silent(), mirrors=mirrors, offline=offline)


def test_a_mirror_comes_before_the_origin(store: Store, server: FaultServer) -> None:
    file = locked("small", SMALL)
    server.files[f"/cache/sha256/{file.sha256}"] = SMALL
    mirrored(store, server, server.url("/cache/")).ensure([file])
    assert [seen.path for seen in server.seen] == [f"/cache/sha256/{file.sha256}"]


@pytest.mark.parametrize("offline", [False, True])
@pytest.mark.parametrize("form", ["flat", "store", "url"])
def test_a_folder_is_a_mirror_even_offline(
    store: Store, server: FaultServer, tmp_path: Path, form: str, offline: bool
) -> None:
    file = locked("small", SMALL)
    if form == "flat":
        (tmp_path / "m m/sha256").mkdir(parents=True)
        (tmp_path / "m m/sha256" / file.sha256).write_bytes(SMALL)
    else:
        Store(tmp_path / "m m").put(SMALL)
    mirror = (tmp_path / "m m").as_uri() if form == "url" else str(tmp_path / "m m")
    mirrored(store, server, "/nowhere", mirror, offline=offline).ensure([file])
    assert store.verify(file.digest)
    assert server.seen == []


def test_a_mirror_that_does_not_answer_is_asked_once(store: Store, server: FaultServer) -> None:
    """And so is the first of two addresses of an origin: the others do not wait for it."""
    files = [locked(str(number), bytes([number]) * 1000) for number in range(5)]
    for number, file in enumerate(files):
        server.files[f"/{number}"] = bytes([number]) * 1000
        assert file.path == f"/{number}"
    for dead, places, waits in (
        (("http://127.0.0.1:9/m",), (server.url(""),), 1),
        ((), ("http://127.0.0.1:9", server.url("")), QUICK.attempts - 1),
    ):
        waited: list[str] = []
        client = Client(replace(QUICK, no_proxy=("127.0.0.1",)), waited.append)
        Fetcher(store, At(places), client, Silent(), jobs=1, mirrors=dead).ensure(files)
        assert len(waited) == waits
        assert all(store.verify(file.digest) for file in files)
        shutil.rmtree(store.root)


def test_the_only_place_is_asked_again_although_it_was_silent(store: Store, server: FaultServer) -> None:
    server.files |= {"/small": SMALL, "/other": b"other"}
    server.faults["/small"] = [faultserver.status(503)] * QUICK.attempts
    fetching = fetcher(store, server.url(""))
    with pytest.raises(FetchError, match="answered 503"):
        fetching.ensure([locked("small", SMALL)])
    fetching.ensure([locked("other", b"other"), locked("small", SMALL)])


@pytest.mark.parametrize("data", [b"", SMALL[:-1], SMALL + b"!", bytes(len(SMALL))])
def test_a_bad_mirror_is_passed_over(store: Store, server: FaultServer, tmp_path: Path, data: bytes) -> None:
    file = locked("small", SMALL)
    (tmp_path / "mirror/sha256").mkdir(parents=True)
    (tmp_path / "mirror/sha256" / file.sha256).write_bytes(data)
    server.files[f"/cache/sha256/{file.sha256}"] = data
    mirrored(store, server, str(tmp_path / "mirror"), server.url("/cache")).ensure([file])
    assert store.verify(file.digest)


def test_secrets_are_not_shown(store: Store, server: FaultServer) -> None:
    place = server.url("").replace("http://", "http://user:secret@")
    server.always["/small"] = faultserver.status(401)
    with pytest.raises(FetchError, match="answered 401") as caught:
        fetcher(store, place, place + "/a?token=secret&path=").ensure([locked("small", SMALL)])
    assert "secret" not in str(caught.value)
    assert redact("https://a:b@c.example:1/p?q#f") == "https://c.example:1/p?…"


def test_credentials_go_to_their_host_only(store: Store, server: FaultServer) -> None:
    with serving() as other:
        other.files["/elsewhere"] = SMALL
        server.files["/here"] = SMALL
        server.always["/small"] = faultserver.redirect("/here")
        server.always["/here"] = faultserver.redirect(other.url("/elsewhere"))
        fetcher(store, server.url("").replace("http://", "http://user:secret@")).ensure([locked("small", SMALL)])
        assert [seen.headers.get("authorization") for seen in server.seen] == ["Basic dXNlcjpzZWNyZXQ="] * 2
        assert [seen.headers.get("authorization") for seen in other.seen] == [None]
        headers = {"Authorization": "Bearer secret", "Cookie": "secret", "Accept": "x"}
        assert Client(QUICK).get(server.url("/small"), headers=headers) == SMALL
        last = other.seen[-1].headers
        assert (last.get("authorization"), last.get("cookie"), last.get("accept")) == (None, None, "x")


def test_bytes_are_asked_for_as_they_are(store: Store, server: FaultServer) -> None:
    fetcher(store, server.url("")).ensure([locked("small", SMALL)])
    assert server.seen[0].headers.get_all("accept-encoding") == ["identity"]


def test_get(server: FaultServer, tmp_path: Path) -> None:
    client = Client(QUICK)
    server.faults["/small"] = [faultserver.status(503), faultserver.drop(10)]
    assert client.get(server.url("/small")) == SMALL
    with pytest.raises(NotFoundError):
        client.get(server.url("/gone"))
    with pytest.raises(FetchError, match="larger than 1000 bytes"):
        client.get(server.url("/small"), limit=1000)
    server.always["/small"] = faultserver.endless
    with pytest.raises(FetchError, match="larger than 200000 bytes"):
        client.get(server.url("/small"), limit=200_000)
    (tmp_path / "a b").write_bytes(b"file")
    assert client.get((tmp_path / "a b").as_uri()) == b"file"
    with pytest.raises(FetchError, match="larger than 3 bytes"):
        client.get((tmp_path / "a b").as_uri(), limit=3)
    with pytest.raises(NotFoundError):
        client.get((tmp_path / "none").as_uri())


@pytest.mark.parametrize(
    "url", ["ftp://host.example/x", "http://", "http://[::1", "http://a:b:c/", "x", "http://h:99999/"]
)
def test_an_address_that_cannot_be_asked(url: str) -> None:
    with pytest.raises(FetchError):
        Client(replace(QUICK, attempts=1)).get(url)


def test_nobody_listens(store: Store) -> None:
    with serving() as server:
        gone = server.url("")
    with pytest.raises(FetchError, match="Connection refused"):
        fetcher(store, gone).ensure([locked("small", SMALL)])


def test_a_silent_server(store: Store, server: FaultServer) -> None:
    server.always["/small"] = faultserver.slow(0.5, 1000)
    with pytest.raises(FetchError, match=r"no data for 0\.1 s"):
        fetcher(store, server.url(""), network=replace(QUICK, read_timeout=0.1, attempts=1)).ensure(
            [locked("small", SMALL)]
        )


@pytest.mark.parametrize(
    "proxy", ["foo:bar:baz", "foo:0", "http://", ":80", "http://u:secret@foo:99999", "socks5://foo:1"]
)
def test_what_is_no_proxy_is_named(proxy: str) -> None:
    with pytest.raises(FetchError, match=r"not the address of a proxy|a socks5 proxy cannot be used") as caught:
        Client(replace(QUICK, http_proxy=proxy)).get("http://host.invalid/x")
    assert "host.invalid" not in str(caught.value)
    assert "secret" not in str(caught.value)
    assert "HTTPS_PROXY" in str(caught.value.hint)


def test_a_proxy_is_used_unless_the_host_is_exempt(server: FaultServer) -> None:
    proxy = server.url("").replace("http://", "http://user:secret@")
    server.files["http://files.example:81/small"] = b"through the proxy"
    through = Network.of({"http_proxy": proxy, "https_proxy": proxy, "no_proxy": "127.0.0.0/8,.internal.example"})
    client = Client(replace(through, backoff=0.001, attempts=2))
    assert client.get("http://files.example:81/small") == b"through the proxy"
    assert server.seen[-1].headers["proxy-authorization"] == "Basic dXNlcjpzZWNyZXQ="
    assert client.get(server.url("/small")) == SMALL
    with pytest.raises(FetchError, match="the proxy gives no connection: Tunnel connection failed: 502") as caught:
        client.get("https://files.example/small")
    assert "secret" not in str(caught.value)
    assert server.seen[-1].path == "files.example:443"


@contextmanager
def encrypted(server: FaultServer, folder: Path) -> Iterator[tuple[FaultServer, str, Path]]:
    """A server behind TLS with the same files, its address, and the certificate that it shows."""
    openssl = shutil.which("openssl")
    if not openssl:
        pytest.skip("openssl makes the certificate")
    argv = [openssl, "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", f"{folder}/key.pem"]
    names += ["-out", f"{folder}/cert.pem"]
    subprocess.run([*argv, *names], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "cert.pem", folder / "key.pem")
    with serving(context) as secure:
        secure.files = server.files
        yield secure, secure.url("").replace("http://", "https://"), folder / "cert.pem"


def test_a_certificate_is_checked(server: FaultServer, tmp_path: Path, store: Store) -> None:
    with encrypted(server, tmp_path) as (_, url, certificate):
        trusting = replace(QUICK, ca_file=certificate)
        assert Client(trusting).get(f"{url}/small") == SMALL
        server.always["/small"] = faultserver.redirect(f"{url}/small")
        assert Client(trusting).get(server.url("/small")) == SMALL
        with pytest.raises(FetchError, match="certificate is not trusted") as caught:
            Client(QUICK).get(f"{url}/small")
        assert "SSL_CERT_FILE" in str(caught.value.hint)
    with pytest.raises(FetchError, match="no such file of certificates"):
        Client(replace(QUICK, ca_file=tmp_path / "none")).get(server.url("/small"))


def test_an_encrypted_place_may_not_lead_to_an_open_one(server: FaultServer, tmp_path: Path) -> None:
    with encrypted(server, tmp_path) as (secure, url, certificate):
        secure.always["/small"] = faultserver.redirect(server.url("/small"))
        with pytest.raises(FetchError, match="unencrypted"):
            Client(replace(QUICK, ca_file=certificate)).get(f"{url}/small")
    assert server.seen == []


CHILD = """
import json, os, sys
from pathlib import Path
from builder.fetch import Client, Fetcher
from builder.lock import LockedFile
from builder.settings import Network
from builder.store import Store

class Origins:
    def urls(self, file):
        return [sys.argv[2] + file.path]

class Loud:
    def task(self, *_): return self
    def __enter__(self): return self
    def __exit__(self, *_): return None
    def advance(self, amount): os.write(1, b"%d\\n" % amount)

files = [LockedFile(**file) for file in json.loads(sys.argv[3])]
Fetcher(Store(Path(sys.argv[1])), Origins(), Client(Network(backoff=0.001)), Loud()).ensure(files)
"""


def child(store: Store, server: FaultServer, *files: LockedFile) -> subprocess.Popen[bytes]:
    described = json.dumps([vars(file) for file in files])
    argv = [sys.executable, "-c", CHILD, str(store.root), server.url(""), described]
    return subprocess.Popen(argv, stdout=subprocess.PIPE, stderr=subprocess.PIPE)


@pytest.mark.parametrize("seed", range(3))
def test_a_killed_download_goes_on_where_it_was(store: Store, server: FaultServer, seed: int) -> None:
    chance = random.Random(seed)
    data = chance.randbytes(7 * PART + 12_345)
    server.files["/huge"] = data
    file = locked("huge", data)
    finished: set[int] = set()
    for _ in range(5):
        enough = chance.randrange(1, 4 * PART)
        before = len(server.seen)
        process = child(store, server, file)
        assert process.stdout is not None
        received = 0
        for line in process.stdout:
            received += int(line)
            if received > enough + len(finished) * PART:
                break
        process.kill()
        process.communicate()
        asked = {int((seen.range or "").removeprefix("bytes=").partition("-")[0]) for seen in server.seen[before:]}
        assert not asked & {part * PART for part in finished}, "what was complete is not fetched again"
        journal = store.partial(file.digest).with_suffix(".journal")
        finished = {int(line) for line in journal.read_bytes().split(b"\n")[1:-1]} if journal.exists() else set()
        if store.has(file.digest):
            break
    progress = Counting()
    Fetcher(store, At((server.url(""),)), Client(QUICK), progress).ensure([file])
    assert store.verify(file.digest)
    assert nothing_half(store)


def test_bytes_lost_by_the_disk_are_found_out(store: Store, server: FaultServer) -> None:
    """A journal may say more than a disk kept, after a power cut: the digest tells, and all is fetched again."""
    file = locked("big", BIG)
    server.always["/big"] = lambda handler, data: (
        faultserver.well(handler, data) if handler.asked(data) == (0, PART) else handler.answer(403)
    )
    with pytest.raises(FetchError):
        fetcher(store, server.url("")).ensure([file])
    partial = store.partial(file.digest)
    with partial.open("r+b") as damaged:
        damaged.write(bytes(100))
    del server.always["/big"]
    fetcher(store, server.url("")).ensure([file])
    assert store.verify(file.digest)


@pytest.mark.parametrize("journal", [b"", b"\n", b"[]\n1\n", b'{"part":1,"size":2}\n0\n', b"\xff\n0\n", b"{}\nx\n"])
def test_a_damaged_journal_is_no_journal(store: Store, server: FaultServer, journal: bytes) -> None:
    file = locked("big", BIG)
    partial = store.partial(file.digest)
    partial.write_bytes(bytes(len(BIG)))
    partial.with_suffix(".journal").write_bytes(journal)
    fetcher(store, server.url("")).ensure([file])
    assert store.verify(file.digest)
    assert list((store.root / "partial").iterdir()) == []


def test_two_processes_fetch_a_file_once(store: Store, server: FaultServer) -> None:
    server.always["/small"] = faultserver.slow(0.01, 10_000)
    files = [locked("small", SMALL), locked("big", BIG)]
    processes = [child(store, server, *files) for _ in range(3)]
    everything = sum(file.size for file in files)
    for process in processes:
        output, errors = process.communicate()
        assert process.returncode == 0, errors.decode()
        assert sum(map(int, output.split())) <= everything  # files may be there before the last one begins
    assert len(server.requests("/small")) == 1
    assert len(server.requests("/big")) == 3
    assert all(store.verify(file.digest) for file in files)


def test_an_interrupt_leaves_what_can_be_resumed(store: Store, server: FaultServer) -> None:
    def interrupted(handler: Handler, data: bytes) -> None:
        if handler.asked(data) != (0, PART):
            process.send_signal(2)
            faultserver.slow(0.05)(handler, data)
        else:
            faultserver.well(handler, data)

    server.always["/big"] = interrupted
    process = child(store, server, locked("big", BIG))
    _, errors = process.communicate()
    assert b"KeyboardInterrupt" in errors
    assert nothing_half(store)
    server.always.clear()
    server.seen.clear()
    fetcher(store, server.url("")).ensure([locked("big", BIG)])
    assert f"bytes=0-{PART - 1}" not in [seen.range for seen in server.seen]


@contextmanager
def disk(path: Path, size: str) -> Iterator[Path]:
    path.mkdir()
    argv = ["mount", "-t", "tmpfs", "-o", f"size={size}", "tiny", str(path)]
    if subprocess.run(argv, capture_output=True, check=False).returncode:
        pytest.skip("mounting needs root")
    try:
        yield path
    finally:
        subprocess.run(["umount", path], check=True)


def test_too_little_room_is_told_before_anything_is_fetched(tmp_path: Path, server: FaultServer) -> None:
    with disk(tmp_path / "tiny", "8m") as tiny:
        with pytest.raises(StoreError, match=r"38\.6 MB are to be fetched, but only 8\.\d MB are free"):
            fetcher(Store(tiny / "store"), server.url("")).ensure([locked("big", BIG)])
        assert server.seen == []


@both
def test_a_disk_that_fills_up(tmp_path: Path, server: FaultServer, name: str) -> None:
    """Another process takes the room that was there when the download began."""
    with disk(tmp_path / "tiny", "48m") as tiny:

        def greedy(handler: Handler, data: bytes) -> None:
            used = os.statvfs(tiny)
            (tiny / "greed").write_bytes(bytes(max(used.f_bavail * used.f_frsize - 65536, 0)))
            faultserver.well(handler, data)

        server.always[f"/{name}"] = greedy
        store = Store(tiny / "store")
        with pytest.raises(StoreError, match="the store is full") as caught:
            fetcher(store, server.url("")).ensure([locked(name, FILES[name])])
        assert "cache gc" in str(caught.value.hint)
        assert nothing_half(store)
        (tiny / "greed").unlink()
        server.always.clear()
        fetcher(store, server.url("")).ensure([locked(name, FILES[name])])
        assert store.verify(locked(name, FILES[name]).digest)


def test_who_waits_says_why() -> None:
    lines: list[str] = []
    client = Client(replace(QUICK, attempts=3), lines.append)
    with pytest.raises(FetchError, match="Connection refused") as caught:
        client.bypassing("127.0.0.1").get("http://127.0.0.1:9/x")
    assert [line.rpartition("asked again in 0.0 s, ")[2] for line in lines] == ["2 more times", "1 more time"]
    assert all(line.startswith("http://127.0.0.1:9/x: no connection: Connection refused; ") for line in lines)
    assert "try again later" in str(caught.value.hint)


def test_many_that_wait_are_told_once() -> None:
    lines: list[str] = []
    times = iter([0.0, 0.0, 0.1, 2.0, 5.0, 5.0])
    tell = now_and_then(lines.append, lambda: next(times))
    for line in "abcd":
        tell(line)
    assert lines == ["a", "d"]


def test_a_read_only_store(tmp_path: Path, server: FaultServer) -> None:
    with disk(tmp_path / "tiny", "1m") as tiny:
        store = Store(tiny / "store")
        store.put(b"there")
        subprocess.run(["mount", "-o", "remount,ro", tiny], check=True)
        fetcher(store, server.url("")).ensure([locked("there", b"there")])
        with pytest.raises(BuilderError, match="Read-only") as caught:
            fetcher(store, server.url("")).ensure([locked("small", SMALL)])
        assert isinstance(caught.value, StoreError)


SETTINGS: dict[str, tuple[dict[str, str], Callable[[Network], object], object]] = {
    "lower case wins": ({"http_proxy": "a", "HTTP_PROXY": "b"}, lambda network: network.http_proxy, "a"),
    "not from a CGI request": (
        {"HTTP_PROXY": "b", "REQUEST_METHOD": "GET"},
        lambda network: network.http_proxy,
        None,
    ),
    "all_proxy": ({"ALL_PROXY": "a"}, lambda network: (network.http_proxy, network.https_proxy), ("a", "a")),
    "no_proxy": ({"NO_PROXY": "a, b c"}, lambda network: network.no_proxy, ("a", "b", "c")),
    "certificates": (
        {"REQUESTS_CA_BUNDLE": "/b", "SSL_CERT_FILE": "/a"},
        lambda network: network.ca_file,
        Path("/a"),
    ),
}


@pytest.mark.parametrize(("environ", "read", "expected"), SETTINGS.values(), ids=SETTINGS)
def test_the_network_of_an_environment(
    environ: dict[str, str], read: Callable[[Network], object], expected: object
) -> None:
    assert read(Network.of(environ)) == expected


def test_connections_that_all_break_soon_bring_a_file_nevertheless(server: FaultServer, store: Store) -> None:
    """Each brings something, however little it is beside what a block may have."""
    data = os.urandom(400_000)
    server.files["/broken"] = data
    server.always["/broken"] = faultserver.drop(40_000)
    fetcher(store, server.url(""), network=Network(attempts=2, backoff=0.001)).ensure([locked("broken", data)])
    assert store.read(Digest.of(data)) == data
