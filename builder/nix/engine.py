"""The engine: layers that are worth it are made by Nix, on whichever machine it chooses, and taken into the store."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from builder import plan as plans
from builder.errors import HostileInputError
from builder.lock import LockedFile
from builder.nix import runtime
from builder.nix.document import PREFIX, document_of, name_of
from builder.nix.inside import packs, records
from builder.nix.program import THREADS, UNSIGNED, LostError, Nix, NixError
from builder.oci.digest import Digest
from builder.parallel import Stop, for_each
from builder.plan import Layer
from builder.store import Store, hash_of

FLOOR = 1 << 20
"""Below so many bytes of inputs a layer is packed sooner than Nix is asked for it."""
_REPAIR = "`nix-store --verify --check-contents --repair` mends a store, `nix-store --delete` has it built again"
Ensure = Callable[[Iterable[LockedFile]], None]


@dataclass(frozen=True)
class Engine:
    """Makes layers by Nix. `floor` is the least sum of bytes of inputs of a layer that goes there; `packer` names the store path
    of the packer, which is else copied from this process; with `rebuild`, what is there is built again and compared. `builds` says
    whether some machine may build, should a cache not give what it has."""

    nix: Nix
    floor: int = FLOOR
    packer: str = ""
    rebuild: bool = False
    builds: bool = True

    def worth(self, layers: Iterable[Layer]) -> list[Layer]:
        """Those of the layers that Nix can make, and is worth its time for."""
        return [
            layer
            for layer in dict.fromkeys(layers)
            if packs(layer) and sum(file.size for file in plans.files(layer)) >= self.floor
        ]

    def __call__(self, layers: Sequence[Layer], span_size: int, store: Store, ensure: Ensure) -> None:
        """Brings those of `layers` that are worth it into the store; `ensure` brings the files of those that no cache has.

        Raises `NixError`, or what packing a layer raises, by the layer's name.
        """
        chosen = self.worth(layers)
        if chosen:
            with store.workspace() as folder:
                self.take_all(self.realised(chosen, span_size, store, ensure, folder), chosen, span_size, store)

    def take_all(
        self, paths: Iterable[str], layers: Sequence[Layer], span_size: int, store: Store
    ) -> tuple[Layer, ...]:
        """Takes what derivations left under some store paths into the store, several at once; which of `layers` that is."""
        taken: list[Layer] = []

        def one(path: str) -> None:
            taken.append(take(self.nix.real(path), layers, span_size, store))

        for failure in for_each(one, paths, THREADS, Stop()):
            raise failure
        return tuple(taken)

    def realised(
        self,
        chosen: Sequence[Layer],
        span_size: int,
        store: Store,
        ensure: Ensure,
        folder: Path,
        *,
        image: bool = False,
        cached: bool = False,
    ) -> tuple[str, ...]:
        """The store paths of layers, in no order, held by links in `folder` as long as that is there: with `image`, the
        one path that refers to all of them, with `cached`, of those layers alone that need not be built."""
        self.nix.check()
        names = {name_of(layer): layer for layer in chosen}
        plan = folder / "plan.json"
        document = document_of("image", chosen, span_size, self.runtime(store))
        plan.write_text(json.dumps(document, sort_keys=True), encoding="utf-8")
        file = ["-f", str(engine_file()), "--argstr", "plan", str(plan)]
        attributes = ["all"] if image else [f"layers.{PREFIX}{layer.key.hex}" for layer in chosen]
        asked = set(self.nix.missing([*file, *attributes, "--no-link"]))
        lacking = [layer for name, layer in names.items() if name in asked]
        if cached:
            attributes = [f"layers.{PREFIX}{layer.key.hex}" for layer in chosen if layer not in lacking]
            if not attributes:
                return ()
        else:
            self._bring(chosen if self.rebuild else lacking, store, ensure)
        arguments = [*file, *attributes]
        link = ["--out-link", str(folder / "result")]
        called = {name: layer.name for name, layer in names.items()}
        try:
            built = self._built([*arguments, *link], called)
        except NixError as error:
            rest = [layer for layer in chosen if layer not in lacking]
            inputs = {file.sha256 for layer in rest for file in plans.files(layer)}
            if (
                cached
                or not self.builds
                or not (UNSIGNED in error.output or any(map(error.output.__contains__, inputs)))
            ):
                raise
            self.nix.note("nix: a cache did not give what it said it had: that is built")
            self._bring(rest, store, ensure)
            built = self._built([*arguments, *link], called)
        if self.rebuild:
            self._built([*arguments, "--no-link", "--rebuild"], called)
        return built

    def _built(self, arguments: Sequence[str], called: Mapping[str, str]) -> tuple[str, ...]:
        """Builds, once again where a machine was lost: Nix asks others, or makes it here, if it cannot be reached any more."""
        try:
            return self.nix.build(arguments, _Told(called, self.nix.note), called)
        except LostError as error:
            self.nix.note(f"nix: {error}; that is built again")
            return self.nix.build(arguments, _Told(called, self.nix.note), called)

    def runtime(self, store: Store) -> str:
        """The store path of the packer; it is added if it is not there."""
        if self.packer:
            if not self.nix.valid(self.packer):
                self.nix.command("build", "--no-link", self.packer)
            return self.packer
        key = runtime.fingerprint()
        record = store.record("packer", key)
        if record is None or not self.nix.valid(str(record.get("path"))):
            with store.workspace() as folder:
                runtime.write(folder / runtime.NAME)
                record = {"path": self.nix.add(folder / runtime.NAME)}
            store.put_record("packer", key, record)
        return str(record["path"])

    def _bring(self, layers: Sequence[Layer], store: Store, ensure: Ensure) -> None:
        """The inputs of layers, into our store and from there into Nix's: nothing is fetched twice."""
        inputs = dict.fromkeys(file for layer in layers for file in plans.files(layer))
        ensure(inputs)
        self.nix.add_files((store.path(file.digest), file.size) for file in inputs)


