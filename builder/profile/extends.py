"""From files to one document: reads a profile and all that it extends, and lays them over one another."""

from __future__ import annotations

import posixpath
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import dropwhile
from pathlib import Path
from typing import Any, NamedTuple

from builder.baseimage import SCHEMES
from builder.documents.keys import element, has_keys, keys, members
from builder.documents.loading import BAD, convert
from builder.documents.nodes import Items, Mark, Node, Pairs, Problems, Scalar
from builder.documents.nodes import Path as Place
from builder.documents.yamltext import MAX_BYTES, REPLACE, scan
from builder.errors import BuilderError
from builder.oci.digest import Digest

MAX_FILES = 64
OWN = ("profile", "name", "extends")
"""The keys that each profile has for itself: nothing inherits them."""


class Include(NamedTuple):
    """A profile that another one extends: its file relative to the main profile's folder, the sha256 of its bytes."""

    source: str
    sha256: str


@dataclass(frozen=True)
class Merged:
    """The main profile over all that it extends. `partial` says that some file is missing in it, because of a problem
    that has been told; `node` is None where nothing could be read."""

    node: Node | None
    partial: bool
    includes: tuple[Include, ...]
    folders: dict[str, str]

    def local(self, text: str, mark: Mark) -> str:
        """A file's name relative to the main profile's folder, from the name that is written at `mark`."""
        prefix = next((scheme for scheme in SCHEMES if text.startswith(scheme)), "")
        return prefix + posixpath.normpath(posixpath.join(self.folders[mark.file], text.removeprefix(prefix)))


def merge(path: Path, cls: type, problems: Problems) -> Merged:
    """The profile (of type `cls`) at `path` over all that it extends: depth first, in order, each file once."""
    reader = _Reader(path.parent, cls, problems)
    reader.visit(path.name, None)
    rules = _Rules(cls)
    merged: Node | None = None
    for node in reader.nodes:
        merged = node if merged is None else rules.lay(merged, node)
    return Merged(merged, reader.partial, tuple(reader.includes), reader.folders)


@dataclass
class _Reader:
    """Reads files in the order in which they are laid over one another; a file that is reached twice counts once."""

    root: Path
    cls: type
    problems: Problems
    nodes: list[Node] = field(default_factory=list)
    includes: list[Include] = field(default_factory=list)
    folders: dict[str, str] = field(default_factory=dict)
    partial: bool = False
    seen: set[Path] = field(default_factory=set)
    chain: list[tuple[Path, str]] = field(default_factory=list)

    def visit(self, source: str, asked: tuple[Mark, Place] | None) -> None:
        """Reads `source`, a path relative to the main profile's folder; `asked` says who extends it, and where."""
        try:
            file = (self.root / source).resolve()
            data = self._data(file, source)
        except (BuilderError, OSError, RuntimeError) as error:
            reason = str(error) if isinstance(error, BuilderError) else f"cannot be read: {_reason(error)}"
            if asked is None:
                hint = "`build init NAME` writes a profile to begin with"
                raise BuilderError(f"{self.root / source}: {reason}", hint=hint) from error
            self.partial = True
            self.problems.add(*asked, reason if isinstance(error, BuilderError) else f"{source} {reason}")
            return
        if data is not None:
            self.chain.append((file, source))
            self._read(data, source, main=asked is None)
            self.chain.pop()
            self.seen.add(file)

    def _data(self, file: Path, source: str) -> bytes | None:
        """The bytes of a file, or None where it has been read already."""
        if file in self.seen:
            return None
        if file in (link[0] for link in self.chain):
            circle = [name for _, name in dropwhile(lambda link: link[0] != file, self.chain)]
            raise BuilderError(f"profiles extend one another in a circle: {' → '.join([*circle, source])}")
        if len(self.folders) == MAX_FILES:
            raise BuilderError(f"more than {MAX_FILES} profiles extend one another")
        if file.exists() and not file.is_file():
            raise BuilderError(f"{source} is not a file")
        with file.open("rb") as stream:
            return stream.read(MAX_BYTES + 1)

    def _read(self, data: bytes, source: str, *, main: bool) -> None:
        label = str(self.root / source)
        self.folders[label] = posixpath.dirname(source) or "."
        node = scan(data, label, self.problems, {REPLACE})
        if not isinstance(node, Pairs):
            self.partial = True
            if node is not None:
                convert(self.cls, node, self.problems)
            return
        for base, asked in self._extended(node):
            self.visit(posixpath.normpath(posixpath.join(self.folders[label], base)), asked)
        if not main:
            self.includes.append(Include(source, Digest.of(data).hex))
            self._check_own(node)
            node = Pairs(node.mark, tuple(pair for pair in node.pairs if pair[0].text not in OWN))
        self.nodes.append(node)

    def _extended(self, node: Pairs) -> Iterator[tuple[str, tuple[Mark, Place]]]:
        value = node.get("extends")
        for index, item in enumerate(value.items if isinstance(value, Items) else ()):
            # What is wrong with it is told when all of the profile is checked, and of an inherited one in `_check_own`.
            base = convert(element(self._hint("extends")), item, Problems())
            if base is BAD:
                self.partial = True
            else:
                yield base, (item.mark, ("extends", index))

    def _check_own(self, node: Pairs) -> None:
        """Checks what the merged document does not have of a profile."""
        for name in OWN:
            if value := node.get(name):
                convert(self._hint(name), value, self.problems, (name,))
            elif name == "profile":
                self.problems.add(node.mark, (name,), "required key missing")

    def _hint(self, name: str) -> Any:
        return next(key.hint for key in keys(self.cls) if key.name == name)


def _reason(error: OSError | RuntimeError) -> str:
    return (error.strerror if isinstance(error, OSError) else None) or str(error)


class _Rules:
    """How documents of a type are laid over one another; which lists are one value, and which are sets."""

    def __init__(self, cls: type) -> None:
        self._whole: set[Place] = set()
        self._unique: set[Place] = set()
        self._learn(cls, ())

    def _learn(self, cls: type, path: Place) -> None:
        for key in keys(cls):
            place = (*path, key.name)
            if key.meta.whole:
                self._whole.add(place)
            if key.meta.unique:
                self._unique.add(place)
            for hint in members(key.hint) or (key.hint,):
                if has_keys(hint):
                    self._learn(hint, place)

    def lay(self, below: Node, above: Node, path: Place = ()) -> Node:
        """Mappings merge, lists append, anything else replaces what was there, and so does `!replace`."""
        match below, above:
            case Pairs(), Pairs() if not above.replace:
                merged = {key.text: (key, node) for key, node in below.pairs}
                for key, node in above.pairs:
                    under = merged.get(key.text)
                    merged[key.text] = (key, self.lay(under[1], node, (*path, key.text)) if under else node)
                return Pairs(above.mark, tuple(merged.values()))
            case Items(), Items() if not above.replace and path not in self._whole:
                had = {item.text for item in below.items if isinstance(item, Scalar)} if path in self._unique else set()
                new = (item for item in above.items if not (isinstance(item, Scalar) and item.text in had))
                return Items(above.mark, (*below.items, *new))
        return above
