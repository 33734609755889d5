"""What runs inside of the derivation of an image: layers that other derivations made, and those that need the profile's own
folder or a base image, become an OCI layout. Its digest is that of assembling elsewhere.
"""

from __future__ import annotations

import base64
import os
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from builder import lock as locks
from builder import plan as plans
from builder.assemble import assemble
from builder.errors import BuilderError
from builder.lock import LockedFile
from builder.oci import spec
from builder.oci.digest import Digest
from builder.oci.layout import Layout
from builder.packing import Folder
from builder.progress import Silent
from builder.store import Store

TAG = "latest"


@dataclass(frozen=True)
class _Nobody:
    """Brings nothing: all that an image needs was given."""

    store: Store

    def ensure(self, files: Iterable[LockedFile]) -> None:
        names = sorted({file.path for file in files if not self.store.has(file.digest, file.size)})
        if names:
            raise BuilderError(
                f"{', '.join(names[:4])}: neither a layer of the plan nor an input of it", hint="write the plan again"
            )


def image(attributes: Mapping[str, Any], scratch: Path, out: Path) -> None:
    """Writes the layout `out` of the lock in `attributes`, whose `layers` are paths of what derivations left, `inputs` files whose
    names end in their digests, `rendered` templates in base64 by their places, and `src` the profile's folder. Blobs that
    others made stay where they are: the layout has links to them."""
    store = Store(scratch)
    for made in map(Path, attributes["layers"].values()):
        for path in made.rglob("*"):
            if path.is_file():
                link(path, scratch / path.relative_to(made))
    for path in map(Path, attributes["inputs"]):
        link(path, store.path(Digest(path.name[-64:])))
    rendered = {place: base64.b64decode(text) for place, text in attributes["rendered"].items()}
    folder = Folder(Path(attributes["src"] or "."), rendered)
    lock = locks.parse(attributes["lock"], "the lock")
    built = assemble(plans.plan(lock), store, _Nobody(store), folder, Silent(), 1)
    layout = Layout(out)
    for descriptor in built.blobs():
        path = store.path(descriptor.digest)
        if path.is_symlink():
            place = layout.path(descriptor.digest)
            # Relative, so that it holds in a store that is elsewhere, too.
            link(Path(os.path.relpath(path.readlink(), place.parent)), place)
        else:
            layout.path(descriptor.digest).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(path, layout.path(descriptor.digest))
    for item in built.images:
        layout.put(item.config)
    for descriptor, data in built.documents.blobs:
        if descriptor.media_type in (spec.INDEX, spec.MANIFEST):
            layout.put_manifest(descriptor, data, TAG if descriptor == built.documents.top else None)
        else:
            layout.put(data)


def link(target: Path, place: Path) -> None:
    """A link to a file, in folders that are made."""
    place.parent.mkdir(parents=True, exist_ok=True)
    place.symlink_to(target)