class _Told:
    """Says of every layer where it comes from. Machines tell of what they build, too, as of something built on themselves."""

    def __init__(self, names: Mapping[str, str], note: Callable[[str], None]) -> None:
        self._names, self._note = names, note
        self._far: set[str] = set()

    def __call__(self, name: str, place: str, *, cached: bool) -> None:
        if name not in self._names or (not place and name in self._far):
            return
        if place and not cached:
            self._far.add(name)
        words = f"from {place}" if cached else f"built on {place}" if place else "built here"
        self._note(f"nix: {self._names[name]}: {words}")


def engine_file() -> Path:
    """Where `engine.nix` is: in an installed package beside this module, else at the top of the sources."""
    inside = Path(__file__).with_name("engine.nix")
    return inside if inside.is_file() else Path(__file__).parents[2] / "nix/engine.nix"


def take(folder: Path, layers: Sequence[Layer], span_size: int, store: Store) -> Layer:
    """Takes the layer that a derivation left in `folder` into the store, its objects checked against their digests; which one
    of `layers` it is."""
    theirs = Store(folder)
    layer = next((layer for layer in layers if theirs.record("layer", layer.key.hex)), None)
    if layer is None:
        raise NixError(f"{folder}: there is no layer in it", hint=_REPAIR)
    try:
        blob = Digest.parse((theirs.record("layer", layer.key.hex) or {})["objects"][0])
        for kind, key in reversed(records(layer, blob, span_size)):  # the layer's last: it leads to all others
            found = theirs.record(kind, key)
            if found is None:
                raise NixError(f"{folder}: the layer is not complete", hint=_REPAIR)
            for digest in map(Digest.parse, found["objects"]):
                _adopt(theirs.path(digest), digest, store)
            store.put_record(kind, key, found)
    except (LookupError, TypeError, ValueError) as error:
        raise NixError(f"{folder}: what it says of the layer cannot be read: {error}", hint=_REPAIR) from error
    return layer


def _adopt(path: Path, digest: Digest, store: Store) -> None:
    if store.has(digest):
        return
    with store.temporary() as copy:
        shutil.copyfile(path, copy)
        with copy.open("rb") as file:
            found = hash_of(file.fileno())
        if found != digest:
            raise HostileInputError(f"{path}: the bytes are those of {found}", hint=_REPAIR)
        store.adopt(copy, digest)
