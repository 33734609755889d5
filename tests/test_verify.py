"""A real published image, broken in every way that comes to mind: the verdict names what, where, and of which kind."""

from __future__ import annotations

import gzip
import json
import os
import struct
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import judges
import pytest
from images import SOCI, Parts, digest, encoded, rearranged, recontent, reheader
from world import Done, World, run

WHEELS, FILES = 1, 2
CHECKPOINT = 17 + 32768


@dataclass(frozen=True)
class Bench:
    """The small image in a layout of its own, and how to verify it."""

    parts: Parts
    lock: Path
    environment: dict[str, str]

    def verify(self, *options: object) -> Done:
        return run(["verify", "-q", f"oci:{self.parts.root}", *options], self.parts.root.parent, self.environment)

    def verdict(self, *options: object) -> Any:
        """The JSON of a verification that says no."""
        done = self.verify(*options, "--format", "json")
        assert done.code == 3, (done.out, done.err)
        assert done.err == ""
        return json.loads(done.out)

    def first(self, *options: object) -> Any:
        """The first finding."""
        return self.verdict(*options)["findings"][0]

    def kinds(self, *options: object) -> list[str]:
        return [finding["kind"] for finding in self.verdict(*options)["findings"]]


@pytest.fixture
def bench(world: World, small: Path, tmp_path: Path) -> Bench:
    environment = world.environment(world.root / "cache", LAYERWRIGHT_OFFLINE="1")
    return Bench(Parts.of(small.parent / "out", tmp_path / "image"), small.with_suffix(".lock.json"), environment)


def test_what_is_published_is_identical(bench: Bench) -> None:
    """From the reference alone, the lock being attached, and with the lock that is given."""
    for options in ([], ["--lock", bench.lock]):
        done = bench.verify(*options)
        assert (done.code, done.err) == (0, "")
        assert done.out.endswith("identical: rebuilt from the lock, every byte is the same\n")
    document = bench.verify("--format", "json").json
    assert (document["verdict"], document["findings"], document["rebuilt"]) == ("identical", [], True)
    assert [layer["name"] for layer in document["platforms"]["linux/amd64"]["layers"]] == [
        "debian bookworm",
        "3 wheels",
        "files",
    ]


def test_what_is_published_is_valid(bench: Bench) -> None:
    done = bench.verify("--quick")
    assert done.code == 0
    assert "valid: " in done.out
    document = bench.verify("--quick", "--format", "json").json
    assert (document["verdict"], document["rebuilt"], document["lock"]) == ("valid", False, None)
    assert document["platforms"]["linux/amd64"]["layers"][WHEELS]["spans"] > 1


def test_taken_apart_and_put_together_it_stays_the_same(bench: Bench) -> None:
    """The tests' own tool changes nothing that it should not."""
    bench.parts.write()
    assert bench.verify("--lock", bench.lock).code == 0


def test_the_inputs_are_not_believed_to_be_in_the_store(bench: Bench, world: World, tmp_path: Path) -> None:
    """Layers of the store are not used: what is rebuilt is rebuilt."""
    environment = world.environment(tmp_path / "empty", LAYERWRIGHT_OFFLINE="1")
    done = run(["verify", "-q", f"oci:{bench.parts.root}"], tmp_path, environment)
    assert (done.code, done.out) == (1, "")
    assert "not in the store" in done.err


def test_without_a_lock(bench: Bench) -> None:
    bench.parts.bind()
    done = bench.verify()
    assert (done.code, done.out) == (1, "")
    assert "no lock is attached" in done.err
    assert "--lock FILE" in done.err
    assert bench.verify("--quick").code == 0


def test_wrong_usage(bench: Bench) -> None:
    assert bench.verify("--quick", "--lock", bench.lock).code == 2
    assert bench.verify("--lock", "nowhere.json").code == 2
    done = run(["verify", "oci:nowhere"], bench.parts.root.parent, bench.environment)
    assert (done.code, done.out) == (1, "")


