"""NVIDIA's wheels in small: a table `cuda-toolkit` of some releases, and the components that it names, of a few bytes each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from indexserver import Archive, wheel

LINUX = "sys_platform == 'linux'"
X86 = "py3-none-manylinux2014_x86_64"
ARM = "py3-none-manylinux2014_aarch64"

RELEASES = {
    "12.4.1": {"cudart": "12.4.127", "cublas": "12.4.5.8", "nvrtc": "12.4.127", "nvcc": "12.4.131"},
    "12.8.1": {"cudart": "12.8.90", "cublas": "12.8.4.1", "nvrtc": "12.8.93", "nvcc": "12.8.93"},
    "12.8.2.0": {"cudart": "12.8.90", "cublas": "12.8.5.5", "nvrtc": "12.8.93", "nvcc": "12.8.93"},
    "13.2.0": {"cudart": "13.2.51", "cublas": "13.3.0.5", "nvrtc": "13.2.51", "nvcc": "13.2.51"},
    "13.2.1": {"cudart": "13.2.75", "cublas": "13.4.0.1", "nvrtc": "13.2.75", "nvcc": "13.2.75", "cupti": "13.2.75"},
}
"""Components of some releases, and their versions."""

_PROJECTS = {
    "cudart": "nvidia-cuda-runtime",
    "cublas": "nvidia-cublas",
    "nvrtc": "nvidia-cuda-nvrtc",
    "nvcc": "nvidia-cuda-nvcc",
    "cupti": "nvidia-cuda-cupti",
    "sanitizer": "nvidia-cuda-sanitizer-api",
}
_FOLDERS = {"cudart": "cuda_runtime", "cublas": "cublas", "nvrtc": "cuda_nvrtc", "nvcc": "cuda_nvcc"}
_FILES: Mapping[str, Sequence[str]] = {
    "cudart": ("lib/libcudart.so.{major}", "lib/libcudart_static.a", "include/cuda_runtime.h", "include/crt/math.h"),
    "cublas": ("lib/libcublas.so.{major}", "lib/libcublasLt.so.{major}", "include/cublas_v2.h"),
    "nvrtc": ("lib/libnvrtc.so.{major}", "lib/libnvrtc-builtins.so.{minor}", "include/nvrtc.h"),
    "nvcc": ("bin/nvcc", "nvvm/bin/cicc", "include/crt/host.h", "include/fatbinary.h"),
    "cupti": ("lib/libcupti.so.{major}", "include/cupti.h", "include/generated_meta.h"),
    "sanitizer": ("include/sanitizer.h", "include/generated_meta.h"),
}


def all_wheels() -> list[Archive]:
    """What an index of NVIDIA's offers; the older releases for x86-64 only."""
    found: dict[str, Archive] = {}
    for release, components in RELEASES.items():
        found[f"toolkit-{release}"] = table(release, components)
        for extra, version in components.items():
            for tag in (X86,) if release == "12.4.1" else (X86, ARM):
                archive = component(extra, version, release, tag)
                found[archive.name] = archive
    for major in ("12", "13"):
        for name, version, files in (
            ("cudnn", "9.26.0.51", ("lib/libcudnn.so.9", "lib/libcudnn_ops.so.9", "include/cudnn.h")),
            ("nccl", "2.30.7", ("lib/libnccl.so.2", "include/nccl.h", "include/nccl_device/core.h")),
        ):
            members = {f"nvidia/{name}/{file}": f"{name} {file} {major}".encode() for file in files}
            found[f"{name}-{major}"] = wheel(f"nvidia-{name}-cu{major}", version, tag=X86, files=members)
    return list(found.values())


def table(release: str, components: Mapping[str, str]) -> Archive:
    """One release of the table."""
    pins = {extra: [f"{_project(extra, release)}=={version}.*"] for extra, version in components.items()}
    pins["all"] = [line for lines in pins.values() for line in lines]
    return wheel("cuda-toolkit", release, tag="py2.py3-none-any", extras=pins)


def component(extra: str, version: str, release: str, tag: str = X86) -> Archive:
    """The wheel of one component of a release."""
    major, minor = release.split(".")[:2]
    folder = f"nvidia/cu{major}" if int(major) >= 13 else f"nvidia/{_FOLDERS[extra]}"
    paths = [file.format(major=major, minor=f"{major}.{minor}") for file in _FILES[extra]]
    files = {f"{folder}/{path}": f"{extra} {version} {path}\n".encode() for path in paths}
    if int(major) < 13:
        files["nvidia/__init__.py"] = b""
    return wheel(_project(extra, release), version, tag=tag, files=files)


def framework(version: str, requires: Sequence[str]) -> Archive:
    """What stands for torch: a wheel that needs NVIDIA's."""
    return wheel("framework", version, requires=requires)


def _project(extra: str, release: str) -> str:
    return _PROJECTS[extra] + ("" if release.startswith("13") else "-cu12")
