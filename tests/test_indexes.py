"""Indexes are where the user's configuration says, and a wheel is found there by its name and sha256."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from indexserver import Archive, IndexServer, index_server, wheel

from builder import process
from builder.client import Client
from builder.errors import BuilderError, FetchError, ToolError
from builder.lock import LockedFile
from builder.oci.spec import Platform
from builder.sources import uvtool
from builder.sources.indexes import SETTING, Index, Indexes, configured
from builder.sources.pypi import resolve
from builder.sources.redacting import redact
from builder.sources.requirements import Requirements
from builder.sources.simple import Catalogue
from builder.sources.target import Target

AMD64 = Target("3.11", "3.11.2", Platform("linux", "amd64"), (2, 36))


@pytest.fixture
def index() -> Iterator[IndexServer]:
    with index_server() as server:
        yield server


@pytest.fixture
def other() -> Iterator[IndexServer]:
    with index_server() as server:
        yield server


@pytest.fixture
def home(tmp_path: Path) -> Path:
    folder = tmp_path / "home"
    folder.mkdir()
    return folder


@pytest.fixture
def environ(home: Path, tmp_path: Path) -> dict[str, str]:
    return {"PATH": os.environ["PATH"], "HOME": str(home), "UV_CACHE_DIR": str(tmp_path / "uv")}


def urls(environ: Mapping[str, str], tmp_path: Path, *explicit: str) -> list[str]:
    return [index.url for index in configured(environ, explicit=explicit, etc=tmp_path / "etc")]


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


def test_without_settings_it_is_what_uv_has(environ: dict[str, str], tmp_path: Path) -> None:
    arguments = ["pip", "compile", "-", "--emit-index-url", "--no-header", "--offline", "-q"]
    printed = uvtool.call(process.run, uvtool.environment(environ), arguments, input=b"").decode().split()
    assert printed[0] == "--index-url"
    assert urls(environ, tmp_path) == [printed[1].rstrip("/")]


def test_each_setting_overrules_those_after_it(environ: dict[str, str], home: Path, tmp_path: Path) -> None:
    write(tmp_path / "etc/pip.conf", "[global]\nindex-url = https://pip-etc.invalid/simple/\n")
    assert urls(environ, tmp_path) == ["https://pip-etc.invalid/simple"]
    write(home / ".config/pip/pip.conf", "[global]\nindex_url = https://pip-home.invalid/simple\n")
    assert urls(environ, tmp_path) == ["https://pip-home.invalid/simple"]
    environ["PIP_CONFIG_FILE"] = str(write(tmp_path / "pip.conf", "[install]\nindex-url = https://pip-file.invalid\n"))
    assert urls(environ, tmp_path) == ["https://pip-file.invalid"]
    environ["PIP_INDEX_URL"] = "https://pip-env.invalid/simple"
    environ["PIP_EXTRA_INDEX_URL"] = "https://pip-extra.invalid/a  https://pip-extra.invalid/b"
    pip = ["https://pip-extra.invalid/a", "https://pip-extra.invalid/b", "https://pip-env.invalid/simple"]
    assert urls(environ, tmp_path) == pip
    write(home / ".config/uv/uv.toml", '[[index]]\nurl = "https://uv-home.invalid/simple"\ndefault = true\n')
    assert urls(environ, tmp_path) == ["https://uv-home.invalid/simple"]
    environ["UV_DEFAULT_INDEX"] = "https://uv-env.invalid/simple"
    environ["UV_INDEX"] = "corp=https://uv-extra.invalid/simple"
    assert urls(environ, tmp_path) == ["https://uv-extra.invalid/simple", "https://uv-env.invalid/simple"]
    environ[SETTING] = "https://first.invalid/simple https://last.invalid/simple"
    assert urls(environ, tmp_path) == ["https://first.invalid/simple", "https://last.invalid/simple"]
    assert urls(environ, tmp_path, "https://explicit.invalid/simple") == ["https://explicit.invalid/simple"]


@pytest.mark.parametrize("variable", ["UV_INDEX_URL", "UV_DEFAULT_INDEX"])
def test_both_names_of_uv_for_the_default_index(environ: dict[str, str], tmp_path: Path, variable: str) -> None:
    environ[variable] = "https://uv.invalid/simple/"
    environ["UV_EXTRA_INDEX_URL"] = "https://extra.invalid/simple"
    assert urls(environ, tmp_path) == ["https://extra.invalid/simple", "https://uv.invalid/simple"]


def test_the_null_device_turns_pip_files_off(environ: dict[str, str], home: Path, tmp_path: Path) -> None:
    without = urls(environ, tmp_path)
    write(
        home / ".pip/pip.conf", "[global]\nextra-index-url =\n  https://a.invalid/simple\n  https://b.invalid/simple\n"
    )
    assert urls(environ, tmp_path) == ["https://a.invalid/simple", "https://b.invalid/simple", *without]
    assert urls(environ | {"PIP_CONFIG_FILE": "/dev/null"}, tmp_path) == without


def test_a_broken_pip_file_is_named_without_its_secret(environ: dict[str, str], home: Path, tmp_path: Path) -> None:
    file = write(home / ".config/pip/pip.conf", "index-url = https://u:secret@pip.invalid/simple\n")
    with pytest.raises(BuilderError, match="pip's configuration cannot be read") as caught:
        urls(environ, tmp_path)
    assert str(file) in str(caught.value)
    assert "secret" not in str(caught.value)


def test_a_cache_of_uv_that_cannot_be_written_has_a_remedy(environ: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(ToolError, match="Failed to initialize cache") as caught:
        urls(environ | {"UV_CACHE_DIR": "/dev/null/uv"}, tmp_path)
    assert "UV_CACHE_DIR" in str(caught.value.hint)


def test_a_broken_uv_file_is_uvs_to_explain(environ: dict[str, str], home: Path, tmp_path: Path) -> None:
    write(home / ".config/uv/uv.toml", "index = 7\n")
    with pytest.raises(ToolError, match=r"(?s)uv does not say where its package index is.*uv\.toml"):
        urls(environ, tmp_path)


def test_uv_told_to_use_no_index(environ: dict[str, str], home: Path, tmp_path: Path) -> None:
    write(home / ".config/uv/uv.toml", "no-index = true\n")
    with pytest.raises(BuilderError, match="configured to use no package index"):
        urls(environ, tmp_path)


@pytest.mark.parametrize(
    "url", ["ftp://h.invalid", "simple", "https://", "file:///srv/simple", "https://u:secret@h:x/"]
)
def test_what_is_no_address_of_an_index(environ: dict[str, str], tmp_path: Path, url: str) -> None:
    with pytest.raises(BuilderError, match="not the address of a package index") as caught:
        urls(environ, tmp_path, url)
    assert "secret" not in str(caught.value)


def test_credentials_by_name_and_from_netrc(environ: dict[str, str], home: Path, tmp_path: Path) -> None:
    write(home / ".config/uv/uv.toml", '[[index]]\nname = "the-corp"\nurl = "https://corp.invalid/simple"\n')
    environ |= {
        "UV_DEFAULT_INDEX": "main=https://main.invalid/simple",
        "UV_INDEX_THE_CORP_USERNAME": "u",
        "UV_INDEX_THE_CORP_PASSWORD": "p@/",
        "UV_INDEX_MAIN_PASSWORD": "token",
        "PIP_INDEX_URL": "https://net.invalid/simple",
    }
    assert urls(environ, tmp_path) == ["https://u:p%40%2F@corp.invalid/simple", "https://:token@main.invalid/simple"]
    netrc = write(home / ".netrc", "machine net.invalid login me password netpass\n")
    netrc.chmod(0o600)
    explicit = ("https://net.invalid/a", "https://given:own@net.invalid/b")
    assert urls(environ, tmp_path, *explicit) == ["https://me:netpass@net.invalid/a", explicit[1]]


def test_secrets_are_hidden() -> None:
    index = Index.parse("https://token-1234@h.invalid/simple")
    indexes = Indexes(index, (Index.parse("https://u:p%40ss@g.invalid/x"),), {"UV_DEFAULT_INDEX": index.url})
    for text in (str(index), repr(index), repr(indexes), redact(index.url), indexes.redact("p@ss p%40ss token-1234")):
        assert not any(secret in text for secret in ("token-1234", "p@ss", "p%40ss"))
    assert str(index) == "https://***@h.invalid/simple"


def test_uv_gets_the_same_indexes_by_its_environment(
    index: IndexServer, other: IndexServer, environ: dict[str, str], tmp_path: Path
) -> None:
    index.publish(wheel("app", "1.0", requires=["helper"]))
    other.publish(wheel("helper", "2.0"))
    environ |= {"PIP_INDEX_URL": index.url, "PIP_EXTRA_INDEX_URL": other.url}
    catalogue = Catalogue(lambda: configured(environ, etc=tmp_path / "etc"), Client().get)
    wheels = resolve(Requirements(("app",)), AMD64, catalogue=catalogue)
    assert [w.name for w in wheels] == ["app", "helper"]
    for found, server in zip(wheels, (index, other), strict=True):
        assert [url.partition("/files/")[0] for url in catalogue.urls(found.file)] == [
            server.url.removesuffix("/simple")
        ]
    assert wheels[0].file.origin == wheels[1].file.origin == "pypi"


def locked(archive: Archive) -> LockedFile:
    return LockedFile("pypi", archive.name, archive.sha256, len(archive.data))


def catalogue_of(*servers: str) -> Catalogue:
    first, *rest = (Index.parse(url) for url in reversed(servers))
    return Catalogue(lambda: Indexes(first, tuple(reversed(rest)), {}), Client().get)


@pytest.mark.parametrize("html_only", [False, True], ids=["json", "html"])
@pytest.mark.parametrize("yanked", [False, True], ids=["offered", "yanked"])
def test_a_wheel_is_found(index: IndexServer, html_only: bool, yanked: bool) -> None:
    index.html_only = html_only
    index.publish(wheel("my-app", "0.9"))
    archive = index.publish(wheel("my-app", "1.0+local.1", build="2"), yanked=yanked)
    (url,) = catalogue_of(index.url).urls(locked(archive))
    assert Client().get(url) == archive.data


@pytest.mark.parametrize("html_only", [False, True], ids=["json", "html"])
def test_other_bytes_of_the_same_name_are_not_taken(index: IndexServer, html_only: bool) -> None:
    index.html_only = html_only
    file = dataclasses.replace(locked(index.publish(wheel("app", "1.0"))), sha256="0" * 64)
    catalogue = catalogue_of(index.url)
    assert catalogue.lookup(catalogue.indexes.default, file) is None
    with pytest.raises(FetchError, match=r"app-1\.0-py3-none-any\.whl: not on.*\n.*no file of this name"):
        list(catalogue.urls(file))


def test_a_page_without_hashes_still_has_places(index: IndexServer) -> None:
    archive = index.publish(wheel("app", "1.0"), sha256=None)
    (url,) = catalogue_of(index.url).urls(locked(archive))
    assert Client().get(url) == archive.data


def test_the_next_index_is_asked_where_one_has_it_not(index: IndexServer, other: IndexServer) -> None:
    archive = other.publish(wheel("app", "1.0"))
    index.publish(archive, sha256="1" * 64)
    assert len(list(catalogue_of(index.url, other.url).urls(locked(archive)))) == 1
    assert index.requests == ["/simple/app/"]
    gone = locked(wheel("gone", "1.0"))
    with pytest.raises(FetchError) as caught:
        list(catalogue_of(index.url, other.url).urls(gone))
    assert str(caught.value).count("404") == 2


def test_a_page_is_read_once(index: IndexServer) -> None:
    first = index.publish(wheel("app", "1.0"))
    second = index.publish(wheel("app", "2.0"))
    catalogue = catalogue_of(index.url)
    with ThreadPoolExecutor(8) as pool:
        assert all(pool.map(lambda archive: list(catalogue.urls(locked(archive))), (first, second) * 4))
    assert index.requests == ["/simple/app/"]


def test_the_configuration_is_asked_for_once_and_late(index: IndexServer) -> None:
    asked: list[int] = []

    def configure() -> Indexes:
        asked.append(1)
        return Indexes(Index.parse(index.url), (), {})

    archive = index.publish(wheel("app", "1.0"))
    catalogue = Catalogue(configure, Client().get)
    assert asked == []
    assert list(catalogue.urls(locked(archive))) == list(catalogue.urls(locked(archive)))
    assert asked == [1]


def test_credentials_go_to_the_index_and_nowhere_else(index: IndexServer) -> None:
    index.login = ("reader", "p@ss/word")
    archive = index.publish(wheel("app", "1.0"))
    (url,) = catalogue_of(index.login_url).urls(locked(archive))
    assert Client().get(url) == archive.data
    with pytest.raises(FetchError) as caught:
        list(catalogue_of(index.url).urls(locked(archive)))
    assert "401" in str(caught.value)
    page = json.dumps({"files": [{"filename": archive.name, "url": "http://elsewhere.invalid/x", "hashes": {}}]})
    elsewhere = Catalogue(lambda: Indexes(Index.parse(index.login_url), (), {}), lambda url, **_: page.encode())
    assert list(elsewhere.urls(locked(archive))) == ["http://elsewhere.invalid/x"]


@pytest.mark.parametrize(
    "page",
    [
        b"{",
        b'{"files": 7}',
        b'{"files": [7]}',
        b'{"files": [{"filename": "x"}]}',
        b"{}",
        b'{"files":' + b"[" * 100_000,
        b"\xff\xfe",
        b'{"files": [{"filename": "app-1.0-py3-none-any.whl", "url": "file:///etc/passwd"}]}',
        b'{"files": [{"filename": "app-1.0-py3-none-any.whl", "url": "http://[/x"}]}',
        b'<a href="file:///srv/app-1.0-py3-none-any.whl">app</a>',
        b'<a href="http://[/app-1.0-py3-none-any.whl">app</a>',
        b"<a><a href><base><a href='javascript:app-1.0-py3-none-any.whl'>",
    ],
)
def test_a_page_that_makes_no_sense(page: bytes) -> None:
    index = Index.parse("https://reader:secret@h.invalid/simple")
    catalogue = Catalogue(lambda: Indexes(index, (), {}), lambda url, **_: page)
    with pytest.raises(
        FetchError, match=r"app-1\.0-py3-none-any\.whl: not on the configured package indexes"
    ) as caught:
        list(catalogue.urls(locked(wheel("app", "1.0"))))
    assert "secret" not in str(caught.value)


def test_the_base_of_an_html_page_counts() -> None:
    page = b'<html><head><base href="https://files.invalid/a/"></head><a href="app-1.0-py3-none-any.whl?x=1#sha256=00">'
    catalogue = Catalogue(lambda: Indexes(Index.parse("https://h.invalid/simple"), (), {}), lambda url, **_: page)
    file = LockedFile("pypi", "app-1.0-py3-none-any.whl", "00", 1)
    assert list(catalogue.urls(file)) == ["https://files.invalid/a/app-1.0-py3-none-any.whl?x=1"]


def test_a_lock_that_names_no_wheel() -> None:
    with pytest.raises(FetchError, match="not the name of a wheel"):
        list(catalogue_of("https://h.invalid/simple").urls(LockedFile("pypi", "../../x.whl", "0" * 64, 1)))
