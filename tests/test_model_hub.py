"""Models of a hub that behaves as the real one does; its own library is asked, too, and says the same."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import hubserver
import modelworld
import pytest
from hubserver import COMMIT, GATED, OPEN, PRIVATE, READER, STRANGER, Hub
from test_model_sources import files_of, means_in

from builder.errors import FetchError
from builder.models.sources import Means, Wanted, collect

WEIGHTS = modelworld.safetensors({"w": ("U8", (9 << 20,), random.Random(3).randbytes(9 << 20))})
PLAIN = {"config.json": b'{"a": 1}', "sub dir/tokenizer.json": b"{}"}
FILES = {**PLAIN, "model.safetensors": WEIGHTS}


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    monkeypatch.setattr("huggingface_hub.constants.HF_TOKEN_PATH", str(tmp_path / "no-token"))
    for name in ("HF_TOKEN", "HF_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    with hubserver.serving(PLAIN, {"model.safetensors": WEIGHTS}) as found:
        yield found


def of(folder: Path, hub: Hub, token: str = "") -> Means:
    means = means_in(folder, origins={"hf": (hub.url,)})
    return replace(means, environ={**means.environ, **({"HF_TOKEN": token} if token else {})})


@pytest.mark.parametrize(
    ("repository", "revision", "token"),
    [
        (OPEN, COMMIT, ""),
        (OPEN, "v1.0", ""),
        (OPEN, "refs/pr/1", STRANGER),
        (PRIVATE, "main", READER),
        (GATED, "main", READER),
    ],
)
def test_files_are_those_that_the_hubs_own_library_gets(
    repository: str, revision: str, token: str, hub: Hub, tmp_path: Path
) -> None:
    import huggingface_hub

    theirs = Path(
        huggingface_hub.snapshot_download(
            repository,
            revision=revision,
            endpoint=hub.url,
            token=token or False,
            cache_dir=tmp_path / "theirs",
            etag_timeout=60,
        )
    )
    assert {path: (theirs / path).read_bytes() for path in FILES} == FILES
    hub.seen.clear()
    found = collect(f"hf://{repository}@{revision}", Wanted(), of(tmp_path, hub, token))
    assert found.source == f"hf://{repository}@{COMMIT}"
    assert files_of(found) == FILES
    assert {headers.get("authorization") for _, headers in hub.requests("hub")} == {
        f"Bearer {token}" if token else None
    }
    assert {headers.get("authorization") for _, headers in hub.requests("cdn")} == {None}
    assert not [
        path for path, _ in hub.requests("hub") if path.startswith("/org") and f"/resolve/{COMMIT}/" not in path
    ]


@pytest.mark.parametrize(
    ("address", "token", "why"),
    [
        (f"hf://{PRIVATE}@main", "", "no such repository, or not for you"),
        (f"hf://{PRIVATE}@main", STRANGER, "no such repository, or not for you"),
        (f"hf://{GATED}@main", "", "gated"),
        (f"hf://{GATED}@main", STRANGER, "gated"),
        (f"hf://{OPEN}@nowhere", READER, "no such revision"),
        ("hf://org/nothing@main", READER, "no such repository"),
    ],
)
def test_who_may_not_is_told_what_to_do(address: str, token: str, why: str, hub: Hub, tmp_path: Path) -> None:
    with pytest.raises(FetchError) as caught:
        collect(address, Wanted(), of(tmp_path, hub, token))
    assert why in str(caught.value)
    assert address.removeprefix("hf://").partition("@")[0] in str(caught.value)
    assert caught.value.hint
    assert "HF_TOKEN" in caught.value.hint or "revision" in why
    assert not token or token not in f"{caught.value} {caught.value.hint}"
    if address.startswith(f"hf://{GATED}") and token:
        assert f"{hub.url}/{GATED}" in caught.value.hint, "where access is asked for"


def test_addresses_that_expire_are_asked_for_again(hub: Hub, tmp_path: Path) -> None:
    """Before the first byte, and in the middle: what came is kept."""
    hub.expired, hub.cuts, hub.uses = 1, 2, 1
    assert files_of(collect(f"hf://{OPEN}@main", Wanted(), of(tmp_path, hub))) == FILES
    begins = [headers.get("range") for _, headers in hub.requests("cdn")]
    assert len(begins) > 3
    assert hub.expired < 0
    assert hub.cuts <= 0


def test_a_store_that_always_refuses_is_told(hub: Hub, tmp_path: Path) -> None:
    hub.expired = 1 << 30
    with pytest.raises(FetchError, match="answered 403") as caught:
        collect(f"hf://{OPEN}@main", Wanted(), of(tmp_path, hub, READER))
    assert "Signature" not in str(caught.value)
    assert READER not in f"{caught.value} {caught.value.hint}"
    assert len(hub.requests("cdn")) <= 3 * 4
