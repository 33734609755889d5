"""References of every odd form, the files and helpers that hold credentials, and what registries ask for."""

from __future__ import annotations

import base64
import json
import os
import stat
from pathlib import Path

import faultregistry as faults
import judges
import pytest
from hypothesis import given
from hypothesis import strategies as some
from registryworld import QUICK, image, push, repository

from builder.client import Client
from builder.errors import FetchError, ToolError, UsageError
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.spec import Descriptor, Platform
from builder.registry import Credentials, CredentialsError, DeniedError, Keychain, Reference
from builder.registry.auth import Authority, Challenge, challenges, scope, scope_text
from builder.registry.reference import BadReferenceError, check_registry, is_loopback, server_key

HEX = "ab" * 32


@pytest.mark.parametrize(
    ("text", "parts"),
    [
        ("localhost/x", ("localhost", "x", None, None)),
        ("localhost/x/y:1.0", ("localhost", "x/y", "1.0", None)),
        ("localhost:5000/x", ("localhost:5000", "x", None, None)),
        ("[::1]:5000/x/y:t", ("[::1]:5000", "x/y", "t", None)),
        ("[::1]/x", ("[::1]", "x", None, None)),
        ("127.0.0.1:5000/x:T_-.", ("127.0.0.1:5000", "x", "T_-.", None)),
        (f"registry.invalid/a/b@sha256:{HEX}", ("registry.invalid", "a/b", None, HEX)),
        (f"registry.invalid/a/b:t@sha256:{HEX}", ("registry.invalid", "a/b", "t", HEX)),
        ("Registry.Invalid/a.b/c__d/e--f", ("registry.invalid", "a.b/c__d/e--f", None, None)),
        ("xn--bcher-kva.invalid:443/x", ("xn--bcher-kva.invalid:443", "x", None, None)),
    ],
)
def test_references(text: str, parts: tuple[str, str, str | None, str | None]) -> None:
    reference = Reference.parse(text)
    digest = reference.digest.hex if reference.digest else None
    assert (reference.registry, reference.repository, reference.tag, digest) == parts
    assert Reference.parse(str(reference)) == reference


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "registry is missing"),
        ("alpine", "registry is missing"),
        ("MYHOST/a", "registry is missing"),
        ("library/alpine:3", "registry is missing"),
        ("debian:12", "registry is missing"),
        ("hello.yaml", "registry is missing"),
        ("localhost:5000", "repository is missing"),
        ("[::1]:5000", "repository is missing"),
        ("localhost:5000/", "repository is missing"),
        ("localhost:5000/:tag", "repository is missing"),
        ("localhost:0/x", "not the name of a host"),
        ("localhost:65536/x", "not the name of a host"),
        ("localhost:port/x", "not the name of a host"),
        ("[::1/x", "not the name of a host"),
        ("[1.2.3.4]/x", "not the name of a host"),
        ("user@host.invalid/x", "not the name of a host"),
        ("host.invalid/UPPER/case", "lower case"),
        ("host.invalid/a//b", "not a repository"),
        ("host.invalid/../b", "not a repository"),
        ("host.invalid/a_/b", "not a repository"),
        ("host.invalid/a___b", "not a repository"),
        ("host.invalid/a b", "not a repository"),
        ("host.invalid/a\n", "not a repository"),
        ("host.invalid/a:", "not a tag"),
        ("host.invalid/a:.b", "not a tag"),
        ("host.invalid/a:b:c", "not a tag"),
        ("host.invalid/a:" + "t" * 129, "not a tag"),
        ("host.invalid/" + "a" * 256, "at most 255"),
        ("host.invalid/a@sha256:abc", "not a sha256 digest"),
        (f"host.invalid/a@sha512:{HEX}{HEX}", "not a sha256 digest"),
        ("https://host.invalid/a", "no scheme"),
    ],
)
def test_what_is_no_reference(text: str, said: str) -> None:
    with pytest.raises(BadReferenceError, match=said) as caught:
        Reference.parse(text)
    assert isinstance(caught.value, UsageError)


@given(some.text(alphabet="aA0.:/@-_[]é \n", max_size=30))
def test_a_reference_or_an_error(text: str) -> None:
    try:
        reference = Reference.parse(text)
    except BadReferenceError:
        return
    assert Reference.parse(str(reference)) == reference


