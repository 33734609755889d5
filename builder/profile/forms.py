"""The forms of text in a profile: names, paths, ports. Each is a type hint that `documents` checks."""

from __future__ import annotations

import posixpath
import re
from dataclasses import dataclass
from typing import Annotated, Any, ClassVar

from builder.documents import Choice, Form, quote
from builder.oci import spec

PYTHON_OF = {"bookworm": "3.11", "trixie": "3.13"}
"""The Debian suites that are known, and the Python of each."""

_PART = r"(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]{1,255}"
_CLEAN = r"[^\x00-\x1f\x7f]"


def _python_advice(text: str) -> str | None:
    exact = re.match(r"(3\.(?:0|[1-9][0-9]?))\.", text)
    return f'write "{exact[1]}", the lock holds the exact version' if exact else None


def _name_advice(text: str) -> str | None:
    near = re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
    return f"write {near}" if near else None


def _package_advice(text: str) -> str | None:
    name = re.match(r"[a-z0-9][a-z0-9+.-]+(?=[=:/ ])", text)
    return f"write {name[0]}, versions are in the lock and architectures in platforms" if name else None


def _absolute_advice(text: str) -> str | None:
    near = posixpath.normpath("/" + text.lstrip("/"))
    return f"write {near}" if near != text and text and re.fullmatch(_ABSOLUTE, near) else None


def _relative_advice(text: str) -> str | None:
    if "://" in text or re.match(r"git\+|git@", text):
        return "this version knows local files only"
    if text.startswith("/"):
        return "paths are relative to the folder of the profile"
    if "/../" in f"{text}/":
        return f"write {posixpath.normpath(text)}, if that is what is meant"
    return None


def _reference_advice(text: str) -> str | None:
    if "://" in text:
        return "a destination has no scheme: write HOST/REPOSITORY:TAG"
    return f"write oci:{text} for a folder, or HOST/{text} for a registry" if text else None


def _place_advice(text: str) -> str | None:
    untagged, _, tag = text.rpartition(":")
    if re.fullmatch(_PLACE, untagged) and "/" not in tag:
        return f"a model is tagged by its name: write {untagged}"
    return _reference_advice(text)


PLAIN_REQUIREMENT = re.compile(r"([a-zA-Z0-9](?:[a-zA-Z0-9._-]*[a-zA-Z0-9])?)(?:(==|!=|<=|>=|<|>)[0-9]+(?:\.[0-9]+)*)?")
"""What most requirements look like, a name (group 1) and a comparison (group 2): right, and canonical as they are (PEP 508)."""


def canonical(project: str) -> str:
    """The one spelling of a project's name (PEP 503), as `packaging` has it, whose import takes long."""
    return re.sub(r"[-_.]+", "-", project).lower()


def _image_advice(text: str) -> str | None:
    if "://" in text:
        return "an image has no scheme: write HOST/REPOSITORY:TAG"
    return f"write HOST/{text} for a registry: no host is guessed; or oci:{text} for a folder" if text else None


def _value_advice(text: str) -> str | None:
    near = re.sub(r"\W", "_", text)
    if text in _TAKEN:
        return "the word is taken"
    return f"write {near}" if re.fullmatch(_VALUE, near) else None


def _requirement(text: str) -> str | None:
    if PLAIN_REQUIREMENT.fullmatch(text):
        return None
    # Only `packaging` knows the whole grammar, and only profiles with other requirements pay for its import.
    from packaging.requirements import InvalidRequirement, Requirement

    try:
        requirement = Requirement(text)
    except InvalidRequirement:
        return f"expected a requirement such as numpy>=2, found {quote(text)}"
    if requirement.url is not None:
        return "a requirement is found by its name: addresses come from your configuration of pip or uv"
    return None


def _user(text: str) -> str | None:
    too_big = [part for part in text.split(":") if part.isdecimal() and int(part) > 2**32 - 2]
    return f"{too_big[0]} is no user or group: the largest is {2**32 - 2}" if too_big else None


_TAKEN = (
    *("name", "range", "dict", "namespace", "loop", "self", "super", "caller", "varargs", "kwargs"),
    *("true", "false", "none", "True", "False", "None", "and", "or", "not", "in", "is", "if", "else"),
    *("elif", "recursive", "import", "from", "as", "with", "without", "ignore", "missing", "context"),
)
_VALUE = rf"(?!(?:{'|'.join(_TAKEN)})$)[A-Za-z][A-Za-z0-9_]*"
_ABSOLUTE = rf"/|(?:/{_PART})+"
_RELATIVE = rf"(?:\./|(?:\.\./)+)?{_PART}(?:/{_PART})*/?|\./?|\.\.(?:/\.\.)*/?"
_ACCOUNT = r"(?:[a-z_][a-z0-9_-]{0,31}|0|[1-9][0-9]{0,9})"

