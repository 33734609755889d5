"""What Python packages do with libraries beyond what their ELF files say: loading by name, and modules that may fail.

Read in the packages' own sources, at the versions named. A package that is not here is taken at its ELF files' word.
"""

from __future__ import annotations

import fnmatch
import re
from dataclasses import dataclass

DRIVER = re.compile(
    r"lib(?:cuda|cudadebugger|nvcuvid|nvoptix|nvidia-[\w-]+|(?:GLX|EGL|GLESv1_CM|GLESv2|vdpau)_nvidia)\.so(?:\.[\w.]+)?"
)
"""The driver's own libraries: the node has them, an image never."""


@dataclass(frozen=True)
class Habit:
    """What is known of the projects that `project` (a pattern) matches.

    `asks` are beginnings of SONAMEs that it opens without naming them in an ELF file. `loads` says how it finds libraries of
    NVIDIA's wheels that the loader does not: `import` if importing it is enough, else what has to be called. `first` are
    patterns of those of them that importing it loads, for whoever comes after it. `optional` are (pattern of files,
    pattern of SONAMEs) that it does without.
    """

    project: str
    asks: tuple[str, ...] = ()
    loads: str = ""
    first: tuple[str, ...] = ()
    optional: tuple[tuple[str, str], ...] = ()


HABITS = (
    # onnxruntime/__init__.py 1.31: preload_dlls(); the CUDA provider opens cuDNN by a name that it composes
    Habit(
        "onnxruntime-gpu",
        asks=("libcudnn.so.", "libcufft.so."),
        loads="onnxruntime.preload_dlls()",
        optional=(("*", "libnvinfer*"),),
    ),
    # cupy/_environment.py 14.2: by cuda.pathfinder, when a module is imported; its optional backends are imported in try
    Habit(
        "cupy-cuda1*",
        loads="import",
        optional=(("*/cutensor.*", "*"), ("*/cusparselt.*", "*"), ("*/nccl.*", "libnccl*")),
    ),
    # torch/__init__.py 2.11 and 2.15: _load_global_deps, _preload_cuda_deps
    Habit(
        "torch",
        loads="import",
        first=(
            *("libcublasLt.so.*", "libcublas.so.*", "libcudnn.so.*", "libnvrtc.so.*", "libnvrtc-builtins.so.*"),
            *("libcudart.so.*", "libcupti.so.*", "libcufft.so.*", "libcurand.so.*", "libnvJitLink.so.*"),
            *("libcusparse.so.*", "libcusparseLt.so.*", "libcusolver.so.*", "libnccl.so.*", "libnvshmem_host.so.*"),
            *("libcufile.so.*", "libnvToolsExt.so.*"),
        ),
    ),
    # jax_plugins/xla_cuda13/__init__.py 0.12: _load_nvidia_libraries
    Habit(
        "jax-cuda1*-pjrt",
        asks=(
            *("libcudart.so.", "libnvrtc.so.", "libcublas.so.", "libcublasLt.so.", "libnccl.so.", "libcusparse.so."),
            *("libcusolver.so.", "libcufft.so.", "libcudnn.so."),
        ),
        loads="import",
    ),
    Habit("jax-cuda1*-plugin", loads="import"),
    # numba/np/ufunc/parallel.py: threading layers are tried in turn
    Habit("numba", optional=(("*/tbbpool.*", "libtbb*"), ("*/omppool.*", "libgomp*"))),
    # NVIDIA: remote storage and networks that a node has or has not
    Habit("nvidia-cufile*", optional=(("*", "*"),)),
    Habit("nvidia-nvshmem*", optional=(("*", "*"),)),
)


def habits(owner: str) -> tuple[Habit, ...]:
    """What is known of an input by its name, with or without a version behind it."""
    project = owner.partition(" ")[0]
    return tuple(habit for habit in HABITS if fnmatch.fnmatchcase(project, habit.project))


def is_optional(owner: str, path: str, soname: str) -> bool:
    """Whether an input does without a library that one of its files needs."""
    return any(
        fnmatch.fnmatchcase(path, file) and fnmatch.fnmatchcase(soname, library)
        for habit in habits(owner)
        for file, library in habit.optional
    )


def loading(owner: str) -> str:
    """How an input finds libraries that the loader does not: `import`, what has to be called, or nothing."""
    return next((habit.loads for habit in habits(owner) if habit.loads), "")


def first(owner: str) -> tuple[str, ...]:
    """Patterns of the libraries of NVIDIA's wheels that importing an input loads, in its order."""
    return tuple(pattern for habit in habits(owner) for pattern in habit.first)


def asked(owner: str) -> tuple[str, ...]:
    """The beginnings of SONAMEs that an input opens without naming them in an ELF file."""
    return tuple(start for habit in habits(owner) for start in habit.asks)
