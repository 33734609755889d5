"""Where a measurement happens: a copy of the profile, stores that hold its inputs and nothing else, empty layouts."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Container, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import count
from pathlib import Path
from typing import Any

from bench import watch
from bench.watch import Cost


@dataclass(frozen=True)
class Input:
    """A file that the lock names, and where the user's store has it."""

    name: str
    path: Path


@dataclass
class Workplace:
    """A folder for everything that one run of the bench makes; `build` is the command that is measured."""

    build: str
    folder: Path
    profile: Path
    lock: Path
    inputs: Sequence[Input] = ()
    _numbers: Iterator[int] = field(default_factory=count)

    def store(self) -> Path:
        """A new XDG_CACHE_HOME whose store has the inputs and no layers; the bytes are the user's own store's."""
        home = self.folder / f"store-{next(self._numbers)}"
        for each in self.inputs:
            target = home / "layerwright" / each.path.relative_to(_store(os.environ))
            target.parent.mkdir(parents=True, exist_ok=True)
            os.link(each.path, target)
        return home

    def layout(self) -> Path:
        """The name of a layout that does not exist yet."""
        return self.folder / f"layout-{next(self._numbers)}"

    def publish(self, store: Path, layout: Path, *options: str, cpus: Sequence[int] = ()) -> Cost:
        """Publishes the profile from a store, without the network."""
        env = {**os.environ, "XDG_CACHE_HOME": str(store), "LAYERWRIGHT_OFFLINE": "1"}
        return watch.run([self.build, "publish", str(self.profile), f"oci:{layout}", *options], env, cpus=cpus)

    def remove(self, *folders: Path) -> None:
        """Frees what a measurement does not need any more."""
        for folder in folders:
            shutil.rmtree(folder)

    def change_file(self) -> str:
        """Changes the smallest file that the profile puts into the image, in the copy; returns its name."""
        files = [file for file in json.loads(self.lock.read_bytes()).get("files", []) if file.get("size")]
        if not files:
            sys.exit("bench: the profile has no file that could be changed")
        source: str = min(files, key=lambda file: file["size"])["source"]
        with (self.profile.parent / source).open("a") as file:
            file.write("# changed\n")
        return source


@contextmanager
def workplace(build: str, profile: Path) -> Iterator[Workplace]:
    """A workplace beside the user's store, so that inputs can be linked; it is removed at the end.

    A profile without a lock is locked, in the copy, and inputs that the store lacks are fetched: not measured.
    """
    home = _store(os.environ).parent
    home.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix="layerwright-bench-", dir=home) as name:
        folder = Path(name)
        # Profiles extend one another and name files by relative paths: the whole folder comes along.
        shutil.copytree(profile.resolve().parent, folder / "profiles", symlinks=True)
        copy = folder / "profiles" / profile.name
        work = Workplace(build, folder, copy, copy.with_name(f"{copy.stem}.lock.json"))
        if not work.lock.exists():
            _say(f"locking {profile}")
            watch.run([build, "lock", str(copy)], os.environ)
        work.inputs = _inputs(work.lock)
        if not all(each.path.exists() for each in work.inputs):
            _say("fetching what the store lacks")
            watch.run([build, "publish", str(copy), f"oci:{folder / 'fetched'}"], os.environ)
            shutil.rmtree(folder / "fetched")
        yield work


def new_blobs(layout: Path, known: Container[str]) -> list[tuple[str, int]]:
    """What each blob is that the layout has beyond the known ones, and how many bytes it has."""
    kinds: dict[str, str] = {}
    _descend(layout, json.loads((layout / "index.json").read_bytes()), kinds)
    new = [path for path in _blobs(layout).iterdir() if path.name not in known]
    return sorted((kinds.get(path.name, "unnamed"), path.stat().st_size) for path in new)


def top_digest(layout: Path) -> str:
    """The digest that the layout's first name stands for."""
    digest: str = json.loads((layout / "index.json").read_bytes())["manifests"][0]["digest"]
    return digest


def _descend(layout: Path, document: Any, kinds: dict[str, str]) -> None:
    """The media types, shortened, of all that a document refers to, directly or not."""
    if isinstance(document, dict):
        if isinstance(document.get("digest"), str):
            name = document["digest"].partition(":")[2]
            media_type = document.get("mediaType", "")
            kinds[name] = media_type.removeprefix("application/vnd.").replace("oci.image.", "")
            if media_type.endswith("json") and (_blobs(layout) / name).exists():
                _descend(layout, json.loads((_blobs(layout) / name).read_bytes()), kinds)
        for value in document.values():
            _descend(layout, value, kinds)
    elif isinstance(document, list):
        for value in document:
            _descend(layout, value, kinds)


def _inputs(lock: Path) -> list[Input]:
    """Every file of the lock that comes from an origin."""
    found: dict[str, Input] = {}

    def visit(value: Any) -> None:
        if isinstance(value, dict):
            if {"origin", "path", "sha256", "size"} <= value.keys():
                digest = value["sha256"].removeprefix("sha256:")
                found[digest] = Input(value["path"], _store(os.environ) / "sha256" / digest[:2] / digest)
            for item in value.values():
                visit(item)
        elif isinstance(value, list):
            for item in value:
                visit(item)

    visit(json.loads(lock.read_bytes()))
    return sorted(found.values(), key=lambda each: each.name)


def _store(env: Mapping[str, str]) -> Path:
    return Path(env.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "layerwright"


def _blobs(layout: Path) -> Path:
    return layout / "blobs" / "sha256"


def _say(what: str) -> None:
    print(f"bench: {what}", file=sys.stderr, flush=True)
