"""Published images are signed by real tools, with keys of their own, and their verification finds the signature."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import judges
import pytest
from world import World, run

from builder.errors import ToolError, UsageError
from builder.oci.digest import Digest
from builder.signing import Signer

SIGNATURE = "application/vnd.cncf.notary.signature"
NOBODY = Digest.of(b"nobody")


@pytest.mark.parametrize(
    ("text", "signer"),
    [
        ("cosign", Signer("cosign")),
        ("notation --key 'my key'", Signer("notation", ("--key", "my key"))),
        ("/opt/x/cosign --key k", Signer("/opt/x/cosign", ("--key", "k"))),
    ],
)
def test_tools_and_their_options(text: str, signer: Signer) -> None:
    assert Signer.parse(text) == signer


@pytest.mark.parametrize("text", ["", "gpg", "cosign 'x", "sh -c cosign", "--key cosign"])
def test_what_is_no_tool(text: str) -> None:
    with pytest.raises(UsageError) as caught:
        Signer.parse(text)
    assert "--sign" in str(caught.value.hint)


def test_a_tool_that_is_missing_is_found_missing_before_the_work(tmp_path: Path) -> None:
    with pytest.raises(ToolError) as caught:
        Signer(str(tmp_path / "cosign")).check({})
    assert "install" in str(caught.value.hint)


@dataclass(frozen=True)
class Notary:
    """A notation with a key of the tests, and the environment in which it finds that."""

    program: Path
    environ: dict[str, str]

    def __call__(self, *arguments: str) -> subprocess.CompletedProcess[str]:
        argv = [str(self.program), *arguments]
        return subprocess.run(argv, env=self.environ, capture_output=True, text=True, check=False)


@pytest.fixture(scope="module")
def notary(tmp_path_factory: pytest.TempPathFactory) -> Notary:
    home = tmp_path_factory.mktemp("notary")
    environ = {"PATH": "/usr/bin:/bin", "HOME": str(home), "XDG_CONFIG_HOME": str(home / "config")}
    notary = Notary(judges.require("notation"), environ)
    done = notary("cert", "generate-test", "--default", "layerwright.test")
    assert done.returncode == 0, done.stderr
    policy = {
        "name": "all",
        "registryScopes": ["*"],
        "signatureVerification": {"level": "strict"},
        "trustStores": ["ca:layerwright.test"],
        "trustedIdentities": ["*"],
    }
    folder = home / "config/notation"
    (folder / "trustpolicy.json").write_text(json.dumps({"version": "1.0", "trustPolicies": [policy]}))
    return notary


@pytest.fixture(scope="module", params=["docker-registry", "olareg"])
def published(
    request: pytest.FixtureRequest, world: World, small: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[str, Digest]]:
    """A repository of a registry, and the digest of an image in it."""
    folder = tmp_path_factory.mktemp("signed")
    with judges.registry(request.param, folder / "registry") as address:
        done = run(["publish", small, f"{address}/small:v1"], folder, world.environment(world.root / "cache"))
        yield f"{address}/small", Digest.parse(done.digest)


def test_a_signature_is_there_and_holds(notary: Notary, published: tuple[str, Digest]) -> None:
    repository, digest = published
    assert notary("verify", "--insecure-registry", f"{repository}@{digest}").returncode != 0
    signer = Signer(str(notary.program))
    signer.check(notary.environ)
    signer.sign(repository, digest, notary.environ, plain_http=True)
    done = notary("verify", "--insecure-registry", f"{repository}@{digest}")
    assert done.returncode == 0, done.stderr
    assert "Successfully verified" in done.stdout


def test_a_publication_is_signed_if_so_asked(notary: Notary, world: World, small: Path, tmp_path: Path) -> None:
    environ = world.environment(world.root / "cache") | {"XDG_CONFIG_HOME": notary.environ["XDG_CONFIG_HOME"]}
    with judges.registry("olareg", tmp_path / "registry") as address:
        names = [f"{address}/small:v1", f"{address}/small:v2", f"{address}/other"]
        done = run(["publish", "--sign", str(notary.program), small, *names], tmp_path, environ)
        for name in (f"{address}/small", f"{address}/other"):
            assert f"{name}: signed by" in done.err
            assert notary("verify", "--insecure-registry", f"{name}@{done.digest}").returncode == 0
            listed = notary("list", "--insecure-registry", f"{name}@{done.digest}").stdout
            assert listed.count("sha256:") == 2  # of the image and of one signature


def test_what_cannot_be_signed_is_said_before_anything_is_made(world: World, small: Path, tmp_path: Path) -> None:
    environ = world.environment(tmp_path / "cache")
    for options, code, text in (
        (["--sign", "gpg", small, "localhost:1/x"], 2, "no tool to sign with"),
        (["--sign", "cosign", small, "localhost:1/x", "oci:out"], 2, "only what is in a registry"),
        (["--sign", str(tmp_path / "cosign"), small, "localhost:1/x"], 1, "cosign: not found"),
    ):
        done = run(["publish", *options], tmp_path, environ)
        assert (done.code, done.out) == (code, "")
        assert text in done.err
    assert list(tmp_path.iterdir()) == []


def test_what_the_tool_says_is_told(notary: Notary, published: tuple[str, Digest]) -> None:
    repository, digest = published
    with pytest.raises(ToolError, match="notation failed") as caught:
        Signer(str(notary.program), ("--key", "unknown key")).sign(repository, digest, notary.environ, plain_http=True)
    assert f"{repository}@{digest}" in str(caught.value.hint)
    with pytest.raises(ToolError):
        Signer(str(notary.program)).sign(repository, NOBODY, notary.environ, plain_http=True)
