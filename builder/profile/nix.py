"""What a profile takes from Nix: references, and the links that lead to what they give."""

# ruff: noqa: RUF009 (`field` makes a field, and the defaults are frozen)

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Annotated

from builder.documents import Form, field
from builder.profile.forms import ImagePath, LocalPath, bare_form

_STORE = r"/nix/store/[0-9a-df-np-sv-z]{32}-[0-9A-Za-z+_?=.-]{1,211}"
_ATTRIBUTE = r"[A-Za-z0-9_\"'.^,*+-]+"
_ADDRESS = rf"[a-z][a-z0-9+]*:[^\s#\x00-\x1f\x7f]+(?:#{_ATTRIBUTE})?"
_REMOTE = rf"{_STORE}|{_ADDRESS}"
_PART = r"(?!\.{1,2}(?:/|$))[^/\x00-\x1f\x7f]{1,255}"
USUAL_LINKS = (("/usr/local/bin", "bin"),)
"""What a reference gets where nothing is said of links, if there is such a folder."""


def _advice(text: str) -> str | None:
    if text.startswith("/nix/store/"):
        return "write /nix/store/HASH-NAME, the whole path and nothing below it"
    of_paths = bare_form(LocalPath).advice
    return of_paths(text) if of_paths else None


def _without_credentials(text: str) -> str | None:
    """The text is not shown: it has a secret."""
    authority = text.partition("://")[2].partition("/")[0]
    if "@" in authority and ":" in authority.partition("@")[0]:
        return "credentials do not belong into a profile"
    return None


NixReference = Annotated[
    str,
    Form(
        rf"{_REMOTE}|(?![a-z][a-z0-9+]*:)(?:{bare_form(LocalPath).pattern})",
        "a reference such as ./default.nix#tool, github:owner/repository#tool or /nix/store/HASH-NAME",
        advice=_advice,
        local="",
        remote=_REMOTE,
        check=_without_credentials,
    ),
]
NixPart = Annotated[str, Form(rf"\.|{_PART}(?:/{_PART})*", "a relative path in what Nix gives, such as bin/tool")]


@dataclass(frozen=True, kw_only=True)
class Nix:
    """Something from Nix. All that it needs comes with it, in `/nix/store`."""

    source: NixReference = field(
        name="from",
        doc="What it is: a flake, `github:OWNER/REPOSITORY#ATTRIBUTE`, `flake:nixpkgs#ATTRIBUTE` or any other address that Nix "
        "knows; a path `/nix/store/HASH-NAME`; or a file of Nix or the folder of a flake or `default.nix`, relative to the folder "
        "of the profile that says so, with `#ATTRIBUTE` where it has several.",
        example="./default.nix#tool",
    )
    links: tuple[tuple[ImagePath, NixPart], ...] | None = field(
        doc="Symlinks that the image has: from where, to which path in it. A folder stands for links to all that is in it. Without "
        "it: `/usr/local/bin` to what is in `bin`; `{}` for none.",
        default=None,
        example={"/usr/local/bin/tool": "bin/tool"},
    )

    @property
    def local(self) -> tuple[str, str] | None:
        """The path and the attribute of a reference to the profile's own files; None for any other."""
        if re.fullmatch(_REMOTE, self.source):
            return None
        path, _, attribute = self.source.partition("#")
        return path or ".", attribute


def places_are_told_apart(nix: tuple[str | Nix, ...]) -> Iterator[tuple[tuple[str | int, ...], str]]:
    """A check of profiles: nothing comes twice, and no two links are one, as far as that shows."""
    sources: dict[str, int] = {}
    places: dict[str, int] = {}
    for index, item in enumerate(nix):
        source, links = (item, ()) if isinstance(item, str) else (item.source, item.links or ())
        if (other := sources.setdefault(source, index)) != index:
            yield ("nix", index), f"nix[{other}] is {source} too"
        for to, _ in links:
            if places.setdefault(to, index) != index and to not in dict(USUAL_LINKS):
                yield ("nix", index, "links", to), f"nix[{places[to]}] has links there too"
