"""On top of images of others: whole builds, judged by the tools that made the bases and by the real soci."""

from __future__ import annotations

import gzip
import io
import json
import os
import random
import shutil
import subprocess
import tarfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from baseimages import blob, debian, file, layout, manifest, python, skopeo
from judges import registry, require
from layouts import Layout, plain
from test_sbom import cyclonedx_problem, spdx_problems
from test_soci import peer
from world import Done, Real, World, run, world

from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor, Platform

NOISE = random.Random(5).randbytes(3 << 20)
CONFIG = (
    "--config.env=LANG=C.UTF-8",
    "--config.env=PATH=/usr/games:/usr/bin",
    "--config.user=1000:1000",
    "--config.workingdir=/srv",
    "--config.entrypoint=/bin/tini",
    "--config.cmd=serve",
    "--config.label=org.example.base=yes",
    "--config.label=org.example.both=base",
    "--config.exposedports=80/tcp",
    "--config.volume=/data",
    "--config.stopsignal=SIGQUIT",
    "--author=Somebody",
)
STATUS = b"""\
Package: libc6
Status: install ok installed
Architecture: amd64
Source: glibc
Version: 2.36-9+deb12u9

Package: gone
Status: deinstall ok config-files
Version: 1

Package: bash
Status: install ok installed
Version: 5.2.15-2+b7
Source: bash (5.2.15-2)
Description: a shell
 Version: 9
"""
PROFILE = """\
profile: 1
name: top
base: {{image: "{base}"}}
python: {{version: "3.11", requirements: [alpha, "beta>=1"]}}
files:
  - {{from: app, to: /app}}
image:
  env: {{LOG: info}}
  ports: [8080]
  labels: {{org.example.both: ours}}
publish:
  soci: {{span-size: 256KiB, min-layer-size: 1MiB}}
"""


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    with world(tmp_path_factory.mktemp("world")) as made:
        yield made


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An OCI layout with a Debian of three layers; the second takes away and replaces, the last is large."""
    second = [
        file("var/lib/.wh..wh..opq"),
        file("usr/share/.wh.gone"),
        *python("3.11.9"),
        file("etc/motd", b"second\n"),
        file("var/lib/dpkg/status", STATUS),
        file("etc/ld.so.conf", b"include /etc/ld.so.conf.d/*.conf\n/opt/last\n"),
        file("etc/ld.so.conf.d/nvidia.conf", b"# CUDA\n/usr/local/cuda/lib64/\n"),
    ]
    first = [*debian(), file("usr/share/gone", b"x"), file("var/lib/old", b"x"), file("etc/motd", b"first\n")]
    root = tmp_path_factory.mktemp("base") / "layout"
    return layout(root, [first, second, [file("usr/share/large", NOISE)]], "base", *CONFIG)


class Project:
    """A profile on a base image, with a store of its own."""

    def __init__(self, small: World, root: Path, base: str, profile: str = PROFILE) -> None:
        self.root, self.small = root, small
        (root / "app").mkdir(parents=True)
        (root / "app/main.py").write_text("print('hello')\n")
        self.path = root / "top.yaml"
        self.path.write_text(profile.format(base=base))

    def build(self, *arguments: object) -> Done:
        return run(arguments, self.root, self.small.environment(self.root / "cache"))

    def lock(self) -> dict[str, Any]:
        done = self.build("lock", self.path)
        assert done.code == 0, done.err
        document: dict[str, Any] = json.loads(self.path.with_suffix(".lock.json").read_text())
        return document

    def publish(self, *to: str) -> str:
        return self.build("publish", self.path, *to).digest


def image_of(out: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """The manifest and configuration of the only platform of a published layout."""
    found = Layout(out)
    top = json.loads((out / "index.json").read_bytes())["manifests"][0]
    index = found.json(Digest.parse(top["digest"]))
    document = found.json(Digest.parse(index["manifests"][0]["digest"]))
    return document, found.json(Digest.parse(document["config"]["digest"]))


def test_layers_are_those_of_the_base_and_its_settings_are_inherited(small: World, base: Path, tmp_path: Path) -> None:
    project = Project(small, tmp_path / "project", f"oci:{base}:base")
    locked = project.lock()["platforms"][0]
    below = manifest(base)
    assert locked["image"]["manifest"] == below["digest"]
    assert locked["image"]["system"] == "Debian GNU/Linux 12 (bookworm)"
    assert (locked["image"]["python"], locked["image"]["libc"]) == ("3.11.9", "2.36")
    assert locked["image"]["packages"] == {"bash": "5.2.15-2+b7", "libc6": "2.36-9+deb12u9"}
    assert locked["image"]["sources"] == {"libc6": "glibc"}
    assert locked["image"]["search"] == ["/usr/local/cuda/lib64", "/opt/last"]
    assert locked["python"]["executable"] == "/usr/bin/python3.11"
    out = tmp_path / "out"
    top = project.publish(f"oci:{out}")
    document, config = image_of(out)
    assert document["layers"][:3] == below["layers"]
    assert len(document["layers"]) == 6
    for layer in below["layers"]:
        assert blob(out, layer["digest"]).read_bytes() == blob(base, layer["digest"]).read_bytes()
    assert document["annotations"]["org.opencontainers.image.base.digest"] == below["digest"]
    under = json.loads(blob(base, below["config"]["digest"]).read_bytes())
    assert config["rootfs"]["diff_ids"][:3] == under["rootfs"]["diff_ids"]
    assert config["history"][: len(under["history"])] == under["history"]
    assert [step["created_by"] for step in config["history"][len(under["history"]) :]] == [
        "layerwright: 3 wheels",
        "layerwright: environment",
        "layerwright: files",
    ]
    assert config["config"] == {
        "Cmd": ["serve"],
        "Entrypoint": ["/bin/tini"],
        "Env": ["LANG=C.UTF-8", "LOG=info", "PATH=/opt/venv/bin:/usr/games:/usr/bin"],
        "ExposedPorts": {"80/tcp": {}, "8080/tcp": {}},
        "Labels": {"org.example.base": "yes", "org.example.both": "ours"},
        "StopSignal": "SIGQUIT",
        "User": "1000:1000",
        "Volumes": {"/data": {}},
        "WorkingDir": "/srv",
    }
    # umoci judges what is there in the end: whiteouts of the base hold, ours lies on top.
    subprocess.run(
        [require("umoci"), "unpack", "--rootless", "--image", f"{_flat(out, tmp_path)}:flat", tmp_path / "bundle"],
        check=True,
        capture_output=True,
    )
    root = tmp_path / "bundle/rootfs"
    assert (root / "etc/motd").read_text() == "second\n"
    assert not (root / "usr/share/gone").exists()
    assert not (root / "var/lib/old").exists()
    assert (root / "opt/venv/bin/python").readlink() == Path("/usr/bin/python3.11")
    assert (root / "app/main.py").exists()
    # The real tool makes the same of the plain image, byte for byte.
    plain(Layout(out), Digest.parse(top), Layout(tmp_path / "plain"))
    theirs = peer("convert", "-span-size", 256 << 10, "-min-layer-size", 1 << 20, tmp_path / "plain", tmp_path / "soci")
    assert theirs == top
    assert project.build("verify", f"oci:{out}").code == 0
    assert project.publish(f"oci:{out}") == top
    _check_papers(out, below["digest"])
    shown = project.build("plan", project.path)
    assert "on top of layout:base" in shown.out
    assert "Debian GNU/Linux 12 (bookworm), Python 3.11.9, glibc 2.36" in shown.out


def _check_papers(out: Path, base: str) -> None:
    """SBOMs and provenance tell of the base and its packages, and the judges of their forms find no fault."""
    papers: dict[str, bytes] = {}
    for entry in json.loads((out / "index.json").read_bytes())["manifests"]:
        document = json.loads(blob(out, entry["digest"]).read_bytes())
        for item in document.get("layers", ()):
            title = item.get("annotations", {}).get("org.opencontainers.image.title", "")
            papers[title.rpartition(".linux-amd64.")[2]] = blob(out, item["digest"]).read_bytes()
    assert spdx_problems(papers["spdx.json"]) == []
    assert cyclonedx_problem(papers["cdx.json"]) is None
    packages = {item["name"]: item for item in json.loads(papers["spdx.json"])["packages"]}
    purl = packages["libc6"]["externalRefs"][0]["referenceLocator"]
    assert purl == "pkg:deb/debian/libc6@2.36-9%2Bdeb12u9?distro=debian-12&upstream=glibc"
    components = {item["name"]: item for item in json.loads(papers["cdx.json"])["components"]}
    assert components["debian"]["version"] == "12"
    assert any(item["type"] == "container" and item["version"] == base for item in components.values())
    statement = json.loads(papers["top.intoto.json"])
    inputs = {item["digest"]["sha256"] for item in statement["predicate"]["buildDefinition"]["resolvedDependencies"]}
    assert base.removeprefix("sha256:") in inputs


def _flat(out: Path, tmp_path: Path) -> Path:
    """The image alone, as umoci reads it."""
    skopeo(f"oci:{out}:latest", f"oci:{tmp_path / 'flat'}:flat")
    return tmp_path / "flat"


def test_a_registry(small: World, base: Path, tmp_path: Path) -> None:
    """A base of docker's own types, as most are, in the registry that the image goes to."""
    with registry("docker-registry", tmp_path / "registry") as host:
        skopeo("--format=v2s2", "--dest-tls-verify=false", f"oci:{base}:base", f"docker://{host}/debian:12")
        project = Project(small, tmp_path / "project", f"{host}/debian:12")
        image = project.lock()["platforms"][0]["image"]
        assert image["source"] == "debian:12"
        assert host not in json.dumps(image)
        assert {layer["media_type"] for layer in image["layers"]} == {"application/vnd.oci.image.layer.v1.tar+gzip"}
        assert [f"sha256:{layer['sha256']}" for layer in image["layers"]] == [
            layer["digest"] for layer in manifest(base)["layers"]
        ]
        done = project.build("publish", "--format=json", project.path, f"{host}/top:v1")
        (delivered,) = done.json["destinations"]
        outcomes = {item["name"]: item["outcome"] for item in delivered["blobs"]}
        assert {outcomes[f"base {number} of 3"] for number in (1, 2, 3)} == {"mounted"}
        assert project.build("verify", f"{host}/top:v1").code == 0
        # Somebody else, who has nothing: the base's layers come out of the image itself.
        other = small.environment(tmp_path / "other")
        done = run(["verify", f"{host}/top:v1"], tmp_path, other)
        assert done.code == 0, done.err
        done = run(["copy", f"{host}/top:v1", f"oci:{tmp_path / 'copy'}:v1"], tmp_path, other)
        assert done.code == 0, done.err
        assert run(["verify", f"oci:{tmp_path / 'copy'}:v1"], tmp_path, other).code == 0
        inspected = run(["inspect", f"{host}/top:v1", "--format=json"], tmp_path, other).json["platforms"][
            "linux/amd64"
        ]
        assert [layer["spans"] > 0 for layer in inspected["layers"]] == [False, False, True, True, False, False]
        assert inspected["layers"][-1]["name"] == "files"
        skopeo("--src-tls-verify=false", f"docker://{host}/top:v1", f"oci:{tmp_path / 'theirs'}:v1")


