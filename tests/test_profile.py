"""Profiles: what they mean, how they extend one another, and exactly what is said of bad ones."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from builder import documents, reference
from builder.documents import DocumentError
from builder.documents.keys import keys
from builder.errors import BuilderError
from builder.oci.digest import Digest
from builder.oci.spec import Platform
from builder.profile import (
    PYTHON_OF,
    Base,
    Budget,
    Cuda,
    File,
    Gpu,
    Image,
    Mode,
    Model,
    Nix,
    Port,
    Profile,
    Publish,
    Python,
    Size,
    Slim,
    Soci,
    Start,
    Template,
    read,
    starter,
)
from builder.profile.forms import Duration
from builder.render import render

ROOT = Path(__file__).resolve().parent.parent
HEAD = "profile: 1\nname: x\n"
DEBIAN = "base: {debian: bookworm}\n"


def write(folder: Path, files: dict[str, str]) -> Path:
    """Writes files, and gives the path of the first."""
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return folder / next(iter(files))


def said(folder: Path, files: dict[str, str]) -> str:
    """What is said of a bad profile, with its folder's name left out."""
    with pytest.raises(DocumentError) as caught:
        read(write(folder, files))
    return str(caught.value).replace(f"{folder}/", "")


def test_a_full_profile(tmp_path: Path) -> None:
    path = write(tmp_path, {"p.yaml": reference.EXAMPLE, "base/python.yaml": "profile: 1\n"})
    loaded = read(path)
    assert loaded.root == tmp_path
    assert loaded.includes == (("base/python.yaml", Digest.of(b"profile: 1\n").hex),)
    assert loaded.profile == Profile(
        version=1,
        name="sdxl-turbo",
        extends=("base/python.yaml",),
        platforms=(Platform("linux", "amd64"), Platform("linux", "arm64")),
        base=Base(debian="bookworm", packages=("libgl1",), skip=("libx11-data",)),
        python=Python(version="3.11", requirements=("numpy>=2", "flask"), bytecode="auto"),
        cuda=Cuda(version="13.2", flavour="runtime", cudnn=True),
        gpu=Gpu(require=("sm_80", "sm_90"), driver=">=580", optional=("flashinfer-*",)),
        slim=(Slim(wheels=("triton",), drop=("triton/backends/amd", "*.a")),),
        files=(
            File(source="app", to="/app", exclude=("tests/*", "*.pyc")),
            File(source="bin/tool", to="/usr/local/bin/tool", mode=Mode(0o755)),
        ),
        templates=(Template(source="serve.sh.j2", to="/app/serve.sh", mode=Mode(0o755)),),
        values={"port": 8080},
        nix=(
            "tools#report",
            Nix(source="flake:nixpkgs#ffmpeg-headless", links=(("/usr/local/bin/ffmpeg", "bin/ffmpeg"),)),
        ),
        models=(
            Model(
                name="sdxl-turbo",
                source="hf://stabilityai/sdxl-turbo@71153311d3dbb46851df1931d3ca6e939de83304",
                include=("*.safetensors", "*.json"),
                exclude=("*onnx*",),
                precision="fp16",
                overflow="clamp",
                mount="/models/sdxl",
                licenses=("Apache-2.0",),
            ),
        ),
        image=Image(
            entrypoint=("/app/serve.sh",),
            cmd=("--workers", "2"),
            env=(("LOG_LEVEL", "info"),),
            user="65532:65532",
            workdir="/app",
            ports=(Port(8080), Port(9000, "udp")),
            labels=(("org.opencontainers.image.title", "SDXL Turbo"),),
            stop_signal="SIGTERM",
        ),
        start=Start(trace="sdxl-turbo.trace.json", order="own"),
        budget=Budget(total=Duration(20), pull=Duration(5), model=Duration(10)),
        publish=Publish(
            soci=Soci(
                span_size=Size(4 << 20),
                min_layer_size=Size(10 << 20),
                spans="adaptive",
                platform="unknown",
                prefetch=True,
                mount="parallel",
            ),
            compression="gzip",
            lazy="soci",
            to="oci:out/sdxl-turbo",
            models="localhost:5000/models",
        ),
    )
    assert loaded.profile.template_values == {"port": 8080, "name": "sdxl-turbo"}


def test_models_of_a_profile_elsewhere(tmp_path: Path) -> None:
    """A folder is relative to the profile that names it; what is no path stays as it is."""
    sources = (
        "weights",
        "../weights",
        "hf://org/repo@main",
        "pypi://a==1#b",
        "https://h.example/m",
        "oci://h.example/m:v1",
    )
    listed = ", ".join(f"{{name: m{number}, from: '{source}'}}" for number, source in enumerate(sources))
    files = {"p.yaml": f"{HEAD}extends: [base/b.yaml]\n", "base/b.yaml": f"profile: 1\nmodels: [{listed}]\n"}
    models = read(write(tmp_path, files)).profile.models
    assert [model.source for model in models] == ["base/weights", "weights", *sources[2:]]
    assert models[0].place == "/models/m0"