@pytest.mark.parametrize("number", [0, WHEELS, FILES])
@pytest.mark.parametrize("where", [0.0, 0.3, 0.9, 1.0])
def test_a_flipped_bit(number: int, where: float, bench: Bench) -> None:
    """The blob is damaged; the rebuilt one tells the byte."""
    path = bench.parts.layer(number)
    place = min(int(path.stat().st_size * where), path.stat().st_size - 1)
    bench.parts.spoil(path, place)
    quick = bench.first("--quick")
    assert (quick["kind"], quick["layer"], quick["platform"]) == ("blob", number + 1, "linux/amd64")
    findings = bench.verdict()["findings"]
    assert {finding["kind"] for finding in findings} == {"blob"}
    if where < 1 and number != FILES:  # the last byte is not given out; what the files were, only the layer knew
        assert findings[-1]["byte"] == place
        assert "expected 0x" in findings[-1]["message"]


def test_a_flipped_bit_is_named_with_its_file(bench: Bench) -> None:
    path = bench.parts.layer(WHEELS)
    bench.parts.spoil(path, path.stat().st_size // 2)
    (told,) = [finding for finding in bench.verdict()["findings"] if finding["byte"] is not None]
    assert told["path"] == "opt/venv/lib/python3.11/site-packages/alpha/blob.bin"


def test_a_blob_that_is_missing_or_cut_off(bench: Bench) -> None:
    path = bench.parts.layer(FILES)
    data = path.read_bytes()
    path.unlink()
    found = bench.first("--quick")
    assert (found["kind"], found["layer"]) == ("blob", 3)
    path.write_bytes(data[:-1])
    assert bench.first()["kind"] == "blob"
    path.write_bytes(data + b"x")
    assert bench.first("--quick")["kind"] == "blob"
    path.unlink()
    path.mkdir()
    assert bench.first("--quick")["kind"] == "blob"


NOTES = "app/deep/er/notes.txt"


@pytest.mark.parametrize(
    ("change", "kind", "path", "byte", "words"),
    [
        (recontent(NOTES, 75, b"X"), "content", NOTES, 75, "expected 0x65, found 0x58"),
        (recontent(NOTES, 0, b"X"), "content", NOTES, 0, "expected 0x6e, found 0x58"),
        (recontent(NOTES, 599, b"X"), "content", NOTES, 599, "expected 0x0a, found 0x58"),
        (reheader(NOTES, 100, b"0000600\0"), "mode", NOTES, None, "expected 0644, found 0600"),
        (reheader(NOTES, 100, b"0004755\0"), "mode", NOTES, None, "expected 0644, found 4755"),
        (reheader(NOTES, 108, b"0001750\0"), "owner", NOTES, None, "expected 0:0, found 1000:0"),
        (reheader(NOTES, 116, b"0000001\0"), "owner", NOTES, None, "expected 0:0, found 0:1"),
        (reheader(NOTES, 265, b"root\0"), "owner", NOTES, None, "found 0:0 (root:)"),
        (reheader(NOTES, 136, b"00000000000\0"), "mtime", NOTES, None, "expected 315532800, found 0"),
        (reheader("app/note", 157, b"/etc/passwd\0"), "link", "app/note", None, "found /etc/passwd"),
        (reheader("app/current", 156, b"5"), "type", "app/current", None, "expected symlink, found dir"),
        (reheader(NOTES, 100, b"000644 \0"), "header", NOTES, 103, "expected 0x30"),
        (rearranged(lambda names: [names[0], *reversed(names[1:])]), "order", None, None, "in another order"),
        (rearranged(lambda names: [name for name in names if name != NOTES]), "missing", NOTES, None, "600 bytes"),
        (rearranged(lambda names: [name for name in names if name != "app/zeta"]), "missing", "app/zeta", None, ""),
        (lambda tar: tar + bytes(512), "end", None, None, "a tar of"),
    ],
    ids=lambda value: getattr(value, "__qualname__", str(value)).split(".")[0],
)
def test_a_changed_file(
    change: Callable[[bytearray], bytes | None], kind: str, path: str | None, byte: int | None, words: str, bench: Bench
) -> None:
    """The digests of the image all fit, and `--quick` has nothing to say; what the lock makes is another image."""
    bench.parts.retar(FILES, change)
    bench.parts.write()
    assert bench.verify("--quick").code == 0
    found = bench.first("--lock", bench.lock)
    assert (found["kind"], found["layer"], found["name"]) == (kind, 3, "files")
    assert found["byte"] == byte
    if path:
        assert found["path"] == path
    assert words in found["message"]
    text = bench.verify("--lock", bench.lock)
    assert text.code == 3
    assert "linux/amd64, layer 3 (files)" in text.out
    assert "different: 1 finding\n" in text.out


def test_a_changed_file_without_the_folder_of_the_profile(bench: Bench, tmp_path: Path) -> None:
    """What the file was is not known then; that it is another one is."""
    bench.parts.retar(FILES, recontent(NOTES, 77, b"X"))
    bench.parts.write()
    (tmp_path / "elsewhere").mkdir()
    lock = tmp_path / "elsewhere/small.lock.json"
    lock.write_bytes(bench.lock.read_bytes())
    found, other = bench.verdict("--lock", lock)["findings"]
    assert (found["kind"], found["path"], found["byte"]) == ("content", NOTES, None)
    assert other["kind"] == "compression only"
    assert "sha256" in found["message"]


def test_an_extra_file(bench: Bench) -> None:
    extra = bytearray(512)
    extra[:5], extra[100:108], extra[124:136], extra[156:157] = b"app/x", b"0004755\0", b"00000000000\0", b"0"
    extra[148:156] = b"        "
    extra[148:156] = b"%06o\0 " % sum(extra)
    bench.parts.retar(FILES, lambda tar: tar[:-1024] + extra + bytes(1024))
    bench.parts.write()
    found = bench.first("--lock", bench.lock)
    assert (found["kind"], found["path"]) == ("extra", "app/x")


@pytest.mark.parametrize("level", [1, 6, 9])
def test_another_compression_only(level: int, bench: Bench) -> None:
    bench.parts.layers[0] = gzip.compress(gzip.decompress(bench.parts.layers[0]), level, mtime=0)
    bench.parts.write()
    assert bench.verify("--quick").code == 0
    (found,) = bench.verdict("--lock", bench.lock)["findings"]
    assert (found["kind"], found["layer"]) == ("compression only", 1)
    assert found["byte"] is not None


def test_a_layer_of_several_members(bench: Bench) -> None:
    tar = gzip.decompress(bench.parts.layers[0])
    bench.parts.layers[0] = gzip.compress(tar[:5000]) + gzip.compress(b"") + gzip.compress(tar[5000:])
    bench.parts.write()
    assert bench.kinds("--lock", bench.lock) == ["compression only"]


def test_a_layer_without_compression(bench: Bench) -> None:
    bench.parts.layers[0] = gzip.decompress(bench.parts.layers[0])
    bench.parts.manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar"
    bench.parts.write()
    assert bench.verify("--quick").code == 0
    assert bench.kinds("--lock", bench.lock) == ["compression only", "manifest"]
    bench.parts.manifest["layers"][0]["mediaType"] = "application/vnd.oci.image.layer.v1.tar+zstd"
    bench.parts.write()
    (found,) = bench.verdict("--quick")["findings"]
    assert (found["kind"], found["message"]) == ("layer", "its media type says zstd, and it is tar")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "empty"),
        (gzip.compress(b"no tar" * 500), "holds"),
        (b"\x28\xb5\x2f\xfd" + bytes(100), "cut off"),
        (b"\x28\xb5\x2f\xfd" + b"\xff" * 100, "damaged"),
        (gzip.compress(b""), "two blocks"),
        (gzip.compress(bytes(1024))[:-3], "cut off"),
        (gzip.compress(bytes(1024)) + b"x", "cut off"),
        (gzip.compress(bytes(1024) + b"x" * 512), "follow the end"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_a_layer_that_is_none(data: bytes, words: str, bench: Bench) -> None:
    """Its digest is right, and yet."""
    bench.parts.layers[FILES] = data
    bench.parts.write()
    found = bench.first("--quick")
    assert (found["kind"], found["layer"]) == ("layer", 3)
    assert words in found["message"]
    assert bench.first("--lock", bench.lock)["kind"] == "layer"


def test_wrong_diff_ids(bench: Bench) -> None:
    ids = bench.parts.config["rootfs"]["diff_ids"]
    ids[0], ids[FILES] = ids[FILES], ids[0]
    bench.parts.write()
    assert bench.kinds("--quick") == ["diff_id", "diff_id"]
    del ids[0]
    bench.parts.write()
    found = bench.first("--quick")
    assert found["kind"] == "structure"
    assert "3 layers, its configuration 2 diff_ids" in found["message"]


def test_layers_in_another_order(bench: Bench) -> None:
    parts = bench.parts
    for items in (parts.layers, parts.manifest["layers"], parts.config["rootfs"]["diff_ids"]):
        items[0], items[FILES] = items[FILES], items[0]
    parts.write()
    assert bench.verify("--quick").code == 0
    findings = bench.verdict("--lock", bench.lock)["findings"]
    assert any(finding["kind"] == "layers" and "another order" in finding["message"] for finding in findings)


def test_a_missing_and_an_extra_layer(bench: Bench) -> None:
    parts = bench.parts
    parts.layers.append(parts.layers[0])
    parts.manifest["layers"].append(dict(parts.manifest["layers"][0]))
    parts.config["rootfs"]["diff_ids"].append(parts.config["rootfs"]["diff_ids"][0])
    parts.write()
    assert "no such layer" in str(bench.verdict("--lock", bench.lock))
    for items in (parts.layers, parts.manifest["layers"], parts.config["rootfs"]["diff_ids"]):
        del items[0], items[-1]
    parts.ztocs = {0: parts.ztocs[1]}
    parts.write()
    assert "this layer is missing" in str(bench.verdict("--lock", bench.lock))


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda config: config["config"].update(User="0"), '$.config.User: expected "65532:65532", found "0"'),
        (lambda config: config["config"]["Env"].append("LD_PRELOAD=/x"), "$.config.Env[2]: expected nothing, found"),
        (lambda config: config["config"].pop("Entrypoint"), "$.config.Entrypoint: expected ["),
        (lambda config: config.update(created="2000-01-01T00:00:00Z"), "$.created: expected"),
        (lambda config: config["history"][1].update(created_by="me"), "$.history[1].created_by: expected"),
    ],
)
def test_a_changed_configuration(change: Callable[[Any], None], words: str, bench: Bench) -> None:
    change(bench.parts.config)
    bench.parts.write()
    assert bench.verify("--quick").code == 0
    (found,) = bench.verdict("--lock", bench.lock)["findings"]
    assert found["kind"] == "config"
    assert words in found["message"]


