"""What a container of a CUDA image is told: the variables and labels that nvidia/cuda has and the GPU runtime reads."""

from __future__ import annotations

from collections.abc import Mapping

from packaging.version import Version

from builder.cuda.table import minor, short
from builder.errors import BuilderError

PATH = "/usr/local/nvidia/bin:/usr/local/cuda/bin"
_DRIVER = "/usr/local/nvidia/lib:/usr/local/nvidia/lib64"
"""Where some clusters mount the driver."""


class BaseImageError(BuilderError):
    """A base image has a CUDA that does not go with the profile's."""


def variables(version: str, flavour: str, below: Mapping[str, str] | None = None) -> dict[str, str]:
    """The variables of an image of a CUDA release (`13.2.2`), but `PATH`. As the newest nvidia/cuda sets them, for all
    releases alike; what a driver has to be is said by its CUDA version here.

    `below` are those of the base image: where its own CUDA is used, they stay, and libraries are looked for where it says.
    """
    below = below or {}
    if flavour == "none" and "CUDA_VERSION" in below:
        return {}
    release = Version(version)
    folders = _DRIVER.split(":") if flavour == "none" else [*_DRIVER.split(":"), "/usr/local/cuda/lib64"]
    folders += [folder for folder in below.get("LD_LIBRARY_PATH", "").split(":") if folder and folder not in folders]
    return {
        "CUDA_VERSION": short(release),
        "LD_LIBRARY_PATH": ":".join(folders),
        "NVIDIA_DRIVER_CAPABILITIES": "compute,utility",
        "NVIDIA_REQUIRE_CUDA": f"cuda>={minor(release)}",
        "NVIDIA_VISIBLE_DEVICES": "all",
    }


def check(version: str, flavour: str, below: Mapping[str, str]) -> None:
    """Whether a profile's CUDA (`13.2`, any flavour) can be on top of an image with the variables `below`: one that has CUDA
    needs to have this one, and none is put on top of it. Raises `BaseImageError`."""
    has = ".".join(below.get("CUDA_VERSION", "").split(".")[:2])
    if not has:
        return
    asked = ".".join(version.split(".")[:2])
    if has != asked:
        raise BaseImageError(
            f"cuda.version: the base image has CUDA {has}, not {asked}",
            hint=f'write cuda.version: "{has}", or choose a base image of CUDA {asked}, or one without CUDA',
        )
    if flavour not in ("none", "auto"):
        raise BaseImageError(
            f"cuda.flavour: {flavour} would put CUDA {asked} on top of a base image that has it already, twice",
            hint="write cuda.flavour: none to use that of the base image, or choose one without CUDA, such as base: "
            "{debian: bookworm}",
        )


def path(flavour: str) -> str:
    """What the variable `PATH` gets, between the environment and the system."""
    return PATH if flavour != "none" else PATH.partition(":")[0]


def labels(wheels: Mapping[str, str]) -> dict[str, str]:
    """The labels of an image with these wheels, versions by name."""
    cudnn = next((version for name, version in sorted(wheels.items()) if name.startswith("nvidia-cudnn-cu")), None)
    return {"com.nvidia.cudnn.version": cudnn} if cudnn else {}
