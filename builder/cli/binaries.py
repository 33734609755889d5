"""What `build plan` shows of an image's binaries."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

from builder.cli.table import table
from builder.cli.work import Work
from builder.findings import inputs, minimal, report
from builder.findings.loader import Search
from builder.findings.minimal import Saving
from builder.findings.report import LEVELS, Finding, short
from builder.findings.scan import Edge, Scan, scan
from builder.lock import Lock, LockedNix, LockedPlatform
from builder.progress import human_size

_MOST_PLACES = 3
_TERMS = (
    "NVIDIA's terms let a part of a wheel's files be passed on, each of them whole: `slim` changes no file, and keeps the "
    "texts of licences."
)


@dataclass(frozen=True)
class Examined:
    """What the binaries of one platform say."""

    scan: Scan
    findings: tuple[Finding, ...]
    savings: tuple[Saving, ...]

    @property
    def errors(self) -> int:
        """How many findings say that something cannot run."""
        return sum(item.level == "error" for item in self.findings)

    def document(self, findings: bool, minimal_: bool) -> dict[str, object]:
        """What `--format json` adds."""
        found: dict[str, object] = {}
        if findings:
            found["findings"] = report.as_documents(self.findings)
            found["libraries"] = [_library(edge) for edge in self.scan.edges]
        if minimal_:
            found["savings"] = minimal.as_documents(self.savings)
        return found

    def lines(self, findings: bool, minimal_: bool) -> Iterator[str]:
        """What is shown to people; in short where nobody asks."""
        if not findings and not minimal_:
            yield from self._short()
        if findings:
            yield from self._libraries()
            yield from self._findings()
        if minimal_:
            yield from self._savings()

    def _short(self) -> Iterator[str]:
        counts = Counter(item.level for item in self.findings)
        for item in self.findings:
            if item.level == "error":
                yield f"error: {item.what}"
        told = [f"{counts[level]} {level}{'s' if counts[level] != 1 else ''}" for level in LEVELS if counts[level]]
        if counts["error"] or counts["warning"]:
            yield f"findings: {', '.join(told)}; --findings shows them"

    def _libraries(self) -> Iterator[str]:
        """Who gets which library from whom, where these are not the same."""
        groups: dict[tuple[str, str, str], str] = {}
        for edge in self.scan.edges:
            if edge.file.owner != edge.target.owner and edge.target.kind != "deb":
                groups.setdefault((edge.file.owner, edge.name, edge.target.owner), f"{short(edge.path)}, by {edge.how}")
        if groups:
            rows = [(user, name, owner, how) for (user, name, owner), how in sorted(groups.items())]
            yield table(("USED BY", "LIBRARY", "OF", "FOUND AT"), rows)

    def _findings(self) -> Iterator[str]:
        if not self.findings:
            yield "findings: none"
        for item in self.findings:
            size = f" ({human_size(item.size)})" if item.size and item.kind not in ("twice", "own-cuda") else ""
            yield f"{item.level}: {item.what}{size}"
            for place in item.where[:_MOST_PLACES]:
                yield f"    {place}"
            if len(item.where) > _MOST_PLACES:
                yield f"    and {len(item.where) - _MOST_PLACES} more"
            yield f"  → {item.remedy}"

    def _savings(self) -> Iterator[str]:
        if not self.savings:
            yield "savings: none"
            return
        total = sum(item.size for item in self.savings if item.rule)
        yield f"What could go, if the program does without it ({human_size(total)}; some of it is counted twice):"
        for item in self.savings:
            count = f"{item.files} file{'s' if item.files > 1 else ''}"
            yield f"  {human_size(item.size):>10}  {item.owner}: {textwrap.shorten(item.what, 160)}, {count}"
            yield f"              {item.rule or 'cannot be left out: it is a part of files that are needed'}"
        if any(item.owner.startswith("nvidia-") for item in self.savings):
            yield _TERMS


def examine(work: Work, lock: Lock, locked: LockedPlatform, *, fetch: bool) -> Examined | None:
    """Examines a platform; None where inputs have not been read, unless they are to be fetched and read."""
    context, profile = work.context, work.loaded.profile
    if not fetch and inputs.unread(locked, context.store):
        return None
    facts = inputs.read(locked, context.store, work.fetcher.ensure, context.progress)
    found = inputs.scanned(locked, facts, dict(profile.image.env), inputs.own(lock.files, work.loaded.root))
    plain = _without_paths(locked, found)
    version = inputs.python(locked)
    asked = profile.base.packages if profile.base else ()
    require = profile.gpu.require if profile.gpu else ()
    devel = locked.cuda is not None and locked.cuda.flavour == "devel"
    savings = minimal.savings(found, version, asked=asked, require=require, devel=devel)
    findings = report.report(found, plain)
    if locked.nix:
        findings = (*_of_nix(work, locked.nix, found, fetch=fetch), *findings)
        findings = tuple(sorted(findings, key=lambda item: LEVELS.index(item.level)))
    return Examined(found, findings, savings)


def _of_nix(work: Work, nix: LockedNix, found: Scan, *, fetch: bool) -> tuple[Finding, ...]:
    from builder.findings import nixpaths  # few images have anything from Nix
    from builder.sources.nixpaths import trees

    return nixpaths.report(trees(nix, work.context.store, work.fetcher.ensure if fetch else None), found.root)


def _without_paths(locked: LockedPlatform, found: Scan) -> Scan:
    if not found.search.library_path and found.search.conf is None:
        return found
    search = Search(found.search.machine)
    executable = locked.python.executable if locked.python else ""
    return scan(found.root, search, locked.python.version if locked.python else None, executable)


def _library(edge: Edge) -> dict[str, object]:
    return {
        "file": edge.file.path,
        "of": edge.file.owner,
        "needs": edge.name,
        "found": edge.path,
        "is": edge.target.path,
        "from": edge.target.owner,
        "how": edge.how,
    }