def test_documents_that_say_the_same_in_other_bytes(bench: Bench) -> None:
    bench.parts.write()  # not as our own encoder writes a configuration: its keys keep their order
    bench.parts.config = dict(reversed(bench.parts.config.items()))
    bench.parts.write()
    (found,) = bench.verdict("--lock", bench.lock)["findings"]
    assert (found["kind"], found["message"]) == ("config", "the configuration says the same in other bytes")
    bench.parts.config = dict(sorted(bench.parts.config.items()))
    bench.parts.manifest = dict(reversed(bench.parts.manifest.items()))
    bench.parts.write()
    (found,) = bench.verdict("--lock", bench.lock)["findings"]
    assert (found["kind"], found["message"]) == ("manifest", "the manifest says the same in other bytes")


def test_a_changed_manifest_and_index(bench: Bench) -> None:
    bench.parts.manifest["annotations"]["org.example.note"] = "x"
    bench.parts.write()
    (found,) = bench.verdict("--lock", bench.lock)["findings"]
    assert found["kind"] == "manifest"
    assert "$.annotations" in found["message"]
    del bench.parts.manifest["annotations"]["org.example.note"]
    bench.parts.top["annotations"] = {"a": "b"}
    bench.parts.write()
    (found,) = bench.verdict("--lock", bench.lock)["findings"]
    assert found["kind"] == "index"
    assert found["message"] == '$.annotations: expected nothing, found {"a": "b"}'


