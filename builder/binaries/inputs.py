"""The facts of whole inputs: a wheel, a Debian package, the tar of an image layer. Foreign bytes, read once; memory does not
grow with them. A binary that is too large for memory lies in a spool file while it is read."""

from __future__ import annotations

import hashlib
import os
import tempfile
import zlib
from collections.abc import Iterable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import BinaryIO

from builder.binaries import elf, fatbin
from builder.binaries.facts import BinaryFacts, InputFacts
from builder.binaries.scan import scan
from builder.binaries.window import BinaryError, Window
from builder.errors import HostileInputError
from builder.layers.tar import Entry, Inline, Kind, Region
from builder.layers.unpack import chunks
from builder.layers.untar import TarReader, normal, readable
from builder.sources import deb, rootfs
from builder.sources.archive import DEFLATED, ZipMember, read_members
from builder.sources.wheel import VENV, Places, site_packages

_HEAD = 256
_PYTHON = "3"
_MAX_FILES = 1_000_000


def of_wheel(path: Path, archive: str = "", *, spool: Path | None = None) -> InputFacts:
    """The facts of the wheel at `path`, as it is installed for any Python; `archive` is its file name, for errors.

    What installing itself makes (scripts of entry points, INSTALLER) is not in it. `spool` is a folder for temporary
    files. Raises `HostileInputError` for a zip archive that is not in order, or has no or several `.dist-info`.
    """
    archive = archive or path.name
    found = _Collector()
    with path.open("rb") as file, _Spool(spool) as spooled:
        members = read_members(file, archive)
        tops = {member.name.partition("/")[0] for member in members}
        infos = sorted(top for top in tops if top.endswith(".dist-info"))
        if len(infos) != 1:
            raise HostileInputError(f"{archive}: a wheel has one .dist-info directory, this one has {len(infos)}")
        places = Places(infos[0], _PYTHON, archive)
        for member in members:
            place = _installed(places.of(member.name)[0])
            found.file(place, member.size, f"{member.crc32:08x}")
            if _head(file, member) == elf.MAGIC:
                label = f"{archive}: {member.name}"
                found.binary(place, spooled.hold(chunks(member.content(path, archive)), label))
    return found.facts()


def of_deb(path: Path, label: str = "", *, spool: Path | None = None) -> InputFacts:
    """The facts of the Debian package at `path`, with paths as in the image: below a merged `/usr`, without documentation.

    Raises `HostileInputError` for what is no .deb in order.
    """
    found = _Collector()
    with tempfile.TemporaryDirectory(dir=spool) as folder, ExitStack() as stack:
        package = deb.read(path, Path(folder) / "data.tar", label)
        file = stack.enter_context((Path(folder) / "data.tar").open("rb"))
        spooled = stack.enter_context(_Spool(Path(folder)))
        for entry in package.entries:
            for placed in rootfs.placed(entry, package):
                _deb_entry(placed, f"{package.label}: {placed.path}", file, spooled, found)
    return found.facts()


def of_tar_stream(blob: BinaryIO, label: str = "", *, spool: Path | None = None) -> InputFacts:
    """The facts of an image layer as it lies in a registry: a tar, or a gzip of one. `label` names it in errors.

    Whiteouts (`.wh.…`) are files among its files. A hard link has the facts of what it links to. Raises `LayerError` where
    the layer is damaged, `HostileInputError` for a path that leaves the root.
    """
    found = _Collector()
    with TarReader(blob) as tar, _Spool(spool) as spooled:
        while item := tar.next():
            entry = item.entry
            place = _absolute(entry.name, label)
            if entry.type == "symlink":
                found.link(place, entry.linkname)
            elif entry.type == "hardlink":
                found.copy(_absolute(entry.linkname, label), place)
            elif entry.type == "reg":
                _tar_file(tar, place, entry.size, label, spooled, found)
            else:
                found.forget(place)
    return found.facts()


def _deb_entry(entry: Entry, label: str, tar: BinaryIO, spooled: _Spool, found: _Collector) -> None:
    place = f"/{entry.path}"
    if entry.kind is Kind.SYMLINK:
        found.link(place, entry.linkname)
    elif entry.kind is Kind.FILE:
        content = entry.content
        sha256 = hashlib.sha256()
        for piece in chunks(content):
            sha256.update(piece)
        found.file(place, entry.size, sha256.hexdigest())
        if isinstance(content, Region):
            window = Window(tar.fileno(), content.offset, content.size, label)
            if window.size >= _HEAD and window.read(0, len(elf.MAGIC), "the file") == elf.MAGIC:
                found.binary(place, window)
        elif isinstance(content, Inline) and content.data.startswith(elf.MAGIC):
            found.binary(place, spooled.hold([content.data], label))