def test_which_hosts_are_this_machine() -> None:
    assert [is_loopback(name) for name in ("localhost", "a.localhost", "127.9.9.9", "::1")] == [True] * 4
    assert [is_loopback(name) for name in ("localhost.invalid", "10.0.0.1", "::2", "127.0.0.1.invalid")] == [False] * 4
    assert Reference.parse("[::1]:5000/x").is_loopback
    assert check_registry("HOST:5000") == "host:5000"
    with pytest.raises(BadReferenceError):
        check_registry("host/path")


def encoded(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


def keychain(folder: Path, document: object, **environ: str) -> Keychain:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(document))
    return Keychain.of(
        {"DOCKER_CONFIG": str(folder), "HOME": str(folder / "home"), "PATH": os.environ["PATH"], **environ}
    )


def test_the_longest_prefix_wins(tmp_path: Path) -> None:
    names = [
        "host.invalid",
        "host.invalid/team",
        "host.invalid/team/app",
        "https://docker.invalid/v1/",
        "http://plain.invalid:80",
    ]
    keys = keychain(tmp_path, {"auths": {name: {"auth": encoded(f"{number}:p")} for number, name in enumerate(names)}})
    found = {
        place: (credentials := keys.find(*place.split("/", 1))) and credentials.user
        for place in ("host.invalid/x", "host.invalid/teams", "host.invalid/team/x", "host.invalid/team/app/x")
    }
    assert found == dict(zip(found, "0012", strict=True))
    assert keys.find("docker.invalid", "x") == Credentials("3", "p")
    assert keys.find("plain.invalid:80", "x") == Credentials("4", "p")
    assert keys.find("other.invalid", "x") is None


def test_the_order_of_files(tmp_path: Path) -> None:
    def write(path: Path, user: str, *hosts: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps({"auths": {host: {"auth": encoded(f"{user}:p")} for host in hosts}}))

    write(tmp_path / "named", "named", "a")
    write(tmp_path / "docker/config.json", "docker", "a")
    write(tmp_path / "run/containers/auth.json", "session", "a", "b")
    write(tmp_path / "home/.config/containers/auth.json", "containers", "a", "b", "c")
    write(tmp_path / "home/.docker/config.json", "home", "a", "b", "c", "d")
    environ = {"HOME": str(tmp_path / "home"), "XDG_RUNTIME_DIR": str(tmp_path / "run")}
    both = Keychain.of({**environ, "DOCKER_CONFIG": str(tmp_path / "docker")})
    assert [(both.find(host) or Credentials()).user for host in "abcd"] == ["docker", "session", "containers", ""]
    home = Keychain.of({"HOME": str(tmp_path / "home")})
    assert [(home.find(host) or Credentials()).user for host in "abcd"] == ["containers"] * 3 + ["home"]
    named = Keychain.of({**environ, "REGISTRY_AUTH_FILE": str(tmp_path / "named")})
    assert named.find("a") == Credentials("named", "p")
    assert named.find("b") is None
    assert Keychain.of(environ).find("a") == Credentials("session", "p")


def test_forms_of_entries(tmp_path: Path) -> None:
    keys = keychain(
        tmp_path,
        {
            "auths": {
                "a": {"username": "u", "password": "p:q"},
                "b": {"auth": encoded("<token>:"), "identitytoken": "refresh"},
                "c": {"registrytoken": "bearer"},
                "d": {},
                "e": {"auth": encoded("u:p:q")},
            }
        },
    )
    assert keys.find("a") == Credentials("u", "p:q")
    assert (keys.find("b") or Credentials()).identity_token == "refresh"
    assert (keys.find("c") or Credentials()).registry_token == "bearer"
    assert keys.find("d") is None
    assert keys.find("e") == Credentials("u", "p:q")


@pytest.mark.parametrize(
    "text", ["{", "[]", '{"auths": {"a": {"auth": "s3cret!"}}}', '{"auths": {"a": {"auth": "czNjcmV0"}}}']
)
def test_damaged_files_are_named_and_not_shown(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text)
    with pytest.raises(CredentialsError, match=r"config\.json") as caught:
        Keychain.of({"DOCKER_CONFIG": str(tmp_path), "HOME": str(tmp_path)}).find("a")
    assert "s3cret" not in str(caught.value)


