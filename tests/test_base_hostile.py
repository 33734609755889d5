"""Base images that lie, are damaged, or cannot be stood on: each is refused by name, and nothing of theirs leaves its root."""

from __future__ import annotations

import gzip
import json
import subprocess
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from baseimages import Member, blob, debian, file, folder, hard, layout, link, python, sha256, tar
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from judges import require

from builder import baseimage
from builder import profile as profiles
from builder.base import facts, locking
from builder.base.files import contents
from builder.base.tree import Node, Tree
from builder.baseimage import LockedImage
from builder.client import Client
from builder.errors import BuilderError, HostileInputError
from builder.fetch import Fetcher
from builder.layers import foreign
from builder.lock import LockedFile, SociSettings
from builder.oci import spec
from builder.oci.layout import Layout
from builder.oci.spec import Descriptor, Platform
from builder.packing import Folder, Packer
from builder.places.blobs import BaseLayers
from builder.places.dockerarchive import DockerArchive
from builder.plan import base_layers
from builder.progress import Silent
from builder.settings import Network
from builder.store import Store

AMD64 = Platform("linux", "amd64")
DOCKER = "application/vnd.docker.image.rootfs.diff.tar"


class Image:
    """An image of one platform as documents and blobs: change them, then `lock` it."""

    def __init__(self, root: Path, layers: Sequence[Sequence[Member]] = ()) -> None:
        self.root = root
        members = layers or [debian(), python("3.11.9")]
        self.tars = [tar(each) for each in members]
        self.blobs = [gzip.compress(data, 1, mtime=0) for data in self.tars]
        self.names = [sha256(data) for data in self.blobs]
        self.config: dict[str, Any] = {
            "architecture": "amd64",
            "os": "linux",
            "config": {"Env": ["PATH=/usr/bin"]},
            "rootfs": {"type": "layers", "diff_ids": [sha256(data) for data in self.tars]},
            "history": [{"created_by": "x"}, {"created_by": "ENV x", "empty_layer": True}, {"created_by": "y"}],
        }
        self.manifest: dict[str, Any] = {
            "schemaVersion": 2,
            "mediaType": spec.MANIFEST,
            "layers": [
                {"mediaType": spec.LAYER_GZIP, "digest": sha256(data), "size": len(data)} for data in self.blobs
            ],
        }
        self.media_type = spec.MANIFEST
        self.index: dict[str, Any] | None = None
        self.top: dict[str, Any] = {}

    def put(self, data: bytes, digest: str | None = None) -> str:
        path = blob(self.root, digest or sha256(data))
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return digest or sha256(data)

    def described(self, document: dict[str, Any], media_type: str) -> dict[str, Any]:
        data = json.dumps(document).encode()
        return {"mediaType": media_type, "digest": self.put(data), "size": len(data)}

    def replace(self, number: int, data: bytes, media_type: str = spec.LAYER_GZIP) -> None:
        """Another blob of a layer, rightly named."""
        self.blobs[number], self.names[number] = data, sha256(data)
        self.manifest["layers"][number] |= {"mediaType": media_type, "digest": sha256(data), "size": len(data)}

    def write(self) -> Layout:
        for name, data in zip(self.names, self.blobs, strict=True):
            self.put(data, name)
        self.manifest.setdefault("config", self.described(self.config, spec.CONFIG))
        top = self.described(self.manifest, self.media_type) | self.top
        if self.index is not None:
            self.index.setdefault("manifests", [top])
            top = self.described(self.index, spec.INDEX)
        index = {"schemaVersion": 2, "manifests": [top]}
        (self.root / "index.json").write_text(json.dumps(index))
        return Layout(self.root)

    def lock(self, *places: str, version: str | None = "3.11") -> LockedImage:
        """What the lock of a profile on it says of it; `places` are where files of the profile go."""
        return locked(self.write(), self.root.parent, *places, version=version)


def locked(source: Layout | DockerArchive, folder: Path, *places: str, version: str | None = "3.11") -> LockedImage:
    wanted = f'python: {{version: "{version}"}}' if version else ""
    path = folder / "p.yaml"
    path.write_text(f"profile: 1\nname: x\nbase: {{image: 'oci:image'}}\n{wanted}\n")
    store = Store(folder / "store")
    fetcher = Fetcher(
        store, Nowhere(), Client(Network()), Silent(), others={"image": BaseLayers(lambda: (source, None))}
    )
    packer = Packer(store.root, Folder(Path()), SociSettings(min_layer_size=0))
    reader = locking.Reader(store, fetcher.ensure, lambda layer: packer(layer, lambda _: None), lambda: (source, None))
    return locking.resolve(profiles.read(path).profile, AMD64, reader, None, (places, ()), False)


