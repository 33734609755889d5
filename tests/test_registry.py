"""Repositories of real registries: other tools read what we push, and we read what they push."""

from __future__ import annotations

import base64
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import faultregistry as faults
import judges
import pytest
from registryworld import USER, as_stream, described, image, pull, push, random_layers, repository

from builder.client import Client, NotFoundError
from builder.oci import spec
from builder.oci.content import Outcome, Source, Target
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.registry import Credentials, DeniedError, Keychain, Reference, RegistryError, Repository

HTPASSWD = "me:$2b$04$PQ3USO9fSaZ05BZZgEBcc.RsAdM2tZwcO1kf3WfQw5Z8fgKDggEOu\n"  # s3cret


@pytest.fixture
def address(registry: str) -> str:
    return registry


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[str]:
    """A registry that lets nobody in but `me`, by basic authentication."""
    (tmp_path / "htpasswd").write_text(HTPASSWD)
    settings = {"REGISTRY_AUTH": "htpasswd", "REGISTRY_AUTH_HTPASSWD_REALM": "here"}
    settings["REGISTRY_AUTH_HTPASSWD_PATH"] = str(tmp_path / "htpasswd")
    with judges.registry("docker-registry", tmp_path / "registry", settings) as address:
        yield address


def tool(*arguments: str | Path) -> str:
    command = [str(judges.require(str(arguments[0]))), *map(str, arguments[1:])]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stderr}"
    return done.stdout


def built(address: str, *arguments: str, env: dict[str, str], input: str = "") -> subprocess.CompletedProcess[str]:
    """The command line, as a user runs it."""
    code = "import sys; from builder.cli.main import run; sys.exit(run(None))"
    return subprocess.run(
        [sys.executable, "-c", code, *arguments],
        env={**os.environ, **env},
        input=input,
        capture_output=True,
        text=True,
        start_new_session=True,  # nobody is there to ask
        check=False,
    )


def test_it_is_a_source_and_a_target(address: str) -> None:
    target: Target = repository(address, "both")
    push(repository(address, "both"), image(b"both"), "tag")
    source: Source = repository(address, "both")
    assert target.has(source.resolve("tag"))


def test_push_and_pull(address: str, tmp_path: Path) -> None:
    import random

    pushed = image(*random_layers(random.Random(1), 3, 3 << 20), b"")
    target = repository(address, "push/and/pull")
    assert set(push(target, pushed, "a-tag", tmp_path)) == {"moved"}
    assert set(push(target, pushed, "a-tag", tmp_path)) == {"present"}
    assert pull(repository(address, "push/and/pull:a-tag", writing=False), "a-tag") == pushed
    assert repository(address, "push/and/pull:a-tag").resolve(None) == pushed.descriptor
    assert target.tags() == ("a-tag",)
    assert target.tagged("a-tag") == pushed.descriptor.digest
    assert target.tagged("another") is None
    assert target.has(pushed.descriptor)
    assert not target.has(described(b"never seen"))
    with pytest.raises(NotFoundError):
        target.resolve("another")


def test_others_read_what_we_push(address: str, tmp_path: Path) -> None:
    pushed = image(b"one" * 1000, b"two" * 1000)
    push(repository(address, "for/others"), pushed, "tag")
    name = f"{address}/for/others:tag"
    assert tool("crane", "digest", "--insecure", name).strip() == str(pushed.descriptor.digest)
    assert tool("crane", "manifest", "--insecure", name).encode() == pushed.manifest
    assert tool("oras", "manifest", "fetch", "--plain-http", name).encode() == pushed.manifest
    tool("skopeo", "copy", "-q", "--src-tls-verify=false", f"docker://{name}", f"dir:{tmp_path / 'copy'}")
    for descriptor, data in pushed.blobs:
        assert (tmp_path / "copy" / descriptor.digest.hex).read_bytes() == data


def test_we_read_what_others_push(address: str, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"some bytes" * 100000)
    name = f"{address}/by/oras:tag"
    os.chdir(tmp_path)
    tool("oras", "push", "--plain-http", "--artifact-type", "application/x-thing", name, "file")
    assert pull(repository(address, "by/oras"), "tag").blobs[1][1] == (tmp_path / "file").read_bytes()
    tool("crane", "copy", "--insecure", name, f"{address}/by/crane:tag")
    tool(
        "skopeo",
        "copy",
        "-q",
        "--src-tls-verify=false",
        "--dest-tls-verify=false",
        f"docker://{name}",
        f"docker://{address}/by/skopeo:tag",
    )
    assert pull(repository(address, "by/crane"), "tag") == pull(repository(address, "by/skopeo"), "tag")


