"""Bodies of answers in blocks."""

from __future__ import annotations

import io

import pytest
from hypothesis import given
from hypothesis import strategies as some
from urllib3 import HTTPResponse

from builder.client.reading import _LEAST, _MOST, blocks


@given(some.binary(max_size=100_000), some.integers(1, 40))
def test_blocks_are_the_body(data: bytes, times: int) -> None:
    body = data * times
    found = list(blocks(HTTPResponse(io.BytesIO(body), preload_content=False)))
    assert b"".join(found) == body
    assert all(0 < len(block) <= _MOST for block in found)


@pytest.mark.parametrize(("short", "long", "expected"), [(1e9, 1e9, _MOST), (0, 0, _LEAST), (0, 1e9, _LEAST)])
def test_blocks_grow_where_much_comes(
    short: float, long: float, expected: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All is quick, all is slow, neither."""
    monkeypatch.setattr("builder.client.reading._SHORT", short)
    monkeypatch.setattr("builder.client.reading._LONG", long)
    found = [len(block) for block in blocks(HTTPResponse(io.BytesIO(bytes(4 << 20)), preload_content=False))]
    assert max(found) == expected
    assert found[0] == _LEAST
