"""From the name of a base image to what the lock says of it: its documents, and what its files say where that matters."""

from __future__ import annotations

import posixpath
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace

from builder.base import facts, reading, scan
from builder.base.facts import VENV, BaseError
from builder.base.files import contents
from builder.base.tree import Node, Tree
from builder.baseimage import LockedFolder, LockedImage, hostless
from builder.client import NotFoundError
from builder.errors import HostileInputError
from builder.image import BuiltLayer
from builder.lock import LockedFile
from builder.oci import spec
from builder.oci.content import Source
from builder.oci.digest import Digest
from builder.oci.listing import LayoutError
from builder.oci.published import ImageError
from builder.oci.spec import Platform
from builder.plan import BaseLayer, base_layers
from builder.profile import Profile
from builder.store import Store


@dataclass(frozen=True)
class Reader:
    """How base images are looked at: `ensure` brings layers into the store, `scan` makes what is known of one, `opened` opens the
    place that has the image and says what it is called there."""

    store: Store
    ensure: Callable[[Iterable[LockedFile]], None]
    scan: Callable[[BaseLayer], BuiltLayer]
    opened: Callable[[], tuple[Source, str | None]]


@dataclass(frozen=True)
class Asked:
    """What a profile asks of a base image: `name` is how it calls it, `python` is the `3.N` that its packages are for, and
    `wheels` says whether there will be any."""

    name: str
    platform: Platform
    python: str | None
    wheels: bool

    @property
    def request(self) -> str:
        """The digest of what is asked."""
        document = {
            "image": hostless(self.name),
            "platform": str(self.platform),
            "python": self.python,
            "wheels": self.wheels,
        }
        return str(Digest.of(spec.encode(document)))


OwnPlaces = tuple[tuple[str, ...], tuple[str, ...]]
"""Where the profile's own files go, as absolute paths: now, and when the image was locked before."""


def resolve(
    profile: Profile,
    platform: Platform,
    reader: Reader,
    before: LockedImage | None,
    own: OwnPlaces,
    upgrade: bool | frozenset[str],
) -> LockedImage:
    """The lock of a profile's base image. That of `before` stays where the same is asked and `upgrade` does not move it; then
    only its folders are looked up again.

    Layers are read where there is something to put on top. Raises `BaseError`, and what reading raises.
    """
    asked = _asked(profile, platform)
    moves = upgrade is True or (upgrade and before and before.name in upgrade)
    kept = before if before and before.request == asked.request and not moves else None
    now, then = own
    if kept and now == then:
        return kept
    with _named(asked.name):
        image = replace(kept, folders=()) if kept else _read(asked, *reader.opened())
        if not asked.wheels and not now:
            return image
        tree = look(image, reader)
        if not kept:
            image = _with_facts(image, tree, reader, asked)
        return replace(image, folders=folders(tree, now))


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors say which image it is about."""
    try:
        yield
    except (BaseError, HostileInputError) as error:
        raise type(error)(f"base image {name}: {error}", hint=error.hint) from error
    except ImageError as error:
        raise ImageError(f"base image {name}: {error}", hint=BaseError.hint) from error
    except (LayoutError, NotFoundError) as error:
        hint = "correct base.image in the profile, or bring the image there"
        raise type(error)(f"base image {name}: {error}", hint=hint) from error


def _asked(profile: Profile, platform: Platform) -> Asked:
    assert profile.base
    assert profile.base.image
    version = profile.python.version if profile.python else None
    return Asked(profile.base.image, platform, version, bool(profile.python or profile.cuda))


def _read(asked: Asked, source: Source, reference: str | None) -> LockedImage:
    """The image without what only its files say."""
    found = reading.read(source, source.resolve(reference), asked.platform)
    return LockedImage(
        source=_source(asked.name),
        request=asked.request,
        manifest=str(found.manifest.digest),
        config=str(found.config.digest),
        layers=reading.layers(found),
        execution=reading.execution(found),
        more=reading.more(found),
        history=reading.history(found),
    )


def look(image: LockedImage, reader: Reader) -> Tree:
    """The files of an image; its layers are fetched if need be."""
    layers = base_layers(image)
    tree = Tree()
    reader.ensure(dict.fromkeys(layer.file for layer in layers))
    for layer in layers:
        tree.add(scan.rows(reader.scan(layer), reader.store))
    return tree


def _with_facts(image: LockedImage, tree: Tree, reader: Reader, asked: Asked) -> LockedImage:
    """The image with what its files say: its system, and the C library and interpreter that wheels for Python `3.N` need.

    Raises `BaseError` where it has no such Python, or something is where the environment goes.
    """
    layers = base_layers(image)

    def read(nodes: Mapping[str, Node]) -> Mapping[str, bytes]:
        return contents(nodes, layers, reader.store)

    system = facts.system(tree, read, asked.platform.architecture)
    image = replace(
        image,
        system=system.name,
        distribution=system.distribution,
        packages=system.packages,
        sources=system.sources,
        libc=system.libc,
        search=system.search,
    )
    if not asked.wheels:
        return image
    if not image.libc:
        why = "its C library is musl" if facts.has_musl(tree) else f"no glibc for {asked.platform} is in it"
        raise BaseError(f"{why}: wheels need glibc", hint="choose a base image with glibc, such as one of Debian")
    _check_free(tree)
    if asked.python is None:
        return image
    path = dict(image.execution.env).get("PATH") or spec.PATH
    found = facts.python(tree, read, asked.python, path)
    return replace(image, python=found.full_version, executable=found.executable)


def folders(tree: Tree, places: Collection[str]) -> tuple[LockedFolder, ...]:
    """The folders above `places`, absolute paths of files that go into the image, as far as the image has them and they are
    not just what would be made. Raises `BaseError` where one of them is no folder."""
    found: dict[str, LockedFolder] = {}
    waiting = sorted({above for place in places for above in _above(place)})
    while waiting:
        path = waiting.pop()
        there = tree.find(path)
        if there is None:
            if tree.at(path) is not None:
                raise BaseError(f"{path} is a link that leads nowhere in it", hint="put the files elsewhere")
            continue
        real, node = there
        if node.type != "dir":
            raise BaseError(f"{path} is no folder in it, but a {node.type}", hint="put the files elsewhere")
        folder = LockedFolder(path, real, f"{node.mode:04o}", node.uid, node.gid)
        if folder != LockedFolder(path, path, "0755") and path not in found:
            found[path] = folder
            waiting += [real, *_above(real)] if real not in (path, "/") else []
    return tuple(found[path] for path in sorted(found))


def _check_free(tree: Tree) -> None:
    """The environment is made where nothing is, below folders that are folders."""
    for path in (posixpath.dirname(VENV), VENV):
        node = tree.at(path)
        if node and node.type != "dir":
            raise BaseError(f"{path} is no folder in it, but a {node.type}", hint="choose another base image")
    if tree.at(VENV):
        raise BaseError(
            f"it has {VENV} already, where the packages of this profile would go",
            hint="take the image that it was built on, or leave out python",
        )


def _above(place: str) -> list[str]:
    parts = place.split("/")[1:-1]
    return ["/" + "/".join(parts[:count]) for count in range(1, len(parts) + 1)]


def _source(name: str) -> str:
    """A name for people that is no path of the machine: repository and tag, or the last part of a path."""
    short = hostless(name)
    if short != name:
        return short
    last = short.partition(":")[2].rstrip("/").rpartition("/")[2]
    return last if last not in ("", ".", "..") else "image"
