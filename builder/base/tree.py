"""The files of an image: its layers laid over one another, with whiteouts, opaque folders and links (image-spec, layer.md).

Rows are those of `base.scan`; they come from strangers. Nothing is unpacked: this is a picture of what would be there.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from builder.errors import HostileInputError

_WHITEOUT = ".wh."
_OPAQUE = ".wh..wh..opq"
_RESERVED = ".wh..wh."
_MAX_LINKS = 40
_MAX_DEPTH = 512


@dataclass(slots=True)
class Node:
    """A file, folder, link or device. `layer` and `path` say which member of which layer has its content, `since` which layer
    put it here; `children` are those of a folder by name."""

    type: str
    mode: int
    size: int
    link: str
    uid: int
    gid: int
    layer: int = -1
    path: str = ""
    since: int = -1
    children: dict[str, Node] = field(default_factory=dict)


class Tree:
    """The files of the layers that were added, the lowest first."""

    def __init__(self) -> None:
        self.root = Node("dir", 0o755, 0, "", 0, 0)
        self.layers = 0
        self._cleared: dict[int, Node] = {}

    def add(self, rows: Sequence[Sequence[Any]]) -> None:
        """Lays the next layer over what is there. Whiteouts hide what lower layers have, wherever they stand in theirs.

        Raises `HostileInputError` for links to what is not there and paths that nothing can be put at.
        """
        for row in rows:
            parent, _, name = row[0].rpartition("/")
            if name.startswith(_WHITEOUT):
                self._hide(parent, name)
            else:
                self._put(*row)
        self.layers += 1
        self._cleared.clear()

    def at(self, path: str) -> Node | None:
        """What is at a path, absolute or relative to the root; symlinks are followed but for the last name."""
        parts = [part for part in path.split("/") if part not in ("", ".")]
        if not parts:
            return self.root
        folder = self._walk(parts[:-1])[1]
        return folder.children.get(parts[-1]) if folder and folder.type == "dir" else None

    def find(self, path: str) -> tuple[str, Node] | None:
        """What a path leads to in the end, and the path where that is, absolute; None where it leads nowhere."""
        real, node = self._walk([part for part in path.split("/") if part not in ("", ".")])
        return ("/" + "/".join(real), node) if node else None

    def walk(self) -> Iterator[tuple[str, Node]]:
        """All that is there with its path, relative to the root."""
        waiting = [("", self.root)]
        while waiting:
            above, folder = waiting.pop()
            for name, node in folder.children.items():
                path = f"{above}/{name}" if above else name
                yield path, node
                if node.children:
                    waiting.append((path, node))

    def _walk(self, parts: Iterable[str]) -> tuple[list[str], Node | None]:
        """Follows names and links from the root; nothing leads out of it."""
        waiting = list(parts)[::-1]
        real: list[str] = []
        nodes = [self.root]
        links = 0
        while waiting:
            name = waiting.pop()
            if name in ("", "."):
                continue
            if name == "..":
                if real:
                    real.pop()
                    nodes.pop()
                continue
            node = nodes[-1].children.get(name) if nodes[-1].type == "dir" else None
            if node is None:
                return real, None
            if node.type == "symlink":
                links += 1
                if links > _MAX_LINKS or len(real) > _MAX_DEPTH:
                    return real, None
                if node.link.startswith("/"):
                    real, nodes = [], [self.root]
                waiting += node.link.split("/")[::-1]
                continue
            real.append(name)
            nodes.append(node)
        return real, nodes[-1]

    def _hide(self, parent: str, name: str) -> None:
        found = self.find(parent)
        if found is None or (name != _OPAQUE and name.startswith(_RESERVED)):
            return
        folder, hidden = found[1], name.removeprefix(_WHITEOUT)
        if name == _OPAQUE:
            self._keep_own(folder)
        elif hidden in folder.children and not self._keep_own(folder.children[hidden]):
            del folder.children[hidden]

    def _keep_own(self, node: Node) -> bool:
        """Takes what lower layers have out of a folder; whether the node is of this layer, or something in it.

        Once in a layer is enough: nothing of lower layers comes back.
        """
        if id(node) in self._cleared:
            return True
        own = [(name, child) for name, child in node.children.items() if self._keep_own(child)]
        node.children = dict(own)
        if not own and node.since != self.layers:
            return False
        self._cleared[id(node)] = node
        return True

    def _put(self, path: str, type_: str, mode: int, size: int, link: str, uid: int, gid: int) -> None:
        if not path:
            self.root.mode, self.root.uid, self.root.gid = mode, uid, gid
            return
        parent, _, name = path.rpartition("/")
        folder = self._folder(parent)
        if type_ == "hardlink":
            target = self.at(link)
            if target is None or target.type == "dir":
                raise HostileInputError(f"/{path} is a hard link to {link!r}, which is no file of this image")
            folder.children[name] = replace(target, since=self.layers)
            return
        known = folder.children.get(name)
        if type_ == "dir" and known and known.type == "dir":
            known.mode, known.uid, known.gid, known.since = mode, uid, gid, self.layers
            return
        folder.children[name] = Node(type_, mode, size, link, uid, gid, self.layers, path, self.layers)

    def _folder(self, path: str) -> Node:
        """The folder that members of `path` go into: links are followed, what is missing is made, as runtimes do."""
        waiting = path.split("/")[::-1]
        nodes, links = [self.root], 0
        while waiting:
            if len(nodes) > _MAX_DEPTH:
                raise HostileInputError(f"a path of this image has more than {_MAX_DEPTH} parts")
            name = waiting.pop()
            if name in ("", "."):
                continue
            if name == "..":
                del nodes[max(1, len(nodes) - 1) :]
                continue
            node = nodes[-1].children.get(name)
            if node is not None and node.type == "symlink":
                links += 1
                if links > _MAX_LINKS:
                    raise HostileInputError(f"/{path} leads over links without an end")
                nodes = [self.root] if node.link.startswith("/") else nodes
                waiting += node.link.split("/")[::-1]
                continue
            if node is None or node.type != "dir":
                node = nodes[-1].children[name] = Node("dir", 0o755, 0, "", 0, 0, self.layers, "", self.layers)
            nodes.append(node)
        return nodes[-1]
