"""The facts of whole inputs: wheels, Debian packages, layers of images; kept in the store by digest."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
import tracemalloc
import zlib
from dataclasses import replace
from pathlib import Path

import pytest
from debarchive import Item, deb, folder, hardlink, symlink
from elfmaker import Library, fatbin
from hypothesis import given, settings
from hypothesis import strategies as st
from wheelmaker import Member, Wheel

from builder.binaries import facts, image, inputs
from builder.binaries.contract import gpu_code
from builder.binaries.facts import BinaryFacts, InputFacts
from builder.binaries.known import known, remember
from builder.errors import BuilderError, HostileInputError
from builder.layers.stream import LayerError
from builder.oci.digest import Digest
from builder.store import Store

LIBRARY = Library(needed=("libc.so.6",), sections={".nv_fatbin": fatbin("sm_80", "compute_80")}).made().data
LARGE = Library(rodata=bytes(9 << 20) + b"libfar.so.3\0").made().data
OF_LIBRARY = BinaryFacts(
    path="",
    size=len(LIBRARY),
    machine="x86_64",
    soname="libmade.so.1",
    needed=("libc.so.6",),
    sass=("sm_80",),
    ptx=("compute_80",),
    isa="8.0",
    code=(("sm_80", 4096), ("compute_80", 4096)),
)
DAMAGED = LIBRARY[:500]


def of_wheel(wheel: Wheel, tmp_path: Path) -> InputFacts:
    path = tmp_path / "demo.whl"
    path.write_bytes(wheel.bytes())
    return inputs.of_wheel(path, "demo-1.0-py3-none-any.whl", spool=tmp_path)


def test_a_wheel(tmp_path: Path) -> None:
    files: dict[str, bytes | Member] = {
        "demo/_lib.so": LIBRARY,
        "demo/stored.so": Member("demo/stored.so", LIBRARY, method=0),
        "demo/large.so": LARGE,
        "demo/broken.so": DAMAGED,
        "demo/__init__.py": b"",
        "demo-1.0.data/data/lib/more.so": LIBRARY,
        "demo-1.0.data/scripts/tool": LIBRARY,
        "demo-1.0.data/platlib/other.so": LIBRARY,
        "demo-1.0.data/headers/demo.h": b"int x;",
    }
    found = of_wheel(Wheel(files=files), tmp_path)
    places = ("site/demo/_lib.so", "site/demo/stored.so", "site/other.so", "venv/bin/tool", "venv/lib/more.so")
    assert [item for item in found.binaries if item.path != "site/demo/large.so"] == [
        replace(OF_LIBRARY, path=place) for place in places
    ]
    assert next(item for item in found.binaries if item.path == "site/demo/large.so").opens == ("libfar.so.3",)
    ((path, why),) = found.damaged
    assert path == "site/demo/broken.so"
    assert why.startswith("demo-1.0-py3-none-any.whl: demo/broken.so: ")
    sums = {path: (size, checksum) for path, size, checksum in found.files}
    assert sums["site/demo/_lib.so"] == (len(LIBRARY), f"{zlib.crc32(LIBRARY):08x}")
    assert sums["venv/include/site/python3/demo/demo.h"][0] == 6
    assert "site/demo-1.0.dist-info/METADATA" in sums
    assert list(tmp_path.iterdir()) == [tmp_path / "demo.whl"]


def test_wheels_that_lie(tmp_path: Path) -> None:
    lie = Member("demo/_lib.so", LIBRARY, central={"crc": 1}, local={"crc": 1})
    with pytest.raises(HostileInputError, match=r"demo-1\.0-py3-none-any\.whl: demo/_lib\.so"):
        of_wheel(Wheel(files={"demo/_lib.so": lie}), tmp_path)
    with pytest.raises(HostileInputError, match=r"one \.dist-info directory, this one has 2"):
        of_wheel(Wheel(files={"other-1.dist-info/METADATA": b""}), tmp_path)
    with pytest.raises(HostileInputError, match="cannot be a file of a wheel"):
        of_wheel(Wheel(files={"../evil.so": LIBRARY}), tmp_path)
    (tmp_path / "x.whl").write_bytes(b"no zip")
    with pytest.raises(HostileInputError, match=r"^x\.whl: not a zip archive"):
        inputs.of_wheel(tmp_path / "x.whl")


def test_what_is_no_library_is_not_read(tmp_path: Path) -> None:
    """A file that cannot be inflated is packing's business, unless it is a library."""
    junk = Member("demo/data.bin", b"x" * 100, raw=b"\xff" * 40)
    assert of_wheel(Wheel(files={"demo/data.bin": junk}), tmp_path).binaries == ()


