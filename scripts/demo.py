"""The tour that `make demo` gives: two services as images, their models beside them as artifacts, and real requests.

* profiles/ocr.yaml reads pictures. Its model is pulled to a folder before it starts, as an init container would do it.
* profiles/embed.yaml makes vectors of sentences. It pulls its model itself, by the tensor, from a registry on the loopback.

Needs neither root nor Docker. Images run in a mount namespace of their own, with a read-only root, as their own user where
we are root and as ours (in a user namespace) where we are not.
"""

from __future__ import annotations

import argparse
import http.client
import json
import os
import platform
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from picture import draw
from registry import serving

TEXT = "HELLO LAYERWRIGHT 2026"
SENTENCES = ("The weather is lovely today.", "It's so sunny outside!", "He drove to the stadium.")
MACHINES = {"x86_64": "amd64", "aarch64": "arm64"}
PATIENCE = 60  # seconds until the service has to be ready
OUT = Path("out")
CLIENT = OUT / "build-model-pull.pyz"


@dataclass(frozen=True)
class Unpacked:
    """An image in a folder: its root, its execution parameters, and what is mounted in it: files by their place, in memory
    where there is none."""

    root: Path
    config: Mapping[str, Any]
    mounts: Mapping[str, str]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--build", default="build", help="the command to publish with")
    build = parser.parse_args().build
    OUT.mkdir(exist_ok=True)

    run([build, "publish", "profiles/ocr.yaml"])
    run([build, "inspect", "oci:out/ocr"])
    run([build, "model", "client", "-o", str(CLIENT)])
    embed = with_client()
    run([build, "publish", "--lock", str(embed), "oci:out/embed"])
    run([build, "model", "inspect", "oci:out/embed:model-minilm"])

    obstacle = why_not(OUT)
    if obstacle:
        say(f"The images cannot be run here: {obstacle}. Where podman is, this runs one of them:")
        print(
            "  python3 out/build-model-pull.pyz oci:out/ocr:model-ocr out/models/ocr\n"
            "  podman run --rm --read-only -v ./out/models:/models:ro -p 8080:8080 oci:out/ocr\n"
            "  curl --data-binary @picture.png localhost:8080"
        )
        return 0
    # Beside the layouts, because /tmp may be small and unpacked images are not.
    with tempfile.TemporaryDirectory(prefix=".run-", dir=OUT) as folder:
        read_a_picture(Path(folder))
        compare_sentences(Path(folder))
    say("Done. The images are oci:out/ocr and oci:out/embed, their models beside them")
    return 0


def with_client() -> Path:
    """A copy of profiles/embed.yaml in which the client is that of this checkout; its lock is brought up to date there."""
    copy = OUT / "profiles"
    shutil.rmtree(copy, ignore_errors=True)
    shutil.copytree("profiles", copy, ignore=shutil.ignore_patterns("__pycache__", "*.pyz"))
    shutil.copyfile(CLIENT, copy / "embed/client.pyz")
    return copy / "embed.yaml"


def read_a_picture(folder: Path) -> None:
    """The service of profiles/ocr.yaml, whose model lies in a folder."""
    models = folder / "models"
    run([sys.executable, str(CLIENT), "oci:out/ocr:model-ocr", str(models)])
    say(f"Unpacking the image ocr into {folder / 'ocr'}")
    image = unpack(OUT / "ocr", folder / "ocr", {"/models/ocr": str(models)})
    say(f"Its entry point reads a picture that says {TEXT!r}")
    once = enter(image, ["--once", "-"])
    printed = subprocess.run(once, input=draw(TEXT), stdout=subprocess.PIPE, check=False)
    if printed.returncode:
        sys.exit(f"demo: the entry point ended with status {printed.returncode}")
    check(printed.stdout.decode().splitlines())
    say("As a service it reads the same picture by HTTP")
    with service(image) as port:
        answer = ask(port, "POST", "/ocr", draw(TEXT))
        print(json.dumps(answer))
        check(answer["text"])


