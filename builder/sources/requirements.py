"""What Python packages a profile asks for: requirements in place, or a file of one of three kinds, read strictly."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from builder.errors import BuilderError
from builder.oci.digest import Digest
from builder.oci.spec import encode
from builder.profile.forms import PLAIN_REQUIREMENT, canonical
from builder.sources.redacting import redact

_INDEX_OPTIONS = ("-i", "--index-url", "--extra-index-url", "--no-index", "-f", "--find-links", "--trusted-host")
_WHEELS_ONLY = ("--only-binary", "--prefer-binary")
_COMMENT = re.compile(r"(^|\s)#.*$")
_PATH = re.compile(r"[./~].*|\w+:/.*|(git|hg|svn|bzr)\+.*|[^@;]*\.(whl|zip|tgz|tar\.\w+)")


class Kind(StrEnum):
    """What a profile's requirements are written in."""

    LIST = "requirements"
    PYLOCK = "pylock.toml"
    UV_LOCK = "uv.lock"


@dataclass(frozen=True)
class Requirements:
    """`lines` are requirements (PEP 508); `file` is a requirements.txt, whose lines are added to them, or a pylock.toml
    or uv.lock, which stands alone. `constraints` limit the versions of what is needed anyway."""

    lines: tuple[str, ...] = ()
    file: Path | None = None
    constraints: tuple[str, ...] = ()

    @property
    def kind(self) -> Kind:
        if self.file is None:
            return Kind.LIST
        if self.file.name == "uv.lock":
            return Kind.UV_LOCK
        from packaging.pylock import is_valid_pylock_path  # it takes long to import, and lists are the rule

        return Kind.PYLOCK if is_valid_pylock_path(self.file) else Kind.LIST


@dataclass(frozen=True)
class RequirementList:
    """`hashes` are the sha256 that a project's wheel may have; None if no line has any."""

    requirements: tuple[str, ...]
    constraints: tuple[str, ...] = ()
    hashes: Mapping[str, frozenset[str]] | None = None


def request(requirements: Requirements) -> Digest:
    """The digest of what is asked for, to tell whether a lock still answers it: comments and order do not count."""
    match requirements.kind:
        case Kind.LIST:
            asked = read_list(requirements)
            hashes = {name: sorted(values) for name, values in (asked.hashes or {}).items()}
            document: dict[str, object] = {
                "requirements": sorted(set(asked.requirements)),
                "constraints": sorted(set(asked.constraints)),
                "hashes": hashes if asked.hashes is not None else None,
            }
        case Kind.PYLOCK:
            document = {"pylock.toml": str(Digest.of(read_file(requirements)))}
        case Kind.UV_LOCK:
            project = Requirements(file=project_file(requirements))
            document = {
                "uv.lock": str(Digest.of(read_file(requirements))),
                "pyproject.toml": str(Digest.of(read_file(project))),
            }
    return Digest.of(encode(document))


def project_file(requirements: Requirements) -> Path:
    """The pyproject.toml that a uv.lock belongs to."""
    assert requirements.file is not None
    return requirements.file.with_name("pyproject.toml")


def read_file(requirements: Requirements) -> bytes:
    """The bytes of a pylock.toml or uv.lock."""
    assert requirements.file is not None
    if requirements.lines:
        raise BuilderError(
            f"{requirements.file}: a lock file stands alone, it cannot be mixed with other requirements",
            hint="add them to the project that the file was made from, and make the file again",
        )
    return _read(requirements.file)


def read_list(requirements: Requirements) -> RequirementList:
    """The requirements of a profile; raises `BuilderError` that names everything that cannot be used in them."""
    reader = _Reader()
    for line in requirements.lines:
        reader.read_line(line, f"requirement {redact(line)!r}", None)
    if requirements.file is not None:
        reader.read_file(requirements.file, constraint=False)
    for line in requirements.constraints:
        reader.read_line(line, f"constraint {line!r}", None, constraint=True)
    return reader.result()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise BuilderError(
            f"{path}: cannot be read: {error.strerror}", hint="correct python.requirements in the profile"
        ) from error


