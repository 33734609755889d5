"""The profile: what the user asks for, read strictly from YAML and merged with what it extends."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from builder.documents import Mode, Problems, Size
from builder.documents.loading import convert
from builder.profile.cuda import Cuda
from builder.profile.extends import Include, merge
from builder.profile.forms import PYTHON_OF, Port
from builder.profile.gpu import Gpu
from builder.profile.model import Base, File, Image, Profile, Python, Slim, Template
from builder.profile.models import Model
from builder.profile.nix import Nix
from builder.profile.publishing import Publish, Soci
from builder.profile.starter import starter
from builder.profile.starting import Budget, Start

__all__ = [
    "PYTHON_OF",
    "Base",
    "Budget",
    "Cuda",
    "File",
    "Gpu",
    "Image",
    "Include",
    "LoadedProfile",
    "Mode",
    "Model",
    "Nix",
    "Port",
    "Profile",
    "Publish",
    "Python",
    "Size",
    "Slim",
    "Soci",
    "Start",
    "Template",
    "read",
    "starter",
]


@dataclass(frozen=True)
class LoadedProfile:
    """A profile with the file it came from; all paths in it are relative to `root`, that file's folder. `includes` has
    the profiles that it extends, the lowest first."""

    profile: Profile
    path: Path
    includes: tuple[Include, ...]

    @property
    def root(self) -> Path:
        return self.path.parent


def read(path: Path) -> LoadedProfile:
    """Reads the profile at `path` and all that it extends; raises `DocumentError` with everything that is wrong."""
    problems = Problems()
    merged = merge(path, Profile, problems)
    profile = None
    if merged.node is not None:
        profile = convert(Profile, merged.node, problems, local=merged.local, partial=merged.partial)
    problems.check()
    assert isinstance(profile, Profile)
    return LoadedProfile(profile, path, merged.includes)