def test_defaults(tmp_path: Path) -> None:
    assert read(write(tmp_path, {"p.yaml": HEAD})).profile == Profile(version=1, name="x")
    assert Profile(version=1, name="x").platforms == (Platform("linux", "amd64"),)


@pytest.mark.parametrize(
    ("text", "enabled"), [("false", False), ("true", True), ("{}", True), ("{enabled: false}", False)]
)
def test_soci_for_short(tmp_path: Path, text: str, enabled: bool) -> None:
    assert read(write(tmp_path, {"p.yaml": f"{HEAD}publish: {{soci: {text}}}"})).profile.publish.soci.enabled is enabled


BAD = [
    ("profile: 2\nname: x", "p.yaml:1:10: $.profile: expected 1, found the number 2"),
    ("profile: '1'\nname: x", 'p.yaml:1:10: $.profile: expected 1, found "1" (did you mean 1?)'),
    ("name: x", "p.yaml:1:1: $.profile: required key missing"),
    ("profile: 1", "p.yaml:1:1: $.name: required key missing"),
    (
        "profile: 1\nname: My App",
        "p.yaml:2:7: $.name: expected a name of lower-case letters, digits and single . _ - between them, "
        'found "My App": write my-app',
    ),
    (HEAD + "nix: {}", "p.yaml:3:6: $.nix: expected a list, found a mapping"),
    (
        HEAD + "nix: [x, {links: {}}, '-f', '/nix/store/x', 'github:a/b c', 'git+https://me:secret@h.example/x', x]",
        "p.yaml:3:10: $.nix[1].from: required key missing\n"
        "p.yaml:3:29: $.nix[3]: expected a reference such as ./default.nix#tool, github:owner/repository#tool or "
        '/nix/store/HASH-NAME, found "/nix/store/x": write /nix/store/HASH-NAME, the whole path and nothing below it\n'
        "p.yaml:3:45: $.nix[4]: expected a reference such as ./default.nix#tool, github:owner/repository#tool or "
        '/nix/store/HASH-NAME, found "github:a/b c"\n'
        "p.yaml:3:61: $.nix[5]: credentials do not belong into a profile",
    ),
    (HEAD + "nix: [./x, 'x']", "p.yaml:3:12: $.nix[1]: nix[0] is x too"),
    (
        HEAD + "nix: [{from: x, links: {/opt/x: bin/../x, y: bin}}]",
        'p.yaml:3:33: $.nix[0].links["/opt/x"]: expected a relative path in what Nix gives, such as bin/tool, found '
        '"bin/../x"\n'
        'p.yaml:3:43: $.nix[0].links.y: expected an absolute, normal path such as /app, found "y": write /y',
    ),
    (HEAD + "cuda: {}", "p.yaml:3:7: $.cuda.version: required key missing"),
    (
        HEAD + "cuda: {version: '13.2'}",
        "p.yaml:3:7: $.cuda: there is no operating system for it to stand on: add base: {debian: bookworm}",
    ),
    (
        HEAD + "base: {debian: bookworm}\ncuda: {version: 13.2, flavour: runtme}",
        'p.yaml:4:17: $.cuda.version: expected a release of CUDA in quotes such as "13.2", found the number 13.2: write it '
        'in quotes: "13.2"\n'
        'p.yaml:4:32: $.cuda.flavour: expected one of auto, none, base, runtime, devel, found "runtme" (did you mean '
        "runtime?)",
    ),
    (
        HEAD + "base: {debian: bookworm}\ncuda: {version: '11.8'}",
        'p.yaml:4:17: $.cuda.version: expected a release of CUDA in quotes such as "13.2", found "11.8": 12.0 is the '
        "oldest release that there are wheels for",
    ),
    (
        HEAD + "base: {debian: bookworm}\ncuda: {version: '12.8', flavour: devel}",
        "p.yaml:4:34: $.cuda.flavour: devel cannot be composed for CUDA 12, no wheel of which has a compiler: write version "
        "13.0 or newer, or build upon an image that has it, with base.image",
    ),
    (
        HEAD + "base: {debian: bookworm}\ncuda: {version: '13.2', flavour: none, cudnn: true}",
        "p.yaml:4:47: $.cuda.cudnn: flavour none adds nothing: leave cudnn out, or write flavour: base",
    ),
    (
        HEAD + "base: {debian: bookworm, image: 'oci:x'}",
        "p.yaml:3:7: $.base: either a Debian (debian: bookworm, trixie) or an image is below everything else, not both: "
        "remove one of them",
    ),
    (
        HEAD + "base: {image: debian:12}",
        'p.yaml:3:15: $.base.image: expected an image such as localhost:5000/debian:12 or oci:base/debian:12, found "debian:12": '
        "write HOST/debian:12 for a registry: no host is guessed; or oci:debian:12 for a folder",
    ),
    (
        HEAD + "base: {image: 'oci:x', packages: [libgl1]}",
        "p.yaml:3:34: $.base.packages: Debian packages are not put on top of an image: remove them, or write debian in place of "
        "image",
    ),
    (HEAD + "imge: {}", "p.yaml:3:1: $.imge: unknown key (did you mean image?)"),
    (HEAD + "base: {}", "p.yaml:3:7: $.base: required key missing: debian (bookworm, trixie), or image"),
    (
        HEAD + "base: {debian: bokworm}",
        'p.yaml:3:16: $.base.debian: expected one of bookworm, trixie, found "bokworm" (did you mean bookworm?)',
    ),
    (
        HEAD + "base: {debian: bookworm, packages: [libgl1=1.6]}",
        "p.yaml:3:37: $.base.packages[0]: expected the name of a Debian package such as libgl1, "
        'found "libgl1=1.6": write libgl1, versions are in the lock and architectures in platforms',
    ),
    (HEAD + DEBIAN + "python: {}", "p.yaml:4:9: $.python.version: required key missing"),
    (
        HEAD + DEBIAN + "python: {version: 3.11}",
        'p.yaml:4:19: $.python.version: expected a version of Python in quotes such as "3.11", found the number 3.11: '
        'write it in quotes: "3.11"',
    ),
    (
        HEAD + DEBIAN + "python: {version: 3.11.2}",
        'p.yaml:4:19: $.python.version: expected a version of Python in quotes such as "3.11", found "3.11.2": '
        'write "3.11", the lock holds the exact version',
    ),
    (
        HEAD + DEBIAN + "python: {version: '3.12'}",
        'p.yaml:4:19: $.python.version: bookworm has Python 3.11: write "3.11"',
    ),
    (
        HEAD + DEBIAN + "python: {version: '3.13'}",
        'p.yaml:4:19: $.python.version: bookworm has Python 3.11: write "3.11", or base.debian: trixie, which has "3.13"',
    ),
    (
        HEAD + "python: {version: '3.11'}",
        "p.yaml:3:9: $.python: there is no Debian for it to stand on: add base: {debian: bookworm}, which has Python 3.11",
    ),
    (
        HEAD + DEBIAN + "python: {version: '3.11', requirements: [numpy>=, --index-url x]}",
        'p.yaml:4:42: $.python.requirements[0]: expected a requirement such as numpy>=2, found "numpy>="\n'
        'p.yaml:4:51: $.python.requirements[1]: expected a requirement such as numpy>=2, found "--index-url x"',
    ),
    (
        HEAD + DEBIAN + "python: {version: '3.11', requirements: ['x @ file:///x.whl']}",
        "p.yaml:4:42: $.python.requirements[0]: a requirement is found by its name: addresses come from your configuration "
        "of pip or uv",
    ),
    (
        HEAD + DEBIAN + "python: {version: '3.11', requirements: numpy}",
        'p.yaml:4:41: $.python.requirements: expected a file requirements.txt, pylock.toml or uv.lock, found "numpy"',
    ),
    (
        HEAD + DEBIAN + "python: {version: '3.11', requirements: {file: x.txt}}",
        "p.yaml:4:41: $.python.requirements: expected a list or a file requirements.txt, pylock.toml or uv.lock, "
        "found a mapping",
    ),
    (
        HEAD + DEBIAN + "python: {version: '3.11', bytecode: no}",
        'p.yaml:4:37: $.python.bytecode: expected one of auto, true, false, found "no"',
    ),
    (
        HEAD + "platforms: [linux/amd46]",
        'p.yaml:3:13: $.platforms[0]: expected one of linux/amd64, linux/arm64, found "linux/amd46" '
        "(did you mean linux/amd64?)",
    ),
    (
        HEAD + "platforms: [linux/amd64, linux/amd64]",
        'p.yaml:3:26: $.platforms[1]: "linux/amd64" is there twice, first as number 1',
    ),
    (
        HEAD + "platforms: linux/amd64",
        'p.yaml:3:12: $.platforms: expected a list, found "linux/amd64": write it as a list: ["linux/amd64"]',
    ),
    (
        HEAD + "files: [{from: /etc/passwd, to: /etc/passwd}]",
        'p.yaml:3:16: $.files[0].from: expected a relative path such as app/main.py, found "/etc/passwd": '
        "paths are relative to the folder of the profile",
    ),
    (
        HEAD + "files: [{from: a/../../b, to: /b}]",
        'p.yaml:3:16: $.files[0].from: expected a relative path such as app/main.py, found "a/../../b": '
        "write ../b, if that is what is meant",
    ),
    (
        HEAD + "files: [{from: a, to: app}]",
        'p.yaml:3:23: $.files[0].to: expected an absolute, normal path such as /app, found "app": write /app',
    ),
    (
        HEAD + "files: [{from: a, to: /app/../etc}]",
        'p.yaml:3:23: $.files[0].to: expected an absolute, normal path such as /app, found "/app/../etc": write /etc',
    ),
    (
        HEAD + "files: [{from: a, to: /a, mode: 0644}]",
        'p.yaml:3:33: $.files[0].mode: expected octal permissions in quotes such as "0644", found the number 0644: '
        'write it in quotes: "0644"',
    ),
    (
        HEAD + "files: [{frm: a, to: /a}]",
        "p.yaml:3:9: $.files[0].from: required key missing\n"
        "p.yaml:3:10: $.files[0].frm: unknown key (did you mean from?)",
    ),
    (
        HEAD + "templates: [{from: a, to: /}]",
        'p.yaml:3:27: $.templates[0].to: expected the absolute, normal path of a file such as /app/run.sh, found "/"',
    ),
    (
        HEAD + "templates: [{from: a, to: /a}, {from: b, to: /a}]",
        "p.yaml:3:46: $.templates[1].to: two templates cannot be the same file: templates[0] is /a too",
    ),
    (
        HEAD + "values: {my-port: 1}",
        "p.yaml:3:10: $.values.my-port: expected a name that templates can use, of letters, digits and _, "
        'found "my-port": write my_port',
    ),
    (
        HEAD + "values: {name: y}",
        "p.yaml:3:10: $.values.name: expected a name that templates can use, of letters, digits and _, "
        'found "name": the word is taken',
    ),
    (
        HEAD + "values: {debug: off}",
        "p.yaml:3:17: $.values.debug: off is a word to some readers, true or false to others: write true or false, or in "
        'quotes: "off"',
    ),
    (
        HEAD + "image: {entrypoint: /app/run.sh}",
        'p.yaml:3:21: $.image.entrypoint: expected a list, found "/app/run.sh": write it as a list: ["/app/run.sh"]',
    ),
    (
        HEAD + "image: {env: {A-B: x}}",
        'p.yaml:3:15: $.image.env.A-B: expected the name of a variable, of letters, digits and _, found "A-B"',
    ),
    (
        HEAD + "image: {env: {A: 3.10}}",
        'p.yaml:3:18: $.image.env.A: expected text, found the number 3.10: write it in quotes: "3.10"',
    ),
    (
        HEAD + "image: {ports: [0, 70000, 80/sctp]}",
        'p.yaml:3:17: $.image.ports[0]: expected a port from 1 to 65535 such as 8080 or 8080/udp, found "0"\n'
        'p.yaml:3:20: $.image.ports[1]: expected a port from 1 to 65535 such as 8080 or 8080/udp, found "70000"\n'
        'p.yaml:3:27: $.image.ports[2]: expected a port from 1 to 65535 such as 8080 or 8080/udp, found "80/sctp"',
    ),
    (
        HEAD + "image: {ports: [80, 80/tcp]}",
        'p.yaml:3:21: $.image.ports[1]: "80/tcp" is there twice, first as number 1',
    ),
    (
        HEAD + "image: {user: Root}",
        'p.yaml:3:15: $.image.user: expected a user such as "65532:65532" or nobody, found "Root"',
    ),
    (
        HEAD + "image: {user: '4294967295'}",
        "p.yaml:3:15: $.image.user: 4294967295 is no user or group: the largest is 4294967294",
    ),
    (
        HEAD + "image: {labels: {'a b': x}}",
        'p.yaml:3:18: $.image.labels["a b"]: expected the name of a label such as org.example.team, found "a b"',
    ),
    (
        HEAD + "image: {stop-signal: SIGTREM}",
        'p.yaml:3:22: $.image.stop-signal: unknown name "SIGTREM" (did you mean SIGTERM?)',
    ),
    (
        HEAD + "image: {workdir: /a/}",
        'p.yaml:3:18: $.image.workdir: expected an absolute, normal path such as /app, found "/a/": write /a',
    ),
    (
        HEAD + "publish: {soci: {span-size: 4MB}}",
        'p.yaml:3:29: $.publish.soci.span-size: expected a size such as 4MiB, found "4MB": write 4MiB',
    ),
    (
        HEAD + "publish: {soci: {span-size: 1KiB}}",
        'p.yaml:3:29: $.publish.soci.span-size: expected a size from 64KiB to 1GiB, found "1KiB"',
    ),
    (
        HEAD + "publish: {models: 'localhost:5000/models:v1'}",
        "p.yaml:3:19: $.publish.models: expected a place such as oci:out/models or localhost:5000/models, found "
        '"localhost:5000/models:v1": a model is tagged by its name: write localhost:5000/models',
    ),
    (
        HEAD + "publish: {to: 'oci://localhost:5000/app'}",
        "p.yaml:3:15: $.publish.to: expected a destination such as oci:out/app or localhost:5000/app, "
        'found "oci://localhost:5000/app": a destination has no scheme: write HOST/REPOSITORY:TAG',
    ),
    (
        HEAD + "base: {image: 'oci://localhost:5000/app'}",
        "p.yaml:3:15: $.base.image: expected an image such as localhost:5000/debian:12 or oci:base/debian:12, "
        'found "oci://localhost:5000/app": an image has no scheme: write HOST/REPOSITORY:TAG',
    ),
    (
        HEAD + "publish: {models: 'oci:out/models:v1'}",
        "p.yaml:3:19: $.publish.models: expected a place such as oci:out/models or localhost:5000/models, found "
        '"oci:out/models:v1": a model is tagged by its name: write oci:out/models',
    ),
    (HEAD + "publish: {soci: off}", 'p.yaml:3:17: $.publish.soci: expected a mapping, found "off"'),
    *(
        (
            f"{HEAD}models: [{{name: m, from: {text!r}}}]",
            f"p.yaml:3:26: $.models[0].from: expected a path, or an address such as hf://org/repository@commit, "
            f'found "{text}"{advice}',
        )
        for text, advice in (
            ("hf://org/repository", ": write hf://ORGANISATION/REPOSITORY@COMMIT"),
            ("pypi://thing", ": write pypi://PROJECT==VERSION#PATH/IN/WHEEL"),
            ("https://registry.example", ": write https://HOST/PATH"),
            ("oci://registry.example", ": write oci://HOST/REPOSITORY:TAG"),
            ("s3://bucket/m", ": an address begins with https://, hf://, pypi://, oci://"),
            ("/srv/m", ": paths are relative to the folder of the profile"),
            ("a/../m", ": write m, if that is what is meant"),
        )
    ),
    (
        HEAD + "models: [{name: m, from: 'https://me:secret@registry.example/m.gguf'}]",
        "p.yaml:3:26: $.models[0].from: credentials do not belong into a profile",
    ),
    (
        HEAD + "models: [{name: m, from: a, image: true}, {name: m-image, from: b}]",
        "p.yaml:3:50: $.models[1].name: models[0] has an image, whose tag is model-m-image",
    ),
    (
        HEAD + "models: [{name: m, from: a}, {name: m, from: b, mount: /c}, {name: n, from: a, mount: /models/m}]",
        "p.yaml:3:37: $.models[1].name: models[0] has m too\n"
        "p.yaml:3:87: $.models[2].mount: models[0] has /models/m too",
    ),
    (
        HEAD + "publish: {to: 'docker://registry.example/app:1'}",
        "p.yaml:3:15: $.publish.to: expected a destination such as oci:out/app or localhost:5000/app, "
        'found "docker://registry.example/app:1": a destination has no scheme: write HOST/REPOSITORY:TAG',
    ),
    (
        HEAD + "extends: ['oci://registry.example/base']",
        "p.yaml:3:11: $.extends[0]: expected a relative path such as app/main.py, "
        'found "oci://registry.example/base": this version knows local files only',
    ),
    (
        HEAD + "extends: ['git+https://git.example/base']",
        "p.yaml:3:11: $.extends[0]: expected a relative path such as app/main.py, "
        'found "git+https://git.example/base": this version knows local files only',
    ),
    (HEAD + "extends: [none.yaml]", "p.yaml:3:11: $.extends[0]: none.yaml cannot be read: No such file or directory"),
    (HEAD + "extends: ['.']", "p.yaml:3:11: $.extends[0]: . is not a file"),
    (
        HEAD + "extends: [p.yaml]",
        "p.yaml:3:11: $.extends[0]: profiles extend one another in a circle: p.yaml → p.yaml",
    ),
    (HEAD + "name: y", "p.yaml:3:1: $.name: the key is there twice, first in line 2"),
    ("[]", "p.yaml:1:1: expected a mapping, found a list"),
]