def test_referrers(address: str, tmp_path: Path) -> None:
    """Through the API of one registry and the tag of the other; `oras` sees ours, and we see those of `oras`."""
    subject = image(b"with referrers")
    target = repository(address, "with/referrers")
    push(target, subject, "tag")
    assert target.referrers(subject.descriptor.digest) == ()
    first = image(b"an sbom", subject=subject.descriptor, artifact_type="application/x-sbom")
    push(target, first)
    push(target, first)
    (found,) = target.referrers(subject.descriptor.digest)
    assert (found.digest, found.size, found.artifact_type) == (
        first.descriptor.digest,
        first.descriptor.size,
        "application/x-sbom",
    )
    name = f"{address}/with/referrers:tag"
    (tmp_path / "file").write_text("signed")
    os.chdir(tmp_path)
    tool("oras", "attach", "--plain-http", "--artifact-type", "application/x-signature", name, "file")
    assert {found.artifact_type for found in target.referrers(subject.descriptor.digest)} == {
        "application/x-sbom",
        "application/x-signature",
    }
    listed = json.loads(tool("oras", "discover", "--plain-http", "--format", "json", name))
    entries = listed.get("referrers") or listed["manifests"]
    assert str(first.descriptor.digest) in {entry["digest"] for entry in entries}


def test_manifests_are_small_and_right(address: str) -> None:
    target = repository(address, "small")
    data = b"{" + b" " * (4 << 20) + b"}"
    with pytest.raises(RegistryError, match="size or digest"):
        target.put_manifest(Descriptor(spec.MANIFEST, Digest.of(data), len(data)), data)
    with pytest.raises(RegistryError, match="more than 4194304"):
        target.manifest(Descriptor(spec.MANIFEST, Digest.of(data), len(data)))
    with pytest.raises(RegistryError, match="size or digest"):
        target.put_manifest(Descriptor(spec.MANIFEST, Digest.of(b"x"), 2), b"{}")


def test_basic_authentication(closed: str, tmp_path: Path) -> None:
    pushed = image(b"in a closed registry")
    push(repository(closed, credentials=Credentials("me", "s3cret")), pushed, "tag")
    assert pull(repository(closed, credentials=Credentials("me", "s3cret")), "tag") == pushed
    with pytest.raises(DeniedError, match="no credentials are stored"):
        repository(closed).resolve("tag")
    with pytest.raises(DeniedError, match="does not take the credentials"):
        repository(closed, credentials=Credentials("me", "wrong")).resolve("tag")


def test_login_and_logout(closed: str, tmp_path: Path) -> None:
    """What is stored is read by us and by skopeo; a wrong password is not stored."""
    env = {"DOCKER_CONFIG": str(tmp_path / "docker"), "HOME": str(tmp_path), "PYTHONPATH": ""}
    wrong = built(closed, "login", closed, "-u", "me", "--password-stdin", env=env, input="wr0ng\n")
    assert wrong.returncode == 1
    assert "wr0ng" not in wrong.stderr + wrong.stdout
    assert not (tmp_path / "docker").exists()
    assert "does not take this user and password" in wrong.stderr
    asked = built(closed, "login", closed, "-u", "me", env=env)
    assert (asked.returncode, asked.stdout) == (2, "")
    assert f"hint: build login {closed} --user me --password-stdin" in asked.stderr
    right = built(closed, "login", closed, "-u", "me", "--password-stdin", env=env, input="s3cret\n")
    assert right.returncode == 0, right.stderr
    assert "s3cret" not in right.stdout + right.stderr
    config = tmp_path / "docker" / "config.json"
    assert config.stat().st_mode & 0o777 == 0o600
    assert json.loads(config.read_text()) == {"auths": {closed: {"auth": base64.b64encode(b"me:s3cret").decode()}}}
    keychain = Keychain.of(env)
    push(repository(closed, keychain=keychain), image(b"logged in"), "tag")
    tool(
        "skopeo", "inspect", "--raw", "--tls-verify=false", f"--authfile={config}", f"docker://{closed}/some/image:tag"
    )
    out = built(closed, "logout", closed, env=env)
    assert out.returncode == 0
    assert json.loads(config.read_text()) == {"auths": {}}
    assert Keychain.of(env).find(closed) is None


