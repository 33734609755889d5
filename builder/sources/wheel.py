"""A wheel becomes the entries of the image's one virtual environment (the binary distribution format specification).

The rules are those of the `installer` project: `.data` trees go to their places, scripts get the environment's own
interpreter, entry points become scripts, and RECORD lists what is really there. No code of the wheel runs.
"""

from __future__ import annotations

import base64
import configparser
import csv
import hashlib
import io
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from packaging.utils import InvalidName, canonicalize_name
from packaging.version import InvalidVersion, Version

from builder.errors import HostileInputError
from builder.layers.content import read
from builder.layers.tar import Entry, Inline
from builder.sources.archive import ZipMember, read_members

VENV = "opt/venv"
"""The environment's place in every image: a rule of the format, so that images share their wheels' layers."""
INTERPRETER = f"/{VENV}/bin/python"
_INSTALLER = b"layerwright\n"
_MAX_METADATA = 64 << 20
_ALGORITHMS = ("sha256", "sha384", "sha512")
_SIGNATURES = ("RECORD.jws", "RECORD.p7s")
_MAX_SCRIPT_NAME = 255
_SHEBANG = re.compile(rb"#!pythonw?[\d.]*((?:\s.*)?)")
_REFERENCE = re.compile(r"(?P<module>[\w.]+)\s*:\s*(?P<attribute>[\w.]+)\s*(\[.*\])?")
_SCRIPT_NAME = re.compile(r"(?!\s)[^/\\\x00-\x1f\x7f-\x9f]+(?<!\s)")


@dataclass(frozen=True)
class Installed:
    """One file of an installed wheel; `record` is its row in RECORD: hash and size in bytes, as text."""

    entry: Entry
    record: tuple[str, str]


@dataclass(frozen=True)
class WheelFiles:
    """An installed wheel before its RECORD is written: `sources` are the paths of its Python modules, to be compiled."""

    archive: str
    dist_info: str
    files: tuple[Installed, ...]
    sources: tuple[str, ...]


def site_packages(python: str) -> str:
    """Where wheels are installed, for the Python version `3.N`."""
    return f"{VENV}/lib/python{python}/site-packages"


def install(path: Path, archive: str, name: str, version: str, python: str) -> WheelFiles:
    """What installing the wheel at `path` for Python `3.N` puts into the image.

    `archive` is its file name, `name` and `version` what the lock says it is. Raises `HostileInputError` where the wheel
    contradicts itself, its RECORD or the lock.
    """
    with path.open("rb") as file:
        members = {member.name: member for member in read_members(file, archive)}
        dist_info = _dist_info(members, archive, name, version)
        metadata = _Metadata(path, archive, members)
        _check_wheel_version(metadata.text(f"{dist_info}/WHEEL"), archive)
        recorded = _recorded(metadata.text(f"{dist_info}/RECORD"), dist_info, members, archive)
        places = Places(dist_info, python, archive)
        files = [
            _installed(member, *places.of(member.name), recorded[member.name], path, metadata, archive)
            for member in members.values()
            if member.name.removeprefix(dist_info + "/") not in ("RECORD", "INSTALLER", *_SIGNATURES)
        ]
        if f"{dist_info}/entry_points.txt" in members:
            files += _entry_points(metadata.text(f"{dist_info}/entry_points.txt"), archive)
    site = site_packages(python)
    files.append(generated(f"{site}/{dist_info}/INSTALLER", _INSTALLER))
    _check_unique([*(file.entry.path for file in files), f"{site}/{dist_info}/RECORD"], archive)
    modules = sorted(
        file.entry.path
        for file in files
        if file.entry.path.startswith(site + "/") and file.entry.path.endswith(".py") and file.entry.size
    )
    return WheelFiles(archive, f"{site}/{dist_info}", tuple(files), tuple(modules))


def with_record(wheel: WheelFiles, bytecode: Sequence[Entry]) -> tuple[Entry, ...]:
    """All entries of the wheel with its bytecode and a RECORD that is true to them (bytecode without hash, as pip
    and installer list it)."""
    site = wheel.dist_info.rpartition("/")[0]
    rows = [(relative(file.entry.path, site), *file.record) for file in wheel.files]
    rows += [(relative(entry.path, site), "", "") for entry in bytecode]
    rows.append((relative(f"{wheel.dist_info}/RECORD", site), "", ""))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(sorted(rows))
    record = Entry(f"{wheel.dist_info}/RECORD", content=Inline(text.getvalue().encode()))
    return (*(file.entry for file in wheel.files), *bytecode, record)


