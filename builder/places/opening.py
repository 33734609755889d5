"""Places by their names, opened: to read images from, and to write images to."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Protocol

from builder import registry
from builder.errors import OfflineError, UsageError
from builder.oci.content import Place, Target
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.places import memory
from builder.places.archive import Archive, NewArchive
from builder.places.delivery import Sink
from builder.places.destination import FORMS, ArchiveFile, Destination, DockerFile, Folder, Repository
from builder.places.dockerarchive import DockerArchive
from builder.places.remote import Remote
from builder.settings import Settings
from builder.store import Store

if TYPE_CHECKING:
    from builder.client import Client


class Context(Protocol):
    """What opening a place needs of the process; the command line's context has it."""

    @property
    def settings(self) -> Settings: ...
    @property
    def environ(self) -> Mapping[str, str]: ...
    @property
    def plain_http(self) -> bool: ...
    @property
    def store(self) -> Store: ...
    @property
    def client(self) -> Client: ...


def open_source(text: str | Destination, context: Context) -> tuple[Place, str | None]:
    """The place that `text` names, and what to ask its `resolve` for: a digest, a tag or None.

    Raises `UsageError` for what is no place, `LayoutError` for an archive that cannot be read, `OfflineError`.
    """
    named = Destination.parse(text) if isinstance(text, str) else text
    match named:
        case Folder():
            return Layout(named.path), named.reference
        case ArchiveFile():
            return Archive(named.path), named.reference
        case DockerFile():
            return DockerArchive(named.path), named.reference
        case Repository():
            return _repository(named, context), named.reference
    raise UsageError(f"{named} cannot be read from", hint=f"write {FORMS}")


def open_target(text: str | Destination, context: Context, mount_from: Sequence[str] = ()) -> Target:
    """The place that `text` names, to be written to; an archive is there when its `finish` was called.

    `mount_from` are repositories of the same registry that may have blobs already. Raises as `open_source` does.
    """
    named = Destination.parse(text) if isinstance(text, str) else text
    match named:
        case Folder():
            layout = Layout(named.path)
            layout.check()
            return layout
        case ArchiveFile():
            return NewArchive(named.path)
        case Repository():
            return _repository(named, context, mount_from, writing=True)
    raise UsageError(f"{named} cannot be written to", hint=f"write {FORMS}")


def open_sinks(
    destinations: Sequence[Destination], context: Context, mount_from: Sequence[str] = ()
) -> tuple[Sink, ...]:
    """The places to deliver to, each once, with all the tags that are named for it."""
    tags: dict[Destination, list[str]] = {}
    for named in destinations:
        if named.digest:
            raise UsageError(f"{named}: a digest cannot be chosen", hint=f"write {FORMS}")
        known = tags.setdefault(_absolute(named.place), [])
        if named.tag and named.tag not in known:
            known.append(named.tag)
    shown = {_absolute(named.place): named.place for named in reversed(destinations)}
    return tuple(
        Sink(
            str(shown[place]),
            open_target(shown[place], context, mount_from),
            tuple(known),
            _remembering(place, context),
        )
        for place, known in tags.items()
    )


def _remembering(place: Destination, context: Context) -> Callable[[Iterable[Digest]], None]:
    """What notes the blobs that a place has now."""
    if not isinstance(place, Repository):
        return lambda _: None
    return partial(memory.remember, context.store, place.name.registry, place.name.repository)


def _absolute(place: Destination) -> Destination:
    """The same for two names of one folder or file."""
    match place:
        case Folder():
            return Folder(Path(place.path).absolute())
        case ArchiveFile():
            return ArchiveFile(Path(place.path).absolute())
    return place


def _repository(
    named: Repository, context: Context, mount_from: Sequence[str] = (), *, writing: bool = False
) -> Remote:
    if context.settings.offline:
        raise OfflineError(f"{named}: the registry would have to be asked, and --offline forbids it")
    preferred = _of_same_registry(named, mount_from)
    return Remote(
        replace(named.name, tag=named.tag, digest=named.digest),
        context.client,
        registry.Keychain.of(context.environ),
        plain_http=context.plain_http,
        writing=writing,
        mounts=memory.mounts(context.store, named.name.registry, named.name.repository, preferred),
    )


def _of_same_registry(named: Repository, mount_from: Sequence[str]) -> Iterator[str]:
    for text in mount_from:
        try:
            other = registry.Reference.parse(text)
        except registry.BadReferenceError as error:
            raise UsageError(f"--mount-from {error}", hint=error.hint) from error
        if other.registry == named.name.registry:
            yield other.repository
