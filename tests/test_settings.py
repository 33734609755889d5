from __future__ import annotations

from pathlib import Path

import pytest

from builder.errors import UsageError
from builder.settings import LayerCache, Settings, config_path, config_text

HOME = Path("/home/me")
FILE = Path("/home/me/.config/layerwright/config.toml")


def parse(text: str = "", **environ: str) -> Settings:
    return Settings.parse(text, FILE, environ, HOME)


def test_defaults() -> None:
    settings = parse()
    assert settings == Settings(store=HOME / ".cache/layerwright")
    assert (settings.jobs, settings.offline, settings.mirrors) == (8, False, ())


def test_everything_of_a_file() -> None:
    settings = parse(
        """
        store = "~/store"
        jobs = 3
        offline = true
        mirrors = ["~/mirror", "http://cache.example/lw"]
        [origins]
        pypi = "http://cache.example/simple"
        debian = ["http://a.example", "http://b.example"]
        """
    )
    assert settings.store == HOME / "store"
    assert (settings.jobs, settings.offline) == (3, True)
    assert settings.mirrors == ("/home/me/mirror", "http://cache.example/lw")
    assert settings.origins == {
        "pypi": ("http://cache.example/simple",),
        "debian": ("http://a.example", "http://b.example"),
    }


def test_the_environment_is_above_the_file() -> None:
    settings = parse(
        'store = "/a"\njobs = 3\noffline = true\nmirrors = ["/m"]',
        XDG_CACHE_HOME="/cache",
        LAYERWRIGHT_JOBS="5",
        LAYERWRIGHT_OFFLINE="0",
        LAYERWRIGHT_MIRRORS="/n /o",
    )
    assert settings.store == Path("/cache/layerwright")
    assert (settings.jobs, settings.offline, settings.mirrors) == (5, False, ("/n", "/o", "/m"))


def test_a_relative_base_directory_is_ignored() -> None:
    assert parse(XDG_CACHE_HOME="cache").store == HOME / ".cache/layerwright"
    assert config_path({"XDG_CONFIG_HOME": "config"}, HOME) == FILE
    assert config_path({"XDG_CONFIG_HOME": "/config"}, HOME) == Path("/config/layerwright/config.toml")
    assert config_path({"LAYERWRIGHT_CONFIG": "/c.toml"}, HOME) == Path("/c.toml")


def test_a_file_that_is_named_has_to_be_there(tmp_path: Path) -> None:
    missing = tmp_path / "config.toml"
    assert config_text(missing, {}) == ""
    assert config_text(Path("/dev/null"), {"LAYERWRIGHT_CONFIG": "/dev/null"}) == ""
    for path in (missing, Path("/dev/null/config.toml")):
        with pytest.raises(UsageError, match=f"LAYERWRIGHT_CONFIG: {path}: there is no such file"):
            config_text(path, {"LAYERWRIGHT_CONFIG": str(path)})


def test_every_problem_is_told_at_once() -> None:
    with pytest.raises(UsageError) as caught:
        parse(
            'job = 3\njobs = 0\noffline = "no"\nstore = "here"\nkeyrings = ["k"]\nmirrors = "/m"\norigins = {pypi = 3}'
        )
    assert str(caught.value).splitlines() == [
        f"{FILE}: these settings cannot be used:",
        "  job: no such setting (did you mean jobs?)",
        "  jobs: expected 1 to 64, found 0",
        "  offline: expected true or false, found 'no'",
        "  store: expected an absolute path, or one that begins with ~/, found 'here'",
        "  keyrings: expected a list of absolute paths, or of some that begin with ~/",
        "  mirrors: expected a list of folders and URLs, found '/m'",
        "  origins.pypi: expected an address or a list of addresses",
    ]
    assert caught.value.hint


def test_what_is_no_toml_is_told_with_its_place() -> None:
    with pytest.raises(UsageError, match=r"config\.toml: .*line 2"):
        parse("jobs = 3\njobs\n")


@pytest.mark.parametrize(("name", "value"), [("LAYERWRIGHT_JOBS", "many"), ("LAYERWRIGHT_OFFLINE", "maybe")])
def test_a_variable_that_cannot_be_meant(name: str, value: str) -> None:
    with pytest.raises(UsageError, match=name):
        parse(**{name: value})


def test_passwords_are_not_in_the_representation() -> None:
    settings = parse('origins = {pypi = "http://u:secret@h"}', HTTPS_PROXY="http://u:secret@h", HTTP_PROXY="secret")
    assert "secret" not in repr(settings)


def test_a_layer_cache() -> None:
    text = '[cache]\nat = "oci://host.example/team/layers"\ntrust = ["a:AA"]\nsign = "~/ci.key"\n'
    assert parse(text).cache == LayerCache("host.example/team/layers", ("a:AA",), HOME / "ci.key")
    over = parse(
        text, LAYERWRIGHT_CACHE="oci://other/x", LAYERWRIGHT_CACHE_TRUST="b:BB c:CC", LAYERWRIGHT_CACHE_SIGN="/k"
    )
    assert over.cache == LayerCache("other/x", ("b:BB", "c:CC", "a:AA"), Path("/k"))
    assert parse(text, LAYERWRIGHT_CACHE="").cache is None
    assert parse(text, LAYERWRIGHT_CACHE_UNSIGNED="1").cache == LayerCache(
        "host.example/team/layers", ("a:AA",), HOME / "ci.key", True
    )
    with pytest.raises(UsageError) as caught:
        parse('cache = {at = "host/x", trust = "a", sign = "here", unsigned = 1, key = ""}')
    assert str(caught.value).splitlines()[1:] == [
        "  cache.key: no such setting",
        "  cache.trust: expected a list of public keys, found 'a'",
        "  cache.unsigned: expected true or false, found 1",
        "  cache.sign: expected an absolute path, or one that begins with ~/, found 'here'",
        "  cache.at: expected oci://HOST/REPOSITORY, found 'host/x'",
    ]
    with pytest.raises(UsageError, match="nobody is trusted"):
        parse('cache = {at = "oci://host/x"}')
    with pytest.raises(UsageError, match="cache: expected a table, found 3"):
        parse("cache = 3")