@pytest.mark.parametrize(("text", "message"), BAD)
def test_bad_profiles(tmp_path: Path, text: str, message: str) -> None:
    lines = said(tmp_path, {"p.yaml": text}).replace("\n  ", "\n").split("\n")
    assert "\n".join(line for line in lines if not line.endswith(" problems:")) == message


def test_a_profile_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(BuilderError, match=r"x\.yaml: cannot be read: No such file or directory") as caught:
        read(tmp_path / "x.yaml")
    assert caught.value.hint == "`build init NAME` writes a profile to begin with"


def test_all_problems_of_all_files_at_once(tmp_path: Path) -> None:
    files = {
        "p.yaml": HEAD + "extends: [base/a.yaml, b.yaml]\nimage: {env: {A: 1.5}}\nname: z\n",
        "base/a.yaml": "profile: 1\nname: UP\nextends: /x\nbase: {debian: bookworm, skp: []}\nimage: {env: {A: 2.5, B: 2.5}}\n",
        "b.yaml": "profile: 2\nimage: {env: {C: true}}\n",
    }
    assert said(tmp_path, files).split("\n") == [
        "8 problems:",
        "  b.yaml:1:10: $.profile: expected 1, found the number 2",
        '  b.yaml:2:18: $.image.env.C: expected text, found true: write it in quotes: "true"',
        "  base/a.yaml:2:7: $.name: expected a name of lower-case letters, digits and single . _ - between them, "
        'found "UP": write up',
        '  base/a.yaml:3:10: $.extends: expected a list, found "/x": write it as a list: ["/x"]',
        "  base/a.yaml:4:26: $.base.skp: unknown key (did you mean skip?)",
        '  base/a.yaml:5:26: $.image.env.B: expected text, found the number 2.5: write it in quotes: "2.5"',
        '  p.yaml:4:18: $.image.env.A: expected text, found the number 1.5: write it in quotes: "1.5"',
        "  p.yaml:5:1: $.name: the key is there twice, first in line 2",
    ]