@pytest.mark.parametrize("which", ["top", "manifest", "config", "soci"])
@pytest.mark.parametrize("damage", ["cut", "bit", "gone"])
def test_damaged_documents(which: str, damage: str, bench: Bench) -> None:
    """`top` is what the tag leads to: without it there is nothing to verify."""
    parts = bench.parts
    name = {
        "top": digest(encoded(parts.top)),
        "manifest": parts.top["manifests"][0]["digest"],
        "soci": parts.top["manifests"][1]["digest"],
        "config": parts.manifest["config"]["digest"],
    }[which]
    path = parts.blob(name)
    data = path.read_bytes()
    path.unlink()
    if damage != "gone":
        path.write_bytes(data[:-2] if damage == "cut" else bytes([data[0] ^ 1]) + data[1:])
    done = bench.verify("--quick")
    assert done.code == 3, done.err
    assert "blob: " in done.out
    assert name in done.out


@pytest.mark.parametrize(
    "change",
    [
        lambda top: top["manifests"][0].update(digest="sha256:1"),
        lambda top: top["manifests"][0].update(size="many"),
        lambda top: top["manifests"][0].pop("mediaType"),
        lambda top: top.update(manifests=[]),
        lambda top: top.update(manifests={"a": 1}),
        lambda top: top["manifests"][0].update(platform={"os": "linux", "architecture": "arm64"}),
        lambda top: top["manifests"].append(top["manifests"][0]),
    ],
)
def test_an_index_that_contradicts_itself(change: Callable[[Any], None], bench: Bench) -> None:
    change(bench.parts.top)
    bench.parts.bind()
    assert bench.first("--quick")["kind"] in ("structure", "platform")


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda parts: parts.top["manifests"].pop(), "is not in the index of the image"),
        (
            lambda parts: parts.top["manifests"][1]["annotations"].update(
                {SOCI + "image-manifest-digest": "sha256:" + "0" * 64}
            ),
            "is for another image",
        ),
        (
            lambda parts: parts.top["manifests"].append(
                parts.top["manifests"][1] | {"digest": parts.manifest["config"]["digest"]}
            ),
            "no image is bound to the SOCI index",
        ),
        (
            lambda parts: parts.top["manifests"][1].update(platform={"os": "linux", "architecture": "arm64"}),
            "is for linux/arm64",
        ),
    ],
)
def test_a_soci_index_that_is_bound_wrongly(change: Callable[[Parts], None], words: str, bench: Bench) -> None:
    change(bench.parts)
    bench.parts.bind()
    found = bench.first("--quick")
    assert found["kind"] == "soci"
    assert words in found["message"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda soci: soci["layers"][0]["annotations"].update({SOCI + "image-layer-mediaType": "x"}),
            "said to be for x",
        ),
        (lambda soci: soci.update(layers=[]), "lists no ztocs"),
        (lambda soci: soci["config"].update(mediaType="application/json"), "no SOCI index v2"),
    ],
)
def test_a_soci_index_that_is_wrong(change: Callable[[Any], None], words: str, bench: Bench) -> None:
    change(bench.parts.soci)
    if not bench.parts.soci["layers"]:
        bench.parts.ztocs = {}
    bench.parts.write()
    found = bench.first("--quick")
    assert (found["kind"], words in found["message"]) == ("soci", True), found


