"""What verifying says: what was checked, and everything that is not as it should be."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from builder.client import NotFoundError
from builder.errors import BuilderError, HostileInputError
from builder.layers.stream import LayerError
from builder.layers.untar import readable
from builder.oci.digest import Digest
from builder.oci.listing import LayoutError
from builder.oci.published import ImageError
from builder.registry import WrongBytesError


class Kind(StrEnum):
    """What is wrong. Those from CONTENT on are what a rebuilt layer differs in (`layers.compare.Difference`)."""

    STRUCTURE = "structure"  # a document is not what the specification says
    BLOB = "blob"  # missing, or other bytes than its digest says
    LAYER = "layer"  # the right bytes, and yet no tar
    DIFF_ID = "diff_id"
    SOCI = "soci"  # the index or a ztoc does not fit the image
    TABLE = "table"  # of an eStargz layer, which does not fit it
    MODEL = "model"  # one that the image names is not what it says
    LOCK = "lock"  # it cannot have been made from this lock
    PLATFORM = "platform"
    CONFIG = "config"
    MANIFEST = "manifest"
    INDEX = "index"
    LAYERS = "layers"  # one is missing, there is one more, or their order differs
    CONTENT = "content"
    ORDER = "order"
    TYPE = "type"
    MODE = "mode"
    OWNER = "owner"
    MTIME = "mtime"
    LINK = "link"
    MISSING = "missing"
    EXTRA = "extra"
    HEADER = "header"
    END = "end"
    COMPRESSION = "compression only"


UNREADABLE = (Kind.BLOB, Kind.LAYER)
"""What is said of a layer that cannot be read to its end."""


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, and where: the platform, the number of the layer from 1 and its name, the file in it, the byte
    (of the file for CONTENT, of the blob for BLOB and COMPRESSION, of the header for HEADER)."""

    kind: Kind
    message: str
    platform: str | None = None
    layer: int | None = None
    name: str = ""
    path: str | None = None
    byte: int | None = None

    def __str__(self) -> str:
        """One line that a terminal may show."""
        layer = "" if self.layer is None else f"layer {self.layer}" + (f" ({self.name})" if self.name else "")
        path = "" if self.path is None else f"/{self.path.lstrip('/')}"
        byte = "" if self.byte is None else f"byte {self.byte}"
        where = ", ".join(filter(None, (self.platform, layer, path, byte)))
        return readable(f"{where}: {self.kind}: {self.message}" if where else f"{self.kind}: {self.message}")

    def document(self) -> dict[str, object]:
        """As JSON; what does not apply is null."""
        path = self.path.encode("utf-8", "surrogateescape").decode("utf-8", "replace") if self.path else self.path
        return {
            "kind": str(self.kind),
            "message": readable(self.message),
            "platform": self.platform,
            "layer": self.layer,
            "name": self.name or None,
            "path": path,
            "byte": self.byte,
        }


@dataclass(frozen=True)
class VerifiedLayer:
    """A layer that was read to its end: how many members its tar has, and how many spans its ztoc (0: none)."""

    name: str
    digest: Digest
    size: int
    tar_size: int
    members: int
    spans: int


@dataclass(frozen=True)
class VerifiedImage:
    """The image of one platform; a layer that could not be read is not among `layers`."""

    platform: str
    digest: Digest
    layers: tuple[VerifiedLayer, ...]


def says_no(error: BuilderError) -> bool:
    """Whether an error says that what is published is wrong, and not that it could not be asked for."""
    return isinstance(
        error, NotFoundError | HostileInputError | ImageError | LayerError | LayoutError | WrongBytesError
    )
