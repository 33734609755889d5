"""Compressing with zstd (RFC 8878) to bytes that are the same wherever it is done: those of one version of its library.

Versions of zstd compress to different bytes, and which one a Python has is decided elsewhere. So a lock names the version,
and none other is used: one that says it is the one has to compress a sample as it does.
"""

from __future__ import annotations

import functools
import hashlib
import sys
from collections.abc import Callable, Iterator

from builder.errors import ToolError
from builder.layers.deflate import sample

Compress = Callable[[bytes], bytes]
"""Gives one whole frame; it may be called from several threads at once."""

VERSION, LEVEL = "1.5.7", 3
"""What new locks say."""
_PROOFS = {("1.5.7", 3): "92fdaea9e091957da0e011767173cf3bfbd796ea0e67956f9f062f3cb453ec85"}
"""For each version and level that has ever been in locks, the digest of the compressed sample."""
_HINT = {"1.5.7": "install the package zstandard==0.25.0, which brings that version, beside Layerwright"}


def encoder(version: str, level: int) -> Compress:
    """What compresses as that version of zstd does at that level.

    Raises `ToolError` where no library of this Python does, or Layerwright has never compressed so.
    """
    proof = _PROOFS.get((version, level))
    if proof is None:
        raise ToolError(
            f"layers compressed by zstd {version} at level {level} are made by another version of Layerwright",
            hint="install the version that made the lock, or run `build lock`, which has other digests then",
        )
    compress = _proven(version, level, proof)
    if compress is None:
        found = ", ".join(f"{where} has {other}" for where, other, _ in _libraries()) or "there is none"
        raise ToolError(
            f"the lock's layers are compressed by zstd {version}, and no library here does as that one ({found})",
            hint=_HINT[version],
        )
    return compress


@functools.cache
def _proven(version: str, level: int, proof: str) -> Compress | None:
    for _, found, compress in _libraries():
        if found == version and hashlib.sha256(compress(sample(), level)).hexdigest() == proof:
            return lambda data: compress(data, level)
    return None


def _libraries() -> Iterator[tuple[str, str, Callable[[bytes, int], bytes]]]:
    """The name, the version of zstd and the function of each library that this Python has."""
    try:
        if sys.version_info >= (3, 14):
            from compression import zstd
        else:
            from backports import zstd
        yield zstd.__name__, zstd.zstd_version, zstd.compress
    except ImportError:
        pass
    try:
        import zstandard
    except ImportError:
        return
    yield "zstandard", ".".join(map(str, zstandard.ZSTD_VERSION)), _zstandard


def _zstandard(data: bytes, level: int) -> bytes:
    import zstandard

    return zstandard.ZstdCompressor(level=level).compress(data)
