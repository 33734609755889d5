"""What somebody is told who asks for a tag that is not there."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import faultregistry
import judges
import pytest
from faultregistry import Fault, FaultRegistry, Handler, Reply
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as some
from registryworld import NETWORK, USER, image, push, repository
from world import run

from builder.client import NotFoundError

USUAL = "check the repository and the tag, and that something was published there"
FEW = ("latest", "v1.9", "v1.10", "v2.0-rc1")
COMPANION = "sha256-" + "0" * 64


@pytest.fixture(scope="module")
def registry(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with judges.registry("docker-registry", tmp_path_factory.mktemp("registry")) as address:
        for tag in (*FEW, COMPANION, f"{COMPANION}.sig"):
            push(repository(address, "few"), image(b"one"), tag)
        push(repository(address, "one"), image(b"one"), "v1")
        many, one = repository(address, "many"), image(b"one")
        push(many, one)
        for number in range(102):
            many.put_manifest(one.descriptor, one.manifest, f"build-{number:03}")
        yield address


def told(address: str, path: str, tag: str | None) -> str:
    """The hint of the error that says that there is no such tag, of the repository `path`."""
    with pytest.raises(NotFoundError, match="answered 404") as caught:
        repository(address, path, network=NETWORK, writing=False).resolve(tag)
    return str(caught.value.hint)


def answering(status: int, body: bytes, **headers: str) -> Fault:
    def fault(handler: Handler, _: bytes) -> bool:
        handler.reply(Reply(status, headers, body).sized())
        return True

    return fault


def test_the_nearest_tags_are_named_after_one_request(way: FaultRegistry) -> None:
    assert told(way.address, "few", "v1.1") == "did you mean v1.10? there are v1.10, v1.9, v2.0-rc1, latest"
    assert len(way.requests("GET tags")) == 1
    assert told(way.address, "one", None) == "there is v1"
    assert told(way.address, "few", "1f7a22c").startswith("there are ")
    nearest = told(way.address, "many", "build-0333")
    assert (nearest[:19], nearest.count("build-"), nearest[-9:]) == ("did you mean build-", 7, " and more")
    assert told(way.address, "nowhere", "v1") == USUAL


def test_who_only_looks_is_told_nothing(way: FaultRegistry) -> None:
    """Nor whoever names a digest: no tag is meant."""
    assert repository(way.address, "few").find("v1.1") is None
    assert told(way.address, "few", "sha256:" + "0" * 64) == USUAL
    assert way.requests("GET tags") == []


def test_who_has_to_log_in_is_told_with_the_same_token(registry: str) -> None:
    with faultregistry.before(registry, users={USER.user: USER.password}) as state:
        with pytest.raises(NotFoundError) as caught:
            repository(state.address, "few", network=NETWORK, writing=False, credentials=USER).resolve("v1.1")
        assert str(caught.value.hint).startswith("did you mean v1.10? ")
        assert len(state.requests("GET token")) == 1


def test_a_user_with_another_tag_in_mind(way: FaultRegistry, tmp_path: Path) -> None:
    for command in (["model", "pull", f"{way.address}/few:v1.1", "out"], ["inspect", f"{way.address}/few:v1.1"]):
        done = run(command, tmp_path, {"HOME": str(tmp_path), "XDG_CACHE_HOME": str(tmp_path / "cache")})
        assert done.code == 1
        assert "hint: did you mean v1.10? there are v1.10, " in done.err


LIES: dict[str, Fault] = {
    "refused": faultregistry.busy(403),
    "broken": faultregistry.busy(503),
    "gone": faultregistry.cut,
    "half": faultregistry.truncated,
    "another host": faultregistry.elsewhere("127.0.0.1:1"),
    "no JSON": answering(200, b"<html>"),
    "a list": answering(200, b"[]"),
    "none": answering(200, b'{"tags": null}'),
    "numbers": answering(200, b'{"tags": [1]}'),
    "a number": answering(200, b'{"tags": 7}'),
    "text": answering(200, b'{"tags": "v1"}'),
    "deep": answering(200, b'{"tags": ' + b"[" * 100_000),
    "not UTF-8": answering(200, b'{"tags": ["\xff"]}'),
    "no tags": answering(200, json.dumps({"tags": ["\x1b[31mv1.1", "v1.1 now", "", "-v1", "v" * 129]}).encode()),
    "too many": answering(200, b'{"tags": [' + b'"v1",' * 1_000_000 + b'"v1"]}'),
}


@pytest.mark.parametrize("lie", LIES)
def test_a_list_that_is_of_no_use(lie: str, way: FaultRegistry) -> None:
    way.decide = faultregistry.always({"GET tags": LIES[lie]})
    assert told(way.address, "few", "v1.1") == USUAL
    assert len(way.requests("GET tags")) == 1


def test_a_registry_that_lists_everything_at_once(way: FaultRegistry) -> None:
    names = [f"v{number}" for number in range(5000)]
    way.decide = faultregistry.always({"GET tags": answering(200, json.dumps({"tags": names}).encode())})
    assert told(way.address, "few", "v42x") == "did you mean v42? there are v42, v4, v2, v94, v92, v84 and more"


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=some.binary(max_size=200)
    | some.recursive(
        some.none() | some.booleans() | some.floats() | some.text(),
        lambda inner: some.lists(inner) | some.dictionaries(some.sampled_from(["tags", "name"]), inner),
    ).map(lambda value: json.dumps(value).encode())
)
def test_whatever_the_registry_lists(body: bytes, way: FaultRegistry) -> None:
    way.decide = faultregistry.always({"GET tags": answering(200, body)})
    assert told(way.address, "few", "v1.1").isprintable()
