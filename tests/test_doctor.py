"""`cache` and `doctor`, run as commands in this process."""

from __future__ import annotations

import io
import json
from pathlib import Path

import click
import pytest
from click.testing import CliRunner, Result

from builder.cli.cache import cache
from builder.cli.context import Context
from builder.cli.doctor import doctor
from builder.errors import CheckError, UsageError
from builder.store import Store


@pytest.fixture
def environ(tmp_path: Path) -> dict[str, str]:
    return {"XDG_CACHE_HOME": str(tmp_path / "cache"), "XDG_CONFIG_HOME": str(tmp_path / "config"), "HOME": "/nowhere"}


@pytest.fixture
def store(environ: dict[str, str]) -> Store:
    return Store(Path(environ["XDG_CACHE_HOME"], "layerwright"))


def invoke(environ: dict[str, str], command: click.Command, *arguments: str) -> Result:
    context = Context.from_environment(environ, io.StringIO())
    return CliRunner().invoke(command, arguments, obj=context)


def test_info(environ: dict[str, str], store: Store) -> None:
    layer = store.put(b"layer!")
    store.put(b"input")
    store.put_record("layer", "key", {"objects": [str(layer)]})
    found = json.loads(invoke(environ, cache, "info", "--format", "json").stdout)
    assert (found["path"], found["objects"], found["bytes"]) == (str(store.root), 2, 11)
    assert (found["inputs"], found["layers"]) == (1, 1)
    text = invoke(environ, cache, "info").stdout
    assert str(store.root) in text
    assert "objects   2  11 B" in text


def test_gc(environ: dict[str, str], store: Store) -> None:
    digest = store.put(bytes(3000))
    dry = invoke(environ, cache, "gc", "--max-size", "2kB", "--dry-run")
    assert dry.stdout.startswith("would remove 1 objects")
    assert store.has(digest)
    assert invoke(environ, cache, "gc", "--max-size", "1 GiB", "--older-than", "30d").stdout.startswith("removed 0 obj")
    assert json.loads(invoke(environ, cache, "gc", "--max-size", "0", "--format", "json").stdout)["objects"] == 1
    assert not store.has(digest)


@pytest.mark.parametrize("arguments", [("--max-size", "1x"), ("--older-than", "30"), ("--max-size", "-1")])
def test_gc_refuses_what_it_cannot_read(environ: dict[str, str], arguments: tuple[str, str]) -> None:
    done = invoke(environ, cache, "gc", *arguments)
    assert done.exit_code == 2
    assert "such as" in done.stderr


def findings(done: Result) -> dict[str, dict[str, str]]:
    return {finding["name"]: finding for finding in json.loads(done.stdout)}


def test_doctor_says_what_is_there(environ: dict[str, str], store: Store) -> None:
    found = findings(invoke(environ, doctor, "--format", "json"))
    assert found["python"]["state"] == found["uv"]["state"] == found["store"]["state"] == "ok"
    assert found["store"]["found"] == str(store.root)
    assert not store.root.exists(), "looking changes nothing"
    text = invoke(environ, doctor).stdout
    assert all(name in text for name in found)


def test_doctor_says_what_to_do_about_what_is_missing(environ: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "cache").write_text("a file where a folder should be")
    environ |= {"SSL_CERT_FILE": "/no/certificates", "LAYERWRIGHT_MIRRORS": "/no/mirror"}
    done = invoke(environ, doctor, "--format", "json")
    found = findings(done)
    assert {found[name]["state"] for name in ("store", "certificates")} == {"missing"}
    assert found["mirror"]["state"] == "warning"
    assert all(finding["remedy"] for finding in found.values() if finding["state"] != "ok")
    assert isinstance(done.exception, CheckError)
    assert done.exception.exit_code == 3
    assert "store, certificates" in str(done.exception)


def test_doctor_is_not_asked_to_be_online_and_offline(environ: dict[str, str]) -> None:
    done = invoke(environ | {"LAYERWRIGHT_OFFLINE": "1"}, doctor, "--online")
    assert isinstance(done.exception, UsageError)


def test_a_config_file_that_cannot_be_read(environ: dict[str, str]) -> None:
    environ["LAYERWRIGHT_CONFIG"] = "/"
    with pytest.raises(UsageError, match="cannot be read"):
        Context.from_environment(environ, io.StringIO())