class Nowhere:
    def urls(self, file: LockedFile) -> tuple[str, ...]:
        return ()


@pytest.fixture
def image(tmp_path: Path) -> Image:
    return Image(tmp_path / "image")


def test_a_good_one(image: Image) -> None:
    found = image.lock("/app/x", "/tmp/y")
    assert (found.python, found.libc, found.executable) == ("3.11.9", "2.36", "/usr/bin/python3.11")
    assert [folder.path for folder in found.folders] == ["/tmp"]
    assert len(found.history) == 3


def set_in(*path: Any, value: Any) -> Callable[[Image], None]:
    """A change of the documents of an image."""

    def change(image: Image) -> None:
        at: Any = image
        for part in path[:-1]:
            at = getattr(at, part) if isinstance(at, Image) else at[part]
        at[path[-1]] = value

    return change


def layer(number: int, data: bytes, media_type: str = spec.LAYER_GZIP) -> Callable[[Image], None]:
    return lambda image: image.replace(number, data, media_type)


def spoil(number: int, data: bytes) -> Callable[[Image], None]:
    """Other bytes under the digest that the manifest names."""

    def change(image: Image) -> None:
        image.blobs[number] = data

    return change


def last(*members: Member, more: bool = True) -> Callable[[Image], None]:
    """Other members in the uppermost layer, all digests right."""

    def change(image: Image) -> None:
        data = tar([*(python("3.11.9") if more else []), *members])
        image.config["rootfs"]["diff_ids"][1] = sha256(data)
        image.replace(1, gzip.compress(data, 1, mtime=0))

    return change


def index_of(*entries: dict[str, Any]) -> Callable[[Image], None]:
    def change(image: Image) -> None:
        image.index = {"schemaVersion": 2, "mediaType": spec.INDEX}
        if entries:
            image.index["manifests"] = [*entries]

    return change


def of(platform: str) -> dict[str, Any]:
    os, _, architecture = platform.partition("/")
    return {
        "mediaType": spec.MANIFEST,
        "digest": sha256(platform.encode()),
        "size": 10,
        "platform": {"os": os, "architecture": architecture},
    }


