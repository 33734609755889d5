"""The profile that `build init` writes, with the files it names: small, commented, and working as it is."""

from __future__ import annotations

from pathlib import Path

from builder.documents import DocumentError, Mark, Problem
from builder.documents.loading import BAD, convert
from builder.documents.nodes import Problems, Scalar
from builder.profile.forms import Name

_FILES = ("app/main.py", "app/settings.json.j2")


def starter(name: str) -> dict[str, bytes]:
    """The files of a new project, by their path in its folder; the profile is `NAME.yaml`."""
    problems = Problems()
    if convert(Name, Scalar(Mark("name"), name, name), problems) is BAD:
        raise DocumentError(Problem(Mark("name"), "", problem.message) for problem in problems.found)
    # Only `build init` pays for the import of jinja2.
    from builder.render import render

    folder = templates()
    profile = render((folder / "profile.yaml.j2").read_text(encoding="utf-8"), {"name": name}, "profile.yaml.j2")
    return {f"{name}.yaml": profile, **{file: (folder / "starter" / file).read_bytes() for file in _FILES}}


def templates() -> Path:
    """`templates/` inside the package, where a wheel has it, or beside the package, where a checkout has it."""
    package = Path(__file__).resolve().parent.parent
    inside = package / "templates"
    return inside if inside.is_dir() else package.parent / "templates"