def test_a_login_that_docker_made(closed: str, tmp_path: Path) -> None:
    """`crane` writes what docker writes."""
    env = os.environ | {"DOCKER_CONFIG": str(tmp_path)}
    command = [str(judges.require("crane")), "auth", "login", closed, "-u", "me", "--password-stdin"]
    subprocess.run(command, env=env, input=b"s3cret", check=True, capture_output=True)
    push(repository(closed, keychain=Keychain.of(env)), image(b"x"), "tag")


def test_an_encrypted_registry_on_the_loopback(tmp_path: Path) -> None:
    """Plain HTTP is tried there first; a registry that wants encryption gets it, and a strange certificate is named."""
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ec",
        "-pkeyopt",
        "ec_paramgen_curve:prime256v1",
        "-nodes",
        "-days",
        "2",
        "-subj",
        "/CN=localhost",
    ]
    command += [
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-keyout",
        str(tmp_path / "key"),
        "-out",
        str(tmp_path / "crt"),
    ]
    subprocess.run(command, check=True, capture_output=True)
    settings = {"REGISTRY_HTTP_TLS_CERTIFICATE": str(tmp_path / "crt"), "REGISTRY_HTTP_TLS_KEY": str(tmp_path / "key")}
    with judges.registry("docker-registry", tmp_path / "registry", settings) as address:
        from builder.errors import FetchError
        from builder.settings import Network

        trusting = Client(Network(ca_file=tmp_path / "crt"))
        target = Repository(Reference.parse(f"{address}/a/b"), trusting, Keychain(), writing=True)
        push(target, image(b"encrypted" * 300_000), "tag", tmp_path)
        with pytest.raises(FetchError, match="certificate is not trusted"):
            repository(address).resolve("tag")


def test_memory_does_not_grow_with_a_blob(address: str, tmp_path: Path) -> None:
    """200 MB go in less than 64 MiB, and come in less than 100 MiB."""
    code = r"""
import hashlib, re, sys
from pathlib import Path
from builder.client import Client
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor
from builder.registry import Keychain, Reference, Repository
path = Path(sys.argv[2])
with path.open("rb") as file:
    digest = Digest(hashlib.file_digest(file, "sha256").hexdigest())
descriptor = Descriptor("application/octet-stream", digest, path.stat().st_size)
place = Repository(Reference.parse(sys.argv[1] + "/large"), Client(), Keychain(), writing=True)
assert place.put_blob(descriptor, lambda: path.open("rb"), path).value == "moved"
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
with place.blob(descriptor) as blob:
    while blob.read(1 << 20):
        pass
place.download(descriptor, path.with_name("out"))
print(re.search(r"VmHWM:\s+(\d+)", Path("/proc/self/status").read_text())[1])
"""
    block = os.urandom(1 << 20)
    with (tmp_path / "large").open("wb") as file:
        for count in range(200):
            file.write(count.to_bytes(8, "big") + block[8:])
    done = subprocess.run(
        [sys.executable, "-c", code, address, str(tmp_path / "large")], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    going, coming = (int(number) >> 10 for number in done.stdout.split())
    assert going < 64
    assert coming < 100


def test_nothing_is_said_of_a_secret(closed: str) -> None:
    credentials = Credentials("me", "s3cret", "identity", "bearer")
    assert not {"s3cret", "identity", "bearer"} & set(repr(credentials).replace("'", " ").split())
    with faults.before(closed, users={USER.user: USER.password}) as state:
        place = repository(state.address, credentials=USER)
        push_failed: BaseException | None = None
        try:
            place.put_blob(described(b"x"), lambda: as_stream(b"y"))
        except Exception as error:
            push_failed = error
        said = f"{push_failed!r} {push_failed} {place} {place!r}"
        assert USER.password not in said
        assert not any(token in said for token in state.tokens)


def test_many_threads_share_a_repository(address: str) -> None:
    from concurrent.futures import ThreadPoolExecutor

    target = repository(address, "shared")
    blobs = [bytes([number]) * 100000 for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        outcomes = list(pool.map(lambda data: target.put_blob(described(data), lambda: as_stream(data)), blobs))
    assert outcomes == [Outcome.MOVED] * 40
