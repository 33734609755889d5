"""Layers of base images come out of the place that has the image, into files of a store."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from builder.client import NotFoundError
from builder.errors import FetchError
from builder.lock import LockedFile
from builder.oci.content import Source
from builder.oci.listing import LayoutError
from builder.oci.spec import Descriptor
from builder.parallel import Once
from builder.places.remote import Remote

_BLOCK = 1 << 20
_HINT = (
    "bring the image back there, or name a mirror that has its layers; `build lock --upgrade` takes what is there now"
)


class BaseLayers:
    """Brings layers out of the place that `opened` opens, which is done once, when the first is wanted; for many threads."""

    def __init__(self, opened: Callable[[], tuple[Source, Any]]) -> None:
        self._opened = Once(opened)

    def __call__(self, file: LockedFile, path: Path, advance: Callable[[int], None]) -> None:
        """The layer is in the file `path`. Raises `FetchError` where the place has it no more, and what the place raises."""
        source, _ = self._opened()
        descriptor = Descriptor("", file.digest, file.size)
        try:
            if isinstance(source, Remote):
                source.watch = advance
                source.download(descriptor, path)
                return
            with source.blob(descriptor) as stream, path.open("wb") as out:
                shutil.copyfileobj(stream, out, _BLOCK)
        except (LayoutError, NotFoundError) as error:
            raise FetchError(f"a layer of the base image {file.path}: {error}", hint=_HINT) from error
        advance(file.size)
