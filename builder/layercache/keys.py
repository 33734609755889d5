"""Keys that sign entries of a layer cache: Ed25519 (RFC 8032), in the text form of Nix, so that one pair serves both.

A key is `NAME:BASE64`; the bytes are the 32 of the public key, or for a secret one its seed and the public key, 64 in all.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from builder.errors import BuilderError, UsageError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._+-]{0,63}")
_PUBLIC, _SECRET, _SIGNATURE = 32, 64, 64
_MAX_FILE = 4096


@dataclass(frozen=True, order=True)
class PublicKey:
    """Checks signatures."""

    name: str
    data: bytes

    @classmethod
    def parse(cls, text: str) -> PublicKey:
        """Raises `UsageError` that says what is wrong with `text`."""
        name, data = _parsed(text, _PUBLIC, f"{text[:200]!r}: not a public key")
        return cls(name, data)

    def __str__(self) -> str:
        return f"{self.name}:{base64.b64encode(self.data).decode()}"

    def signed(self, signature: bytes, message: bytes) -> bool:
        """Whether the signature is one of this key over `message`."""
        from cryptography.exceptions import InvalidSignature

        try:
            _ed25519().Ed25519PublicKey.from_public_bytes(self.data).verify(signature, message)
        except (InvalidSignature, ValueError):
            return False
        return True


@dataclass(frozen=True)
class SecretKey:
    """Signs; its bytes are never shown."""

    name: str
    data: bytes = field(repr=False)

    @classmethod
    def generate(cls, name: str, random: Callable[[int], bytes]) -> SecretKey:
        """A new key; `random` gives as many bytes as it is asked for, that nobody can guess. Raises `UsageError`."""
        if not _NAME.fullmatch(name):
            raise UsageError(f"{name!r} cannot be the name of a key", hint="use letters, digits, `.`, `_`, `+` and `-`")
        seed = random(_SECRET - _PUBLIC)
        return cls(name, seed + _ed25519().Ed25519PrivateKey.from_private_bytes(seed).public_key().public_bytes_raw())

    @classmethod
    def read(cls, path: Path) -> SecretKey:
        """The key in a file. Raises `UsageError`, which shows nothing of what the file holds."""
        try:
            with path.open("rb") as file:
                text = file.read(_MAX_FILE).decode("ascii", "replace").strip()
        except OSError as error:
            raise UsageError(f"{path}: cannot be read: {error.strerror}", hint=_HINT) from error
        name, data = _parsed(text, _SECRET, f"{path}: holds no secret key")
        key = cls(name, data)
        if key._private().public_key().public_bytes_raw() != key.public.data:
            raise UsageError(f"{path}: holds no secret key: its two halves do not belong together", hint=_HINT)
        return key

    @property
    def text(self) -> str:
        """What is kept in its file, and shown to nobody."""
        return f"{self.name}:{base64.b64encode(self.data).decode()}"

    @property
    def public(self) -> PublicKey:
        """What others trust."""
        return PublicKey(self.name, self.data[-_PUBLIC:])

    def sign(self, message: bytes) -> str:
        """`NAME:BASE64` of the signature, the same for the same message."""
        signature: bytes = self._private().sign(message)
        return f"{self.name}:{base64.b64encode(signature).decode()}"

    def _private(self) -> Any:
        return _ed25519().Ed25519PrivateKey.from_private_bytes(self.data[:-_PUBLIC])


def signature_of(text: str) -> tuple[str, bytes] | None:
    """The name of the key and the bytes of a signature as `SecretKey.sign` writes it; None where the text is none."""
    try:
        return _parsed(text, _SIGNATURE, "")
    except UsageError:
        return None


_HINT = "`build cache key NAME -o FILE` makes a pair of keys, `nix key generate-secret` another"


def _parsed(text: str, size: int, what: str) -> tuple[str, bytes]:
    name, colon, encoded = text.partition(":")
    try:
        data = base64.b64decode(encoded, validate=True)
    except (binascii.Error, ValueError):
        data = b""
    if not colon or not _NAME.fullmatch(name) or len(data) != size:
        raise UsageError(f"{what} of the form NAME:BASE64 with {size} bytes", hint=_HINT)
    return name, data


def _ed25519() -> Any:
    try:
        from cryptography.hazmat.primitives.asymmetric import ed25519  # takes long to import
    except ImportError as error:
        raise BuilderError(
            "signatures of a layer cache need the package `cryptography`", hint="pip install 'layerwright[cache]'"
        ) from error
    return ed25519