GOOD = gzip.compress(tar(python("3.11.9")), 1, mtime=0)
LIES: dict[str, tuple[Callable[[Image], None], str]] = {
    # documents
    "another platform": (
        set_in("config", "architecture", value="arm64"),
        "not made for linux/amd64, only for: linux/arm64",
    ),
    "an index without it": (index_of(of("linux/arm64"), of("windows/amd64")), "only for: linux/arm64, windows/amd64"),
    "an index of nothing": (index_of(of("unknown/unknown")), "only for: none"),
    "an index that is none": (set_in("top", "mediaType", value=spec.INDEX), "no index of images"),
    "a manifest too large": (set_in("manifest", "annotations", value={"x": "y" * (5 << 20)}), "more than 4194304"),
    "a manifest of schema 1": (
        set_in("top", "mediaType", value="application/vnd.docker.distribution.manifest.v1+prettyjws"),
        "schema 1",
    ),
    "no layers": (
        lambda image: (image.manifest.update(layers=[]), image.config["rootfs"].update(diff_ids=[]))[0],
        "no layers",
    ),
    "layers without end": (
        lambda image: (
            image.manifest.update(layers=image.manifest["layers"] * 70),
            image.config["rootfs"].update(diff_ids=image.config["rootfs"]["diff_ids"] * 70),
        )[0],
        "140 layers",
    ),
    "a diff_id too few": (lambda image: image.config["rootfs"]["diff_ids"].pop(), "2 layers, its configuration 1"),
    "a diff_id of something else": (
        lambda image: image.config["rootfs"]["diff_ids"].reverse(),
        "its tar has the digest .*, the configuration says",
    ),
    "a layer elsewhere": (
        set_in("manifest", "layers", 0, "urls", value=["https://example.org/layer"]),
        "has to be fetched from elsewhere",
    ),
    "a foreign layer": (
        set_in("manifest", "layers", 0, "mediaType", value="application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"),
        "has to be fetched from elsewhere",
    ),
    "an encrypted layer": (
        set_in("manifest", "layers", 0, "mediaType", value=f"{spec.LAYER_GZIP}+encrypted"),
        "is of the type .*no layer's",
    ),
    "triggers": (set_in("config", "config", "OnBuild", value=["RUN make"]), "ONBUILD"),
    "a configuration of no JSON": (lambda image: image.manifest.update(config=_raw(image, b"x")), "no JSON"),
    "a configuration too large": (
        lambda image: image.manifest.update(config=_raw(image, b'{"a":"' + b"x" * (5 << 20) + b'"}')),
        "larger than",
    ),
    "an environment that is none": (set_in("config", "config", "Env", value={"A": "B"}), "says Env in no way known"),
    "a NUL in the environment": (set_in("config", "config", "Env", value=["A=\0"]), "says Env in no way known"),
    "half a character": (set_in("config", "config", "Env", value=["A=\ud800"]), "says Env in no way known"),
    "labels of numbers": (set_in("config", "config", "Labels", value={"a": 1}), "in no way known"),
    "volumes of half characters": (set_in("config", "config", "Volumes", value={"\ud800": {}}), "Volumes"),
    "a config that is none": (set_in("config", "config", value=[]), "'config' that is none"),
    # blobs
    "a layer that is cut off": (spoil(1, GOOD[:-10]), "early|bytes"),
    "a layer of other bytes": (spoil(1, GOOD[:-1] + b"x"), "digest|bytes"),
    "a layer longer than it says": (spoil(1, GOOD + b"x"), "longer|bytes"),
    "a size too small": (set_in("manifest", "layers", 1, "size", value=len(GOOD) - 1), "longer|bytes|size"),
    "a size too large": (set_in("manifest", "layers", 1, "size", value=len(GOOD) + 1), "early|bytes|size"),
    "no tar": (layer(1, gzip.compress(b"x" * 2000)), "base 2 of 2"),
    "a damaged stream": (layer(1, GOOD[:100] + b"\xff" * 50 + GOOD[150:]), "damaged|CRC|size"),
    "another compression": (layer(1, tar(python("3.11.9"))), "it is compressed with gzip, but it is not compressed"),
    "compression that is hidden": (layer(1, GOOD, spec.LAYER), "it is not compressed, but it is compressed with gzip"),
    "a path upwards": (last(file("usr/../../etc/passwd")), "leads out of the image"),
    "a hard link upwards": (last(hard("usr/x", "../../etc/passwd")), "leads out|no file of this image"),
    "a hard link to nothing": (last(hard("usr/x", "usr/nothing")), "no file of this image"),
    "a hard link to a folder": (last(hard("usr/x", "usr/bin")), "no file of this image"),
    # what cannot be stood on
    "an environment already": (last(file("opt/venv/bin/x")), "has /opt/venv already"),
    "an /opt that is a link": (last(link("opt", "srv")), "/opt is no folder in it, but a symlink"),
    "no Python": (last(more=False), "has none on its PATH"),
    "an older Python": (last(*python("3.9.2"), more=False), r"it has 3\.9 \(/usr/bin/python3\.9\)"),
    "a Python without a library": (
        last(file("usr/bin/python3.11", b"\x7fELF\0003.11.9\0", 0o755), more=False),
        "has none on its PATH",
    ),
    "a Python that says nothing": (
        last(file("usr/bin/python3.11", b"\x7fELF", 0o755), file("usr/lib/python3.11/os.py"), more=False),
        "does not say which release",
    ),
    "a Python that is a loop": (
        last(link("usr/bin/python3.11", "python3.11"), file("usr/lib/python3.11/os.py"), more=False),
        "has none on its PATH",
    ),
    "musl": (
        last(file("usr/lib/x86_64-linux-gnu/.wh.libc.so.6"), file("usr/lib/ld-musl-x86_64.so.1")),
        "its C library is musl",
    ),
    "no C library": (last(file("usr/lib/x86_64-linux-gnu/.wh.libc.so.6")), "no glibc"),
    "a file where a folder should be": (last(file("app", b"x")), "/app is no folder in it, but a reg"),
    "a link to nowhere": (last(link("app", "/nowhere")), "/app is a link that leads nowhere"),
}