def test_a_ztoc_for_another_layer(bench: Bench) -> None:
    """Every offset is that of another blob."""
    bench.parts.ztocs = {0: bench.parts.ztocs[WHEELS]}
    bench.parts.write()
    findings = bench.verdict("--quick")["findings"]
    assert {finding["kind"] for finding in findings} == {"soci"}
    words = " ".join(finding["message"] for finding in findings)
    for what in ("size: ", "checkpoint: ", "span digest: ", "table of contents: "):
        assert what in words


def _checkpoints(ztoc: bytes) -> int:
    """Where the checkpoints begin: behind their count and the span size."""
    (at,) = [
        at + 12
        for at in range(0, len(ztoc) - 16, 4)
        if struct.unpack_from("<I", ztoc, at - 4 if at else 0)[0]
        == 12 + struct.unpack_from("<i", ztoc, at)[0] * CHECKPOINT
        and struct.unpack_from("<q", ztoc, at + 4)[0] == 256 << 10
    ]
    return at


def _patched(ztoc: bytes, at: int, data: bytes) -> bytes:
    return ztoc[:at] + data + ztoc[at + len(data) :]


def _window(ztoc: bytes) -> bytes:
    at = _checkpoints(ztoc) + 2 * CHECKPOINT + 17 + 1000
    return _patched(ztoc, at, bytes([ztoc[at] ^ 1]))


