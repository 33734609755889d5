"""Things from Nix in a profile: locked with all that they need, brought, checked, and laid out in layers."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import sys
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import baseimages
import judges
import nixworld
import pytest
from layouts import Layout
from world import Done, run

from builder import lock as locks
from builder.findings import nixpaths
from builder.findings.root import File, Root
from builder.layers.tar import Kind
from builder.lock import LockedNix
from builder.sources.nar import Node

PROFILE = """\
profile: 1
name: tools
nix:
  - ./default.nix#app
  - {from: "default.nix#other", links: {/opt/other: bin/other}}
publish: {soci: {span-size: 256KiB, min-layer-size: 1MiB}}
"""


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A profile with expressions of Nix beside it, locked and published to `out`; its Nix store is `nix`."""
    judges.require("nix")
    root = tmp_path_factory.mktemp("project")
    nixworld.maker(root)
    (root / "tools.yaml").write_text(PROFILE)
    done = build(root, ["publish", "tools.yaml", "oci:out"])
    assert done.code == 0, done.err
    return root


def build(
    root: Path, arguments: Sequence[object], cache: str = "cache", prefix: Sequence[str] = (), **more: str
) -> Done:
    environ = {"PATH": os.environ["PATH"], "XDG_CACHE_HOME": str(root / cache), "SOURCE_DATE_EPOCH": "1700000000"}
    return run(arguments, root, environ | nixworld.environment(root) | more, prefix=prefix)


def locked(root: Path, name: str = "tools") -> LockedNix:
    file = root / f"{name}.lock.json"
    found = locks.parse(file.read_text(), str(file)).platforms[0].nix
    assert found
    return found


def test_a_lock_says_what_nix_says(project: Path) -> None:
    nix = locked(project)
    names = [name for root in nix.roots for name in root.outputs]
    document = json.loads(
        nixworld.nix(project, "path-info", "--json", "--recursive", *(f"/nix/store/{name}" for name in names))
    )
    said = document if isinstance(document, list) else [{"path": path} | item for path, item in document.items()]
    assert [path.name[33:] for path in sorted(nix.paths, key=lambda path: path.name[33:])] == [
        *("app-1.2", "libc-2.36", "libssl-3.0.1", "other")
    ]
    assert {path.name for path in nix.paths} == {item["path"][11:] for item in said}
    for item in said:
        (path,) = (path for path in nix.paths if path.name == item["path"][11:])
        assert path.size == item["narSize"]
        assert {f"/nix/store/{name}" for name in path.references} == set(item["references"])
        dumped = nixworld.nix(project, "store", "dump-path", item["path"])
        assert hashlib.sha256(dumped).hexdigest() == path.sha256


def test_what_is_in_the_image_is_what_nix_has(project: Path) -> None:
    flat = f"oci:{project / 'flat'}:flat"
    argv = [str(judges.require("skopeo")), "copy", "--quiet", f"oci:{project / 'out'}:latest", flat]
    subprocess.run(argv, check=True, capture_output=True)
    unpacked = project / "unpacked"
    argv = [str(judges.require("umoci")), "unpack", "--rootless", "--image", flat.removeprefix("oci:"), str(unpacked)]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    store = project / "nix/nix/store"
    for path in locked(project).paths:
        ours, theirs = unpacked / "rootfs/nix/store" / path.name, store / path.name
        files = sorted(item.relative_to(theirs) for item in theirs.rglob("*"))
        assert files == sorted(item.relative_to(ours) for item in ours.rglob("*"))
        for file in files:
            if (theirs / file).is_file():
                assert (ours / file).read_bytes() == (theirs / file).read_bytes()
                assert (ours / file).stat().st_mtime == 1
                assert (ours / file).stat().st_mode & 0o777 == (theirs / file).stat().st_mode & 0o777
    app = next(path.name for path in locked(project).paths if path.name.endswith("-app-1.2"))
    assert os.readlink(unpacked / "rootfs/usr/local/bin/app-1.2") == f"/nix/store/{app}/bin/app-1.2"
    assert os.readlink(unpacked / "rootfs/opt/other").endswith("-other/bin/other")