def test_a_lock_stays_until_it_is_asked_to_move(small: World, base: Path, tmp_path: Path) -> None:
    with registry("docker-registry", tmp_path / "registry") as host:
        skopeo("--dest-tls-verify=false", f"oci:{base}:base", f"docker://{host}/debian:12")
        project = Project(small, tmp_path / "project", f"{host}/debian:12")
        before = project.lock()
        newer = layout(tmp_path / "newer", [[*debian(), *python("3.11.9"), file("etc/new", b"x")]])
        skopeo("--dest-tls-verify=false", f"oci:{newer}:base", f"docker://{host}/debian:12")
        assert project.build("lock", "--check", project.path).code == 0
        (project.root / "app/more").write_text("more")
        after = project.lock()
        assert after["platforms"] == before["platforms"]
        done = project.build("lock", project.path, "--upgrade", "debian")
        assert done.code == 0, done.err
        assert "~ base image debian:12" in done.err
        moved = json.loads(project.path.with_suffix(".lock.json").read_text())
        assert moved["platforms"][0]["image"]["manifest"] == manifest(newer)["digest"]
        # The same image in another registry is the same for the lock.
        profile = project.path.read_text()
        project.path.write_text(profile.replace(host, "registry.example"))
        assert project.build("lock", "--check", project.path).code == 0
        project.path.write_text(profile.replace("debian:12", "debian:13"))
        assert project.build("lock", "--check", project.path).code == 3