HELPER = """#!/bin/sh
# keeps one secret for each server in a folder, as the helpers of docker do
dir="$(dirname "$0")/kept"
mkdir -p "$dir"
case "$1" in
get) read -r server; server=$(echo "$server" | tr -c 'a-zA-Z0-9\\n' _)
  [ -f "$dir/$server" ] || { echo "credentials not found in native keychain"; exit 1; }
  cat "$dir/$server" ;;
store)
  input=$(cat)
  server=$(echo "$input" | sed 's/.*"ServerURL": "\\([^"]*\\)".*/\\1/' | tr -c 'a-zA-Z0-9\\n' _)
  echo "$input" > "$dir/$server" ;;
erase) read -r server; rm -f "$dir/$(echo "$server" | tr -c 'a-zA-Z0-9\\n' _)" ;;
esac
"""


def helper(folder: Path, name: str, text: str = HELPER) -> str:
    """A credential helper on a PATH of its own."""
    folder.mkdir(exist_ok=True)
    program = folder / f"docker-credential-{name}"
    program.write_text(text)
    program.chmod(0o755)
    return f"{folder}:{os.environ['PATH']}"


@pytest.mark.parametrize("setting", [{"credsStore": "box"}, {"credHelpers": {"host.invalid": "box"}}])
def test_credential_helpers(tmp_path: Path, setting: dict[str, object]) -> None:
    keys = keychain(tmp_path / "docker", {**setting, "other": 1}, PATH=helper(tmp_path / "bin", "box"))
    assert keys.find("host.invalid") is None
    assert keys.store("host.invalid", Credentials("u", 'p"q')) == "docker-credential-box"
    text = (tmp_path / "docker/config.json").read_text()
    assert json.loads(text) == {**setting, "other": 1, "auths": {"host.invalid": {}}}
    assert keys.find("host.invalid", "some/thing") == Credentials("u", 'p"q')
    assert keys.erase("host.invalid") == ["docker-credential-box", str(tmp_path / "docker/config.json")]
    assert keys.find("host.invalid") is None
    assert keys.erase("host.invalid") == []


def test_what_helpers_do_wrong(tmp_path: Path) -> None:
    token = '#!/bin/sh\necho \'{"ServerURL":"h","Username":"<token>","Secret":"refresh"}\'\n'
    keys = keychain(tmp_path / "a", {"credsStore": "tok"}, PATH=helper(tmp_path / "bin", "tok", token))
    assert keys.find("host.invalid") == Credentials(identity_token="refresh")
    broken = '#!/bin/sh\necho \'{"Secret": "s3cret"\'\n'
    keys = keychain(tmp_path / "a", {"credsStore": "bad"}, PATH=helper(tmp_path / "bin", "bad", broken))
    with pytest.raises(CredentialsError, match="cannot be read") as caught:
        keys.find("host.invalid")
    assert "s3cret" not in str(caught.value)
    failing = "#!/bin/sh\necho 'the box is locked'; exit 1\n"
    keys = keychain(tmp_path / "a", {"credsStore": "shut"}, PATH=helper(tmp_path / "bin", "shut", failing))
    with pytest.raises(ToolError, match="the box is locked"):
        keys.find("host.invalid")
    with pytest.raises(ToolError, match="not found"):
        keychain(tmp_path / "a", {"credsStore": "absent"}).find("host.invalid")
    with pytest.raises(CredentialsError, match="not the name of a credential helper"):
        keychain(tmp_path / "a", {"credsStore": "../../evil"}).find("host.invalid")


