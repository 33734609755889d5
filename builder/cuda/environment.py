"""What a container of a CUDA image is told: the variables and labels that nvidia/cuda has and the GPU runtime reads."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.version import Version

from builder.cuda.table import minor, short

PATH = "/usr/local/nvidia/bin:/usr/local/cuda/bin"
_DRIVER = "/usr/local/nvidia/lib:/usr/local/nvidia/lib64"
"""Where some clusters mount the driver."""


def variables(version: str, flavour: str) -> dict[str, str]:
    """The variables of an image of a CUDA release (`13.2.2`), but `PATH`. As the newest nvidia/cuda sets them, for all
    releases alike; what a driver has to be is said by its CUDA version here."""
    release = Version(version)
    libraries = _DRIVER if flavour == "none" else f"{_DRIVER}:/usr/local/cuda/lib64"
    return {
        "CUDA_VERSION": short(release),
        "LD_LIBRARY_PATH": libraries,
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "NVIDIA_REQUIRE_CUDA": f"cuda>={minor(release)}",
        "NVIDIA_VISIBLE_DEVICES": "all",
    }


def path(flavour: str) -> str:
    """What the variable `PATH` gets, between the environment and the system."""
    return PATH if flavour != "none" else PATH.partition(":")[0]


def labels(wheels: Mapping[str, str]) -> dict[str, str]:
    """The labels of an image with these wheels, versions by name."""
    cudnn = next((version for name, version in sorted(wheels.items()) if name.startswith("nvidia-cudnn-cu")), None)
    return {"com.nvidia.cudnn.version": cudnn} if cudnn else {}
