"""Where this machine finds Debian: its apt sources give base URIs and keyrings, configuration overrides them.

A source counts when it is Debian's own by three signs: every suite is a Debian suite, every component is a Debian
component, and `Signed-By` is absent or names Debian's keyring. Other archives copy the names of Debian's suites, so
that one sign is not enough; and a source that is wrongly left out is a clear error, while one that is wrongly taken
would let a foreign key vouch for the operating system.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder.sources.control import fields, stanzas

MAIN = "debian"
SECURITY = "debian-security"

_CODENAMES = (
    "buster|bullseye|bookworm|trixie|forky|duke|sid|stable|oldstable|oldoldstable|testing|unstable|experimental"
)
_SUITE = re.compile(rf"(?:{_CODENAMES})(?:-updates|-security|/updates|-proposed-updates|-backports|-backports-sloppy)?")
_SECURITY_SUITE = re.compile(r".*(?:-security|/updates)")
_COMPONENTS = {"main", "contrib", "non-free", "non-free-firmware"}
_DEBIAN_KEYRING = re.compile(r"debian-archive-[a-z0-9-]*\.(?:gpg|pgp|asc)")
_KEYRINGS = ("usr/share/keyrings/debian-archive-keyring.gpg", "usr/share/keyrings/debian-archive-keyring.pgp")
_ONE_LINE = re.compile(r"deb\s+(?:\[(?P<options>[^\]]*)\]\s*)?(?P<uri>\S+)\s+(?P<suite>\S+)(?P<components>(?:\s+\S+)*)")


@dataclass(frozen=True)
class AptSource:
    """One source that is Debian's: base URIs without a trailing slash, suites, and the keyrings that vouch for them."""

    uris: tuple[str, ...]
    suites: tuple[str, ...]
    components: tuple[str, ...]
    keyrings: tuple[Path, ...]


@dataclass(frozen=True)
class Mirror:
    """Where one origin is found: base URIs, best first, and the keyrings that its releases are checked against."""

    origin: str
    uris: tuple[str, ...]
    keyrings: tuple[Path, ...]

    def urls(self, path: str) -> tuple[str, ...]:
        """The addresses of a file of this origin, by its path below the base URI."""
        return tuple(f"{uri}/{path}" for uri in self.uris)


def read_sources(root: Path = Path("/")) -> tuple[AptSource, ...]:
    """Debian's sources among those that apt reads: sources.list, then sources.list.d in the order of names.

    A file that cannot be read or understood gives nothing: it is apt's to complain about it.
    """
    directory = root / "etc/apt"
    found: list[AptSource] = []
    for path in (directory / "sources.list", *_listed(directory / "sources.list.d")):
        try:
            text = path.read_text()
        except (OSError, UnicodeDecodeError):
            continue
        read = _deb822 if path.suffix == ".sources" else _one_line
        found += read(text, root)
    return tuple(found)


def mirrors(
    root: Path = Path("/"),
    overrides: Mapping[str, Sequence[str]] | None = None,
    *,
    suite: str | None = None,
    keyrings: Sequence[Path] = (),
) -> dict[str, Mirror]:
    """The mirrors of the origins `debian` and `debian-security`; an origin that nobody configured is absent.

    `overrides` gives an origin's base URIs explicitly (an empty list: there is none, on purpose), `keyrings` replaces
    the machine's. A source that has the very `suite` comes before one that has other suites of Debian.
    """
    sources = read_sources(root)
    result = {}
    for origin in (MAIN, SECURITY):
        own = [source for source in sources if any(_origin(name) == origin for name in source.suites)]
        own.sort(key=lambda source: not any(_codename(name) == suite for name in source.suites))
        chosen = (overrides or {}).get(origin)
        uris = chosen if chosen is not None else [uri for source in own for uri in source.uris]
        trusted = list(keyrings) or [path for source in own for path in source.keyrings] or default_keyrings(root)
        if uris or chosen is not None:
            addresses = dict.fromkeys(uri.rstrip("/") for uri in uris)
            result[origin] = Mirror(origin, tuple(addresses), tuple(dict.fromkeys(trusted)))
    return result


