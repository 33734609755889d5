"""Settings of nodes: the real daemons take what is printed as it is, and an image starts with it. Needs root."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
import time
import tomllib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import judges
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_start import PROGRAMS, started
from world import Real, run

from builder.coldstart import nodes, recommended, state
from builder.coldstart.gateway import NAME, Gateway
from builder.coldstart.images import Blobs, look
from builder.coldstart.recommended import Node
from builder.errors import BuilderError
from builder.oci.layout import Layout


@pytest.fixture(scope="module")
def path() -> str:
    """The PATH on which the stack's programs are."""
    if os.geteuid() != 0:
        judges.missing("containerd", "mounting layers needs root")
    folders = {str(judges.require(name).parent) for name in (*PROGRAMS, "runc")}
    return os.pathsep.join([*folders, os.environ.get("PATH", os.defpath)])


@pytest.fixture
def folder() -> Iterator[Path]:
    """A short name, for sockets."""
    place = Path(tempfile.mkdtemp(prefix="lw-", dir="/var/tmp"))
    yield place
    state.clear(place)


@contextmanager
def node(folder: Path, path: str, client: str) -> Iterator[list[str]]:
    """A node whose daemons read what is printed; the command line of its `ctr`."""
    env = {**os.environ, "PATH": path}
    places = ["--soci-address", folder / "soci.sock", "--containerd-address", folder / "ctd.sock"]
    for which in ("soci", "containerd"):
        printed = run(["node-config", which, "--client", client, *places, "--root", folder / "soci"], folder, env)
        assert printed.code == 0, printed.err
        (folder / f"{which}.toml").write_text(printed.out)
    commands = (
        ["soci-snapshotter-grpc", "--address", "soci.sock", "--config", "soci.toml", "--root", "soci"],
        ["containerd", "--address", "ctd.sock", "--config", "containerd.toml", "--root", "ctd", "--state", "run"],
    )
    with ExitStack() as running:
        for argv in commands:
            named = [str(folder / word) if "." in word or word in ("soci", "ctd", "run") else word for word in argv]
            named[0] = str(shutil.which(argv[0], path=path))
            log = running.enter_context((folder / f"{argv[0]}.log").open("wb"))
            daemon = running.enter_context(subprocess.Popen(named, stdout=log, stderr=log, env=env))
            running.callback(daemon.wait)
            running.callback(daemon.terminate)
            socket = Path(named[named.index("--address") + 1])
            until = time.monotonic() + 30
            while not socket.exists():
                assert daemon.poll() is None, (folder / f"{argv[0]}.log").read_text()
                assert time.monotonic() < until
                time.sleep(0.02)
        yield [str(shutil.which("ctr", path=path)), "--address", str(folder / "ctd.sock")]


@pytest.mark.parametrize("client", ["containerd", "kubernetes"])
def test_daemons_take_what_is_printed(client: str, real: Real, folder: Path, path: str) -> None:
    """As it is; what both have to know of one another is in it: an image starts lazily."""
    source = Layout(real.out)
    image = look(source, None, "linux/amd64")
    with node(folder, path, client) as ctr, Gateway(source, Blobs(source, image.sizes)) as gateway:

        def told(*arguments: str) -> str:
            done = subprocess.run([*ctr, *arguments], capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr + (folder / "containerd.log").read_text()[-2000:]
            return done.stdout

        plugins = told("plugins", "ls")
        assert re.search(r"snapshotter\.v1 +soci +.* ok", plugins)
        if client == "kubernetes":
            assert re.search(r"cri\.v1 +images +.* ok", plugins)
            dumped = subprocess.run(
                [str(shutil.which("containerd", path=path)), "--config", folder / "containerd.toml", "config", "dump"],
                capture_output=True, text=True, check=True,
            ).stdout  # fmt: skip
            assert tomllib.loads(dumped)["plugins"]["io.containerd.cri.v1.images"]["snapshotter"] == "soci"
            return
        reference = f"{gateway.address}/{NAME}@{image.top.digest}"
        told("images", "pull", "--plain-http", "--snapshotter", "soci", reference)
        moved = sum(request.sent for request in gateway.requests if request.kind == "blob")
        assert moved < sum(layer.size for layer in image.layers)
        code = "import numpy; print(numpy.arange(4).sum())"
        options = ["--rm", "--snapshotter", "soci", "--net-host"]
        assert told("run", *options, reference, "one", "python", "-c", code).strip() == "6"
        told("images", "rm", "--sync", reference)


def test_a_start_with_the_settings_of_nodes(real: Real, folder: Path, path: str, tmp_path: Path) -> None:
    """`build start` measures what is printed; layers that are pulled side by side come whole, over TLS."""
    python = ("--entrypoint", "python", "--", "-c", "import numpy")
    for mode in ("lazy", "parallel"):
        (tmp_path / mode).write_text(recommended.soci_text(Node(mode=mode)))
    lazy, whole = (
        started(folder, path, f"oci:{real.out}", "--node-config", tmp_path / mode, *python)
        for mode in ("lazy", "parallel")
    )
    assert lazy.starts[0].spans > 0
    assert lazy.starts[0].bytes < lazy.size
    assert whole.starts[0].bytes > whole.size
    assert next(phase for phase in whole.starts[0].phases if phase.name == "program").requests == 0


def test_what_is_printed() -> None:
    """Both files are TOML, whatever is asked for; each setting is there, and told why."""
    for mode in ("lazy", "parallel"):
        for prefetch in (False, True):
            wanted = Node(mode=mode, prefetch=prefetch, soci='/run/ü \\ " #.sock', cores=7)
            text = recommended.soci_text(wanted)
            document = tomllib.loads(text)
            for setting in recommended.soci(wanted):
                inner: Any = document
                for name in (*setting.table, setting.key):
                    inner = inner[name]
                assert inner == setting.value
                assert setting.why in text
                assert setting.figure in text
            assert document.get("prefetch") == ({"enable": True} if prefetch and mode == "lazy" else None)
            told = tomllib.loads(recommended.containerd_text(wanted))
            assert told["proxy_plugins"]["soci"]["address"] == wanted.soci


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["soci", "--mode", "parallel", "--prefetch"], "--prefetch is for"),
        (["soci", "--root", "relative"], "no absolute path"),
        (["soci", "--soci-address", "/run/a\nb"], "no absolute path"),
        (["containerd", "--format", "json"], "--format json"),
        ([], "containerd"),
    ],
)
def test_wrong_usage(arguments: list[str], words: str, tmp_path: Path) -> None:
    done = run(["node-config", *arguments], tmp_path, {**os.environ})
    assert done.code == 2
    assert words in done.err