@dataclass
class _Reader:
    requirements: list[str] = field(default_factory=list)
    constraints: list[str] = field(default_factory=list)
    hashes: dict[str, set[str]] = field(default_factory=dict)
    unpinned: list[str] = field(default_factory=list)
    require_hashes: bool = False
    problems: list[str] = field(default_factory=list)
    seen: set[tuple[Path, bool]] = field(default_factory=set)

    def result(self) -> RequirementList:
        if self.require_hashes:
            self.problems += [f"{where}: needs `==` and a --hash, because others have one" for where in self.unpinned]
        if self.problems:
            what = "\n  ".join(self.problems)
            raise BuilderError(f"these Python requirements cannot be used:\n  {what}", hint="correct them, then lock")
        hashes = {name: frozenset(values) for name, values in self.hashes.items()} if self.require_hashes else None
        return RequirementList(tuple(self.requirements), tuple(self.constraints), hashes)

    def read_file(self, path: Path, *, constraint: bool) -> None:
        if (path.resolve(), constraint) in self.seen:
            return
        self.seen.add((path.resolve(), constraint))
        try:
            text = _read(path).decode("utf-8-sig")
        except UnicodeDecodeError:
            self.problems.append(f"{path}: not UTF-8 text")
            return
        for number, line in _logical_lines(text):
            self.read_line(line, f"{path}:{number}", path, constraint=constraint)

    def read_line(self, line: str, where: str, file: Path | None, *, constraint: bool = False) -> None:
        line = _COMMENT.sub("", line).strip()
        if line.startswith("-"):
            self._option(line, where, file, constraint)
        elif line:
            self._requirement(line, where, constraint)

    def _option(self, line: str, where: str, file: Path | None, constraint: bool) -> None:
        match = re.match(r"(--[\w-]+|-\w)(?:\s*=\s*|\s*)(.*)$", line)
        name, value = (match[1], match[2].strip()) if match else (line, "")
        if name in ("-r", "--requirement", "-c", "--constraint") and value and file is not None:
            if "://" in value:
                self.problems.append(f"{where}: a requirements file cannot be taken from the network")
            else:
                self.read_file(file.parent / value, constraint=constraint or name in ("-c", "--constraint"))
        elif name == "--require-hashes":
            self.require_hashes = True
        elif name in _INDEX_OPTIONS:
            self.problems.append(
                f"{where}: {name}: indexes come from your own configuration (UV_DEFAULT_INDEX, pip.conf …), "
                "not from the requirements"
            )
        elif name in ("-e", "--editable"):
            self.problems.append(
                f"{where}: {name}: an editable install cannot be put into an image; build a wheel of it"
            )
        elif name not in _WHEELS_ONLY:
            self.problems.append(f"{where}: {name}: this option is not understood here")

    def _requirement(self, line: str, where: str, constraint: bool) -> None:
        text, *options = re.split(r"\s+(?=--)", line)
        if _PATH.fullmatch(text):
            self.problems.append(f"{where}: {_DIRECT}")
            return
        if plain := PLAIN_REQUIREMENT.fullmatch(text):
            (self.constraints if constraint else self.requirements).append(text)
            self._hashes(plain[1], plain[2] == "==", options, where, constraint)
            return
        from packaging.requirements import InvalidRequirement, Requirement  # it takes long to import

        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            self.problems.append(f"{where}: {redact(text)!r}: {str(error).splitlines()[0]}")
            return
        if requirement.url is not None:
            self.problems.append(f"{where}: {requirement.name}: {_DIRECT}")
            return
        (self.constraints if constraint else self.requirements).append(str(requirement))
        pinned = any(
            s.operator == "===" or (s.operator == "==" and "*" not in s.version) for s in requirement.specifier
        )
        self._hashes(requirement.name, pinned, options, where, constraint)

    def _hashes(self, name: str, pinned: bool, options: list[str], where: str, constraint: bool) -> None:
        allowed: set[str] = set()
        for option in options:
            match = re.fullmatch(r"--hash(?:=|\s+)(\w+):([0-9a-fA-F]+)", option)
            if not match:
                self.problems.append(f"{where}: {option.split('=')[0]}: this option is not understood here")
            elif match[1] == "sha256":
                allowed.add(match[2].lower())
        if any(option.startswith("--hash") for option in options):
            self.require_hashes = True
            if not allowed:
                self.problems.append(f"{where}: needs a sha256 hash")
        self.hashes.setdefault(canonical(name), set()).update(allowed)
        if not constraint and not (pinned and allowed):
            self.unpinned.append(where)


_DIRECT = "only packages of an index can be locked, not URLs, repositories or paths"


def _logical_lines(text: str) -> Iterator[tuple[int, str]]:
    """Lines with their numbers, joined where one ends with a backslash."""
    start, joined = 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        start = start or number
        if line.endswith("\\") and not line.lstrip().startswith("#"):
            joined += line[:-1] + " "
            continue
        yield start, joined + line
        start, joined = 0, ""
    if joined:
        yield start, joined