@pytest.mark.parametrize("form", ["docker-archive", "oci-archive", "zstd"])
def test_other_forms_of_images(form: str, small: World, base: Path, tmp_path: Path) -> None:
    """`docker save` writes layers without compression; nothing is compressed again, whatever it was."""
    names = {
        "docker-archive": f"docker-archive:{tmp_path / 'base.tar'}:somebody/debian:12",
        "oci-archive": f"oci-archive:{tmp_path / 'base.tar'}:12",
        "zstd": f"oci:{tmp_path / 'zstd'}:12",
    }
    options = ["--dest-compress-format=zstd"] if form == "zstd" else []
    skopeo(*options, f"oci:{base}:base", names[form])
    project = Project(
        small, tmp_path / "project", "../" + names[form].partition(":")[2].removeprefix(str(tmp_path) + "/")
    )
    scheme = names[form].partition(":")[0]
    project.path.write_text(project.path.read_text().replace('"../', f'"{scheme}:../'))
    project.lock()
    out = tmp_path / "out"
    done = project.build("publish", project.path, f"oci:{out}")
    document, config = image_of(out)
    kind = document["layers"][2]["mediaType"].removeprefix("application/vnd.oci.image.layer.v1.tar")
    assert kind == {"docker-archive": "", "oci-archive": "+gzip", "zstd": "+zstd"}[form]
    under = json.loads(blob(base, manifest(base)["config"]["digest"]).read_bytes())
    assert config["rootfs"]["diff_ids"][:3] == under["rootfs"]["diff_ids"]
    assert ("base 3 of 3 is pulled whole: it is compressed with zstd" in done.err) is (form == "zstd")
    plain(Layout(out), Digest.parse(done.digest), Layout(tmp_path / "plain"))
    theirs = peer("convert", "-span-size", 256 << 10, "-min-layer-size", 1 << 20, tmp_path / "plain", tmp_path / "soci")
    assert theirs == done.digest
    assert project.build("verify", f"oci:{out}").code == 0
    if form == "docker-archive":
        inspected = project.build("inspect", names[form], "--format=json").json
        assert (
            inspected["digest"]
            == json.loads(project.path.with_suffix(".lock.json").read_text())["platforms"][0]["image"]["manifest"]
        )
        assert project.build("copy", names[form], f"oci:{tmp_path / 'copy'}:12").code == 0
        done = project.build("copy", f"oci:{out}", f"docker-archive:{tmp_path / 'x.tar'}")
        assert done.code == 2
        assert "cannot be written to" in done.err


