"""What a node can be told so that it mounts an image's layers sooner, without a setting of its own.

Clients make labels of snapshots out of the annotations of layers' descriptors that begin with `containerd.io/snapshot/`
(containerd, `snapshots.FilterInheritedLabels`). soci-snapshotter resolves the layers above the one that it is asked for, all at
once, if labels tell their sizes (`fs/source/source.go`, `FromDefaultLabels`); else one after another, and it has to ask for the
size of each. And a layer whose files have no extended attributes can be mounted without them (`soci/soci_index.go`,
`shouldDisableXattrs`; `soci create --optimizations xattr`), which spares the kernel a question for each directory of each layer.
"""

from __future__ import annotations

import mmap
from collections.abc import Sequence
from dataclasses import replace

from builder.oci.spec import Descriptor

SIZE = "containerd.io/snapshot/remote/soci.size"
"""The annotation of a layer's descriptor with the layer's size in bytes."""

SIZES = "containerd.io/snapshot/remote/image.layers.size"
"""The annotation of a layer's descriptor with the sizes of that layer and those above it, bottom first, comma-separated."""

NO_XATTRS = "com.amazon.soci.disable-xattrs"
"""The annotation of a ztoc's descriptor that says `true` where no file of the layer has extended attributes."""

_DIGESTS = "containerd.io/snapshot/cri.image-layers"
_MOST = 4096
_TELLING = (b"SCHILY.xattr.", b".wh..wh..opq")


def announced(layers: Sequence[Descriptor]) -> tuple[Descriptor, ...]:
    """The layers of an image, bottom first, with annotations of their sizes.

    There are as many sizes as containerd lists digests in a label of its own, which it cuts off at 4,096 bytes with its key
    (`pkg/snapshotters/annotations.go`, `getLayers`): the snapshotter mounts nothing where one list is longer than the other.
    """
    found = []
    for number, layer in enumerate(layers):
        left = _MOST - len(_DIGESTS)
        sizes: list[str] = []
        for above in layers[number:]:
            left -= len(str(above.digest)) + (1 if sizes else 0)
            if left < 0:
                break
            sizes.append(str(above.size))
        told = {**layer.annotations, SIZE: str(layer.size), SIZES: ",".join(sizes)}
        found.append(replace(layer, annotations=told))
    return tuple(found)


def without_xattrs(ztoc: bytes | mmap.mmap) -> bool:
    """Whether certainly nothing in a layer has extended attributes, nor is an opaque directory, which is told by one.

    Looks for what would say so anywhere in the ztoc: a layer whose data hold such words by chance is left as it is.
    """
    return all(ztoc.find(word) < 0 for word in _TELLING)
