"""The digest of content: `sha256:` and 64 lower-case hexadecimal digits (OCI image-spec, descriptor.md)."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass

_FORM = re.compile(r"sha256:([0-9a-f]{64})")


@dataclass(frozen=True, order=True, slots=True)
class Digest:
    """A sha256 digest; `str()` and `parse` are inverse to one another."""

    hex: str

    @classmethod
    def parse(cls, text: str) -> Digest:
        match = _FORM.fullmatch(text)
        if not match:
            raise ValueError(f"not a sha256 digest: {text!r}")
        return cls(match[1])

    @classmethod
    def of(cls, data: bytes | bytearray | memoryview) -> Digest:
        return cls(hashlib.sha256(data).hexdigest())

    def __str__(self) -> str:
        return f"sha256:{self.hex}"

    @property
    def short(self) -> str:
        """The first twelve digits, for people."""
        return self.hex[:12]