def _raw(image: Image, data: bytes) -> dict[str, Any]:
    return {"mediaType": spec.CONFIG, "digest": image.put(data), "size": len(data)}


@pytest.mark.parametrize("name", LIES)
def test_lies_are_refused(name: str, image: Image) -> None:
    change, words = LIES[name]
    change(image)
    with pytest.raises(BuilderError, match=words) as caught:
        image.lock("/app/x")
    assert caught.value.hint, "it says what to do next"
    assert "oci:image" in str(caught.value) or "blob" in str(caught.value) or "image" in str(caught.value)


def test_an_index_in_an_index_and_attestations(image: Image) -> None:
    """What buildx writes: a manifest of no platform beside the image; and indexes may lie in one another, but not for ever."""
    image.write()
    manifest = image.described(image.manifest, spec.MANIFEST)
    attestation = of("unknown/unknown") | {"annotations": {"vnd.docker.reference.type": "attestation-manifest"}}
    good = manifest | {"platform": {"os": "linux", "architecture": "amd64"}}
    inner: dict[str, Any] = {"schemaVersion": 2, "manifests": [attestation, good]}
    for depth in range(4):
        image.index = inner
        if depth < 3:
            assert image.lock("/app/x").manifest == manifest["digest"]
        else:
            with pytest.raises(HostileInputError, match="too deep"):
                image.lock("/app/x")
        inner = {"schemaVersion": 2, "manifests": [image.described(inner, spec.INDEX)]}


def test_docker_types_are_the_same_bytes(image: Image) -> None:
    image.media_type = image.manifest["mediaType"] = "application/vnd.docker.distribution.manifest.v2+json"
    image.replace(0, image.tars[0], DOCKER)
    image.manifest["layers"][1]["mediaType"] = f"{DOCKER}.gzip"
    assert [layer.media_type for layer in image.lock("/x").layers] == [spec.LAYER, spec.LAYER_GZIP]


def test_history_that_does_not_fit_is_made_up(image: Image) -> None:
    image.config["history"] = [{"created_by": "only one", "empty_layer": "no"}, {"created": 7, "comment": "c\0"}, {}]
    assert image.lock("/x").history == ({"comment": "a layer of the base image"},) * 2


def test_only_what_is_needed_is_read(image: Image) -> None:
    """Without anything to put on top no layer is read; it may be anything then, until the image is made."""
    image.blobs[0] = b""
    assert image.lock(version=None).libc == ""


def test_a_newer_python_of_another_prefix(tmp_path: Path) -> None:
    image = Image(tmp_path / "image", [debian(), [*python("3.9.2"), *python("3.13.1", "usr/local"), *python("3.14.0")]])
    image.config["config"] = {"Env": ["PATH=/usr/local/bin:/usr/bin"]}
    found = image.lock(version="3.11")
    assert (found.python, found.executable) == ("3.13.1", "/usr/local/bin/python3.13")


def test_too_many_members(image: Image, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(foreign, "MAX_MEMBERS", 10)
    with pytest.raises(HostileInputError, match="more than 10 members"):
        image.lock("/x")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ((), "nvidia/cuda 13.0.0 base"),
        (("NV_CUDA_LIB_VERSION=13.0.0-1", "NVIDIA_PRODUCT_NAME=CUDA", "NCCL_VERSION=2.27.7-1"), "runtime, NCCL 2.27.7"),
        (("NVIDIA_PRODUCT_NAME=CUDA", "NV_CUDNN_VERSION=9.12.0.46-1"), "runtime, cuDNN 9.12.0.46"),
        (("NV_CUDA_LIB_VERSION=13.0.0-1", "NV_CUDA_CUDART_DEV_VERSION=13.0.48-1"), "nvidia/cuda 13.0.0 devel"),
    ],
)
def test_nvidia_s_images_are_known(more: tuple[str, ...], words: str, image: Image) -> None:
    image.config["config"]["Env"] += ["CUDA_VERSION=13.0.0", "NV_CUDA_CUDART_VERSION=13.0.48-1", *more]
    assert str(baseimage.cuda(image.lock("/x"))).endswith(words)
    assert words in baseimage.words(image.lock("/x"))


def test_others_are_not_taken_for_nvidia_s(image: Image) -> None:
    assert baseimage.cuda(image.lock("/x")) is None
    image.config["config"]["Env"] += ["CUDA_VERSION=13.0.0"]
    assert baseimage.cuda(image.lock("/x")) is None


