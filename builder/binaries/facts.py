"""Everything that findings need to know of one input, without its bytes: frozen values.

They are the same for the same bytes, wherever the input came from, so they are kept by its digest.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

FORMAT = 3
"""Raised when the same bytes would give other facts than before."""


@dataclass(frozen=True, order=True)
class BinaryFacts:
    """One ELF file of an input, by what its dynamic section and its fatbins say.

    `path` is where it will be installed: `site/…` below site-packages, `venv/…` below the environment, `/…` absolute in
    the root (packages, layers). `size` is in bytes. `machine` is in the words of `EM_*`, in small letters (`x86_64`,
    `aarch64`). `rpath` and `runpath` are split at colons and otherwise as written, `$ORIGIN` too. `needs` are the
    symbol versions that it asks of each library (`libc.so.6` → `GLIBC_2.17`, …), `defines` those that it offers
    (`GLIBCXX_3.4.30`, …), without its own name. `opens` are texts in it that look like libraries which it may open by
    itself (`libcudnn.so.9`). `sass` (`sm_80`, `sm_90a`) and `ptx` (`compute_90`) are the GPU architectures that it has
    machine code and intermediate code for; `isa` is the highest version of the PTX language in that (`9.2`), which a driver
    has to know; `code` are the bytes of the file for each architecture, where that is more than modules without a kernel.
    All tuples are sorted, those of search paths and `needed` in their order.
    """

    path: str
    size: int
    machine: str
    soname: str | None = None
    needed: tuple[str, ...] = ()
    rpath: tuple[str, ...] = ()
    runpath: tuple[str, ...] = ()
    needs: tuple[tuple[str, tuple[str, ...]], ...] = ()
    defines: tuple[str, ...] = ()
    opens: tuple[str, ...] = ()
    sass: tuple[str, ...] = ()
    ptx: tuple[str, ...] = ()
    isa: str | None = None
    code: tuple[tuple[str, int], ...] = ()


@dataclass(frozen=True)
class InputFacts:
    """One wheel, package or image layer: its ELF files, its symlinks (path → target as written), and all its files
    (path, size in bytes, CRC-32 of a wheel's or SHA-256 of any other's file in hex). `damaged` are files that begin as ELF
    files do and cannot be read as such: path and why. Paths are as in `BinaryFacts`; each tuple is sorted."""

    binaries: tuple[BinaryFacts, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, int, str], ...] = ()
    damaged: tuple[tuple[str, str], ...] = ()


def dump(facts: InputFacts) -> dict[str, Any]:
    """The facts as a JSON document; what a binary has none of is left out."""
    binaries = [{key: value for key, value in asdict(item).items() if value} for item in facts.binaries]
    return {"format": FORMAT, "binaries": binaries} | {
        name: list(getattr(facts, name)) for name in ("links", "files", "damaged") if getattr(facts, name)
    }


def load(document: Mapping[str, Any]) -> InputFacts:
    """The facts in what `dump` made. Raises `ValueError` for anything else, also for another format's."""
    if document.get("format") != FORMAT:
        raise ValueError(f"facts of format {document.get('format')!r}, not {FORMAT}")
    try:
        binaries = tuple(
            BinaryFacts(**{key: _frozen(value) for key, value in row.items()}) for row in document["binaries"]
        )
    except (KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"these are no facts of binaries: {error}") from error
    return InputFacts(binaries, *(_frozen(document.get(name, [])) for name in ("links", "files", "damaged")))


def _frozen(value: Any) -> Any:
    return tuple(map(_frozen, value)) if isinstance(value, list | tuple) else value