def _in_offset(ztoc: bytes) -> bytes:
    at = _checkpoints(ztoc) + CHECKPOINT
    return _patched(ztoc, at, struct.pack("<q", struct.unpack_from("<q", ztoc, at)[0] + 1))


def _out_offset(ztoc: bytes) -> bytes:
    at = _checkpoints(ztoc) + CHECKPOINT + 8
    return _patched(ztoc, at, struct.pack("<q", struct.unpack_from("<q", ztoc, at)[0] + 1))


def _bits(ztoc: bytes) -> bytes:
    at = _checkpoints(ztoc) + CHECKPOINT + 16
    return _patched(ztoc, at, bytes([ztoc[at] ^ 1]))


def _backwards(ztoc: bytes) -> bytes:
    return _patched(ztoc, _checkpoints(ztoc) + CHECKPOINT, struct.pack("<q", 3))


def _span_digest(ztoc: bytes) -> bytes:
    at = ztoc.index(b"sha256:") + 20
    return _patched(ztoc, at, b"0" if ztoc[at : at + 1] != b"0" else b"1")


def _no_digest(ztoc: bytes) -> bytes:
    return _patched(ztoc, ztoc.index(b"sha256:"), b"sha257:")


def _name(ztoc: bytes) -> bytes:
    return ztoc.replace(b"alpha/blob.bin", b"alpha/blob.bim", 1)


def _entry_time(ztoc: bytes) -> bytes:
    return ztoc.replace(b"1980-01-01T00:00:00Z", b"1980-01-01T00:00:01Z", 1)


def _no_time(ztoc: bytes) -> bytes:
    return ztoc.replace(b"1980-01-01T00:00:00Z", b"1980-31-01T00:00:00Z", 1)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (_window, "window: the window of checkpoint 2"),
        (_in_offset, "checkpoint: checkpoint 1"),
        (_out_offset, "checkpoint: checkpoint 1"),
        (_bits, "checkpoint: checkpoint 1"),
        (_backwards, "cannot be read: checkpoint 1"),
        (_span_digest, "span digest: span "),
        (_no_digest, "not a sha256 digest"),
        (_name, "table of contents: its name is"),
        (_entry_time, "table of contents: its mtime is"),
        (_no_time, "table of contents cannot be read"),
        (lambda ztoc: ztoc[:-40], "cannot be read"),
        (lambda ztoc: ztoc[:1000], "cannot be read"),
        (lambda ztoc: b"", "cannot be read: it is empty"),
        (lambda ztoc: b"\xff" * 4 + ztoc[4:], "cannot be read"),
        (lambda ztoc: b"hello", "cannot be read"),
    ],
)
def test_a_wrong_ztoc(change: Callable[[bytes], bytes], words: str, bench: Bench) -> None:
    """Its digest is the one of the SOCI index; what it says is not so."""
    ztoc = bench.parts.ztocs[WHEELS]
    bench.parts.ztocs[WHEELS] = change(ztoc)
    assert bench.parts.ztocs[WHEELS] != ztoc
    bench.parts.write()
    found = bench.first("--quick")
    assert (found["kind"], found["layer"], found["name"]) == ("soci", 2, "3 wheels")
    assert any(words in finding["message"] for finding in bench.verdict("--quick")["findings"])
    findings = bench.verdict("--lock", bench.lock)["findings"]
    assert any("its ztoc is sha256:" in finding["message"] for finding in findings)


def test_a_damaged_ztoc(bench: Bench) -> None:
    bench.parts.spoil(bench.parts.ztoc(), 5000)
    found = bench.first("--quick")
    assert (found["kind"], found["layer"]) == ("blob", 2)
    assert "its ztoc" in found["message"]


def test_an_image_without_a_soci_index(bench: Bench) -> None:
    """It is valid, and not what the lock makes."""
    parts = bench.parts
    parts.write()
    parts.top["manifests"].pop()
    for annotated in (parts.manifest, parts.top["manifests"][0]):
        del annotated["annotations"]
    data = encoded(parts.manifest)
    (parts.root / "blobs/sha256" / digest(data).removeprefix("sha256:")).write_bytes(data)
    parts.top["manifests"][0] |= {"digest": digest(data), "size": len(data)}
    parts.bind()
    assert bench.verify("--quick").code == 0
    assert bench.kinds("--lock", bench.lock) == ["soci", "index"]