class _Metadata:
    """Reads small members into memory."""

    def __init__(self, path: Path, archive: str, members: Mapping[str, ZipMember]) -> None:
        self._path, self._archive, self._members = path, archive, members

    def text(self, name: str) -> str:
        member = self._members.get(name)
        if member is None:
            raise HostileInputError(f"{self._archive}: it has no {name}")
        try:
            return self.bytes(member).decode("utf-8")
        except UnicodeDecodeError as error:
            raise HostileInputError(f"{self._archive}: {name} is not UTF-8") from error

    def bytes(self, member: ZipMember) -> bytes:
        return read(member.content(self._path, self._archive), _MAX_METADATA)


def _dist_info(members: Iterable[str], archive: str, name: str, version: str) -> str:
    """The one `.dist-info` directory, which has to be that of the locked project and version."""
    found = sorted({member.partition("/")[0] for member in members if ".dist-info/" in member.partition("/")[0] + "/"})
    if len(found) != 1:
        raise HostileInputError(f"{archive}: a wheel has one .dist-info directory, this one has {len(found)}")
    stem = found[0].removesuffix(".dist-info")
    if _identity(stem) != _identity(f"{canonicalize_name(name).replace('-', '_')}-{version}"):
        raise HostileInputError(
            f"{archive}: it is {' '.join(stem.rsplit('-', 1))} by its metadata, but the lock says {name} {version}"
        )
    return found[0]


def _identity(stem: str) -> tuple[str, str]:
    """The project and version in the `name-version` of a metadata directory, so that all spellings of them are equal."""
    project, _, release = stem.rpartition("-")
    try:
        # A local version's `+` may be spelled `_`, as in older names of wheels.
        return canonicalize_name(project, validate=True), str(Version(release.replace("_", "+")))
    except (InvalidName, InvalidVersion):
        return project, release


def _check_wheel_version(text: str, archive: str) -> None:
    match = re.search(r"^Wheel-Version:\s*(\d+)\.\d+\s*$", text, re.MULTILINE)
    if not match or match[1] != "1":
        raise HostileInputError(f"{archive}: its WHEEL file asks for another version of the wheel format than 1.x")


def _recorded(
    text: str, dist_info: str, members: Mapping[str, ZipMember], archive: str
) -> dict[str, tuple[str, str] | None]:
    """What RECORD says of each member: (hash, size) as text. Every file has to be there, and nothing else."""
    recorded: dict[str, tuple[str, str] | None] = {}
    try:
        rows = list(csv.reader(io.StringIO(text)))
    except csv.Error as error:
        raise HostileInputError(f"{archive}: RECORD cannot be read: {error}") from error
    unhashable = {f"{dist_info}/{name}" for name in ("RECORD", *_SIGNATURES)}
    for row in rows:
        if len(row) != 3:
            raise HostileInputError(f"{archive}: RECORD has the row {row!r}, which is not path, hash, size")
        path, hashed, size = row
        if path not in members:
            raise HostileInputError(f"{archive}: RECORD lists {path!r}, which is not in the wheel")
        if path in recorded:
            raise HostileInputError(f"{archive}: RECORD lists {path} twice")
        if not hashed and path not in unhashable:
            raise HostileInputError(f"{archive}: RECORD has no hash for {path}")
        if size and size != str(members[path].size):
            raise HostileInputError(
                f"{archive}: RECORD says that {path} has {size!r} bytes, it has {members[path].size}"
            )
        recorded[path] = (hashed, str(members[path].size)) if hashed else None
    missing = sorted(set(members) - set(recorded) - (unhashable - {f"{dist_info}/RECORD"}))
    if missing:
        raise HostileInputError(f"{archive}: RECORD does not list {missing[0]}, which is in the wheel")
    return recorded


class Places:
    """Where the members of a wheel belong in the image, by its `.dist-info` directory."""

    def __init__(self, dist_info: str, python: str, archive: str) -> None:
        stem = dist_info.removesuffix(".dist-info")
        project = stem.rpartition("-")[0]
        self._identity = _identity(stem)
        self._archive = archive
        site = site_packages(python)
        self._site = site
        self._schemes = {
            "purelib": site,
            "platlib": site,
            "scripts": f"{VENV}/bin",
            "headers": f"{VENV}/include/site/python{python}/{project}",
            "data": VENV,
        }

    def of(self, name: str) -> tuple[str, bool]:
        """The path in the image, and whether it is a script."""
        top, _, below = name.partition("/")
        if not top.endswith(".data") or not below or _identity(top.removesuffix(".data")) != self._identity:
            return f"{self._site}/{name}", False
        scheme, _, rest = below.partition("/")
        if scheme not in self._schemes or not rest:
            raise HostileInputError(f"{self._archive}: {name} belongs to no known scheme ({', '.join(self._schemes)})")
        return f"{self._schemes[scheme]}/{rest}", scheme == "scripts"


