"""Repositories of registries whose traffic can be watched."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from builder.client import Client
from builder.registry import Keychain, Reference, Repository


class Remote(Repository):
    """A repository that tells `watch`, which may be set at any time, of the bytes of blobs that come and go."""

    def __init__(self, reference: Reference, client: Client, keychain: Keychain, **options: Any) -> None:
        self.watch: Callable[[int], None] = _nobody
        super().__init__(reference, client, keychain, advance=lambda amount: self.watch(amount), **options)


def _nobody(_: int) -> None:
    return None