def test_bytecode_is_made_by_an_interpreter_of_debian(small: World, base: Path, tmp_path: Path) -> None:
    """No program of the image runs; the layers of wheels are those of an image that is composed of Debian packages."""
    asked = PROFILE.replace('"3.11",', '"3.11", bytecode: true,')
    project = Project(small, tmp_path / "project", f"oci:{base}:base", asked)
    locked = project.lock()["platforms"][0]
    assert [deb["name"] for deb in locked["python"]["compiler"]] == ["libc6", "python3.11-minimal"]
    composed = asked.replace('{{image: "{base}"}}', "{{debian: bookworm}}")
    other = Project(small, tmp_path / "other", "", composed)
    other.lock()
    plans = [
        each.build("plan", "--format=json", each.path).json["platforms"]["linux/amd64"]["layers"]
        for each in (project, other)
    ]
    keys = [next(layer["key"] for layer in plan if layer["name"] == "3 wheels") for plan in plans]
    assert keys[0] == keys[1]
    older = layout(tmp_path / "older", [[*debian(), *python("3.12.3")]])
    project = Project(small, tmp_path / "third", f"oci:{older}:base", asked)
    done = project.build("lock", project.path)
    assert done.code == 1
    assert "no Debian has an interpreter that compiles for it" in done.err


