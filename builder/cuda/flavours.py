"""The flavours of CUDA, as nvidia/cuda names them, and the wheels that each of them is.

* `none`: nothing but what the Python packages bring by themselves, held to the release
* `base`: the CUDA runtime library
* `runtime`: all CUDA libraries, and NCCL
* `devel`: the same with the compiler, headers and tools; CUDA 13 only, as no wheel of CUDA 12 has nvcc
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Literal

from packaging.version import Version

from builder.cuda.table import Release

Choice = Literal["auto"] | bool

NAMES = ("none", "base", "runtime", "devel")
DEVEL_SINCE = Version("13.0")
BUILD_PACKAGES = ("dash", "g++")
"""The Debian packages that nvcc needs beside it: the compiler, and the shell through which it is started."""

_BASE = ("cudart",)
_RUNTIME = (
    *("cudart", "nvrtc", "opencl", "cublas", "cufft", "cufile", "curand", "cusolver", "cusparse"),
    *("npp", "nvfatbin", "nvjitlink", "nvjpeg", "nvtx"),
)
_DEVEL = (
    *("nvcc", "crt", "nvvm", "cccl", "cupti", "nvml", "profiler", "sanitizer", "cuxxfilt", "culibos"),
    *("nvptxcompiler", "cuobjdump", "nvdisasm", "tileiras"),
)
_EXTRAS = {"none": (), "base": _BASE, "runtime": _RUNTIME, "devel": (*_RUNTIME, *_DEVEL)}
_NOT_ON = {"arm64": ("opencl",)}
"""What NVIDIA does not make for an architecture, whatever older tables say."""


@dataclass(frozen=True)
class Asked:
    """What a profile asks for: `version` as `13.2` or `13.2.1`; a `flavour` of `NAMES`, or `auto`."""

    version: str
    flavour: str
    cudnn: Choice = "auto"
    nccl: Choice = "auto"

    @property
    def has_cudnn(self) -> bool:
        """Whether cuDNN is added; nvidia/cuda has it in images of their own only."""
        return self.cudnn is True

    @property
    def has_nccl(self) -> bool:
        """Whether NCCL is added; by itself where nvidia/cuda has it."""
        return self.flavour in ("runtime", "devel") if self.nccl == "auto" else self.nccl


def packages(asked: Asked) -> tuple[str, ...]:
    """The Debian packages that the libraries and programs of a flavour need: those that they name in their files."""
    if asked.flavour == "none":
        return ("libc6",)
    zlib = ("zlib1g",) if asked.has_cudnn or asked.flavour == "auto" else ()
    return ("libc6", "libstdc++6", *zlib, *(BUILD_PACKAGES if asked.flavour == "devel" else ()))


def requirements(asked: Asked, release: Release, architecture: str) -> tuple[str, ...]:
    """The Python requirements that compose a flavour of a release for an architecture such as `arm64`; components that the
    release, or the architecture, does not have are left out."""
    extras = [extra for extra in _EXTRAS[asked.flavour] if extra in release.components]
    extras = [extra for extra in extras if extra not in _NOT_ON.get(architecture, ())]
    lines = [f"cuda-toolkit[{','.join(extras)}]=={release.version}"] if extras else []
    suffix = f"cu{release.version.major}"
    lines += [f"nvidia-cudnn-{suffix}"] if asked.has_cudnn else []
    lines += [f"nvidia-nccl-{suffix}"] if asked.has_nccl else []
    return tuple(lines)


@dataclass(frozen=True)
class Candidate:
    """What `flavour: auto` can become, and the names (SONAME) of all libraries that it brings."""

    flavour: str
    cudnn: bool
    nccl: bool
    sonames: frozenset[str]

    def asked(self, version: str) -> Asked:
        """The same as what a profile would ask for."""
        return Asked(version, self.flavour, self.cudnn, self.nccl)


def candidates(
    version: str, cudnn: Choice = "auto", nccl: Choice = "auto", *, components: Collection[str] | None = None
) -> tuple[Candidate, ...]:
    """What `auto` can become for a CUDA version such as `13.2`, the first that brings what is needed being the
    smallest that does. `devel` is never chosen by itself.

    Where the profile says whether it wants cuDNN or NCCL, all candidates do as it says, and `none` is no candidate if
    it wants one. `components` are those that the release has (`Release.components`); without them, all that any has.
    """
    return tuple(_candidates(Version(version), cudnn, nccl, components))


def _candidates(
    version: Version, cudnn: Choice, nccl: Choice, components: Collection[str] | None
) -> Iterator[Candidate]:
    libraries = _libraries(version)
    for flavour, has_cudnn, has_nccl in (
        ("none", False, False),
        ("base", False, False),
        ("base", False, True),
        ("runtime", False, False),
        ("runtime", False, True),
        ("base", True, False),  # smaller than runtime, but only for what needs cuDNN
        ("base", True, True),
        ("runtime", True, False),
        ("runtime", True, True),
    ):
        if cudnn not in ("auto", has_cudnn) or nccl not in ("auto", has_nccl):
            continue
        extras = [extra for extra in _EXTRAS[flavour] if components is None or extra in components]
        names = [name for extra in extras for name in libraries[extra]]
        names += (*libraries["cudnn"], *libraries["cublas"]) if has_cudnn else ()  # cuDNN's wheel requires cuBLAS's
        names += libraries["nccl"] if has_nccl else ()
        yield Candidate(flavour, has_cudnn, has_nccl, frozenset(names))


_CUDNN = ("adv", "cnn", "engines_precompiled", "engines_runtime_compiled", "engines_tensor_ir", "ext")
_NPP = ("c", "ial", "icc", "idei", "if", "ig", "im", "ist", "isu", "itc", "s")


def _libraries(version: Version) -> dict[str, tuple[str, ...]]:
    """The libraries (SONAMEs) of each component of `runtime`, of cuDNN and of NCCL, as the wheels of 12.1 to 13.5 have
    them."""
    major = version.major
    twelve = major == 12

    def named(number: int, *names: str) -> tuple[str, ...]:
        return tuple(f"lib{name}.so.{number}" for name in names)

    builtins = tuple(f"libnvrtc-builtins{alt}.so.{version.major}.{version.minor}" for alt in ("", ".alt"))
    return {
        "cudart": named(major, "cudart"),
        "nvrtc": (*named(major, "nvrtc", "nvrtc.alt"), *builtins),
        "opencl": named(1, "OpenCL"),
        "cublas": named(major, "cublas", "cublasLt", "nvblas"),
        "cufft": named(11 if twelve else 12, "cufft", "cufftw"),
        "cufile": ("libcufile.so.0", "libcufile_rdma.so.1"),
        "curand": named(10, "curand"),
        "cusolver": named(11 if twelve else 12, "cusolver", "cusolverMg"),
        "cusparse": named(12, "cusparse"),
        "npp": named(major, *(f"npp{name}" for name in _NPP)),
        "nvfatbin": named(major, "nvfatbin"),
        "nvjitlink": named(major, "nvJitLink"),
        "nvjpeg": named(major, "nvjpeg"),
        "nvtx": named(1, "nvToolsExt" if twelve else "nvtx3interop"),
        "cudnn": named(9, "cudnn", *(f"cudnn_{part}" for part in (*_CUDNN, "graph", "heuristic", "ops"))),
        "nccl": named(2, "nccl"),
    }