def compare_sentences(folder: Path) -> None:
    """The service of profiles/embed.yaml, which pulls what it uses of its model."""
    say(f"Unpacking the image embed into {folder / 'embed'}; it has no weights")
    image = unpack(OUT / "embed", folder / "embed", {"/cache": ""})
    with serving(OUT / "embed") as registry:
        model = f"{registry.address}/embed:model-minilm"
        say(f"As a service it pulls {model} by the tensor, and makes vectors of sentences")
        with service(image, {"MODEL": model}) as port:
            print(f"The registry sent {registry.sent / 1e6:.1f} MB")
            answer = ask(port, "POST", "/embed", json.dumps({"texts": SENTENCES}).encode())
            vectors = answer["embeddings"]
            likeness = [sum(a * b for a, b in zip(vectors[0], vector, strict=True)) for vector in vectors]
    for sentence, value in zip(SENTENCES, likeness, strict=True):
        print(f"{value:.3f}  {sentence}")
    if not likeness[1] > 0.6 > 0.2 > likeness[2]:
        sys.exit("demo: the first two sentences should have been alike, and the third one not")


def say(sentence: str) -> None:
    print(f"\n=== {sentence}", flush=True)


def run(command: Sequence[str]) -> None:
    """Runs a command of the tour, and shows it as one would type it."""
    say(f"$ {shlex.join([Path(command[0]).name, *command[1:]])}")
    status = subprocess.run(command, check=False).returncode
    if status:
        sys.exit(status)


def check(lines: Sequence[str]) -> None:
    """What the service read must be what was drawn; where it breaks lines is its own affair."""
    print(f"It read: {' '.join(lines)}")
    if "".join("".join(lines).split()) != "".join(TEXT.split()):
        sys.exit(f"demo: it should have read {TEXT}")


def why_not(folder: Path) -> str | None:
    """What keeps an image from running here; None if nothing does."""
    if sys.platform != "linux" or platform.machine() not in MACHINES:
        return f"this is {sys.platform} on {platform.machine()}"
    for program in ("unshare", "mount", "tar"):
        if not shutil.which(program):
            return f"there is no {program} (apt install {'tar' if program == 'tar' else 'util-linux mount'})"
    tried = subprocess.run(
        [*namespaces(), "sh", "-c", 'mount --bind "$1" "$1" && mount --rbind /proc "$1"', "sh", folder],
        capture_output=True,
        text=True,
        check=False,
    )
    if tried.returncode:
        who = "root may not make namespaces" if os.geteuid() == 0 else "user namespaces are not allowed"
        return f"{who} ({tried.stderr.strip().splitlines()[0]})"
    return None


def namespaces() -> list[str]:
    """The command before a command that gives it mounts of its own; without root that takes a user namespace."""
    return ["unshare", "--mount", *([] if os.geteuid() == 0 else ["--user", "--map-root-user"]), "--"]


def unpack(layout: Path, root: Path, mounts: Mapping[str, str]) -> Unpacked:
    """Unpacks the image of this machine's platform, with places for what will be mounted in it."""
    manifest = next(images(layout, json.loads((layout / "index.json").read_bytes())))
    root.mkdir()
    root.chmod(0o755)  # whatever our umask: the image's user has to pass
    for layer in manifest["layers"]:
        # Owners are all root: what cannot be given to root stays ours, which a mapped root sees as root.
        subprocess.run(["tar", "-xzf", blob(layout, layer), "-C", root, "--no-same-owner", "-p"], check=True)
    for place in mounts:
        Path(f"{root}{place}").mkdir(mode=0o755, parents=True, exist_ok=True)
    config: dict[str, Any] = json.loads(blob(layout, manifest["config"]).read_bytes())
    return Unpacked(root, config.get("config", {}), mounts)


def images(layout: Path, index: Mapping[str, Any]) -> Iterator[dict[str, Any]]:
    """The image manifests for this machine in an index, also in an index in it; a SOCI index has no platform."""
    for descriptor in index["manifests"]:
        document = json.loads(blob(layout, descriptor).read_bytes())
        if "manifests" in document:
            yield from images(layout, document)
        elif document["config"]["mediaType"] == "application/vnd.oci.image.config.v1+json":
            config = json.loads(blob(layout, document["config"]).read_bytes())
            if config["architecture"] == MACHINES[platform.machine()]:
                yield document