def test_a_stored_file_keeps_what_else_is_in_it(tmp_path: Path) -> None:
    keys = keychain(tmp_path / "real", {"auths": {"a": {"auth": "x"}}, "HttpHeaders": {"ü": 1}})
    (tmp_path / "link").mkdir()
    (tmp_path / "link/config.json").symlink_to(tmp_path / "real/config.json")
    keys = Keychain.of({"DOCKER_CONFIG": str(tmp_path / "link"), "HOME": str(tmp_path)})
    keys.store("b", Credentials("u", "p"))
    document = json.loads((tmp_path / "real/config.json").read_text())
    assert document == {"auths": {"a": {"auth": "x"}, "b": {"auth": encoded("u:p")}}, "HttpHeaders": {"ü": 1}}
    assert (tmp_path / "link/config.json").is_symlink()
    assert stat.S_IMODE((tmp_path / "real/config.json").stat().st_mode) == 0o600
    assert [path.name for path in (tmp_path / "real").iterdir()] == ["config.json"]


def test_the_largest_registry_has_three_names() -> None:
    from oras.defaults import registry as hub

    reference = Reference.parse(f"{hub.index_name}/thing")
    assert reference.repository == "library/thing"
    assert reference.host not in (hub.index_name, hub.index_hostname)
    assert server_key(hub.index_name) == hub.index_server


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('Bearer realm="https://r/t",service="s",scope="a:b:c,d"', [("bearer", "https://r/t", "a:b:c,d")]),
        ('Basic realm="x", Bearer realm="y"', [("basic", "x", None), ("bearer", "y", None)]),
        ("Bearer realm=y,scope=z", [("bearer", "y", "z")]),
        ('bearer  Realm = "a\\"b" , scope="c"', [("bearer", 'a"b', "c")]),
        ('Negotiate, Basic realm="x"', [("negotiate", None, None), ("basic", "x", None)]),
        ("Basic", [("basic", None, None)]),
        ("", []),
        ("===", []),
    ],
)
def test_challenges(header: str, expected: list[tuple[str, str | None, str | None]]) -> None:
    assert [(c.scheme, c.parameters.get("realm"), c.parameters.get("scope")) for c in challenges(header)] == expected


@given(some.text(max_size=60))
def test_any_challenge_is_read_to_its_end(header: str) -> None:
    assert all(isinstance(challenge, Challenge) for challenge in challenges(header))


def test_scopes() -> None:
    assert scope_text(scope("a/b", "pull", "push", mount="c")) == "repository:a/b:pull,push repository:c:pull"


@pytest.mark.parametrize("realm", ["http://tokens.invalid/t", "ftp://tokens.invalid/t", "nonsense"])
def test_tokens_are_not_fetched_in_the_open(realm: str) -> None:
    authority = Authority(Client(QUICK), "https://registry.invalid", lambda: Credentials("u", "s3cret"))
    with pytest.raises((DeniedError, FetchError)) as caught:
        authority.answer(f'Bearer realm="{realm}"', scope("a", "pull"), None)
    assert "s3cret" not in str(caught.value)


def test_a_refresh_token_is_not_sent_on(tmp_path: Path) -> None:
    """A token server that redirects a POST to another host: the token does not go there."""
    with (
        judges.registry("docker-registry", tmp_path) as real,
        faults.before(real) as other,
        faults.before(real) as state,
    ):
        push(repository(real), image(b"x"), "tag")
        state.users, state.identity_token = {"a": "b"}, "refresh"

        def to_other(handler: faults.Handler, body: bytes) -> bool:
            handler.reply(faults.Reply(307, {"Location": f"http://{other.address}/token"}, b"").sized())
            return True

        state.decide = faults.always({"POST token": to_other})
        with pytest.raises(FetchError):
            repository(state.address, credentials=Credentials(identity_token="refresh")).resolve("tag")
        assert other.seen == []


def test_descriptors_are_read_strictly() -> None:
    full = Descriptor(spec.MANIFEST, Digest.of(b""), 3, {"a": "b"}, Platform("linux", "arm64", "v8"), "x/y")
    assert Descriptor.parse(full.document()) == full
    base = full.document()
    for wrong in (
        None,
        {},
        base | {"size": -1},
        base | {"size": True},
        base | {"size": "3"},
        base | {"digest": "sha256:0"},
        base | {"mediaType": ""},
        base | {"annotations": {"a": 1}},
        base | {"platform": {"os": "linux"}},
        base | {"artifactType": 1},
    ):
        with pytest.raises(ValueError, match=r"need|size|digest|annotations|artifactType"):
            Descriptor.parse(wrong)
