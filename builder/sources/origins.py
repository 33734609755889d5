"""Where the origins of a lock are: the mirrors of Debian and the package indexes that the user's configuration names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from builder.errors import FetchError
from builder.lock import LockedFile
from builder.sources.apt import Mirror
from builder.sources.simple import ORIGIN as PYPI
from builder.sources.simple import Catalogue


class ConfiguredOrigins:
    """The addresses of locked files, for a fetcher; no index is asked before a wheel is needed."""

    def __init__(self, mirrors: Mapping[str, Mirror], catalogue: Catalogue) -> None:
        self._mirrors = mirrors
        self._catalogue = catalogue

    def urls(self, file: LockedFile) -> Iterable[str]:
        """Addresses of the file, best first. Raises `FetchError` for an origin that nothing here configures."""
        if file.origin == PYPI:
            return self._catalogue.urls(file)
        if file.origin not in self._mirrors:
            raise FetchError(
                f"{file.path}: nothing here says where the origin {file.origin!r} is",
                hint="name its addresses under [origins] in the configuration (`build doctor` shows the file)",
            )
        return self._mirrors[file.origin].urls(file.path)
