"""`/usr/local/cuda` as links into the environment's wheels: NVIDIA's files are there once, unmodified, and found where
users of nvidia/cuda look for them.

Rules of the format:

* CUDA 13: all wheels of the toolkit share `nvidia/cu13`, which has the shape of a CUDA home: `/usr/local/cuda-13.2` is a
  link to it, and links that wheels cannot have are added in it.
* CUDA 12: each wheel has a folder of its own: `/usr/local/cuda-12.8` is a folder of links to what is in them. A folder
  that one wheel alone has is one link.
* What else is in `nvidia/*/lib` and `nvidia/*/include`, such as cuDNN and NCCL, is linked into it, too.
* `lib64` is a link to `lib`, where every `libX.so.N` has a link `libX.so`, by which linkers know it, to its highest N.
* Of two files for one place, the toolkit's comes first, then the wheel whose name comes first.
* `/usr/local/cuda` is a link to it, and `/etc/ld.so.conf.d/nvidia.conf` names its libraries.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from builder.layers.tar import Entry, Inline, Kind

HOME = "/usr/local/cuda"
_LIBRARY = re.compile(r"(lib[^/]+?\.so)\.([0-9][0-9.]*)")
_ONE_HOME_SINCE = 13
_SHARED = ("include", "lib")


def entries(minor: str, site: str, wheels: Mapping[str, Iterable[str]]) -> tuple[Entry, ...]:
    """The links of CUDA `minor` (`13.2`).

    `wheels` are the paths of the files of each wheel, by its name, relative to `site`, the site-packages folder of the
    image (`opt/venv/…`). Folders above the links are not among the entries.
    """
    major = int(minor.partition(".")[0])
    versioned = f"{HOME.strip('/')}-{minor}"
    home = f"{site}/nvidia/cu{major}" if major >= _ONE_HOME_SINCE else versioned
    tree = _tree(major, wheels)
    found = [_link(f"{home}/{place}", f"{site}/{target}") for place, target in _shown(tree)]
    names = _names(tree)
    found += [_link(f"{home}/lib/{name}", f"{home}/lib/{file}") for name, file in names.items()]
    if "lib64" not in tree.folders and "lib" in tree.folders:
        found.append(_link(f"{home}/lib64", f"{home}/lib"))
    if home != versioned:
        found.append(_link(versioned, home))
    found.append(_link(HOME.strip("/"), versioned))
    found.append(Entry("etc/ld.so.conf.d/nvidia.conf", content=Inline(f"{HOME}/lib64\n".encode())))
    return tuple(sorted(found, key=lambda entry: entry.path.encode()))


@dataclass
class _Folder:
    """A folder of the CUDA home: `sources` are the wheels' folders that it is made of, `real` says that it is one itself."""

    real: bool = False
    sources: set[str] = field(default_factory=set)
    files: dict[str, str] = field(default_factory=dict)
    folders: dict[str, _Folder] = field(default_factory=dict)

    def sub(self, name: str) -> _Folder | None:
        """The folder `name` in it, unless a file has the name."""
        return None if name in self.files else self.folders.setdefault(name, _Folder())


def _tree(major: int, wheels: Mapping[str, Iterable[str]]) -> _Folder:
    """The home with all files that belong into it; those that are in it by themselves are no links."""
    tree = _Folder(real=True)
    own = f"cu{major}"
    parts = [(name, path.split("/")) for name in sorted(wheels) for path in sorted(wheels[name])]
    belonging = [
        (name, path) for name, path in parts if path[0] == "nvidia" and len(path) > 3 and path[-1][-3:] != ".py"
    ]
    if major >= _ONE_HOME_SINCE:
        for _, path in belonging:
            if path[1] == own:
                _add(tree, path, real=True)
    for _, path in belonging:
        if path[1] != own and (major < _ONE_HOME_SINCE or path[2] in _SHARED):
            _add(tree, path, real=False)
    return tree


def _add(tree: _Folder, path: Sequence[str], *, real: bool) -> None:
    """Adds the file at `nvidia/WHEEL/FOLDER/…`."""
    folder = tree
    for depth, name in enumerate(path[2:-1], 3):
        below = folder.sub(name)
        if below is None:
            return
        folder = below
        folder.real = folder.real or real or (depth == 3 and name in _SHARED)
        folder.sources.add("/".join(path[:depth]))
    if path[-1] not in folder.folders:
        folder.files.setdefault(path[-1], "" if real else "/".join(path))


def _shown(folder: _Folder, place: str = "") -> Iterator[tuple[str, str]]:
    """What is linked: (place in the home, target in site-packages)."""
    for name, target in folder.files.items():
        if target:
            yield place + name, target
    for name, below in folder.folders.items():
        if not below.real and len(below.sources) == 1:
            yield place + name, min(below.sources)
        else:
            yield from _shown(below, f"{place}{name}/")


def _names(tree: _Folder) -> dict[str, str]:
    """The linker's names of the libraries in `lib`, each with the file of the highest version."""
    library = tree.folders.get("lib", _Folder())
    found: dict[str, tuple[tuple[int, ...], str]] = {}
    for file in library.files:
        if (match := _LIBRARY.fullmatch(file)) and match[1] not in library.files and match[1] not in library.folders:
            version = tuple(int(number) for number in match[2].split(".") if number)
            found[match[1]] = max(found.get(match[1], ((), "")), (version, file))
    return {name: file for name, (_, file) in found.items()}


def _link(path: str, target: str) -> Entry:
    """A relative link, which holds wherever the root is unpacked."""
    return Entry(path, Kind.SYMLINK, 0o777, linkname=posixpath.relpath(target, posixpath.dirname(path)))
