"""Files of two images in a database without a name, so that memory does not grow with their number."""

from __future__ import annotations

import hashlib
import re
import sqlite3
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from builder.differ.sides import LayerSide
from builder.layers.untar import Found, TarReader, normal
from builder.oci.content import Source
from builder.profile.forms import canonical

_TABLE = """
CREATE TABLE files (side INT, path BLOB, layer INT, type TEXT, mode INT, owner TEXT, link BLOB, size INT, content BLOB,
PRIMARY KEY (side, path)) WITHOUT ROWID
"""
_COLUMNS = ("type", "mode", "owner", "link", "content")
_DIFFERENT = " OR ".join(f"a.{name} IS NOT b.{name}" for name in _COLUMNS)
_SELECT = f"""
SELECT a.path AS path, a.type, a.mode, a.owner, a.link, a.content, a.size, b.type, b.mode, b.owner, b.link, b.content, b.size
FROM files a LEFT JOIN files b ON b.side = 1 AND b.path = a.path WHERE a.side = 0 AND (b.path IS NULL OR {_DIFFERENT})
UNION ALL
SELECT b.path, NULL, NULL, NULL, NULL, NULL, NULL, b.type, b.mode, b.owner, b.link, b.content, b.size
FROM files b LEFT JOIN files a ON a.side = 0 AND a.path = b.path WHERE b.side = 1 AND a.path IS NULL
ORDER BY path
"""
_DIST_INFO = re.compile(
    r"(?:.*/)?(?:site|dist)-packages/([^/]+)-([^/-]+)\.(?:dist-info|egg-info)/(?:METADATA|PKG-INFO)"
)
_STATUS = re.compile(r"var/lib/dpkg/(?:status|status\.d/[^/]+)")
_MAX_STATUS = 64 << 20
_WHITEOUT = ".wh."
_DELETED = "deleted"
_GONE = (None, _DELETED)
_INSERT = "INSERT OR REPLACE INTO files VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)"
_ENVIRONMENT = "opt/venv/"
_OPAQUE = ".wh..wh..opq"


@dataclass(frozen=True)
class FileChange:
    """A file that is only on one side (`added` to the second, `removed` from it) or differs in `what`: type, mode, owner, link
    or content. Sizes are None where the file is not."""

    path: str
    change: str
    what: tuple[str, ...]
    before: int | None
    after: int | None


class Inventory:
    """The files, packages and wheels of some layers of two images; a context manager."""

    def __init__(self) -> None:
        # An empty name: SQLite keeps what does not fit into its cache in a file that nobody else sees.
        self._database = sqlite3.connect("", isolation_level=None, check_same_thread=False)
        self._database.execute("PRAGMA journal_mode = OFF")
        self._database.execute(_TABLE)
        self._packages: tuple[dict[str, str], dict[str, str]] = ({}, {})
        self._wheels: tuple[dict[str, str], dict[str, str]] = ({}, {})

    def __enter__(self) -> Inventory:
        return self

    def __exit__(self, *_: object) -> None:
        self._database.close()

    def packages(self, side: int) -> Mapping[str, str]:
        """The Debian packages that the layers of a side record, with their versions."""
        return self._packages[side]

    def wheels(self, side: int) -> Mapping[str, str]:
        """The Python distributions in the layers of a side, with their versions."""
        return self._wheels[side]

    def add(
        self,
        side: int,
        source: Source,
        layers: Sequence[LayerSide],
        advance: Callable[[int], None],
        base: int | None = None,
    ) -> None:
        """Reads layers, bottom first; what an upper one replaces or deletes is gone. Raises `LayerError`.

        What a layer deletes that is not among those that are read counts as removed, too. With `base`, wheels are only what a
        lock could name: those in the environment of ours, above so many layers of somebody else.
        """
        for number, layer in enumerate(layers):
            self._database.execute("BEGIN")
            with source.blob(layer.blob) as blob, TarReader(blob) as reader:
                while member := reader.next():
                    path = self._member(side, number, member, reader)
                    if base is None or (number >= base and path.startswith(_ENVIRONMENT)):
                        self._recognise(side, path)
            self._database.execute("COMMIT")
            advance(layer.blob.size)

    def changes(self) -> Iterator[FileChange]:
        """What differs, in the order of paths."""
        for path, *values, after in self._database.execute(_SELECT):
            before = values.pop(5)
            one, other = values[:5], values[5:]
            text = bytes(path).decode("utf-8", "surrogateescape")
            if one[0] in _GONE or other[0] in _GONE:
                is_added = other[0] not in _GONE or (one[0], other[0]) == (_DELETED, None)
                yield FileChange(text, "added" if is_added else "removed", (), before, after)
                continue
            what = tuple(name for name, a, b in zip(_COLUMNS, one, other, strict=True) if a != b)
            yield FileChange(text, "changed", what, before, after)

    def _member(self, side: int, layer: int, member: Found, reader: TarReader) -> str:
        entry = member.entry
        path = normal(entry.name)
        folder, _, name = path.rpartition("/")
        if name == _OPAQUE:
            self._remove_below(side, layer, folder)
        elif name.startswith(_WHITEOUT):
            gone = f"{folder}/{name.removeprefix(_WHITEOUT)}".lstrip("/")
            self._database.execute(
                "DELETE FROM files WHERE side = ? AND path = ? AND layer < ?", (side, _blob(gone), layer)
            )
            self._remove_below(side, layer, gone)
            deleted = (side, _blob(gone), layer, _DELETED, None, None, None, None, None)
            self._database.execute(_INSERT, deleted)  # a layer that is not read may have it
        elif path:
            owner = f"{entry.uid}:{entry.gid}"
            content = self._content(side, path, reader) if entry.type == "reg" else b""
            row = (side, _blob(path), layer, entry.type, entry.mode & 0o7777, owner)
            values = (*row, _blob(entry.linkname), entry.size, content)
            self._database.execute(_INSERT, values)
        return path

    def _remove_below(self, side: int, layer: int, folder: str) -> None:
        """Deletes what lower layers have in a folder."""
        first, last = (_blob(f"{folder}/"), _blob(f"{folder}0")) if folder else (b"", b"\xff" * 8)
        self._database.execute(
            "DELETE FROM files WHERE side = ? AND path >= ? AND path < ? AND layer < ?", (side, first, last, layer)
        )

    def _recognise(self, side: int, path: str) -> None:
        if match := _DIST_INFO.fullmatch(path):
            self._wheels[side][canonical(match[1])] = match[2]

    def _content(self, side: int, path: str, reader: TarReader) -> bytes:
        """The digest of a file's content; a list of Debian packages is read on the way."""
        if _STATUS.fullmatch(path) and (data := reader.read(_MAX_STATUS)) is not None:
            self._packages[side].update(_packages(data))
            return hashlib.sha256(data).digest()
        hashed = hashlib.sha256()
        for piece in reader.content():
            hashed.update(piece)
        return hashed.digest()


def _packages(data: bytes) -> Iterator[tuple[str, str]]:
    """Names and versions of the stanzas of a status file; those that are not installed are left out."""
    for stanza in data.decode("utf-8", "replace").split("\n\n"):
        fields = dict(line.partition(": ")[::2] for line in stanza.splitlines() if not line.startswith((" ", "\t")))
        name, version = fields.get("Package"), fields.get("Version")
        if name and version and fields.get("Status", "installed").endswith("installed"):
            yield name, version


def _blob(text: str) -> bytes:
    return text.encode("utf-8", "surrogateescape")