def test_a_manifest_alone(bench: Bench) -> None:
    """One platform by its digest: it is what the lock makes of this platform."""
    name = bench.parts.top["manifests"][0]["digest"]
    done = run(
        ["verify", "-q", f"oci:{bench.parts.root}@{name}", "--lock", bench.lock],
        bench.parts.root.parent,
        bench.environment,
    )
    assert done.code == 0, done.out + done.err


def test_the_lock_of_another_image(bench: Bench) -> None:
    lock = json.loads(bench.lock.read_bytes())
    lock["platforms"][0]["platform"] = "linux/arm64"
    other = bench.parts.root.parent / "other.lock.json"
    other.write_text(json.dumps(lock, sort_keys=True, indent=2, ensure_ascii=False) + "\n")
    assert bench.kinds("--lock", other)[:2] == ["platform", "platform"]
    other.write_text("{}")
    done = bench.verify("--lock", other)
    assert (done.code, done.out) == (1, "")


def test_names_that_would_disturb_a_terminal(bench: Bench) -> None:
    def change(tar: bytearray) -> None:
        reheader("app/note", 157, b"\x1b[2J\n\xff\xfe\0")(tar)

    bench.parts.retar(FILES, change)
    bench.parts.write()
    done = bench.verify("--lock", bench.lock)
    assert done.code == 3
    assert "\x1b" not in done.out
    assert "\\x1b[2J\\x0a" in done.out
    assert bench.first("--lock", bench.lock)["kind"] == "link"


def test_nothing_is_left_behind(bench: Bench, world: World) -> None:
    store = world.root / "cache/layerwright/tmp"
    before = set(os.listdir(store))
    bench.verify()
    bench.parts.spoil(bench.parts.layer(0), 100)
    bench.verify()
    assert set(os.listdir(store)) == before


@pytest.mark.parametrize("kind", ["docker-registry", "olareg"])
def test_in_a_registry(kind: str, bench: Bench, tmp_path: Path) -> None:
    """The lock is found by the referrers or by their tag; a registry that gives other bytes, or none, is found out."""
    storage = tmp_path / "storage"
    with judges.registry(kind, storage) as address:

        def verify(*options: object) -> Done:
            return run(["verify", "-q", f"{address}/team/small:v1", *options], tmp_path, environment)

        environment = {name: value for name, value in bench.environment.items() if name != "LAYERWRIGHT_OFFLINE"}
        copied = run(["copy", "-q", f"oci:{bench.parts.root}", f"{address}/team/small:v1"], tmp_path, environment)
        assert copied.code == 0, copied.err
        whole = verify()
        assert whole.code == 0, whole.out + whole.err
        assert whole.out.endswith("identical: rebuilt from the lock, every byte is the same\n")
        assert verify("--quick").code == 0
        layer = stored(storage, bench.parts.manifest["layers"][WHEELS]["digest"])
        data = layer.read_bytes()
        layer.write_bytes(data[:1000] + b"?" + data[1001:])
        done = verify("--quick", "--format", "json")
        assert done.code == 3, done.err
        (found,) = json.loads(done.out)["findings"]
        assert (found["kind"], found["layer"]) == ("blob", 2)
        layer.unlink()
        done = verify("--quick", "--format", "json")
        assert (done.code, json.loads(done.out)["findings"][0]["kind"]) == (3, "blob"), done.err
        layer.write_bytes(data)
        if kind == "olareg":  # the other one notices it, and gives an error 500 until patience ends
            manifest = stored(storage, bench.parts.top["manifests"][0]["digest"])
            manifest.write_bytes(manifest.read_bytes()[:-10])
            done = verify("--quick")
            assert done.code == 3, done.err
            assert bench.parts.top["manifests"][0]["digest"] in done.out
        assert run(["verify", f"{address}/team/small:v2"], tmp_path, environment).code == 1


def stored(storage: Path, name: str) -> Path:
    """The file in which a registry keeps a blob."""
    found = [path for path in storage.rglob("*") if name.removeprefix("sha256:") in str(path)]
    files = [path for path in found if path.is_file() and path.name in ("data", name.removeprefix("sha256:"))]
    return files[0]
