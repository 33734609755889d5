"""What is inside model files: their headers, read strictly, so that a tensor can be taken without the rest."""

from __future__ import annotations

from builder.models.values import BadModelError


class HeaderError(BadModelError):
    """A model file whose header lies about the file, or is not what the file's name says."""

    hint = "download the file again from where it came from, or exclude it"