def test_figures_as_json(tmp_path: Path) -> None:
    rows = json.loads(run(["node-config", "soci", "--format", "json"], tmp_path, {**os.environ}).out)
    assert {row["key"] for row in rows} >= {"attr_timeout", "enable", "mount_timeout_sec"}
    assert all(row["why"] for row in rows)


# Settings that administrators write.


def test_what_a_start_decides_itself() -> None:
    """Addresses and what watches a start are ours; the rest is theirs, and ours is gone."""
    own = 'a = 1\n[content_store]\ntype = "soci"\ncontainerd_address = "/ours"\n[fuse]\nlog_fuse_operations = true\n'
    own += '[resolver.host."1.2.3.4:5"]\n[[resolver.host."1.2.3.4:5".mirrors]]\nhost = "http://1.2.3.4:5"\ninsecure = true\n'
    theirs = tomllib.loads(
        'b = 2\ndebug_address = "/x"\nmetrics_address = ":1"\nodd = 2026-01-01\n[content_store]\ntype = "containerd"\n'
        'containerd_address = "/theirs"\n[fuse]\nattr_timeout = 9\n[cri_keychain]\nenable_keychain = true\n[http]\nMaxRetries = 9\n'
        "[resolver]\nhost = {}\n"
    )
    assert nodes.laid_over(own, None) == own
    assert tomllib.loads(nodes.laid_over(own, theirs)) == {
        "b": 2,
        "odd": "2026-01-01",
        "content_store": {"type": "containerd", "containerd_address": "/ours"},
        "fuse": {"attr_timeout": 9, "log_fuse_operations": True},
        "resolver": tomllib.loads(own)["resolver"],
    }
    assert tomllib.loads(nodes.laid_over(own, {"fuse": 1, "content_store": []}))["fuse"] == {
        "log_fuse_operations": True
    }


VALUES = st.recursive(
    st.booleans() | st.integers(-(2**63), 2**63 - 1) | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=3),
    max_leaves=8,
)  # fmt: skip


@given(st.dictionaries(st.text(st.characters(codec="utf-8")), VALUES, max_size=4))
def test_settings_stay_what_they_are(settings: dict[str, Any]) -> None:
    wanted = {name: value for name, value in settings.items() if name not in {place[0] for place in nodes.OWN}}
    assert tomllib.loads(nodes.laid_over("", wanted)) == wanted


@pytest.mark.parametrize("data", [b"a", b"\xff", b"a = 1\na = 2", b"a" + b"[" * 100_000, b"a = " + b"[" * 100_000])
def test_what_are_no_settings(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "x.toml").write_bytes(data)
    with pytest.raises(BuilderError, match=r"x\.toml: no TOML"):
        nodes.read(tmp_path / "x.toml")
    with pytest.raises(BuilderError, match="cannot be read"):
        nodes.read(tmp_path)
    (tmp_path / "x.toml").write_bytes(b"#" * (2 << 20))
    with pytest.raises(BuilderError, match="larger"):
        nodes.read(tmp_path / "x.toml")
