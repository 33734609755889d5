"""The digests of the shipped locks stay what they are: a byte that moves in any image moves in everybody's images."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import golden
import pytest
from world import Real, run

from builder import lock as locks

DOCUMENT: dict[str, Any] = json.loads(golden.FILE.read_text())
SHARED = ("real", "both")
"""Those that other tests use too: each is a fixture of the session."""
ADVICE = """the bytes of an image changed although its lock did not.
If that is not meant, find out which rule moved: the layers below say where.
If it is meant, raise FORMAT in builder/lock.py, so that every lock of the old rules counts as stale; then run `build lock` for
the profiles of tests/data and profiles, and `python tests/golden.py --write`. All of that is one commit."""


def test_the_format_is_that_of_the_golden_digests() -> None:
    assert DOCUMENT["format"] == locks.FORMAT, "run `python tests/golden.py --write` for the new format"


@pytest.mark.parametrize("name", golden.PROFILES)
def test_a_shipped_lock_gives_the_same_bytes_as_ever(name: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    profile = golden.PROFILES[name]
    published: Real = request.getfixturevalue(name) if name in SHARED else Real.publish(profile, tmp_path)
    found, expected = golden.description(published), DOCUMENT["images"][name]
    moved = [
        f"{platform}: {then['name']}: {key} was {then[key]}, is {now[key]}"
        for platform, layers in expected["layers"].items()
        for then, now in zip(layers, found["layers"].get(platform, layers), strict=False)
        for key in ("blob", "diff_id")
        if then[key] != now[key]
    ]
    where = moved or ["no layer moved: it is the configuration, a manifest or the SOCI index"]
    assert found == expected, "\n".join([f"{profile.name}: {ADVICE}", *where])


def test_the_same_build_from_the_layers_that_are_there(real: Real, tmp_path: Path) -> None:
    """The second build reads no input, and says the same."""
    environment = {**os.environ, "XDG_CACHE_HOME": str(real.cache), "LAYERWRIGHT_OFFLINE": "1"}
    done = run(["publish", "--format", "json", real.profile, f"oci:{tmp_path / 'out'}"], tmp_path, environment)
    assert done.json["digest"] == real.digest
    assert not any(layer["packed"] for layers in done.json["platforms"].values() for layer in layers)
