"""Everything that findings need to know of one input, without its bytes: frozen values.

They are the same for the same bytes, wherever the input came from, so they are kept by its digest.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class BinaryFacts:
    """One ELF file of an input, by what its dynamic section and its fatbins say.

    `path` is where it will be installed: `site/…` below site-packages, `venv/…` below the environment, `/…` absolute in
    the root (packages, layers). `size` is in bytes. `machine` is in the words of `EM_*`, in small letters (`x86_64`,
    `aarch64`). `rpath` and `runpath` are split at colons and otherwise as written, `$ORIGIN` too. `needs` are the
    symbol versions that it asks of each library (`libc.so.6` → `GLIBC_2.17`, …), `defines` those that it offers
    (`GLIBCXX_3.4.30`, …), without its own name. `opens` are texts in it that look like libraries which it may open by
    itself (`libcudnn.so.9`). `sass` (`sm_80`, `sm_90a`) and `ptx` (`compute_90`) are the GPU architectures that it has
    machine code and intermediate code for. All tuples are sorted, those of search paths and `needed` in their order.
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


@dataclass(frozen=True)
class InputFacts:
    """One wheel, package or image layer: its ELF files, its symlinks (path → target as written), and all its files
    (path, size in bytes, CRC-32 of a wheel's or SHA-256 of any other's file in hex). Paths are as in `BinaryFacts`;
    each tuple is sorted."""

    binaries: tuple[BinaryFacts, ...] = ()
    links: tuple[tuple[str, str], ...] = ()
    files: tuple[tuple[str, int, str], ...] = ()