def test_files_go_where_the_base_has_folders(small: World, base: Path, tmp_path: Path) -> None:
    """Links are followed, modes and owners of folders stay: what COPY does."""
    places = ["/bin/tool", "/tmp/a", "/home/app/b", "/root/c", "/var/run/d", "/lib/new/deep/e", "/etc/motd", "/srv/x/f"]
    profile = PROFILE.replace("python:", "#python:")
    project = Project(small, tmp_path / "project", f"oci:{base}:base", profile)
    lines = "".join(f"  - {{from: app/main.py, to: {place}}}\n" for place in places)
    text = project.path.read_text().replace("  - {from: app, to: /app}\n", lines)
    project.path.write_text(text.replace("values", "values") + "templates: [{from: t.j2, to: /lib/made}]\n")
    (project.root / "t.j2").write_text("{{ name }}\n")
    project.lock()
    out = tmp_path / "out"
    project.publish(f"oci:{out}")
    document, _ = image_of(out)
    assert len(document["layers"]) == 4
    data = gzip.decompress(blob(out, document["layers"][-1]["digest"]).read_bytes())
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        found = {member.name: (member.mode, member.uid, member.gid) for member in archive}
    assert found == {
        "etc": (0o755, 0, 0),
        "etc/motd": (0o644, 0, 0),
        "home": (0o755, 0, 0),
        "home/app": (0o750, 1000, 1000),
        "home/app/b": (0o644, 0, 0),
        "root": (0o700, 0, 0),
        "root/c": (0o644, 0, 0),
        "run": (0o755, 0, 0),
        "run/d": (0o644, 0, 0),
        "srv": (0o755, 0, 0),
        "srv/x": (0o755, 0, 0),
        "srv/x/f": (0o644, 0, 0),
        "tmp": (0o1777, 0, 0),
        "tmp/a": (0o644, 0, 0),
        "usr": (0o755, 0, 0),
        "usr/bin": (0o755, 0, 0),
        "usr/bin/tool": (0o644, 0, 0),
        "usr/lib": (0o755, 0, 0),
        "usr/lib/made": (0o644, 0, 0),
        "usr/lib/new": (0o755, 0, 0),
        "usr/lib/new/deep": (0o755, 0, 0),
        "usr/lib/new/deep/e": (0o644, 0, 0),
    }
    assert project.build("verify", f"oci:{out}").code == 0
    done = project.build("diff", f"oci:{out}", project.path)
    assert done.code in (0, 3), done.err


def test_all_platforms_of_an_index(small: World, tmp_path: Path) -> None:
    """Each stands on the image of its own platform; what there is no image for is named."""
    root = tmp_path / "base"
    arm = [
        *debian(),
        *python("3.11.4"),
        file("usr/lib/x86_64-linux-gnu/.wh.libc.so.6"),
        file("usr/lib/aarch64-linux-gnu/libc.so.6", b"GNU C Library (Debian) stable release version 2.31.\n"),
    ]
    layout(root, [[*debian(), *python("3.11.9")]], "amd64")
    layout(root, [arm], "arm64", "--architecture=arm64")
    found = Layout(root)
    entries = []
    for name in ("amd64", "arm64"):
        document = manifest(root, name)
        size = blob(root, document["digest"]).stat().st_size
        entries.append(Descriptor(spec.MANIFEST, Digest.parse(document["digest"]), size, {}, Platform("linux", name)))
    index = {"schemaVersion": 2, "mediaType": spec.INDEX, "manifests": [entry.document() for entry in entries]}
    top = found.add(json.dumps(index).encode(), spec.INDEX)
    found.point_to(Descriptor(spec.INDEX, top.digest, top.size, {"org.opencontainers.image.ref.name": "12"}))
    text = PROFILE.replace("python:", "platforms: [linux/amd64, linux/arm64]\npython:")
    project = Project(small, tmp_path / "project", f"oci:{root}:12", text)
    images = {item["platform"]: item["image"] for item in project.lock()["platforms"]}
    assert {name: (image["python"], image["libc"]) for name, image in images.items()} == {
        "linux/amd64": ("3.11.9", "2.36"),
        "linux/arm64": ("3.11.4", "2.31"),
    }
    project.publish(f"oci:{tmp_path / 'out'}")
    assert project.build("verify", f"oci:{tmp_path / 'out'}").code == 0
    only = project.root / "only.yaml"
    only.write_text(text.format(base=f"oci:{root}@{entries[0].digest}"))
    done = project.build("lock", only)
    assert done.code == 1
    assert "it is not made for linux/arm64, only for: linux/amd64" in done.err


def test_a_base_that_is_gone(small: World, base: Path, tmp_path: Path) -> None:
    copy = tmp_path / "base"
    shutil.copytree(base, copy)
    project = Project(small, tmp_path / "project", f"oci:{copy}:base")
    project.lock()
    blob(copy, manifest(base)["layers"][2]["digest"]).unlink()
    done = run(["publish", project.path, f"oci:{tmp_path / 'out'}"], tmp_path, small.environment(tmp_path / "other"))
    assert done.code == 1
    assert "a layer of the base image base:base" in done.err
    assert "hint: bring the image back there" in done.err
    assert not (tmp_path / "out/index.json").exists()
    project.path.write_text(project.path.read_text().replace(f"oci:{copy}:base", "oci:nowhere"))
    done = project.build("lock", project.path)
    assert "base image oci:nowhere: " in done.err
    assert "hint: correct base.image in the profile" in done.err
    with registry("docker-registry", tmp_path / "registry") as host:
        project.path.write_text(project.path.read_text().replace("oci:nowhere", f"{host}/debian:12"))
        done = project.build("lock", project.path)
        assert f"base image {host}/debian:12: " in done.err
        assert "hint: correct base.image in the profile" in done.err


