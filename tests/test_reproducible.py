"""The promise: one lock is one image, whoever builds it, wherever and whenever."""

from __future__ import annotations

import json
import os
import random
import shutil
import subprocess
import sys
import tempfile
from array import array
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import baseimages
import cudawheels
import indexserver
import judges
import modelworld
import nixworld
import pytest
from debarchive import Item
from layouts import Layout
from nixmachines import Machines
from world import BUILD, PROFILE, Real, World, everybodys_folder, other_user, package, run, write_project

from builder.coldstart import trace as traces
from builder.coldstart.trace import Part, Trace, TracedFile
from builder.layers import deflate

NO_ZLIB_NG = "raise ImportError('hidden by a test')\n"


@dataclass(frozen=True)
class Variation:
    """What is unlike the first build. `umask` and `backwards` are about how the profile's folder is written, too."""

    prefix: Sequence[str] = ()
    environ: dict[str, str] = field(default_factory=dict)
    options: Sequence[str] = ()
    umask: int = 0o022
    backwards: bool = False
    parent: str | None = None


VARIATIONS = {
    "2031": Variation(["faketime", "2031-02-03 04:05:06"]),
    "1999": Variation(["faketime", "1999-12-31 23:59:59"]),
    "zone": Variation(environ={"TZ": "Asia/Kathmandu"}),
    "locale": Variation(environ={"LANG": "tr_TR.UTF-8", "LC_ALL": "C", "PYTHONUTF8": "0"}),
    "no locale": Variation(environ={"LC_ALL": "POSIX", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
    "umask 000": Variation(umask=0o000),
    "umask 077": Variation(umask=0o077),
    "one CPU": Variation(["taskset", "-c", str(min(os.sched_getaffinity(0)))]),
    "hash seed 1": Variation(environ={"PYTHONHASHSEED": "1"}),
    "hash seed 4242": Variation(environ={"PYTHONHASHSEED": "4242"}),
    "optimised": Variation(environ={"PYTHONOPTIMIZE": "2", "PYTHONDONTWRITEBYTECODE": "1"}),
    "development mode": Variation(environ={"PYTHONDEVMODE": "1", "PYTHONMALLOC": "debug"}),
    "backwards": Variation(backwards=True),
    "in memory": Variation(parent="/dev/shm"),
    "user name": Variation(environ={"USER": "somebody", "LOGNAME": "somebody", "HOSTNAME": "elsewhere"}),
    "a date of another": Variation(environ={"SOURCE_DATE_EPOCH": "1"}),
    "one job": Variation(options=["--jobs", "1"]),
    "many jobs": Variation(options=["--jobs", "64"]),
}


@pytest.mark.parametrize("name", VARIATIONS)
def test_the_same_image_with_another(name: str, world: World, small: Path, tmp_path: Path) -> None:
    variation = VARIATIONS[name]
    if variation.prefix:
        judges.require(variation.prefix[0])
    if variation.parent and not os.access(variation.parent, os.W_OK):
        pytest.skip(f"{variation.parent} cannot be written")
    with tempfile.TemporaryDirectory(dir=variation.parent or tmp_path) as parent:
        profile = copied(small, Path(parent) / "elsewhere" / "project", variation)
        home = Path(parent) / "home"
        home.mkdir()
        environ = offline(world, Path(parent) / "cache", HOME=str(home)) | variation.environ
        out = Path(parent) / "layout"
        argv = ["publish", *variation.options, profile, f"oci:{out}"]
        done = run(argv, home, environ, prefix=variation.prefix, umask=variation.umask)
        assert done.digest == first(small)
        assert Layout(out).blobs() == Layout(small.parent / "out").blobs()


def test_the_same_image_with_what_is_left_out_of_wheels(
    world: World, small: Path, other_build: Path, tmp_path: Path
) -> None:
    """From two locks that share nothing but the profile, by another Python, with the files in another order."""
    text = small.read_text() + 'slim: [{wheels: [beta], drop: [beta]}, {drop: ["*.bin", "alpha/t*"]}]\n'
    builds: list[tuple[dict[str, bytes], bytes]] = []
    for name, backwards, build in (("one", False, BUILD), ("two", True, other_build)):
        profile = write_project(tmp_path / name, text, backwards=backwards)
        environ = world.environment(tmp_path / f"{name}-cache", PYTHONHASHSEED=str(len(builds)))
        done = run(["publish", "-q", profile, f"oci:{tmp_path / name}-out"], tmp_path, environ, build=build)
        assert done.digest != first(small)
        builds.append((Layout(tmp_path / f"{name}-out").blobs(), profile.with_suffix(".lock.json").read_bytes()))
    assert builds[0] == builds[1]


def test_the_same_image_as_estargz(world: World, small: Path, other_build: Path, tmp_path: Path) -> None:
    """Wherever its large files are cut, whichever library inflates."""
    text = small.read_text().replace("soci: {span-size: 256KiB, min-layer-size: 1MiB}", "lazy: estargz")
    stub = tmp_path / "stub/zlib_ng"
    stub.mkdir(parents=True)
    (stub / "__init__.py").write_text(NO_ZLIB_NG)
    builds: list[tuple[dict[str, bytes], bytes]] = []
    for name, build, more in (
        ("locale", BUILD, {}),
        ("backwards", other_build, {"PYTHONHASHSEED": "7"}),
        ("one job", BUILD, {"PYTHONPATH": str(stub.parent)}),
    ):
        variation = VARIATIONS[name]
        profile = write_project(tmp_path / name / "project", text, backwards=variation.backwards)
        environ = world.environment(tmp_path / name / "cache", **variation.environ, **more)
        out = tmp_path / name / "out"
        done = run(["publish", "-q", *variation.options, profile, f"oci:{out}"], tmp_path, environ, build=build)
        assert done.digest != first(small)
        builds.append((Layout(out).blobs(), profile.with_suffix(".lock.json").read_bytes()))
    assert builds[0] == builds[1] == builds[2]


@pytest.mark.parametrize("kind", ["zstd", "none"])
def test_the_same_image_compressed_otherwise(
    kind: str, world: World, small: Path, other_build: Path, tmp_path: Path
) -> None:
    """By one thread or several, by another library that has the same zstd, whichever library inflates."""
    stub = tmp_path / "stub"
    for library in ("zlib_ng", "backports") if sys.version_info < (3, 14) else ("zlib_ng",):
        (stub / library).mkdir(parents=True)
        (stub / library / "__init__.py").write_text(NO_ZLIB_NG)
    builds: list[tuple[dict[str, bytes], bytes]] = []
    for name, build, more in (
        ("one CPU", BUILD, {"PYTHONPATH": str(stub)}),
        ("backwards", other_build, {"PYTHONHASHSEED": "7"}),
    ):
        variation = VARIATIONS[name]
        text = f"{small.read_text()}  compression: {kind}\n"
        profile = write_project(tmp_path / name / "project", text, backwards=variation.backwards)
        environ = world.environment(tmp_path / name / "cache", **variation.environ, **more)
        argv = ["publish", "-q", profile, f"oci:{tmp_path / name}-out"]
        done = run(argv, tmp_path, environ, build=build, prefix=variation.prefix)
        assert done.digest != first(small)
        builds.append((Layout(tmp_path / f"{name}-out").blobs(), profile.with_suffix(".lock.json").read_bytes()))
    assert builds[0] == builds[1]


def test_the_same_image_with_cuda(world: World, tmp_path: Path) -> None:
    """Its links come from the wheels' directories, and its variables from the lock."""
    world.index.publish(*cudawheels.all_wheels())
    world.release(package("libstdc++6", "12.2.0-14", [Item("./usr/share/libstdc++6/x", b"x")]))
    text = """\
profile: 1
name: cuda
base: {debian: bookworm}
cuda: {version: "13.2", flavour: runtime}
files: [{from: app, to: /app}]
"""
    first = world.project(tmp_path / "first", text)
    digest = run(
        ["publish", first, f"oci:{tmp_path / 'out'}"], tmp_path, world.environment(world.root / "cache")
    ).digest
    same_everywhere(world, first, digest, tmp_path, "umask 077", "hash seed 4242", "one job", "backwards", "locale")


def test_the_same_image_with_things_from_nix(world: World, tmp_path: Path) -> None:
    """Their archives come out of the store, or out of another Nix store, where everything is built again."""
    judges.require("nix")
    text = """\
profile: 1
name: nix
base: {debian: bookworm}
nix: [./default.nix#app, {from: ./default.nix#other, links: {/opt/other: bin/other}}]
publish: {soci: {span-size: 256KiB, min-layer-size: 1MiB}}
"""
    nixworld.maker(tmp_path / "first")
    (tmp_path / "first/p.yaml").write_text(text)
    digest, lock = "", b""
    for number, name in enumerate(("one job", "umask 077", "hash seed 4242", "backwards", "locale", "zone")):
        variation, root = VARIATIONS[name], tmp_path / str(number)
        profile = copied(tmp_path / "first/p.yaml", root / "project", variation)
        environ = world.environment(root / "cache", **nixworld.environment(root), **variation.environ)
        if number > 1:  # the others are of a lock, and have no Nix
            profile.with_suffix(".lock.json").write_bytes(lock)
            environ |= {"NIX_REMOTE": "/nowhere", "LAYERWRIGHT_OFFLINE": "1"}
            environ |= {"LAYERWRIGHT_MIRRORS": str(tmp_path / "0/cache/layerwright")}
        argv = ["publish", *variation.options, profile, f"oci:{root / 'out'}"]
        found = run(argv, tmp_path, environ, umask=variation.umask).digest
        digest, lock = digest or found, lock or profile.with_suffix(".lock.json").read_bytes()
        assert (found, profile.with_suffix(".lock.json").read_bytes()) == (digest, lock), name
        assert Layout(root / "out").blobs() == Layout(tmp_path / "0/out").blobs(), name


def test_the_same_image_by_nix(nix_machines: Machines) -> None:
    """What it builds has the same store path and the same content, too, so that machines can share it."""
    found = []
    for number, names in enumerate(([], ["2031", "zone", "no locale", "hash seed 1", "optimised", "user name"])):
        prefix = tuple(word for name in names for word in VARIATIONS[name].prefix)
        environ = {key: value for name in names for key, value in VARIATIONS[name].environ.items()}
        machine = nix_machines.new(f"same-{number}", bare=bool(names))
        umask = ("sh", "-c", f'umask {number * 77:03}; exec "$@"', "sh")
        done = machine("assemble", "--engine", "nix", "--nix-floor", "0", prefix=(*umask, *prefix), **environ)
        assert done.digest == nix_machines.digest
        (wheels,) = (machine.root / "nix/nix/store").glob("*-3-wheels-????????")
        found.append((wheels.name, machine.nix("nix-store", "--query", "--hash", f"/nix/store/{wheels.name}")))
    assert found[0] == found[1]


def test_the_same_image_on_top_of_an_image(world: World, tmp_path: Path) -> None:
    """Its layers come out of the store; the folders that files go into, out of the lock."""
    members = [*baseimages.debian(random.Random(8).randbytes(1 << 20)), *baseimages.python("3.11.9")]
    base = baseimages.layout(tmp_path / "base", [members, [baseimages.file("srv/.wh.x")]])
    text = f"""\
profile: 1
name: top
base: {{image: "oci:{base}:base"}}
python: {{version: "3.11", requirements: [alpha]}}
files: [{{from: app, to: /tmp/app}}, {{from: app/zeta, to: /bin/zeta}}]
publish: {{soci: {{span-size: 256KiB, min-layer-size: 1MiB, mount: parallel}}}}
"""
    first = world.project(tmp_path / "first", text)
    digest = run(
        ["publish", first, f"oci:{tmp_path / 'out'}"], tmp_path, world.environment(world.root / "cache")
    ).digest
    shutil.rmtree(base)
    same_everywhere(world, first, digest, tmp_path, "umask 077", "hash seed 4242", "one job", "backwards", "zone")


def test_the_same_image_with_models(world: World, tmp_path: Path) -> None:
    """From locks that share nothing but the profile: of a folder, of a wheel and of a conversion, written in another order."""
    world.index.publish(
        indexserver.wheel("weights", "1.0", files={"weights/model/a.json": b"{}", "weights/b.txt": b"b"})
    )
    text = """\
profile: 1
name: weighty
files: [{from: app, to: /app}]
models:
  - {name: folder, from: model, licenses: [Apache-2.0], image: true}
  - {name: wheel, from: "pypi://weights==1.0#weights", include: [model, "*.txt"]}
  - {name: half, from: model, precision: fp16}
"""
    builds: list[tuple[dict[str, bytes], bytes]] = []
    for number, name in enumerate(("umask 000", "backwards", "locale", "optimised")):
        variation = VARIATIONS[name]
        root = tmp_path / str(number)
        profile = write_project(root, text, backwards=variation.backwards)
        numbers = array("f", (n % 1000 / 7 for n in range(1200 * 1024))).tobytes()  # more than one chunk
        files = {
            "w.safetensors": modelworld.safetensors({"w": ("F32", (1200, 1024), numbers)}, {"format": "pt"}),
            "config.json": b'{"torch_dtype": "float32"}',
            "sub/tokenizer.json": b"{}",
        }
        modelworld.write_files(root / "model", dict(sorted(files.items(), reverse=variation.backwards)))
        (root / "model/config.json").chmod(0o755)
        environ = world.environment(tmp_path / f"{number}-cache", PYTHONHASHSEED=str(number)) | variation.environ
        argv = ["publish", *variation.options, profile, f"oci:{tmp_path / f'{number}-out'}"]
        done = run(argv, tmp_path, environ, umask=variation.umask)
        assert done.code == 0, done.err
        builds.append((Layout(tmp_path / f"{number}-out").blobs(), profile.with_suffix(".lock.json").read_bytes()))
        assert builds[-1] == builds[0], name


def test_the_same_image_by_another_user(world: World, small: Path) -> None:
    with everybodys_folder() as parent:
        prefix = other_user(parent)
        profile = copied(small, parent / "project", Variation())
        shutil.copytree(world.root / "cache/layerwright/sha256", parent / "mirror/sha256")
        work = parent / "work"
        work.mkdir()
        work.chmod(0o777)
        environ = offline(world, work / "cache", HOME=str(work), LAYERWRIGHT_CONFIG=os.devnull)
        environ["LAYERWRIGHT_MIRRORS"] = str(parent / "mirror")
        done = run(["publish", profile, f"oci:{work / 'layout'}"], work, environ, prefix=prefix)
        assert done.digest == first(small)
        assert Layout(work / "layout").blobs() == Layout(small.parent / "out").blobs()


def test_the_same_image_by_another_python(world: World, small: Path, other_build: Path, tmp_path: Path) -> None:
    environ = offline(world, tmp_path / "cache")
    done = run(["publish", "-q", small, f"oci:{tmp_path / 'layout'}"], tmp_path, environ, build=other_build)
    assert done.digest == first(small)
    assert done.err == ""  # no warning of the newer Python either
    assert Layout(tmp_path / "layout").blobs() == Layout(small.parent / "out").blobs()


def test_the_same_image_from_a_store_with_other_layers(world: World, small: Path, tmp_path: Path) -> None:
    """Layers of another span size, and without an index, were made from the same inputs before."""
    environ = world.environment(tmp_path / "cache", LAYERWRIGHT_MIRRORS=str(world.root / "cache/layerwright"))
    text = small.read_text()
    digests = set()
    for number, soci in enumerate(("{span-size: 64KiB, min-layer-size: 0}", "false")):
        before, _, _ = text.partition("publish:")
        other = write_project(tmp_path / str(number), f"{before}publish: {{soci: {soci}}}\n")
        digests.add(run(["publish", other, f"oci:{tmp_path / 'others'}:{number}"], tmp_path, environ).digest)
    done = run(["publish", small, f"oci:{tmp_path / 'layout'}"], tmp_path, environ)
    assert done.digest == first(small)
    assert digests.isdisjoint({first(small)})
    assert len(digests) == 2
    assert Layout(tmp_path / "layout").blobs() == Layout(small.parent / "out").blobs()


def test_two_builds_of_real_packages_that_share_nothing(real: Real, other_build: Path, tmp_path: Path) -> None:
    """Everything at once, with bytecode: clock, zone, locale, umask, home, place, CPUs, hash seed, order of files, user's
    name, Python and inflate engine."""
    for judge in ("faketime", "taskset"):
        judges.require(judge)
    stub = tmp_path / "stub"
    (stub / "zlib_ng").mkdir(parents=True)
    (stub / "zlib_ng/__init__.py").write_text(NO_ZLIB_NG)
    one_cpu = ["taskset", "-c", str(max(os.sched_getaffinity(0)))]
    hidden = {"PYTHONPATH": str(stub)}
    children = {
        "east": (
            Variation(["faketime", "2031-02-03 04:05:06", *one_cpu], {"PYTHONHASHSEED": "1", **hidden}, umask=0o077),
            {"TZ": "Pacific/Kiritimati", "LC_ALL": "C.UTF-8", "USER": "east", "LOGNAME": "east"},
            BUILD,
        ),
        "west": (
            Variation(["faketime", "1999-12-31 23:59:59"], {"PYTHONHASHSEED": "77"}, umask=0o000, backwards=True),
            {"TZ": "Pacific/Pago_Pago", "LC_ALL": "POSIX", "USER": "west", "LOGNAME": "west"},
            other_build,
        ),
    }
    for name, (variation, environ, build) in children.items():
        root = tmp_path / name / "some where"
        profile = copied(real.profile, root / "project", variation)
        home = root / "home"
        home.mkdir()
        environ |= {"HOME": str(home), "XDG_CACHE_HOME": str(root / "cache"), "PATH": os.environ["PATH"]}
        environ |= {"LAYERWRIGHT_MIRRORS": str(real.cache / "layerwright"), **variation.environ}
        argv = ["publish", "--offline", profile, f"oci:{root / 'layout'}"]
        done = run(argv, home, environ, prefix=variation.prefix, build=build, umask=variation.umask)
        assert done.digest == real.digest, name
        assert Layout(root / "layout").blobs() == Layout(real.out).blobs(), name


def test_the_other_engine_is_really_another_one(tmp_path: Path) -> None:
    """Otherwise the test above compares an engine with itself."""
    (tmp_path / "zlib_ng").mkdir()
    (tmp_path / "zlib_ng/__init__.py").write_text(NO_ZLIB_NG)
    program = "from builder.layers.deflate import engine; print(engine().name)"
    names = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout.strip()
        for path in ("", str(tmp_path))
    }
    assert names == {deflate.engine().name, "zlib"}


def first(profile: Path) -> str:
    """The digest of the first build, which the session's fixture made."""
    index = json.loads((profile.parent / "out/index.json").read_bytes())
    return str(index["manifests"][0]["digest"])


def offline(world: World, cache: Path, **more: str) -> dict[str, str]:
    """A new store that takes its inputs from that of the first build, and no network."""
    mirror = str(world.root / "cache/layerwright")
    return world.environment(cache, LAYERWRIGHT_MIRRORS=mirror, LAYERWRIGHT_OFFLINE="1", **more)


def same_everywhere(world: World, first: Path, digest: str, folder: Path, *names: str) -> None:
    """Under each of these variations, the lock of `first` gives that image again, whose layout is `out` in the folder."""
    for name in names:
        variation, root = VARIATIONS[name], folder / name.replace(" ", "-")
        profile = copied(first, root / "project", variation)
        environ = offline(world, root / "cache") | variation.environ
        argv = ["publish", *variation.options, profile, f"oci:{root / 'out'}"]
        assert run(argv, folder, environ, umask=variation.umask).digest == digest, name
        assert Layout(root / "out").blobs() == Layout(folder / "out").blobs(), name


def copied(profile: Path, target: Path, variation: Variation) -> Path:
    """The profile's folder as another checkout would have it, written in sorted or reverse order under a umask."""
    paths = [path for path in profile.parent.rglob("*") if "out" not in path.relative_to(profile.parent).parts[:1]]
    target.mkdir(parents=True)
    for path in sorted(paths, reverse=variation.backwards):
        copy = target / path.relative_to(profile.parent)
        copy.parent.mkdir(parents=True, exist_ok=True)
        if path.is_symlink():
            copy.symlink_to(os.readlink(path))
        elif path.is_file():
            copy.write_bytes(path.read_bytes())
            copy.chmod((0o777 if path.stat().st_mode & 0o100 else 0o666) & ~variation.umask)
    return target / profile.name


def test_the_same_image_with_what_a_start_reads_first(world: World, tmp_path: Path) -> None:
    """The order of files in its layers, the spans of its index, and what it lists come from the trace alone."""
    text = (
        PROFILE.replace("soci: {", "soci: {spans: adaptive, prefetch: true, ")
        + "start: {trace: small.trace.json, order: all}\n"
    )
    first = write_project(tmp_path / "first", text)
    site = "opt/venv/lib/python3.11/site-packages"
    files = (TracedFile(f"{site}/alpha/blob.bin", 4096000, (Part(1 << 20, 2 << 20),)), TracedFile("usr/bin/hello", 12))
    trace = traces.encode(Trace(traces.VERSION, "linux/amd64", files))
    first.with_name("small.trace.json").write_text(trace)
    cache = world.environment(world.root / "cache")
    digest = run(["publish", first, f"oci:{tmp_path / 'out'}"], tmp_path, cache).digest
    assert any(b'"prefetch_spans"' in data for data in Layout(tmp_path / "out").blobs().values())
    same_everywhere(world, first, digest, tmp_path, "umask 077", "hash seed 4242", "one job", "backwards", "locale")