def blob(layout: Path, descriptor: Mapping[str, Any]) -> Path:
    return layout / "blobs" / Path(*descriptor["digest"].split(":"))


def enter(image: Unpacked, arguments: Sequence[str]) -> list[str]:
    """The command that runs the image's entry point with these arguments in its root: see `inside`."""
    return [
        *namespaces(),
        sys.executable,
        __file__,
        "--inside",
        str(os.geteuid()),
        str(image.root),
        json.dumps(image.config),
        json.dumps(image.mounts),
        *arguments,
    ]


def inside(
    caller: int, root: str, config: Mapping[str, Any], mounts: Mapping[str, str], arguments: Sequence[str]
) -> NoReturn:
    """Becomes the image's process, in the mount namespace that user `caller` made for it. Its mounts go with it."""
    subprocess.run(["mount", "--bind", root, root], check=True)
    subprocess.run(["mount", "--rbind", "/proc", f"{root}/proc"], check=True)
    for device in ("null", "urandom", "zero"):
        node = Path(root, "dev", device)
        node.touch()
        subprocess.run(["mount", "--bind", f"/dev/{device}", node], check=True)
    for place, source in mounts.items():
        if source:
            subprocess.run(["mount", "--bind", source, f"{root}{place}"], check=True)
        else:
            subprocess.run(["mount", "-t", "tmpfs", "-o", "mode=1777", "tmpfs", f"{root}{place}"], check=True)
    # In a user namespace the file system below may have flags that forbid a remount.
    subprocess.run(["mount", "-o", "remount,bind,ro", root], check=caller == 0)
    os.chroot(root)
    os.chdir(config.get("WorkingDir") or "/")
    if caller == 0:  # a mapped root has no other user to become
        user, _, group = config.get("User", "0:0").partition(":")
        os.setgroups([])
        os.setgid(int(group or 0))
        os.setuid(int(user or 0))
    environment = dict(setting.split("=", 1) for setting in config.get("Env", []))
    environment |= {name: os.environ[name] for name in ("MODEL", "PORT") if name in os.environ}
    command = [*config.get("Entrypoint", []), *(arguments or config.get("Cmd", []))]
    os.execvpe(command[0], command, environment)


@contextmanager
def service(image: Unpacked, more: Mapping[str, str] | None = None) -> Iterator[int]:
    """The image's service while it runs, by its port; it has to start, and to end on SIGTERM with status 0. `more` is for its
    environment."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port: int = free.getsockname()[1]
    process = subprocess.Popen(enter(image, []), env={**os.environ, **(more or {}), "PORT": str(port)})
    try:
        begun = time.monotonic()
        while not healthy(port):
            if process.poll() is not None or time.monotonic() - begun > PATIENCE:
                sys.exit("demo: the service did not become ready")
            time.sleep(0.1)
        print(f"Ready after {time.monotonic() - begun:.1f} s")
        yield port
        process.send_signal(signal.SIGTERM)
        if process.wait(timeout=PATIENCE):
            sys.exit(f"demo: the service ended with status {process.returncode}")
    finally:
        process.kill()
        process.wait()


def healthy(port: int) -> bool:
    try:
        return bool(ask(port, "GET", "/healthz").get("status") == "ready")
    except OSError:
        return False


def ask(port: int, method: str, path: str, body: bytes | None = None) -> dict[str, Any]:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
    try:
        connection.request(method, path, body)
        answer: dict[str, Any] = json.loads(connection.getresponse().read())
        return answer
    finally:
        connection.close()


if __name__ == "__main__":
    if sys.argv[1:2] == ["--inside"]:
        inside(int(sys.argv[2]), sys.argv[3], json.loads(sys.argv[4]), json.loads(sys.argv[5]), sys.argv[6:])
    sys.exit(main())