# Archives of docker.


def saved(path: Path, image: Image, listed: Any = None, extra: Sequence[Member] = (), **names: bytes) -> Path:
    """What `docker save` wrote years ago: a folder for each layer."""
    config = json.dumps(image.config).encode()
    if listed is None:
        listed = [{"Config": "c.json", "RepoTags": ["base:12"], "Layers": ["a/layer.tar", "b/layer.tar"]}]
    contents = {
        "c.json": config,
        "a/layer.tar": image.tars[0],
        "b/layer.tar": image.tars[1],
        "manifest.json": listed if isinstance(listed, bytes) else json.dumps(listed).encode(),
        **names,
    }
    path.write_bytes(tar([*(file(name, data) for name, data in contents.items() if data != b"-"), *extra]))
    return path


def test_docker_archives(image: Image, tmp_path: Path) -> None:
    image.write()
    archive = DockerArchive(saved(tmp_path / "a.tar", image))
    found = locked(archive, tmp_path, "/x")
    assert [layer.media_type for layer in found.layers] == [spec.LAYER] * 2
    assert [layer.diff_id for layer in found.layers] == [f"sha256:{layer.sha256}" for layer in found.layers]
    assert archive.resolve("base:12") == archive.resolve(None) == archive.resolve(found.manifest)
    assert DockerArchive(archive.path).resolve(None) == archive.resolve(None)
    # A layer that two share is a link in the second.
    linked = saved(
        tmp_path / "b.tar", image, None, [link("b/layer.tar", "../real")], **{"b/layer.tar": b"-"}, real=image.tars[1]
    )
    assert locked(DockerArchive(linked), tmp_path, "/x").layers == found.layers


LISTED = [{"Config": "c.json", "RepoTags": None, "Layers": ["a/layer.tar", "b/layer.tar"]}]
ARCHIVES: dict[str, tuple[dict[str, Any], str]] = {
    "no list": ({"manifest.json": b"-"}, "no 'manifest.json'"),
    "a list of nothing": ({"listed": []}, "names no images"),
    "a list that is none": ({"listed": {"Config": 1}}, "not what `docker save` writes"),
    "no JSON": ({"listed": b"x"}, "not what `docker save` writes"),
    "names that are none": ({"listed": [LISTED[0] | {"RepoTags": [1]}]}, "names no images"),
    "a list too large": ({"listed": b" " * (5 << 20)}, "larger than"),
    "layers without end": ({"listed": [LISTED[0] | {"Layers": ["a"] * 5000}]}, "more than 4096 layers"),
    "a layer that is not there": ({"b/layer.tar": b"-"}, "no 'b/layer.tar'"),
    "a layer that is a loop": (
        {"b/layer.tar": b"-", "extra": [link("b/layer.tar", "../c"), link("c", "b/layer.tar")]},
        "no 'b|no 'c",
    ),
    "a layer outside": ({"b/layer.tar": b"-", "extra": [link("b/layer.tar", "/etc/passwd")]}, "no '/etc/passwd'"),
    "a configuration that is none": ({"c.json": b"[]"}, "no JSON object"),
    "another layer": ({"b/layer.tar": tar([])}, "the configuration says"),
    "two images": ({"listed": LISTED * 2}, "it holds images without names"),
}


@pytest.mark.parametrize("name", ARCHIVES)
def test_archives_that_lie(name: str, image: Image, tmp_path: Path) -> None:
    change, words = ARCHIVES[name]
    image.write()
    with pytest.raises(BuilderError, match=words) as caught:
        locked(DockerArchive(saved(tmp_path / "a.tar", image, **change)), tmp_path, "/x")
    assert caught.value.hint


