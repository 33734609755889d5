"""The body of an answer in blocks: small ones where little comes, large ones where much does, which take fewer steps."""

from __future__ import annotations

import time
from collections.abc import Iterator

from urllib3.response import BaseHTTPResponse

_LEAST = 16 << 10
_MOST = 1 << 20
_SHORT, _LONG = 0.01, 0.05
"""Seconds: a block that came faster is followed by a larger one, one that took longer by a smaller one."""


def blocks(response: BaseHTTPResponse) -> Iterator[bytes]:
    """The body as it was sent, in order: what has come is held back for a moment only, so that who reads can stop soon.

    Raises what urllib3 raises; what came of the block that was to be next is lost then.
    """
    amount = _LEAST
    while True:
        begun = time.monotonic()
        # `read` waits until a block is full. `read1` would give what one record of TLS holds, 16 KiB.
        block = response.read(amount, decode_content=False)
        took = time.monotonic() - begun
        if not block:
            return
        yield block
        if took < _SHORT:
            amount = min(amount * 2, _MOST)
        elif took > _LONG:
            amount = max(amount // 2, _LEAST)
