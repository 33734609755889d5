"""The flavours of CUDA, as nvidia/cuda names them, and the wheels that each of them is.

* `none`: nothing but what the Python packages bring by themselves, held to the release
* `base`: the CUDA runtime library
* `runtime`: all CUDA libraries, and NCCL
* `devel`: the same with the compiler, headers and tools; CUDA 13 only, as no wheel of CUDA 12 has nvcc
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

from packaging.version import Version

from builder.cuda.table import Release

Choice = Literal["auto"] | bool

NAMES = ("none", "base", "runtime", "devel")
DEVEL_SINCE = Version("13.0")
BUILD_PACKAGES = ("dash", "g++")
"""The Debian packages that nvcc needs beside it: the compiler, and the shell through which it is started."""
_LIBRARIES = ("libc6", "libstdc++6")

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


def packages(flavour: str) -> tuple[str, ...]:
    """The Debian packages that a flavour needs below it: the C and C++ libraries, and a compiler's own."""
    return (*_LIBRARIES, *(BUILD_PACKAGES if flavour == "devel" else ()))


def requirements(asked: Asked, release: Release) -> tuple[str, ...]:
    """The Python requirements that compose a flavour of a release; components that it does not have are left out."""
    extras = [extra for extra in _EXTRAS[asked.flavour] if extra in release.components]
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


def candidates(version: str, cudnn: Choice = "auto", nccl: Choice = "auto") -> tuple[Candidate, ...]:
    """What `auto` can become for a CUDA version such as `13.2`, the smallest first. `devel` is never chosen by itself.

    Where the profile says whether it wants cuDNN or NCCL, all candidates do as it says, and `none` is no candidate if
    it wants one.
    """
    return tuple(_candidates(Version(version).major, cudnn, nccl))


def _candidates(major: int, cudnn: Choice, nccl: Choice) -> Iterator[Candidate]:
    for flavour, has_cudnn, has_nccl in (
        ("none", False, False),
        ("base", False, False),
        ("base", False, True),
        ("runtime", False, False),
        ("runtime", False, True),
        ("runtime", True, False),
        ("runtime", True, True),
        ("base", True, False),  # cuDNN needs cuBLAS, so that this is for who says so only
        ("base", True, True),
    ):
        if cudnn not in ("auto", has_cudnn) or nccl not in ("auto", has_nccl):
            continue
        names = set[str]()
        if flavour != "none":
            names = {f"libcudart.so.{major}"} if flavour == "base" else set(_runtime_sonames(major))
        names |= {"libcudnn.so.9", *(f"libcudnn_{part}.so.9" for part in _CUDNN)} if has_cudnn else set()
        names |= {"libnccl.so.2"} if has_nccl else set()
        yield Candidate(flavour, has_cudnn, has_nccl, frozenset(names))


_CUDNN = ("adv", "cnn", "engines_precompiled", "engines_runtime_compiled", "graph", "heuristic", "ops")
_NPP = ("c", "ial", "icc", "idei", "if", "ig", "im", "ist", "isu", "itc", "s")


def _runtime_sonames(major: int) -> frozenset[str]:
    """The libraries of the components of `runtime`; as they are in the wheels of 12.1 to 13.5."""
    cufft, cusolver = (11, 11) if major == 12 else (12, 12)
    return frozenset(
        (
            f"libcudart.so.{major}",
            f"libnvrtc.so.{major}",
            "libOpenCL.so.1",
            *(f"lib{name}.so.{major}" for name in ("cublas", "cublasLt", "nvblas")),
            *(f"lib{name}.so.{cufft}" for name in ("cufft", "cufftw")),
            *("libcufile.so.0", "libcufile_rdma.so.1"),
            "libcurand.so.10",
            *(f"lib{name}.so.{cusolver}" for name in ("cusolver", "cusolverMg")),
            "libcusparse.so.12",
            *(f"libnpp{name}.so.{major}" for name in _NPP),
            *(f"lib{name}.so.{major}" for name in ("nvfatbin", "nvJitLink", "nvjpeg")),
            *(("libnvToolsExt.so.1",) if major == 12 else ()),
        )
    )
