"""Paths of a model's files: those that can lie in one folder on any file system, and every lie refused by name."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from builder.models.values import BadModelError, check_path, check_paths


@pytest.mark.parametrize(
    "path", ["model.safetensors", "a/b/c.json", ".hidden", "ä/ß.bin", "a..b", "…", ".builds/x", "a b"]
)
def test_good_paths(path: str) -> None:
    assert check_path(path, "m") == path


@pytest.mark.parametrize(
    ("path", "why"),
    [
        ("", "empty"),
        ("/etc/passwd", "absolute"),
        ("C:x", "absolute"),
        ("..", "leaves"),
        ("a/../../b", "leaves"),
        ("./a", "empty part"),
        ("a//b", "empty part"),
        ("a/", "empty part"),
        ("a\\..\\b", r"'\\\\'"),
        ("a\0b", r"'\\x00'"),
        ("a\nb", r"'\\n'"),
        ("\ud800", "udc00|ud800"),
        ("a" * 256, "255"),
        ("a/" * 600 + "b", "1024"),
        (".build/index.v1.json", "index of the model"),
        (".BUILD/x", "index of the model"),
        (".build", "index of the model"),
    ],
)
def test_bad_paths(path: str, why: str) -> None:
    with pytest.raises(BadModelError, match=f"^m: .*{why}"):
        check_path(path, "m")


@pytest.mark.parametrize(
    ("paths", "why"),
    [
        (("a", "a"), "twice"),
        (("a", "A"), "clashes with 'a'"),
        (("stra\u00dfe", "STRASSE"), "clashes"),
        (("e\u0301", "\u00e9"), r"'\\xe9' clashes with 'e\\u0301'"),
        (("a", "a/b"), "'a' is a file, and a folder"),
        (("a/b/c", "A"), "'A' is a file, and a folder of 'a/b/c'"),
        (("a/b", "A/c"), "differ by case alone"),
        (("x/a/b", "x/A/c"), "differ by case alone"),
    ],
)
def test_paths_that_cannot_lie_together(paths: tuple[str, ...], why: str) -> None:
    with pytest.raises(BadModelError, match=why):
        check_paths(paths, "m")


def test_too_many() -> None:
    with pytest.raises(BadModelError, match="more than 10000"):
        check_paths(map(str, range(10_001)), "m")


def test_neighbours() -> None:
    paths = ("a/b", "a/c", "ab", "a.b/c", "d/a/b", "d/a/c")
    assert check_paths(paths, "m") == paths


@settings(deadline=None)
@given(st.text(max_size=40))
def test_any_text(text: str) -> None:
    try:
        check_path(text, "m")
    except BadModelError:
        return
    parts = text.split("/")
    assert not text.startswith("/")
    assert not {"", ".", ".."} & set(parts)
    text.encode()
