"""The names of places: `oci:DIR[:TAG]`, `oci-archive:FILE[:TAG]` and `HOST/REPOSITORY[:TAG]`, each also with `@DIGEST`; and
`docker-archive:FILE[:NAME:TAG]`, which can be read only."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Self

from builder.errors import UsageError
from builder.oci.digest import Digest
from builder.registry.reference import BadReferenceError, Reference

DEFAULT_TAG = "latest"
FORMS = "oci:DIR[:TAG], oci-archive:FILE[:TAG] or HOST/REPOSITORY[:TAG]"
_TAG = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")


@dataclass(frozen=True, kw_only=True)
class Destination:
    """A place for images, and which image there is meant: by tag, by digest, or neither."""

    tag: str | None = None
    digest: Digest | None = None

    @classmethod
    def parse(cls, text: str) -> Destination:
        """Raises `UsageError` for what is no place."""
        if text.startswith("oci://"):
            raise UsageError(
                f"{text!r}: is a registry meant, or a folder?",
                hint=f"write {text.removeprefix('oci://')} for a registry, or oci:DIR for a folder",
            )
        scheme, colon, rest = text.partition(":")
        if colon and scheme == "oci":
            path, tag, digest = _with_path(text, rest, "folder")
            return Folder(path, tag=tag, digest=digest)
        if colon and scheme == "oci-archive":
            path, tag, digest = _with_path(text, rest, "file")
            return ArchiveFile(path, tag=tag, digest=digest)
        if colon and scheme == "docker-archive":
            rest, digest = _split_digest(text, rest)
            path_text, _, name_text = rest.partition(":")
            if not path_text:
                raise UsageError(f"{text!r} names no file")
            return DockerFile(Path(path_text), tag=name_text or None, digest=digest)
        try:
            reference = Reference.parse(text)
        except BadReferenceError as error:
            raise UsageError(str(error), hint=_remedy(text, error)) from error
        name = replace(reference, tag=None, digest=None)
        return Repository(name, tag=reference.tag, digest=reference.digest)

    @property
    def reference(self) -> str | None:
        """What `Source.resolve` is to be asked for."""
        return str(self.digest) if self.digest else self.tag

    @property
    def place(self) -> Destination:
        """The place itself, without tag and digest."""
        return replace(self, tag=None, digest=None)

    def tagged(self, tag: str | None) -> Self:
        """The same place with another tag, without a digest."""
        return replace(self, tag=tag, digest=None)

    def __str__(self) -> str:
        tag = f":{self.tag}" if self.tag else ""
        return self._place() + tag + (f"@{self.digest}" if self.digest else "")

    def _place(self) -> str:
        raise TypeError("this names no place")


@dataclass(frozen=True)
class Folder(Destination):
    """An OCI layout in a folder."""

    path: Path

    def _place(self) -> str:
        return f"oci:{self.path}"


@dataclass(frozen=True)
class ArchiveFile(Destination):
    """An OCI layout in a tar file."""

    path: Path

    def _place(self) -> str:
        return f"oci-archive:{self.path}"


@dataclass(frozen=True)
class DockerFile(Destination):
    """What `docker save` wrote; the `tag` of an image there is its whole name, `NAME:TAG`."""

    path: Path

    def _place(self) -> str:
        return f"docker-archive:{self.path}"


@dataclass(frozen=True)
class Repository(Destination):
    """A repository of a registry; `name` is its reference without tag and digest."""

    name: Reference

    def _place(self) -> str:
        return str(self.name)


def _remedy(text: str, error: BadReferenceError) -> str:
    """What to write instead of what is no reference."""
    if text.startswith(("/", "./", "../", "~")):
        return f"write oci:{text} for a folder, or oci-archive:{text} for a file"
    return f"{error.hint}; or write oci:DIR or oci-archive:FILE"


def is_tag(text: str) -> bool:
    """Whether a text can be a tag."""
    return _TAG.fullmatch(text) is not None


def _with_path(text: str, rest: str, kind: str) -> tuple[Path, str | None, Digest | None]:
    """Path, tag and digest of `PATH[:TAG][@DIGEST]`; a colon before a slash belongs to the path."""
    rest, digest = _split_digest(text, rest)
    path, colon, tag = rest.rpartition(":")
    if not colon or "/" in tag:
        path, colon, tag = rest, "", ""
    if not path:
        raise UsageError(f"{text!r} names no {kind}")
    if colon and not is_tag(tag):
        raise UsageError(f"{text!r}: {tag!r} is no tag")
    return Path(path), tag or None, digest


def _split_digest(text: str, rest: str) -> tuple[str, Digest | None]:
    before, at, digest = rest.rpartition("@")
    if not at or not digest.startswith("sha256:"):
        return rest, None
    try:
        return before, Digest.parse(digest)
    except ValueError as error:
        raise UsageError(f"{text!r}: {error}") from error
