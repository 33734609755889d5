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

    `asks` are beginnings of SONAMEs that it opens without naming them in an ELF file. `loads` says how it finds libraries
    of NVIDIA's wheels that the loader does not: `import` if importing it is enough, else what has to be called. `optional`
    are (pattern of files, pattern of SONAMEs) that it does without.
    """

    project: str
    asks: tuple[str, ...] = ()
    loads: str = ""
    optional: tuple[tuple[str, str], ...] = ()


HABITS = (
    # onnxruntime/__init__.py 1.31: preload_dlls(); the CUDA provider opens cuDNN by a name that it composes
    Habit("onnxruntime-gpu", ("libcudnn.so.", "libcufft.so."), "onnxruntime.preload_dlls()", (("*", "libnvinfer*"),)),
    # cupy/_environment.py 14.2: _preload_libraries by cuda.pathfinder; its optional backends are imported in try
    Habit("cupy-cuda1*", (), "import", (("*/cutensor.*", "*"), ("*/cusparselt.*", "*"), ("*/nccl.*", "libnccl*"))),
    # torch/__init__.py 2.15: _preload_cuda_deps
    Habit("torch", (), "import"),
    # jax_plugins/xla_cuda13/__init__.py 0.12: _load_nvidia_libraries
    Habit("jax-cuda1*-plugin", (), "import"),
    Habit("jax-cuda1*-pjrt", (), "import"),
    # numba/np/ufunc/parallel.py: threading layers are tried in turn
    Habit("numba", (), "", (("*/tbbpool.*", "libtbb*"), ("*/omppool.*", "libgomp*"))),
    # NVIDIA: remote storage and networks that a node has or has not
    Habit("nvidia-cufile*", (), "", (("*", "*"),)),
    Habit("nvidia-nvshmem*", (), "", (("*", "*"),)),
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


def asked(owner: str) -> tuple[str, ...]:
    """The beginnings of SONAMEs that an input opens without naming them in an ELF file."""
    return tuple(start for habit in habits(owner) for start in habit.asks)