def test_maps_merge_scalars_replace_lists_append(tmp_path: Path) -> None:
    files = {
        "p.yaml": HEAD + "extends: [a.yaml, b.yaml]\n"
        "base: {packages: [bb, cc, dd]}\nvalues: {one: 10, deep: {y: 20, list: [1, 3]}, gone: null}\n"
        "image: {entrypoint: [mine], env: {B: mine}}\npublish: {soci: {span-size: 1MiB}}\n",
        "a.yaml": "profile: 1\nname: a\nplatforms: [linux/arm64]\nbase: {debian: trixie, packages: [aa, bb]}\n"
        "values: {one: 1, two: 2, deep: {x: 1, y: 2, list: [1, 2]}, gone: {a: 1}}\nimage: {entrypoint: [a, -x], cmd: [y]}\n",
        "b.yaml": "profile: 1\nbase: {debian: bookworm, packages: [cc]}\nvalues: {two: [2]}\n"
        "image: {env: {A: b, B: b}}\npublish: {soci: false}\n",
    }
    loaded = read(write(tmp_path, files))
    profile = loaded.profile
    assert profile.name == "x"
    assert profile.base == Base(debian="bookworm", packages=("aa", "bb", "cc", "dd"))
    assert profile.platforms == (Platform("linux", "arm64"),)
    assert profile.values == {"one": 10, "two": [2], "deep": {"x": 1, "y": 20, "list": [1, 2, 1, 3]}, "gone": None}
    assert list(profile.values) == ["one", "two", "deep", "gone"]
    assert profile.image == Image(entrypoint=("mine",), cmd=("y",), env=(("A", "b"), ("B", "mine")))
    assert profile.publish.soci == Soci(span_size=Size(1 << 20))
    assert [include.source for include in loaded.includes] == ["a.yaml", "b.yaml"]