def test_a_package(tmp_path: Path) -> None:
    path = tmp_path / "made.deb"
    items = [
        folder("./lib/x86_64-linux-gnu"),
        Item("./lib/x86_64-linux-gnu/libmade.so.1.0", LIBRARY),
        symlink("./lib/x86_64-linux-gnu/libmade.so.1", "libmade.so.1.0"),
        Item("./usr/bin/tool", LIBRARY[:500], mode=0o755),
        Item("./usr/bin/broken", b"\x7fELF" + bytes(100), mode=0o755),
        Item("./usr/share/doc/made/changelog", b"news"),
        hardlink("./usr/bin/again", "./usr/bin/tool"),
    ]
    path.write_bytes(deb(items))
    found = inputs.of_deb(path, "made_1.0_amd64.deb", spool=tmp_path)
    assert found.binaries == (replace(OF_LIBRARY, path="/usr/lib/x86_64-linux-gnu/libmade.so.1.0"),)
    assert found.links == (("/usr/lib/x86_64-linux-gnu/libmade.so.1", "libmade.so.1.0"),)
    assert [path for path, _ in found.damaged] == ["/usr/bin/again", "/usr/bin/broken", "/usr/bin/tool"]
    assert all(why.startswith("made_1.0_amd64.deb: usr/bin/") for _, why in found.damaged)
    sums = {path: (size, checksum) for path, size, checksum in found.files}
    assert sums["/usr/lib/x86_64-linux-gnu/libmade.so.1.0"] == (len(LIBRARY), hashlib.sha256(LIBRARY).hexdigest())
    assert "/usr/share/doc/made/changelog" not in sums
    assert list(tmp_path.iterdir()) == [path]


