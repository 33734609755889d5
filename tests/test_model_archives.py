"""Models whose layers are archives, as modctl makes them without `--raw` and oras of folders: published again as files."""

from __future__ import annotations

import gzip
import io
import json
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path

import judges
import modelworld
import pytest
from hypothesis import given, settings
from hypothesis import strategies as some
from registryworld import as_stream, repository
from world import Done

from builder.models.artifact import open_artifact
from builder.models.modelpack import is_archive
from builder.models.sources.archives import Archive, unpacked
from builder.models.values import BadModelError
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.oci.spec import Descriptor
from builder.store import Store

TAR = "application/vnd.cncf.model.weight.v1.tar"
FILES = {"model.safetensors": modelworld.safetensors({"w": ("F32", (4,), b"1" * 16)}), "sub/a.json": b"{}", "e": b""}


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with judges.registry("docker-registry", tmp_path_factory.mktemp("registry")) as address:
        yield address


def tarred(*members: tarfile.TarInfo | tuple[str, bytes]) -> bytes:
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for member in members:
            info = tarfile.TarInfo(member[0]) if isinstance(member, tuple) else member
            data = member[1] if isinstance(member, tuple) else b""
            if isinstance(member, tuple):
                info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return out.getvalue()


def special(name: str, kind: bytes, link: str = "") -> tarfile.TarInfo:
    info = tarfile.TarInfo(name)
    info.type, info.linkname = kind, link
    return info


def pushed(address: str, path: str, *layers: tuple[str, str, bytes]) -> str:
    """An artifact with these layers: media type, name, bytes."""
    target = repository(address, path)
    listed = []
    for kind, name, data in ((spec.CONFIG.replace("image", "model"), "", b"{}"), *layers):
        said = {"org.cncf.model.filepath": name} if name else {}
        descriptor = Descriptor(kind, Digest.of(data), len(data), said)
        target.put_blob(descriptor, lambda data=data: as_stream(data))  # type: ignore[misc]
        listed.append(descriptor.document())
    document = {"schemaVersion": 2, "mediaType": spec.MANIFEST, "config": listed[0], "layers": listed[1:]}
    manifest = spec.encode({**document, "artifactType": "application/vnd.cncf.model.manifest.v1+json"})
    target.put_manifest(Descriptor(spec.MANIFEST, Digest.of(manifest), len(manifest)), manifest, "v1")
    return f"{address}/{path}:v1"


def published(tmp_path: Path, reference: str) -> Done:
    arguments = ["model", "publish", f"oci://{reference}", "oci:out:v1", "--name", "x"]
    return modelworld.inside(arguments, tmp_path, {"HOME": str(tmp_path)})


def files_of(tmp_path: Path) -> dict[str, str]:
    return {file.path: file.sha256 for file in open_artifact(Layout(tmp_path / "out"), "v1").files}


def test_each_kind_of_archive(registry: str, tmp_path: Path) -> None:
    """One plain, one compressed, one file as it is; a second time nothing is unpacked."""
    paths = list(FILES)
    folder = special("sub", tarfile.DIRTYPE)
    reference = pushed(
        registry,
        "archives/kinds",
        (TAR, paths[0], tarred((paths[0], FILES[paths[0]]))),
        (f"{TAR}+gzip", "sub", gzip.compress(tarred(folder, (f"./{paths[1]}", FILES[paths[1]])), mtime=0)),
        ("application/vnd.cncf.model.weight.config.v1.raw", paths[2], FILES[paths[2]]),
    )
    home = {"HOME": str(tmp_path)}
    refused = modelworld.inside(["model", "pull", reference, "folder"], tmp_path, home)
    assert refused.code != 0
    assert "is an archive" in refused.err
    assert "`build model publish oci://REF DESTINATION`" in refused.err
    done = published(tmp_path, reference)
    assert done.code == 0, done.err
    assert files_of(tmp_path) == {path: Digest.of(data).hex for path, data in FILES.items()}
    again = published(tmp_path, reference)
    assert again.out == done.out
    assert modelworld.inside(["model", "pull", "oci:out:v1", "folder"], tmp_path, home).code == 0
    assert {path: (tmp_path / "folder" / path).read_bytes() for path in FILES} == FILES