def test_replace(tmp_path: Path) -> None:
    files = {
        "p.yaml": HEAD + "extends: [a.yaml]\nfiles: !replace []\nvalues: !replace {b: 2}\nimage: {env: !replace {}}\n"
        "python: null\n",
        "a.yaml": "profile: 1\nbase: {debian: bookworm}\npython: {version: '3.11'}\nfiles: [{from: a, to: /a}]\n"
        "values: {a: 1}\nimage: {env: {A: a}, user: nobody}\n",
    }
    profile = read(write(tmp_path, files)).profile
    assert (profile.files, profile.values, profile.python) == ((), {"b": 2}, None)
    assert profile.image == Image(user="nobody")
    assert said(tmp_path, {"p.yaml": HEAD + "image: {user: !replace nobody}"}) == (
        "p.yaml:3:15: $.image.user: !replace stands before a list or a mapping; anything else replaces by itself"
    )


def test_a_base_that_is_reached_twice_counts_once(tmp_path: Path) -> None:
    files = {
        "p.yaml": HEAD + "extends: [a.yaml, sub/b.yaml]\nvalues: {l: [p]}",
        "a.yaml": "profile: 1\nextends: [sub/c.yaml]\nvalues: {l: [a]}",
        "sub/b.yaml": "profile: 1\nextends: [./c.yaml, ../a.yaml]\nvalues: {l: [b]}",
        "sub/c.yaml": "profile: 1\nvalues: {l: [c]}",
    }
    loaded = read(write(tmp_path, files))
    assert loaded.profile.values == {"l": ["c", "a", "b", "p"]}
    assert [include.source for include in loaded.includes] == ["sub/c.yaml", "a.yaml", "sub/b.yaml"]