Name = Annotated[
    str,
    Form(
        r"(?=.{1,100}$)[a-z0-9]+(?:(?:\.|_{1,2}|-+)[a-z0-9]+)*",
        "a name of lower-case letters, digits and single . _ - between them",
        advice=_name_advice,
    ),
]
Suite = Annotated[str, Choice(tuple(PYTHON_OF))]
Platform = Annotated[spec.Platform, Choice(("linux/amd64", "linux/arm64"))]
Package = Annotated[
    str, Form(r"[a-z0-9][a-z0-9+.-]{1,127}", "the name of a Debian package such as libgl1", advice=_package_advice)
]
Project = Annotated[
    str, Form(r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,98}[A-Za-z0-9])?", "the name of a Python package such as triton")
]
PythonVersion = Annotated[
    str, Form(r"3\.(?:0|[1-9][0-9]?)", 'a version of Python in quotes such as "3.11"', advice=_python_advice)
]
Requirement = Annotated[str, Form(r"[^\x00-\x1f\x7f]+", "a requirement such as numpy>=2", check=_requirement)]
RequirementsFile = Annotated[
    str,
    Form(
        rf"(?:(?:\./|(?:\.\./)+)?(?:{_PART}/)*)(?:[^/\x00-\x1f\x7f]{{1,251}}\.txt|pylock(?:\.[^./]+)?\.toml|uv\.lock)",
        "a file requirements.txt, pylock.toml or uv.lock",
        advice=_relative_advice,
        local="",
    ),
]
LocalPath = Annotated[str, Form(_RELATIVE, "a relative path such as app/main.py", advice=_relative_advice, local="")]
Glob = Annotated[str, Form(rf"(?!/){_CLEAN}+", 'a pattern of relative paths such as "*.pyc"')]
ImagePath = Annotated[str, Form(_ABSOLUTE, "an absolute, normal path such as /app", advice=_absolute_advice)]
ImageFile = Annotated[
    str, Form(rf"(?:/{_PART})+", "the absolute, normal path of a file such as /app/run.sh", advice=_absolute_advice)
]
ValueName = Annotated[
    str, Form(_VALUE, "a name that templates can use, of letters, digits and _", advice=_value_advice)
]
EnvName = Annotated[str, Form(r"[A-Za-z_][A-Za-z0-9_]*", "the name of a variable, of letters, digits and _")]
EnvValue = Annotated[str, Form(r"[\s\S]*", "text", digits=True)]
LabelName = Annotated[str, Form(r"[^\s=\x00-\x1f\x7f]+", "the name of a label such as org.example.team")]
User = Annotated[
    str, Form(rf"{_ACCOUNT}(?::{_ACCOUNT})?", 'a user such as "65532:65532" or nobody', check=_user, digits=True)
]
StopSignal = Annotated[
    str,
    Choice(
        (
            *("SIGTERM", "SIGINT", "SIGQUIT", "SIGHUP", "SIGKILL", "SIGUSR1", "SIGUSR2", "SIGWINCH", "SIGABRT"),
            *("SIGALRM", "SIGCONT", "SIGPIPE", "SIGPWR", "SIGRTMIN", "SIGRTMIN+3", "SIGRTMAX", "SIGSTOP", "SIGTSTP"),
        )
    ),
]
_HOST = r"(?:localhost|[A-Za-z0-9-]+(?:\.[A-Za-z0-9-]+)+|\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9.-]+(?=:))(?::[0-9]{1,5})?"
_PLACE = rf"oci:(?!//)(?:{_CLEAN}*/)?(?:(?![:/]){_CLEAN})+/?|{_HOST}/[a-z0-9._/-]+"
Destination = Annotated[
    str,
    Form(
        rf"oci:(?!//){_CLEAN}+|{_HOST}/[a-z0-9._/-]+(?::[A-Za-z0-9_][A-Za-z0-9._-]*)?",
        "a destination such as oci:out/app or localhost:5000/app",
        advice=_reference_advice,
        local="oci:",
    ),
]
ModelPlace = Annotated[
    str, Form(_PLACE, "a place such as oci:out/models or localhost:5000/models", advice=_place_advice, local="oci:")
]


def bare_form(hint: Any) -> Form:
    """The form of a type hint that has one."""
    return next(rule for rule in hint.__metadata__ if isinstance(rule, Form))


BaseImage = Annotated[
    str,
    Form(
        rf"(?:oci|oci-archive|docker-archive):(?!//){_CLEAN}+|"
        rf"{_HOST}/[a-z0-9._/-]+(?::[A-Za-z0-9_][A-Za-z0-9._-]*)?(?:@sha256:[0-9a-f]{{64}})?",
        "an image such as localhost:5000/debian:12 or oci:base/debian:12",
        advice=_image_advice,
        local=("oci:", "oci-archive:", "docker-archive:"),
    ),
]


@dataclass(frozen=True, order=True, slots=True)
class Port:
    """A port that the image's service listens on, written `8080` or `8080/udp`."""

    pattern: ClassVar[str] = r"([1-9][0-9]{0,4})(?:/(tcp|udp))?"
    what: ClassVar[str] = "a port from 1 to 65535 such as 8080 or 8080/udp"
    digits: ClassVar[bool] = True

    number: int
    protocol: str = "tcp"

    @classmethod
    def parse(cls, text: str) -> Port:
        match = re.fullmatch(cls.pattern, text)
        if not match or not 1 <= int(match[1]) <= 65535:
            raise ValueError(f"expected {cls.what}, found {quote(text)}")
        return cls(int(match[1]), match[2] or "tcp")

    def __str__(self) -> str:
        return f"{self.number}/{self.protocol}"


class Duration(float):
    """A time in seconds, written as `20s`, `1.5s`, `500ms` or `2m`."""

    pattern = r"(?:0|[1-9][0-9]{0,5})(?:\.[0-9]{1,3})?(?:ms|s|m)"
    what = "a time such as 20s"

    @classmethod
    def parse(cls, text: str) -> Duration:
        if not re.fullmatch(cls.pattern, text):
            advice = f": write {text}s" if re.fullmatch(r"[0-9.]+", text) else ""
            raise ValueError(f"expected {cls.what}, found {quote(text)}{advice}")
        number = text.rstrip("ms")
        return cls(float(number) * {"ms": 0.001, "s": 1.0, "m": 60.0}[text[len(number) :]])

    def __str__(self) -> str:
        return f"{float(self):.3f}".rstrip("0").rstrip(".") + "s"
