"""Layer caches: what one has packed the others take, the bytes are the same, and no cache can break or change a build."""

from __future__ import annotations

import io
import json
import secrets
import shutil
import subprocess
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import judges
import nixworld
import pytest
from cacheworld import PATH, Builder, Entry, packed, with_inputs
from world import PROFILE, Real, World, run

from builder.cli.context import Context
from builder.cli.layercache import cache_of
from builder.errors import UsageError
from builder.layercache.keys import SecretKey
from builder.settings import LayerCache

CI = SecretKey.generate("ci-1", secrets.token_bytes)
OTHER = SecretKey.generate("other", secrets.token_bytes)


@pytest.fixture
def plain(tmp_path: Path) -> Iterator[str]:
    """A registry of its own for each test."""
    with judges.registry("docker-registry", tmp_path / "registry") as address:
        yield address


@pytest.fixture(scope="module")
def expected(small: Path, world: World, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The digest without any cache."""
    folder = tmp_path_factory.mktemp("expected")
    mirrors = str(world.root / "cache/layerwright")
    environment = world.environment(folder / "cache", LAYERWRIGHT_MIRRORS=mirrors)
    return run(["publish", small, f"oci:{folder / 'out'}"], folder, environment).digest


def test_what_one_has_packed_the_others_take(
    registry: str, small: Path, world: World, expected: str, tmp_path: Path
) -> None:
    """Without any input: no origin answers, and the SBOMs are the same, too."""
    ci = with_inputs(world, tmp_path / "ci", registry, secret=CI)
    first = ci.publish(small)
    assert first["digest"] == expected
    assert first["notes"][0].endswith("0 of 2 missing layers taken")
    assert "2 of 2 layers sent" in first["notes"][1]
    again = ci.publish(small)
    assert again["digest"] == expected
    assert again["notes"] == []

    mate = Builder(world, tmp_path / "mate", registry, trust=(CI,))
    taken = mate.publish(small)
    assert taken["digest"] == expected
    assert packed(taken) == {"debian bookworm": False, "3 wheels": False, "files": True}
    assert len(taken["notes"]) == 1
    assert "2 of 2 missing layers taken" in taken["notes"][0]
    assert not list((tmp_path / "mate/cache/layerwright/partial").glob("*"))
    attached = [
        {item["digest"] for item in json.loads((builder.folder / "out/index.json").read_text())["manifests"]}
        for builder in (ci, mate)
    ]
    assert attached[0] == attached[1]
    verified = run(
        ["verify", f"oci:{mate.folder / 'out'}"],
        tmp_path,
        with_inputs(world, tmp_path / "v", registry, secret=CI).environment,
    )
    assert verified.code == 0, verified.err
    assert "identical" in verified.out


def fill(at: str, small: Path, world: World, tmp_path: Path, secret: SecretKey | None = CI) -> None:
    """Fills the cache out of a store that has all layers."""
    more = {"XDG_CACHE_HOME": str(world.root / "cache")} | ({} if secret else {"LAYERWRIGHT_CACHE_UNSIGNED": "1"})
    done = Builder(world, tmp_path / "filler", at, secret=secret, more=more).build("cache", "fill", small)
    assert done.code == 0, done.err


def test_a_judge_reads_the_entries(registry: str, small: Path, world: World, tmp_path: Path) -> None:
    """They are ordinary artifacts, whose blobs a registry keeps, and that other tools copy."""
    fill(registry, small, world, tmp_path)
    crane = str(judges.require("crane"))
    tags = subprocess.run([crane, "ls", "--insecure", f"{registry}/{PATH}"], capture_output=True, text=True, check=True)
    assert len(tags.stdout.split()) == 2
    for tag in tags.stdout.split():
        source, target = f"{registry}/{PATH}:{tag}", f"{registry}/copied/layers:{tag}"
        subprocess.run([crane, "copy", "--insecure", source, target], capture_output=True, check=True)
    mate = Builder(world, tmp_path / "mate", registry, trust=(CI,))
    mate.more["LAYERWRIGHT_CACHE"] = f"oci://{registry}/copied/layers"
    assert "2 of 2 missing layers taken" in mate.publish(small)["notes"][0]


def test_layers_are_mounted_from_the_cache_and_into_it(plain: str, small: Path, world: World, tmp_path: Path) -> None:
    """In one registry no layer moves twice."""
    ci = with_inputs(world, tmp_path / "ci", plain, secret=CI)
    done = ci.build("publish", small, f"{plain}/app:v1", "--format", "json")
    assert "2 of 2 layers sent" in done.err
    log = {layer["digest"] for layer in done.json["platforms"]["linux/amd64"]}
    mate = Builder(world, tmp_path / "mate", plain, trust=(CI,))
    taken = mate.build("publish", small, f"{plain}/mate:v1", "--format", "json").json
    outcomes = {blob["digest"]: blob["outcome"] for blob in taken["destinations"][0]["blobs"]}
    large = {layer["digest"] for layer in taken["platforms"]["linux/amd64"] if not layer["packed"]}
    assert large < log
    assert {outcomes[digest] for digest in large} == {"mounted"}


def test_who_is_not_trusted_is_not_believed(
    plain: str, small: Path, world: World, expected: str, tmp_path: Path
) -> None:
    fill(plain, small, world, tmp_path, OTHER)
    doubtful = with_inputs(world, tmp_path / "mate", plain, trust=(CI,)).publish(small)
    assert doubtful["digest"] == expected
    assert all(packed(doubtful).values())
    assert sum("it is signed by other, who is not trusted" in note for note in doubtful["notes"]) == 2
    # whoever is trusted replaces it
    (tmp_path / "mate/secret.key").write_text(CI.text)
    replacing = with_inputs(world, tmp_path / "mate", plain, secret=CI).build("cache", "fill", small)
    assert replacing.err.count("is replaced: it is signed by other") == 2
    assert (
        "2 of 2 missing layers taken"
        in Builder(world, tmp_path / "next", plain, trust=(CI,)).publish(small)["notes"][0]
    )


def test_unsigned_layers_are_read_to_their_end(
    plain: str, small: Path, world: World, expected: str, tmp_path: Path
) -> None:
    """Who says so takes them without a signature; the ztocs are made here, and are the same."""
    more = {"LAYERWRIGHT_CACHE_UNSIGNED": "1"}
    fill(plain, small, world, tmp_path, None)
    mate = Builder(world, tmp_path / "mate", plain, more=more)
    taken = mate.publish(small)
    assert taken["digest"] == expected
    assert "2 of 2 missing layers taken" in taken["notes"][0]
    for entry in Entry.all_at(plain):
        entry.record["layer"]["diff_id"] = "sha256:" + "0" * 64
        entry.put()
    lied_to = with_inputs(world, tmp_path / "lied", plain)
    lied_to.more |= more
    document = lied_to.publish(small)
    assert document["digest"] == expected
    assert sum("its tar is another one than its record says" in note for note in document["notes"]) == 2


def test_other_spans_are_made_here(plain: str, small: Path, world: World, tmp_path: Path) -> None:
    """A layer serves profiles with other spans, too, whose ztocs are the same as without a cache."""
    folder = tmp_path / "project"
    folder.mkdir()
    one = world.project(folder)
    fill(plain, small, world, tmp_path)
    # The archive may have newer packages by now.
    shutil.copy(small.with_suffix(".lock.json"), one.with_suffix(".lock.json"))
    one.write_text(PROFILE.replace("256KiB", "128KiB"))
    mirrors = str(world.root / "cache/layerwright")
    environment = world.environment(tmp_path / "alone", LAYERWRIGHT_MIRRORS=mirrors)
    alone = run(["publish", "--lock", one, f"oci:{tmp_path / 'alone-out'}"], tmp_path, environment).digest
    taken = Builder(world, tmp_path / "mate", plain, trust=(CI,)).publish(one)
    assert taken["digest"] == alone
    assert "2 of 2 missing layers taken" in taken["notes"][0]


def test_a_changed_profile_takes_what_has_not_changed(plain: str, small: Path, world: World, tmp_path: Path) -> None:
    folder = tmp_path / "project"
    folder.mkdir()
    profile = world.project(folder)
    fill(plain, small, world, tmp_path)
    profile.write_text(PROFILE.replace("packages: [hello]", "packages: [hello, tool]"))
    assert run(["lock", profile], folder, world.environment(world.root / "cache")).code == 0
    mate = with_inputs(world, tmp_path / "mate", plain, trust=(CI,))
    document = mate.publish(profile)
    assert "1 of 2 missing layers taken" in document["notes"][0]
    assert packed(document) == {"debian bookworm": True, "3 wheels": False, "files": True}


def test_many_write_at_once(plain: str, small: Path, world: World, expected: str, tmp_path: Path) -> None:
    """With one key and with two, each entry is one of theirs as a whole."""
    builders = [
        with_inputs(world, tmp_path / f"{number}", plain, secret=(CI, OTHER)[number % 2], trust=(CI, OTHER))
        for number in range(3)
    ]
    with ThreadPoolExecutor(3) as pool:
        documents = list(pool.map(lambda builder: builder.publish(small), builders))
    assert {document["digest"] for document in documents} == {expected}
    assert len(Entry.all_at(plain)) == 2
    taken = Builder(world, tmp_path / "mate", plain, trust=(CI, OTHER)).publish(small)
    assert "2 of 2 missing layers taken" in taken["notes"][0]


def test_several_platforms(plain: str, both: Real, world: World, tmp_path: Path) -> None:
    """Real layers of two platforms, with bytecode, are taken by somebody who has no input of theirs."""
    ci = Builder(world, tmp_path / "ci", plain, secret=CI, more={"XDG_CACHE_HOME": str(both.cache)})
    assert ci.build("cache", "fill", both.profile).code == 0
    taken = Builder(world, tmp_path / "mate", plain, trust=(CI,)).publish(both.profile)
    assert taken["digest"] == both.digest
    assert len(taken["platforms"]) == 2


def test_a_profile_with_nix_is_built_where_there_is_none(plain: str, world: World, tmp_path: Path) -> None:
    """Layers of Nix's closures are in the cache, too, so that who only publishes needs no Nix."""
    judges.require("nix")
    root = tmp_path / "project"
    root.mkdir()
    nixworld.maker(root)
    profile = root / "tools.yaml"
    profile.write_text("profile: 1\nname: tools\nnix: [./default.nix#app]\n")
    ci = Builder(world, tmp_path / "ci", plain, secret=CI, more=nixworld.environment(root))
    first = ci.publish(profile)
    assert "layers sent" in first["notes"][-1]
    empty = tmp_path / "empty"
    empty.mkdir()
    taken = Builder(world, tmp_path / "mate", plain, trust=(CI,), more={"PATH": str(empty)}).publish(profile)
    assert taken["digest"] == first["digest"]
    assert not any(packed(taken).values())


def test_two_machines_that_pack_other_bytes_are_told(plain: str, small: Path, world: World, tmp_path: Path) -> None:
    """What is there stays; who packed something else is told that one of both is wrong."""
    fill(plain, small, world, tmp_path)
    (entry,) = (one for one in Entry.all_at(plain) if not one.record["licences"])
    here = entry.record["layer"]["digest"].removeprefix("sha256:")[:12]
    entry.record["layer"] |= {"digest": entry.blob(b"something else")["digest"], "size": 14}
    entry.put(CI)
    more = {"XDG_CACHE_HOME": str(world.root / "cache")}
    done = Builder(world, tmp_path / "second", plain, secret=CI, more=more).build("cache", "fill", small)
    assert done.code == 0, done.err
    assert "debian bookworm was packed to other bytes by somebody else" in done.err
    assert f"{here} here" in done.err
    assert Entry.all_at(plain)[0].record["layer"]["size"] == 14 or Entry.all_at(plain)[1].record["layer"]["size"] == 14


def test_keys(tmp_path: Path, world: World) -> None:
    """A new pair; nobody else may read the secret half, no key is overwritten, and nothing of it is ever shown."""
    environment = world.environment(tmp_path / "cache")
    made = run(["cache", "key", "ci-9", "-o", "ci.key"], tmp_path, environment)
    assert made.code == 0, made.err
    assert (tmp_path / "ci.key").stat().st_mode & 0o777 == 0o600
    assert str(SecretKey.read(tmp_path / "ci.key").public) == made.out.strip()
    assert run(["cache", "key", "ci-9", "-o", "ci.key"], tmp_path, environment).code == 1
    assert run(["cache", "key", "a b", "-o", "other.key"], tmp_path, environment).code == 2
    text = (tmp_path / "ci.key").read_text()
    for wrong in ("", "ci-9", text[:-10], text.replace("ci-9:", "ci-9:AAAA"), "x" * 10_000, f"ci-9:{'A' * 86}=="):
        (tmp_path / "wrong.key").write_text(wrong)
        with pytest.raises(UsageError, match=r"wrong\.key: holds no secret key") as caught:
            SecretKey.read(tmp_path / "wrong.key")
        assert len(wrong) < 8 or wrong[5:].strip() not in f"{caught.value} {caught.value.hint}"
    assert text.strip()[5:] not in repr(SecretKey.read(tmp_path / "ci.key"))


@pytest.mark.parametrize(
    ("told", "said"),
    [
        ({"LAYERWRIGHT_CACHE": "oci://localhost:1/x"}, "nobody is trusted"),
        ({"LAYERWRIGHT_CACHE": "localhost:1/x"}, "expected oci://HOST/REPOSITORY"),
        ({"LAYERWRIGHT_CACHE": "oci://x", "LAYERWRIGHT_CACHE_TRUST": str(CI.public)}, "the registry is missing"),
        ({"LAYERWRIGHT_CACHE": "oci://localhost:1/x:tag", "LAYERWRIGHT_CACHE_TRUST": str(CI.public)}, "has a tag"),
        ({"LAYERWRIGHT_CACHE": "oci://localhost:1/x", "LAYERWRIGHT_CACHE_TRUST": "ci-1:AAAA"}, "not a public key"),
        ({"LAYERWRIGHT_CACHE": "oci://localhost:1/x", "LAYERWRIGHT_CACHE_SIGN": "/no/such.key"}, "cannot be read"),
    ],
)
def test_settings_that_cannot_be_meant(told: dict[str, str], said: str, tmp_path: Path) -> None:
    environment = {"HOME": str(tmp_path), **told}
    with pytest.raises(UsageError, match=said):
        _opened(environment)


def test_a_build_goes_on_without_its_cache(small: Path, world: World, expected: str, tmp_path: Path) -> None:
    """What nobody answers for is packed; that nothing could be sent is no failure of the build, but of `cache fill`."""
    alone = with_inputs(world, tmp_path / "alone", f"127.0.0.1:{judges.free_port()}", secret=CI)
    document = alone.publish(small)
    assert document["digest"] == expected
    assert all(packed(document).values())
    assert ["it is left alone from here on" in note for note in document["notes"]] == [True]
    done = alone.build("cache", "fill", small)
    assert done.code == 1
    assert "error: the layer cache was not filled" in done.err


def _opened(environment: dict[str, str]) -> None:
    context = Context.from_environment(environment, io.StringIO())
    assert context.settings.cache
    cache_of(context, context.settings.cache)


def test_a_cache_may_be_left_out(small: Path, world: World, expected: str, tmp_path: Path) -> None:
    """By an empty variable, or without network; the file's settings are not asked then."""
    config = tmp_path / "config.toml"
    config.write_text(world.config.read_text() + f'[cache]\nat = "oci://127.0.0.1:9/x"\ntrust = ["{CI.public}"]\n')
    environment = world.environment(world.root / "cache", LAYERWRIGHT_CONFIG=str(config))
    context = Context.from_environment(environment, io.StringIO())
    assert context.settings.cache == LayerCache("127.0.0.1:9/x", (str(CI.public),))
    assert Context.from_environment({**environment, "LAYERWRIGHT_CACHE": ""}, io.StringIO()).settings.cache is None
    done = run(["publish", "--offline", small, f"oci:{tmp_path / 'out'}"], tmp_path, environment)
    assert done.digest == expected
    assert "layers" in done.err
    assert "127.0.0.1:9" not in done.err