def test_a_circle_shows_the_chain(tmp_path: Path) -> None:
    files = {
        "p.yaml": HEAD + "extends: [a.yaml]",
        "a.yaml": "profile: 1\nextends: [sub/b.yaml]",
        "sub/b.yaml": "profile: 1\nextends: [../a.yaml]",
    }
    assert said(tmp_path, files) == (
        "sub/b.yaml:2:11: $.extends[0]: profiles extend one another in a circle: a.yaml → sub/b.yaml → a.yaml"
    )
    (tmp_path / "a.yaml").unlink()
    (tmp_path / "a.yaml").symlink_to("p.yaml")
    assert "in a circle: p.yaml → a.yaml" in said(tmp_path, {"p.yaml": HEAD + "extends: [a.yaml]"})


def test_a_long_chain_ends(tmp_path: Path) -> None:
    files = {"p.yaml": HEAD + "extends: [b0.yaml]"}
    files |= {f"b{i}.yaml": f"profile: 1\nextends: [b{i + 1}.yaml]" for i in range(100)}
    assert said(tmp_path, files) == "b62.yaml:2:11: $.extends[0]: more than 64 profiles extend one another"


def test_paths_become_relative_to_the_main_profile(tmp_path: Path) -> None:
    files = {
        "main/p.yaml": HEAD
        + "extends: [base/a.yaml, ../team/b.yaml]\nfiles: [{from: ./app/, to: /p}, {from: ., to: /all}]",
        "main/base/a.yaml": "profile: 1\nbase: {debian: bookworm}\npython: {version: '3.11', requirements: ../requirements.txt}\n"
        "files: [{from: app, to: /a}, {from: ../x, to: /x}]\npublish: {to: 'oci:../out:1'}",
        "team/b.yaml": "profile: 1\ntemplates: [{from: t.j2, to: /t}]\nfiles: [{from: ../../y, to: /y}]",
    }
    profile = read(write(tmp_path, files)).profile
    assert [file.source for file in profile.files] == ["base/app", "x", "../../y", "app", "."]
    assert profile.templates[0].source == "../team/t.j2"
    assert profile.python
    assert profile.python.requirements == "requirements.txt"
    assert profile.publish.to == "oci:out:1"


