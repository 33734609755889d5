"""Recipes: what they print is what Kubernetes takes, and each of them gets the models for real, with the real client."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import judges
import modelworld
import pytest
import yaml
from world import Done, run

PROFILE = """\
profile: 1
name: my_service
files:
  - {from: client.pyz, to: /opt/client.pyz}
models:
  - {name: bert, from: bert, image: true, licenses: [MIT]}
  - {name: one.two, from: other, mount: /weights/other}
image:
  entrypoint: [python, /app/main.py]
  cmd: [--port, "8080"]
  user: "65532:1000"
  ports: [8080, 9000/udp]
"""
OTHER = {"other.gguf.json": b"{}"}


@dataclass(frozen=True)
class Project:
    """A profile whose image and models are published."""

    root: Path
    image: str

    @property
    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.root)}

    def recipe(self, kind: str, *arguments: str) -> Done:
        return modelworld.inside(["model", "recipe", "p.yaml", "--kind", kind, *arguments], self.root, self.environment)

    def document(self, kind: str, *arguments: str) -> Any:
        done = self.recipe(kind, "--image", self.image, *arguments)
        assert (done.code, done.err) == (0, "")
        return yaml.safe_load(done.out)

    def pod(self, kind: str, *arguments: str) -> Any:
        document = self.document(kind, *arguments)
        assert (document["apiVersion"], document["kind"]) == ("apps/v1", "Deployment")
        template = document["spec"]["template"]
        assert document["spec"]["selector"]["matchLabels"] == template["metadata"]["labels"]
        spec = template["spec"]
        volumes = {volume["name"] for volume in spec["volumes"]}
        for container in (*spec.get("initContainers", ()), *spec["containers"]):
            assert {mount["name"] for mount in container["volumeMounts"]} <= volumes
        return spec

    def started(self, argv: list[str], places: dict[str, Path]) -> subprocess.Popen[str]:
        """What a container would run, where `places` are, with nothing of this process's environment."""
        places = {**places, "/opt/client.pyz": self.root / "client.pyz"}
        words = [sys.executable if word == "python" else word for word in argv]
        for place, path in places.items():
            words = [str(path) + word.removeprefix(place) if word.startswith(place) else word for word in words]
        environ = {"PATH": os.defpath, "HOME": "/nonexistent"}
        return subprocess.Popen(words, cwd="/", env=environ, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def ran(self, argv: list[str], places: dict[str, Path]) -> tuple[str, str]:
        with self.started(argv, places) as process:
            out, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        return out, err


@pytest.fixture(scope="module")
def project(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Project]:
    root = tmp_path_factory.mktemp("project")
    modelworld.write_files(root / "bert", modelworld.small_files())
    modelworld.write_files(root / "other", OTHER)
    (root / "p.yaml").write_text(PROFILE)
    with judges.registry("docker-registry", tmp_path_factory.mktemp("registry")) as address:
        made = Project(root, f"{address}/team/service:v1")
        assert run(["model", "client", "-o", "client.pyz"], root, made.environment).code == 0
        published = run(["publish", "p.yaml", made.image], root, made.environment)
        assert published.code == 0, published.err
        yield made


def files_below(folder: Path) -> dict[str, bytes]:
    found = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {path: data for path, data in found.items() if not path.startswith(".build/")}


def test_init_containers_pull(project: Project, tmp_path: Path) -> None:
    pod = project.pod("init")
    assert pod["securityContext"] == {"runAsUser": 65532, "runAsGroup": 1000, "fsGroup": 1000}
    assert [container["name"] for container in pod["initContainers"]] == ["model-bert", "model-one-two"]
    (service,) = pod["containers"]
    assert service["ports"] == [
        {"containerPort": 8080, "protocol": "TCP"},
        {"containerPort": 9000, "protocol": "UDP"},
    ]
    lock = json.loads((project.root / "p.lock.json").read_text())
    for container, locked in zip(pod["initContainers"], lock["models"], strict=True):
        assert container["args"][0].endswith(f"@{locked['manifest']}")
        assert "readOnlyRootFilesystem" in container["securityContext"]
        project.ran(container["command"] + container["args"], {"/volume": tmp_path})
    mounted = {mount["mountPath"]: tmp_path / mount["subPath"] for mount in service["volumeMounts"]}
    assert files_below(mounted["/models/bert"]) == modelworld.small_files()
    assert files_below(mounted["/weights/other"]) == OTHER
    assert sorted(path.name for path in tmp_path.iterdir()) == ["bert", "one.two"]


def test_the_sidecar_tells_when_the_models_are_there(project: Project, tmp_path: Path) -> None:
    pod = project.pod("sidecar")
    (service,) = pod["containers"]
    for container, mount in zip(pod["initContainers"], service["volumeMounts"], strict=True):
        assert container["restartPolicy"] == "Always"
        probe = container["startupProbe"]["httpGet"]
        assert container["args"][-2:] == ["--serve", str(probe["port"])]
        with closing(socket.socket()) as chosen:
            chosen.bind(("127.0.0.1", 0))
            port = chosen.getsockname()[1]
        argv = [*container["command"], *container["args"][:-1], str(port)]
        with project.started(argv, {"/node": tmp_path}) as sidecar:
            try:
                assert _answer(f"http://127.0.0.1:{port}{probe['path']}")
                folder = tmp_path / mount["subPath"]
                assert files_below(folder) == (modelworld.small_files() if "bert" in str(folder) else OTHER)
            finally:
                sidecar.send_signal(signal.SIGTERM)
            assert sidecar.wait(timeout=20) == 0
    assert len({container["startupProbe"]["httpGet"]["port"] for container in pod["initContainers"]}) == 2
    for container in pod["initContainers"]:  # the second pod of the node
        _, err = project.ran([*container["command"], *container["args"][:-2]], {"/node": tmp_path})
        assert "holds the model already" in err


def _answer(url: str) -> bool:
    until = time.monotonic() + 30
    while time.monotonic() < until:
        try:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            time.sleep(0.05)
    return False


def test_a_sidecar_whose_model_is_not_there_fails(project: Project, tmp_path: Path) -> None:
    pod = project.pod("sidecar")
    command = pod["initContainers"][0]["command"]
    missing = project.image.replace("v1", "model-none")
    with project.started([*command, missing, str(tmp_path / "x"), "--no-cache", "--serve", "1"], {}) as sidecar:
        _, err = sidecar.communicate(timeout=60)
    assert sidecar.returncode == 1
    assert "error:" in err


def test_the_node_mounts_an_image(project: Project, tmp_path: Path) -> None:
    pod = project.pod("volume", "bert")
    assert "initContainers" not in pod
    (volume,) = pod["volumes"]
    (mount,) = pod["containers"][0]["volumeMounts"]
    assert (mount["subPath"], mount["mountPath"]) == ("models", "/models/bert")
    skopeo = [str(judges.require("skopeo")), "copy", "--src-tls-verify=false"]
    name = volume["image"]["reference"]
    subprocess.run([*skopeo, f"docker://{name}", f"oci:{tmp_path}/layout:v1"], check=True, capture_output=True)
    umoci = [str(judges.require("umoci")), "unpack", "--rootless", "--image", f"{tmp_path}/layout:v1"]
    subprocess.run([*umoci, str(tmp_path / "bundle")], check=True, capture_output=True)
    assert files_below(tmp_path / "bundle/rootfs" / mount["subPath"]) == modelworld.small_files()


def test_the_entrypoint_becomes_the_service(project: Project, tmp_path: Path) -> None:
    argv = project.document("entrypoint")["image"]["entrypoint"]
    app = tmp_path / "main.py"
    app.write_text("import os, sys\nprint(sys.argv[1:], os.getpid())\n")
    places = {"/models": tmp_path / "models", "/weights": tmp_path / "weights", "/app/main.py": app}
    with project.started(argv, places) as container:
        out, err = container.communicate(timeout=60)
    assert out == f"['--port', '8080'] {container.pid}\n", err
    assert files_below(tmp_path / "models/bert") == modelworld.small_files()
    assert files_below(tmp_path / "weights/other") == OTHER
    text = project.recipe("entrypoint", "--image", project.image).out
    assert f"docker run -v my-service-1:/models -v my-service-2:/weights {project.image}\n" in text


def test_the_service_reads_its_models_itself(project: Project, tmp_path: Path) -> None:
    pod = project.pod("lazy")
    (service,) = pod["containers"]
    variables = {item["name"]: item["value"] for item in service["env"]}
    assert set(variables) == {"MODEL_BERT", "MODEL_ONE_TWO", "XDG_CACHE_HOME"}
    program = (
        "import os, sys; sys.path.append(sys.argv[1]); from builder.models import open_model\n"
        "model = open_model(os.environ['MODEL_BERT'])\n"
        "print(bytes(model.tensor('bias').bytes()).hex(), os.listdir(os.environ['XDG_CACHE_HOME']))"
    )
    environ = {**variables, "PATH": os.defpath, "XDG_CACHE_HOME": str(tmp_path)}
    argv = [sys.executable, "-I", "-S", "-c", program, str(project.root / "client.pyz")]
    done = subprocess.run(argv, env=environ, capture_output=True, text=True, check=False)
    little = modelworld.small_files()["model-00002-of-00002.safetensors"]
    assert done.stdout == f"{little[-16:].hex()} ['layerwright']\n", done.stderr
    (only,) = project.pod("lazy", "bert")["containers"]
    assert only["env"][0]["name"] == "MODEL"


def test_without_a_lock_tags_are_named(project: Project, tmp_path: Path) -> None:
    (tmp_path / "p.yaml").write_text(PROFILE)
    done = modelworld.inside(
        ["model", "recipe", "p.yaml", "--kind", "init", "--image", "h.example/a:v1"], tmp_path, {"HOME": "/"}
    )
    assert "there is no lock, so that models are named by tags that may move" in done.err
    assert "h.example/a:model-bert" in done.out
    assert "@sha256" not in done.out


@pytest.mark.parametrize("kind", ["init", "volume"])
def test_where_models_are(kind: str, project: Project) -> None:
    """What is said comes before the profile, and `publish.models` before the image's place."""
    for where, arguments in (
        ("h.example/b:model-bert", ["bert", "--models", "h.example/b"]),
        (f"{project.image.rpartition(':')[0]}:model-bert", ["bert"]),
    ):
        assert where in project.recipe(kind, "--image", project.image, *arguments).out


@pytest.mark.parametrize(
    ("change", "arguments", "message"),
    [
        (("", ""), ["--kind", "init"], "does not say in which registry its image is"),
        (("", ""), ["--kind", "init", "--image", "oci:x"], "in which registry its image is"),
        (("", ""), ["--kind", "init", "--image", "h.example/a", "nope"], "has no model 'nope'"),
        (("", ""), ["--kind", "volume", "--image", "h.example/a"], "one.two: not published as an image"),
        (("client.pyz}", "client}"), ["--kind", "init", "--image", "h.example/a"], "no client that could pull"),
        (("  entrypoint:", "  #"), ["--kind", "entrypoint", "--image", "h.example/a"], ""),
        (("models:", "values:\n  x:"), ["--kind", "init", "--image", "h.example/a"], "the profile has no models"),
    ],
)
def test_what_is_missing_is_said(change: tuple[str, str], arguments: list[str], message: str, tmp_path: Path) -> None:
    text = PROFILE.replace(*change) if change[0] else PROFILE
    if "#" in change[1]:
        text = text.replace('  cmd: [--port, "8080"]\n', "")
        message = "no entrypoint that could follow"
    (tmp_path / "p.yaml").write_text(text)
    done = modelworld.inside(["model", "recipe", "p.yaml", *arguments], tmp_path, {"HOME": str(tmp_path)})
    assert (done.code, done.out) == (2, "")
    assert message in done.err
    assert "hint: " in done.err