def test_archives_that_are_none(tmp_path: Path, image: Image) -> None:
    image.write()
    data = saved(tmp_path / "a.tar", image).read_bytes()
    for number, (content, words) in enumerate(
        [
            (b"", "no 'manifest.json'|no tar"),
            (gzip.compress(data), "no tar file"),
            (data[: len(data) // 2], "cut off|no tar|data"),
        ]
    ):
        path = tmp_path / f"{number}.tar"
        path.write_bytes(content)
        with pytest.raises(BuilderError, match=words):
            DockerArchive(path).resolve(None)
    with pytest.raises(BuilderError, match="cannot be read"):
        DockerArchive(tmp_path / "nothing.tar")


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_changed_in_documents(tmp_path: Path, data: st.DataObject) -> None:
    """Any value in any place of a manifest or configuration: an image, or an error of ours."""
    image = Image(tmp_path / "image")
    values = st.recursive(
        st.none() | st.booleans() | st.integers(-5, 2**65) | st.text(max_size=5) | st.floats(allow_nan=False),
        lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
        max_leaves=5,
    )
    document = data.draw(st.sampled_from([image.config, image.manifest]))
    at: Any = document
    while True:
        keys = list(at) if isinstance(at, dict) else list(range(len(at)))
        key = data.draw(st.sampled_from(keys))
        if isinstance(at[key], dict | list) and at[key] and data.draw(st.booleans()):
            at = at[key]
            continue
        at[key] = data.draw(values)
        break
    try:
        image.lock("/x")
    except BuilderError:
        return


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_whatever_is_changed_in_an_archive(tmp_path: Path, data: st.DataObject) -> None:
    image = Image(tmp_path / "image", [[file("a", b"a")], [file("b", b"b")]])
    content = bytearray(saved(tmp_path / "a.tar", image).read_bytes())
    for _ in range(data.draw(st.integers(1, 4))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    (tmp_path / "a.tar").write_bytes(content[: data.draw(st.integers(0, len(content)))])
    try:
        archive = DockerArchive(tmp_path / "a.tar")
        found = archive.resolve(None)
        for entry in json.loads(archive.manifest(found))["layers"]:
            with archive.blob(Descriptor.parse(entry)) as stream:
                assert sha256(stream.read()) == entry["digest"]
    except BuilderError:
        return


@given(
    st.binary(max_size=200)
    | st.lists(
        st.sampled_from([b"Package: a", b"Version: 1", b"Status: x installed", b"\n", b"ID=a", b'N="', b"="])
    ).map(b"\n".join)
)
def test_small_files_of_any_bytes(content: bytes) -> None:
    packages, sources = facts.dpkg(content)
    assert all(name and version for name, version in (*packages, *sources))
    assert all(value.isprintable() for value in facts.os_release(content).values())


def test_files_without_end_take_no_memory_and_no_time() -> None:
    """What a strange image could do with a line that is long, or with many files."""
    assert facts.dpkg(b"Package: " + b" " * (8 << 20) + b"x")[0] == ()
    stanza = b"Package: p%d\nVersion: 1\nStatus: install ok installed\n\n"
    assert len(facts.dpkg(b"".join(stanza % number for number in range(20_000)))[0]) == 20_000
    assert facts.dpkg(b"".join(stanza % number for number in range(20_001))) == ((), ())
    assert facts.os_release(b'A="' + b"\\" * (1 << 20)) == {}


def test_many_files_are_read_within_one_limit(image: Image, tmp_path: Path) -> None:
    conf = [file(f"etc/ld.so.conf.d/{number}.conf", b"#" * 1000 + b"\n/opt/%d\n" % number) for number in range(300)]
    last(*conf, file("etc/ld.so.conf", b"include x\n"))(image)
    assert len(image.lock("/x").search) == 300
    tree = Tree()
    rows = [_row(info) for info, _ in conf]
    tree.add(rows)
    layers = base_layers(image.lock("/x"))
    nodes = {path: node for path, node in tree.walk() if node.type == "reg"}
    for node in nodes.values():
        node.layer = 1
    found = contents(nodes, layers, Store(tmp_path / "store"), 5000)
    assert sum(map(len, found.values())) == 5000


# The picture of the files, against what umoci unpacks.

names = st.sampled_from(["a", "b", "a/c", "a/d", "b/c", "a/c/e", "b/c/e", "l", "l/c"])
kinds = st.sampled_from(["file", "file", "dir", "link", "hard", "hide", "opaque"])
targets = st.sampled_from(["a", "b", "../b", "/a", "c", "/b/c"])
members = st.lists(st.tuples(kinds, names, targets), max_size=6)


def drawn(rows: Sequence[tuple[str, str, str]]) -> list[Member]:
    """Members of a layer; one path is there once, and in the order of paths, as tools write it."""
    found: dict[str, Member] = {}
    for kind, name, target in rows:
        parent, _, base = name.rpartition("/")
        above = f"{parent}/" if parent else ""
        match kind:
            case "file":
                found[name] = file(name, name.encode(), 0o644)
            case "dir":
                found[name] = folder(name)
            case "link":
                found[name] = link(name, target)
            case "hide":
                found.pop(name, None)
                found.setdefault(f"{above}.wh.{base}", file(f"{above}.wh.{base}"))
            case "opaque":
                found[f"{name}/.wh..wh..opq"] = file(f"{name}/.wh..wh..opq")
    return [found[name] for name in sorted(found)]


def pictured(tree: Tree) -> dict[str, str]:
    return {path: f"{node.type} {node.link}" if node.type == "symlink" else node.type for path, node in tree.walk()}


def on_disk(root: Path) -> dict[str, str]:
    found = {}
    for path in root.rglob("*"):
        kind = f"symlink {path.readlink()}" if path.is_symlink() else "dir" if path.is_dir() else "reg"
        found[str(path.relative_to(root))] = kind
    return found


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(members, min_size=2, max_size=3))
def test_the_picture_is_what_is_unpacked(tmp_path_factory: pytest.TempPathFactory, layers: list[Any]) -> None:
    root = tmp_path_factory.mktemp("tree")
    made = [drawn(rows) for rows in layers]
    layout(root / "image", made)
    done = subprocess.run(
        [require("umoci"), "raw", "unpack", "--rootless", "--image", f"{root / 'image'}:base", root / "out"],
        capture_output=True,
        text=True,
        check=False,
    )
    tree = Tree()
    try:
        for rows in made:
            tree.add([_row(info) for info, _ in rows])
    except HostileInputError:
        assert done.returncode != 0, "umoci takes it"
        return
    if done.returncode == 0:
        assert pictured(tree) == on_disk(root / "out"), [[info.name for info, _ in rows] for rows in made]


def _row(info: tarfile.TarInfo) -> list[Any]:
    kind = {tarfile.DIRTYPE: "dir", tarfile.SYMTYPE: "symlink", tarfile.LNKTYPE: "hardlink"}.get(info.type, "reg")
    return [info.name, kind, info.mode, info.size, info.linkname, info.uid, info.gid]


def test_nothing_leads_out_of_the_picture() -> None:
    tree = Tree()
    tree.add(
        [
            ["etc", "dir", 0o755, 0, "", 0, 0],
            ["etc/passwd", "reg", 0o644, 5, "", 0, 0],
            ["up", "symlink", 0o777, 0, "../../../etc", 0, 0],
            ["loop", "symlink", 0o777, 0, "loop/loop", 0, 0],
            ["far", "symlink", 0o777, 0, "/up/../up/passwd", 0, 0],
        ]
    )
    assert tree.find("/up/passwd") == ("/etc/passwd", tree.at("etc/passwd"))
    assert tree.find("../../far") == ("/etc/passwd", tree.at("etc/passwd"))
    assert tree.find("/loop") is None
    assert tree.find("/loop/x") is None
    assert tree.find("/") == ("/", tree.root)
    with pytest.raises(HostileInputError, match="more than 512 parts"):
        tree.add([["a/" * 600 + "b", "reg", 0, 0, "", 0, 0]])


def test_whiteouts_hide_what_lies_below_wherever_they_stand() -> None:
    """In one layer a file and its whiteout: the file is of this layer and stays (image-spec, layer.md)."""
    tree = Tree()
    tree.add([["a", "dir", 0o755, 0, "", 0, 0], ["a/old", "reg", 0o644, 1, "", 0, 0], ["b", "reg", 0o644, 1, "", 0, 0]])
    tree.add(
        [
            ["a/new", "reg", 0o644, 1, "", 0, 0],
            ["a/.wh..wh..opq", "reg", 0o644, 0, "", 0, 0],
            ["b", "dir", 0o755, 0, "", 0, 0],
            [".wh.b", "reg", 0o644, 0, "", 0, 0],
            [".wh..wh.plnk", "dir", 0o755, 0, "", 0, 0],
        ]
    )
    assert pictured(tree) == {"a": "dir", "a/new": "reg", "b": "dir"}


def test_a_node_says_where_its_content_is() -> None:
    tree = Tree()
    tree.add([["a", "reg", 0o644, 1, "", 0, 0]])
    tree.add([["b", "hardlink", 0o644, 0, "a", 0, 0], ["c", "reg", 0o644, 0, "", 0, 0]])
    found = tree.at("b")
    assert isinstance(found, Node)
    assert (found.layer, found.path) == (0, "a")