def test_what_an_included_file_lacks_is_not_said(tmp_path: Path) -> None:
    """`debian` may be in the file that is missing."""
    files = {"p.yaml": HEAD + "extends: [none.yaml]\nbase: {packages: [aa]}\npython: {version: '3.13'}\nimge: 1"}
    assert said(tmp_path, files).split("\n") == [
        "2 problems:",
        "  p.yaml:3:11: $.extends[0]: none.yaml cannot be read: No such file or directory",
        "  p.yaml:6:1: $.imge: unknown key (did you mean image?)",
    ]


def test_the_digest_is_of_the_value(tmp_path: Path) -> None:
    def digest(*texts: str) -> Digest:
        files = {("p.yaml", "b.yaml")[i]: text for i, text in enumerate(texts)}
        return read(write(tmp_path, files)).profile.digest

    first = digest(HEAD + DEBIAN + "image: {env: {A: '1', B: '2'}}\nvalues: {a: 1, b: {c: 2}}")
    assert (
        digest("# comment\nname: 'x'\nprofile: 1\nvalues: {a: 1, b: {c: 2}}\nimage: {env: {B: '2', A: '1'}}\n" + DEBIAN)
        == first
    )
    assert (
        digest(
            HEAD + "extends: [b.yaml]\nvalues: {b: {c: 2}}",
            "profile: 1\nvalues: {a: 1}\n" + DEBIAN + "image: {env: {A: 1, B: 2}}",
        )
        == first
    )
    assert (
        digest(HEAD + DEBIAN + "image: {env: {A: '1', B: '2'}}\nvalues: {a: 1, b: {c: 2}}\npublish: {to: 'oci:x'}")
        == first
    )
    assert digest(HEAD + DEBIAN + "image: {env: {A: '1', B: '2'}}\nvalues: {b: {c: 2}, a: 1}") != first, (
        "templates see the order"
    )
    assert digest(HEAD + DEBIAN + "image: {env: {A: '1', B: '3'}}\nvalues: {a: 1, b: {c: 2}}") != first


def test_the_shipped_profiles_read() -> None:
    for path in (ROOT / "profiles").glob("*.yaml"):
        assert read(path).profile.name == path.stem


def test_the_starter_works(tmp_path: Path) -> None:
    files = starter("my-app")
    assert sorted(files) == ["app/main.py", "app/settings.json.j2", "my-app.yaml"]
    for name, data in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(data)
    profile = read(tmp_path / "my-app.yaml").profile
    assert profile.name == "my-app"
    for source in [item.source for item in profile.files] + [item.source for item in profile.templates]:
        assert (tmp_path / source).is_file()
    for item in profile.templates:
        text = (tmp_path / item.source).read_text(encoding="utf-8")
        assert b"Hello from my-app" in render(text, profile.template_values, item.source)
    compile(files["app/main.py"], "main.py", "exec")
    with pytest.raises(DocumentError, match='found "My App": write my-app'):
        starter("My App")