def _installed(
    member: ZipMember,
    place: str,
    is_script: bool,
    recorded: tuple[str, str] | None,
    path: Path,
    metadata: _Metadata,
    archive: str,
) -> Installed:
    if recorded is None:
        raise HostileInputError(f"{archive}: RECORD has no hash for {member.name}")
    check = _hash(recorded[0], member.name, archive)
    if is_script and member.size <= _MAX_METADATA:
        data = metadata.bytes(member)
        if hashlib.new(check[0], data).hexdigest() != check[1]:
            raise HostileInputError(f"{archive}: {member.name}: it has another {check[0]} than RECORD says")
        line, newline, rest = data.partition(b"\n")
        if shebang := _SHEBANG.fullmatch(line.rstrip(b"\r")):
            command = b" ".join(filter(None, (INTERPRETER.encode(), shebang[1].strip())))
            return generated(place, b"#!" + command + newline + rest, 0o755)
    mode = 0o755 if is_script or member.executable else 0o644
    content = member.content(path, archive, check)
    return Installed(Entry(place, mode=mode, content=content), recorded)


def _hash(text: str, name: str, archive: str) -> tuple[str, str]:
    """RECORD's `algorithm=urlsafe base64 without padding` as (algorithm, hexadecimal digest)."""
    algorithm, _, value = text.partition("=")
    if algorithm not in _ALGORITHMS:
        raise HostileInputError(f"{archive}: RECORD hashes {name} with {algorithm!r}, not with sha256 or better")
    try:
        digest = base64.b64decode(value + "=" * (-len(value) % 4), b"-_", validate=True)
    except ValueError as error:
        raise HostileInputError(f"{archive}: RECORD has a hash of {name} that is not base64: {value!r}") from error
    return algorithm, digest.hex()


def _entry_points(text: str, archive: str) -> list[Installed]:
    """The scripts of `console_scripts` and `gui_scripts` (entry points specification)."""
    parser = configparser.ConfigParser(delimiters=("=",), strict=True, interpolation=None)
    parser.optionxform = str  # type: ignore[assignment,method-assign]
    try:
        parser.read_string(text)
    except configparser.Error as error:
        reason = str(error).splitlines()[0]
        raise HostileInputError(f"{archive}: entry_points.txt cannot be read: {reason}") from error
    scripts = []
    for section in ("console_scripts", "gui_scripts"):
        for name, reference in parser.items(section) if parser.has_section(section) else ():
            match = _REFERENCE.fullmatch(reference.strip())
            named = _SCRIPT_NAME.fullmatch(name) and name not in (".", "..") and len(name.encode()) <= _MAX_SCRIPT_NAME
            if not match or not named:
                raise HostileInputError(f"{archive}: the entry point {name!r} = {reference!r} cannot be a script")
            scripts.append(generated(f"{VENV}/bin/{name}", _script(match["module"], match["attribute"]), 0o755))
    return scripts


def _script(module: str, attribute: str) -> bytes:
    top = attribute.partition(".")[0]
    return (
        f"#!{INTERPRETER}\n"
        "import sys\n"
        f"from {module} import {top}\n"
        'if __name__ == "__main__":\n'
        '    sys.argv[0] = sys.argv[0].removesuffix(".exe")\n'
        f"    sys.exit({attribute}())\n"
    ).encode()


def generated(path: str, data: bytes, mode: int = 0o644) -> Installed:
    """A file that no wheel has, with its row for RECORD."""
    digest = base64.urlsafe_b64encode(hashlib.sha256(data).digest()).rstrip(b"=").decode()
    return Installed(Entry(path, mode=mode, content=Inline(data)), (f"sha256={digest}", str(len(data))))


def _check_unique(paths: Iterable[str], archive: str) -> None:
    seen: set[str] = set()
    for path in paths:
        if path in seen:
            raise HostileInputError(f"{archive}: it installs /{path} twice")
        seen.add(path)


def relative(path: str, site: str) -> str:
    """A path as RECORD writes it: relative to site-packages."""
    if path.startswith(site + "/"):
        return path.removeprefix(site + "/")
    return "../" * (len(site.split("/")) - len(VENV.split("/"))) + path.removeprefix(VENV + "/")