def _tar_file(tar: TarReader, place: str, size: int, label: str, spooled: _Spool, found: _Collector) -> None:
    sha256 = hashlib.sha256()
    head = b""
    content = map(bytes, tar.content())
    for piece in content:
        sha256.update(piece)
        head += piece
        if len(head) >= len(elf.MAGIC):
            break
    window = None
    if head.startswith(elf.MAGIC):
        window = spooled.hold(_hashed(head, content, sha256), f"{label}: {readable(place)}".removeprefix(": "))
    else:
        for piece in content:
            sha256.update(piece)
    found.file(place, size, sha256.hexdigest())
    if window:
        found.binary(place, window)


def _hashed(head: bytes, rest: Iterable[bytes], sha256: hashlib._Hash) -> Iterator[bytes]:
    yield head
    for piece in rest:
        sha256.update(piece)
        yield piece


class _Collector:
    """Gathers facts by path; a path that comes again takes the place of what it was."""

    def __init__(self) -> None:
        self._files: dict[str, tuple[str, int, str]] = {}
        self._links: dict[str, str] = {}
        self._binaries: dict[str, BinaryFacts] = {}
        self._damaged: dict[str, str] = {}

    def file(self, path: str, size: int, checksum: str) -> None:
        self.forget(path)
        self._files[path] = path, size, checksum
        self._check()

    def link(self, path: str, target: str) -> None:
        self.forget(path)
        self._links[path] = target
        self._check()

    def copy(self, source: str, path: str) -> None:
        if source == path or source not in self._files:
            return
        self.file(path, *self._files[source][1:])
        if binary := self._binaries.get(source):
            self._binaries[path] = replace(binary, path=path)

    def forget(self, path: str) -> None:
        for gathered in (self._files, self._links, self._binaries, self._damaged):
            gathered.pop(path, None)

    def binary(self, path: str, file: Window) -> None:
        try:
            self._binaries[path] = read_binary(path, file)
        except BinaryError as error:
            self._damaged[path] = str(error)

    def facts(self) -> InputFacts:
        return InputFacts(
            tuple(sorted(self._binaries.values(), key=lambda item: item.path)),
            tuple(sorted(self._links.items())),
            tuple(sorted(self._files.values())),
            tuple(sorted(self._damaged.items())),
        )

    def _check(self) -> None:
        if len(self._files) + len(self._links) > _MAX_FILES:
            raise HostileInputError(f"it has more than {_MAX_FILES} files")


def read_binary(path: str, file: Window) -> BinaryFacts:
    """The facts of one ELF file. Raises `BinaryError` where it is damaged."""
    found = elf.read(file)
    inside = scan(file, found.mapped)
    gpu = fatbin.read(file, found.gpu, inside.fatbins)
    if found.machine == "cuda":
        gpu = fatbin.of_cubin(file.size, found.flags, found.abi)
    return BinaryFacts(
        path=path,
        size=file.size,
        machine=found.machine,
        soname=found.soname,
        needed=found.needed,
        rpath=found.rpath,
        runpath=found.runpath,
        needs=found.needs,
        defines=found.defines,
        opens=inside.libraries,
        sass=gpu.sass,
        ptx=gpu.ptx,
        isa=f"{gpu.isa[0]}.{gpu.isa[1]}" if gpu.isa else None,
        code=gpu.code,
    )


class _Spool:
    """A temporary file without a name that holds one binary after the other."""

    def __init__(self, folder: Path | None) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 (closed by `__exit__`)

    def __enter__(self) -> _Spool:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def hold(self, content: Iterable[bytes], label: str) -> Window:
        """The content as a file, until the next one is held."""
        self._file.seek(0)
        self._file.truncate()
        for piece in content:
            self._file.write(piece)
        self._file.flush()
        return Window(self._file.fileno(), 0, self._file.tell(), label)


def _head(file: BinaryIO, member: ZipMember) -> bytes:
    """The first bytes of a member, or less."""
    data = os.pread(file.fileno(), min(member.compressed_size, _HEAD), member.offset)
    if member.method != DEFLATED:
        return data[: len(elf.MAGIC)]
    try:
        return zlib.decompressobj(-15).decompress(data, len(elf.MAGIC))
    except zlib.error:
        return b""  # packing, which reads all of it, says what is wrong


def _installed(path: str) -> str:
    """A path in the image as facts have it."""
    site = site_packages(_PYTHON)
    if path.startswith(f"{site}/"):
        return f"site/{path.removeprefix(f'{site}/')}"
    return f"venv/{path.removeprefix(f'{VENV}/')}"


def _absolute(name: str, label: str) -> str:
    path = normal(name)
    if ".." in path.split("/"):
        raise HostileInputError(f"{label}: {readable(name)[:200]!r} leaves the root".removeprefix(": "))
    return f"/{path}"