def test_a_folder_that_oras_pushed(registry: str, tmp_path: Path) -> None:
    modelworld.write_files(tmp_path / "files/m", FILES)
    argv = [str(judges.require("oras")), "push", "--plain-http", f"{registry}/archives/oras:v1", "m"]
    subprocess.run(argv, cwd=tmp_path / "files", check=True, capture_output=True)
    (layer,) = json.loads(
        repository(registry, "archives/oras").manifest(repository(registry, "archives/oras").resolve("v1"))
    )["layers"]
    assert is_archive(Descriptor.parse(layer))
    done = published(tmp_path, f"{registry}/archives/oras:v1")
    assert done.code == 0, done.err
    assert files_of(tmp_path) == {f"m/{path}": Digest.of(data).hex for path, data in FILES.items()}


@pytest.mark.parametrize(
    ("members", "why"),
    [
        ([("../x", b"1")], "leaves the folder"),
        ([("/x/../../y", b"1")], "leaves the folder"),
        ([special("l", tarfile.SYMTYPE, "/etc/passwd"), ("l", b"1")], "'l' is a symlink"),
        ([special("l", tarfile.LNKTYPE, "a")], "'l' is a hardlink"),
        ([special("d", tarfile.CHRTYPE)], "'d' is a char"),
        ([("a", b"1"), ("A", b"2")], "clashes"),
        ([(".build/x", b"1")], "index of the model"),
        ([("model.bin", b"1")], "can run code"),
    ],
)
def test_archives_that_lie(
    members: list[tarfile.TarInfo | tuple[str, bytes]], why: str, registry: str, tmp_path: Path
) -> None:
    name = "".join(letter for letter in why if letter.islower())
    done = published(tmp_path, pushed(registry, f"lies/{name}", (TAR, "x", tarred(*members))))
    assert done.code == 1
    assert why in done.err
    assert "Traceback" not in done.err


def test_a_file_that_two_layers_bring(registry: str, tmp_path: Path) -> None:
    raw = "application/vnd.cncf.model.doc.v1.raw"
    same = pushed(registry, "twice/same", (TAR, "x", tarred(("a.txt", b"1"))), (raw, "a.txt", b"1"))
    assert published(tmp_path, same).code == 0
    other = pushed(registry, "twice/other", (TAR, "x", tarred(("a.txt", b"2"))), (raw, "a.txt", b"1"))
    done = published(tmp_path, other)
    assert (done.code, "'a.txt' is there twice, with other bytes" in done.err) == (1, True)


def kept(data: bytes, tmp_path: Path, media_type: str = TAR) -> tuple[object, ...]:
    layout = Layout(tmp_path / "layout")
    descriptor = Descriptor(media_type, Digest.of(data), len(data))
    layout.put_blob(descriptor, lambda: as_stream(data))
    return unpacked(Archive(layout, descriptor, "x"), Store(tmp_path / "store"), lambda _: None)


def test_what_unpacks_to_too_much(tmp_path: Path) -> None:
    bomb = gzip.compress(tarred(("zeros", bytes(70 << 20))))
    with pytest.raises(BadModelError, match="it unpacks to more than can be meant"):
        kept(bomb, tmp_path)


@pytest.mark.parametrize(
    "data",
    [b"", b"no tar", tarred(("a", b"1" * 2000))[:1500], gzip.compress(tarred(("a", b"1")))[:-9]],
    ids=["empty", "no tar", "cut off", "cut off, compressed"],
)
def test_damaged_archives(data: bytes, tmp_path: Path) -> None:
    with pytest.raises(BadModelError, match=r"^sha256:[0-9a-f]{64} \(x\): "):
        kept(data, tmp_path)


@settings(deadline=None, max_examples=60)  # it writes to the disk, which others use too
@given(some.binary(max_size=1500), some.integers(0, 1500))
def test_any_archive_is_unpacked_or_refused(tmp_path_factory: pytest.TempPathFactory, data: bytes, at: int) -> None:
    whole = tarred(("a/b", b"12345"), ("c", b"67890" * 100))
    try:
        kept(whole[:at] + data + whole[at + len(data) :], tmp_path_factory.mktemp("fuzz"))
    except BadModelError:
        return
