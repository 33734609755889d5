"""The contract of an image with GPUs, as locks hold it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, order=True)
class GpuCode:
    """Files of one project with code for the same architectures: machine code `sass`, intermediate code `ptx` in versions
    of the PTX language up to `isa` (`8.4`)."""

    project: str
    files: tuple[str, ...]
    sass: tuple[str, ...] = ()
    ptx: tuple[str, ...] = ()
    isa: str = ""


@dataclass(frozen=True)
class GpuContract:
    """What a lock says of GPUs. `request` is the digest of what it was decided from.

    `native`, `ptx` and `partly` are the known architectures that run all projects' machine code, those that need the
    driver to compile some project, and those of both that some files have nothing for. `cuda` is the newest CUDA in the
    image; `driver` the lowest driver for `native`, where it is known; `require` the text of NVIDIA_REQUIRE_CUDA. Without
    GPU code, `code` is empty and so are the lists.
    """

    request: str
    cuda: str | None = None
    driver: str | None = None
    require: str | None = None
    native: tuple[str, ...] = ()
    ptx: tuple[str, ...] = ()
    partly: tuple[str, ...] = ()
    code: tuple[GpuCode, ...] = ()