def test_settings_are_inherited_as_buildah_does(small: World, base: Path, tmp_path: Path) -> None:
    """The same on top of the same base, by a tool that reads Dockerfiles."""
    if os.geteuid():
        pytest.skip("buildah needs root, or a machine that is prepared for it")
    buildah = [str(require("buildah")), "--root", str(tmp_path / "root"), "--runroot", str(tmp_path / "run")]
    buildah += ["--storage-driver", "vfs"]
    (tmp_path / "context").mkdir()
    (tmp_path / "context/Dockerfile").write_text(
        f"FROM oci:{base}:base\nENV LOG=info\nEXPOSE 8080\nLABEL org.example.both=ours\n"
        'ENTRYPOINT ["/app/run"]\nUSER 65532:65532\n'
    )
    argv = [*buildah, "build", "-q", "--isolation=chroot", "--format=oci", "-t", "top", str(tmp_path / "context")]
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    done = subprocess.run([*buildah, "inspect", "--type=image", "top"], capture_output=True, text=True, check=True)
    theirs = json.loads(done.stdout)["OCIv1"]["config"]
    text = PROFILE.replace("python:", "#").replace(
        "image:\n", 'image:\n  entrypoint: [/app/run]\n  user: "65532:65532"\n'
    )
    project = Project(small, tmp_path / "project", f"oci:{base}:base", text)
    project.publish(f"oci:{tmp_path / 'out'}")
    ours = image_of(tmp_path / "out")[1]["config"]
    theirs["Labels"].pop("io.buildah.version", None)
    assert {**ours, "Env": sorted(ours["Env"])} == {**theirs, "Env": sorted(theirs["Env"])}


DEBIAN = """\
profile: 1
name: debian
base: {debian: bookworm, packages: [python3.11]}
"""
ON_DEBIAN = """\
profile: 1
name: service
base: {image: "docker-archive:debian.tar:debian:12"}
python: {version: "3.11", requirements: [click], bytecode: true}
"""


def test_a_service_runs_on_a_real_debian(tmp_path: Path) -> None:
    """Real packages and wheels: the base as `docker save` would write it, what is made of it unpacked by umoci, and started."""
    for name in ("below", "service"):
        (tmp_path / name).mkdir()
    (tmp_path / "debian.yaml").write_text(DEBIAN)
    below = Real.publish(tmp_path / "debian.yaml", tmp_path / "below")
    skopeo(f"oci:{below.out}:latest", f"docker-archive:{tmp_path / 'debian.tar'}:debian:12")
    (tmp_path / "service.yaml").write_text(ON_DEBIAN)
    found = Real.publish(tmp_path / "service.yaml", tmp_path / "service")
    locked = json.loads((tmp_path / "service.lock.json").read_text())["platforms"][0]
    assert (locked["image"]["python"], locked["image"]["libc"]) == ("3.11.2", "2.36")
    assert locked["image"]["packages"]["libc6"].startswith("2.36-")
    root = tmp_path / "bundle/rootfs"
    unpack = [str(require("umoci")), "unpack", "--rootless", "--image", f"{_flat(found.out, tmp_path)}:flat"]
    subprocess.run([*unpack, str(root.parent)], check=True, capture_output=True)
    program = "import click, sys; print(sys.prefix, click.__file__, click.__spec__.cached, sys.version_info[:3])"
    started = ["unshare", "--user", "--map-root-user", "chroot", str(root), "/opt/venv/bin/python", "-v", "-c", program]
    environ = {"PATH": "/usr/bin:/bin:/usr/sbin:/sbin"}
    done = subprocess.run(started, capture_output=True, text=True, check=False, env=environ)
    if done.returncode and done.stderr.startswith("unshare: unshare failed"):
        pytest.skip("no user namespaces here")
    assert done.returncode == 0, done.stderr
    site = "/opt/venv/lib/python3.11/site-packages/click"
    assert done.stdout.split()[:3] == [
        "/opt/venv",
        f"{site}/__init__.py",
        f"{site}/__pycache__/__init__.cpython-311.pyc",
    ]
    assert f"code object from '{site}/__pycache__/__init__.cpython-311.pyc'" in done.stderr