def test_the_starter_is_found_in_an_installed_package(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "builder", tmp_path / "builder", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(ROOT / "templates", tmp_path / "builder" / "templates")
    code = "from builder.profile import starter; print(sorted(starter('x')))"
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout == "['app/main.py', 'app/settings.json.j2', 'x.yaml']\n"


def test_the_reference_is_up_to_date() -> None:
    """Make it again with: python -c 'from builder import reference; print(reference.markdown(), end="")'."""
    assert (ROOT / "docs" / "profile.md").read_text(encoding="utf-8") == reference.markdown()


def test_the_example_of_the_reference_has_every_key() -> None:
    example = documents.load(Profile, documents.read_yaml(reference.EXAMPLE, "example"))

    def check(value: Any) -> None:
        cls: Any = type(value)
        for key in keys(cls):
            item = getattr(value, key.attribute)
            if key.attribute not in ("mode", "exclude", *getattr(cls, "one_of", ())):
                assert item not in (None, (), "", {}), key.name
            for inner in item if isinstance(item, tuple) else (item,):
                if hasattr(inner, "__dataclass_fields__") and not hasattr(inner, "parse"):
                    check(inner)

    check(example)


# Of what reaches past one value a schema cannot speak, and neither of tags and of how text is written.
_BEYOND = (
    "bookworm has Python",
    "no Debian for it",
    "two templates",
    "] is x too",
    "credentials do not belong",
    "twice, first in",
    "80/tcp",
    "expected a requirement",
    "the number 0644",
    "a requirement is found by its name",
    "is no user or group",
    "a port from 1 to 65535",
    "a size from 64KiB",
    "cannot be read",
    "is not a file",
    "in a circle",
    "a word to some",
    "credentials do not",
    "models[0] has",
    "no operating system",
    "cannot be composed",
    "none adds nothing",
    "on top of an image",
)


@pytest.mark.parametrize(
    "text",
    [text for text, message in BAD if not any(beyond in message for beyond in _BEYOND)]
    + [reference.EXAMPLE, HEAD, HEAD + "publish: {soci: false}", HEAD + "publish: {soci: true}", HEAD + "base: null"]
    + [HEAD + "base: {}", HEAD + "base: {image: 'oci:x'}", HEAD + "base: {image: 'oci:x', debian: bookworm}"]
    + [
        HEAD + DEBIAN + f"python: {{version: '{PYTHON_OF['bookworm']}', requirements: {text}}}"
        for text in (
            "uv.lock",
            "sub/pylock.toml",
            "pylock.x.toml",
            "pylock.a.b.toml",
            "../dev-requirements.txt",
            "a/../uv.lock",
            ".txt",
            "[]",
        )
    ]
    + [
        HEAD + f"files: [{{from: {text}, to: /x}}]"
        for text in (".", "..", "../..", "./a", "../../a/b/", "a//b", "./../a", "...", "a/..")
    ]
    + [
        HEAD + f"files: [{{from: x, to: {text}}}]"
        for text in ("/", "//", "/a", "/a/b c/ü", "/a//b", "/a/.", "/..", "/...")
    ]
    + [
        HEAD + f"image: {{user: {text}}}"
        for text in ("0", "65532", "nobody", "a:b", "1:2", "'01'", "':1'", "1.5", "-1")
    ]
    + [HEAD + f"image: {{env: {{A: {text}}}}}" for text in ("1", "''", "a\u00a0b", "true", "-1", "1.5", "null")]
    + [
        HEAD + f"publish: {{soci: {{min-layer-size: {text}}}}}"
        for text in ("0", "10", "10B", "1KiB", "1kb", "-1", "1.5", "''")
    ]
    + [
        f"profile: 1\nname: {text}"
        for text in ("a", "a-b", "a--b", "a.b", "a..b", "a__b", "a___b", "-a", "A", "a" * 101)
    ],
)
def test_the_schema_takes_what_the_reader_takes(tmp_path: Path, text: str) -> None:
    path = write(tmp_path, {"p.yaml": text, "base/python.yaml": "profile: 1"})
    plain = _plain(documents.read_yaml(text, "p.yaml"))
    try:
        read(path)
        good = True
    except DocumentError:
        good = False
    validator = jsonschema.Draft202012Validator(reference.schema())
    assert validator.is_valid(plain) is good, [error.message for error in validator.iter_errors(plain)]


def test_the_schema_lets_a_profile_leave_out_what_it_inherits() -> None:
    text: dict[str, Any] = {"profile": 1, "name": "x", "python": {"requirements": ["numpy"]}}
    jsonschema.validate(text | {"extends": ["base.yaml"]}, reference.schema())
    with pytest.raises(jsonschema.ValidationError, match="'version' is a required property"):
        jsonschema.validate(text, reference.schema())


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(reference.schema())


def _plain(node: Any) -> Any:
    """What another reader of YAML 1.2 hands to a schema."""
    if hasattr(node, "pairs"):
        return {key.text: _plain(value) for key, value in node.pairs}
    return [_plain(item) for item in node.items] if hasattr(node, "items") else node.value