@pytest.mark.parametrize("version", ["installed", "newer"])
def test_a_second_store_makes_the_same_image(
    project: Path, tmp_path: Path, version: str, request: pytest.FixtureRequest
) -> None:
    """Where Nix has to build everything again, too, and locks it again."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    for name in ("tools.yaml", "tools.lock.json", "default.nix", "maker"):
        (elsewhere / name).write_bytes((project / name).read_bytes())
    (elsewhere / "maker").chmod(0o755)
    newer = {"PATH": f"{request.getfixturevalue('newer_nix')}:{os.environ['PATH']}"} if version == "newer" else {}
    done = build(elsewhere, ["lock", "tools.yaml"], **newer)
    assert done.code == 0, done.err
    assert locked(elsewhere) == locked(project)
    done = build(elsewhere, ["publish", "tools.yaml", "oci:out"], "another", **newer)
    assert done.code == 0, done.err
    assert Layout(elsewhere / "out").blobs() == Layout(project / "out").blobs()
    assert build(elsewhere, ["verify", "oci:out"], **newer).code == 0


def change(root: Path, before: str, after: str, name: str = "tools.lock.json") -> None:
    text = (root / name).read_text()
    assert before in text
    (root / name).write_text(text.replace(before, after))


@pytest.fixture
def copy(project: Path, tmp_path: Path) -> Path:
    """The project, locked, in a folder of its own, with a Nix store of its own."""
    for name in ("tools.yaml", "tools.lock.json", "default.nix", "maker"):
        shutil.copy(project / name, tmp_path / name)
    return tmp_path


def wrong(root: Path, arguments: Sequence[object], cache: str = "cache", **more: str) -> str:
    done = build(root, arguments, cache, **more)
    assert done.code in (1, 3), done.err
    assert "Traceback" not in done.err
    return done.err


def test_a_lock_is_stale_when_an_expression_changes(copy: Path) -> None:
    (copy / "default.nix").write_text(nixworld.DEFAULT + "\n# a comment\n")
    assert "nix: default.nix#app has changed" in wrong(copy, ["publish", "tools.yaml", "oci:out"])
    before = locked(copy)
    assert build(copy, ["lock", "tools.yaml"]).code == 0
    assert locked(copy).paths == before.paths


def test_a_reference_that_moved(copy: Path) -> None:
    """A file that no Nix file is: nobody but Nix knows that it counts."""
    (copy / "version").write_text("1")
    change(copy, "tool = name;", "tool = name; version = builtins.readFile ./version;", "default.nix")
    assert build(copy, ["lock", "tools.yaml"]).code == 0
    (copy / "version").write_text("2")
    shutil.move(copy / "nix", copy / "old-nix")
    said = wrong(copy, ["publish", "tools.yaml", "oci:out"])
    assert " is locked, and default.nix#app, default.nix#other gives it no more: what that is has moved" in said
    assert "hint: run `build lock --upgrade` and review" in said
    before = locked(copy)
    assert build(copy, ["lock", "tools.yaml"]).code == 0
    assert {path.name for path in before.paths}.isdisjoint(path.name for path in locked(copy).paths)


def test_another_content_than_the_lock_says(copy: Path) -> None:
    digest = next(path.sha256 for path in locked(copy).paths if path.name.endswith("-other"))
    change(copy, digest, "0" * 64)
    said = wrong(copy, ["publish", "tools.yaml", "oci:out"])
    assert f"-other: the bytes are not those of the lock: expected sha256:{'0' * 64}, got sha256:{digest}" in said
    assert not (copy / "out").exists()


def test_a_store_that_was_tampered_with(copy: Path) -> None:
    assert build(copy, ["lock", "tools.yaml"]).code == 0
    (found,) = (copy / "nix/nix/store").glob("*-libc-2.36/bin/libc-2.36")
    found.parent.chmod(0o755)
    found.chmod(0o755)
    with found.open("ab") as file:
        file.write(b"evil\n")
    assert "-libc-2.36: the bytes are not those of the lock" in wrong(copy, ["publish", "tools.yaml", "oci:out"])


def test_nix_packs_what_comes_from_nix(copy: Path, project: Path) -> None:
    """The engine makes the same layers; their inputs are the archives that the lock names, wherever the paths are."""
    done = build(copy, ["assemble", "tools.yaml", "-o", "oci:out", "--engine", "nix"])
    assert done.code == 0, done.err
    told = sorted(line for line in done.err.splitlines() if line.startswith("nix: "))
    assert told == ["nix: 4 nix paths: built here"]
    assert Layout(copy / "out").blobs() == Layout(project / "out").blobs()


def test_nothing_is_asked_of_nix_when_nothing_is_missing(project: Path) -> None:
    """Neither Nix nor its store are there."""
    tools = project / "no-nix"
    tools.mkdir()
    environ = {"PATH": str(tools), "NIX_REMOTE": str(project / "nowhere")}
    done = build(project, ["publish", "tools.yaml", "oci:out"], **environ)
    assert done.code == 0, done.err
    done = build(project, ["publish", "--offline", "tools.yaml", "oci:again"], **environ)
    assert Layout(project / "again").blobs() == Layout(project / "out").blobs()
    said = wrong(project, ["publish", "tools.yaml", "oci:third"], cache="empty", **environ)
    assert "nix: not found" in said
    assert "hint: install Nix 2.8 or newer" in said


def test_layers_in_common(copy: Path, project: Path) -> None:
    """Another app over the same libraries: what they have in common is one layer as long as it is as large as one."""
    names = {path.name[33:]: path for path in locked(project).paths}
    assert names["libc-2.36"].size < 16 << 20  # else this shows nothing
    (copy / "more.yaml").write_text(PROFILE.replace("name: tools", "name: more") + "image: {env: {A: b}}\n")
    assert build(copy, ["publish", "more.yaml", "oci:more"]).code == 0
    layers = {digest for digest, data in Layout(project / "out").blobs().items() if data[:2] == b"\x1f\x8b"}
    assert layers <= set(Layout(copy / "more").blobs())


BAD = {
    "no such file": ("[missing.nix]", "nix: missing.nix: there is no such file", "correct `nix` in the profile"),
    "the registry's name": ("[nixpkgs#hello]", "there is no such file", "or write flake:nixpkgs#hello for what Nix's"),
    "an empty folder": ("[empty]", "there is neither flake.nix nor default.nix in it", ""),
    "no such attribute": ("[default.nix#nothing]", "attribute 'nothing' in selection path 'nothing' not found", ""),
    "an attribute that is no derivation": ("['text.nix']", "nix: text.nix: ", "it is Nix that says so"),
    "what does not parse": ("[broken.nix]", "syntax error", "it is Nix that says so"),
    "what does not build": ("[fails.nix]", "failed to produce output path", ""),
    "a path that nobody has": (
        "[/nix/store/00000000000000000000000000000000-x]",
        "there is no substituter that can build it",
        "copy it to this machine's store, or name a cache",
    ),
    "a registry without it": ("['flake:nothing#x']", "nix: flake:nothing#x: ", ""),
    "a link to nothing": (
        "[{from: default.nix#app, links: {/opt/x: bin/x}}]",
        "it has no bin/x; beside that it has app-1.2",
        "correct `links`",
    ),
    "two of one name": (
        "[default.nix#app, {from: default.nix#other, links: {/usr/local/bin/app-1.2: bin/other}}]",
        "default.nix#app and default.nix#other both bring /usr/local/bin/app-1.2",
        "give one of them `links` that leave it out",
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_bad_references(case: str, project: Path, tmp_path: Path) -> None:
    text, message, hint = BAD[case]
    for name in ("default.nix", "maker"):
        shutil.copy(project / name, tmp_path / name)
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.nix").write_text('"text"')
    (tmp_path / "broken.nix").write_text("{ a = ")
    failing = 'derivation { name = "fails"; builder = ./maker; system = builtins.currentSystem; out = ""; }'
    (tmp_path / "fails.nix").write_text(failing.replace('out = ""', 'size = "1"; args = [ ]; outputs = [ "lib" ]'))
    (tmp_path / "bad.yaml").write_text(f"profile: 1\nname: bad\nnix: {text}\n")
    said = wrong(tmp_path, ["lock", "bad.yaml"])
    assert message in said
    assert hint in said
    assert not (tmp_path / "bad.lock.json").exists()


def test_a_store_that_cannot_be_written(copy: Path) -> None:
    said = wrong(copy, ["lock", "tools.yaml"], NIX_REMOTE="/proc/nothing")
    assert "nix: default.nix#app: " in said
    assert "/proc/nothing" in said


def test_no_sandbox(copy: Path) -> None:
    """What cannot be built in one is not built."""
    argv = [sys.executable, str(Path(__file__).parent / "nosandbox.py")]
    done = build(copy, ["lock", "tools.yaml"], prefix=argv)
    assert done.code == 1
    assert "error: nix: default.nix#app: " in done.err
    assert "hint: Nix cannot build in a sandbox here, and does not build without: allow user namespaces" in done.err
    assert list((copy / "nix/nix/store").glob("*-app-1.2")) == []


def test_a_cache_that_is_down(copy: Path, project: Path) -> None:
    """The build goes on, and says so."""
    config = "substitute = true\nsubstituters = http://127.0.0.1:9\ndownload-attempts = 1\n"
    done = build(copy, ["publish", "tools.yaml", "oci:out"], NIX_CONFIG=nixworld.SETTINGS + config)
    assert done.code == 0, done.err
    assert done.err.count("nix: unable to download 'http://127.0.0.1:9/nix-cache-info'") == 1
    assert Layout(copy / "out").blobs() == Layout(project / "out").blobs()


def test_what_a_cache_has_is_taken_if_it_is_signed(project: Path, tmp_path: Path, newer_nix: Path) -> None:
    """Newer versions speak of paths in another way."""
    (app,) = (root.outputs[0] for root in locked(project).roots if root.outputs[0].endswith("-app-1.2"))
    (tmp_path / "one.yaml").write_text(f"profile: 1\nname: one\nnix: [/nix/store/{app}]\n")
    key, public, cache = tmp_path / "key", tmp_path / "key.pub", tmp_path / "cache"
    nixworld.nix(project, "nix-store", "--generate-binary-cache-key", "ci-1", str(key), str(public))
    url = f"file://{cache}"
    config = f"{nixworld.SETTINGS}substitute = true\nsubstituters = {url}\ntrusted-public-keys = {public.read_text()}\n"
    nixworld.nix(project, "copy", "--to", url, f"/nix/store/{app}")
    said = wrong(tmp_path, ["lock", "one.yaml"], NIX_CONFIG=config)
    assert "signed by any of the keys in 'trusted-public-keys'" in said
    assert "hint: add the key of who signed it to trusted-public-keys of nix.conf, if you trust them" in said
    assert not (tmp_path / "one.lock.json").exists()
    shutil.rmtree(cache)
    nixworld.nix(project, "copy", "--to", f"{url}?secret-key={key}&compression=none", f"/nix/store/{app}")
    newer = f"{newer_nix}:{os.environ['PATH']}"
    done = build(tmp_path, ["publish", "one.yaml", "oci:out"], NIX_CONFIG=config, PATH=newer)
    assert done.code == 0, done.err
    assert {path.name for path in locked(tmp_path, "one").paths} < {path.name for path in locked(project).paths}
    for nar in (cache / "nar").iterdir():
        nar.write_bytes(nar.read_bytes().replace(b"#!/bin/sh", b"#!/bin/no"))
    elsewhere = {"NIX_CONFIG": config, "NIX_REMOTE": str(tmp_path / "other")}
    said = wrong(tmp_path, ["publish", "one.yaml", "oci:out"], "other-cache", **elsewhere)
    assert f"nix: /nix/store/{app}: hash mismatch importing path '/nix/store/" in said
    assert "hint: a cache has something else than it says" in said


def test_a_closure_out_of_a_cache_comes_at_once(tmp_path: Path) -> None:
    """Nix is not asked for one path after the other, in whatever order they are wanted."""
    names = nixworld.imported(tmp_path, 40, padding=256)
    (tmp_path / "many.yaml").write_text(
        f"profile: 1\nname: many\nplatforms: [linux/amd64]\nnix: [{{from: /nix/store/{names[-1]}, links: {{}}}}]\n"
    )
    assert build(tmp_path, ["lock", "many.yaml"]).code == 0
    nixworld.nix(tmp_path, "copy", "--to", f"file://{tmp_path / 'cache-of-nix'}", f"/nix/store/{names[-1]}")
    config = f"substitute = true\nsubstituters = file://{tmp_path / 'cache-of-nix'}\nrequire-sigs = false\n"
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin/nix"
    program.write_text(f'#!/bin/sh\necho "$1" >> {tmp_path / "asked"}\nexec {shutil.which("nix")} "$@"\n')
    program.chmod(0o755)
    more = {"NIX_CONFIG": nixworld.SETTINGS + config, "NIX_REMOTE": str(tmp_path / "other")}
    path = f"{tmp_path / 'bin'}:{os.environ['PATH']}"
    done = build(tmp_path, ["assemble", "--no-attach", "many.yaml"], "another", PATH=path, **more)
    assert done.code == 0, done.err
    assert (tmp_path / "asked").read_text() == "build\n"


def test_a_closure_of_3000_paths(tmp_path: Path) -> None:
    """All of them are in the lock and in the image, each once; Nix is not asked for one at a time."""
    names = nixworld.imported(tmp_path, 3000)
    (tmp_path / "many.yaml").write_text(
        f"profile: 1\nname: many\nplatforms: [linux/amd64]\nnix: [/nix/store/{names[-1]}]\n"
    )
    done = build(tmp_path, ["publish", "--no-attach", "many.yaml", "oci:out"])
    assert done.code == 0, done.err
    assert [path.name for path in locked(tmp_path, "many").paths] == sorted(names)
    found: list[str] = []
    for blob in Layout(tmp_path / "out").blobs().values():
        if blob[:2] == b"\x1f\x8b":
            with tarfile.open(fileobj=io.BytesIO(blob)) as tar:
                found += [member.name for member in tar if member.name.endswith("/bin") and member.isfile()]
    assert sorted(found) == sorted(f"nix/store/{name}/bin" for name in names)


def test_a_daemon_that_is_not_there(copy: Path, tmp_path: Path) -> None:
    """The same remedy, whoever asks it."""
    socket = {"NIX_REMOTE": "daemon", "NIX_DAEMON_SOCKET_PATH": str(tmp_path / "no-socket")}
    for argv in (["lock", "tools.yaml"], ["assemble", "tools.yaml", "--engine", "nix"]):
        said = wrong(copy, argv, **socket)
        assert "no-socket': No such file or directory" in said
        assert "hint: start nix-daemon, or use a store of your own: NIX_REMOTE=/absolute/folder" in said


def _others(paths: Sequence[dict[str, Any]], item: object) -> list[str]:
    return [other["name"] for other in paths if other is not item]


LIES = {
    "../../etc": "is no name of a path of a Nix store",
    "UPPERCASEUPPERCASEUPPERCASEUPPERC-x": "is no name of a path of a Nix store",
}


@pytest.mark.parametrize("name", LIES)
def test_locks_that_lie_of_names(name: str, copy: Path) -> None:
    other = next(path.name for path in locked(copy).paths if path.name.endswith("-other"))
    change(copy, other, name)
    assert LIES[name] in wrong(copy, ["publish", "tools.yaml", "oci:out"])


@pytest.mark.parametrize(
    ("change_it", "message"),
    [
        (lambda nix: nix["paths"].pop(), "is needed and not locked"),
        (lambda nix: nix["paths"].reverse(), "its paths are not sorted"),
        (lambda nix: nix["paths"].append(nix["paths"][-1]), "its paths are not sorted, each there once"),
        (lambda nix: nix["paths"][0].update(size=-1), "no narHash, or no size"),
        (lambda nix: nix["paths"][0].update(sha256="x"), "no narHash, or no size"),
        (lambda nix: nix["paths"][0].update(references=[nix["paths"][0]["name"]]), "without itself"),
        (
            lambda nix: [
                item.update(references=[other["name"] for other in nix["paths"] if other is not item])
                for item in nix["paths"]
            ],
            "needs itself, by way of others",
        ),
        (lambda nix: nix["roots"][0]["links"][0].update(to="/../etc/passwd"), "is no absolute path in an image"),
        (lambda nix: nix["roots"][0]["links"][0].update(to="etc"), "is no absolute path in an image"),
        (lambda nix: nix["roots"][0]["links"][0].update(target="/etc/shadow"), "is in no path that is locked"),
        (
            lambda nix: nix["roots"][0]["links"][0].update(target=f"/nix/store/{nix['paths'][0]['name']}/../../../etc"),
            "is in no path that is locked",
        ),
        (lambda nix: nix["roots"][1]["links"].append(nix["roots"][0]["links"][0]), "is locked twice"),
    ],
)
def test_locks_that_lie(change_it: Callable[[Any], object], message: str, copy: Path) -> None:
    document = json.loads((copy / "tools.lock.json").read_text())
    change_it(document["platforms"][0]["nix"])
    (copy / "tools.lock.json").write_text(json.dumps(document, sort_keys=True, indent=2) + "\n")
    assert message in wrong(copy, ["plan", "tools.yaml"])


def test_flakes_stay_until_they_are_moved(project: Path, tmp_path: Path) -> None:
    """A flake beside the profile is asked whenever a lock is made, one elsewhere when it is to move; Nix's settings need not allow
    flakes."""
    plain = nixworld.SETTINGS.replace("experimental-features = nix-command flakes\n", "")
    assert plain != nixworld.SETTINGS
    flake = tmp_path / "flake"
    shutil.copytree(project, flake, ignore=shutil.ignore_patterns("nix", "cache", "out", "*.json", "flat", "unpacked"))
    (flake / "flake.nix").write_text(
        "{ outputs = { self }: { packages.x86_64-linux.app = (import ./default.nix).app; }; }\n"
    )
    change(flake, "builtins.currentSystem", '"x86_64-linux"', "default.nix")
    for name, reference in (("near", "./flake#app"), ("far", f"path:{flake}#app")):
        (tmp_path / f"{name}.yaml").write_text(f"profile: 1\nname: {name}\nnix: ['{reference}']\n")
        assert build(tmp_path, ["lock", f"{name}.yaml"], NIX_CONFIG=plain).err.endswith(f"wrote {name}.lock.json\n")
    (near,), (far,) = locked(tmp_path, "near").roots, locked(tmp_path, "far").roots
    assert near.outputs == far.outputs
    assert near.expressions
    assert len(far.flake) == 64
    assert far.inputs
    change(flake, "300000", "300001", "default.nix")
    for name in ("near", "far"):
        assert build(tmp_path, ["lock", f"{name}.yaml"]).code == 0
    assert locked(tmp_path, "near").roots[0].outputs != near.outputs
    assert locked(tmp_path, "far").roots == (far,)
    done = build(tmp_path, ["lock", "far.yaml", "--upgrade", "app"])
    assert done.code == 0, done.err
    assert "~ app 1.2 " in done.err
    assert locked(tmp_path, "far").roots[0].outputs == locked(tmp_path, "near").roots[0].outputs


def test_drivers_and_cuda_are_found(copy: Path) -> None:
    change(
        copy,
        "other = make",
        'driver = make "libcuda.so.1" { }; cudart = make "libcudart.so.12" { }; other = make',
        "default.nix",
    )
    (copy / "cuda.yaml").write_text("profile: 1\nname: cuda\nnix: [default.nix#driver, default.nix#cudart]\n")
    assert build(copy, ["lock", "cuda.yaml"]).code == 0
    done = build(copy, ["plan", "cuda.yaml", "--findings"])
    assert done.code == 0, done.err
    assert "libcuda.so.1 of Nix has libraries of NVIDIA's driver: libcuda.so.1" in done.out
    assert "CUDA of nixpkgs looks for the driver in /run/opengl-driver/lib" in done.out


def test_cuda_that_wheels_have_too() -> None:
    owner = "nvidia-cuda-runtime 13.0"
    place = "/opt/venv/lib/python3.11/site-packages/nvidia/cu13/lib/libcudart.so.13"
    root = Root(files={place: File(place, 5, "", owner, "wheel")})
    nodes = (Node("lib/libcudart.so.12", Kind.FILE, 0, 7), Node("lib/stubs/libcuda.so", Kind.FILE, 0, 3))
    found = nixpaths.report({f"{'0' * 32}-cuda_cudart-12.4": nodes}, root)
    assert [(item.kind, item.size) for item in found] == [("twice", 7), ("driver-path", 0)]
    assert owner in found[0].what


def test_on_top_of_an_image(copy: Path) -> None:
    """Folders that the image has stay as it has them: those of Nix's own images are writable for its builders."""
    store = [baseimages.folder("nix"), baseimages.folder("nix/store", 0o1775, 0, 30000)]
    own = [baseimages.folder("srv/tools", 0o750, 7, 8), baseimages.link("opt/tools", "../srv/tools")]
    baseimages.layout(copy / "base", [[*baseimages.debian(), *store, *own]])
    (copy / "top.yaml").write_text(
        "profile: 1\nname: top\nbase: {image: 'oci:base:base'}\nplatforms: [linux/amd64]\n"
        "nix: [{from: default.nix#app, links: {/opt/tools: bin}}]\n"
    )
    done = build(copy, ["publish", "top.yaml", "oci:out"])
    assert done.code == 0, done.err
    image = json.loads(
        subprocess.check_output([str(judges.require("skopeo")), "inspect", "--raw", f"oci:{copy}/out:latest"])
    )
    layers = image.get("layers") or _layers(copy, image)
    found: dict[str, tarfile.TarInfo] = {}
    for layer in layers[1:]:
        with tarfile.open(copy / "out/blobs/sha256" / layer["digest"][7:]) as tar:
            found |= {member.name: member for member in tar}
    assert [(found[name].mode, found[name].uid, found[name].gid) for name in ("nix", "nix/store", "srv/tools")] == [
        *((0o755, 0, 0), (0o1775, 0, 30000), (0o750, 7, 8))
    ]
    assert found["srv/tools/app-1.2"].issym()
    assert not any(name.startswith("opt") for name in found)
    assert build(copy, ["verify", "oci:out"]).code == 0


def _layers(root: Path, index: dict[str, Any]) -> list[dict[str, Any]]:
    """Those of the first image of an index."""
    digest = index["manifests"][0]["digest"]
    found: list[dict[str, Any]] = json.loads((root / "out/blobs/sha256" / digest[7:]).read_bytes())["layers"]
    return found