def layer(*items: tuple[str, bytes | None, str], packed: bool = True) -> io.BytesIO:
    """A layer with files, and links (no content): symlinks `->x`, hard links `=x`."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w") as tar:
        for name, content, target in items:
            info = tarfile.TarInfo(name)
            if content is None and not target:
                info.type = tarfile.DIRTYPE
            elif content is None:
                info.type = tarfile.SYMTYPE if target.startswith("->") else tarfile.LNKTYPE
                info.linkname = target.removeprefix("->").removeprefix("=")
            info.size = len(content or b"")
            tar.addfile(info, io.BytesIO(content or b""))
    return io.BytesIO(gzip.compress(out.getvalue()) if packed else out.getvalue())


@pytest.mark.parametrize("packed", [True, False])
def test_a_layer(packed: bool, tmp_path: Path) -> None:
    blob = layer(
        ("./usr", None, ""),
        ("./usr/lib/libmade.so.1", LIBRARY, ""),
        ("usr/lib/large.so", LARGE, ""),
        ("/usr/lib/libmade.so", None, "->libmade.so.1"),
        ("usr/lib/same.so", None, "=usr/lib/libmade.so.1"),
        ("usr/lib/elsewhere.so", None, "=not/in/this/layer"),
        ("usr/lib/broken.so", DAMAGED, ""),
        ("etc/.wh.passwd", b"", ""),
        ("etc/note", b"\x7fE", ""),
        ("etc/twice", b"old", ""),
        ("etc/twice", b"new", ""),
        packed=packed,
    )
    found = inputs.of_tar_stream(blob, "layer 1", spool=tmp_path)
    made = [item for item in found.binaries if item.path != "/usr/lib/large.so"]
    assert made == [replace(OF_LIBRARY, path=path) for path in ("/usr/lib/libmade.so.1", "/usr/lib/same.so")]
    assert found.links == (("/usr/lib/libmade.so", "libmade.so.1"),)
    assert [path for path, _ in found.damaged] == ["/usr/lib/broken.so"]
    sums = {path: (size, checksum) for path, size, checksum in found.files}
    assert sums["/usr/lib/same.so"] == (len(LIBRARY), hashlib.sha256(LIBRARY).hexdigest())
    assert sums["/etc/twice"] == (3, hashlib.sha256(b"new").hexdigest())
    assert sums["/etc/.wh.passwd"][0] == 0
    assert list(tmp_path.iterdir()) == []


def test_layers_that_lie(tmp_path: Path) -> None:
    with pytest.raises(HostileInputError, match=r"layer 1: '\.\./etc/passwd' leaves the root"):
        inputs.of_tar_stream(layer(("../etc/passwd", b"x", "")), "layer 1")
    with pytest.raises(LayerError, match=r"cut off|damaged|ends"):
        inputs.of_tar_stream(io.BytesIO(layer(("a", LARGE, "")).getvalue()[:2000]), "layer 1")
    with pytest.raises(LayerError):
        inputs.of_tar_stream(io.BytesIO(b"no tar" * 200), "layer 1")


LAYER = layer(
    ("usr/lib/a.so", LIBRARY, ""), ("usr/lib/b.so", None, "->a.so"), ("c", None, "=usr/lib/a.so"), packed=False
)
EDITS = st.lists(st.tuples(st.integers(0, 1 << 16), st.binary(max_size=9), st.integers(0, 9)), min_size=1, max_size=4)


@settings(max_examples=150, deadline=None)
@given(edits=EDITS, packed=st.booleans())
def test_any_bytes_of_a_layer(edits: list[tuple[int, bytes, int]], packed: bool) -> None:
    """Facts with paths in the root, or an error for users."""
    data = bytearray(gzip.compress(LAYER.getvalue(), mtime=0) if packed else LAYER.getvalue())
    for place, new, count in edits:
        at = place % (len(data) + 1)
        data[at : at + count] = new
    try:
        found = inputs.of_tar_stream(io.BytesIO(data), "layer")
    except BuilderError:
        return
    paths = [path for path, _, _ in found.files] + [path for path, _ in (*found.links, *found.damaged)]
    for path in paths:
        assert path.startswith("/")
        assert ".." not in path.split("/")


def test_memory_does_not_grow_with_a_wheel(tmp_path: Path) -> None:
    """One library of 64 MiB, which are 64 KiB in the wheel."""
    data = Library(rodata=bytes(64 << 20)).made().data
    path = tmp_path / "demo.whl"
    path.write_bytes(Wheel(files={"demo/_lib.so": data}).bytes())
    size = len(data)
    del data
    tracemalloc.start()
    found = inputs.of_wheel(path, spool=tmp_path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert found.binaries[0].size == size
    assert peak < 16 << 20


def test_too_many_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inputs, "_MAX_FILES", 3)
    with pytest.raises(HostileInputError, match="more than 3 files"):
        inputs.of_tar_stream(layer(*((f"file{number}", b"", "") for number in range(4))), "layer 1")


FACTS = InputFacts(
    (replace(OF_LIBRARY, path="/lib/a.so", needs=(("libc.so.6", ("GLIBC_2.17",)),), rpath=("$ORIGIN",)),),
    (("/lib/b.so", "a.so"),),
    (("/lib/a.so", 7, "00000000"),),
    (("/lib/c.so", "cut off"),),
)


def test_facts_are_written_and_read() -> None:
    document = json.loads(json.dumps(facts.dump(FACTS)))
    assert facts.load(document) == FACTS
    assert facts.load(facts.dump(InputFacts())) == InputFacts()
    assert "soname" not in facts.dump(InputFacts((BinaryFacts("a", 1, "x86_64"),)))["binaries"][0]


@pytest.mark.parametrize(
    "document",
    [{}, {"format": 0, "binaries": []}, {"format": facts.FORMAT}, {"format": facts.FORMAT, "binaries": [{"x": 1}]}],
)
def test_what_are_no_facts(document: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="facts"):
        facts.load(document)


def test_facts_are_remembered(tmp_path: Path) -> None:
    store = Store(tmp_path)
    sha256 = Digest.of(b"input").hex
    assert known(store, sha256) is None
    remember(store, sha256, FACTS)
    assert known(Store(tmp_path), sha256) == FACTS
    record = store.record("binaries", f"{facts.FORMAT}-{sha256}")
    assert record
    store.discard(Digest.parse(record["objects"][0]))
    assert known(store, sha256) is None
    damaged = store.put(b"{}")
    store.put_record("binaries", f"{facts.FORMAT}-{sha256}", {"objects": [str(damaged)]})
    assert known(store, sha256) is None


def test_an_image_of_layers() -> None:
    """Whiteouts, opaque folders, and files that take the place of others."""

    def of(*paths: str, files: tuple[str, ...] = (), links: tuple[str, ...] = ()) -> InputFacts:
        return InputFacts(
            tuple(BinaryFacts(path, 1, "x86_64") for path in paths),
            tuple((path, "x") for path in links),
            tuple((path, 1, "0") for path in (*paths, *files)),
            (("/lib/broken.so", "why"),) if "/lib/broken.so" in files else (),
        )

    site = "/opt/conda/lib/python3.12/site-packages"
    layers = [
        of("/lib/gone.so", "/lib/text.so", "/lib/link.so", "/lib/kept.so", "/old/a.so", "/old/deep/b.so", "/opq/c.so"),
        of(f"{site}/torch/lib/libtorch.so", f"{site}/torch/_C.so", "/app/_odd name.so", files=("/lib/broken.so",)),
        of(
            "/opq/d.so",
            files=("/lib/.wh.gone.so", "/lib/text.so", "/.wh.old", "/opq/.wh..wh..opq"),
            links=("/lib/link.so",),
        ),
    ]
    found = image.projects(layers)
    assert {name: [binary.path for binary in facts.binaries] for name, facts in found.items()} == {
        "kept.so": ["/lib/kept.so"],
        "torch": [f"{site}/torch/_C.so", f"{site}/torch/lib/libtorch.so"],
        "oddname.so": ["/app/_odd name.so"],
        "d.so": ["/opq/d.so"],
        "broken.so": [],
    }
    assert found["broken.so"].damaged == (("/lib/broken.so", "why"),)


def test_names_that_no_terminal_should_see() -> None:
    """Paths stay as they are in facts; messages and contracts show them in letters."""
    odd = "usr/lib/\x1b[2J\udc80.so"
    found = inputs.of_tar_stream(layer((odd, LIBRARY, ""), (f"{odd}.1", DAMAGED, "")), "layer")
    assert found.binaries[0].path == f"/{odd}"
    assert facts.load(json.loads(json.dumps(facts.dump(found)))) == found
    assert found.damaged[0][1].startswith("layer: /usr/lib/\\x1b[2J\\xdc80.so.1: ")
    (code,) = gpu_code("base", found)
    assert code.files == ("/usr/lib/\\x1b[2J\\xdc80.so",)
