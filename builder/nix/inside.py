"""What runs inside of a derivation: one layer is packed into the output, which is a small store of its own.

The interpreter starts this very file; Nix leaves what it is to do in `.attrs.json` in the working directory.
"""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NoReturn

if __name__ == "__main__":
    sys.path.append(str(Path(__file__).parents[2]))

from builder import documents
from builder.errors import BuilderError
from builder.lock import SociSettings
from builder.oci.digest import Digest
from builder.packing import Folder, Packer, ztoc_key
from builder.plan import Layer, LinksLayer, NixLayer, SystemLayer, WheelLayer, has_table, media_type
from builder.soci import index
from builder.sources import nar
from builder.store import Store

KINDS: Mapping[str, type[Any]] = {"links": LinksLayer, "nix": NixLayer, "system": SystemLayer, "wheels": WheelLayer}
"""The layers that can be packed from locked files alone, by the names that specifications give them."""
MARK = "layerwright error: "
"""What the line begins with that tells of an error: JSON of its message and its hint follow."""


def packs(layer: Layer) -> bool:
    """Whether a derivation can pack the layer: not one that the profile's own files, or a trace, decide on."""
    return type(layer) in KINDS.values() and getattr(layer, "order", None) is None


def encode(layer: Layer, span_size: int) -> str:
    """The specification of a layer: all that decides what its derivation makes, but its inputs' bytes."""
    kind = next(name for name, cls in KINDS.items() if type(layer) is cls)
    document = {"kind": kind, "layer": documents.dump(layer), "span-size": span_size}
    return json.dumps(document, sort_keys=True, separators=(",", ":"), ensure_ascii=False)


def decode(text: str) -> tuple[Layer, int]:
    """The inverse of `encode`."""
    document = json.loads(text)
    what = json.dumps(document["layer"])
    layer: Layer = documents.load_json(KINDS[document["kind"]], what, "the specification of a layer")
    return layer, int(document["span-size"])


def pack(spec: str, inputs: Sequence[Path], scratch: Path, out: Path) -> None:
    """Packs a layer; `inputs` are files whose names end in their digests, `out` becomes a store with the layer's objects and
    records, and nothing else."""
    layer, span_size = decode(spec)
    store = Store(scratch)
    for path in inputs:
        place = store.path(Digest(path.name[-64:]))
        place.parent.mkdir(parents=True, exist_ok=True)
        place.symlink_to(path)
    built = Packer(scratch, Folder(Path()), SociSettings(span_size=span_size))(layer, lambda amount: None)
    target = Store(out)
    for kind, key in records(layer, built.blob.digest, span_size):
        record = store.record(kind, key)
        assert record, "a layer that was just packed is in the store"
        for digest in map(Digest.parse, record["objects"]):
            target.path(digest).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(store.path(digest), target.path(digest))
        place = out / "records" / kind / key
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(
            json.dumps(record, sort_keys=True, separators=(",", ":"), ensure_ascii=False), encoding="utf-8"
        )


def records(layer: Layer, blob: Digest, span_size: int) -> tuple[tuple[str, str], ...]:
    """The kinds and keys of the records that lead to a layer."""
    found = ("layer", layer.key.hex)
    indexed = index.is_indexed(media_type(layer)) and not has_table(layer)
    return (found, ("ztoc", ztoc_key(blob, span_size))) if indexed else (found,)


def _main() -> None:
    attributes = json.loads(Path(".attrs.json").read_bytes())
    out = Path(attributes["outputs"]["out"])
    if "archive" in attributes:
        with out.open("wb") as file:
            nar.write(Path(attributes["archive"]), file)
        return
    if "layers" in attributes and "lock" not in attributes:
        out.mkdir()
        for key, path in attributes["layers"].items():
            (out / key).symlink_to(path)
        return
    if Path("/usr").exists():  # no sandbox has that
        _refuse("it would be packed without a sandbox", "set `sandbox = true` in nix.conf of the machine that builds")
    scratch = Path("store").absolute()
    try:
        if "lock" in attributes:
            from builder.nix import gather

            gather.image(attributes, scratch, out)
        else:
            pack(attributes["spec"], [Path(path) for path in attributes["inputs"]], scratch, out)
    except BuilderError as error:
        _refuse(str(error), error.hint)


def _refuse(message: str, hint: str | None) -> NoReturn:
    raise SystemExit(MARK + json.dumps([message, hint]))


if __name__ == "__main__":
    _main()