def default_keyrings(root: Path = Path("/")) -> list[Path]:
    """Debian's own keyring, else the keys of Debian that apt trusts for every source."""
    for name in _KEYRINGS:
        if (root / name).is_file():
            return [root / name]
    trusted = sorted((root / "etc/apt/trusted.gpg.d").glob("debian-archive-*"))
    return [path for path in trusted if _DEBIAN_KEYRING.fullmatch(path.name)]


def _origin(suite: str) -> str:
    return SECURITY if _SECURITY_SUITE.fullmatch(suite) else MAIN


def _codename(suite: str) -> str:
    return re.split("[-/]", suite, maxsplit=1)[0]


def _listed(directory: Path) -> list[Path]:
    """The files that apt would read, in its order."""
    try:
        return sorted(
            path for path in directory.iterdir() if re.fullmatch(r"[A-Za-z0-9_.-]+\.(list|sources)", path.name)
        )
    except OSError:
        return []


def _one_line(text: str, root: Path) -> Iterator[AptSource]:
    """sources.list(5), "one-line-style": `deb [option=value …] uri suite [component …]`."""
    for line in text.splitlines():
        match = _ONE_LINE.fullmatch(line.partition("#")[0].strip())
        if match:
            options = dict(option.partition("=")[::2] for option in (match["options"] or "").split())
            signed_by = options.get("signed-by", "").replace(",", " ")
            yield from _source([match["uri"]], [match["suite"]], match["components"].split(), signed_by, root)


def _deb822(text: str, root: Path) -> Iterator[AptSource]:
    """sources.list(5), "deb822-style"."""
    for stanza in stanzas(text):
        try:
            found = fields(stanza)
        except ValueError:
            continue
        if "deb" not in found.get("types", "").split() or found.get("enabled", "yes").lower() in ("no", "false", "0"):
            continue
        words = {name: found.get(name, "").split() for name in ("uris", "suites", "components")}
        yield from _source(words["uris"], words["suites"], words["components"], found.get("signed-by", ""), root)


def _source(
    uris: Iterable[str], suites: list[str], components: list[str], signed_by: str, root: Path
) -> Iterator[AptSource]:
    keyrings = _keyrings(signed_by, root)
    addresses = [address.rstrip("/") for uri in uris for address in _addresses(uri, root)]
    debian = suites and all(map(_SUITE.fullmatch, suites)) and components and _COMPONENTS.issuperset(components)
    if debian and addresses and keyrings is not None:
        yield AptSource(tuple(addresses), tuple(suites), tuple(components), tuple(keyrings))


def _keyrings(signed_by: str, root: Path) -> list[Path] | None:
    """The keyring files of a `Signed-By`; None if it is anything but Debian's, as a key inside the field is.

    Fingerprints pick keys out of the keyrings that apt trusts anyway: those of Debian are taken whole.
    """
    words = signed_by.split()
    if not words or all(re.fullmatch(r"[0-9A-Fa-f]{16,40}[!,]*", word) for word in words):
        return default_keyrings(root)
    if all(word.startswith("/") and _DEBIAN_KEYRING.fullmatch(Path(word).name) for word in words):
        return [root / word.lstrip("/") for word in words]
    return None


def _addresses(uri: str, root: Path) -> list[str]:
    """An http(s) URI is one address; `mirror+file:` names a file of addresses, as Debian's cloud images have it."""
    if uri.startswith(("http://", "https://")):
        return [uri]
    if uri.startswith("mirror+file:"):
        try:
            lines = (root / uri.removeprefix("mirror+file:").lstrip("/")).read_text().splitlines()
        except (OSError, UnicodeDecodeError):
            return []
        return [line.split()[0] for line in lines if line.startswith(("http://", "https://"))]
    return []
